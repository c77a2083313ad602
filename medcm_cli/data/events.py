"""Event tables as the field writes them: one row per dose, observation or other event, as CSV or Parquet.

Columns, as NONMEM has them: ID; TIME (h); EVID (0 observation, 1 dose, 2 other event, 3 reset, 4 reset and
dose) or MDV (0 observation, 1 none); AMT; RATE (amount/h; -2: the infusion's length is in the column DURATION
or, where that is empty, a parameter of the model); DURATION (h); ADDL and II (additional doses, h between
them); SS (1 steady state, 2 steady state on top of what is there); CMT; DV; CENS (1: DV is the limit below
which the level lies) and LLOQ; OCC; and the covariates. Where a dose row has both a rate and a duration,
these two win over the amount; an amount alone is a bolus (METHODS, "Units and symbols").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from medcm_cli.checks import number, one_of
from medcm_cli.data.regimen import Records, Regimen, write_out
from medcm_cli.data.sheet import ROLES, BoolArray, FloatArray, IntArray, Sheet, label, read_sheet
from medcm_cli.errors import InputError

BOLUS_DURATION = 1 / 60  # h
OVER_TIME = ("constant", "record", "mean", "first")


@dataclass(frozen=True)
class Format:
    """How a file is to be read.

    ``columns`` role -> column; ``keep`` column -> values of the rows to keep; ``bolus_duration`` h, 0 for one
    given at once; ``predose_observations``: ``error`` refuses an observation before the subject's first dose,
    where the model predicts exactly zero, ``keep`` allows it; ``over_time`` covariate -> what a covariate
    that changes means: ``record`` the value in force at each record, ``mean`` or ``first`` of the subject,
    ``constant`` (the default) refuses it; ``optional``: covariates that may be missing, NaN then.
    ``patients``: to be predicted and not trained on. They need no observation, nor, without one, a dose;
    additional doses are all written out, also those after the last record; a negative level is refused.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    keep: Mapping[str, Sequence[object]] = field(default_factory=dict)
    bolus_duration: float = BOLUS_DURATION
    predose_observations: str = "error"
    over_time: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    patients: bool = False

    def __post_init__(self) -> None:
        one_of("dataset.predose_observations", self.predose_observations, ("error", "keep"))
        number("dataset.bolus_duration", self.bolus_duration, least=0, unit="h")
        for name, rule in self.over_time.items():
            one_of(f"dataset.over_time.{name}", rule, OVER_TIME)


@dataclass(frozen=True)
class Regimes:
    """Stretches of time in which covariates that change have one value, in the order of subjects and time.

    ``subject``; ``end`` h on the clock, the last of a subject infinite; ``covariates`` name -> value. As in
    NONMEM, a record's value holds from the record before it until the record itself.
    """

    subject: IntArray
    end: FloatArray
    covariates: dict[str, FloatArray]


@dataclass(frozen=True)
class EventTable:
    """A checked event table: an entry per dose given and per observation, in the order of subjects and time.

    ``subject`` counts from 0 in order of first appearance. ``time`` is the file's, ``clock`` (h) runs on
    through resets (``medcm_cli.data.regimen``). Of doses: ``amount``; ``duration`` h, 0 at once, NaN where a
    parameter of the model; ``since``, the clock from which it can be seen, and ``added`` as there;
    ``interval`` h, finite for the endless series of a steady state; NaN at observations. Of observations:
    ``dv``, NaN at doses, and ``censored``: whether the level is somewhere below ``dv``. Of both:
    ``compartment`` from 0, -1 for the model's own choice; ``segment`` between resets; ``occasion``.
    ``superposed``: whether a steady state is added to what is there (SS 2). ``covariates`` has one value per
    subject, NaN where missing and optional.
    """

    source: str
    ids: tuple[str, ...]
    subject: IntArray
    time: FloatArray
    clock: FloatArray
    is_dose: BoolArray
    amount: FloatArray
    duration: FloatArray
    since: FloatArray
    added: BoolArray
    interval: FloatArray
    dv: FloatArray
    censored: BoolArray
    compartment: IntArray
    segment: IntArray
    occasion: IntArray
    reset_subject: IntArray
    reset_clock: FloatArray
    covariates: dict[str, FloatArray]
    regimes: Regimes | None = None
    superposed: bool = False

    @property
    def given(self) -> BoolArray:
        """Rows of single doses, not of the series before a steady state."""
        return self.is_dose & ~np.isfinite(self.interval) & (self.clock >= self.since)

    @property
    def rate(self) -> FloatArray:
        """amount/h of doses; infinite for a dose given at once."""
        with np.errstate(divide="ignore"):
            return self.amount / self.duration


