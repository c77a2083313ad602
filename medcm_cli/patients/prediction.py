"""Individual predictions from a fitted study, as an ensemble over all its fits: parameters, curves of
concentration, and the time above thresholds. For research use only, not for treatment decisions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medcm_cli.checks import shown
from medcm_cli.data import EventTable
from medcm_cli.data.edit import CLOSE_LOOKS, LOOKS, part
from medcm_cli.data.segments import in_force
from medcm_cli.data.sheet import FloatArray, IntArray
from medcm_cli.errors import InputError
from medcm_cli.patients.curves import dose_table, tables_of
from medcm_cli.patients.notes import joined, note_table
from medcm_cli.patients.parameters import odd_parameters
from medcm_cli.patients.plans import Plan, read_plan, with_plan
from medcm_cli.patients.ranges import outside
from medcm_cli.patients.results import GIVEN, Prediction
from medcm_cli.patients.study import FEW, Patients, Study, draws_of, studied
from medcm_cli.posteriors.individual import proposals
from medcm_cli.runs.description import described
from medcm_cli.study.units import MOST_LEVEL, threshold_of

POINTS = 97, 25  # default times of a few patients, and of a file of more
MOST_TIMES = 10_000
_ELEMENTS = 4_000_000  # levels in memory at once, of a chunk of patients

Regimen = Path | str | pd.DataFrame | Mapping[str, Any]


def predict(  # noqa: PLR0913 (the notebook's interface, as `dose`)
    study: Study | Path | str,
    patients: Patients | EventTable,
    regimen: Regimen | Sequence[Regimen] | None = None,
    times: Sequence[float] | FloatArray | None = None,
    thresholds: Sequence[float | str] | None = None,
    method: str = "importance",
    draws: int | None = None,
    progress: Callable[[int], None] | None = None,
    dialect: Mapping[str, object] | None = None,
) -> Prediction:
    """Predict patients that the study has not seen, given the levels that their file has, if any.

    :param study: from ``load_study``, or its folder.
    :param patients: an event table, .csv or .parquet or a frame, with the columns of the study's data.
    :param regimen: one or more to try (``plans.read_plan``) beside the doses in the file.
    :param times: to predict levels at, in the file's time (see ``data.segments`` for where it begins
        again); by default to a day after the last event, at least three days.
    :param thresholds: levels in the study's unit, or with theirs as in "5 mg/L"; by default those that its
        data set states, if any.
    :param method: of ``individual.METHODS``.
    :param draws: of a patient's posterior, over all fits together; 1000 by default, 200 where there are more
        than 100 patients, of whom there are fewer default times too.
    :param progress: told how many patients are done.
    :param dialect: see ``Study.with_dialect``.
    :raises InputError: a fault in the file, a regimen or an option.
    """
    study = studied(study).with_dialect(dialect or {})
    times = None if times is None else _numbers("times", times)
    levels = list(dict.fromkeys(study.thresholds if thresholds is None else _levels(thresholds, study)))
    until = np.inf if times is None else float(np.max(times, initial=0.0))
    events = patients if isinstance(patients, EventTable) else study.read(patients, until)
    draws = draws_of(draws, len(events.ids))
    plans = [read_plan(one, study.dataset, until) for one in _several_regimens(regimen)]
    _check(plans)
    regimens = regimens_of(study, events, plans)
    tried = [table for table in regimens.values() if table is not events]
    grid = _times(times, study, [events, *tried], POINTS[len(events.ids) > FEW])
    tables = _tables(study, events, regimens, grid, levels, method, draws, progress)
    last = None if times is None else float(grid[-1])
    warnings = joined([tables.pop("warnings"), study.notes, *_warnings(study, events, regimens, plans, last)])
    doses = pd.concat([dose_table(name, table) for name, table in regimens.items()], ignore_index=True)
    rank = described(study.runs[0].record).rank
    collected = {
        kind.name: None if isinstance(kind.over, str) else kind.over
        for kind in events.kinds
        if kind.over is not None
    }
    return Prediction(
        *(study.label, study.units, grid),
        warnings=warnings,
        doses=doses,
        rank=rank,
        collected=collected,
        **tables,
    )


def _numbers(name: str, given: Any) -> FloatArray:
    """:raises InputError: it is anything but a list of numbers."""
    try:
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros(())
    if found.ndim != 1:
        raise InputError(f"{name} is {shown(given)}; expected a list of numbers, as in [1, 5]")
    return found


def _levels(given: Any, study: Study) -> list[float]:
    """Levels of interest in the reported unit. :raises InputError: anything but a list of levels."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise InputError(f"thresholds is {shown(given)}; expected a list of numbers or texts, as in [1, 5]")
    numbers = [level for level in given if isinstance(level, int | float) and not 0 < level <= MOST_LEVEL]
    if numbers:
        raise InputError(f"threshold is {numbers[0]:g}: expected levels above 0, to {MOST_LEVEL:g}")
    return [threshold_of("thresholds", level, study.units) for level in given]


def _several_regimens(regimen: Regimen | Sequence[Regimen] | None) -> Sequence[Regimen]:
    if regimen is None:
        return ()
    return [regimen] if isinstance(regimen, str | Path | pd.DataFrame | Mapping) else list(regimen)


