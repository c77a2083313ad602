"""Absorption of zero order, mixed, and through transit compartments: against scipy."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import gammaln
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk import MixedAbsorption, TransitAbsorption, check_schedule, sensitivities, solve
from tests.pk.regimens import (
    AFTER,
    TYPICAL,
    Dose,
    Regimen,
    built,
    close,
    integrated,
    linear_rhs,
    slopes_by_differences,
)

F64 = torch.float64
VALUES = {**TYPICAL, "D": 3.5, "ODDS": 0.7, "LAG": 0.7, "F": 0.6, "NTR": 2.7, "MTT": 1.6}
NAMED: dict[str, Any] = {"lag": {1: "LAG"}, "bioavailability": {1: "F"}}
DOSES = (Dose(0.0), Dose(12.0, 800.0), Dose(13.0, 500.0), Dose(30.0, 700.0))
SINGLE, STEADY = Regimen(DOSES, resets=(29.0,)), Regimen([Dose(100.0, 400.0, interval=8.0)], AFTER)


def values(names: tuple[str, ...], subjects: int = 2) -> dict[str, Tensor]:
    """(1, N, 1) about those above."""
    g = np.random.default_rng(4)
    return {
        name: torch.from_numpy(VALUES[name] * np.exp(g.uniform(-0.4, 0.4, subjects)))[None, :, None]
        for name in names
    }


def of_subject(z: dict[str, Tensor], number: int) -> dict[str, float]:
    return {name: float(value[0, number, 0]) for name, value in z.items()}


def written(order: str, regimen: Regimen, z: dict[str, float]) -> tuple[Regimen, dict[str, float]]:
    """A regimen with a dose for each of the parts, and their parameters."""
    doses = regimen.doses
    if order == "zero":
        return replace(regimen, doses=[replace(dose, modelled=True) for dose in doses]), z
    share = z["ODDS"] / (1 + z["ODDS"])
    lag, whole = z.get("LAG", 0.0), z.get("F", 1.0)
    own = {"LAG2": lag, "F2": share * whole, "D2": z["D"]}
    own |= {"LAG": lag + (z["D"] if order == "sequential" else 0.0), "F": (1 - share) * whole}
    parts = [replace(dose, compartment=1, modelled=True) for dose in doses]
    first = [replace(dose, compartment=0) for dose in doses]
    return replace(regimen, doses=[*first, *parts]), {**z, **own}


@pytest.mark.parametrize("regimen", [SINGLE, STEADY], ids=["single", "steady"])
@pytest.mark.parametrize(("compartments", "options"), [(1, {}), (2, NAMED)])
@pytest.mark.parametrize("order", ["zero", "parallel", "sequential"])
def test_mixed_absorption_equals_doses_written_out(
    order: str, compartments: int, options: Any, regimen: Regimen
) -> None:
    pk = MixedAbsorption(order, compartments, **options)
    z, oral, schedule = values(pk.parameters, 1), order != "zero", built(regimen)
    check_schedule(pk, schedule)
    doses, own = written(order, regimen, of_subject(z, 0))
    rhs, states = linear_rhs(compartments, oral), compartments + oral
    want = integrated(rhs, states, int(oral), 0, doses, lambda _: own, series=40)
    close(solve(pk, schedule, z)[:, 0, 0, 0], want)


@pytest.mark.parametrize("order", ["zero", "parallel", "sequential"])
def test_what_is_infused_or_goes_elsewhere_arrives_as_it_is(order: str) -> None:
    """An infusion, and beside a depot a dose into the central compartment, add what they add alone."""
    pk = MixedAbsorption(order)
    other = Dose(2.0, 900.0, 4.0) if order == "zero" else Dose(2.0, 900.0, compartment=1)
    z = values(pk.parameters)
    both, one = solve(pk, built(Regimen([Dose(0.0), other])), z), solve(pk, built(Regimen([Dose(0.0)])), z)
    close(both - one, solve(pk.linear, built(Regimen([other])), z).numpy())
    assert float(both.max()) > float(one.max())


@pytest.mark.parametrize(
    "pk",
    [
        *(MixedAbsorption(order, 2, **NAMED) for order in ("zero", "parallel", "sequential")),
        TransitAbsorption(2, **NAMED),
    ],
    ids=["zero", "parallel", "sequential", "transit"],
)
def test_sensitivities(pk: MixedAbsorption | TransitAbsorption) -> None:
    z, schedule = values(pk.parameters), built(SINGLE)
    with torch.no_grad():
        _, slopes = sensitivities(pk, schedule, z, pk.parameters)
        wanted = slopes_by_differences(pk, schedule, z, pk.parameters, 1e-5)
    for slope, want in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope, want, rtol=1e-6, atol=1e-8 * float(want.abs().max() + 1))


def test_a_share_above_everything_is_nearly_zero_order_alone() -> None:
    z = {**values(("CL", "V1", "KA", "D")), "ODDS": torch.tensor([1e9], dtype=F64)}
    schedule = built(Regimen([Dose(0.0)]))
    close(
        solve(MixedAbsorption("parallel"), schedule, z), solve(MixedAbsorption("zero"), schedule, z).numpy()
    )


def test_an_order_is_one_of_three() -> None:
    with pytest.raises(InputError, match=r"pk\.order is 'first'; expected one of zero, parallel, sequential"):
        MixedAbsorption("first")


# -- transit compartments --------------------------------------------------------------------------


def through(z: dict[str, float], doses: tuple[Dose, ...], times: tuple[float, ...]) -> np.ndarray:
    """By scipy, with the density of each dose's entry written out."""
    n, lag, whole = z["NTR"], z.get("LAG", 0.0), z.get("F", 1.0)
    rate = (n + 1) / z["MTT"]

    def entering(t: float) -> float:
        since = [(dose.amount, t - dose.start - lag) for dose in doses]
        logs = [(a, math.log(rate) + n * math.log(rate * s) - rate * s) for a, s in since if s > 0]
        return whole * sum(a * math.exp(log - gammaln(n + 1)) for a, log in logs)

    def right(t: float, y: np.ndarray) -> list[float]:
        out = z["CL"] / z["V1"] * y[1]
        return [entering(t) - z["KA"] * y[0], z["KA"] * y[0] - out]

    y, found, edges = np.zeros(2), dict[float, float](), {0.0, *times}
    edges |= {dose.start + lag for dose in doses}
    for left, right_end in [(0.0, 0.0), *itertools.pairwise(sorted(edges))]:
        if left < right_end:
            y = solve_ivp(right, (left, right_end), y, method="DOP853", rtol=1e-11, atol=1e-9).y[:, -1]
        found[right_end] = y[1] / z["V1"] / 1000
    return np.array([found[time] for time in times])