def read_events(
    path: Path | pd.DataFrame, covariates: Mapping[str, str], how: Format | None = None
) -> EventTable:
    """Read a file, or take what a frame of the same columns holds, and check every row.

    :param covariates: name in the model -> column in the file.
    :raises InputError: one line naming file, line (CSV) or row (Parquet) and column, for the first fault
    found.
    """
    how = how or Format()
    unknown = sorted(set(how.over_time) - set(covariates))
    if unknown:
        known = ", ".join(covariates) or "none"
        raise InputError(f"dataset.over_time.{unknown[0]}: no such covariate; the dataset has {known}")
    return _table(read_sheet(path, how.columns, how.keep), covariates, how)


def plain_covariates(path: Path, how: Format, wanted: Sequence[str] = ()) -> tuple[dict[str, str], Format]:
    """The covariates to read for a look at a table: the ``wanted`` columns, or else all that have no role and
    hold numbers. Any may be missing, and those that change within a subject are taken record by record.

    :raises InputError: the file cannot be read, or a wanted column is absent or holds no numbers.
    """
    sheet = read_sheet(path, how.columns, how.keep)
    taken = {sheet.named(role) for role in ROLES} | set(how.keep)
    for name in wanted:
        sheet.number(name)
    numeric = [name for name in sheet.frame if sheet.frame[name].dtype.kind in "iufb"]
    names = wanted or [str(name) for name in numeric if name not in taken]
    by_subject = sheet.frame.groupby(sheet.frame[sheet.named("id")]) if sheet.has("id") else None
    changing = [
        name
        for name in names
        if by_subject is not None and (by_subject[name].max() > by_subject[name].min()).any()
    ]
    over_time = {**dict.fromkeys(changing, "record"), **how.over_time}
    return {name: name for name in names}, replace(how, over_time=over_time, optional=frozenset(names))


def _table(sheet: Sheet, covariates: Mapping[str, str], how: Format) -> EventTable:
    subject, ids = _subjects(sheet)
    evid, is_observation = _kinds(sheet)
    time = _time(sheet, subject, evid)
    amount, duration = _doses(sheet, np.isin(evid, (1, 4)), how.bolus_duration)
    is_dose = ~np.isnan(amount)
    dv, censored = _levels(sheet, is_observation)
    occasion = _occasions(sheet, subject)
    compartment = sheet.whole("cmt") - 1
    addl, ii, ss = _repeats(sheet, is_dose)
    records = Records(subject, time, is_dose, evid >= 3, amount, duration, addl, ii, ss)
    regimen = write_out(records, to_the_end=how.patients)
    if how.patients:
        negative = is_observation & (dv < 0)
        sheet.first(negative, sheet.named("dv"), "{value} is negative; expected a level of 0 or more")
    else:
        _coverage(sheet, ids, subject, is_dose, is_observation)
    if how.predose_observations == "error":
        _no_predose(sheet, len(ids), subject, time, is_observation, regimen)
    values, regimes = _covariates(sheet, covariates, how, subject, regimen.clock)
    doses, seen = regimen.doses, np.flatnonzero(is_observation)
    row = np.r_[doses.record, seen]
    clock = np.r_[doses.clock, regimen.clock[seen]]
    # Doses are ordered by when they are seen, so that the earlier ones of a steady state follow its segment.
    order = np.lexsort((np.r_[doses.added, seen < 0], row, np.r_[doses.since, clock[len(doses.record) :]]))
    order = order[np.argsort(subject[row[order]], kind="stable")]
    nothing = np.full(len(seen), np.nan)

    def joined(of_doses: FloatArray, of_observations: FloatArray) -> FloatArray:
        return np.concatenate([of_doses, of_observations])[order]

    row, shift = row[order], (regimen.clock - time)
    return EventTable(
        source=sheet.source,
        ids=ids,
        subject=subject[row],
        time=clock[order] - shift[row],
        clock=clock[order],
        is_dose=(np.arange(len(clock)) < len(doses.record))[order],
        amount=joined(doses.amount, nothing),
        duration=joined(doses.duration, nothing),
        since=joined(doses.since, nothing),
        added=np.r_[doses.added, np.zeros(len(seen), dtype=bool)][order],
        interval=joined(doses.interval, nothing),
        dv=joined(np.full(len(doses.record), np.nan), dv[seen]),
        censored=np.r_[np.zeros(len(doses.record), dtype=bool), censored[seen]][order],
        compartment=compartment[row],
        segment=regimen.segment[row],
        occasion=occasion[row],
        reset_subject=regimen.reset_subject,
        reset_clock=regimen.reset_clock,
        covariates=values,
        regimes=regimes,
        superposed=bool((ss == 2).any()),
    )


