"""A table as its file has it, with the words to point at a cell of it."""

import csv
import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from medcm_cli.data.dialect import Cell, Dialect, Marks, cells_of, marks_of
from medcm_cli.data.text import read_text
from medcm_cli.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TextArray = npt.NDArray[np.object_]

MOST = 1_000_000_000  # of a whole number
# Names that a header has, by which it and what separates columns are recognised.
KNOWN = (
    "id",
    "time",
    "date",
    "amt",
    "rate",
    "dv",
    "evid",
    "mdv",
    "cmt",
    "cens",
    "lloq",
    "uloq",
    "ii",
    "addl",
    "ss",
)
_FORTRAN = r"\s*\d\.\d+E[+-]\d\d\s*"
_NOTHING = ""  # the name of a column that no file has
_OTHERS = {
    b"\x1f\x8b": "is compressed (gzip)",
    b"PK\x03\x04": "is a spreadsheet or an archive (zip)",
}
# As people export tables. A role's column may also be called so, where none has its own name.
SUFFIXES = (".csv", ".tsv", ".txt", ".tab", ".dat", ".prn")
_CELL = re.compile(r"\{value(!r)?\}")
_ALSO = {"time": ("datetime", "date_time")}


def read_sheet(
    path: Path | pd.DataFrame,
    columns: Mapping[str, str | None],
    keep: Mapping[str, Sequence[object]],
    dialect: Mapping[str, object],
) -> "Sheet":
    """Read a text or Parquet file, or take a frame as it is. Names are found without regard to case and to
    blanks around them.

    :param columns: role -> column of the file, where it is not the role's own name; None of a role that is
        to have none.
    :param keep: column -> values, as ``Format`` has checked them; other rows are left out.
    :param dialect: what is said of how the file is written (``medcm_cli.data.dialect``).
    :raises InputError: the file cannot be read, or has not these columns.
    """
    said = Dialect.build(dialect)
    sheet = _of_frame(path, columns, said) if isinstance(path, pd.DataFrame) else _load(path, columns, said)
    for wanted_name, values in keep.items():
        column = sheet.find(wanted_name) or wanted_name
        if column not in sheet.frame:
            raise sheet.absent(column)
        cells, wanted = sheet.frame[column], list(values)
        chosen = cells.isin(wanted) | cells.astype(str).isin(list(map(str, wanted)))
        if not chosen.any():
            raise InputError(f"{sheet.source}: no row has {column} in {wanted}; dataset.keep leaves nothing")
        sheet = sheet.rows(chosen.to_numpy())
    return sheet


