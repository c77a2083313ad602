"""Models given as dA/dt: against exact solutions, scipy's integrator and differences."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.pk import (
    OdeModel,
    check_schedule,
    michaelis_menten_rate,
    neural_elimination_rate,
    sensitivities,
    solve,
)
from tests.pk.regimens import (
    AFTER,
    FULL,
    ORAL,
    RESETS,
    STEADY,
    Dose,
    Regimen,
    built,
    close,
    full_model,
    integrated,
    slopes_by_differences,
    spread,
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


@pytest.mark.parametrize(
    "changing", [pytest.param(False, marks=pytest.mark.slow), True], ids=["constant", "changing"]
)
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


def test_adjoint_equations_where_an_interval_is_many_half_lives() -> None:
    """At steady state of an infusion A = R / k, and dA/dk = -R / k^2: backwards amounts grow by exp(k t),
    here exp(150), more than a number in single precision can be."""
    pk = OdeModel(eliminated, ("CL", "V1"), 1, adjoint=True, amount_per_level=1.0)
    schedule = built(Regimen([Dose(0.0, 1000.0, 100.0)], (100.0,))).to(torch.float32)
    leaves = {
        name: torch.tensor([value], requires_grad=True) for name, value in {"CL": 3.0, "V1": 2.0}.items()
    }
    level = solve(pk, schedule, leaves)
    slopes = torch.stack(torch.autograd.grad(level.sum(), [*leaves.values()])).flatten()
    wanted = torch.tensor([10 / 3, -10 / 9, 0.0])  # R / CL
    torch.testing.assert_close(torch.cat([level.flatten(), slopes]), wanted, rtol=0, atol=1e-4)


def eliminated(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    del t
    return {"central": -p.CL / p.V1 * a.central}


SATURABLE = OdeModel(
    michaelis_menten_rate,
    ("VM", "KM", "V1"),
    1,
    rtol=1e-10,
    atol=1e-8,
    steady_state_doses=80,
)
NEURAL_NAMES = tuple(f"{kind}{unit}" for kind in ("UP", "DOWN", "SLOPE") for unit in (1, 2, 3))
NEURAL = OdeModel(neural_elimination_rate, ("CL", "V1", *NEURAL_NAMES), 1, rtol=1e-10, atol=1e-8)


def saturable(t: float, a: np.ndarray, z: dict[str, float]) -> np.ndarray:
    del t
    return -z["VM"] * a / z["V1"] / (z["KM"] + a / z["V1"])


def learned(t: float, a: np.ndarray, z: dict[str, float]) -> np.ndarray:
    del t
    c = a / z["V1"] / 1000
    out = sum((z[f"UP{i}"] - z[f"DOWN{i}"]) * np.tanh(z[f"SLOPE{i}"] * c) for i in (1, 2, 3))
    return np.asarray(-z["CL"] / z["V1"] * np.exp(out) * a)


@pytest.mark.parametrize("kind", ["saturable", pytest.param("learned", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "regimen",
    [
        replace(RESETS, doses=[*RESETS.doses, Dose(40.0, 700), Dose(41.0, 500, 0.1)]),
        Regimen([STEADY["bolus"]], AFTER, resets=(100.0,)),
        Regimen([STEADY["overlapping"]], AFTER, resets=(100.0,)),
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


@pytest.mark.parametrize(
    "pk",
    [pytest.param(SATURABLE, id="saturable"), pytest.param(NEURAL, id="learned", marks=pytest.mark.slow)],
)
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


def kept(t: Tensor, a: Any, p: Any) -> dict[str, float]:
    del t, a, p
    return {"central": 0.0}


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_rate_that_depends_on_nothing(adjoint: bool) -> None:
    schedule = built(Regimen([Dose(0.0, 1000.0), Dose(1.0, 2000.0, 2.0)], (0.0, 2.0, 3.0)))
    volume = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    got = solve(OdeModel(kept, ("V1",), 1, adjoint=adjoint, method="tsit5"), schedule, {"V1": volume})
    torch.testing.assert_close(got.flatten(), torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64))
    (slope,) = torch.autograd.grad(got.sum(), volume)
    torch.testing.assert_close(slope, torch.tensor([-1.5], dtype=torch.float64))