def _subjects(sheet: Sheet) -> tuple[IntArray, tuple[str, ...]]:
    column = sheet.named("id")
    if column not in sheet.frame:
        raise sheet.absent(column)
    raw = sheet.frame[column]
    sheet.first(raw.isna().to_numpy(), column, "is missing")
    codes, labels = pd.factorize(raw, sort=False)
    subject = codes.astype(np.int64)
    starts = np.r_[True, np.diff(subject) != 0]
    seen_before = starts.copy()
    seen_before[np.unique(subject, return_index=True)[1]] = False
    sheet.first(
        seen_before,
        column,
        "{value!r} appears in more than one block of rows; keep a subject's rows together",
    )
    return subject, tuple(map(label, labels))


def _kinds(sheet: Sheet) -> tuple[IntArray, BoolArray]:
    """EVID of every row and whether it is an observation; where the file has only MDV, EVID follows from
    it."""
    has_evid = sheet.has("evid")
    column = sheet.named("evid" if has_evid else "mdv")
    if not has_evid and not sheet.has("mdv"):
        raise InputError(f"{sheet.source}: needs a column 'evid' or 'mdv' to tell doses from observations")
    kind = sheet.number(column)
    if has_evid:
        sheet.first(~np.isin(kind, (0, 1, 2, 3, 4)), column, "is {value}; expected 0, 1, 2, 3 or 4")
    else:
        sheet.first(~np.isin(kind, (0, 1)), column, "is {value}; expected 0 or 1")
    amount, rate = (np.nan_to_num(sheet.number(sheet.named(name), 0.0)) for name in ("amt", "rate"))
    gives = (amount != 0) | (rate != 0)
    is_observation = kind == 0
    if has_evid and sheet.has("mdv"):
        mdv = sheet.number(sheet.named("mdv"))
        sheet.first(~np.isin(mdv, (0.0, 1.0)), sheet.named("mdv"), "is {value}; expected 0 or 1")
        is_observation &= mdv == 0
    sheet.first((kind == 0) & gives, column, "is 0 (an observation) on a row that has a dose")
    if has_evid:
        words = "is missing or zero on a dose row"
        sheet.first(np.isin(kind, (1, 4)) & ~gives, sheet.named("amt"), words)
        sheet.first(np.isin(kind, (2, 3)) & gives, column, "is {value} (no dose) on a row that has a dose")
        return kind.astype(np.int64), is_observation
    return np.where(is_observation, 0, np.where(gives, 1, 2)), is_observation


