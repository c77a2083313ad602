"""Integrated models against scipy at a much smaller tolerance, over random regimens and parameters; and
whatever shares a batch."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.commands.ode_speed import binding_rate
from medcm_cli.errors import InputError
from medcm_cli.pk import (
    OdeModel,
    Schedule,
    michaelis_menten_rate,
    neural_elimination_rate,
    sensitivities,
    solve,
    two_compartment_rate,
)
from medcm_cli.pk.models.responses import inhibited_loss_rate, response_at_rest
from tests.pk.regimens import Dose, Regimen, built, pieces_of, random_regimens, together

F64 = torch.float64
UNITS = tuple(f"{kind}{unit}" for unit in (1, 2, 3) for kind in ("UP", "DOWN", "SLOPE"))


def indirect_rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """A drug that inhibits the formation of a response, less what that is at rest."""
    del t
    inhibited = a.drug / p.V1 / (p.IC50 + a.drug / p.V1)
    return {"drug": -p.CL / p.V1 * a.drug, "response": -p.KIN * inhibited - p.KOUT * a.response}


def chemical_rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """Robertson's reactions, with speeds that lie nine orders of magnitude apart."""
    del t
    slow, middle, fast = p.K1 * a.one, p.K2 * a.two * a.three, p.K3 * a.two * a.two
    return {"one": middle - slow, "two": slow - middle - fast, "three": fast}


# Model, typical values, typical dose, and scipy's method.
CASES: dict[str, tuple[OdeModel, dict[str, float], float, str]] = {
    "two": (
        OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), 2, method="tsit5"),
        {"CL": 0.2, "V1": 2.0, "Q": 0.15, "V2": 0.75},
        2000.0,
        "DOP853",
    ),
    "saturable": (
        OdeModel(michaelis_menten_rate, ("VM", "KM", "V1"), 1),
        {"VM": 60.0, "KM": 300.0, "V1": 2.0},
        2000.0,
        "DOP853",
    ),
    "learned": (
        OdeModel(neural_elimination_rate, ("CL", "V1", *UNITS), 1),
        {"CL": 0.2, "V1": 2.0, **dict.fromkeys(UNITS, 0.5)},
        2000.0,
        "DOP853",
    ),
    "absorbed": (
        OdeModel(michaelis_menten_rate, ("VM", "KM", "V1", "KA"), observed=2),
        {"VM": 60.0, "KM": 300.0, "V1": 2.0, "KA": 1.5},
        2000.0,
        "DOP853",
    ),
    "response": (
        OdeModel(indirect_rate, ("CL", "V1", "KIN", "KOUT", "IC50"), 2, observed=2),
        {"CL": 0.5, "V1": 5.0, "KIN": 20.0, "KOUT": 0.3, "IC50": 10.0},
        500.0,
        "DOP853",
    ),
    "response to two": (
        OdeModel(
            inhibited_loss_rate,
            ("CL", "V1", "Q", "V2", "KIN", "KOUT", "IC50"),
            observed="response",
            start=response_at_rest,
        ),
        {"CL": 0.5, "V1": 5.0, "Q": 1.0, "V2": 8.0, "KIN": 20.0, "KOUT": 0.3, "IC50": 10.0},
        500.0,
        "DOP853",
    ),
    "binding": (
        OdeModel(binding_rate, ("KEL", "KON", "KOFF", "KINT", "KDEG", "R0", "V1"), 3, method="kvaerno5"),
        {"KEL": 0.05, "KON": 100.0, "KOFF": 1.0, "KINT": 0.05, "KDEG": 0.1, "R0": 10.0, "V1": 1.0},
        100.0,
        "Radau",
    ),
    "chemical": (
        OdeModel(chemical_rate, ("K1", "K2", "K3", "V1"), 3, method="kvaerno5", observed=3, atol=1e-9),
        {"K1": 0.04, "K2": 1e4, "K3": 3e7, "V1": 1.0},
        1.0,
        "Radau",
    ),
}


def parameters(typical: Mapping[str, float], subjects: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed + 1)
    return {
        name: value * torch.exp(0.4 * torch.randn(1, subjects, 1, generator=g, dtype=F64))
        for name, value in typical.items()
    }


