"""Rates that are written for one subject: against closed forms and scipy, and what a faulty one is told."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk import (
    OdeModel,
    Schedule,
    check_schedule,
    michaelis_menten_rate,
    sensitivities,
    solve,
    two_compartment_rate,
)
from tests.pk.regimens import (
    AFTER,
    FULL,
    ORAL,
    STEADY,
    Dose,
    Regimen,
    built,
    close,
    full_model,
    slopes_by_differences,
    spread,
)

F64 = torch.float64


def with_initials(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """A response that the drug raises by a Hill function, and one that swings with the time of day."""
    del t
    effect = p.EMAX * a.central / p.V / (p.EC50 + a.central / p.V)
    return {
        "central": -p.CL / p.V * a.central,
        "response": p.KIN * (1 + effect) - p.KOUT * a.response,
    }


def at_rest(p: Any) -> dict[str, Tensor]:
    return {"response": p.KIN / p.KOUT}


def effect(t: Tensor, a: Any, p: Any) -> Any:
    """The response, and a part of the concentration, that swings in time."""
    return a.response + p.PART * (1 + torch.sin(t)) * a.central / p.V


VALUES = {"CL": 0.5, "V": 5.0, "KIN": 4.0, "KOUT": 0.3, "EC50": 10.0, "EMAX": 2.0, "PART": 0.02}
RESPONSE = OdeModel(
    with_initials,
    tuple(VALUES),
    ("central", "response"),
    amount_per_level=1.0,
    output=effect,
    start=at_rest,
    rtol=1e-10,
    atol=1e-10,
)


def values_of(subjects: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        name: value * torch.exp(0.2 * torch.randn(1, subjects, 1, generator=g, dtype=F64))
        for name, value in VALUES.items()
    }


def by_scipy(z: dict[str, float], times: list[float], dose: float, reset: float | None = None) -> np.ndarray:
    def right(t: float, y: np.ndarray) -> list[float]:
        del t
        c = y[0] / z["V"]
        return [
            -z["CL"] * c,
            z["KIN"] * (1 + z["EMAX"] * c / (z["EC50"] + c)) - z["KOUT"] * y[1],
        ]

    state, at, found = np.array([0.0, z["KIN"] / z["KOUT"]]), 0.0, []
    events = sorted({0.0, *times, *([] if reset is None else [reset])})
    for now in events:
        if now > at:
            state = solve_ivp(right, (at, now), state, rtol=1e-11, atol=1e-12, method="DOP853").y[:, -1]
            at = now
        if now == reset:
            state = np.array([0.0, z["KIN"] / z["KOUT"]])
        if now == 1.0:
            state = state + np.array([dose, 0.0])
        if now in times:
            found.append(state[1] + z["PART"] * (1 + math.sin(now)) * state[0] / z["V"])
    return np.array(found)


@pytest.mark.parametrize("reset", [None, 30.0])
@pytest.mark.parametrize("method", ["tsit5", "kvaerno5", "dopri5"])
def test_outputs_and_initial_amounts_equal_scipy(method: str, reset: float | None) -> None:
    times = [0.5, 1.0, 2.0, 10.0, 40.0]
    resets = () if reset is None else (reset,)
    regimen = Regimen([Dose(1.0, 500.0)], tuple(times), resets=resets)
    z, schedule = values_of(1), built(regimen)
    got = solve(replace(RESPONSE, method=method), schedule, z)[:, 0, 0, 0].numpy()
    one = {name: float(value[0, 0, 0]) for name, value in z.items()}
    np.testing.assert_allclose(got, by_scipy(one, times, 500.0, reset), rtol=2e-8)


def test_sensitivities_of_outputs_and_initial_amounts() -> None:
    schedule = built(Regimen([Dose(1.0, 500.0), Dose(4.0, 300.0, 2.0)], (0.5, 2.0, 9.0)))
    z = values_of()
    prediction, slopes = sensitivities(RESPONSE, schedule, z, ("KIN", "PART", "EC50", "V"))
    torch.testing.assert_close(prediction, solve(RESPONSE, schedule, z))
    names = ("KIN", "PART", "EC50", "V")
    wanted = slopes_by_differences(RESPONSE, schedule, z, names, 1e-4)
    for slope, other in zip(slopes, wanted, strict=True):
        close(slope, other.numpy(), 1e-6)
    leaves = {name: value.clone().requires_grad_() for name, value in z.items()}
    _, slopes = sensitivities(RESPONSE, schedule, leaves, ("KIN", "EC50"))
    total = torch.stack(slopes).square().sum()
    for name in ("KIN", "CL"):
        (grad,) = torch.autograd.grad(total, leaves[name], retain_graph=True)
        ends = []
        for by in (1e-5, -1e-5):
            moved = {**z, name: z[name] * (1 + by)}
            ends.append(
                torch.stack(sensitivities(RESPONSE, schedule, moved, ("KIN", "EC50"))[1]).square().sum()
            )
        torch.testing.assert_close((grad * z[name]).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["auto", "tsit5"])
def test_a_steady_state_takes_the_place_of_what_is_there_at_first(method: str) -> None:
    """As after many doses; the response rests at its start before."""
    z = values_of()
    known = Regimen([Dose(50.0, 500.0, interval=12.0)], (40.0, 50.5, 55.0, 61.0))
    many = Regimen([Dose(50.0 - 12.0 * n, 500.0) for n in range(41)], (50.5, 55.0, 61.0))
    pk = replace(RESPONSE, method=method, rtol=1e-8, atol=1e-8)
    got = solve(pk, built(known), z)
    close(got[1:], solve(pk, built(many), z).numpy(), 1e-6)
    rest = (z["KIN"] / z["KOUT"])[0]
    torch.testing.assert_close(got[0, 0], rest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("changing", [False, True], ids=["constant", "changing"])
def test_a_linear_rate_equals_the_closed_form(changing: bool) -> None:
    pk, exact = replace(ORAL, method="auto"), full_model("two")
    assert pk.by_exponential
    assert "is linear" in pk.notes[0]
    assert not ORAL.notes
    schedule, z = built(FULL, (10.0, math.inf)), spread(ORAL.parameters, 5, 2)
    z |= {"CL": torch.stack([z["CL"], 1.5 * z["CL"]])} if changing else {}
    check_schedule(pk, schedule)
    wanted, slopes = sensitivities(exact, schedule, z, ("CL", "KA", "LAG"))
    got, found = sensitivities(pk, schedule, z, ("CL", "KA", "LAG"))
    for one, other in zip((got, *found), (wanted, *slopes), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.detach().abs().max()))
    grads = []
    for model in (pk, exact):
        leaves = {name: value.clone().requires_grad_() for name, value in z.items()}
        grads.append(torch.autograd.grad(solve(model, schedule, leaves).square().sum(), [*leaves.values()]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * float(other.abs().max()))


def test_a_linear_rate_adds_up_over_doses() -> None:
    """A steady state on top of what is there, too."""
    pk = replace(ORAL, method="auto")
    assert pk.scales_with_dose
    z = spread(ORAL.parameters, 5, 2)
    for extra in ([STEADY["bolus"], Dose(1.0)], [Dose(0.0), STEADY["bolus"]]):
        schedule = built(Regimen(extra, AFTER))
        check_schedule(pk, schedule)
        close(solve(pk, schedule, z), solve(full_model("two"), schedule, z).numpy(), 1e-9)


def turnover(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    del t
    return {"central": p.KIN - p.KOUT * a.central}


def test_a_linear_rate_with_a_constant_formation() -> None:
    pk = OdeModel(turnover, ("KIN", "KOUT", "V1"), amount_per_level=1.0)
    assert pk.by_exponential
    assert pk.facts.source
    assert not pk.scales_with_dose
    hours = torch.tensor([1.0, 7.0], dtype=F64).view(2, 1, 1, 1)
    zero = torch.zeros(1, 1, 1, 1, dtype=F64)
    schedule = Schedule.build(hours, zero + 2, zero, zero + 10)
    z = {"KIN": zero[0] + 3, "KOUT": zero[0] + 0.2, "V1": zero[0] + 2}
    # A subject's time begins with its first event.
    made = 15 * (1 - torch.exp(-0.2 * (hours - 1)))
    wanted = (made + (hours > 2) * 10 * torch.exp(-0.2 * (hours - 2))) / 2
    torch.testing.assert_close(solve(pk, schedule, z), wanted, rtol=1e-12, atol=0)


def piecewise(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    del t
    return {"central": -torch.where(a.central > 1e7, 2 * p.K, p.K) * a.central}


def timely(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    return {"central": -p.K * (1 + torch.sin(t)) * a.central}


def rational(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    del t
    return {"central": -p.K * a.central**2 / a.central}


@pytest.mark.parametrize("rate", [piecewise, timely, rational, michaelis_menten_rate])
def test_what_is_not_linear_everywhere_is_integrated(rate: Callable[..., Any]) -> None:
    """Also where it is linear at the amounts that it is tried at."""
    if rate is rational:  # which begins with 0 / 0
        with pytest.raises(InputError, match="not a number for central"):
            OdeModel(rate, ("K", "V1"))
        return
    assert not OdeModel(rate, ("K", "VM", "KM", "V1")).by_exponential


TRAINED = torch.ones((), requires_grad=True)


def faulty(kind: str) -> Callable[..., Any]:
    def rate(t: Tensor, a: Any, p: Any) -> Any:
        del t
        out = -p.CL / p.V1 * a.central
        results: dict[str, Callable[[], Any]] = {
            "returns None": lambda: None,
            "returns a tensor": lambda: torch.stack([out, out]),
            "no peripheral": lambda: {"central": out},
            "another key": lambda: {"central": out, "peripheral": out, "periferal": out},
            "misspelt parameter": lambda: {"central": -p.CLL * a.central, "peripheral": out},
            "misspelt state": lambda: {"central": out, "peripheral": a.periferal},
            "by key": lambda: {"central": -p["CL"] * a.central, "peripheral": out},
            "no number": lambda: {"central": out, "peripheral": out * math.nan},
            "text": lambda: {"central": out, "peripheral": "0"},
            "math": lambda: {"central": out, "peripheral": p.CL * math.exp(a.central)},
            "if": lambda: {"central": out, "peripheral": p.CL if a.central > 1 else p.V1},
            "item": lambda: {"central": out, "peripheral": out.mean().item() * p.CL},
            "detach": lambda: {"central": out, "peripheral": out.detach()},
            "detached flow": lambda: {"central": -out.detach(), "peripheral": out.detach()},
            "sum": lambda: {"central": out, "peripheral": out * a.central.sum()},
            "trained": lambda: {"central": out, "peripheral": out * TRAINED},
            "error": lambda: {"central": out, "peripheral": 1 / 0},
        }
        return results[kind]()

    return rate


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("returns None", "gives nothing (None); expected {'central': ..., 'peripheral': ...}"),
        ("returns a tensor", "gives a value of type Tensor; expected {'central'"),
        ("no peripheral", "gives no rate of 'peripheral'; the states are central, peripheral"),
        ("another key", "gives 'periferal', which is no state; the states are central, peripheral"),
        ("misspelt parameter", "reads parameter 'CLL'; p has CL, V1"),
        ("misspelt state", "reads state 'periferal'; a has central, peripheral"),
        ("by key", "expected names, as in a.central and p.CL"),
        ("no number", "is not a number for peripheral"),
        ("text", "gives a value of type str for 'peripheral'; expected a number"),
        ("math", "expected operations of torch"),
        ("if", "expected operations of torch"),
        ("item", "mixes subjects"),
        ("detach", "has no derivative by a.central that torch finds"),
        ("detached flow", "has no derivative by a.central that torch finds"),
        ("sum", "mixes subjects"),
        ("trained", "depends on a trained tensor of its own for 'peripheral', which no fit would train"),
        ("error", "fails: ZeroDivisionError: division by zero"),
    ],
)
def test_a_faulty_rate_is_told_in_a_line_that_names_it(kind: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        OdeModel(faulty(kind), ("CL", "V1"), ("central", "peripheral"))
    text = str(caught.value)
    assert message in text
    assert "rate function" in text
    assert "test_named.faulty.<locals>.rate" in text
    assert "\n" not in text


def depot(t: Tensor, a: Any, p: Any) -> Any:
    del t, p
    return a.depot


def mean(t: Tensor, a: Any, p: Any) -> Any:
    del t
    return a.central.mean() + p.V1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": depot}, "reads state 'depot'; a has central, peripheral"),
        ({"output": mean}, "mixes subjects"),
        ({"output": lambda *_: None}, "gives nothing (None)"),
        ({"start": lambda p: {"target": p.V1}}, "gives 'target', which is no state"),
        ({"start": lambda p: p.V1}, "gives a value of type Tensor"),
        ({"compartments": ["central"]}, "reads state 'peripheral'; a has central"),
        ({"compartments": 3}, "pk.compartments is 3; medcm_cli.pk.equations.two_compartment_rate gives 2"),
        ({"compartments": ["central", "central"]}, "expected each name once"),
        ({"compartments": ["central", "2nd"]}, "pk.compartments has '2nd'; expected names"),
        ({"dose_compartment": "depot"}, "pk.dose_compartment is 'depot'; expected central or peripheral"),
        ({"lag": {"depot": "LAG"}}, "pk.lag: compartment 'depot' takes no doses"),
        ({"parameter_units": {"VC": "L"}}, "pk.parameter_units"),
        ({"terms": {"f": {}}}, "pk.terms.f is {}; expected inputs"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), **options)
    assert message in str(caught.value)


def test_compartments_by_name() -> None:
    named = OdeModel(
        two_compartment_rate,
        ("CL", "V1", "Q", "V2"),
        ("peripheral", "central"),
        observed="peripheral",
        dose_compartment="central",
        lag={"central": "LAG"},  # type: ignore[dict-item]
    )
    assert (named.seen, named.dosed, dict(named.lag)) == (0, 1, {2: "LAG"})
    assert named.parameters[-1] == "LAG"
