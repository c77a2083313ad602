"""Event tables as the field writes them: one row per dose, observation or other event, as CSV or Parquet.

Columns, as NONMEM has them: ID; TIME; EVID (0 observation, 1 dose, 2 other event, 3 reset, 4 reset and
dose) or MDV (0 observation, 1 none); AMT; RATE (amount/time; -2: the infusion's length is in the column
DURATION or, where that is empty, a parameter of the model); DURATION; ADDL and II (additional doses, time
between them); SS (1 steady state, 2 steady state on top of what is there); CMT; DV; CENS (1: DV is the
limit below which the level lies) and LLOQ; OCC; and the covariates. Times, h by default, are all in
one unit. Where a dose row has both a rate and a duration, these two win over the amount; an amount alone is
given at once, unless ``Format`` has a duration for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medcm_cli.data import columns, names
from medcm_cli.data.abscissa import without_time
from medcm_cli.data.covariates import Regimes, covariates_of, labels_of, numbers, to_read
from medcm_cli.data.endpoints import Selector, collected, endpoints, kind_columns, told_apart
from medcm_cli.data.format import Format
from medcm_cli.data.names import ROLES
from medcm_cli.data.regimen import MOST, Records, Regimen, TooManyError, write_out
from medcm_cli.data.sheet import (
    BoolArray,
    FloatArray,
    IntArray,
    Sheet,
    TextArray,
    compact,
    read_sheet,
    release,
)
from medcm_cli.errors import InputError
from medcm_cli.quantities import HOUR

MOST_PREDICTED = 1000  # doses of a row; levels are followed around each of them


@dataclass(frozen=True)
class EventTable:
    """A checked event table: an entry per dose given and per observation, in the order of subjects and time.

    ``subject`` counts from 0 in order of first appearance. ``time`` is the file's, ``clock`` runs on through
    resets (``medcm_cli.data.regimen``). Of doses: ``amount``; ``duration``, 0 at once, NaN where a parameter
    of the model; ``interval``, finite for the endless series of a steady state that ends with the dose; NaN
    at observations; ``added`` and ``rated`` as there. Of observations: ``dv``, NaN at doses, and
    ``censored``: whether the level is somewhere beyond ``dv``, below or, where ``above``, above it. Of both:
    ``compartment`` from 0, -1 for the model's own choice; ``segment`` between resets; ``occasion``;
    ``regime``, which of the subject's ``regimes`` its record has, from 0, -1 where the time decides;
    ``endpoint`` of observations, from 0, of no meaning at doses; ``over``: how long an observation was
    collected until then, 0 of what there is then. Of resets, in the order of subjects and
    segments: ``reset_subject``; ``reset_clock``, when compartments are emptied; ``reset_time`` of the record
    that each comes with, the file's, and ``reset_shift``, by which the clock is ahead of the file's time from
    then on. ``superposed``: whether a steady state is added to what is there (SS 2). ``notes``: what has to
    be said of the file, in lines; ``left_out``: subjects without an observation. ``covariates`` has one value
    per subject, NaN where missing and optional, and ``labels`` one text, empty where missing. ``time_unit``:
    in which all that is time is; ``kinds``: which observations are of each endpoint, where there are several.
    """

    source: str
    ids: tuple[str, ...]
    subject: IntArray
    time: FloatArray
    clock: FloatArray
    is_dose: BoolArray
    amount: FloatArray
    duration: FloatArray
    added: BoolArray
    rated: IntArray
    interval: FloatArray
    dv: FloatArray
    censored: BoolArray
    compartment: IntArray
    segment: IntArray
    occasion: IntArray
    regime: IntArray
    endpoint: IntArray
    reset_subject: IntArray
    reset_clock: FloatArray
    reset_time: FloatArray
    reset_shift: FloatArray
    covariates: dict[str, FloatArray]
    regimes: Regimes | None = None
    labels: dict[str, TextArray] = field(default_factory=dict)
    superposed: bool = False
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    time_unit: str = HOUR
    above: BoolArray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    over: FloatArray = field(default_factory=lambda: np.zeros(0))
    kinds: tuple[Selector, ...] = ()

    def __post_init__(self) -> None:
        for name, kind in (("above", bool), ("over", float)):
            if not len(getattr(self, name)):  # as a rule there are none
                object.__setattr__(self, name, np.zeros(len(self.subject), dtype=kind))

    @property
    def given(self) -> BoolArray:
        """Rows of single doses, not of a constant infusion until then."""
        return self.is_dose & (self.rated < 2)

    @property
    def rate(self) -> FloatArray:
        """amount/time of doses; infinite for a dose given at once."""
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
    sheet, notes = columns.with_values(read_sheet(path, how.columns, how.keep, how.dialect), how.values)
    rows = _read(
        sheet if how.abscissa is None else without_time(sheet, how.abscissa, how.group), covariates, how
    )
    release()  # the sheet, of which nothing is needed any more
    table = _written(rows)
    return replace(table, notes=(*table.notes, *notes)) if how.patients else table


def read_plain(path: Path, how: Format | None = None, wanted: Sequence[str] = ()) -> EventTable:
    """The same for a look at a table, whatever model it is for: its covariates are the ``wanted`` columns, or
    else all that have no role and hold numbers. Of these any may be missing, and those that change within a
    subject are taken record by record; those that are wanted are read as a fit would. Where a column tells
    kinds of observations apart, each is an endpoint.

    :raises InputError: as ``read_events``, or a wanted column is absent or holds no numbers.
    """
    how = how or Format()
    sheet = read_sheet(path, how.columns, how.keep, how.dialect)
    if not how.endpoints and how.abscissa is None:
        how = replace(how, endpoints=told_apart(sheet, columns.kinds(sheet)[1]))
    rows = _read(sheet, *_plain_covariates(sheet, how, wanted))
    del sheet
    release()
    return _written(rows)


def _plain_covariates(sheet: Sheet, how: Format, wanted: Sequence[str]) -> tuple[dict[str, str], Format]:
    """What ``read_plain`` takes as covariates, and how."""
    taken = {sheet.named(role) for role in ROLES} | {sheet.find(name) for name in how.keep}
    taken |= kind_columns(sheet, how.endpoints)
    wanted = [sheet.find(name) or name for name in wanted]
    absent = [name for name in wanted if name not in sheet.frame]
    if absent:
        raise sheet.absent(*absent)
    for name in wanted:
        numbers(sheet, name, name, how.texts.get(name), described=False)
    numeric = [name for name in sheet.frame if sheet.frame[name].dtype.kind in "iufb"]
    others = [str(name) for name in numeric if name not in taken]
    described = wanted or [name for name in others if names.meaning(name) is None]
    by_subject = sheet.frame.groupby(sheet.frame[sheet.named("id")]) if sheet.has("id") else None
    changing = [
        name
        for name in ([] if wanted else described)
        if by_subject is not None and (by_subject[name].max() > by_subject[name].min()).any()
    ]
    over_time = {**dict.fromkeys(changing, "record"), **how.over_time}
    optional = frozenset(() if wanted else described)
    return {name: name for name in described}, replace(how, over_time=over_time, optional=optional)


@dataclass(frozen=True)
class _Rows:
    """What R rows of a file say, each column of it checked; see ``EventTable``. ``seen``: which rows are
    observations; ``dv``, ``censored``, ``above`` and ``regime`` (R,); ``once``: what a table has once."""

    subject: IntArray
    time: FloatArray
    seen: IntArray
    dv: FloatArray
    censored: BoolArray
    above: BoolArray
    compartment: IntArray
    occasion: IntArray
    regime: IntArray
    endpoint: IntArray
    over: FloatArray
    regimen: Regimen
    once: dict[str, Any]


def _read(sheet: Sheet, covariates: Mapping[str, str], how: Format) -> _Rows:
    covariates, how = to_read(sheet, covariates, how)
    used = {sheet.named(role) for role in ROLES} | {sheet.find(name) for name in how.keep}
    used |= set(covariates.values()) | set(map(sheet.find, how.labels))
    names.check_present(sheet, covariates, how.options, how.patients, how.abscissa is None)
    notes = names.unused(sheet, used)
    subject, ids = columns.subjects(sheet, how.group)
    kinds = columns.kinds(sheet)
    if how.blq == "M1":
        sheet, said = columns.without_below(sheet, kinds[1], how.logged)
        rows = _read(sheet, covariates, replace(how, blq="M3"))
        return replace(rows, once=rows.once | {"notes": (*said, *rows.once["notes"])})
    empty = np.bincount(subject[kinds[1]], minlength=len(ids)) == 0
    if empty.any() and not empty.all() and not how.patients:  # as NONMEM does
        rows = _read(sheet.rows(~empty[subject]), covariates, how)
        return replace(rows, once=rows.once | _left_out(ids, empty, rows.once))
    columns.one_kind(sheet, kinds[1], used | kind_columns(sheet, how.endpoints))
    return _checked(sheet, covariates, how, notes, (subject, ids), kinds)


def _checked(
    sheet: Sheet,
    covariates: Mapping[str, str],
    how: Format,
    notes: tuple[str, ...],
    subjects: tuple[IntArray, tuple[str, ...]],
    kinds: tuple[IntArray, BoolArray],
) -> _Rows:
    """The rows of a sheet whose columns and subjects are those to be used."""
    (subject, ids), (evid, is_observation) = subjects, kinds
    time, of_times = columns.time(sheet, subject, evid, how.time_unit)
    amount, duration = columns.doses(sheet, np.isin(evid, (1, 4)), how.bolus_duration)
    is_dose = ~np.isnan(amount)
    dv, censored, above = columns.observations(sheet, is_observation, how.logged)
    timed = how.abscissa is None  # else rows are in the order of what stands in the place of time
    occasion = columns.occasions(sheet, subject, how.by_occasion) if timed else np.ones_like(subject)
    compartment = compact(sheet.whole("cmt") - 1)
    endpoint = compact(endpoints(sheet, is_observation, how.endpoints))
    over = compact(collected(sheet, is_observation, endpoint, how.endpoints))
    repeats = columns.repeats(sheet, is_dose)
    rated = columns.rated(sheet, is_dose)
    records = Records(subject, time, is_dose, evid >= 3, amount, duration, *repeats, rated)
    regimen = _written_out(sheet, records, how)
    if how.patients:
        columns.no_negative(sheet, dv, is_observation & (endpoint == 0))
    else:
        needed = is_dose if how.predose_observations == "error" else None
        needed = needed if how.abscissa is None else is_observation
        columns.coverage(sheet, ids, subject, needed, is_observation)
    if how.predose_observations == "error" and how.abscissa is None:
        columns.no_predose(sheet, ids, subject, time, is_observation, regimen, how.time_unit)
    values, regimes, regime = covariates_of(sheet, covariates, how, subject, regimen.clock, occasion)
    once = {
        "source": sheet.source,
        "ids": ids,
        "covariates": values,
        "regimes": regimes,
        "labels": labels_of(sheet, how, subject, ids),
        "superposed": bool((records.ss == 2).any()),
        "notes": columns.assumed(sheet, of_times) + notes + columns.amounts_agree(sheet, is_dose),
        "time_unit": how.time_unit,
        "kinds": tuple(how.endpoints),
    }
    seen = np.flatnonzero(is_observation)
    of_rows = compartment, occasion, regime, endpoint, over
    return _Rows(subject, time, seen, dv, censored, above, *of_rows, regimen, once)


def _written(rows: _Rows) -> EventTable:
    """The table of all that rows stand for."""
    regimen, seen, time = rows.regimen, rows.seen, rows.time
    doses, joined = regimen.doses, _in_order(regimen, rows.subject, seen)
    row, clock = joined(doses.record, seen), joined(doses.clock, regimen.clock[seen])
    resets = regimen.reset_record
    return EventTable(
        **rows.once,
        subject=rows.subject[row],
        time=clock - (regimen.clock - time)[row] if len(resets) else clock,
        clock=clock,
        is_dose=joined(True, False),
        **{name: joined(getattr(doses, name), np.nan) for name in ("amount", "duration", "interval")},
        added=compact(joined(doses.added, False)),
        rated=compact(joined(doses.rated, 0)),
        dv=joined(np.nan, rows.dv[seen]),
        censored=compact(joined(False, rows.censored[seen])),
        above=compact(joined(False, rows.above[seen])),
        compartment=compact(rows.compartment[row]),
        segment=compact(regimen.segment[row]),
        occasion=compact(rows.occasion[row]),
        endpoint=compact(rows.endpoint[row]),
        over=compact(joined(0.0, rows.over[seen])),
        regime=compact(joined(np.where(doses.added, -1, rows.regime[doses.record]), rows.regime[seen])),
        reset_subject=regimen.reset_subject,
        reset_clock=regimen.reset_clock,
        reset_time=time[resets],
        reset_shift=regimen.clock[resets] - time[resets],
    )


def _left_out(ids: tuple[str, ...], empty: BoolArray, once: Mapping[str, Any]) -> dict[str, Any]:
    """What the table of the others says of who is ``empty`` (N,)."""
    left_out = tuple(ids[number] for number in np.flatnonzero(empty))
    beside = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
    line = f"{once['source']}: without an observation, and left out: subject {left_out[0]!r}{beside}"
    return {"left_out": left_out, "notes": (line, *once["notes"])}


def _written_out(sheet: Sheet, records: Records, how: Format) -> Regimen:
    until, most = (how.until, MOST_PREDICTED) if how.patients else (-np.inf, MOST)
    try:
        return write_out(records, until, most)
    except TooManyError as error:
        last = "time that is asked for" if how.patients else "record of the subject"
        what = f"the row stands for more than {most} doses until the last {last}, the most that there can be"
        raise sheet.refuse(error.record, sheet.named("addl"), what) from error


def _in_order(regimen: Regimen, subject: IntArray, seen: IntArray) -> Callable[[Any, Any], Any]:
    """What joins a column of the event table, in its order, from a value for each dose given and one for each
    observation, the rows ``seen`` of the file; one value stands for all of them."""
    doses = regimen.doses
    row = np.r_[doses.record, seen]
    if doses.added.any():
        added = np.r_[doses.added, np.zeros(len(seen), dtype=bool)]
        order = np.lexsort((added, row, np.r_[doses.clock, regimen.clock[seen]], subject[row]))
    else:
        order = np.argsort(row, kind="stable")  # rows are in the order of the clock

    def joined(of_doses: Any, of_observations: Any) -> Any:
        given = np.broadcast_to(of_doses, len(doses.record))
        return np.concatenate([given, np.broadcast_to(of_observations, len(seen))])[order]

    return joined
