"""A text file of a table: its encoding, comment rows, header and separator, found in it or said.

Lines keep their numbers: what is left out becomes a blank line.
"""

import csv
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from medcm_cli.data.dialect import MISSING, SEPARATORS, Cell, Dialect, Marks, marks_of, option
from medcm_cli.errors import InputError

_SAMPLE = 500  # lines by which separators are compared
_ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SPOKEN = {"cp1252": "Windows-1252", "latin-1": "Latin-1", "utf-16": "UTF-16"}
_TABLE = re.compile(r"\s*TABLE NO\.\s*\d+")  # what NONMEM's $TABLE puts above a header
_COMMENT = re.compile(r"^[ \t\"]*[#@Cc]", re.MULTILINE)  # what may be one
_QUOTED_COMMA = re.compile(r'"[^"\n]*\d,\d[^"\n]*"')
_VALUE = re.compile(r"[+-]?[\d.,:/-]*\d[\d.,]*(?:[eE][+-]?\d+)?")
_NOTHING = re.compile(r"[\x00-\x08\x0e-\x1f]")  # what is taken as text by a guess has none of these


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
class _Lines:
    """Lines of a file, with what is left out blank, the number of the header from 0 (-1: none) and what was
    left out and found, in words."""

    source: str
    lines: list[str]
    header: int
    separator: str | None
    assumed: tuple[str, ...]

    def rows(self) -> list[str]:
        """The first lines after the header that are not blank."""
        following = (line for line in itertools.islice(self.lines, self.header + 1, None) if line.strip())
        return list(itertools.islice(following, _SAMPLE))


def read_text(path: Path, said: Dialect, known: Collection[str], id_name: str) -> Text:
    """Read a file.

    :param known: names that columns may have, folded, by which header and separator are recognised.
    :param id_name: the folded name of the column of subjects, which stays text.
    :raises InputError: no text, or one that can be read in several ways.
    """
    text, encoding = _decoded(path, said.encoding)
    spoken = _SPOKEN.get(encoding) if said.encoding is None else None
    assumed: tuple[str, ...] = (f"in {spoken}",) if spoken else ()
    found = _headed(str(path), text.split("\n"), said, known)
    separator = said.separator or found.separator or _separator(found, said, known)
    if separator != "comma" and said.separator is None:
        assumed += (f"separated by {'blanks' if separator == 'blank' else separator + 's'}",)
    if said.ignore or _COMMENT.search(text):
        found = _without_comments(found, said, SEPARATORS[separator])
    if said.names is None:
        _check_header(found, separator)
    if separator == "blank":
        lines = ["\t".join(_split(line, separator)) for line in found.lines]
        found = replace(found, lines=lines)
    delimiter = "\t" if separator == "blank" else SEPARATORS[separator]
    marks = Marks()
    if said.decimal or said.thousands or separator != "comma" or _QUOTED_COMMA.search(text):
        as_text = _table(found, said, delimiter, None, id_name)
        first = found.header + 2
        marks = marks_of(
            (_cells(as_text, column, first) for column in range(as_text.num_columns)),
            said,
            str(path),
            separator in ("comma", "blank"),
        )
    assumed += marks.found(said)
    table = _table(found, said, delimiter, marks.decimal[0], id_name)  # the other is read from text
    return Text(table, found.header + 1, marks, assumed + found.assumed)


def _decoded(path: Path, encoding: str | None) -> tuple[str, str]:
    """A file's text, and its encoding. What is not Unicode is taken as that of Windows: letters of names may
    be others then, digits and marks never are."""
    content = path.read_bytes()
    tried = [encoding] if encoding else ["utf-8", "cp1252", "latin-1"]
    if not encoding:
        tried = [name for mark, name in _ENCODINGS.items() if content.startswith(mark)] or tried
        if content[1:2] == b"\0" and content[:1] != b"\0":
            tried = ["utf-16-le"]
        elif content[:1] == b"\0" and content[1:2] not in (b"\0", b""):
            tried = ["utf-16-be"]
    for name in tried:
        try:
            text = content.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
        certain = encoding is not None or name.startswith("utf-8")  # few others would fit it
        if "\0" in text or (not certain and _NOTHING.search(text)):
            break
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        return text, "utf-16" if name.startswith("utf-16") else name
    what = f"is no text in {tried[-1]}" if encoding else "is no text in UTF-8, UTF-16 or Windows-1252"
    raise InputError(f"{path}: {what}; {option(encoding='...')} names another encoding")


def _headed(source: str, lines: list[str], said: Dialect, known: Collection[str]) -> _Lines:
    """Where the header is, under what stands above it. :raises InputError: no line, or several tables."""
    separator: str | None = None
    assumed: tuple[str, ...] = ()
    tables = [number for number, line in enumerate(lines) if "TABLE" in line and _TABLE.match(line)]
    if len(tables) > 1:
        raise InputError(
            f"{source}, line {tables[1] + 1}: another table of NONMEM's begins; expected one in a file"
        )
    for number in tables:
        lines[number], assumed = "", ("a $TABLE of NONMEM's",)
    for number, line in enumerate(lines):
        stripped = line.strip()
        if not stripped:
            continue
        if match := re.fullmatch(r'"?sep=(.)"?', line.strip(" "), re.IGNORECASE):  # Excel's own hint
            by_mark = {mark: name for name, mark in SEPARATORS.items()}
            separator, lines[number] = by_mark.get(match[1]), ""
            continue
        if said.names is not None:
            return _Lines(source, lines, -1, separator, assumed)
        if stripped[0] == "#":
            bare = stripped.lstrip("# ")
            cells = {cell.strip('" ').casefold() for cell in re.split(r"[,;\t| ]+", bare)}
            if len(cells & set(known)) < 2:
                lines[number] = ""
                continue
            lines[number] = bare  # a header that NONMEM is to skip
        return _Lines(source, lines, number, separator, assumed)
    raise InputError(f"{source}: the file is empty")