def worst(name: str, subjects: int, **options: str) -> float:
    """The largest error of the subjects of a batch, in tolerances."""
    pk, typical, dose, method = CASES[name]
    pk = replace(pk, amount_per_level=1.0, **options)  # type: ignore[arg-type]
    schedule, z = random_regimens(dose, subjects, len(name)), parameters(typical, subjects, len(name))

    def right(t: np.ndarray, amounts: np.ndarray) -> np.ndarray:
        change = pk.right_side(
            torch.from_numpy(t)[None, :, None], torch.from_numpy(amounts)[:, None, :, None], z
        )
        return np.asarray(change[:, 0, :, 0].numpy())

    begun = pk.begin(z)
    start = np.zeros((len(pk.states), subjects)) if begun is None else begun[:, 0, :, 0].numpy()
    given = pieces_of(schedule, 0)
    wanted = together(right, start, given, schedule, method == "Radau", pk.atol / 1e4)[:, pk.seen]
    with torch.no_grad():
        amounts = (solve(pk, schedule, z) * z[pk.volume])[:, 0, :, 0].numpy()
    return float((np.abs(amounts - wanted) / (pk.atol + pk.rtol * np.abs(wanted))).max())


STIFF = ("binding", "chemical")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in STIFF else ()) for name in CASES]
)
def test_random_regimens_equal_scipy(name: str) -> None:
    assert worst(name, 20, norm="largest") < 10


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["rms", "largest"])
@pytest.mark.parametrize("name", CASES)
def test_all_of_200_random_regimens_equal_scipy(name: str, norm: str) -> None:
    assert worst(name, 200, norm=norm) < 10


@pytest.mark.parametrize(
    "name",
    [
        "two",
        "saturable",
        "absorbed",
        "response",
        "response to two",
        pytest.param("chemical", marks=pytest.mark.slow),
    ],
)
def test_sensitivities_are_differences(name: str) -> None:
    pk, typical, dose, _ = CASES[name]
    fine = 1e-13 if name == "chemical" else 1e-9
    pk = replace(pk, rtol=1e-10, atol=fine, amount_per_level=1.0)
    schedule, z = random_regimens(dose, 2, 3), parameters(typical, 2, 3)
    names, step = tuple(typical)[1:3], 1e-3
    with torch.no_grad():
        slopes = sensitivities(pk, schedule, z, names)[1]
        for parameter, slope in zip(names, slopes, strict=True):
            ends = [
                solve(pk, schedule, {**z, parameter: z[parameter] * np.exp(by * step)})
                for by in (1, -1, 2, -2)
            ]
            wanted = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * step)
            torch.testing.assert_close(slope, wanted, rtol=1e-6, atol=1e-6 * float(slope.abs().max()))