def _time(sheet: Sheet, subject: IntArray, evid: IntArray) -> FloatArray:
    column = sheet.named("time")
    time = sheet.number(column)
    sheet.first(np.isnan(time), column, "is missing; expected hours since the first dose")
    sheet.first(time < 0, column, "{value} is negative; expected hours since the first dose")
    unsorted = np.r_[False, (np.diff(time) < 0) & (np.diff(subject) == 0)] & (evid < 3)
    sheet.first(
        unsorted,
        column,
        "{value} comes after a later time of the same subject; sort rows by time, "
        "or begin again with EVID 3 or 4",
    )
    return time


def _doses(sheet: Sheet, is_dose: BoolArray, bolus: float) -> tuple[FloatArray, FloatArray]:
    """Amount and duration (h) of the dose rows, NaN elsewhere; a duration that the model has is NaN too."""
    names = {role: sheet.named(role) for role in ("amt", "rate", "duration")}
    amount, rate, duration = (sheet.number(name, np.nan) for name in names.values())
    modelled = is_dose & (rate == -2)
    sheet.first(
        is_dose & (rate == -1),
        names["rate"],
        "is -1 (a rate that the model has); expected a rate, or -2 for a duration",
    )
    for name, values in zip(names.values(), (amount, np.where(modelled, 0, rate), duration), strict=True):
        sheet.first(is_dose & (values < 0), name, "{value} is negative on a dose row")
    rate = np.where((rate > 0) & is_dose, rate, np.nan)
    duration = np.where((duration > 0) & is_dose, duration, np.nan)
    no_amount = ~(amount > 0)
    sheet.first(
        is_dose & np.isnan(rate) & no_amount,
        names["amt"],
        "is missing or zero on a dose row that has no rate",
    )
    endless = is_dose & (sheet.whole("ss", (0, 1, 2)) > 0) & no_amount
    endless &= np.nan_to_num(sheet.number(sheet.named("ii"), 0.0)) == 0
    sheet.first(
        is_dose & ~np.isnan(rate) & np.isnan(duration) & no_amount & ~endless,
        names["duration"],
        "is missing on a dose row that has a rate and no amount",
    )
    by_both = ~np.isnan(rate) & ~np.isnan(duration)
    given = np.where(by_both, rate * duration, amount)
    length = np.where(np.isnan(duration), given / rate, duration)  # NaN without either
    length = np.where(is_dose & np.isnan(length) & ~modelled, bolus, length)
    given = np.where(endless, rate, given)  # an hour's worth; see regimen
    return np.where(is_dose, given, np.nan), np.where(is_dose, length, np.nan)


def _repeats(sheet: Sheet, is_dose: BoolArray) -> tuple[IntArray, FloatArray, IntArray]:
    """ADDL, II and SS."""
    addl, ss = sheet.whole("addl"), sheet.whole("ss", (0, 1, 2))
    ii = np.nan_to_num(sheet.number(sheet.named("ii"), 0.0))
    sheet.first(ii < 0, sheet.named("ii"), "{value} is negative; expected hours between doses")
    for role, values in (("addl", addl), ("ss", ss), ("ii", ii)):
        sheet.first(~is_dose & (values != 0), sheet.named(role), "is {value} on a row that is not a dose")
    column = sheet.named("ii")
    sheet.first((addl > 0) & (ii == 0), column, "is missing or zero on a dose row with additional doses")
    no_amount = ~(np.nan_to_num(sheet.number(sheet.named("amt"), 0.0)) > 0)
    sheet.first(
        (ss > 0) & (ii == 0) & ~no_amount,
        column,
        "is missing or zero on a dose row at steady state; without it expected a rate and no amount",
    )
    return addl, ii, ss


def _levels(sheet: Sheet, is_observation: BoolArray) -> tuple[FloatArray, BoolArray]:
    """dv of observations, the limit where censored, and whether they are."""
    column = sheet.named("dv")
    dv = sheet.number(column)
    lloq = sheet.number(sheet.named("lloq"), np.nan)
    sheet.first(is_observation & (lloq <= 0), sheet.named("lloq"), "is {value}; expected a level above 0")
    if sheet.has("cens"):
        censored = is_observation & (sheet.whole("cens", (0, 1)) == 1)
    else:
        censored = is_observation & (dv < lloq)
    limit = np.where(censored & ~np.isnan(lloq), lloq, dv)
    missing = is_observation & np.isnan(limit)
    sheet.first(
        missing & censored, column, "is missing on a censored row; expected the limit, there or in LLOQ"
    )
    sheet.first(missing, column, "is missing on an observation row")
    return limit, censored


