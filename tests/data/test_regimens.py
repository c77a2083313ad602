"""Every feature of a regimen, from the file's rows to the predicted level, against the same rows followed
dose by dose with scipy's matrix exponential, which shares no code and no idea with the closed forms."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from medcm_cli.data import EventTable, Format, Population, read_events
from medcm_cli.pk import (
    LinearModel,
    check_schedule,
    one_compartment,
    solve,
    three_compartment,
    two_compartment,
)
from tests.helpers import schedule_of

F64 = torch.float64
TRUE = {"CL": 0.23, "V1": 2.7, "Q": 0.14, "V2": 0.7, "Q3": 0.05, "V3": 1.9, "KA": 0.8}
TRUE |= {"LAG": 1.3, "F": 0.6, "D": 5.0}
MAKE = {1: one_compartment, 2: two_compartment, 3: three_compartment}

# -- the reference ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """A linear model for scipy: ``slope(amounts, z)`` without doses, ``size`` compartments, which one is
    observed."""

    slope: Callable[[np.ndarray, dict[str, float]], np.ndarray]
    size: int
    observed: int
    lag: dict[int, str] = field(default_factory=dict)
    fraction: dict[int, str] = field(default_factory=dict)
    length: dict[int, str] = field(default_factory=dict)
    steps: dict[tuple[Any, ...], np.ndarray] = field(init=False, default_factory=dict)

    def after(self, hours: float, amounts: np.ndarray, inflow: np.ndarray, z: dict[str, float]) -> np.ndarray:
        """Amounts after a time with a constant inflow, which is one more state that stays 1."""
        # Doses of a series are equally far apart, but for the rounding of their times.
        known = (round(hours, 11), tuple(inflow), tuple(z.items()))
        if known not in self.steps:
            rates = np.zeros((self.size + 1, self.size + 1))
            rates[:-1, :-1] = np.stack([self.slope(unit, z) for unit in np.eye(self.size)], 1)
            rates[:-1, -1] = inflow
            self.steps[known] = expm(rates * known[0])
        return np.asarray(self.steps[known] @ np.append(amounts, 1.0))[:-1]


def linear_reference(compartments: int, absorption: bool, **names: dict[int, str]) -> Reference:
    def slope(amounts: np.ndarray, z: dict[str, float]) -> np.ndarray:
        change = np.zeros_like(amounts)
        central = int(absorption)
        if absorption:
            change[0] -= z["KA"] * amounts[0]
            change[1] += z["KA"] * amounts[0]
        change[central] -= z["CL"] / z["V1"] * amounts[central]
        for place, (q, v) in enumerate((("Q", "V2"), ("Q3", "V3"))[: compartments - 1], central + 1):
            flow = z[q] / z["V1"] * amounts[central] - z[q] / z[v] * amounts[place]
            change[central] -= flow
            change[place] += flow
        return change

    return Reference(slope, compartments + absorption, int(absorption), **names)


Row = dict[str, float]  # of an event table


class Given(NamedTuple):
    """A dose that is on its way: h, the compartment from 0, IU, and h (0: at once)."""

    start: float
    into: int
    amount: float
    length: float
    additional: bool


class Course:
    """The amounts in one subject, followed record by record as NONMEM would."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.amounts, self.now = np.zeros(reference.size), 0.0
        self.pending: list[Given] = []

    def due(self, additional: bool) -> None:
        """What is given at once is there; an additional dose comes after an observation at its time."""
        at_once = [d for d in self.pending if d.length == 0 and (additional or not d.additional)]
        for given in [d for d in at_once if d.start <= self.now]:
            self.amounts[given.into] += given.amount
            self.pending.remove(given)

    def advance(self, to: float, z: dict[str, float]) -> None:
        self.due(additional=self.now < to)
        while self.now < to:
            edges = [edge for d in self.pending for edge in (d.start, d.start + d.length)]
            target = min([to, *(edge for edge in edges if self.now < edge)])
            inflow = self.inflow((self.now + target) / 2)
            self.amounts = self.reference.after(target - self.now, self.amounts, inflow, z)
            self.now = target
            self.pending = [d for d in self.pending if d.length == 0 or d.start + d.length > target]
            self.due(additional=self.now < to)

    def inflow(self, time: float) -> np.ndarray:
        """Of the infusions that run at a time, into each compartment, IU/h."""
        inflow = np.zeros(self.reference.size)
        for given in self.pending:
            if given.length > 0 and given.start <= time < given.start + given.length:
                inflow[given.into] += given.amount / given.length
        return inflow

    def give(self, at: float, record: Row, z: dict[str, float], additional: bool = False) -> None:
        into = int(record["cmt"]) - 1 if record["cmt"] else 0
        amount = record["amt"] * z.get(self.reference.fraction.get(into + 1, ""), 1.0)
        length = amount / record["rate"] if record["rate"] > 0 else 0.0
        if record["rate"] == -2:
            length = record["duration"] or z[self.reference.length[into + 1]]
        lag = z.get(self.reference.lag.get(into + 1, ""), 0.0)
        self.pending.append(Given(at + lag, into, amount, length, additional))

    def give_all(self, record: Row, z: dict[str, float], later: list[tuple[float, dict[str, float]]]) -> None:
        """A dose and its additional ones, each of which has the parameters that are in force at its time.

        ``later``: records' times and what they have."""
        self.give(record["time"], record, z)
        for number in range(1, int(record["addl"]) + 1):
            at = record["time"] + number * record["ii"]
            if at <= later[-1][0]:
                self.give(at, record, next(own for time, own in later if time >= at), additional=True)
        self.due(additional=False)

    def empty(self, now: float) -> None:
        self.now, self.pending, self.amounts = now, [], np.zeros(self.reference.size)

    def add_steady_state(self, record: Row, z: dict[str, float]) -> None:
        """What doses for a long time leave, on top of what is there; what still runs stays pending."""
        series, target = Course(self.reference), record["time"]
        series.empty(target - LONG)
        if record["ii"]:
            for place in range(int(LONG // record["ii"]), 0, -1):
                series.advance(target - place * record["ii"], z)
                series.give(series.now, record, z)
        else:
            into = int(record["cmt"] or 1) - 1
            end = target + z.get(self.reference.lag.get(into + 1, ""), 0.0)
            series.pending = [Given(end - LONG, into, LONG * record["rate"], LONG, False)]
        series.advance(target, z)
        self.advance(target, z)
        self.amounts = self.amounts + series.amounts
        self.pending += [given for given in series.pending if given.start + given.length > target]


def integrate(
    reference: Reference, records: list[Row], z_of: Callable[[float], dict[str, float]]
) -> list[float]:
    """Level at each observation of one subject, in order: ``z_of`` gives the parameters from the covariate of
    a record, in force since the one before."""
    course, seen = Course(reference), []
    for number, record in enumerate(records):
        z = z_of(record["wt"])
        is_dose = record["evid"] in (1, 4)
        if begins(record):
            course.empty(record["time"])
        if is_dose and record["ss"]:
            course.add_steady_state(record, z)
        course.advance(record["time"], z)
        if record["evid"] == 0:
            seen.append(float(course.amounts[reference.observed]) / z["V1"] / 1000)
        elif is_dose and (record["ii"] or not record["ss"]):
            here = list(itertools.takewhile(lambda row: not begins(row), records[number + 1 :]))
            later = [(row["time"], z_of(row["wt"])) for row in here]
            course.give_all(record, z, [(record["time"], z), *later])
    return seen


def begins(record: Row) -> bool:
    """Whether amounts are 0, or those of a steady state, from a record on."""
    return record["evid"] in (3, 4) or (record["evid"] == 1 and record["ss"] == 1)


LONG = 2400.0  # h


# -- the regimens ----------------------------------------------------------------------------------

COLUMNS = ("time", "evid", "amt", "rate", "duration", "addl", "ii", "ss", "cmt", "wt")


def dose(time: float, amt: float = 1000, **more: float) -> Row:
    return {"time": time, "evid": 1, "amt": amt, **more}


def seen(*times: float, **more: float) -> list[Row]:
    return [{"time": time, "evid": 0, **more} for time in times]


REGIMENS: dict[str, list[Row]] = {
    "one given at once": [dose(0), *seen(0, 0.5, 4, 24, 60)],
    "observed before and after at one time": [dose(0), *seen(8, 24), dose(24), *seen(24, 30)],
    "infusion": [dose(0, rate=100), *seen(3, 10, 11, 40)],
    "infusion of a given length": [dose(0, rate=-2, duration=4), *seen(3, 4, 11)],
    "infusions that overlap": [dose(0, rate=50), dose(6, rate=80), *seen(7, 12, 19, 21, 50)],
    "loading dose and infusion": [dose(0, 2000), dose(0, 3000, rate=100), *seen(1, 20, 30, 48)],
    "additional doses": [dose(0, addl=3, ii=12), *seen(12, 13, 30, 36.5, 48, 70)],
    "additional infusions": [dose(0, rate=200, addl=2, ii=8), *seen(8, 10, 17, 30)],
    "additional doses and another": [dose(0, addl=5, ii=6), *seen(5), dose(10, 300), *seen(13, 29)],
    "reset": [dose(0, addl=9, ii=12), *seen(14), {"time": 20, "evid": 3}, *seen(21), dose(26), *seen(30)],
    "reset within an infusion": [dose(0, rate=20), *seen(10), *seen(20, evid=3), *seen(25)],
    "reset and dose, time begins again": [
        *(dose(0), *seen(10, 30)),
        *({**dose(0, 600, rate=60), "evid": 4}, *seen(5, 12)),
    ],
    "steady state": [dose(0, ss=1, ii=12), *seen(0.5, 6, 12, 30)],
    "steady state of infusions": [dose(0, rate=250, ss=1, ii=12), *seen(1, 4, 9, 30)],
    "steady state, then more": [dose(0, rate=250, ss=1, ii=24, addl=2), *seen(1, 24, 49, 80)],
    "steady state of infusions that overlap": [dose(0, rate=40, ss=1, ii=10), *seen(1, 9, 26, 60)],
    "steady state after something else": [dose(0, 5000), *seen(3), dose(10, ss=1, ii=8), *seen(11, 17)],
    "steady state on top": [dose(0, 500), *seen(5), dose(9, rate=300, ss=2, ii=12), *seen(10, 20, 40)],
    "constant infusion until now": [dose(0, 0, rate=60, ss=1), *seen(0, 2, 20)],
    "another event": [dose(0), *seen(5), {"time": 8, "evid": 2}, *seen(12)],
}
ORAL: dict[str, list[Row]] = {
    "by mouth and into a vein": [dose(0, cmt=1), *seen(2), dose(10, 400, cmt=2), *seen(10.5, 20)],
    "infusion into the depot": [dose(0, rate=200), *seen(1, 5, 8, 30)],
}
CHANGING: dict[str, list[Row]] = {
    "covariate that changes": [
        *(dose(0, wt=60), *seen(4, wt=60), *seen(7, evid=2, wt=75), *seen(12, wt=90)),
        *(dose(12, 500, rate=100, wt=90), *seen(15, wt=90), *seen(30, wt=65)),
    ],
    "covariate that changes, additional doses": [
        dose(0, addl=3, ii=8, wt=60),
        *seen(20, wt=80),
        *seen(40, wt=50),
    ],
    "covariate that changes, reset and steady state": [
        *(dose(0, wt=60), *seen(9, wt=70)),
        *(dose(20, rate=200, ss=1, ii=12, wt=80), *seen(24, wt=80), *seen(30, wt=50)),
    ],
}


def table_of(folder: Path, regimens: list[list[Row]], over_time: str = "constant") -> EventTable:
    """The regimens as one file, a subject each."""
    lines = [",".join(("id", "dv", *COLUMNS))]
    for number, rows in enumerate(regimens):
        for row in rows:
            cells = (row.get(name, 70 if name == "wt" else ".") for name in COLUMNS)
            lines.append(",".join(map(str, (number, 0.5 if row["evid"] == 0 else ".", *cells))))
    path = folder / "events.csv"
    path.write_text("\n".join(lines) + "\n")
    how = Format(bolus_duration=0, over_time={"wt": over_time})
    return read_events(path, {"wt": "wt"}, how)


def expected(
    reference: Reference, regimens: list[list[Row]], z_of: Callable[[float], dict[str, float]]
) -> list[np.ndarray]:
    full = [[{**dict.fromkeys(COLUMNS, 0.0), "wt": 70.0, **row} for row in rows] for rows in regimens]
    return [np.array(integrate(reference, rows, z_of)) for rows in full]


ON_TOP = "steady state on top"  # which a model given as dA/dt, that may not be linear, cannot have


TINY = 1e-3  # IU/mL, where nothing comes before the reset


def compare(got: Tensor, wanted: list[np.ndarray], names: list[str], within: float = 1e-8) -> None:
    for number, (exact, name) in enumerate(zip(wanted, names, strict=True)):
        own = got[: len(exact), 0, number, 0].detach().numpy()
        error = np.abs(own - exact).max() / (exact.max() or TINY)
        assert error < within, f"{name}: {error}"


def constants(pk: LinearModel) -> dict[str, Tensor]:
    return {name: torch.tensor([TRUE[name]], dtype=F64) for name in pk.parameters}


def changing_values(z: dict[str, Tensor], population: Population) -> dict[str, Tensor]:
    """The same value in every regime, so that the model is advanced step by step."""
    change = schedule_of(population).change
    assert change is not None
    shape = (len(change), 1, 1, 1)
    return {name: value.expand(shape) for name, value in z.items()}


@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_every_regimen_equals_scipy(tmp_path: Path, compartments: int, absorption: bool) -> None:
    """In closed form and step by step, all subjects at once."""
    regimens = REGIMENS | (ORAL if absorption else {})
    wanted = expected(linear_reference(compartments, absorption), list(regimens.values()), lambda _: TRUE)
    pk = MAKE[compartments](absorption=absorption)
    population = Population.from_events(table_of(tmp_path, list(regimens.values())), F64)
    check_schedule(pk, population.schedule)
    closed, stepwise = levels(pk, population, TRUE)
    compare(closed, wanted, list(regimens))
    compare(stepwise, wanted, list(regimens))


@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_lag_time_bioavailability_and_modelled_duration(tmp_path: Path, compartments: int) -> None:
    names: dict[str, Any] = {"lag": {1: "LAG"}, "bioavailability": {1: "F"}, "durations": {1: "D"}}
    regimens = REGIMENS | ORAL
    regimens |= {
        "modelled duration": [dose(0, rate=-2), *seen(1, 3, 5.5, 6.3, 20)],
        "modelled duration, repeated": [dose(0, rate=-2, addl=2, ii=12), *seen(1, 13, 16, 40)],
        "modelled duration at steady state": [dose(0, rate=-2, ss=1, ii=12), *seen(1, 7, 30)],
    }
    reference = linear_reference(compartments, True, lag={1: "LAG"}, fraction={1: "F"}, length={1: "D"})
    wanted = expected(reference, list(regimens.values()), lambda _: TRUE)
    pk = MAKE[compartments](absorption=True, **names)
    population = Population.from_events(table_of(tmp_path, list(regimens.values())), F64)
    check_schedule(pk, population.schedule)
    closed, stepwise = levels(pk, population, TRUE)
    compare(closed, wanted, list(regimens))
    compare(stepwise, wanted, list(regimens))


def of_weight(wt: float) -> dict[str, float]:
    """Clearance and absorption that follow a covariate."""
    return {**TRUE, "CL": TRUE["CL"] * (wt / 70) ** 2, "KA": TRUE["KA"] * wt / 70}


@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_covariates_that_change_equal_scipy(tmp_path: Path, compartments: int, absorption: bool) -> None:
    regimens = CHANGING | {"nothing changes": REGIMENS["additional doses"]}
    wanted = expected(linear_reference(compartments, absorption), list(regimens.values()), of_weight)
    pk = MAKE[compartments](absorption=absorption)
    population = Population.from_events(table_of(tmp_path, list(regimens.values()), "record"), F64)
    weight = population.covariates["wt"]
    z = constants(pk) | {"CL": TRUE["CL"] * (weight / 70) ** 2}
    if absorption:
        z["KA"] = TRUE["KA"] * weight / 70
    compare(solve(pk, population.schedule, z), wanted, list(regimens))


# -- where formulas are delicate -------------------------------------------------------------------


def levels(pk: LinearModel, population: Population, z: dict[str, float]) -> tuple[Tensor, Tensor]:
    """In closed form and step by step."""
    values = {name: torch.tensor([z[name]], dtype=F64) for name in pk.parameters}
    end = torch.full_like(schedule_of(population).time[:1], torch.inf)
    stepwise = replace(population, schedule=replace(schedule_of(population), change=end))
    return (
        solve(pk, population.schedule, values),
        solve(pk, stepwise.schedule, changing_values(values, stepwise)),
    )


def largest(population: Population, values: Tensor) -> float:
    """Among the observations that exist."""
    return float((values * population.observed).abs().max())


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-8, 1e-5, 1e-3, 0.05, 0.3, -0.2])
@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_absorption_as_fast_as_a_disposition_phase(tmp_path: Path, compartments: int, apart: float) -> None:
    """Flip-flop and the point between: KA at or beside each eigenvalue."""
    pk = MAKE[compartments](absorption=True)
    regimens = [rows for name, rows in (REGIMENS | ORAL).items() if name != ON_TOP]
    population = Population.from_events(table_of(tmp_path, regimens), F64)
    fixed = {name: torch.tensor([TRUE[name]], dtype=F64) for name in pk.parameters}
    for rate in pk.response(fixed).rates.flatten().tolist():
        closed, stepwise = levels(pk, population, {**TRUE, "KA": rate * (1 + apart)})
        assert largest(population, closed - stepwise) < 1e-9 * largest(population, closed)


