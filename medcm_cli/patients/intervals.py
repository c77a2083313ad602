"""Levels in the interval between two doses of a regimen, for any dose.

Levels of a linear model are those of what was given before plus the dose times those of a dose of 1, so that
an interval is solved once. Of any other model every dose is solved, as if it were another patient's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcm_cli.data import EventTable
from medcm_cli.data.edit import (
    LAGGED,
    at_steady_state,
    copies,
    dose_corners,
    moved,
    observed_at,
    on_clock,
    part,
    with_amounts,
)
from medcm_cli.data.sheet import BoolArray
from medcm_cli.patients.plans import Plan, with_plan
from medcm_cli.patients.study import Study

POINTS = 41  # times of an interval, closest after the dose
_STEADY = 3  # doses written out at steady state, the first of which stands for an endless series

Levels = Callable[[Tensor], Tensor]
"""Doses (C, N) -> levels (T, C, S, N, B) in the unit that the study reports."""


@dataclass(frozen=True)
class Regimen:
    """The same dose again and again at an interval. ``table``: the patients with doses of 1; ``new``: which
    of its rows they are, of those of the patients' file too; ``start`` of the interval that counts, in its
    time and the same for all; ``every``; ``steady``: endlessly, after nothing else."""

    table: EventTable
    new: BoolArray
    start: float
    every: float
    steady: bool

    def part(self, numbers: np.ndarray) -> "Regimen":
        """That of some patients."""
        rows = np.isin(self.table.subject, numbers)
        return replace(self, table=part(self.table, numbers), new=self.new[rows])


@dataclass(frozen=True)
class Interval:
    """The interval that counts, of N patients. ``clock`` (T, N): from the dose to the next; ``individual``
    and ``typical`` levels, of which a dose has ``size``."""

    every: float
    clock: Tensor
    individual: Levels
    typical: Levels
    size: int


def repeated(study: Study, events: EventTable, after: str, every: float, horizon: float | None) -> Regimen:
    """The patients with a dose at an interval, see ``dosing.dose`` for ``after`` and ``horizon``."""
    begin, number = 0.0, _STEADY
    if after == "given":
        last = np.zeros(len(events.ids))
        np.maximum.at(last, events.subject, events.clock)
        np.maximum.at(last, events.subject[events.is_dose], events.clock[events.is_dose] + every)
        np.maximum.at(last, events.reset_subject, events.reset_time + events.reset_shift)
        begin, number = float(last.max()), 1 if horizon is None else max(1, int(np.ceil(horizon / every)))
        events = on_clock(moved(events, begin - last))
    rows = pd.DataFrame({"time": begin + every * np.arange(number), "amt": 1.0})
    table = with_plan(events, Plan("dose", rows, after == "given", study.dataset["bolus_duration"]))
    new = table.is_dose & (table.clock > begin - 1e-6)
    if after == "steady":
        table = at_steady_state(table, new & (table.clock < 1e-6), every)
    return Regimen(table, new, begin + every * (number - 1), every, after == "steady")


def interval(study: Study, regimen: Regimen, eta: Sequence[Tensor]) -> Interval:
    """Levels between two doses of a regimen.

    :param eta: K of (S, N, B), random effects of the patients.
    """
    table, new, n = regimen.table, regimen.new, len(regimen.table.ids)
    times = regimen.start + regimen.every * np.linspace(0.0, 1.0, POINTS) ** 2
    # Which doses are new is told by a negative amount in what observed_at arranges.
    signed = with_amounts(table, new, -1.0)
    corners = study.corners(table)
    # The times are close after the dose already, but not after a lag.
    after = LAGGED if (corners != dose_corners(table)).any() else ()
    observed, _ = observed_at(signed, times, corners, after)
    new = observed.is_dose & (observed.amount < 0)
    observed = with_amounts(observed, new, 1.0)
    clock = torch.from_numpy(observed.clock[~observed.is_dose].reshape(n, -1).T - regimen.start).float()
    how = _scaled if study.fits.model.pk.scales_with_dose else _solved
    return Interval(
        regimen.every,
        clock,
        how(study, observed, new, regimen.steady, eta),
        how(study, observed, new, regimen.steady, None),
        clock.numel() * eta[0].shape[0] * len(study.fits.records),
    )


def _scaled(
    study: Study, observed: EventTable, new: BoolArray, steady: bool, eta: Sequence[Tensor] | None
) -> Levels:
    alone = with_amounts(observed, observed.is_dose & ~new, 0.0)
    unit = study.levels(alone, eta)[:, None]
    if steady:
        return lambda doses: doses[:, None, :, None] * unit
    before = study.levels(with_amounts(observed, new, 0.0), eta)[:, None]
    return lambda doses: before + doses[:, None, :, None] * unit


def _solved(
    study: Study, observed: EventTable, new: BoolArray, steady: bool, eta: Sequence[Tensor] | None
) -> Levels:
    del steady

    def levels(doses: Tensor) -> Tensor:
        number = len(doses)
        table = copies(observed, number)
        amount = doses.double().flatten().numpy()[table.subject]
        table = with_amounts(table, np.tile(new, number), amount)
        again = None if eta is None else [values.repeat(1, number, 1) for values in eta]
        level = study.levels(table, again)  # (T, S, C N, B)
        return level.reshape(*level.shape[:2], number, -1, level.shape[3]).movedim(2, 1)

    return levels
