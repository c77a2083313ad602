"""Read and check an event table: one row per dose or observation, as CSV or Parquet.

Columns: ``id``, ``time`` (h), ``amt`` (IU), ``rate`` (IU/h), ``duration`` (h), ``dv``, one of ``evid`` (0
observation, 1 dose) or ``mdv`` (0 observation, 1 no observation), and the covariates. Where a dose row has
both a rate and a duration, these two win over the amount; an amount alone is a bolus, which is an infusion
of one minute (METHODS, "Units and symbols").
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from medcm_cli.errors import InputError

BOLUS_DURATION = 1 / 60  # h

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EventTable:
    """A checked event table. Arrays have one entry per kept row; ``subject`` counts from 0 in order of first
    appearance.

    ``duration`` and ``rate`` are those of dose rows, ``dv`` that of observation rows, and NaN elsewhere.
    ``covariates`` has one value per subject.
    """

    source: str
    ids: tuple[str, ...]
    subject: IntArray
    time: FloatArray
    is_dose: BoolArray
    rate: FloatArray
    duration: FloatArray
    dv: FloatArray
    covariates: dict[str, FloatArray]


def read_events(path: Path, covariates: Mapping[str, str], predose_observations: str = "error") -> EventTable:
    """Read ``path`` and check every row.

    :param covariates: name in the model -> column in the file.
    :param predose_observations: ``error`` refuses an observation before the subject's first dose, where the
        model predicts exactly zero; ``keep`` allows it.
    :raises InputError: one line naming file, line (CSV) or row (Parquet) and column, for the first fault
    found.
    """
    if predose_observations not in ("error", "keep"):
        raise InputError(f"predose_observations is {predose_observations!r}: expected 'error' or 'keep'")
    frame, row_name = _load(path)
    return _Checker(str(path), frame, row_name).table(covariates, predose_observations == "keep")


def _load(path: Path) -> tuple[pd.DataFrame, Callable[[int], str]]:
    """The table, and the words for its row of a number from 0: a line of a text file, or a row."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {found}; expected an event table (.csv or .parquet)")
    is_text = path.suffix.lower() == ".csv"
    try:
        if is_text:
            table = _read_csv(path)
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
    nested = [field for field in table.schema if pa.types.is_nested(field.type)]
    if nested:
        raise InputError(
            f"{path}, column {nested[0].name!r}: holds a {nested[0].type}; expected single values"
        )
    if table.num_rows == 0:
        raise InputError(f"{path}: the table has a header and no rows")
    frame = table.to_pandas(ignore_metadata=True)  # what pandas saved as its index is a column like others
    assert isinstance(frame, pd.DataFrame)

    if not is_text:
        return frame, lambda row: f"row {row + 1}"
    frame = frame.dropna(how="all")  # blank lines
    lines = frame.index.to_numpy() + 2  # after the header
    return frame, lambda row: f"line {lines[row]}"


def _read_csv(path: Path) -> pa.Table:
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False),  # only so do errors tell the line
        parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False),  # rows stay lines
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={"id": pa.string()},  # 007 is a name
            null_values=["", "NA", "NaN", "nan", "."],
            strings_can_be_null=True,
        ),
    )
    if table.column_names == [""]:
        raise InputError(f"{path}: the file is empty or begins with a blank line")
    return table