def _occasions(sheet: Sheet, subject: IntArray) -> IntArray:
    """OCC, 1 where the file has none."""
    if not sheet.has("occ"):
        return np.ones(len(subject), dtype=np.int64)
    column = sheet.named("occ")
    values = sheet.number(column)
    whole = (values >= 1) & (values % 1 == 0)
    sheet.first(~whole, column, "is {value}; expected a whole number from 1")
    falls = np.r_[False, (np.diff(values) < 0) & (np.diff(subject) == 0)]
    sheet.first(falls, column, "{value} comes after a later occasion of the same subject")
    return values.astype(np.int64)


def _coverage(
    sheet: Sheet, ids: tuple[str, ...], subject: IntArray, is_dose: BoolArray, is_observation: BoolArray
) -> None:
    """Every subject has a dose and an observation."""
    first_row = np.unique(subject, return_index=True)[1]
    for mask, role, what in ((is_observation, "dv", "observation"), (is_dose, "amt", "dose")):
        without = np.bincount(subject[mask], minlength=len(ids)) == 0
        if without.any():
            row = int(first_row[int(np.argmax(without))])
            raise sheet.refuse(row, sheet.named(role), f"subject {ids[subject[row]]!r} has no {what}")


def _no_predose(
    sheet: Sheet,
    subjects: int,
    subject: IntArray,
    time: FloatArray,
    is_observation: BoolArray,
    regimen: Regimen,
) -> None:
    first_dose = np.full(subjects, np.inf)
    np.minimum.at(first_dose, subject[regimen.doses.record], regimen.doses.since)
    early = is_observation & (regimen.clock < first_dose[subject])
    if early.any():
        row = int(np.argmax(early))
        what = f"an observation at {time[row]:g} h comes before the subject's first dose"
        raise sheet.refuse(row, sheet.named("time"), what)


def _covariates(
    sheet: Sheet, covariates: Mapping[str, str], how: Format, subject: IntArray, clock: FloatArray
) -> tuple[dict[str, FloatArray], Regimes | None]:
    """Values per subject of those that stay, and regimes of those that change."""
    opens = np.unique(subject, return_index=True)[1]
    stay: dict[str, FloatArray] = {}
    change: dict[str, FloatArray] = {}
    for name, column in covariates.items():
        values: FloatArray = sheet.number(column)
        rule = how.over_time.get(name, "constant")
        optional = name in how.optional
        if not optional and rule == "constant":
            sheet.first(np.isnan(values), column, "is missing; every row needs this covariate")
        # A record without a value has that of the record before it, or else of the first that has one.
        filled = pd.Series(values).groupby(subject)
        values = np.asarray(filled.ffill().groupby(subject).bfill(), dtype=np.float64)
        if not optional:
            sheet.first(np.isnan(values), column, "is missing in every row of the subject")
        first = values[opens]
        if rule == "record":
            change[name] = values
        elif rule == "mean":
            stay[name] = np.asarray(filled.mean(), dtype=np.float64)
        else:
            if rule == "constant":
                differs = ~((values == first[subject]) | np.isnan(values))
                sheet.first(differs, column, "{value} differs from the subject's first value")
            stay[name] = first
    if not change:
        return stay, None
    # A regime is a run of records with the same values; of records at one time the first counts.
    new = np.r_[True, np.diff(subject) != 0]
    for values in change.values():
        new |= np.r_[True, values[1:] != values[:-1]]
    last = np.r_[new[1:], True]
    end = np.where(np.r_[np.diff(subject) != 0, True], np.inf, clock)
    starts = np.flatnonzero(new)
    regimes = Regimes(subject[starts], end[last], {name: values[starts] for name, values in change.items()})
    return stay, regimes
