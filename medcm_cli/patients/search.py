"""The search for a dose at one interval: the least that meets the targets, or the highest where all of them
are upper limits, and the doses beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcm_cli.checks import fraction, number, one_of, whole
from medcm_cli.data.sheet import FloatArray
from medcm_cli.errors import InputError
from medcm_cli.patients.intervals import Interval
from medcm_cli.patients.measures import middle, pooled_quantiles
from medcm_cli.patients.targets import Target

AFTER = ("steady", "given")
WEEK = 168.0  # h
SHOWN = 5  # candidates around the answer
ELEMENTS = 4_000_000  # levels in memory at once
LARGEST = 1e9  # amount in a vial, in any unit
MOST_VIALS = 10_000  # of a dose
EVERY = 1.0, 10_000.0  # h, the shortest and the longest interval
HORIZON = 100_000.0  # h
_BOUNDS = {"lower_90": 0, "median": 2, "upper_90": 4}  # of measures.PROBABILITIES


@dataclass(frozen=True)
class Search:
    """What is searched for, and among which doses: see ``dosing.dose``.

    :raises InputError: it makes no sense.
    """

    targets: tuple[Target, ...]
    probability: float
    every: tuple[float, ...]
    vial: float
    most: int
    after: str
    horizon: float | None
    hours: float = 1.0  # that a unit of time is

    def __post_init__(self) -> None:
        if not self.targets:
            raise InputError("target: expected at least one")
        fraction("probability", self.probability)
        least, most = (hours / self.hours for hours in EVERY)
        if not self.every or not all(least <= every <= most for every in self.every):
            raise InputError(
                f"every: expected times between doses from {least:g} to {most:g}, which is {EVERY[0]:g} to "
                f"{EVERY[1]:g} h"
            )
        number("vial", self.vial, above=0, most=LARGEST)
        whole("most", self.most, 1, MOST_VIALS, limit="vials")
        one_of("after", self.after, AFTER)
        if self.horizon is not None and self.after == "steady":
            raise InputError("horizon belongs to doses after those given; at steady state there is none")
        longest = HORIZON / self.hours
        if self.horizon is not None and not 0 < self.horizon <= longest:
            raise InputError(f"horizon is {self.horizon:g}; expected a time above 0, to {longest:g}")

    @property
    def has_lower(self) -> bool:
        """Whether a target is a lower limit, which a higher dose meets sooner."""
        return any(target.least for target in self.targets)

    @property
    def has_upper(self) -> bool:
        """Whether a target is an upper limit."""
        return not all(target.least for target in self.targets)


@torch.no_grad()
def answers(
    job: Interval, ids: Sequence[str], weight: FloatArray | None, wanted: Search
) -> dict[str, pd.DataFrame]:
    """``Dosing.doses`` and ``Dosing.candidates`` of N patients at one interval, patients innermost.

    :param weight: (N,) kg, None where it is not known.
    """
    vials = torch.arange(1, wanted.most + 1)
    every = _blocks(job, wanted.vial * vials[:, None].expand(-1, len(ids)))
    chance = torch.cat([_chance(job, wanted.targets, block) for block in every])
    met = chance >= wanted.probability
    feasible = met.any(0)
    # Without an upper limit more is never worse; with nothing else, the highest dose is the answer.
    best = chance.argmax(0) if wanted.has_upper else torch.full((len(ids),), wanted.most - 1)
    last = wanted.most - 1 - met.flip(0).int().argmax(0)
    answer = met.int().argmax(0) if wanted.has_lower else last
    centre = torch.where(feasible, answer, best)
    per_kg = np.full(len(ids), np.nan) if weight is None else 1 / weight
    return {
        "doses": _answer_table(job, ids, wanted, chance, feasible, centre, best, per_kg),
        "candidates": _candidate_table(job, ids, wanted, chance, feasible, centre, per_kg),
    }


def _entries(wanted: Search, chance: Tensor, index: Tensor) -> tuple[FloatArray, FloatArray]:
    """Doses and their probabilities, of ``chance`` (D, N), by their numbers (C, N) from 0."""
    doses = wanted.vial * torch.arange(1, wanted.most + 1)
    return doses[index].double().numpy(), chance.gather(0, index).numpy()


def _answer_table(
    job: Interval,
    ids: Sequence[str],
    wanted: Search,
    chance: Tensor,
    feasible: Tensor,
    centre: Tensor,
    best: Tensor,
    per_kg: FloatArray,
) -> pd.DataFrame:
    can = feasible.numpy()
    (dose, top), (probability, of_top) = _entries(wanted, chance, torch.stack([centre, best]))
    dose = np.where(can, dose, np.nan)
    return pd.DataFrame(
        {
            "patient": ids,
            "every": job.every,
            "feasible": can,
            "dose": dose,
            "probability": np.where(can, probability, np.nan),
            "per_kg": dose * per_kg,
            "weekly": dose * WEEK / (job.every * wanted.hours),
            "best_dose": top,
            "best_probability": of_top,
            "reason": np.where(can, "", _reason(wanted.targets, job.every, top >= wanted.vial * wanted.most)),
        }
    )


def _candidate_table(
    job: Interval,
    ids: Sequence[str],
    wanted: Search,
    chance: Tensor,
    feasible: Tensor,
    centre: Tensor,
    per_kg: FloatArray,
) -> pd.DataFrame:
    width = min(SHOWN, wanted.most)
    first = (centre - width // 2).clamp(0, wanted.most - width)
    number = first + torch.arange(width)[:, None]  # (C, N), from 0
    dose, probability = _entries(wanted, chance, number)
    return pd.DataFrame(
        {
            "patient": np.tile(np.asarray(ids), width),
            "every": job.every,
            "dose": dose.ravel(),
            "chosen": ((number == centre) & feasible).numpy().ravel(),
            "probability": probability.ravel(),
            "per_kg": (dose * per_kg).ravel(),
            "weekly": dose.ravel() * WEEK / (job.every * wanted.hours),
            **_measures(job, wanted.targets, torch.from_numpy(dose)),
        }
    )


def _blocks(job: Interval, doses: Tensor) -> list[Tensor]:
    """Doses (C, N) in as many parts as memory asks for."""
    return list(torch.split(doses.float(), max(1, ELEMENTS // job.size)))


def _chance(job: Interval, targets: Sequence[Target], doses: Tensor) -> Tensor:
    """The probability of meeting all targets with doses (C, N), the same shape, float64."""
    level = job.individual(doses)  # (T, C, S, N, B)
    flat, met = level.flatten(1, 2), level.isfinite().all(0).flatten(0, 1)
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