@pytest.mark.parametrize("apart", [0.0, 1e-10, 1e-6, 1e-3, 0.1])
def test_two_peripheral_compartments_that_empty_equally_fast(tmp_path: Path, apart: float) -> None:
    pk = three_compartment()
    regimens = [rows for name, rows in REGIMENS.items() if name != ON_TOP]
    population = Population.from_events(table_of(tmp_path, regimens), F64)
    k21 = TRUE["Q"] / TRUE["V2"]
    closed, stepwise = levels(pk, population, {**TRUE, "V3": TRUE["Q3"] / (k21 * (1 + apart))})
    assert largest(population, closed - stepwise) < 1e-9 * largest(population, closed)


def test_three_compartments_of_widely_different_speed(tmp_path: Path) -> None:
    population = Population.from_events(table_of(tmp_path, [REGIMENS["additional doses"]]), F64)
    generator = np.random.default_rng(0)
    for _ in range(50):
        z = {name: value * float(np.exp(generator.uniform(-2.3, 2.3))) for name, value in TRUE.items()}
        closed, stepwise = levels(three_compartment(), population, z)
        assert largest(population, closed - stepwise) < 1e-8 * largest(population, closed)


def test_float32_keeps_its_digits(tmp_path: Path) -> None:
    for absorption in (False, True):
        for compartments, make in MAKE.items():
            pk = make(absorption=absorption)
            table = table_of(tmp_path, list(REGIMENS.values()))
            exact = solve(pk, Population.from_events(table, F64).schedule, constants(pk))
            single = {name: value.float() for name, value in constants(pk).items()}
            rounded = solve(pk, Population.from_events(table, torch.float32).schedule, single)
            everyone = Population.from_events(table, F64)
            error = largest(everyone, rounded - exact) / largest(everyone, exact)
            assert error < 2e-5, (absorption, compartments)


@pytest.mark.parametrize("changing", [False, True], ids=["constant", "by record"])
def test_float32_keeps_its_digits_late_on_the_clock(tmp_path: Path, changing: bool) -> None:
    """The same regimens after 57 years: float32 itself knows those hours to 0.03."""
    pk = two_compartment(absorption=True, lag={1: "LAG"})
    late = [[{**row, "time": row["time"] + 5e5} for row in rows] for rows in REGIMENS.values()]
    found = []
    for rows, dtype in ((list(REGIMENS.values()), F64), (late, torch.float32)):
        population = Population.from_events(table_of(tmp_path, rows), dtype)
        z = {name: value.to(dtype) for name, value in constants(pk).items()}
        if changing:
            end = torch.full_like(schedule_of(population).time[:1], torch.inf)
            population = replace(population, schedule=replace(schedule_of(population), change=end))
            z = changing_values(z, population)
        found.append(solve(pk, population.schedule, z) * population.observed)
        assert found[-1].dtype == dtype
    assert float((found[1] - found[0]).abs().max()) < 2e-5 * float(found[0].abs().max())