@dataclass(frozen=True)
class Sheet:
    """Rows of a file. ``row_name`` gives the words for its row of a number from 0: a line, or a row;
    ``marks`` are those of numbers that are text; ``assumed``: how the file was read, in words."""

    source: str
    frame: pd.DataFrame
    row_name: Callable[[int], str]
    columns: Mapping[str, str | None] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=Dialect)
    marks: Marks = field(default_factory=Marks)
    assumed: tuple[str, ...] = ()

    def rows(self, keep: BoolArray) -> "Sheet":
        """Some of the rows, which keep their names."""
        place, row_name = np.flatnonzero(keep), self.row_name
        return replace(self, frame=self.frame[keep], row_name=lambda row: row_name(int(place[row])))

    def find(self, name: str) -> str | None:
        """The file's column of that name, None where it has none.

        :raises InputError: it has two.
        """
        found = [str(column) for column in self.frame if folded(column) == folded(name)]
        if len(found) > 1:
            raise InputError(f"{self.source}: columns {found[0]!r} and {found[1]!r} are both {name!r}")
        return found[0] if found else None

    def named(self, role: str) -> str:
        """The file's column for a role; the role itself, or what it was to be, where the file has none."""
        name = self.columns.get(role, role)
        if name is None:
            return _NOTHING
        also = () if role in self.columns else _ALSO.get(role, ())
        return next(filter(None, map(self.find, (name, *also))), name)

    def has(self, role: str) -> bool:
        """Whether the file has a column for a role, or ought to have."""
        return self.named(role) in self.frame or self.columns.get(role) is not None

    def absent(self, *columns: str, says: str = "") -> InputError:
        """The error for columns that are not there. :param says: what says their names, in words."""
        *first, last = map(repr, columns)
        which = f"columns {', '.join(first)} and {last} are" if first else f"column {last} is"
        present = ", ".join(map(str, self.frame.columns))
        how = f"; {says}" if says else ""
        return InputError(f"{self.source}: {which} missing; the file has {present}{how}")

    def refuse(self, row: int, column: str, what: str) -> InputError:
        """The error that points at a cell."""
        return InputError(f"{self.source}, {self.row_name(row)}, column {column!r}: {what}")

    def first(self, bad: BoolArray, column: str, what: str) -> None:
        """Refuse the first row where ``bad`` holds; ``{value}`` in ``what`` is the cell, ``{value!r}`` the
        cell in quotes. Other braces stay: names of columns may have some."""
        if bad.any():
            row = int(np.argmax(bad))
            value = self.frame[column].iloc[row] if column in self.frame else None
            if isinstance(value, np.generic):
                value = value.item()
            if isinstance(value, float) and value.is_integer():
                value = int(value)  # as the file has it
            elif isinstance(value, datetime.date | datetime.time):
                value = str(value)
            elif pd.isna(value):
                value = "empty"
            raise self.refuse(row, column, _CELL.sub(lambda m: repr(value) if m[1] else str(value), what))

    def number(self, column: str, default: float | None = None, limits: bool = False) -> FloatArray:
        """A column as float64, missing cells NaN; an absent column is filled with ``default`` or refused.

        :param limits: take the limit of a cell such as ``<1`` or ``>1``.
        """
        column = self.find(column) or column
        if column not in self.frame:
            if default is None or column in self.columns.values():
                raise self.absent(column)
            return np.broadcast_to(np.float64(default), len(self.frame))
        raw = self.frame[column]
        if raw.dtype.kind in "mM":  # a date or a clock time is not a number of hours
            raw = raw.astype(str).where(raw.notna())
        if raw.dtype.kind not in "iuf":
            codes, cells = pd.factorize(raw)
            found = [self._value(cell, limits) for cell in cells]
            bad = np.array([value is None for value in found] + [False])[codes]
            hint = self.marks.hint(cells[codes[int(np.argmax(bad))]]) if bad.any() else ""
            self.first(bad, column, f"{{value!r}} is not a number ({hint})")
            raw = pd.Series(np.array([*found, np.nan], dtype=np.float64)[codes])
        if isinstance(raw.dtype, np.dtype):
            values = raw.to_numpy(dtype=np.float64)  # floats as they are, not a copy of them
        else:
            values = pd.to_numeric(raw).to_numpy(dtype=np.float64, na_value=np.nan)
        self.first(np.isinf(values), column, "{value} is not finite")
        return values

    def _value(self, cell: object, limits: bool) -> float | None:
        if isinstance(cell, bool | np.bool_):
            return None
        limit = _limit_of(cell) if limits else None
        return self.marks.value(cell if limit is None else limit)

    def beyond(self, column: str, sign: str) -> BoolArray:
        """Whether cells are such as ``<1``, or ``>1``."""
        if column not in self.frame or self.frame[column].dtype.kind in "iufb":
            return np.zeros(len(self.frame), dtype=bool)
        codes, cells = pd.factorize(self.frame[column])
        are = (_limit_of(cell) is not None and str(cell).strip()[0] == sign for cell in cells)
        return np.array([*are, False])[codes]

    def holds_numbers(self, column: str) -> bool:
        """Whether every cell of a column is a number, or empty."""
        raw = self.frame[column]
        if raw.dtype.kind in "iuf":
            return True
        return raw.dtype.kind not in "mMb" and all(
            self._value(cell, False) is not None for cell in raw.dropna().unique()
        )

    def with_numbers(self) -> "Sheet":
        """With columns of text that hold nothing but numbers, such as 1'000, as numbers; subjects only where
        they are as NONMEM writes them, 1.0000E+00."""
        name = self.named("id")
        if name in self.frame and all(re.fullmatch(_FORTRAN, str(x)) for x in self.frame[name].unique()):
            name = _NOTHING
        texts = [str(c) for c in self.frame if c != name and self.frame[c].dtype.kind not in "iufbmM"]
        numeric = [c for c in texts if self.frame[c].notna().any() and self.holds_numbers(c)]
        if not numeric:
            return self
        return replace(self, frame=self.frame.assign(**{c: self.number(c) for c in numeric}))

    def whole(self, role: str, allowed: Sequence[int] | None = None) -> IntArray:
        """A column of whole numbers from 0, or of ``allowed`` ones; 0 where it is absent or a cell empty."""
        column = self.named(role)
        if not self.has(role):
            return np.broadcast_to(np.int64(0), len(self.frame))
        values = np.nan_to_num(self.number(column, 0.0))
        if allowed is None:
            bad = (values < 0) | (values % 1 != 0) | (values > MOST)
            self.first(bad, column, f"is {{value}}; expected a whole number from 0 to {MOST:,}")
        else:
            words = f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"
            self.first(~np.isin(values, allowed), column, f"is {{value}}; expected {words}")
        return values.astype(np.int64)


def opens_of(subject: IntArray) -> IntArray:
    """The first row of each subject, of R rows (R,) in which a subject's are together."""
    return np.flatnonzero(np.diff(subject, prepend=-1))


def release() -> None:
    """Give memory back that pyarrow, which reads files, has left but holds on to."""
    pa.default_memory_pool().release_unused()


