"""Regimens written out, linear models as dA/dt, and scipy's integrator going from dose to dose: what the
tests of pharmacokinetics are checked against."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.integrate import solve_ivp
from torch import Tensor

from medcm_cli.pk import (
    LinearModel,
    OdeModel,
    PkModel,
    Schedule,
    check_schedule,
    one_compartment,
    solve,
    stepwise,
    three_compartment,
    two_compartment,
    two_compartment_rate,
)
from medcm_cli.pk.schedule import Features
from tests.helpers import amounts_after

TYPICAL = {"CL": 0.4, "V1": 2.0, "Q": 0.15, "V2": 0.75, "Q3": 0.6, "V3": 3.0, "KA": 0.9}
DOSE_TYPICAL = {"LAG": 0.7, "F": 0.6, "D": 3.5, "LAG2": 0.2, "F2": 0.8, "D2": 5.0}
MAKERS = {"one": one_compartment, "two": two_compartment, "three": three_compartment}
NAMED: dict[str, Any] = {"lag": {1: "LAG"}, "bioavailability": {1: "F"}, "durations": {1: "D"}}
TIMES = (0.0, 0.3, 1.0, 2.0, 4.0, 7.0, 12.0, 13.5, 24.0, 25.0, 30.0, 47.0, 60.0)


@dataclass(frozen=True)
class Dose:
    """A dose as a table has it; the compartment from 0, None the model's own choice. ``interval``: of the
    same dose for ever before it."""

    start: float
    amount: float = 1500.0
    duration: float = 0.0
    compartment: int | None = None
    modelled: bool = False
    interval: float = math.inf


@dataclass(frozen=True)
class Regimen:
    doses: Sequence[Dose]
    times: Sequence[float] = TIMES
    resets: Sequence[float] = ()
    unseen: Sequence[tuple[int, int]] = ()  # of a dose and an observation


def column(values: Sequence[float], subjects: int = 1) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].repeat(1, 1, subjects, 1)


def built(regimen: Regimen, change: Sequence[float] | None = None) -> Schedule:
    """The schedule, with None for whatever the regimen does not have."""
    doses, times = regimen.doses, regimen.times
    visible = torch.ones(len(doses), len(times), 1, 1, 1, dtype=torch.float64)
    for e, t in regimen.unseen:
        visible[e, t] = 0
    for e, dose in enumerate(doses):
        for t, time in enumerate(times):
            same = sum(r <= dose.start for r in regimen.resets) == sum(r <= time for r in regimen.resets)
            visible[e, t] *= float(same)
    compartment = [-1 if dose.compartment is None else dose.compartment for dose in doses]
    interval = [dose.interval for dose in doses]
    modelled = [float(dose.modelled) for dose in doses]
    return Schedule.build(
        column(times),
        column([dose.start for dose in doses]),
        column([dose.duration for dose in doses]),
        column([dose.amount for dose in doses]),
        features=Features(
            compartment=column(compartment).long() if max(compartment) >= 0 else None,
            interval=column(interval) if min(interval) < math.inf else None,
            modelled=column(modelled) if max(modelled) else None,
            visible=visible if not bool(visible.all()) else None,
            reset=column(regimen.resets) if regimen.resets else None,
            change=None if change is None else column(change),
        ),
    )


Rhs = Callable[[float, np.ndarray, dict[str, float]], np.ndarray]


def linear_rhs(compartments: int, absorption: bool) -> Rhs:
    """dA/dt written out, depot first where there is one."""

    def rhs(t: float, a: np.ndarray, z: dict[str, float]) -> np.ndarray:
        del t
        into, rest = (z["KA"] * a[0], a[1:]) if absorption else (0.0, a)
        change = np.zeros_like(rest)
        change[0] = into - z["CL"] / z["V1"] * rest[0]
        for place, (q, v) in enumerate((("Q", "V2"), ("Q3", "V3"))[: compartments - 1], 1):
            flow = z[q] / z["V1"] * rest[0] - z[q] / z[v] * rest[place]
            change[0] -= flow
            change[place] += flow
        return np.concatenate([[-into], change]) if absorption else change

    return rhs


class Given(NamedTuple):
    """A dose of a regimen, or one of those that a steady state is written out as."""

    dose: int  # its place in the regimen
    begin: float
    end: float
    amount: float
    into: int


def written_out(
    regimen: Regimen, dosed: int, parameters: Callable[[float], dict[str, float]], series: int
) -> list[Given]:
    given = []
    for number, dose in enumerate(regimen.doses):
        place = dosed if dose.compartment is None else dose.compartment
        z = parameters(dose.start)
        suffix = "" if place == 0 else "2"
        lag, scale = z.get("LAG" + suffix, 0.0), z.get("F" + suffix, 1.0)
        length = z["D" + suffix] if dose.modelled else dose.duration
        repeats = series if dose.interval < math.inf else 1
        for back in range(repeats):
            begin = dose.start + lag - back * (0 if repeats == 1 else dose.interval)
            given.append(Given(number, begin, begin + length, scale * dose.amount, place))
    return given


def inflow(regimen: Regimen, given: Sequence[Given], left: float, right: float, states: int) -> np.ndarray:
    """Of the infusions that run from ``left`` to ``right``. A reset ends an infusion that began before it,
    but for one of a series: that it began before is what a steady state means."""

    def segment(time: float) -> int:
        return sum(reset <= time for reset in regimen.resets)

    total = np.zeros(states)
    for number, begin, end, amount, place in given:
        endless = regimen.doses[number].interval < math.inf
        stands = endless or segment(left) == segment(regimen.doses[number].start)
        if begin <= left and end >= right and end > begin and stands:
            total[place] += amount / (end - begin)
    return total


def jumps(given: Sequence[Given], time: float, states: int, unseen: Sequence[int] = ()) -> np.ndarray:
    """Of the doses that are given at once at a time."""
    change = np.zeros(states)
    for number, begin, end, amount, place in given:
        if begin == end == time and number not in unseen:
            change[place] += amount
    return change


def empties(regimen: Regimen, time: float) -> bool:
    """A reset, but for one that a series begins with, which began long before it in truth."""
    series = any(dose.start == time and dose.interval < math.inf for dose in regimen.doses)
    return time in regimen.resets and not series


def integrated(
    rhs: Rhs,
    states: int,
    observed: int,
    dosed: int,
    regimen: Regimen,
    parameters: Callable[[float], dict[str, float]],
    changes: Sequence[float] = (),
    series: int = 60,
) -> np.ndarray:
    """Levels by scipy, from event to event. ``parameters`` gives those in force at a time; a series of a
    steady state is written out as ``series`` doses. LAG, F and D belong to compartment 1, LAG2, F2 and D2 to
    2."""
    given = written_out(regimen, dosed, parameters, series)
    edges = {0.0, *regimen.times, *regimen.resets, *changes}
    edges |= {dose.begin for dose in given} | {dose.end for dose in given}
    order = sorted(edge for edge in edges if edge < math.inf)
    amounts, levels = np.zeros(states), dict[int, float]()
    for left, right in [(order[0], order[0]), *itertools.pairwise(order)]:
        if left < right:
            rates = inflow(regimen, given, left, right, states)
            amounts = amounts_after(rhs, (left, right), amounts, rates, parameters(right))
        if empties(regimen, right):
            amounts = np.zeros(states)
        for t, time in enumerate(regimen.times):
            if time == right:
                unseen = [dose for dose, observation in regimen.unseen if observation == t]
                central = (amounts + jumps(given, right, states, unseen))[observed]
                levels[t] = central / parameters(right)["V1"] / 1000
        amounts = amounts + jumps(given, right, states)
    return np.array([levels[t] for t in range(len(regimen.times))])


def spread(names: Sequence[str], seed: int, subjects: int) -> dict[str, Tensor]:
    """Parameters (1, N, 1) about the typical ones."""
    g = np.random.default_rng(seed)
    typical = {**TYPICAL, **DOSE_TYPICAL}
    return {
        name: torch.from_numpy(typical[name] * np.exp(g.uniform(-0.5, 0.5, subjects)))[None, :, None]
        for name in names
    }


def close(got: Tensor, want: np.ndarray, tolerance: float = 1e-8) -> None:
    assert np.abs(got.detach().numpy() - want).max() <= tolerance * np.abs(want).max()


def shape_of(pk: LinearModel) -> int:
    return 1 + ("Q" in pk.parameters) + ("Q3" in pk.parameters)


def compare(pk: LinearModel, regimen: Regimen, seed: int = 0, subjects: int = 2) -> None:
    """Closed form and stepwise against scipy."""
    z = spread(pk.parameters, seed, subjects)
    rhs, states = linear_rhs(shape_of(pk), pk.absorption), shape_of(pk) + pk.absorption

    def wanted(n: int) -> np.ndarray:
        of = {name: float(value[0, n, 0]) for name, value in z.items()}
        return integrated(rhs, states, pk.central, 0, regimen, lambda _: of)

    want = np.stack([wanted(n) for n in range(subjects)], -1)
    schedule = built(regimen)
    check_schedule(pk, schedule)
    close(solve(pk, schedule, z)[:, 0, :, 0], want)
    close(stepwise.predict(pk, schedule, z)[:, 0, :, 0], want)


BOLUSES = Regimen([Dose(0.0), Dose(12.0, 800), Dose(24.0, 500), Dose(24.0, 700)], unseen=((1, 6), (3, 8)))
INFUSIONS = Regimen(
    [
        Dose(0.0, 900, 1 / 60),
        Dose(1.0, 1500, 20.0),
        Dose(4.0, 2000, 8.0),
        Dose(4.0, 300, 3.0),
        Dose(30.0, 400, 40),
    ]
)
REPEATS = Regimen([Dose(8.0 * k, 500.0 + k, 0.5) for k in range(8)])
RESETS = Regimen(
    [Dose(0.0, 2000, 30.0), Dose(3.0, 500), Dose(13.0, 800), Dose(28.0, 600, 6)], resets=(12.5, 27.0)
)


STEADY = {
    "bolus": Dose(100.0, 800, interval=8),
    "infusion": Dose(100.0, 800, 2.5, interval=8),
    "overlapping": Dose(100.0, 800, 19.0, interval=8),
    "as long": Dose(100.0, 800, 16.0, interval=8),
}
AFTER = (100.0, 100.5, 104.0, 110.0, 130.0)


# -- derivatives -----------------------------------------------------------------------------------


FULL = Regimen(
    [
        *(Dose(0.0), Dose(4.0, 900, 9.0, 1), Dose(11.0, 700, modelled=True)),
        Dose(60.0, 400, 2.0, interval=8),
    ],
    (1.0, 5.0, 14.0, 61.0, 70.0),
    resets=(60.0,),
)


def full_model(name: str) -> LinearModel:
    return MAKERS[name](absorption=True, **NAMED)


def slopes_by_differences(
    pk: PkModel, schedule: Schedule, z: dict[str, Tensor], names: Sequence[str], h: float = 1e-5
) -> list[Tensor]:
    found = []
    for name in names:
        up, down = (solve(pk, schedule, {**z, name: z[name] * math.exp(s * h)}) for s in (1, -1))
        found.append((up - down) / (2 * h))
    return found


# -- models given as dA/dt -------------------------------------------------------------------------


def oral_rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """Depot, central, peripheral."""
    inner = two_compartment_rate(t, a, p)
    absorbed = p.KA * a.depot
    return {"depot": -absorbed, **inner, "central": inner["central"] + absorbed}


ORAL = OdeModel(
    oral_rate,
    ("CL", "V1", "Q", "V2", "KA"),
    3,
    observed=2,
    lag={1: "LAG"},
    bioavailability={1: "F"},
    durations={1: "D"},
    steady_state_doses=30,
    method="tsit5",
    rtol=1e-9,
    atol=1e-6,
)


# -- many subjects at once -------------------------------------------------------------------------


def random_regimens(dose: float, subjects: int, seed: int, at_once: bool = False) -> Schedule:
    """Three doses each, boluses and infusions, unless all are given ``at_once``, at random times, and four
    observations."""
    g = torch.Generator().manual_seed(seed)

    def uniform(count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, subjects, 1, generator=g, dtype=torch.float64)

    start = uniform(3, 0, 40).sort(0).values
    duration = torch.where(uniform(3, 0, 1) < (1.0 if at_once else 0.5), 0, uniform(3, 0.1, 6))
    return Schedule.build(uniform(4, 0.5, 60).sort(0).values, start, duration, uniform(3, 0.5, 1.5) * dose)


@dataclass(frozen=True)
class Piece:
    """A dose of each subject, (N,): ``compartment`` that it goes into, evenly over ``duration``, 0 at
    once."""

    compartment: int
    start: np.ndarray
    duration: np.ndarray
    amount: np.ndarray


def pieces_of(schedule: Schedule, compartment: int) -> list[Piece]:
    """The doses of a schedule."""
    each = (values[:, 0, :, 0].numpy() for values in (schedule.start, schedule.duration, schedule.amount))
    return [Piece(compartment, *row) for row in zip(*each, strict=True)]


def together(
    right: Callable[[np.ndarray, np.ndarray], np.ndarray],
    start: np.ndarray,
    pieces: Sequence[Piece],
    schedule: Schedule,
    stiff: bool = False,
    atol: float = 1e-11,
) -> np.ndarray:
    """Amounts (T, C, N) at each observation of a schedule by scipy, rtol 1e-10: the p-th interval between
    events of every subject as one system.

    :param right: (t (N,) h, amounts (C, N)) -> dA/dt. :param start: amounts at the first event, (C, N).
    :param pieces: what is given, in place of the schedule's doses.
    """
    times = schedule.time[:, 0, :, 0].numpy()
    begins, ends = [p.start for p in pieces], [p.start + p.duration for p in pieces]
    edges = np.sort(np.concatenate([begins, ends, times]), 0)
    state, found = start.copy(), np.zeros((len(times), *start.shape))
    for left, following in zip(edges, [*edges[1:], edges[-1]], strict=True):
        found[:, :] = np.where((times == left)[:, None], state, found)
        width, middle = following - left, (left + following) / 2
        inflow = np.zeros_like(state)
        for p, end in zip(pieces, ends, strict=True):
            at_once = (p.start == left) & (p.duration == 0) & (following > left)  # both of its ends are edges
            state[p.compartment] += np.where(at_once, p.amount, 0)
            runs = (middle > p.start) & (middle < end)
            inflow[p.compartment] += np.where(runs, p.amount / np.where(p.duration > 0, p.duration, 1), 0)
        if not width.any():
            continue

        def change(s: float, flat: np.ndarray, left=left, width=width, inflow=inflow) -> np.ndarray:  # type: ignore[no-untyped-def]
            return np.ravel(width * (right(left + s * width, flat.reshape(start.shape)) + inflow))

        options: dict[str, Any] = {"method": "DOP853"}
        if stiff:
            options = {"method": "Radau", "jac": functools.partial(_blocks, change, start.shape)}
        state = solve_ivp(change, (0, 1), state.ravel(), rtol=1e-10, atol=atol, **options).y[:, -1]
        state = state.reshape(start.shape)
    return found


def _blocks(
    change: Callable[[float, np.ndarray], np.ndarray], shape: tuple[int, ...], s: float, flat: np.ndarray
) -> sparse.csc_matrix:
    """The derivatives of each subject's states by its own, by differences."""
    states, columns = shape[0], []
    for state in range(states):
        step = 1e-6 * np.maximum(np.abs(flat.reshape(shape)[state]), 1e-6)
        ends = []
        for sign in (1, -1):
            there = flat.reshape(shape).copy()
            there[state] += sign * step
            ends.append(change(s, there.ravel()).reshape(shape))
        columns.append((ends[0] - ends[1]) / (2 * step))
    rows = [[sparse.diags(columns[x][c]) for x in range(states)] for c in range(states)]
    return sparse.csc_matrix(sparse.bmat(rows))
