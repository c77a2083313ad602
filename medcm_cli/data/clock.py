"""TIME in the data's unit, of whatever a file tells it by: numbers, clock times, dates, or both in one column
or two.

Dates and clock times become the time since the subject's first record. They are taken as they are written:
a change to or from summer time in between is not known of.
"""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from medcm_cli.checks import as_option
from medcm_cli.data.dialect import DATES, option
from medcm_cli.data.names import flag
from medcm_cli.data.sheet import BoolArray, FloatArray, IntArray, Sheet, opens_of
from medcm_cli.errors import InputError
from medcm_cli.quantities import hours

_DATE = r"(?P<a>\d{1,4})(?P<by>[-./ ]?)(?P<b>\d{1,2}|[A-Za-z]{3})(?P=by)(?P<c>\d{2,4})|(?P<whole>\d{8})"
_CLOCK = (
    r"(?P<hour>\d{1,4}):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d(?:\.\d*)?))?"
    r"(?:\s*(?P<half>[aApP])\.?[mM]\.?)?(?P<zone>Z|[+-]\d{2}:?\d{2})?"
)
_WHEN = rf"(?:{_DATE})?(?:(?:^|[T ,:]\s*)(?:{_CLOCK}))?"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_PLACES = {"dmy": "cba", "mdy": "cab", "ymd": "abc", "ydm": "acb"}  # of year, month and day
_SPOKEN = {"dmy": "day, month, year", "mdy": "month, day, year", "ymd": "year, month, day"}
_SPOKEN["ydm"] = "year, day, month"
_NONMEM = {"dat1": "dmy", "dat2": "ymd", "dat3": "ydm"}  # whose names say the order
_CENTURY = 69  # two digits from here are of 1900
_DAY = 24.0
_PIECE = 100_000  # cells that are taken apart at once
_EXCEL = 20_000, 80_000  # its days from 1954 to 2119, which no study's first h are


class Times(NamedTuple):
    """``passed`` (R,), NaN where missing, and how they came about in words, empty where the file has them."""

    passed: FloatArray
    assumed: str


def times(sheet: Sheet, subject: IntArray, unit: str) -> Times:
    """The times of the R rows of a sheet, in ``unit``.

    :raises InputError: a cell that is no time, a date that can be read in two ways, or clock times whose
        days are not known.
    """
    column, date = sheet.named("time"), _date_column(sheet)
    if column not in sheet.frame:
        raise sheet.absent(column)
    if sheet.holds_numbers(column):
        values = sheet.number(column)
        if sheet.dialect.dates == "excel":
            seconds = np.round(values * 86_400, 2)  # to which a number of days is exact
            return _since_first(seconds, subject, unit, repr(column))
        if sheet.columns.get("date") is None:
            if sheet.dialect.dates != "none":
                _check_passed(sheet, column, date, values, subject, unit)
            return Times(values, "")
        assert date is not None
        sheet.first((values < 0) | (values > _DAY), column, "is {value}; expected a clock time in h, 0 to 24")
        order, days = _chosen(sheet, date)
        return _since_first(
            days * 86_400 + values * 3600, subject, unit, f"{date!r} and {column!r}", _spoken(order)
        )
    return _read(sheet, column, date, subject, unit)


def _read(sheet: Sheet, column: str, date: str | None, subject: IntArray, unit: str) -> Times:
    """From a column that does not hold numbers."""
    parts, cell = _parts(sheet, column)
    clock = _clock(parts)[cell]
    has_date = (parts["a"].notna() | parts["whole"].notna()).to_numpy()[cell]
    dated = bool(has_date.any())
    if dated:
        for part, words in (("hour", "clock time"), ("zone", "zone of time")):
            _check_alike(sheet, column, parts[part].notna().to_numpy()[cell], has_date, words)
        (order, days), where = _chosen(sheet, column), repr(column)
        if date is not None:
            what = f"has another date than column {date!r}; {_columns(None)} does without that"
            sheet.first(days != _chosen(sheet, date)[1], column, f"{{value!r}} {what}")
    elif date is not None:
        of_date, its_cell = _parts(sheet, date)
        at_date = _clock(of_date)[its_cell]
        what = f"has another clock time than column {column!r}; expected a date"
        sheet.first((at_date != 0) & (at_date != clock), date, f"{{value!r}} {what}")
        (order, days), where = _chosen(sheet, date), f"{date!r} and {column!r}"
    else:
        days, where, order = np.zeros(len(cell)), repr(column), ""
    if dated or date is not None:
        sheet.first(_beyond(parts)[cell], column, "{value!r} is no clock time")
        return _since_first(days * 86_400 + clock, subject, unit, where, _spoken(order))
    if np.nanmax(clock, initial=0) >= _DAY * 3600:
        return Times(clock / 3600 / hours(unit), f"{column!r} as hours and minutes that have passed")
    falls = np.r_[False, (np.diff(clock) < 0) & (np.diff(subject) == 0)]
    if falls.any():
        found = _dates(sheet, column)
        way = (
            "expected one, or the date in this one"
            if found is None
            else f"{_columns(found)} says where ({flag({'date': found})})"
        )
        what = "{value!r} comes after a later clock time of the same subject, and no column has the date; "
        sheet.first(falls, column, what + way)
    return _since_first(clock, subject, unit, where, ", of one day each")