def compact(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values (R,), not to be written to, of which those that are all alike take no memory each."""
    alike = len(values) > 0 and bool((values == values[0]).all())
    return np.broadcast_to(values[0].copy(), len(values)) if alike else values


def folded(name: object) -> str:
    """A column's name without regard to case and to blanks around it."""
    return str(name).strip().lower()


def label(value: object) -> str:
    """A subject's name, of a cell: that of a number that is whole has no decimal point."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _limit_of(cell: object) -> str | None:
    """The text after the sign of a cell that is below or above something."""
    said = cell.strip() if isinstance(cell, str) else ""
    return said[1:].strip() if said[:1] in ("<", ">") and said else None


def _load(path: Path, columns: Mapping[str, str | None], said: Dialect) -> Sheet:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; expected an event table (.csv, .dat or .parquet)")
    is_text, text = path.suffix.lower() in SUFFIXES, None
    if not is_text and path.suffix.lower() != ".parquet":
        _check_content(path)
        raise InputError(f"{path}: expected a {', '.join(SUFFIXES)} or .parquet file")
    try:
        _check_content(path)
        if is_text:
            known = {folded(columns.get(role) or role) for role in (*KNOWN, *columns)}
            text = read_text(path, said, known, folded(columns.get("id") or "id"))
            table = text.table
        else:
            table = pyarrow.parquet.read_table(path)
        names = table.column_names
    except (pa.ArrowException, OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as an event table: {error}") from error
    duplicated = sorted({name for name in names if names.count(name) > 1})
    if duplicated:
        raise InputError(f"{path}: column {duplicated[0]!r} appears more than once")
    nested = [column for column in table.schema if pa.types.is_nested(column.type)]
    if nested:
        raise InputError(
            f"{path}, column {nested[0].name!r}: holds a {nested[0].type}; expected single values"
        )
    if table.num_rows == 0:
        raise InputError(f"{path}: the table has a header and no rows")
    # What pandas saved as its index is a column like others. Each column is taken from the table, not copied.
    frame = table.to_pandas(ignore_metadata=True, split_blocks=True, self_destruct=True)
    assert isinstance(frame, pd.DataFrame)
    del table
    release()
    if text is None:
        return _read_as_text(Sheet(str(path), frame, _row, columns, said))
    return _of_lines(Sheet(str(path), frame, _row, columns, said, text.marks, text.assumed), text.header)


def _of_lines(sheet: Sheet, header: int) -> Sheet:
    """A sheet whose rows are the lines after ``header``, without blank ones."""
    blank = np.ones(len(sheet.frame), dtype=bool)
    for name in sheet.frame:
        blank &= sheet.frame[name].isna().to_numpy()
        if not blank.any():
            break
    sheet = replace(sheet, row_name=lambda row: f"line {row + header + 1}")
    return (sheet.rows(~blank) if blank.any() else sheet).with_numbers()


def _of_frame(given: pd.DataFrame, columns: Mapping[str, str | None], said: Dialect) -> Sheet:
    """A frame whose rows are named by their number and, where it is more than that, their index. Levels of
    the index that have names are columns."""
    if given.empty:
        raise InputError("table: has no rows")
    named = [name for name in given.index.names if name is not None and name not in given]
    frame = given.reset_index(named) if named else given
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"table: has two columns {str(twice[0])!r}; expected each name once")
    for column in frame:
        nested = frame[column].map(pd.api.types.is_list_like) if frame[column].dtype == object else None
        if nested is not None and nested.any():
            row = int(np.argmax(nested.to_numpy()))
            raise InputError(f"table, {_row(row)}, column {str(column)!r}: expected single values")
    labels = frame.index
    plain = labels.equals(pd.RangeIndex(len(frame)))
    row_name = _row if plain else lambda row: f"{_row(row)} (index {labels[row : row + 1].tolist()[0]!r})"
    return _read_as_text(Sheet("table", frame.reset_index(drop=True), row_name, columns, said))


def _read_as_text(sheet: Sheet) -> Sheet:
    """With the marks of numbers that a frame or a Parquet file has as text, which is read as in a text file;
    where numbers do not tell, decimals have a point."""

    def cells(name: str) -> Iterator[Cell]:
        codes, kinds = pd.factorize(sheet.frame[name])
        return cells_of(codes, kinds, lambda row: f"{sheet.row_name(row)}, column {name!r}")

    names = [str(name) for name in sheet.frame if sheet.frame[name].dtype.kind not in "iufbmM"]
    if not names:
        return sheet
    marks = marks_of(map(cells, names), sheet.dialect, sheet.source, by_point=True)
    return replace(sheet, marks=marks, assumed=marks.found(sheet.dialect)).with_numbers()


def _row(row: int) -> str:
    return f"row {row + 1}"


def _check_content(path: Path) -> None:
    """:raises InputError: the file is of a kind that is read by another program."""
    with path.open("rb") as file:
        begin = file.read(4)
    for mark, what in _OTHERS.items():
        if begin.startswith(mark):
            raise InputError(f"{path}: {what}; expected an event table as text or as Parquet")