@dataclass(frozen=True)
class _Checker:
    """One table under inspection, with the words to point at a cell of it."""

    source: str
    frame: pd.DataFrame
    row_name: Callable[[int], str]

    def refuse(self, row: int, column: str, what: str) -> InputError:
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
            if default is None:
                present = ", ".join(map(str, self.frame.columns))
                raise InputError(f"{self.source}: column {column!r} is missing; the file has {present}")
            return np.full(len(self.frame), default)
        raw = self.frame[column]
        if raw.dtype.kind in "mM":  # a date or a clock time is not a number of hours
            raw = raw.astype(str)
        values = pd.to_numeric(raw, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        text = np.isnan(values) & raw.notna().to_numpy()
        self.first(text, column, "{value!r} is not a number")
        self.first(np.isinf(values), column, "{value} is not finite")
        return values

    def table(self, covariates: Mapping[str, str], keep_predose: bool) -> EventTable:
        subject, ids = self._subjects()
        time = self.number("time")
        self.first(np.isnan(time), "time", "is missing; expected hours since the first dose")
        self.first(time < 0, "time", "{value} is negative; expected hours since the first dose")
        unsorted = np.r_[False, (np.diff(time) < 0) & (np.diff(subject) == 0)]
        self.first(
            unsorted, "time", "{value} comes after a later time of the same subject; sort rows by time"
        )
        is_dose, is_observation = self._kinds()
        rate, duration = self._doses(is_dose)
        dv = self.number("dv")
        self.first(is_observation & np.isnan(dv), "dv", "is missing on an observation row")
        self._coverage(subject, ids, time, is_dose, is_observation, keep_predose)
        keep = is_dose | is_observation
        return EventTable(
            source=self.source,
            ids=ids,
            subject=subject[keep],
            time=time[keep],
            is_dose=is_dose[keep],
            rate=rate[keep],
            duration=duration[keep],
            dv=np.where(is_observation, dv, np.nan)[keep],
            covariates={name: self._covariate(column, subject) for name, column in covariates.items()},
        )

    def _subjects(self) -> tuple[IntArray, tuple[str, ...]]:
        if "id" not in self.frame:
            self.number("id")
        raw = self.frame["id"]
        self.first(raw.isna().to_numpy(), "id", "is missing")
        codes, labels = pd.factorize(raw, sort=False)
        subject = codes.astype(np.int64)
        starts = np.r_[True, np.diff(subject) != 0]
        seen_before = starts.copy()
        seen_before[np.unique(subject, return_index=True)[1]] = False
        self.first(
            seen_before,
            "id",
            "{value!r} appears in more than one block of rows; keep a subject's rows together",
        )
        return subject, tuple(map(str, labels))

    def _kinds(self) -> tuple[BoolArray, BoolArray]:
        """Which rows are doses and which are observations."""
        column = "evid" if "evid" in self.frame else "mdv"
        if column not in self.frame:
            raise InputError(f"{self.source}: needs a column 'evid' or 'mdv' to tell doses from observations")
        kind = self.number(column)
        self.first(~np.isin(kind, (0.0, 1.0)), column, "is {value}; expected 0 or 1")
        amount, rate = (np.nan_to_num(self.number(name, 0.0)) for name in ("amt", "rate"))
        gives = (amount != 0) | (rate != 0)
        is_observation = kind == 0
        if column == "evid" and "mdv" in self.frame:
            mdv = self.number("mdv")
            self.first(~np.isin(mdv, (0.0, 1.0)), "mdv", "is {value}; expected 0 or 1")
            is_observation &= mdv == 0
        self.first(is_observation & gives, column, "is 0 (an observation) on a row that has a dose")
        if column == "evid":
            self.first((kind == 1) & ~gives, "amt", "is missing or zero on a dose row")
        return (kind == 1) & gives, is_observation

    def _doses(self, is_dose: BoolArray) -> tuple[FloatArray, FloatArray]:
        amount, rate, duration = (self.number(name, np.nan) for name in ("amt", "rate", "duration"))
        for name, values in (("amt", amount), ("rate", rate), ("duration", duration)):
            self.first(is_dose & (values < 0), name, "{value} is negative on a dose row")
        rate, duration = (np.where(values > 0, values, np.nan) for values in (rate, duration))
        no_amount = ~(amount > 0)
        self.first(
            is_dose & np.isnan(rate) & no_amount, "amt", "is missing or zero on a dose row that has no rate"
        )
        only_rate = is_dose & ~np.isnan(rate) & np.isnan(duration)
        self.first(
            only_rate & no_amount, "duration", "is missing on a dose row that has a rate and no amount"
        )
        bolus = is_dose & np.isnan(rate) & np.isnan(duration)
        duration = np.where(only_rate, amount / rate, np.where(bolus, BOLUS_DURATION, duration))
        rate = np.where(np.isnan(rate), amount / duration, rate)
        return np.where(is_dose, rate, np.nan), np.where(is_dose, duration, np.nan)

    def _coverage(
        self,
        subject: IntArray,
        ids: tuple[str, ...],
        time: FloatArray,
        is_dose: BoolArray,
        is_observation: BoolArray,
        keep_predose: bool,
    ) -> None:
        """Every subject has a dose and an observation, and none before its first dose."""
        first_row = np.unique(subject, return_index=True)[1]
        for mask, column, what in ((is_observation, "dv", "observation"), (is_dose, "amt", "dose")):
            without = np.bincount(subject[mask], minlength=len(ids)) == 0
            if without.any():
                row = int(first_row[int(np.argmax(without))])
                raise self.refuse(row, column, f"subject {ids[subject[row]]!r} has no {what}")
        first_dose = np.full(len(ids), np.inf)
        np.minimum.at(first_dose, subject[is_dose], time[is_dose])
        if not keep_predose:
            early = is_observation & (time < first_dose[subject])
            self.first(early, "time", "an observation at {value} h comes before the subject's first dose")

    def _covariate(self, column: str, subject: IntArray) -> FloatArray:
        values = self.number(column)
        self.first(np.isnan(values), column, "is missing; every row needs this covariate")
        first_row = np.unique(subject, return_index=True)[1]
        self.first(
            values != values[first_row][subject], column, "{value} differs from the subject's first value"
        )
        return values[first_row]
