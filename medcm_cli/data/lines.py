"""A text file as lines, of which few are in memory at once, however many it has."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medcm_cli.data.dialect import SEPARATORS, option
from medcm_cli.errors import InputError

_PIECE = 1 << 20  # characters
_ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_ORDERS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_TABLE = re.compile(r"^[^\S\n]*TABLE NO\.[^\S\n]*\d+", re.MULTILINE)  # NONMEM's $TABLE has it above a header
_COMMENT = re.compile(r"^[ \t\"]*[#@Cc]", re.MULTILINE)  # what may be one
_QUOTED_COMMA = re.compile(r'"[^"\n]*\d,\d[^"\n]*"')
_NOTHING = re.compile(r"[\x00-\x08\x0e-\x1f]")  # what is taken as text by a guess has none of these


@dataclass(frozen=True)
class Lines:
    """The lines of a file, counted from 0. ``changed``: what is read in the place of some of them, nothing
    where one is left out; ``tables``: those above a table of NONMEM's; whether lines ``may_comment``, and
    cells ``may_mislead``, being quoted numbers with a comma."""

    path: Path
    encoding: str
    changed: Mapping[int, str] = field(default_factory=dict)
    tables: tuple[int, ...] = ()
    may_comment: bool = False
    may_mislead: bool = False

    def pieces(self) -> Iterator[tuple[int, str]]:
        """The text as the file has it, in pieces of whole lines, each with the number of its first and
        without the end of its last."""
        number, rest = 0, ""
        with self.path.open(encoding=self.encoding) as file:
            while piece := file.read(_PIECE):
                piece = piece.removeprefix("\ufeff") if not number and not rest else piece
                whole, end, rest = (rest + piece).rpartition("\n")
                if end:
                    yield number, whole
                    number += whole.count("\n") + 1
        yield number, rest

    def __iter__(self) -> Iterator[str]:
        for first, piece in self.pieces():
            for number, line in enumerate(piece.split("\n"), first):
                yield self.changed.get(number, line)

    def file(self, separator: str) -> io.BufferedReader:
        """What pyarrow reads: the lines in UTF-8, with tabs where columns are separated by blanks."""
        return io.BufferedReader(_Pieces(self._encoded(separator)), _PIECE)

    def _encoded(self, separator: str) -> Iterator[bytes]:
        end = b""
        for first, piece in self.pieces():
            numbers = range(first, first + piece.count("\n") + 1)
            changes = bool(self.changed) and not self.changed.keys().isdisjoint(numbers)
            if changes or separator == "blank":
                lines = [self.changed.get(*of) for of in zip(numbers, piece.split("\n"), strict=True)]
                if separator == "blank":
                    lines = ["\t".join(split(line, separator)) for line in lines]
                piece = "\n".join(lines)
            yield end + piece.encode()
            end = b"\n"


class _Pieces(io.RawIOBase):
    """A file of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        while not self._rest and (piece := next(self._pieces, None)) is not None:
            self._rest = memoryview(piece)
        count = min(len(into), len(self._rest))
        into[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def lines_of(path: Path, encoding: str | None) -> Lines:
    """A file's lines in an encoding, or the one that is found: what is not Unicode is taken as that of
    Windows, where letters of names may be others then, and digits and marks never are.

    :raises InputError: no text in it.
    """
    with path.open("rb") as file:
        begin = file.read(4)
    tried = [encoding] if encoding else ["utf-8", "cp1252", "latin-1"]
    if not encoding:
        tried = [name for mark, name in _ENCODINGS.items() if begin.startswith(mark)] or tried
        if begin[1:2] == b"\0" and begin[:1] != b"\0":
            tried = ["utf-16-le"]
        elif begin[:1] == b"\0" and begin[1:2] not in (b"\0", b""):
            tried = ["utf-16-be"]
    elif codecs.lookup(encoding).name in ("utf-16", "utf-32") and not begin.startswith(_ORDERS):
        tried = [f"{encoding}-le"]
    for name in tried:
        try:
            found = _looked_through(path, name, encoding is not None or name.startswith("utf-8"))
        except (UnicodeError, LookupError):
            continue
        if found is None:
            break
        return found
    what = f"is no text in {encoding}" if encoding else "is no text in UTF-8, UTF-16 or Windows-1252"
    raise InputError(f"{path}: {what}; {option(encoding='...')} names another encoding")


def _looked_through(path: Path, encoding: str, certain: bool) -> Lines | None:
    """The lines of a file, read once; None where it holds what no text does. :param certain: that few other
    encodings would fit it."""
    comments = quoted = False
    tables: list[int] = []
    lines = Lines(path, encoding)
    for first, piece in lines.pieces():
        if "\0" in piece or (not certain and _NOTHING.search(piece)):
            return None
        # Looked for in haste first: few files have any of it.
        comments = comments or (any(map(piece.__contains__, "#@Cc")) and bool(_COMMENT.search(piece)))
        quoted = quoted or ('"' in piece and bool(_QUOTED_COMMA.search(piece)))
        if "TABLE" in piece:
            tables += [first + piece.count("\n", 0, match.start()) for match in _TABLE.finditer(piece)]
    return Lines(path, encoding, {}, tuple(tables), comments, quoted)


def split(line: str, separator: str) -> list[str]:
    """The cells of a line."""
    if separator == "blank":
        if '"' not in line:
            return line.split()
        return next(csv.reader([line.strip()], delimiter=" ", skipinitialspace=True))
    return next(csv.reader([line], delimiter=SEPARATORS[separator]), [])
