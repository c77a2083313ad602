"""The dose that meets a target: of each interval between doses the smallest number of vials (of upper limits
alone, the largest) that does so with a given probability, over the draws of a patient's posterior under all
fits. For research use only, not for treatment decisions.

What counts is the true level, without residual error.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medcm_cli.data import EventTable
from medcm_cli.data.edit import LOOKS, part
from medcm_cli.data.sheet import FloatArray
from medcm_cli.errors import InputError
from medcm_cli.patients.intervals import POINTS, Interval, interval, repeated
from medcm_cli.patients.notes import joined, note_table
from medcm_cli.patients.parameters import odd_parameters
from medcm_cli.patients.plans import Plan, with_plan
from medcm_cli.patients.plausibility import surprises
from medcm_cli.patients.ranges import outside
from medcm_cli.patients.results import Dosing
from medcm_cli.patients.search import ELEMENTS, SHOWN, Search, answers
from medcm_cli.patients.study import Patients, Study, draws_of, studied
from medcm_cli.patients.targets import read_target
from medcm_cli.runs import Units

_UNSETTLED = 0.05  # of draws
VIAL = 250.0  # amount, where none is given
_EVERY = 24.0, 36.0, 48.0, 72.0  # h, the intervals to try
_SETTLED = 5  # doses; a study of fewer says nothing about repeated ones


def dose(  # noqa: PLR0913 (the notebook's interface: each is an option of `medcm dose`, too)
    study: Study | Path | str,
    patients: Patients | EventTable,
    target: str | Sequence[str],
    probability: float = 0.8,
    every: Sequence[float] | None = None,
    vial: float | None = None,
    most: int = 40,
    after: str = "steady",
    horizon: float | None = None,
    method: str = "importance",
    draws: int | None = None,
    progress: Callable[[int], None] | None = None,
    dialect: Mapping[str, object] | None = None,
) -> Dosing:
    """For each patient and interval the least dose, in whole vials, that meets the targets; where all of them
    are upper limits, the highest.

    :param study: from ``load_study``, or its folder.
    :param target: one or more (``targets.read_target``), to be met together, each of an interval.
    :param every: intervals; 24, 36, 48 and 72 h by default. :param vial: amount in one, 250 where
        that is no more than the largest dose trained on.
    :param most: vials of a dose to try.
    :param after: ``steady``, the same dose endlessly at the interval, or ``given``: an interval after the
        last dose of the patient's file, or at its last level where that is later.
    :param horizon: for how long, from the first of them, these doses are repeated; the last interval counts.
        By default the first one does.
    :param method: see ``individual.posterior``. :param draws: see ``prediction.predict``.
    :param progress: told how many patients, of all intervals, are done.
    :param dialect: see ``Study.with_dialect``.
    :raises InputError: a fault in the file or an option.
    """
    study = studied(study).with_dialect(dialect or {})
    targets = tuple(
        read_target(text, study.units) for text in ([target] if isinstance(target, str) else target)
    )
    every = [hours / study.units.hours for hours in _EVERY] if every is None else every
    vial = vial_of(study, vial)
    wanted = Search(
        targets, probability, tuple(sorted(set(every))), vial, most, after, horizon, study.units.hours
    )
    events = patients if isinstance(patients, EventTable) else study.read(patients, until_of(after))
    return _dosing(study, events, wanted, method, draws_of(draws, len(events.ids)), progress)


def vial_of(study: Study, vial: float | None) -> float:
    """The amount in a vial, ``VIAL`` where none is given.

    :raises InputError: that is more than any dose trained on, so that it is no vial of this drug.
    """
    known = study.ranges.dose
    if vial is None and known is not None and known[1] < VIAL:
        raise InputError(
            f"vial must be given: the {VIAL:g} {study.units.amount} taken without it are more than any dose "
            f"trained on (at most {known[1]:g}); expected the amount by which doses can differ"
        )
    return VIAL if vial is None else vial


def until_of(after: str) -> float:
    """Until when the doses of a patient's file matter: to the last of them where the new ones come after
    those, and else only up to the last level."""
    return np.inf if after == "given" else -np.inf


def _dosing(
    study: Study,
    events: EventTable,
    wanted: Search,
    method: str,
    draws: int,
    progress: Callable[[int], None] | None,
) -> Dosing:
    frames = _tables(study, events, wanted, method, draws, progress)
    place = {name: number for number, name in enumerate(events.ids)}
    doses, candidates = (
        pd.concat(frames[name], ignore_index=True)
        .sort_values("patient", key=lambda column: column.map(place), kind="stable")
        .reset_index(drop=True)
        for name in ("doses", "candidates")
    )
    can = doses[doses["feasible"]].round({"weekly": 6})
    least = can.sort_values(["weekly", "every"], ascending=[True, False]).drop_duplicates("patient")
    doses["least_weekly"] = doses.index.isin(least.index) & wanted.has_lower
    return Dosing(
        label=study.label,
        units=study.units,
        targets=wanted.targets,
        probability=wanted.probability,
        regimen=_words(wanted.after, wanted.horizon, study.units.time),
        doses=doses,
        candidates=candidates,
        warnings=joined([*frames["warnings"], study.notes, *_outside(study, events, doses, wanted.after)]),
    )


def _tables(
    study: Study,
    events: EventTable,
    wanted: Search,
    method: str,
    draws: int,
    progress: Callable[[int], None] | None,
) -> dict[str, list[pd.DataFrame]]:
    """``doses``, ``candidates`` and ``warnings``, of as many patients at once as memory has room for."""
    each, fits = -(-draws // len(study.fits.records)), len(study.fits.records)
    regimens = [repeated(study, events, wanted.after, every, wanted.horizon) for every in wanted.every]
    weights = _weights(study, regimens[0].table)
    rows = max(int(np.bincount(regimen.table.subject).max()) for regimen in regimens)
    chunk = max(1, ELEMENTS // ((POINTS + LOOKS * rows) * each * fits * SHOWN))
    frames: dict[str, list[pd.DataFrame]] = {"doses": [], "candidates": [], "warnings": []}
    for first in range(0, len(events.ids), chunk):
        numbers = np.arange(first, min(first + chunk, len(events.ids)))
        some = part(events, numbers)
        posterior = study.posterior(some, method, each * fits)
        frames["warnings"].append(
            surprises(study.fits, study.population(some), posterior, some.ids, study.units)
        )
        for regimen in regimens:
            levels = interval(study, regimen.part(numbers), posterior.draws)
            weight = None if weights is None else weights[numbers]
            answer = answers(levels, some.ids, weight, wanted)
            for name, frame in answer.items():
                frames[name].append(frame)
            if wanted.after == "steady":
                frames["warnings"].append(_unsettled(levels, answer["doses"], study.units))
        if progress:
            progress(int(numbers[-1]) + 1)
    return frames


def _words(after: str, horizon: float | None, time: str) -> str:
    if after == "steady":
        return "steady state of the same dose at the interval"
    span = (
        "the first interval counts"
        if horizon is None
        else f"repeated for {horizon:g} {time}, the last counts"
    )
    return f"on top of the doses in the file, an interval after the last (or at the last level): {span}"


def _weights(study: Study, table: EventTable) -> FloatArray | None:
    """kg of each patient, where it is a covariate that does not change."""
    known = study.dataset["covariates"].get("weight", {}).get("unit") == "kg"
    return table.covariates.get("weight") if known else None


# -- warnings --------------------------------------------------------------------------------------


@torch.no_grad()
def _unsettled(job: Interval, doses: pd.DataFrame, units: Units) -> pd.DataFrame:
    """Patients without a steady state, which a model that is not linear may not have."""
    amount = doses["dose"].fillna(doses["best_dose"]).to_numpy(dtype=np.float64)
    level = job.individual(torch.tensor(amount, dtype=torch.float32)[None])[:, 0]  # (T, S, N, B)
    share = level.isnan().any(0).float().mean((0, 2)).numpy()
    rows = [
        (
            doses["patient"].iloc[i],
            "steady",
            f"every {job.every:g} {units.time}: with {amount[i]:g} {units.amount} no steady state "
            f"is reached in {100 * share[i]:.0f} % of draws, which meet no target",
        )
        for i in np.flatnonzero(share > _UNSETTLED)
    ]
    return note_table(rows)


def _outside(study: Study, events: EventTable, doses: pd.DataFrame, after: str) -> list[pd.DataFrame]:
    """Tables of notes: patients, doses and intervals beyond those trained on, and what else is to be said."""
    notes = [odd_parameters(study, events), outside(study.ranges, events, None, 0.0)]
    for every in doses["every"].unique().tolist():
        group = doses[doses["feasible"] & (doses["every"] == every)]
        if group.empty:
            continue
        rows = pd.DataFrame({"id": group["patient"], "time": 0.0, "amt": group["dose"]})
        table = with_plan(events, Plan("dose", rows, bolus_duration=study.dataset["bolus_duration"]))
        notes.append(outside(study.ranges, table, f"every {every:g} {study.units.time}", every))
    most = study.ranges.doses
    if after == "steady" and most is not None and most[1] < _SETTLED:
        words = (
            f"a steady state of repeated doses, after training on at most {most[1]:g} "
            f"{'dose' if most[1] == 1 else 'doses'} of a patient"
        )
        notes.append(note_table([("", "range", words)]))
    if study.ranges.note is not None:
        notes.append(note_table([("", "range", study.ranges.note)]))
    return notes
