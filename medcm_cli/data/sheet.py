"""A table as its file has it, with the words to point at a cell of it."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from medcm_cli.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MOST = 1_000_000_000  # of a whole number
_NOTHING = ""  # the name of a column that no file has
_OTHERS = {
    b"\xff\xfe": "is text in UTF-16",
    b"\xfe\xff": "is text in UTF-16",
    b"\x1f\x8b": "is compressed (gzip)",
    b"PK\x03\x04": "is a spreadsheet or an archive (zip)",
}
MISSING = ["", "NA", "NaN", "nan", "."]


def read_sheet(
    path: Path | pd.DataFrame, columns: Mapping[str, str | None], keep: Mapping[str, Sequence[object]]
) -> "Sheet":
    """Read a CSV or Parquet file, or take a frame as it is. Names are found without regard to case and to
    blanks around them.

    :param columns: role -> column of the file, where it is not the role's own name; None of a role that is
        to have none.
    :param keep: column -> values; other rows are left out.
    :raises InputError: the file cannot be read, or has not these columns.
    """
    row_name: Callable[[int], str] = _row
    if isinstance(path, pd.DataFrame):
        source, frame = "table", path.reset_index(drop=True)
        if frame.empty:
            raise InputError("table: has no rows")
    else:
        source = str(path)
        frame, row_name = _load(path, columns.get("id"))
    sheet = Sheet(source, frame, row_name, columns)
    for wanted_name, values in keep.items():
        column = sheet.find(wanted_name) or wanted_name
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(
                f"dataset.keep.{wanted_name} is {values!r}; expected a list of the values to keep"
            )
        if column not in frame:
            raise sheet.absent(column)
        cells, wanted = frame[column], list(values)
        chosen = cells.isin(wanted) | cells.astype(str).isin(list(map(str, wanted)))
        if not chosen.any():
            raise InputError(f"{source}: no row has {column} in {wanted}; dataset.keep leaves nothing")
        sheet = sheet.rows(chosen.to_numpy())
        frame = sheet.frame
    return sheet


@dataclass(frozen=True)
class Sheet:
    """Rows of a file. ``row_name`` gives the words for its row of a number from 0: a line, or a row."""

    source: str
    frame: pd.DataFrame
    row_name: Callable[[int], str]
    columns: Mapping[str, str | None] = field(default_factory=dict)

    def rows(self, keep: BoolArray) -> "Sheet":
        """Some of the rows, which keep their names."""
        place = np.flatnonzero(keep)
        return Sheet(self.source, self.frame[keep], lambda row: self.row_name(int(place[row])), self.columns)

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
        return _NOTHING if name is None else self.find(name) or name

    def has(self, role: str) -> bool:
        """Whether the file has a column for a role, or ought to have."""
        return self.named(role) in self.frame or self.columns.get(role) is not None

    def absent(self, column: str) -> InputError:
        """The error for a column that is not there."""
        present = ", ".join(map(str, self.frame.columns))
        return InputError(f"{self.source}: column {column!r} is missing; the file has {present}")

    def refuse(self, row: int, column: str, what: str) -> InputError:
        """The error that points at a cell."""
        return InputError(f"{self.source}, {self.row_name(row)}, column {column!r}: {what}")

    def first(self, bad: BoolArray, column: str, what: str) -> None:
        """Refuse the first row where ``bad`` holds; ``{value}`` in ``what`` is the cell."""
        if bad.any():
            row = int(np.argmax(bad))
            value = self.frame[column].iloc[row] if column in self.frame else None
            if isinstance(value, float) and value.is_integer():
                value = int(value)  # as the file has it
            elif pd.isna(value):
                value = "empty"
            raise self.refuse(row, column, what.format(value=value))

    def number(self, column: str, default: float | None = None, flags: bool = False) -> FloatArray:
        """A column as float64, missing cells NaN; an absent column is filled with ``default`` or refused.

        :param flags: take true for 1 and false for 0.
        """
        column = self.find(column) or column
        if column not in self.frame:
            if default is None or column in self.columns.values():
                raise self.absent(column)
            return np.full(len(self.frame), default)
        raw = self.frame[column]
        if raw.dtype.kind in "mM":  # a date or a clock time is not a number of hours
            raw = raw.astype(str)
        if not flags:
            is_flag = (
                raw.map(lambda cell: isinstance(cell, bool | np.bool_)) if raw.dtype.kind in "bO" else None
            )
            if is_flag is not None:
                self.first(is_flag.to_numpy(dtype=bool), column, "{value!r} is not a number")
        values = pd.to_numeric(raw, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        text = np.isnan(values) & raw.notna().to_numpy()
        self.first(text, column, "{value!r} is not a number (with a point, as in 0.3)")
        self.first(np.isinf(values), column, "{value} is not finite")
        return values

    def whole(self, role: str, allowed: Sequence[int] | None = None) -> IntArray:
        """A column of whole numbers from 0, or of ``allowed`` ones; 0 where it is absent or a cell empty."""
        column = self.named(role)
        values = np.nan_to_num(self.number(column, 0.0))
        if allowed is None:
            bad = (values < 0) | (values % 1 != 0) | (values > MOST)
            self.first(bad, column, f"is {{value}}; expected a whole number from 0 to {MOST:,}")
        else:
            words = f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"
            self.first(~np.isin(values, allowed), column, f"is {{value}}; expected {words}")
        return values.astype(np.int64)


def folded(name: object) -> str:
    """A column's name without regard to case and to blanks around it."""
    return str(name).strip().lower()


def label(value: object) -> str:
    """A subject's name, of a cell: that of a number that is whole has no decimal point."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _load(path: Path, id_column: str | None) -> tuple[pd.DataFrame, Callable[[int], str]]:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; expected an event table (.csv or .parquet)")
    is_text = path.suffix.lower() == ".csv"
    try:
        _check_content(path)
        if is_text:
            table = _read_csv(path, id_column)
        elif path.suffix.lower() == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            raise InputError(f"{path}: expected a .csv or .parquet file")
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
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
    frame = table.to_pandas(ignore_metadata=True)  # what pandas saved as its index is a column like others
    assert isinstance(frame, pd.DataFrame)

    if not is_text:
        return frame, _row
    frame = frame.dropna(how="all")  # blank lines
    lines = frame.index.to_numpy() + 2  # after the header
    return frame, lambda row: f"line {lines[row]}"


def _row(row: int) -> str:
    return f"row {row + 1}"


def _read_csv(path: Path, id_column: str | None) -> pa.Table:
    names = [name for name in _header(path) if folded(name) == folded(id_column or "id")]
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False),  # only so do errors tell the line
        parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False),  # rows stay lines
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in names},  # 007 is a name
            null_values=MISSING,
            strings_can_be_null=True,
        ),
    )
    if table.column_names == [""]:
        raise InputError(f"{path}: the file is empty or begins with a blank line")
    return table


def _check_content(path: Path) -> None:
    """:raises InputError: the file is of a kind that is read by another program."""
    with path.open("rb") as file:
        begin = file.read(4)
    for mark, what in _OTHERS.items():
        if begin.startswith(mark):
            raise InputError(f"{path}: {what}; expected an event table as text in UTF-8 or as Parquet")


def _header(path: Path) -> list[str]:
    """The names of a CSV file's columns. :raises InputError: they are not separated by commas."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    for mark, what in (";", "semicolons"), ("\t", "tabs"), ("|", "bars"):
        if len(names) == 1 and mark in names[0]:
            raise InputError(
                f"{path}: columns are separated by {what}; expected commas, and points in numbers"
            )
    return names
