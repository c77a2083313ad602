"""A text file of a table: its encoding, comment rows, header and separator, found in it or said.

Lines keep their numbers: what is left out becomes a blank line.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from medcm_cli.data.dialect import MISSING, SEPARATORS, Cell, Dialect, Marks, cells_of, marks_of, option
from medcm_cli.data.lines import Lines, lines_of, split
from medcm_cli.errors import InputError

_SAMPLE = 500  # lines by which separators are compared
_PIECE = 65_536  # cells
_SPOKEN = {"cp1252": "Windows-1252", "latin-1": "Latin-1", "utf-16": "UTF-16"}
_VALUE = re.compile(r"[+-]?[\d.,:/-]*\d[\d.,]*(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Text:
    """A table as its file has it. ``table``: rows are lines after ``header``, the header's number from 1 (0
    of a file without); ``marks`` of its numbers; ``assumed``: what was found, in words, where it is not what
    a plain file has."""

    table: pa.Table
    header: int
    marks: Marks
    assumed: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """What is known of a file's ``lines``: the number of the ``header`` from 0 (-1: none), ``names``, as the
    header has them, a ``sample`` of the lines after it that are not blank, and what was found, in words."""

    lines: Lines
    header: int
    names: str
    sample: list[str]
    separator: str | None
    assumed: tuple[str, ...]

    @property
    def source(self) -> str:
        return str(self.lines.path)


def read_text(path: Path, said: Dialect, known: Collection[str], id_name: str) -> Text:
    """Read a file, in pieces.

    :param known: names that columns may have, folded, by which header and separator are recognised.
    :param id_name: the folded name of the column of subjects, which stays text.
    :raises InputError: no text, or one that can be read in several ways.
    """
    lines = lines_of(path, said.encoding)
    spoken = _SPOKEN.get(lines.encoding.removesuffix("-le").removesuffix("-be"))
    assumed: tuple[str, ...] = (f"in {spoken}",) if spoken and said.encoding is None else ()
    found = _headed(lines, said, known)
    separator = said.separator or found.separator or _separator(found, said, known)
    if separator != "comma" and said.separator is None:
        assumed += (f"separated by {'blanks' if separator == 'blank' else separator + 's'}",)
    if said.ignore or lines.may_comment:
        found = _without_comments(found, said, separator)
    if said.names is None:
        _check_header(found, separator)
    marks = Marks()
    if said.decimal or said.thousands or separator != "comma" or lines.may_mislead:
        as_text = _table(found, said, separator, None, id_name)
        first = found.header + 2
        marks = marks_of(
            (_cells(as_text, column, first) for column in range(as_text.num_columns)),
            said,
            str(path),
            separator in ("comma", "blank"),
        )
        del as_text
    assumed += marks.found(said)
    table = _table(found, said, separator, marks.decimal[0], id_name)  # the other is read from text
    return Text(table, found.header + 1, marks, assumed + found.assumed)


def _headed(lines: Lines, said: Dialect, known: Collection[str]) -> _Found:
    """Where the header is, under what stands above it. :raises InputError: no line, or several tables."""
    separator: str | None = None
    assumed: tuple[str, ...] = ()
    if len(lines.tables) > 1:
        raise InputError(
            f"{lines.path}, line {lines.tables[1] + 1}: another table of NONMEM's begins; expected one in a "
            "file"
        )
    changed = dict.fromkeys(lines.tables, "")
    if changed:
        assumed = ("a $TABLE of NONMEM's",)
    following = iter(replace(lines, changed=changed))
    for number, line in enumerate(following):
        stripped = line.strip()
        if not stripped:
            continue
        if match := re.fullmatch(r'"?sep=(.)"?', line.strip(" "), re.IGNORECASE):  # Excel's own hint
            by_mark = {mark: name for name, mark in SEPARATORS.items()}
            separator, changed[number] = by_mark.get(match[1]), ""
            continue
        if said.names is not None:
            # No header: this line is the first of the rows.
            header, names, following = -1, "", itertools.chain([line], following)
        elif stripped[0] == "#":
            names = stripped.lstrip("# ")
            cells = {cell.strip('" ').casefold() for cell in re.split(r"[,;\t| ]+", names)}
            if len(cells & set(known)) < 2:
                changed[number] = ""
                continue
            header, changed[number] = number, names  # a header that NONMEM is to skip
        else:
            header, names = number, line
        sample = list(itertools.islice((row for row in following if row.strip()), _SAMPLE))
        return _Found(replace(lines, changed=changed), header, names, sample, separator, assumed)
    raise InputError(f"{lines.path}: the file is empty")


def _separator(found: _Found, said: Dialect, known: Collection[str]) -> str:
    """What separates columns: that by which the header has most of the known names, and rows as many cells as
    the header. :raises InputError: two that do as well as one another."""
    first = found.names if found.header >= 0 else found.sample[0]
    scores: dict[str, tuple[int, int, int]] = {}
    for name in SEPARATORS:
        if name == "blank" and ("\t" in first or " " not in first.strip()):
            continue
        cells = split(first, name)
        width = len(said.names or cells)
        fits = sum(len(split(row, name)) == width for row in found.sample)
        if len(cells) > 1 or not scores:
            roles = len({cell.strip().casefold() for cell in cells} & set(known))
            scores[name] = (roles, fits, len(cells))
    ranked = sorted(scores, key=lambda name: scores[name], reverse=True)
    if len(ranked) > 1 and scores[ranked[0]][:2] == scores[ranked[1]][:2] and scores[ranked[1]][2] > 1:
        raise InputError(
            f"{found.source}: columns may be separated by {ranked[0]} or {ranked[1]}; "
            f"{option(separator=ranked[0])} says by which"
        )
    return ranked[0]


def _without_comments(found: _Found, said: Dialect, separator: str) -> _Found:
    """Comment rows made blank: those that begin with # or @, or with what is said, and those that a column C
    marks. :raises InputError: rows that begin with C, as comments and subjects may."""
    if said.ignore == "none":
        return found
    lines = enumerate(found.lines)
    begin = ((n, line.lstrip(' \t"')) for n, line in lines if n > found.header and line.strip())
    if said.ignore == "@":
        left_out = [n for n, text in begin if text[:1] == "@" or text[:1].isalpha()]
    elif said.ignore is not None:
        left_out = [n for n, text in begin if text.startswith(said.ignore)]
    else:
        left_out = _comments(begin, found, separator)
    if not left_out:
        return found
    changed = {**found.lines.changed, **dict.fromkeys(left_out, "")}
    words = f"without {len(left_out)} comment row{'s' * (len(left_out) > 1)}"
    return replace(found, lines=replace(found.lines, changed=changed), assumed=(*found.assumed, words))


def _comments(begin: Iterable[tuple[int, str]], found: _Found, separator: str) -> list[int]:
    """Those of the rows, by number and text, that are comments where nothing is said of it."""
    mark = re.compile(r"\s+" if separator == "blank" else re.escape(SEPARATORS[separator]))
    left_out: list[int] = []
    marked: dict[int, str] = {}
    count, others, of_digits = 0, 0, True
    for count, (number, text) in enumerate(begin, 1):  # noqa: B007 (told after the loop)
        if text[:1] in ("#", "@"):
            left_out.append(number)
            continue
        cell = mark.split(text, maxsplit=1)[0].strip(' "')
        if cell[:1] in ("C", "c") and re.fullmatch(r"[Cc]\s*\d*", cell):
            marked[number] = cell
        else:
            others += 1
            of_digits = of_digits and (not cell or cell[0].isdigit())
    if len(left_out) == count:
        return []  # names of subjects
    name = split(found.names, separator)[0].strip() if found.header >= 0 else ""
    if name.upper() == "C":
        return left_out + [number for number, cell in marked.items() if cell.upper() == "C"]
    if marked and others and of_digits:
        raise InputError(
            f"{found.source}, line {next(iter(marked)) + 1}: begins with C, as comments do in NONMEM; "
            f"{option(ignore='C')} leaves such rows out, {option(ignore='none')} reads them"
        )
    return left_out


def _check_header(found: _Found, separator: str) -> None:
    """:raises InputError: the header holds numbers, as the rows of a file that has none."""
    cells = [cell.strip() for cell in split(found.names, separator)]
    values = [cell for cell in cells if cell in MISSING[1:] or re.fullmatch(_VALUE, cell)]
    if 2 * len(values) > len(cells):
        raise InputError(
            f"{found.source}, line {found.header + 1}: holds numbers where names of columns are expected; "
            f"{option(names='[ID, TIME, ...]')} names those of a file without a header"
        )


def _table(found: _Found, said: Dialect, separator: str, decimal: str | None, id_name: str) -> pa.Table:
    """The table, cells as text, each text once, where no ``decimal`` mark is given."""
    names = said.names or split(found.names, separator)
    once = pa.dictionary(pa.int32(), pa.string())
    if decimal is None:
        types = dict.fromkeys(names, once)
    else:
        types = {name: pa.string() for name in names if name.strip().casefold() == id_name}  # 007 is a name
    with found.lines.file(separator) as file:
        table = pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,  # only so do errors tell the line
                skip_rows=max(found.header, 0),
                column_names=said.names,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t" if separator == "blank" else SEPARATORS[separator],
                ignore_empty_lines=False,  # rows stay lines
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types,
                null_values=MISSING,
                strings_can_be_null=True,
                decimal_point=decimal or ".",
                timestamp_parsers=["@"],  # no date is one: a time that some cells lack would be 0:00
            ),
        )
    # What Excel leaves of columns that were emptied.
    full = [
        number
        for number, name in enumerate(table.column_names)
        if name.strip() or table.column(number).null_count < table.num_rows
    ]
    return table.select(full) if full else table


def _cells(table: pa.Table, column: int, first: int) -> Iterator[Cell]:
    """A column's cells, each text once, with where it stands. :param first: the line of the first row."""
    cells, name = table.column(column).unify_dictionaries(), table.column_names[column]
    if not cells.num_chunks:
        return
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in cells.chunks])
    texts = cells.chunk(0).dictionary  # of all chunks
    pieces = (texts.slice(begin, _PIECE).to_pylist() for begin in range(0, len(texts), _PIECE))
    yield from cells_of(
        codes, itertools.chain.from_iterable(pieces), lambda row: f"line {row + first}, column {name!r}"
    )
