"""Every regimen feature of every linear model, in closed form and stepwise, and of models given as dA/dt,
against scipy's integrator going from dose to dose."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk import (
    LinearModel,
    OdeModel,
    PkModel,
    Schedule,
    check_schedule,
    michaelis_menten_rate,
    neural_elimination_rate,
    one_compartment,
    sensitivities,
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
    """A dose as a table has it; the compartment from 0, None the model's own choice. ``before``: how many
    more, ``interval`` apart, are written out before it, and as many again for ever before those."""

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


@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "regimen", [BOLUSES, INFUSIONS, REPEATS, RESETS], ids=["bolus", "infusion", "addl", "reset"]
)
def test_regimen(name: str, absorption: bool, regimen: Regimen) -> None:
    compare(MAKERS[name](absorption=absorption), regimen)


@pytest.mark.parametrize("name", MAKERS)
def test_doses_into_depot_and_central(name: str) -> None:
    doses = [Dose(0.0), Dose(2.0, 400, 0.0, 1), Dose(6.0, 900, 9.0, 0), Dose(12.0, 700, 4.0, 1)]
    compare(MAKERS[name](absorption=True), Regimen(doses))


@pytest.mark.parametrize("name", MAKERS)
def test_lag_bioavailability_and_modelled_duration(name: str) -> None:
    doses = [
        *(Dose(0.0), Dose(2.0, 400, 0.0, 1), Dose(6.0, 900, 9.0, 0), Dose(12.0, 700, 4.0, 1)),
        *(Dose(13.0, 1200, 0.0, 0, modelled=True), Dose(24.0, 600, 0.0, 1, modelled=True)),
    ]
    pk = MAKERS[name](
        absorption=True,
        lag={1: "LAG", 2: "LAG2"},
        bioavailability={1: "F", 2: "F2"},
        durations={1: "D", 2: "D2"},
    )
    assert pk.parameters[-6:] == ("LAG", "LAG2", "F", "F2", "D", "D2")
    compare(pk, Regimen(doses, resets=(29.0,)))
    iv = MAKERS[name](lag={1: "LAG"}, bioavailability={1: "F"}, durations={1: "D"})
    compare(iv, Regimen([Dose(0.0), Dose(5.0, 700, 2.0), Dose(12.0, 900, modelled=True)]))


def steady(
    start: float, amount: float, duration: float, interval: float, compartment: int | None = None
) -> list[Dose]:
    """As the reader writes one: the dose, those that may still run, and one for all before them."""
    before = math.floor(duration / interval) + 1
    doses = [Dose(start - k * interval, amount, duration, compartment) for k in range(before + 1)]
    return [*doses, replace(doses[-1], start=start - (before + 1) * interval, interval=interval)]


STEADY = {
    "bolus": steady(100.0, 800, 0, 8),
    "infusion": steady(100.0, 800, 2.5, 8),
    "overlapping": steady(100.0, 800, 19.0, 8),
    "as long": steady(100.0, 800, 16.0, 8),
}
AFTER = (100.0, 100.5, 104.0, 110.0, 130.0)


@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", STEADY)
def test_steady_state_is_a_long_simulation(name: str, absorption: bool, kind: str) -> None:
    doses = STEADY[kind]
    compare(MAKERS[name](absorption=absorption), Regimen(doses, AFTER, resets=(doses[-1].start,)), subjects=1)


def test_steady_state_with_lag_and_bioavailability() -> None:
    pk = two_compartment(absorption=True, lag={1: "LAG"}, bioavailability={1: "F"})
    doses = STEADY["bolus"]
    compare(pk, Regimen([*doses, Dose(108.0)], AFTER, resets=(doses[-1].start,)))


def test_steady_state_on_top_of_what_is_there() -> None:
    """SS 2: superposition, in closed form only; the series cannot be seen before its record."""
    pk = two_compartment(absorption=True)
    z = spread(pk.parameters, 0, 1)
    doses, first = STEADY["infusion"], Dose(90.0, 1000, 20.0)
    times = (95.0, *AFTER)
    both = Regimen([first, *doses], times, unseen=[(1 + e, 0) for e in range(len(doses))])
    alone = Regimen([first], times)
    series = Regimen(doses, times, unseen=[(e, 0) for e in range(len(doses))])
    got = solve(pk, built(both), z)
    torch.testing.assert_close(got, solve(pk, built(alone), z) + solve(pk, built(series), z))
    assert float(solve(pk, built(series), z)[0]) == 0
    check_schedule(pk, built(both))
    for other, changing in ((pk, True), (OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), 2), False)):
        with pytest.raises(InputError, match="SS 2"):
            check_schedule(other, built(both), changing)


@pytest.mark.parametrize("name", MAKERS)
def test_constant_infusion_at_steady_state(name: str) -> None:
    """Of 100 IU/h for 1e5 h: the level is rate / CL, and decays as scipy has it."""
    pk = MAKERS[name]()
    long = 1e5
    z = spread(pk.parameters, 1, 2)
    schedule = built(Regimen([Dose(0.0, 100 * long, long)], (long, long + 5)))
    got = solve(pk, schedule, z)
    close(got[0, 0, :, 0], (100 / z["CL"][0, :, 0] / 1000).numpy())
    close(stepwise.predict(pk, schedule, z)[:, 0, :, 0], got[:, 0, :, 0].numpy())
    same = solve(pk, built(Regimen([Dose(0.0, 100 * 2e3, 2e3)], (2e3, 2e3 + 5))), z)
    close(got[:, 0, :, 0], same[:, 0, :, 0].numpy())


@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("name", MAKERS)
def test_parameters_that_change_in_time(name: str, absorption: bool) -> None:
    pk = MAKERS[name](absorption=absorption, **NAMED)
    change = (5.0, 12.0, math.inf)
    kept = ("F", "V2")
    regimes = [spread(pk.parameters, seed, 2) for seed in range(3)]
    z = {
        n: regimes[0][n] if n in kept else torch.stack([regime[n] for regime in regimes])
        for n in pk.parameters
    }
    doses = [Dose(0.0), Dose(4.0, 900, 9.0), Dose(11.0, 700, modelled=True), Dose(28.0, 600, 6)]
    doses += [Dose(13.0, 500, 1.0, 1)] if absorption else []
    regimen = Regimen(doses, resets=(26.0,))

    def in_force(n: int, time: float) -> dict[str, float]:
        p = sum(end < time for end in change)
        return {name: float(regimes[0 if name in kept else p][name][0, n, 0]) for name in pk.parameters}

    compartments = shape_of(pk)
    got = solve(pk, built(regimen, change), z)
    for n in range(2):
        want = integrated(
            linear_rhs(compartments, absorption),
            compartments + absorption,
            pk.central,
            0,
            regimen,
            functools.partial(in_force, n),
            change,
        )
        close(got[:, 0, n, 0], want)


@pytest.mark.parametrize("name", MAKERS)
def test_what_follows_the_last_observation_does_not_matter(name: str) -> None:
    pk = full_model(name)
    z = spread(pk.parameters, 5, 2)
    seen_first = replace(FULL, times=FULL.times[:3])
    early = replace(seen_first, doses=FULL.doses[:3], resets=())
    for way in (solve, stepwise.predict):
        torch.testing.assert_close(way(pk, built(seen_first), z), way(pk, built(early), z))


# -- coincidences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1], ids=["above", "below"])
@pytest.mark.parametrize("gap", [0.0, 1e-13, 1e-8, 1e-4, 1e-2])
@pytest.mark.parametrize("name", MAKERS)
def test_absorption_as_fast_as_a_phase(name: str, gap: float, sign: int) -> None:
    """KA equal or close to each eigenvalue in turn, from either side (flip-flop), also at steady state, which
    is written out here."""
    pk = MAKERS[name](absorption=True)
    z = spread(pk.parameters, 3, 1)
    doses = [Dose(0.0), Dose(4.0, 900, 9.0)]
    series = [replace(dose, start=dose.start - 108) for dose in STEADY["infusion"]]
    long = [Dose(-8.0 * (k + 1), 800, 2.5) for k in range(80)]
    for rate in pk.response(z).rates[:, 0, 0, 0]:
        at = {**z, "KA": (rate * (1 + sign * gap)).view(1, 1, 1)}
        want = stepwise.predict(pk, built(Regimen([*doses, *long])), at)
        close(solve(pk, built(Regimen([*doses, *series])), at), want.numpy())


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 1e-2])
def test_equal_return_from_both_peripheral_compartments(gap: float) -> None:
    """k21 = k31: one phase has no weight."""
    for absorption in (False, True):
        pk = three_compartment(absorption=absorption)
        z = spread(pk.parameters, 4, 2)
        z["V3"] = z["Q3"] * z["V2"] / z["Q"] * (1 + gap)
        schedule = built(INFUSIONS)
        close(solve(pk, schedule, z)[:, 0, :, 0], stepwise.predict(pk, schedule, z)[:, 0, :, 0].numpy())


def test_eigenvalues_of_three_compartments() -> None:
    """Over two decades of every parameter, against numpy, and weights that are shares."""
    pk = three_compartment()
    g = np.random.default_rng(0)
    z = {
        n: torch.from_numpy(TYPICAL[n] * np.exp(g.uniform(-2.3, 2.3, 200)))[None, :, None]
        for n in pk.parameters
    }
    at = pk.response(z)
    assert float(at.weights.min()) > -1e-12
    torch.testing.assert_close(at.weights.sum(0), torch.ones(1, 200, 1, dtype=torch.float64))
    matrices = pk.rate_matrix(z)[0, :, 0].numpy()
    wanted = -np.sort(np.linalg.eigvals(matrices).real, axis=-1)
    np.testing.assert_allclose(at.rates[:, 0, :, 0].T.numpy(), wanted, rtol=1e-9)


# -- derivatives -----------------------------------------------------------------------------------

FULL = Regimen(
    [Dose(0.0), Dose(4.0, 900, 9.0, 1), Dose(11.0, 700, modelled=True), *steady(60.0, 400, 2.0, 8)],
    (1.0, 5.0, 14.0, 61.0, 70.0),
    resets=(44.0,),
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


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "changing"])
def test_sensitivities(name: str, changing: bool) -> None:
    pk, schedule = full_model(name), built(FULL, (10.0, math.inf))
    z = spread(pk.parameters, 5, 2)
    if changing:
        z["CL"] = torch.stack([z["CL"], 1.5 * z["CL"]])
    prediction, slopes = sensitivities(pk, schedule, z, pk.parameters)
    torch.testing.assert_close(prediction, solve(pk, schedule, z), rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        _, fixed = sensitivities(pk, schedule, z, pk.parameters)
    for slope, other, wanted in zip(
        slopes, fixed, slopes_by_differences(pk, schedule, z, pk.parameters), strict=True
    ):
        close(slope, wanted.numpy(), 1e-7)
        torch.testing.assert_close(slope.detach(), other)


@pytest.mark.parametrize(
    ("name", "coincidence"),
    [("one", "none"), ("one", "ka"), ("two", "none"), ("two", "ka"), ("three", "ka"), ("three", "k21")],
)
def test_first_and_second_derivatives(name: str, coincidence: str) -> None:
    """By autograd.gradgradcheck, also where KA is an eigenvalue and where k21 = k31."""
    pk = full_model(name)
    z = spread(pk.parameters, 6, 1)
    if coincidence == "k21":
        z["V3"] = z["Q3"] * z["V2"] / z["Q"]
    if coincidence == "ka":
        z["KA"] = pk.response(z).rates[-1]
    schedule = built(replace(FULL, times=(5.0, 14.0, 61.0)))
    leaves = [z[n].log().requires_grad_() for n in pk.parameters]

    def predict(*logs: Tensor) -> Tensor:
        return solve(pk, schedule, {n: v.exp() for n, v in zip(pk.parameters, logs, strict=True)})

    assert torch.autograd.gradcheck(predict, leaves, atol=1e-6)
    assert torch.autograd.gradgradcheck(predict, leaves, atol=1e-6)


def test_third_derivatives_of_the_three_compartment_response() -> None:
    """What the gradient of foce needs at most: columns of G and their derivative, by differences of
    gradients."""
    pk = three_compartment(absorption=True)
    z = spread(pk.parameters, 7, 1)
    z["V3"] = z["Q3"] * z["V2"] / z["Q"]
    schedule = built(replace(INFUSIONS, times=(5.0, 14.0)))
    leaves = [z[n].log().requires_grad_() for n in pk.parameters]

    def slopes(*logs: Tensor) -> tuple[Tensor, ...]:
        at = {n: v.exp() for n, v in zip(pk.parameters, logs, strict=True)}
        return tuple(sensitivities(pk, schedule, at, ("Q3",))[1])

    assert torch.autograd.gradcheck(slopes, leaves, atol=1e-6)
    assert torch.autograd.gradgradcheck(slopes, leaves, atol=1e-5)


# -- other dtypes, shapes, paths -------------------------------------------------------------------


def single(schedule: Schedule) -> Schedule:
    tensors = {n: v for n, v in vars(schedule).items() if isinstance(v, Tensor) and v.is_floating_point()}
    return replace(schedule, **{n: v.float() for n, v in tensors.items()})


@pytest.mark.parametrize("name", MAKERS)
def test_float32(name: str) -> None:
    pk, schedule = full_model(name), built(FULL)
    z = spread(pk.parameters, 8, 2)
    exact = solve(pk, schedule, z)
    rounded = {n: v.float() for n, v in z.items()}
    for way in (solve, stepwise.predict):
        got = way(pk, single(schedule), rounded)
        assert got.dtype == torch.float32
        close(got.double(), exact.numpy(), 1e-5)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "changing"])
def test_a_value_per_fit_is_that_of_every_subject_and_sample(name: str, changing: bool) -> None:
    pk, schedule = full_model(name), built(FULL, (10.0, math.inf))
    alone = {n: v[0, 0] for n, v in spread(pk.parameters, 9, 1).items()}  # (B,)
    alone = {n: torch.cat([v, 1.1 * v]) for n, v in alone.items()}
    if changing:
        alone["CL"] = torch.stack([alone["CL"], 2 * alone["CL"]])[:, None, None, :]
    everyone = {n: v.expand(*v.shape[:-3], 3, 4, 2) for n, v in alone.items()}
    everyone |= {n: v for n, v in alone.items() if n in ("V1", "KA")}
    wide = replace(
        schedule,
        **{
            n: v.expand(*v.shape[:-2], 4, 2).contiguous()
            for n, v in vars(schedule).items()
            if isinstance(v, Tensor)
        },
    )
    one, all_ = solve(pk, schedule, alone), solve(pk, wide, everyone)
    assert all_.shape == (5, 3, 4, 2)
    torch.testing.assert_close(one.expand(-1, 3, 4, -1), all_)
    grown = sensitivities(pk, wide, everyone, ("CL", "LAG"))[1][1]
    torch.testing.assert_close(
        sensitivities(pk, schedule, alone, ("CL", "LAG"))[1][1].expand(-1, 3, 4, -1), grown
    )


@pytest.mark.parametrize("name", MAKERS)
def test_many_events_are_the_sum_of_single_doses(name: str) -> None:
    """Where there are many doses and observations the exponentials go from event to event."""
    pk = MAKERS[name]()
    g = np.random.default_rng(2)
    start = np.sort(g.integers(0, 200, 20)).astype(float)  # some at the same time
    lengths = np.where(g.uniform(size=20) < 0.4, 0, g.uniform(0.01, 30, 20))
    doses = [Dose(s, 500 + 10 * k, d) for k, (s, d) in enumerate(zip(start, lengths, strict=True))]
    times = np.sort(np.r_[start[3:9], start[:8] + lengths[:8], g.uniform(0, 260, 16)])
    whole = built(Regimen(doses, times.tolist()))
    assert whole.width is not None
    z = spread(pk.parameters, 1, 3)
    parts = [built(Regimen([dose], times.tolist())) for dose in doses]
    assert all(part.width is None for part in parts)
    torch.testing.assert_close(
        solve(pk, whole, z), sum(solve(pk, part, z) for part in parts), rtol=1e-10, atol=1e-13
    )
    rounded = {n: v.float() for n, v in z.items()}
    close(solve(pk, single(whole), rounded).double(), solve(pk, whole, z).numpy(), 1e-5)


# -- models given as dA/dt -------------------------------------------------------------------------


def oral_rate(t: Tensor, amounts: Tensor, z: Mapping[str, Tensor]) -> Tensor:
    """Depot, central, peripheral."""
    inner = two_compartment_rate(t, amounts[1:], z)
    absorbed = z["KA"] * amounts[0]
    return torch.stack([-absorbed, inner[0] + absorbed, inner[1]])


ORAL = OdeModel(
    oral_rate,
    ("CL", "V1", "Q", "V2", "KA"),
    3,
    observed=2,
    lag={1: "LAG"},
    bioavailability={1: "F"},
    durations={1: "D"},
    steady_state_doses=30,
    method="dopri8",
    rtol=1e-9,
    atol=1e-6,
)


def changing_or_not(changing: bool) -> dict[str, Tensor]:
    z = spread(ORAL.parameters, 5, 2)
    return z | ({"CL": torch.stack([z["CL"], 1.5 * z["CL"]])} if changing else {})


@pytest.mark.parametrize("changing", [False, True], ids=["constant", "changing"])
def test_ode_equals_exact_solution(changing: bool) -> None:
    """Any regimen: lag, bioavailability, modelled durations, a reset and a steady state after it."""
    schedule, z = built(FULL, (10.0, math.inf)), changing_or_not(changing)
    check_schedule(ORAL, schedule)
    with torch.no_grad():
        close(solve(ORAL, schedule, z), solve(full_model("two"), schedule, z).numpy())


@pytest.mark.parametrize("changing", [False, True], ids=["constant", "changing"])
def test_gradients_of_ode_equal_exact_ones(changing: bool) -> None:
    """Directly and by the adjoint equations, also of what moves breakpoints."""
    doses = [dose for dose in FULL.doses if dose.start < 40]
    schedule = built(Regimen(doses, (5.0, 14.0)), (10.0, math.inf))
    z, found = changing_or_not(changing), []
    for pk in (full_model("two"), ORAL, replace(ORAL, adjoint=True)):
        leaves = {n: v.clone().requires_grad_() for n, v in z.items()}
        prediction = solve(pk, schedule, leaves)
        found.append(torch.autograd.grad(prediction.square().sum(), list(leaves.values())))
    for wanted, direct, adjoint in zip(*found, strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(direct, wanted, rtol=0, atol=1e-6 * scale)
        torch.testing.assert_close(adjoint, direct, rtol=0, atol=1e-6 * scale)
    columns = [
        sensitivities(pk, schedule, z, ("CL", "KA"))[1]
        for pk in (replace(ORAL, adjoint=True), full_model("two"))
    ]
    for slope, wanted in zip(*columns, strict=True):
        close(slope, wanted.detach().numpy(), 1e-6)


SATURABLE = OdeModel(
    michaelis_menten_rate,
    ("VM", "KM", "V1"),
    1,
    method="dopri8",
    rtol=1e-10,
    atol=1e-8,
    steady_state_doses=80,
)
NEURAL_NAMES = tuple(f"{kind}{unit}" for kind in ("UP", "DOWN", "SLOPE") for unit in (1, 2, 3))
NEURAL = OdeModel(
    neural_elimination_rate, ("CL", "V1", *NEURAL_NAMES), 1, method="dopri8", rtol=1e-10, atol=1e-8
)


def saturable(t: float, a: np.ndarray, z: dict[str, float]) -> np.ndarray:
    del t
    return -z["VM"] * a / z["V1"] / (z["KM"] + a / z["V1"])


def learned(t: float, a: np.ndarray, z: dict[str, float]) -> np.ndarray:
    del t
    c = a / z["V1"] / 1000
    out = sum((z[f"UP{i}"] - z[f"DOWN{i}"]) * np.tanh(z[f"SLOPE{i}"] * c) for i in (1, 2, 3))
    return np.asarray(-z["CL"] / z["V1"] * np.exp(out) * a)


@pytest.mark.parametrize("kind", ["saturable", "learned"])
@pytest.mark.parametrize(
    "regimen",
    [
        replace(RESETS, doses=[*RESETS.doses, Dose(40.0, 700), Dose(41.0, 500, 0.1)]),
        Regimen(STEADY["bolus"], AFTER, resets=(STEADY["bolus"][-1].start,)),
        Regimen(STEADY["overlapping"], AFTER, resets=(STEADY["overlapping"][-1].start,)),
    ],
    ids=["reset", "steady", "overlapping"],
)
def test_nonlinear_models_equal_scipy(kind: str, regimen: Regimen) -> None:
    pk, rhs = (SATURABLE, saturable) if kind == "saturable" else (NEURAL, learned)
    values = {"VM": 400.0, "KM": 300.0, "V1": 2.0, "CL": 0.4}
    values |= dict(zip(NEURAL_NAMES, (0.5, 0.2, 0.9, 0.1, 0.6, 0.3, 2.0, 0.7, 4.0), strict=True))
    z = {n: torch.tensor([values[n]], dtype=torch.float64) for n in pk.parameters}
    got = solve(pk, built(regimen), z)[:, 0, 0, 0]
    close(got, integrated(rhs, 1, 0, 0, regimen, lambda _: values, series=80))
    assert float(got.min()) >= 0


@pytest.mark.parametrize("pk", [SATURABLE, NEURAL], ids=["saturable", "learned"])
def test_nonlinear_sensitivities(pk: OdeModel) -> None:
    values = {"VM": 400.0, "KM": 300.0, "V1": 2.0, "CL": 0.4}
    values |= dict(zip(NEURAL_NAMES, (0.5, 0.2, 0.9, 0.1, 0.6, 0.3, 2.0, 0.7, 4.0), strict=True))
    z = {n: torch.tensor([values[n]], dtype=torch.float64) for n in pk.parameters}
    schedule = built(Regimen([Dose(0.0), Dose(2.0, 800, 3.0)], (1.0, 4.0, 7.0)))
    _, slopes = sensitivities(pk, schedule, z, pk.parameters)
    for slope, wanted in zip(
        slopes, slopes_by_differences(pk, schedule, z, pk.parameters, 1e-4), strict=True
    ):
        close(slope, wanted.numpy(), 1e-6)


def kept(t: Tensor, amounts: Tensor, z: Mapping[str, Tensor]) -> Tensor:
    del t, z
    return torch.zeros_like(amounts)


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_rate_that_depends_on_nothing(adjoint: bool) -> None:
    schedule = built(Regimen([Dose(0.0, 1000.0), Dose(1.0, 2000.0, 2.0)], (0.0, 2.0, 3.0)))
    volume = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    got = solve(OdeModel(kept, ("V1",), 1, adjoint=adjoint), schedule, {"V1": volume})
    torch.testing.assert_close(got.flatten(), torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64))
    (slope,) = torch.autograd.grad(got.sum(), volume)
    torch.testing.assert_close(slope, torch.tensor([-1.5], dtype=torch.float64))


# -- what a model cannot do ------------------------------------------------------------------------


def test_doses_that_a_model_cannot_take() -> None:
    third = built(Regimen([Dose(0.0), Dose(1.0, compartment=2)]))
    with pytest.raises(InputError, match=r"compartment 3 \(CMT\); pk takes doses into 1 to 2$"):
        check_schedule(two_compartment(absorption=True), third)
    with pytest.raises(InputError, match=r"compartment 3 \(CMT\); pk takes doses into 1$"):
        check_schedule(two_compartment(), third)
    check_schedule(ORAL, third)
    modelled = built(Regimen([Dose(0.0), Dose(1.0, modelled=True)]))
    with pytest.raises(InputError, match=r"RATE -2\); name it, as in \+pk.durations=\{1: D1\}$"):
        check_schedule(two_compartment(), modelled)
    check_schedule(two_compartment(durations={1: "D"}), modelled)


def test_a_steady_state_of_its_own_segment_is_no_superposition() -> None:
    for kind, doses in STEADY.items():
        alone = Regimen([Dose(0.0), *doses, Dose(120.0)], (10.0, *AFTER), resets=(doses[-1].start,))
        check_schedule(ORAL, built(alone))
        first = Regimen([*doses, Dose(120.0)], AFTER)
        check_schedule(ORAL, built(first))
        for extra, times in (
            (Dose(doses[-1].start + 0.1), AFTER),
            (Dose(1.0), AFTER),
            (Dose(120.0), (99.0, *AFTER)),
        ):
            mixed = Regimen([*doses, extra], times)
            with pytest.raises(InputError, match="SS 2"):
                check_schedule(ORAL, built(mixed))
        assert kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lag": {3: "LAG"}}, "pk.lag: compartment 3 takes no doses; expected 1 to 2"),
        ({"lag": {"1": "LAG"}}, "pk.lag: compartment '1' takes no doses; expected 1 to 2"),
        ({"durations": {1: 2.0}}, "pk.durations: 2.0 for compartment 1; expected a parameter"),
        (
            {"bioavailability": "F"},
            "pk.bioavailability is 'F'; expected compartment: parameter, as in {1: NAME}",
        ),
    ],
)
def test_dose_parameters_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        one_compartment(absorption=True, **options)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": 4}, "pk.observed is 4; expected 1 to 2 (pk.compartments)"),
        ({"dose_compartment": 0}, "pk.dose_compartment is 0; expected a whole number from 1"),
        ({"steady_state_doses": 1.5}, "pk.steady_state_doses is 1.5; expected a whole number from 1"),
        ({"adjoint": "yes"}, "pk.adjoint is 'yes'; expected true or false"),
        ({"volume": "VC"}, "pk.volume is 'VC'; expected one of CL, V1, Q, V2"),
    ],
)
def test_options_of_a_rate_function_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), 2, **options)
    assert str(caught.value) == message