def _separator(found: _Lines, said: Dialect, known: Collection[str]) -> str:
    """What separates columns: that by which the header has most of the known names, and rows as many cells as
    the header. :raises InputError: two that do as well as one another."""
    header, rows = found.lines[found.header] if found.header >= 0 else None, found.rows()
    scores: dict[str, tuple[int, int, int]] = {}
    for name in SEPARATORS:
        sample = header if header is not None else rows[0] if rows else ""
        if name == "blank" and ("\t" in sample or " " not in sample.strip()):
            continue
        cells = _split(sample, name)
        width = len(said.names or cells)
        fits = sum(len(_split(row, name)) == width for row in rows)
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


def _split(line: str, separator: str) -> list[str]:
    """The cells of a line."""
    if separator == "blank":
        if '"' not in line:
            return line.split()
        return next(csv.reader([line.strip()], delimiter=" ", skipinitialspace=True))
    return next(csv.reader([line], delimiter=SEPARATORS[separator]), [])


def _without_comments(found: _Lines, said: Dialect, mark: str) -> _Lines:
    """Comment rows made blank: those that begin with # or @, or with what is said, and those that a column C
    marks. :raises InputError: rows that begin with C, as comments and subjects may."""
    if said.ignore == "none":
        return found
    lines, first = list(found.lines), found.header + 1
    begin = {n: lines[n].lstrip(' \t"') for n in range(first, len(lines)) if lines[n].strip()}
    if said.ignore == "@":
        left_out = [n for n, text in begin.items() if text[:1] == "@" or text[:1].isalpha()]
    elif said.ignore is not None:
        left_out = [n for n, text in begin.items() if text.startswith(said.ignore)]
    else:
        left_out = [n for n, text in begin.items() if text[:1] in ("#", "@")]
        left_out = [] if len(left_out) == len(begin) else left_out  # names of subjects
        cells = {
            n: re.split(r"\s+" if mark == " " else re.escape(mark), text)[0] for n, text in begin.items()
        }
        cells = {n: cell.strip(' "') for n, cell in cells.items() if n not in left_out}
        marked = [n for n, cell in cells.items() if re.fullmatch(r"[Cc]\s*\d*", cell)]
        others = [cell for n, cell in cells.items() if n not in marked]
        name = _split(lines[found.header], _name_of(mark))[0].strip() if found.header >= 0 else ""
        if name.upper() == "C":
            left_out += [n for n in marked if cells[n].upper() == "C"]
        elif marked and others and all(cell[:1].isdigit() for cell in others if cell):
            raise InputError(
                f"{found.source}, line {marked[0] + 1}: begins with C, as comments do in NONMEM; "
                f"{option(ignore='C')} leaves such rows out, {option(ignore='none')} reads them"
            )
    for number in left_out:
        lines[number] = ""
    said_of = f"without {len(left_out)} comment row{'s' * (len(left_out) > 1)}"
    return replace(found, lines=lines, assumed=(*found.assumed, said_of) if left_out else found.assumed)


def _name_of(mark: str) -> str:
    return next(name for name, of in SEPARATORS.items() if of == mark)


def _check_header(found: _Lines, separator: str) -> None:
    """:raises InputError: the header holds numbers, as the rows of a file that has none."""
    cells = [cell.strip() for cell in _split(found.lines[found.header], separator)]
    values = [cell for cell in cells if cell in MISSING[1:] or re.fullmatch(_VALUE, cell)]
    if 2 * len(values) > len(cells):
        raise InputError(
            f"{found.source}, line {found.header + 1}: holds numbers where names of columns are expected; "
            f"{option(names='[ID, TIME, ...]')} names those of a file without a header"
        )


def _table(found: _Lines, said: Dialect, delimiter: str, decimal: str | None, id_name: str) -> pa.Table:
    """The table, cells as text where no ``decimal`` mark is given."""
    lines = found.lines
    names = list(said.names) if said.names else _split(lines[found.header], _name_of(delimiter))
    texts = [name for name in names if decimal is None or name.strip().casefold() == id_name]
    table = pyarrow.csv.read_csv(
        pa.BufferReader("\n".join(lines).encode()),
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False,  # only so do errors tell the line
            skip_rows=max(found.header, 0),
            column_names=said.names,
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, ignore_empty_lines=False
        ),  # rows stay lines
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(texts, pa.string()),  # 007 is a name
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


def _cells(table: pa.Table, column: int, first: int) -> Sequence[Cell]:
    """A column's cells, each text once, with where it stands. :param first: the line of the first row."""
    cells = pd.Series(table.column(column).to_pylist(), dtype=object).dropna().drop_duplicates()
    name = table.column_names[column]
    rows = cells.index.to_numpy()
    return [
        Cell(f"line {row + first}, column {name!r}", str(text)) for row, text in zip(rows, cells, strict=True)
    ]
