"""How people write a table as text: what can be said of a file (``dataset.dialect``), and the marks in its
numbers, found where the file leaves no doubt.

Nothing here is guessed where another reading would give other numbers: that is refused, with the option that
says which it is.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medcm_cli.checks import as_option, one_of, shown
from medcm_cli.errors import InputError

MISSING = ["", "NA", "NaN", "nan", "."]
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "blank": " "}
DATES = ("dmy", "mdy", "ymd", "ydm", "excel", "none")
_DECIMALS = {"point": ".", "comma": ",", "either": ".,"}
_THOUSANDS = {"none": "", "point": ".", "comma": ",", "blank": " ", "apostrophe": "'"}
_WORDS = {mark: word for word, mark in _THOUSANDS.items() if mark}
_ALIKE = str.maketrans(
    {"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2019": "'"}
)  # of what separates thousands
_MISSPELT = 0.1  # of a column's different cells, at most
_EXPONENT = r"(?:[eE][+-]?\d+)?"


def option(**said: str) -> str:
    """The words for an option that settles what a file leaves open."""
    return as_option("dataset.dialect", **said)


@dataclass(frozen=True)
class Dialect:
    """What is said of a file; None of what is to be found in it.

    ``encoding``: a name that Python knows; ``separator``: one of ``SEPARATORS``; ``decimal``: point, comma or
    either, where a file has both;
    ``thousands``: none, point, comma, blank or apostrophe; ``dates``: the order of day, month and year,
    excel for TIME in days as its numbers of dates are, none for TIME in h whatever it looks like;
    ``ignore``: what rows begin with that are left out, ``@`` for any letter too, as NONMEM's IGNORE, or none;
    ``names``: of the columns, where the file has no header.
    """

    encoding: str | None = None
    separator: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    dates: str | None = None
    ignore: str | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def build(cls, options: Mapping[str, object]) -> "Dialect":
        """From configuration. :raises InputError: no such option, or another value than expected."""
        known, where = [field.name for field in fields(cls)], "dataset.dialect"
        if not isinstance(options, Mapping):
            raise InputError(f"{where} is {shown(options)}; expected some of {', '.join(known)}")
        unknown = [key for key in options if key not in known]
        if unknown:
            raise InputError(f"{where}.{unknown[0]}: no such option; expected some of {', '.join(known)}")
        said = {key: value for key, value in options.items() if value is not None}
        for key, words in (
            ("separator", SEPARATORS),
            ("decimal", _DECIMALS),
            ("thousands", _THOUSANDS),
            ("dates", DATES),
        ):
            if key in said:
                one_of(f"{where}.{key}", said[key], tuple(words))
        thousands, decimal = str(said.get("thousands", "none")), str(said.get("decimal"))
        if thousands != "none" and _THOUSANDS[thousands] in _DECIMALS.get(decimal, ""):
            raise InputError(
                f"{where}.thousands is {thousands!r}, and decimal {decimal!r}; expected another mark"
            )
        if "encoding" in said:
            _check_encoding(said["encoding"])
        ignore = said.get("ignore", "none")
        if ignore != "none" and not (isinstance(ignore, str) and len(ignore) == 1 and not ignore.isspace()):
            raise InputError(f"{where}.ignore is {shown(ignore)}; expected none, @ or the letter of comments")
        if "names" in said:
            said["names"] = _names(said["names"])
        return cls(**said)  # type: ignore[arg-type]


def _check_encoding(name: object) -> None:
    try:
        "".encode(str(name))
        codecs.lookup(str(name))
    except LookupError:
        raise InputError(
            f"dataset.dialect.encoding is {shown(name)}; expected utf-8, cp1252, latin-1, utf-16 or such"
        ) from None


def _names(given: object) -> tuple[str, ...]:
    names = list(given) if isinstance(given, list | tuple) else str(given).split(",")
    listed = isinstance(given, list | tuple | str) and len(names) > 0
    if not listed or not all(isinstance(n, str) and n.strip() for n in names):
        raise InputError(
            f"dataset.dialect.names is {shown(given)}; expected the columns' names, as in [ID, TIME, DV]"
        )
    return tuple(name.strip() for name in names)


@dataclass(frozen=True)
class Marks:
    """How a file writes numbers: its decimal mark, or both, and the mark between thousands, empty for
    none."""

    decimal: str = "."
    thousands: str = ""

    def value(self, cell: object) -> float | None:
        """The number that a cell holds, NaN of a missing one, None where it holds none."""
        if not isinstance(cell, str):
            try:
                return float(cell)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                return None
        text = cell.strip().translate(_ALIKE)
        if text in MISSING:
            return float("nan")
        point = f"[{self.decimal}]"
        whole = r"\d+"
        if self.thousands:
            whole = rf"(?:[1-9]\d{{0,2}}(?:{re.escape(self.thousands)}\d{{3}})+|\d+)"
        if re.fullmatch(rf"[+-]?(?:{whole}(?:{point}\d*)?|{point}\d+){_EXPONENT}", text):
            return float(text.replace(self.thousands, "").replace(",", "."))
        return float(text) if re.fullmatch(r"[+-]?inf(inity)?", text, re.IGNORECASE) else None

    def found(self, said: Dialect) -> tuple[str, ...]:
        """What is not said and not plain, in words."""
        words: tuple[str, ...] = ("decimal commas",) if self.decimal == "," and said.decimal is None else ()
        if self.thousands and said.thousands is None:
            words += (f"{self.thousands!r} between thousands",)
        return words

    def hint(self, cell: object) -> str:
        """What a number looks like here, and which option reads a cell that is none of them as one."""
        if len(self.decimal) > 1:
            return "with a point or a comma, as in 0.3 or 0,3"
        words = f"with a {_WORDS[self.decimal]}, as in 0{self.decimal}3"
        other = "comma" if self.decimal == "." else "point"
        cell = cell.strip().lstrip("<>") if isinstance(cell, str) else cell
        ways = [option(decimal=other)] if Marks(_DECIMALS[other]).value(cell) is not None else []
        ways += [option(decimal="either")] if ways else []
        for name, mark in _THOUSANDS.items():
            if mark not in ("", self.decimal) and Marks(self.decimal, mark).value(cell) is not None:
                ways.insert(0, option(thousands=name))
        return f"{words}; {' or '.join(ways)} reads it" if ways and isinstance(cell, str) else words


class Cell(NamedTuple):
    """A cell as it is written, and where."""

    where: str
    text: str


def cells_of(codes: npt.NDArray[Any], texts: Iterable[object], where: Callable[[int], str]) -> Iterator[Cell]:
    """The cells of a column that are text, each text once.

    :param codes: the number of each row's text, -1 of an empty cell, (R,).
    :param where: the words for a row.
    """
    first = np.empty(int(codes.max(initial=-1)) + 2, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    for number, text in enumerate(texts):
        if isinstance(text, str):
            yield Cell(where(int(first[number])), text)


class _Seen(NamedTuple):
    """What numbers show: mark -> the first cell that shows it as decimal mark, as the one between thousands,
    or as either."""

    decimal: dict[str, Cell]
    thousands: dict[str, Cell]
    either: dict[str, Cell]


def marks_of(columns: Iterable[Iterable[Cell]], said: Dialect, source: str, by_point: bool) -> Marks:
    """The marks of a file's numbers.

    :param columns: the cells of each column; one that is no column of numbers shows nothing.
    :param by_point: where numbers do not tell, decimals have a point, as in tables separated by commas or
        blanks.
    :raises InputError: cells that contradict one another, or that can be read in two ways.
    """
    seen = _Seen({}, {}, {})
    for cells in columns:
        _add(seen, cells)
    decimal = _DECIMALS[said.decimal] if said.decimal else None
    thousands = _THOUSANDS[said.thousands] if said.thousands else None
    if decimal is None and by_point and "." in seen.decimal:
        decimal = "."
    if decimal is None and len(seen.decimal) > 1:
        (one, a), (_, b) = seen.decimal.items()
        grouped = {".", ","} & {*seen.thousands, *seen.either}
        way = option(decimal=_WORDS[one]) if grouped else f"{option(decimal='either')}, which reads both"
        raise InputError(
            f"{source}, {b.where}: {b.text!r} has another decimal mark than {a.text!r} ({a.where}); expected "
            f"one, or {way}"
        )
    if decimal is None:
        decimal = _decimal(seen, thousands, source, by_point)
    if thousands is None:
        found = [mark for mark in seen.thousands if mark not in decimal]
        if len(found) > 1:
            a, b = (seen.thousands[mark] for mark in found[:2])
            raise InputError(
                f"{source}, {b.where}: {b.text!r} has another mark between thousands than {a.text!r} "
                f"({a.where}); expected one, or {option(thousands=_WORDS[found[0]])}"
            )
        thousands = found[0] if found else ""
    return Marks(decimal, thousands)


def _decimal(seen: _Seen, thousands: str | None, source: str, by_point: bool) -> str:
    """The decimal mark, which is not said. :raises InputError: it cannot be known."""
    if seen.decimal:
        return next(iter(seen.decimal))
    for mark in [thousands, *seen.thousands]:
        if mark in (".", ","):
            return "," if mark == "." else "."
    if not seen.either or (by_point and "," not in seen.either):
        return "."
    mark, cell = next(iter(seen.either.items()))
    plain = cell.text.replace(mark, "")
    raise InputError(
        f"{source}, {cell.where}: {cell.text!r} may be {cell.text.replace(mark, '.')} or {plain}; "
        f"{option(decimal=_WORDS[mark])} or {option(thousands=_WORDS[mark])} says which"
    )


_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:([.,' ])\d{3})(?:\1\d{3})*(?:([.,])\d*)?")
_SIMPLE = re.compile(rf"[+-]?\d*(?:([.,])\d*)?({_EXPONENT})")


def _add(seen: _Seen, cells: Iterable[Cell]) -> None:
    """Add what the cells of a column show, where they are numbers but for a few, which may be misspelt."""
    of_column = _Seen({}, {}, {})
    count = others = 0
    for cell in cells:
        count += 1
        text = cell.text.strip().lstrip("<>").strip().translate(_ALIKE)
        others += text not in MISSING and not _show(of_column, cell, text)
    if others > _MISSPELT * count:
        return
    for all_columns, one in zip(seen, of_column, strict=True):
        for mark, cell in one.items():
            all_columns.setdefault(mark, cell)


def _show(seen: _Seen, cell: Cell, text: str) -> bool:
    """Add what a cell shows; whether it is a number, and no text, date or clock time."""
    simple, grouped = _SIMPLE.fullmatch(text), _GROUPED.fullmatch(text)
    if not any(map(str.isdigit, text)) or not (simple or grouped):
        return False
    if simple and (simple[2] or not grouped):
        if simple[1]:
            seen.decimal.setdefault(simple[1], cell)
        return True
    assert grouped is not None
    mark, decimal = grouped[1], grouped[2]
    if decimal:
        seen.decimal.setdefault(decimal, cell)
    (seen.either if simple else seen.thousands).setdefault(mark, cell)
    return decimal != mark
