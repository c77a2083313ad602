"""A table as its file has it, with the words to point at a cell of it."""

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
MISSING = ["", "NA", "NaN", "nan", "."]


def read_sheet(
    path: Path | pd.DataFrame, columns: Mapping[str, str], keep: Mapping[str, Sequence[object]]
) -> "Sheet":
    """Read a CSV or Parquet file, or take a frame as it is.

    :param columns: role -> column of the file, where it is not the role's own name in small or capital
        letters.
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
    for column, values in keep.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"dataset.keep.{column} is {values!r}; expected a list of the values to keep")
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
    columns: Mapping[str, str] = field(default_factory=dict)

    def rows(self, keep: BoolArray) -> "Sheet":
        """Some of the rows, which keep their names."""
        place = np.flatnonzero(keep)
        return Sheet(self.source, self.frame[keep], lambda row: self.row_name(int(place[row])), self.columns)

    def named(self, role: str) -> str:
        """The file's column for a role; the role itself where the file has none."""
        if role in self.columns:
            return self.columns[role]
        return next((name for name in (role, role.upper()) if name in self.frame), role)

    def has(self, role: str) -> bool:
        """Whether the file has a column for a role."""
        return self.named(role) in self.frame or role in self.columns

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

    def number(self, column: str, default: float | None = None) -> FloatArray:
        """A column as float64, missing cells NaN; an absent column is filled with ``default`` or refused."""
        if column not in self.frame:
            if default is None or column in self.columns.values():
                raise self.absent(column)
            return np.full(len(self.frame), default)
        raw = self.frame[column]
        if raw.dtype.kind in "mM":  # a date or a clock time is not a number of hours
            raw = raw.astype(str)
        values = pd.to_numeric(raw, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        text = np.isnan(values) & raw.notna().to_numpy()
        self.first(text, column, "{value!r} is not a number")
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


def label(value: object) -> str:
    """A subject's name, of a cell: that of a number that is whole has no decimal point."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _load(path: Path, id_column: str | None) -> tuple[pd.DataFrame, Callable[[int], str]]:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; expected an event table (.csv or .parquet)")
    is_text = path.suffix.lower() == ".csv"
    try:
        if is_text:
            table = _read_csv(path, id_column)
        elif path.suffix.lower() == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            raise InputError(f"{path}: expected a .csv or .parquet file")
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
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
    names = ["id", "ID"] if id_column is None else [id_column]
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
