"""Steady states of any lag time and duration, from the file's rows to the predicted level, against a sum over
thousands of doses written out in numpy."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from medcm_cli.data import Population, read_events
from medcm_cli.pk import LinearModel, check_schedule, solve, stepwise
from tests.data.test_regimens import F64, MAKE, linear_reference
from tests.helpers import schedule_of

DOSES = 2000  # before the record; of the slowest amounts drawn here e^-60 is left
HOURS = (0.0, 0.3, 1.0, 2.7, 9.0, 31.0)  # between the record and its observations


class Drawn(NamedTuple):
    """A steady state: SS 1, or 2 on top of a single dose; ``addl`` more doses, ``ii`` h apart."""

    ss: int
    ii: float
    addl: int
    modelled: bool
    z: dict[str, float]


def drawn(generator: np.random.Generator, on_top: bool) -> Drawn:
    """Lag time and duration up to ten intervals."""
    ii = float(np.round(generator.uniform(3, 24), 2))
    z = {"CL": 0.3, "V1": 2.5, "Q": 0.4, "V2": 1.5, "Q3": 0.2, "V3": 3.0, "KA": 0.8}
    z = {name: value * float(np.exp(generator.uniform(-0.6, 0.6))) for name, value in z.items()}
    z |= {"LAG": float(generator.uniform(0, 10 * ii)), "D": float(generator.uniform(0, 10 * ii))}
    return Drawn(2 if on_top else 1, ii, int(generator.integers(0, 5)), bool(generator.random() < 0.6), z)


START = 50.0  # h, of the record


def rows(number: int, one: Drawn) -> list[str]:
    rate = -2 if one.modelled else 0
    before = [f"{number},0,1,400,0,0,0,0,."] if one.ss == 2 else []
    record = f"{number},{START},1,1000,{rate},{one.addl},{one.ii},{one.ss},."
    return [*before, record, *(f"{number},{START + h},0,.,.,.,.,.,1" for h in HOURS)]


def summed(one: Drawn, compartments: int, absorption: bool) -> np.ndarray:
    """By the eigenvectors of the rate matrix: each dose from its time on, at once or evenly over D."""
    reference = linear_reference(compartments, absorption)
    matrix = np.stack([reference.slope(unit, one.z) for unit in np.eye(reference.size)], 1)
    rates, vectors = np.linalg.eig(matrix)
    weights = vectors[reference.observed] * np.linalg.inv(vectors)[:, 0]  # into the first compartment
    starts = START + one.ii * np.arange(-DOSES, one.addl + 1)
    given = [(starts, 1000.0, one.z["D"] if one.modelled else 0.0)]
    given += [(np.zeros(1), 400.0, 0.0)] if one.ss == 2 else []
    # At its very time an additional dose that is given at once is not seen yet; no time here is one.
    levels = np.zeros(len(HOURS))
    for start, amount, length in given:
        since = (START + np.array(HOURS))[:, None, None] - (start + one.z["LAG"])[:, None]
        if length == 0:
            part = np.where(since >= 0, np.exp(rates * np.maximum(since, 0)), 0)
        else:
            ran = np.clip(since, 0, length)
            part = np.exp(rates * np.maximum(since - length, 0)) * np.expm1(rates * ran) / (rates * length)
        levels += amount * (part * weights).sum((1, 2)).real
    return levels / one.z["V1"] / 1000


@pytest.mark.parametrize("on_top", [False, True], ids=["SS 1", "SS 2"])
@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_steady_states_are_doses_written_out(
    tmp_path: Path, compartments: int, absorption: bool, on_top: bool
) -> None:
    assert worst(tmp_path, compartments, absorption, on_top, seed=1, count=12) < 1e-9


def worst(folder: Path, compartments: int, absorption: bool, on_top: bool, seed: int, count: int) -> float:
    """The largest relative difference, of closed form and stepwise."""
    generator = np.random.default_rng(seed)
    several = [drawn(generator, on_top) for _ in range(count)]
    text = "\n".join(line for number, one in enumerate(several) for line in rows(number, one))
    (folder / "events.csv").write_text(f"id,time,evid,amt,rate,addl,ii,ss,dv\n{text}\n")
    population = Population.from_events(read_events(folder / "events.csv", {}), F64)
    pk: LinearModel = MAKE[compartments](absorption=absorption, lag={1: "LAG"}, durations={1: "D"})
    z = {name: torch.tensor([[[one.z[name]] for one in several]], dtype=F64) for name in pk.parameters}
    check_schedule(pk, population.schedule)
    wanted = np.stack([summed(one, compartments, absorption) for one in several], 1)
    scale = np.abs(wanted).max(0)
    found = (solve(pk, schedule_of(population), z), stepwise.predict(pk, schedule_of(population), z))
    return max(float((np.abs(got[:, 0, :, 0].numpy() - wanted) / scale).max()) for got in found)