def _check(plans: Sequence[Plan]) -> None:
    names = [GIVEN, *(plan.name for plan in plans)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"regimen {name}: there are two of this name; give each its own")


def regimens_of(study: Study, events: EventTable, plans: Sequence[Plan]) -> dict[str, EventTable]:
    """Name -> the patients with the doses of a regimen: that of their file, where anyone has one, and each
    plan's. :raises InputError: there is none at all, or doses that the model cannot take."""
    tables = {GIVEN: events} if events.is_dose.any() else {}
    for plan in plans:
        tables[plan.name] = with_plan(events, plan)
        study.check(tables[plan.name], f"regimen {plan.name}")
    if not tables:
        raise InputError(f"{events.source}: has no dose; give the doses there or as a regimen")
    return tables


def _times(
    times: Sequence[float] | FloatArray | None, study: Study, tables: Sequence[EventTable], points: int
) -> FloatArray:
    if times is None:
        last = float(max(_last(table).max() for table in tables))
        day = 24.0 / study.units.hours
        even = np.linspace(0.0, day * max(3.0, np.ceil(last / day + 1.0)), points)
        # With doses at few times a curve has its peaks and troughs too.
        some = np.unique(np.concatenate([_corner_times(study, table) for table in tables]))
        some = some[(some > even[0]) & (some < even[-1])]
        return np.union1d(even, some) if len(some) <= points else even
    if len(times) > MOST_TIMES:
        raise InputError(f"times: {len(times)} are more than {MOST_TIMES}")
    grid = np.unique(np.asarray(times, dtype=np.float64))
    if len(grid) < 2 or not np.isfinite(grid).all() or grid[0] < 0:
        raise InputError("times: expected two or more times from 0")
    return grid


def _last(table: EventTable) -> FloatArray:
    """In the file's time, of each patient's last event that a curve shows, (N,)."""
    rows, last = in_force(table), np.zeros(len(table.ids))
    np.maximum.at(last, table.subject[rows], table.time[rows])
    return last


def _corner_times(study: Study, table: EventTable) -> FloatArray:
    """The corners of doses, in the file's time, of those that a curve shows."""
    shift = (table.clock - table.time)[table.is_dose]
    return (study.corners(table) - shift)[:, in_force(table)[table.is_dose]].ravel()


def _per_patient(rows: npt.NDArray[np.bool_], table: EventTable) -> IntArray:
    return np.bincount(table.subject[rows], minlength=len(table.ids))


def _tables(
    study: Study,
    events: EventTable,
    regimens: Mapping[str, EventTable],
    grid: FloatArray,
    thresholds: Sequence[float],
    method: str,
    draws: int,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """The tables of a prediction, of as many patients at once as memory has room for."""
    tables: dict[str, list[pd.DataFrame]] = {}
    each = -(-draws // len(study.fits.records))
    most = max(int(_per_patient(table.is_dose, table).max(initial=0)) for table in regimens.values())
    seen = int(_per_patient(~events.is_dose, events).max(initial=0))
    # Levels at the times, and, in double precision, those that a posterior is weighted by.
    few = len(events.ids) <= FEW
    width = max((len(grid) + (CLOSE_LOOKS if few else LOOKS) * most) * each, 2 * seen * proposals(each))
    chunk = max(1, _ELEMENTS // (width * len(study.fits.records)))
    for start in range(0, len(events.ids), chunk):
        numbers = np.arange(start, min(start + chunk, len(events.ids)))
        some = part(events, numbers)
        others = {name: part(table, numbers) for name, table in regimens.items()}
        posterior = study.posterior(some, method, draws)
        for name, frame in tables_of(study, some, others, posterior, grid, thresholds, few).items():
            tables.setdefault(name, []).append(frame)
        if progress:
            progress(int(numbers[-1]) + 1)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


# -- warnings --------------------------------------------------------------------------------------


def _warnings(
    study: Study,
    events: EventTable,
    regimens: Mapping[str, EventTable],
    plans: Sequence[Plan],
    last: float | None,
) -> list[pd.DataFrame]:
    """Tables of notes on fits, patients and regimens, which are predicted until ``last``, or by default a
    day after all."""
    notes = [odd_parameters(study, events), outside(study.ranges, events, None, 0.0)]
    for name, table in regimens.items():
        # What is shown by default goes a day further than what happened to any of them.
        end = _last(table) if last is None else last
        notes.append(outside(study.ranges, table, name, end))
    read = [("", "regimen", f"{plan.name}: read {'; '.join(plan.assumed)}") for plan in plans if plan.assumed]
    return [*notes, *(_into_the_past(plan, events) for plan in plans), note_table(read)]


def _into_the_past(plan: Plan, events: EventTable) -> pd.DataFrame:
    """Of whom a plan continues with a dose before a level that is in the file and does not know of it."""
    first, rows = float(plan.doses["time"].min()), ~events.is_dose & in_force(events)
    seen = pd.Series(events.time[rows]).groupby(events.subject[rows]).max()
    late = seen[seen > first] if plan.continues else seen[:0]
    words = f"{plan.name}: continues with a dose at {first:g} {events.time_unit}, before a level measured at"
    several = zip(late.index.to_numpy(), late, strict=True)
    return note_table(
        [(events.ids[i], "regimen", f"{words} {last:g} {events.time_unit}") for i, last in several]
    )