def _dates(sheet: Sheet, column: str) -> str | None:
    """Another column that holds nothing but dates, None where there is none."""
    others = [name for name in map(str, sheet.frame) if name != column]
    texts = {name: sheet.frame[name].dropna().astype(str).str.strip() for name in others}
    held = (n for n, cells in texts.items() if sheet.frame[n].dtype.kind not in "iufb" and len(cells))
    return next((n for n in held if texts[n].str.fullmatch(_DATE, flags=re.ASCII).all()), None)


def _check_alike(sheet: Sheet, column: str, has: BoolArray, has_date: BoolArray, words: str) -> None:
    """All cells have a date, and all or none what is called by ``words``. :raises InputError: one is
    unlike."""
    filled = sheet.frame[column].notna().to_numpy()
    sheet.first(filled & ~has_date, column, "{value!r} has no date, as others have")
    if has.any():
        sheet.first(filled & ~has, column, f"{{value!r}} has no {words}, as others have")


def _beyond(parts: pd.DataFrame) -> BoolArray:
    """Whether clock times are after midnight of the day."""
    hour, minute = pd.to_numeric(parts["hour"]), pd.to_numeric(parts["minute"])
    return np.asarray((hour > _DAY) | ((hour == _DAY) & (minute > 0)), dtype=bool)


def _columns(date: str | None) -> str:
    return as_option("dataset.columns", date=date)


def _spoken(order: str) -> str:
    return f" ({_SPOKEN[order]})" if order else ""


def _since_first(seconds: FloatArray, subject: IntArray, unit: str, where: str, how: str = "") -> Times:
    """From ``seconds`` on one clock; in words: read ``where`` and ``how``."""
    opens = opens_of(subject)
    passed = (seconds - seconds[opens][subject]) / 3600 / hours(unit)
    return Times(passed, f"{where} as {unit} since the subject's first record{how}")


def _date_column(sheet: Sheet) -> str | None:
    """The column of dates, None of a file that has none or is to do without."""
    if "date" in sheet.columns:
        name = sheet.named("date")
        if sheet.columns["date"] is not None and name not in sheet.frame:
            raise sheet.absent(name)
        return name or None
    return next((found for name in ("date", *_NONMEM) if (found := sheet.find(name))), None)


def _check_passed(
    sheet: Sheet, column: str, date: str | None, values: FloatArray, subject: IntArray, unit: str
) -> None:
    """Numbers in TIME are of time that has passed, not Excel's numbers of days nor those of a clock beside a
    date. :raises InputError: they may be others."""
    opens = opens_of(subject)
    first, last = _EXCEL
    if ((values[opens] > first) & (values[opens] < last)).all():
        what = f"{{value}} may be Excel's number of a date, or {unit}; "
        what += f"{option(dates='excel')} or {option(dates='none')} says which"
        sheet.first(np.ones(len(values), dtype=bool), column, what)
    if date is None:
        return
    days = pd.factorize(sheet.frame[date])[0]
    changes = bool(((np.diff(days) != 0) & (np.diff(subject) == 0)).any())
    passing = values * hours(unit)
    unlike = changes and np.nanmax(values, initial=0) < _DAY
    try:
        passed = _chosen(sheet, date)[1] * _DAY
    except InputError:
        passed = np.full(len(values), np.nan)  # no dates that say anything
    gap = (passed - passed[opens][subject]) - (passing - passing[opens][subject])
    if unlike or (np.abs(gap) > _DAY + 1).any():
        raise InputError(
            f"{sheet.source}: column {column!r} may be {unit} that have passed or clock times of {date!r}; "
            f"{_columns(None)} or {_columns(date)} says which"
        )


def _parts(sheet: Sheet, column: str) -> tuple[pd.DataFrame, IntArray]:
    """The parts of dates and clock times, missing where a cell has none, of each different cell, an empty one
    last, and which of these each row has, (R,)."""
    codes, kinds = pd.factorize(sheet.frame[column])
    raw = pd.Series(kinds)
    if isinstance(raw.dtype, pd.DatetimeTZDtype):
        raw = raw.dt.tz_convert("UTC").dt.tz_localize(None)
    cells = raw.astype(str).str.strip()
    if raw.dtype.kind in "fi":
        cells = raw.map(lambda cell: f"{cell:.0f}")
    cells = pd.concat([cells, pd.Series([""], dtype=cells.dtype)], ignore_index=True)
    pieces = (cells.iloc[begin : begin + _PIECE] for begin in range(0, len(cells), _PIECE))
    parts = pd.concat([piece.str.extract(f"^{_WHEN}$", flags=re.ASCII) for piece in pieces])
    read = parts[["a", "whole", "hour"]].notna().any(axis=1) | (cells == "")
    if not read[cells != ""].all() and any(map(sheet.marks.value, cells[cells != ""])):
        sheet.number(column)  # says which is none
    what = "{value!r} is not a number, nor a date or clock time (2020-03-01, 08:30 or both)"
    sheet.first(~read.to_numpy()[codes], column, what)
    return parts, codes