@pytest.mark.parametrize("options", [{}, NAMED], ids=["plain", "lag and fraction"])
@pytest.mark.parametrize("number", [0.3, 2.7, 14.5])
def test_transit_compartments_equal_scipy(number: float, options: Any) -> None:
    pk, times = TransitAbsorption(**options), (0.0, 0.2, 0.7, 1.0, 2.5, 6.0, 12.3, 14.0, 20.0, 60.0)
    z = {**values(pk.parameters), "NTR": torch.tensor([number], dtype=F64)}
    schedule = built(Regimen(DOSES, times))
    check_schedule(pk, schedule)
    own = [{**of_subject({**z, "NTR": z["NTR"].expand(1, 2, 1)}, n)} for n in range(2)]
    close(solve(pk, schedule, z)[:, 0, :, 0], np.stack([through(one, DOSES, times) for one in own], -1))


@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_whole_numbers_are_a_chain_of_compartments(compartments: int) -> None:
    """Two transit compartments after that into which a dose goes, all left at one rate; every output."""
    plain = TransitAbsorption(compartments, 1.0)
    pk = plain.observing(plain.outputs)
    z = {**values(pk.parameters, 1), "NTR": torch.tensor([[[2.0]]], dtype=F64)}
    linear, own = linear_rhs(compartments, absorption=True), of_subject(z, 0)

    def chain(t: float, a: np.ndarray, own: dict[str, float]) -> np.ndarray:
        rate = 3 / own["MTT"]
        rest = linear(t, a[3:-1], own)
        rest[0] += rate * a[2]
        moved = [-rate * a[0], rate * (a[0] - a[1]), rate * (a[1] - a[2])]
        return np.concatenate([moved, rest, [own["CL"] / own["V1"] * a[4]]])

    doses = [Dose(0.0), Dose(3.0, 600.0, 2.0, compartment=4), Dose(12.0, 800.0), Dose(13.0, 500.0)]
    regimen = Regimen(doses, resets=(12.5,))
    same = [dose if dose.compartment is None else replace(dose, compartment=1) for dose in doses]
    schedule = built(replace(regimen, doses=same))
    states = pk.linear.states
    amounts = {
        name: integrated(chain, 5 + compartments, place, 0, regimen, lambda _: own) * own["V1"] * 1000
        for place, name in enumerate((*states, "excreted"), 3)
    }
    check_schedule(pk, schedule)
    for number, name in enumerate(pk.outputs):
        of = replace(schedule, endpoint=torch.full_like(schedule.time, number, dtype=torch.long))
        state = name.removesuffix("_amount").removesuffix("_concentration")
        level = name == "central" or name.endswith("_concentration")
        volume = own[{"peripheral": "V2", "peripheral_2": "V3"}.get(state, "V1")] if level else 1.0
        close(solve(pk, of, z)[:, 0, 0, 0], amounts[state] / volume, 1e-7)
    close(solve(plain, schedule, z)[:, 0, 0, 0], amounts["central"] / own["V1"])


def test_extreme_transit_compartments_lose_nothing() -> None:
    """Everything arrives: the area under the curve is dose / CL."""
    times = tuple(float(t) for t in np.linspace(0, 400, 1601))
    for number, mean in ((0.01, 0.05), (0.5, 30.0), (80.0, 5.0), (400.0, 40.0)):
        z = {name: torch.tensor([VALUES[name]], dtype=F64) for name in ("CL", "V1", "KA")}
        z |= {"NTR": torch.tensor([number], dtype=F64), "MTT": torch.tensor([mean], dtype=F64)}
        got = solve(TransitAbsorption(amount_per_level=1.0), built(Regimen([Dose(0.0, 100.0)], times)), z)
        area = float(torch.trapezoid(got.flatten(), torch.tensor(times, dtype=F64)))
        assert area == pytest.approx(100 / VALUES["CL"], rel=1e-3), (number, mean)


@pytest.mark.parametrize(
    ("dose", "message"),
    [
        (Dose(0.0, 100.0, 2.0), "takes doses that are given at once; one has a duration"),
        (Dose(0.0, 100.0, interval=12.0), "has no steady state"),
    ],
)
def test_what_transit_compartments_cannot_take(dose: Dose, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_schedule(TransitAbsorption(), built(Regimen([dose])))


def test_a_dose_beside_the_depot_arrives_as_it_is() -> None:
    pk, other = TransitAbsorption(), Dose(2.0, 900.0, 4.0, compartment=1)
    z = values(pk.parameters)
    schedule = built(Regimen([Dose(0.0), other]))
    check_schedule(pk, schedule)
    alone = solve(pk, built(Regimen([Dose(0.0)])), z)
    close(solve(pk, schedule, z) - alone, solve(pk.linear, built(Regimen([other])), z).numpy())
