"""The dose that meets a target: of each interval between doses the smallest number of vials (of upper limits
alone, the largest) that does so with a given probability, over the draws of a patient's posterior under all
fits. For research use only, not for treatment decisions.

What counts is the true level, without residual error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcm_cli.checks import fraction, number, one_of, whole
from medcm_cli.data import EventTable
from medcm_cli.data.edit import LOOKS, part
from medcm_cli.data.sheet import FloatArray
from medcm_cli.errors import InputError
from medcm_cli.patients.intervals import POINTS, Interval, interval, repeated
from medcm_cli.patients.plans import Plan, with_plan
from medcm_cli.patients.plausibility import odd_fits, outside, surprises, unit_in_file
from medcm_cli.patients.prediction import (
    DISCLAIMER,
    FEW,
    contents,
    draws_of,
    individual_parameters,
    middle,
    pooled_quantiles,
)
from medcm_cli.patients.study import Patients, Study, studied
from medcm_cli.patients.targets import Target, read_target, units_of
from medcm_cli.posteriors.individual import Posterior

AFTER = ("steady", "given")
WEEK = 168.0  # h
_SHOWN = 5  # candidates around the answer
_RISING, _UNSETTLED = 0.2, 0.05  # of what nothing eliminated would be; of draws
_SETTLED = 5  # doses; a study of fewer says nothing about repeated ones
_ELEMENTS = 4_000_000  # levels in memory at once
_BOUNDS = {"lower_90": 0, "median": 2, "upper_90": 4}  # of prediction.PROBABILITIES


@dataclass(frozen=True, repr=False)
class Dosing:
    """What is found, as tables with a row for each

    - ``doses``: patient and interval ``every`` (h): ``feasible``; ``dose``, the smallest that meets all
      targets, NaN where none does, and its ``probability``; ``per_kg`` where weight is known; ``weekly``
      consumption; ``least_weekly``, whether it is the patient's least, at the longest interval of equal ones;
      ``best_dose`` and ``best_probability``, the highest that was reached; ``reason`` where there is no dose;
    - ``candidates``: patient, interval and dose, around the answer or else the best: ``chosen``,
      ``probability``, ``per_kg``, ``weekly``, and of ``trough``, ``peak``, ``auc`` and ``above_X`` (hours
      above X) the ``_typical``, ``_lower_90``, ``_median`` and ``_upper_90``;
    - ``warnings``: patient (empty: all), kind and message.

    Levels are in ``unit``, doses in ``dose_unit``. ``regimen`` says what is repeated and which interval
    counts, ``label`` names the study, ``disclaimer`` what doses are for.
    """

    label: str
    unit: str
    dose_unit: str
    targets: tuple[Target, ...]
    probability: float
    regimen: str
    doses: pd.DataFrame
    candidates: pd.DataFrame
    warnings: pd.DataFrame
    disclaimer: str = DISCLAIMER

    def __repr__(self) -> str:
        return contents(self)


def dose(
    study: Study | Path | str,
    patients: Patients | EventTable,
    target: str | Sequence[str],
    probability: float = 0.8,
    every: Sequence[float] = (24.0, 36.0, 48.0, 72.0),
    vial: float = 250.0,
    most: int = 40,
    after: str = "steady",
    horizon: float | None = None,
    method: str = "importance",
    draws: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Dosing:
    """For each patient and interval the least dose, in whole vials, that meets the targets; where all of them
    are upper limits, the highest.

    :param study: from ``load_study``, or its folder.
    :param target: one or more (``targets.read_target``), to be met together, each of an interval.
    :param every: intervals, h. :param vial: amount in one. :param most: vials of a dose to try.
    :param after: ``steady``, the same dose endlessly at the interval, or ``given``: an interval after the
        last dose of the patient's file, or at its last level where that is later.
    :param horizon: h from the first of these doses that they are repeated for; the last interval counts. By
        default the first one does.
    :param method: see ``individual.posterior``. :param draws: see ``prediction.predict``.
    :param progress: told how many patients, of all intervals, are done.
    :raises InputError: a fault in the file or an option.
    """
    study = studied(study)
    units = units_of(study.unit, unit_in_file(study.dataset), study.scale)
    targets = tuple(read_target(text, units) for text in ([target] if isinstance(target, str) else target))
    _check(targets, probability, every, vial, most, after, horizon)
    events = patients if isinstance(patients, EventTable) else study.read(patients)
    draws = draws_of(draws, len(events.ids))
    each, fits = -(-draws // len(study.fits.records)), len(study.fits.records)
    regimens = [repeated(study, events, after, hours, horizon) for hours in sorted(set(every))]
    weights = _weights(study, regimens[0].table)
    rows = max(int(np.bincount(regimen.table.subject).max()) for regimen in regimens)
    chunk = max(1, _ELEMENTS // ((POINTS + LOOKS * rows) * each * fits * _SHOWN))
    frames: dict[str, list[pd.DataFrame]] = {"doses": [], "candidates": [], "warnings": []}
    for first in range(0, len(events.ids), chunk):
        numbers = np.arange(first, min(first + chunk, len(events.ids)))
        some = part(events, numbers)
        found = study.posterior(some, method, each * fits)
        frames["warnings"].append(_surprises(study, some, found))
        for regimen in regimens:
            levels = interval(study, regimen.part(numbers), found.draws)
            weight = None if weights is None else weights[numbers]
            answer = _searched(levels, some.ids, weight, targets, probability, vial, most)
            for name, frame in answer.items():
                frames[name].append(frame)
            before = study.fits.model.pk.doses_to_steady_state
            if after == "steady" and before is not None:
                frames["warnings"].append(_unsettled(levels, answer["doses"], before))
        if progress:
            progress(int(numbers[-1]) + 1)
    place = {name: number for number, name in enumerate(events.ids)}
    doses, candidates = (
        pd.concat(frames[name], ignore_index=True)
        .sort_values("patient", key=lambda column: column.map(place), kind="stable")
        .reset_index(drop=True)
        for name in ("doses", "candidates")
    )
    can = doses[doses["feasible"]].round({"weekly": 6})
    least = can.sort_values(["weekly", "every"], ascending=[True, False]).drop_duplicates("patient")
    doses["least_weekly"] = doses.index.isin(least.index) & any(t.least for t in targets)
    return Dosing(
        label=study.label,
        unit=study.unit,
        dose_unit=study.dose_unit,
        targets=targets,
        probability=probability,
        regimen=_words(study, after, horizon),
        doses=doses,
        candidates=candidates,
        warnings=_outside(study, events, doses, after, frames["warnings"]),
    )


def _check(
    targets: Sequence[Target],
    probability: float,
    every: Sequence[float],
    vial: float,
    most: int,
    after: str,
    horizon: float | None,
) -> None:
    if not targets:
        raise InputError("target: expected at least one")
    fraction("probability", probability)
    if not every or not all(1 <= hours <= 10_000 for hours in every):
        raise InputError("every: expected hours between doses, from 1, as in 24,48")
    number("vial", vial, above=0)
    whole("most", most, 1, 10_000, limit="vials")
    one_of("after", after, AFTER)
    if horizon is not None and after == "steady":
        raise InputError("horizon belongs to doses after those given; at steady state there is none")
    if horizon is not None and not 0 < horizon <= 100_000:
        raise InputError(f"horizon is {horizon:g}; expected hours above 0")


def _words(study: Study, after: str, horizon: float | None) -> str:
    if after == "steady":
        before = study.fits.model.pk.doses_to_steady_state
        of = "" if before is None else f", what {before} of them lead to"
        return f"steady state of the same dose at the interval{of}"
    span = "the first interval counts" if horizon is None else f"repeated for {horizon:g} h, the last counts"
    return f"on top of the doses in the file, an interval after the last (or at the last level): {span}"


# -- search ----------------------------------------------------------------------------------------


@torch.no_grad()
def _searched(
    job: Interval,
    ids: Sequence[str],
    weight: FloatArray | None,
    targets: Sequence[Target],
    probability: float,
    vial: float,
    most: int,
) -> dict[str, pd.DataFrame]:
    """``doses`` and ``candidates`` of some patients at one interval, patients innermost."""
    n = len(ids)
    vials = torch.arange(1, most + 1)
    chance = torch.cat([_chance(job, targets, d) for d in _blocks(job, vial * vials[:, None].expand(-1, n))])
    met = chance >= probability
    feasible = met.any(0)
    # Without an upper limit more is never worse; with nothing else, the highest dose is the answer.
    best = chance.argmax(0) if any(not t.least for t in targets) else torch.full((n,), most - 1)
    answer = met.int().argmax(0) if any(t.least for t in targets) else most - 1 - met.flip(0).int().argmax(0)
    centre = torch.where(feasible, answer, best)
    width = min(_SHOWN, most)
    first = (centre - width // 2).clamp(0, most - width)
    number = first + torch.arange(width)[:, None]  # (C, N), from 0

    def at(index: Tensor) -> tuple[FloatArray, FloatArray]:
        return (vial * vials[index]).double().numpy(), chance.gather(0, index.view(-1, n)).numpy()

    amount, probabilities = at(number)
    per_kg = np.full(n, np.nan) if weight is None else 1 / weight
    candidates = pd.DataFrame(
        {
            "patient": np.tile(np.asarray(ids), width),
            "every": job.every,
            "dose": amount.ravel(),
            "chosen": ((number == centre) & feasible).numpy().ravel(),
            "probability": probabilities.ravel(),
            "per_kg": (amount * per_kg).ravel(),
            "weekly": amount.ravel() * WEEK / job.every,
            **_measures(job, targets, torch.from_numpy(amount)),
        }
    )
    can, (chosen, of_chosen), (top, of_top) = feasible.numpy(), at(centre), at(best)
    dose_of = np.where(can, chosen, np.nan)
    doses = pd.DataFrame(
        {
            "patient": ids,
            "every": job.every,
            "feasible": can,
            "dose": dose_of,
            "probability": np.where(can, of_chosen[0], np.nan),
            "per_kg": dose_of * per_kg,
            "weekly": dose_of * WEEK / job.every,
            "best_dose": top,
            "best_probability": of_top[0],
            "reason": np.where(can, "", _reason(targets, job.every, top >= vial * most)),
        }
    )
    return {"doses": doses, "candidates": candidates}


def _weights(study: Study, table: EventTable) -> FloatArray | None:
    """kg of each patient, where it is a covariate that does not change."""
    known = study.dataset["covariates"].get("weight", {}).get("unit") == "kg"
    return table.covariates.get("weight") if known else None


def _blocks(job: Interval, doses: Tensor) -> list[Tensor]:
    """Doses (C, N) in as many parts as memory asks for."""
    return list(torch.split(doses.float(), max(1, _ELEMENTS // job.size)))


def _chance(job: Interval, targets: Sequence[Target], doses: Tensor) -> Tensor:
    """The probability of meeting all targets with doses (C, N), the same shape, float64."""
    level = job.individual(doses)  # (T, C, S, N, B)
    flat, met = level.flatten(1, 2), torch.ones(())
    for target in targets:
        met = met * target.met(flat, job.clock, job.every)
    return met.reshape(level.shape[1:]).double().mean((1, 3))


def _measures(job: Interval, targets: Sequence[Target], doses: Tensor) -> dict[str, FloatArray]:
    """Columns of ``candidates``, for doses (C, N)."""
    level, typical = job.individual(doses.float()), job.typical(doses.float())
    thresholds = {t.threshold for t in targets if t.kind == "time_above"}
    thresholds |= {t.limit for t in targets if t.kind == "trough"}
    wanted = {kind: Target("", kind, True, 0.0) for kind in ("trough", "peak", "auc")}
    wanted |= {f"above_{x:g}": Target("", "time_above", True, 0.0, x) for x in sorted(thresholds)}
    columns = {}
    for name, target in wanted.items():
        of_typical = target.measure(typical.flatten(1, 2), job.clock)  # (C, N, B)
        columns[f"{name}_typical"] = middle(of_typical).ravel()
        of_draws = target.measure(level.flatten(1, 2), job.clock).unflatten(0, level.shape[1:3])
        bounds = pooled_quantiles(of_draws).numpy()
        columns |= {f"{name}_{bound}": bounds[i].ravel() for bound, i in _BOUNDS.items()}
    return columns


def _reason(targets: Sequence[Target], every: float, at_the_most: np.ndarray) -> np.ndarray:
    """Why no dose was found, (N,), given whether the best was the highest."""
    pairs = [("trough", "trough"), ("peak", "peak"), ("auc", "auc"), ("trough", "peak")]
    contrary = any(
        (one.kind, other.kind) in pairs and one.least and not other.least and one.limit > other.limit
        for one, other in product(targets, targets)
    )
    long = [t for t in targets if t.kind == "time_above" and t.least and t.bound(every) > every]
    more = "it takes more vials, if it can be met at all"
    if long:
        return np.full(len(at_the_most), f"the interval is shorter than {long[0].text!r} asks for")
    if contrary:
        return np.full(len(at_the_most), "the targets contradict each other")
    if not any(t.least for t in targets):
        return np.full(len(at_the_most), "one vial is too much")
    if all(t.least for t in targets):
        return np.full(len(at_the_most), more)
    return np.where(at_the_most, more, "doses that are high enough are too high in too many draws")


# -- warnings --------------------------------------------------------------------------------------


def _surprises(study: Study, events: EventTable, found: Posterior) -> pd.DataFrame:
    population, unit = study.population(events), unit_in_file(study.dataset)
    return surprises(study.fits.model, study.fits.estimates, population, found, events.ids, unit)


@torch.no_grad()
def _unsettled(job: Interval, doses: pd.DataFrame, doses_before: int) -> pd.DataFrame:
    """Patients whose levels still rise from the beginning to the end of the interval that stands for a steady
    state, which a model that is not linear may not have."""
    amount = doses["dose"].fillna(doses["best_dose"]).to_numpy(dtype=np.float64)
    level = job.individual(torch.tensor(amount, dtype=torch.float32)[None])[:, 0]  # (T, S, N, B)
    # Of n doses of which nothing is eliminated, the last has 1 / n of the level.
    rising = level[-1] - level[0] > _RISING / doses_before * level[-1]
    share = rising.float().mean((0, 2)).numpy()
    rows = [
        (
            doses["patient"].iloc[i],
            "steady",
            f"every {job.every:g} h: with {amount[i]:g} levels still rise in {100 * share[i]:.0f} % of "
            "draws, and are not those of a steady state",
        )
        for i in np.flatnonzero(share > _UNSETTLED)
    ]
    return pd.DataFrame(rows, columns=["patient", "kind", "message"])


def _outside(
    study: Study, events: EventTable, doses: pd.DataFrame, after: str, others: Sequence[pd.DataFrame]
) -> pd.DataFrame:
    """Patients, doses and intervals beyond those trained on, and what else is to be said."""
    first = study.population(part(events, np.arange(min(FEW, len(events.ids)))))
    notes = [odd_fits(individual_parameters(study, first, None)), outside(study.ranges, events, None, 0.0)]
    for hours in doses["every"].unique().tolist():
        group = doses[doses["feasible"] & (doses["every"] == hours)]
        if group.empty:
            continue
        rows = pd.DataFrame({"id": group["patient"], "time": 0.0, "amt": group["dose"]})
        table = with_plan(events, Plan("dose", rows))
        notes.append(outside(study.ranges, table, f"every {hours:g} h", hours))
    most = study.ranges.doses
    if after == "steady" and most is not None and most[1] < _SETTLED:
        words = (
            f"a steady state of repeated doses, after training on at most {most[1]:g} "
            f"{'dose' if most[1] == 1 else 'doses'} of a patient"
        )
        notes.append(pd.DataFrame({"patient": [""], "kind": ["range"], "message": [words]}))
    if study.ranges.note is not None:
        notes.append(pd.DataFrame({"patient": [""], "kind": ["range"], "message": [study.ranges.note]}))
    some = [note for note in (*others, study.notes, *notes) if len(note)]
    empty = pd.DataFrame(columns=["patient", "kind", "message"])
    return pd.concat(some, ignore_index=True) if some else empty