def _clock(parts: pd.DataFrame) -> FloatArray:
    """Seconds of the day, 0 of a date alone, NaN of an empty cell."""
    hour, minute, second = (pd.to_numeric(parts[name]).to_numpy() for name in ("hour", "minute", "second"))
    half = parts["half"].str.lower()
    hour = np.where(half.notna(), hour % 12 + 12 * (half == "p"), hour)
    seconds = hour * 3600 + minute * 60 + np.nan_to_num(second)
    zone = parts["zone"].str.extract(r"(?P<sign>[+-])(?P<hour>\d\d):?(?P<minute>\d\d)")
    ahead = pd.to_numeric(zone["hour"]) * 3600 + pd.to_numeric(zone["minute"]) * 60
    seconds = seconds - (ahead.fillna(0) * np.where(zone["sign"] == "-", -1, 1)).to_numpy()
    is_date = (parts["a"].notna() | parts["whole"].notna()).to_numpy()
    return np.asarray(np.where(is_date, np.nan_to_num(seconds), seconds), dtype=np.float64)


Days = dict[str, FloatArray]
"""Order of day, month and year -> days since 1970 (R,), NaN where a cell is no date in this order."""


def _readings(sheet: Sheet, column: str) -> tuple[Days, BoolArray]:
    """A column's readings in each order that fits all cells, and which of them hold something."""
    parts, cell = _parts(sheet, column)
    whole = parts["whole"].notna()
    parts.loc[whole, "a"] = parts["whole"].str[:4]
    parts.loc[whole, "b"] = parts["whole"].str[4:6]
    parts.loc[whole, "c"] = parts["whole"].str[6:]
    filled = parts["a"].notna().to_numpy()
    empty = sheet.frame[column].notna().to_numpy() & ~filled[cell]
    sheet.first(empty, column, "{value!r} is no date")
    named = parts["b"].str.lower().map({name: str(i) for i, name in enumerate(_MONTHS, 1)})
    by_name = bool(named.notna().any())
    parts["b"] = named.where(named.notna(), parts["b"])
    orders = [_NONMEM.get(column.lower(), "")] if column.lower() in _NONMEM else list(DATES[:3])
    if sheet.dialect.dates in _SPOKEN:
        orders = [sheet.dialect.dates]
    elif by_name:
        orders = ["dmy", "ymd"]
    elif (parts["by"].dropna() == ".").all():
        orders = [order for order in orders if order != "mdy"]  # nobody's
    readings = {order: _as_days(parts, order) for order in orders}
    fitting = {order: days for order, days in readings.items() if not np.isnan(days[filled]).any()}
    if not fitting:
        best = min(readings.values(), key=lambda days: int((filled & np.isnan(days))[cell].sum()))
        words = " or ".join(_SPOKEN[order] for order in orders)
        sheet.first((filled & np.isnan(best))[cell], column, f"{{value!r}} is no date of {words}")
    return {order: days[cell] for order, days in fitting.items()}, filled[cell]


def _as_days(parts: pd.DataFrame, order: str) -> FloatArray:
    y, m, d = tuple(_PLACES[order])
    digits = {name: parts[name].str.len() for name in "abc"}
    year = pd.to_numeric(parts[y], errors="coerce")
    short = digits[y] <= 2
    year = year.where(~short, year + np.where(year >= _CENTURY, 1900, 2000))
    month, day = (pd.to_numeric(parts[name], errors="coerce") for name in (m, d))
    fits = digits[y].isin((2, 4)) & (digits[m] <= 2) & (digits[d] <= 2)
    frame = pd.DataFrame({"year": year, "month": month, "day": day}).where(fits)
    stamps: npt.NDArray[np.datetime64] = pd.to_datetime(frame, errors="coerce").to_numpy("datetime64[D]")
    days = stamps.astype("int64").astype(np.float64)
    days[np.isnat(stamps)] = np.nan
    return days


def _chosen(sheet: Sheet, column: str) -> tuple[str, FloatArray]:
    """The order of day, month and year of a column, and its days. :raises InputError: it is not known."""
    fitting, filled = _readings(sheet, column)
    (order, days), *others = fitting.items()
    for other, differ in others:
        words = f"may be {_SPOKEN[order]} or {_SPOKEN[other]}; "
        words += f"{option(dates=order)} or {option(dates=other)} says which"
        sheet.first(filled & (days != differ), column, f"{{value!r}} {words}")
    return order, days
