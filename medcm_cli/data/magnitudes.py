"""Levels that cannot be, or hardly can, whatever the model: told when a table is read, since wrong units look
like this."""

from dataclasses import replace

import numpy as np

from medcm_cli.data.events import EventTable
from medcm_cli.data.sheet import BoolArray, FloatArray, opens_of
from medcm_cli.errors import InputError
from medcm_cli.quantities import factor
from medcm_cli.runs import Units

_VOLUMES = (
    0.1,
    1e5,
)  # L; what a body and its tissues seem to hold, of a newborn and of the most lipophilic drug
_DENSEST = 25.0  # kg/L, that no matter is beyond


def with_magnitudes(events: EventTable, units: Units) -> EventTable:
    """The table, with a note where a level is higher than all that was given before it could make it in any
    plausible volume, or where the highest of most subjects is lower.

    :raises InputError: a level that is denser than any matter.
    """
    _check_density(events, units)
    volume, least = _volumes(events, units)
    given = _given_before(events)
    high = volume < _VOLUMES[0]
    if high.any():
        notes = (_said(events, units, given, high, f"is that of less than {_VOLUMES[0]:g} L with"),)
    elif apparent_volume(events, units) > _VOLUMES[1]:
        row = np.isfinite(volume) & (volume == least[events.subject])
        notes = (_said(events, units, given, row, f"is that of more than {_VOLUMES[1]:g} L with"),)
    else:
        return events
    return replace(events, notes=(*events.notes, *notes))


def apparent_volume(events: EventTable, units: Units) -> float:
    """L, in which all that was given by then makes the highest level, by this measure, of the median subject;
    NaN where that is not known."""
    least = _volumes(events, units)[1]
    return float(np.median(least[np.isfinite(least)])) if np.isfinite(least).any() else float("nan")


def _volumes(events: EventTable, units: Units) -> tuple[FloatArray, FloatArray]:
    """L, in which all that was given makes the level of each row, NaN where that is not known, and the least
    of each subject, inf likewise."""
    given, per_litre = _given_before(events), factor(units.level, f"{units.amount}/L") or np.nan
    known = _levels(events) & ~events.censored & (events.dv > 0) & (given > 0) & np.isfinite(given)
    volume, least = np.full(len(given), np.nan), np.full(len(events.ids), np.inf)
    volume[known] = given[known] / (per_litre * events.dv[known])
    np.fmin.at(least, events.subject[known], volume[known])
    return volume, least


def units_assumed(source: str, units: Units) -> str:
    """A line that says in which units a table is taken to be, of which nothing was said."""
    taken = f"TIME is taken as {units.time}, AMT as {units.amount} and DV as {units.level}"
    return f"{source}: {taken}; say others by {_SAID}"


def _check_density(events: EventTable, units: Units) -> None:
    dense = factor(units.level, "kg/L")
    if dense is None:
        return
    solid = _levels(events) & (events.dv * dense > _DENSEST)
    if solid.any():
        row = int(np.argmax(solid))
        raise InputError(
            f"{events.source}: subject {events.ids[events.subject[row]]!r} has a level of "
            f"{events.dv[row]:g} {units.level}, which is denser than any matter; {_MEND}"
        )


def _levels(events: EventTable) -> BoolArray:
    """Observations of levels, the first endpoint."""
    levels: BoolArray = ~events.is_dose & (events.endpoint == 0)
    return levels


def _given_before(events: EventTable) -> FloatArray:
    """All that a row's subject was given until then; infinite after an endless series of doses."""
    amount = np.where(events.is_dose, np.nan_to_num(events.amount), 0.0)
    total = np.cumsum(amount)
    first = opens_of(events.subject)
    given: FloatArray = total - (total - amount)[first][events.subject]
    series = np.full(len(events.ids), np.inf)
    endless = events.is_dose & np.isfinite(events.interval)
    np.minimum.at(series, events.subject[endless], events.clock[endless])
    return np.where(events.clock >= series[events.subject], np.inf, given)


def _said(events: EventTable, units: Units, given: FloatArray, rows: BoolArray, words: str) -> str:
    """A line on the first of some levels, and in how many subjects there are such."""
    row, subjects = int(np.argmax(rows)), len(np.unique(events.subject[rows]))
    level, amount = f"{events.dv[row]:g} {units.level}", f"{given[row]:g} {units.amount}"
    return (
        f"{events.source}: the level {level} of {events.ids[events.subject[row]]!r} at "
        f"{events.time[row]:g} {units.time} {words} the {amount} given by then "
        f"({subjects} of {len(events.ids)} subjects); {_MEND}"
    )


_SAID = (
    "dataset.units={time: ..., amount: ..., level: ...}, or --time-unit, --amount-unit and --level-unit of "
    "`medcm data check`"
)
_MEND = f"check the units of TIME, AMT and DV: {_SAID}"