@pytest.mark.parametrize("formula", [True, False])
@pytest.mark.parametrize("name", ["two", "saturable"])
def test_second_derivatives_are_differences(
    name: str, formula: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of predictions and sensitivities after several doses, of one model a steady state, a share of which
    arrives over a time of its own: along one direction."""
    if not formula:
        monkeypatch.setattr("medcm_cli.pk.ode.formula_of", lambda _: None)
    pk, typical, dose, _ = CASES[name]
    pk = replace(pk, rtol=1e-8, atol=1e-8, bioavailability={1: "F"}, amount_per_level=1.0)
    endless = 3.0 if name == "saturable" else math.inf
    doses = [Dose(0.0, 0.05 * dose, interval=endless), Dose(0.5, dose, 0.3)]
    schedule = built(Regimen(doses, (0.4, 1.0)))
    z = parameters({**typical, "F": 0.6}, 1, 3)
    g = torch.Generator().manual_seed(5)
    along = {key: torch.randn(value.shape, generator=g, dtype=F64) for key, value in z.items()}

    def first_of(step: float, again: bool = False) -> tuple[Tensor, Tensor]:
        here = {key: (value * torch.exp(step * along[key])).requires_grad_() for key, value in z.items()}
        prediction, slopes = sensitivities(pk, schedule, here, [*typical][:2])
        value = torch.stack([prediction, *slopes]).square().sum()
        grads = torch.autograd.grad(value, list(here.values()), create_graph=again)
        rows = zip(grads, here.values(), along.values(), strict=True)
        slope = torch.stack([(by * at * turn).sum() for by, at, turn in rows]).sum()
        if not again:
            return slope, slope
        more = torch.autograd.grad(slope, list(here.values()))
        rows = zip(more, here.values(), along.values(), strict=True)
        return slope, torch.stack([(by * at * turn).sum() for by, at, turn in rows]).sum()

    slope, curve = first_of(0.0, again=True)
    step = 1e-4
    torch.testing.assert_close(first_of(0.0)[0], slope, rtol=1e-6, atol=0)
    wanted = (first_of(step)[0] - first_of(-step)[0]) / (2 * step)
    torch.testing.assert_close(curve, wanted, rtol=1e-4, atol=1e-5 * float(slope.detach().abs()))


def test_nothing_is_lost_between_compartments() -> None:
    """The sum of three, of which none is eliminated, is the dose."""
    pk, typical, _, _ = CASES["chemical"]
    for method in ("kvaerno5", "tsit5"):
        schedule, z = random_regimens(1.0, 2, 1), parameters({**typical, "K2": 1.0, "K3": 0.3}, 2, 1)
        late = replace(schedule, time=schedule.time + 20)
        each = [
            solve(replace(pk, method=method, observed=observed, amount_per_level=1.0), late, z) * z["V1"]
            for observed in (1, 2, 3)
        ]
        torch.testing.assert_close(
            torch.stack(each).sum(0), schedule.amount.sum(0).expand(4, -1, -1, -1), rtol=1e-8, atol=0
        )


@pytest.mark.parametrize("wild", [3.0, 1e7, float("nan")], ids=["fast", "beyond", "no number"])
@pytest.mark.parametrize(("case", "parameter"), [("saturable", "VM"), ("absorbed", "KA"), ("absorbed", "VM")])
def test_a_fit_does_not_depend_on_the_others_of_its_batch(
    case: str, parameter: str, wild: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever these are: its predictions, sensitivities and gradients are what they are by itself."""
    monkeypatch.setattr("medcm_cli.pk.steps.MOST", 100)
    pk, typical, dose, _ = CASES[case]
    pk = replace(pk, rtol=1e-9, atol=1e-9)
    schedule, z = random_regimens(dose, 5, 1), parameters(typical, 5, 1)
    found = []
    for alone in (True, False):
        here = {
            name: (
                value if alone else torch.cat([value, value * (wild if name == parameter else 1)], -1)
            ).requires_grad_()
            for name, value in z.items()
        }
        own = schedule if alone else schedule.each(lambda values: values.expand(*values.shape[:-1], 2))
        prediction, slopes = sensitivities(pk, own, here, ("VM", "KM"))
        value = prediction[..., 0].square().sum() + torch.stack(slopes)[..., 0].square().sum()
        grads = torch.autograd.grad(value, list(here.values()))
        found.append([prediction[..., 0], *(slope[..., 0] for slope in slopes), *(g[..., 0] for g in grads)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6 * float(one.detach().abs().max()))


def test_stiff_equations_are_told_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medcm_cli.pk.steps.MOST", 100)
    pk, typical, dose, _ = CASES["chemical"]
    schedule, z = random_regimens(dose, 2, 1), parameters(typical, 2, 1)
    with pytest.raises(InputError, match=r"pk\.method=kvaerno5"):
        solve(replace(pk, method="tsit5"), schedule, z)


def swinging(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """A constant formation, and a rate that swings in time."""
    return {"made": p.K0, "central": -p.K * (1 + torch.sin(t)) * a.central}


def test_a_rate_that_depends_on_time() -> None:
    pk = OdeModel(
        swinging, ("K0", "K", "V1"), 2, observed="central", rtol=1e-9, atol=1e-9, amount_per_level=1.0
    )
    hours = torch.tensor([1.0, 4.0], dtype=F64).view(2, 1, 1, 1)
    zero = torch.zeros(1, 1, 1, 1, dtype=F64)
    schedule = Schedule.build(hours, zero, zero, zero + 1)
    schedule = replace(schedule, compartment=zero.long() + 1)
    z = {"K0": zero[0] + 2, "K": (zero[0] + 0.3).requires_grad_(), "V1": zero[0] + 1}
    prediction, (slope,) = sensitivities(pk, schedule, z, ["K"])
    exponent = -0.3 * (hours + 1 - torch.cos(hours))
    torch.testing.assert_close(prediction, exponent.exp(), rtol=1e-7, atol=0)
    torch.testing.assert_close(slope, exponent * exponent.exp(), rtol=1e-7, atol=0)
    (curve,) = torch.autograd.grad(slope.sum(), z["K"])
    torch.testing.assert_close(curve.flatten(), ((exponent + exponent**2) * exponent.exp()).sum()[None] / 0.3)
