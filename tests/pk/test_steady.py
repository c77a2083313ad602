"""Steady states whatever values parameters take: against doses written out, and the closed form."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from medcm_cli.pk import (
    OdeModel,
    PkModel,
    Schedule,
    michaelis_menten_rate,
    one_compartment,
    sensitivities,
    solve,
    stepwise,
    two_compartment,
    two_compartment_rate,
)
from medcm_cli.pk.steady import Followed, Tolerance, nearly, searched
from tests.pk.regimens import Dose, Regimen, built, close

F64 = torch.float64
Way = Callable[..., Tensor]
TIMES = (0.5, 1.0, 2.0, 3.0, 5.0, 5.9, 14.0, 21.0, 33.0, 50.0)
LAGGED = one_compartment(1, absorption=True, lag={1: "LAG"}, durations={1: "D"})
SLOW = {"V1": 15.0, "Q": 0.5, "V2": 5.0}
TWO = OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), 2, method="tsit5")


def values(**named: float | list[float]) -> dict[str, Tensor]:
    """(1, 1, B)."""
    return {name: torch.tensor(value, dtype=F64).view(1, 1, -1) for name, value in named.items()}


@pytest.mark.parametrize("way", [solve, stepwise.predict], ids=["closed", "stepwise"])
@pytest.mark.parametrize(
    ("lag", "duration"), [(20.0, 0.0), (18.0, 0.0), (0.0, 30.0), (20.0, 31.0), (3.0, 2.0), (400.0, 0.0)]
)
def test_lags_and_durations_longer_than_the_interval_are_200_doses(
    way: Way, lag: float, duration: float
) -> None:
    """CL 2, V1 20, KA 1, 100 every 6 h: 8.33 on average as long as they arrive."""
    z = values(CL=2.0, V1=20.0, KA=1.0, LAG=lag, D=duration)
    of = {"modelled": duration > 0}
    series = built(Regimen([Dose(0.0, 100.0, interval=6.0, **of)], TIMES))
    written = built(Regimen([Dose(-6.0 * k, 100.0, **of) for k in range(200)], TIMES))
    got = way(LAGGED, series, z)
    close(got, solve(LAGGED, written, z).numpy(), 1e-8)
    if lag + duration >= 20:
        mean = float(got[:6].mean())
        assert mean == pytest.approx(100 / 6 / 2, rel=0.1)


@pytest.mark.parametrize("way", [solve, stepwise.predict], ids=["closed", "stepwise"])
def test_derivatives_where_most_doses_are_still_to_come(way: Way) -> None:
    """Also where doses begin and end at the very time of an observation."""
    z = values(CL=2.0, V1=20.0, KA=1.0, LAG=20.0, D=31.0)
    series = built(Regimen([Dose(0.0, 100.0, interval=6.0, modelled=True)], TIMES))
    leaves = {name: value.clone().requires_grad_() for name, value in z.items()}
    weights = torch.arange(1.0, len(TIMES) + 1, dtype=F64).view(-1, 1, 1, 1)
    slopes = torch.autograd.grad((way(LAGGED, series, leaves) * weights).sum(), list(leaves.values()))
    for (name, value), slope in zip(z.items(), slopes, strict=True):
        up, down = (way(LAGGED, series, {**z, name: value * (1 + sign * 1e-7)}) for sign in (1, -1))
        wanted = ((up - down) * weights).sum() / (2e-7 * value)
        # A second derivative has a jump there, so that differences are right to the first order.
        torch.testing.assert_close(slope.sum(), wanted.sum(), rtol=3e-5, atol=1e-8)


@pytest.mark.parametrize("clearance", [2.0, 0.0266, 0.00266], ids=["fast", "520 h", "5200 h"])
def test_an_integrated_model_reaches_its_steady_state_whatever_its_half_life(clearance: float) -> None:
    z = values(CL=clearance, **SLOW)
    schedule = built(
        Regimen([Dose(0.0, 100.0, interval=12.0), Dose(12.0, 100.0)], (0.0, 1.0, 6.0, 12.0, 20.0))
    )
    close(solve(TWO, schedule, z), solve(two_compartment(), schedule, z).numpy(), 1e-5)


def test_derivatives_of_a_steady_state_that_is_solved_for() -> None:
    """Those of predictions, and the gradient of these in turn, which foce needs."""
    schedule = built(Regimen([Dose(0.0, 100.0, interval=12.0)], (1.0, 20.0)))
    fine, names = replace(TWO, rtol=1e-7, atol=1e-6), ("CL", "V1")
    found: list[list[Tensor]] = []
    for pk in (two_compartment(), fine):
        z = {name: value.requires_grad_() for name, value in values(CL=0.1, **SLOW).items()}
        f, slopes = sensitivities(pk, schedule, z, names)
        value = (f * sum(slopes)).sum()
        found.append([f, *slopes, *torch.autograd.grad(value, list(z.values()))])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6 * float(wanted.detach().abs().max()))


def test_the_adjoint_equations_give_the_same_gradient() -> None:
    schedule = built(Regimen([Dose(0.0, 100.0, interval=12.0)], (0.0, 1.0, 6.0, 20.0)))
    found = []
    for adjoint in (False, True):
        z = {name: value.requires_grad_() for name, value in values(CL=0.1, **SLOW).items()}
        solve(replace(TWO, rtol=1e-7, atol=1e-6, adjoint=adjoint), schedule, z).sum().backward()
        found.append(torch.stack([value.grad.sum() for value in z.values() if value.grad is not None]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6 * float(found[0].abs().max()))


def alone(pk: PkModel, schedule: Schedule, wrong: dict[str, list[float]], others: dict[str, float]) -> None:
    """The first of two fits has no steady state, and the second is what it is by itself, gradients too."""
    z = {name: value.requires_grad_() for name, value in values(**wrong, **others).items()}
    got = solve(pk, schedule, z)
    assert got[..., 0].isnan().any()
    by_itself = values(**{name: pair[1] for name, pair in wrong.items()}, **others)
    close(got[..., 1:], solve(pk, schedule, by_itself).numpy(), 1e-7)
    got[..., 1].sum().backward()
    for name in wrong:
        gradient = z[name].grad
        assert gradient is not None
        assert gradient[..., 1].isfinite().all()


SERIES = built(Regimen([Dose(0.0, 100.0, interval=12.0)], (0.0, 1.0, 6.0, 20.0)))
MODELLED = built(Regimen([Dose(0.0, 100.0, modelled=True, interval=12.0)], (0.0, 1.0, 6.0, 20.0)))
NO_CHANGE: dict[str, Any] = {"change": torch.full((1, 1, 1, 1), torch.inf, dtype=F64)}


def test_amounts_that_grow_without_bound_are_no_steady_state() -> None:
    """100 every 12 h, of which 60 can be eliminated, and 240."""
    alone(
        OdeModel(michaelis_menten_rate, ("VM", "KM", "V1"), 1),
        SERIES,
        {"VM": [5.0, 20.0]},
        {"KM": 2, "V1": 10},
    )


def test_a_duration_or_a_lag_beyond_any_number_of_doses_fails_alone() -> None:
    others = {"CL": 2.0, "V1": 20.0, "KA": 1.0}
    alone(LAGGED, MODELLED, {"D": [1e5, 30.0]}, {**others, "LAG": 1.0})
    alone(LAGGED, MODELLED, {"D": [torch.nan, 30.0]}, {**others, "LAG": 1.0})
    changing = replace(SERIES, **NO_CHANGE)
    z = values(LAG=[1e5, 20.0], D=1.0, **others)
    got = stepwise.predict(LAGGED, changing, {name: value[None] for name, value in z.items()})
    assert got[..., 0].isnan().all()
    one = solve(LAGGED, SERIES, values(LAG=20.0, D=1.0, **others))
    close(got[..., 1:], one.numpy(), 1e-8)


@pytest.mark.parametrize("apart", [False, True])
def test_a_search_that_goes_round_begins_again_after_doses(apart: bool) -> None:
    """Newton's method for 2 + 2 x - x^3 goes from 0 to -1 and back, but from near its root, 1.7693, there."""

    def period(x: Tensor) -> Tensor:
        return x + (2 + 2 * x - x**3) / 10

    def slope(x: Tensor) -> tuple[Tensor, Tensor]:
        return period(x), (1 + (2 - 3 * x**2) / 10)[None]

    some = (lambda _: (period, slope)) if apart else None
    way = Followed(period, slope, Tolerance(1e-9, 1e-9, 1e-9, 1e-9), some)
    nothing, wanted = torch.zeros(1, 1, 1, 3, dtype=F64), torch.tensor([[[True, False, True]]])
    assert not bool(searched(way, nothing, wanted, 0)[2].any())
    for begin in (None, nearly(way, slope, nothing, wanted)):
        x, inverse, settled = searched(way, nothing, wanted, 50, begin)
        assert settled.tolist() == wanted.tolist()
        root = torch.full((2,), 1.7692923542386314, dtype=F64)
        torch.testing.assert_close(x[0][wanted], root, rtol=1e-9, atol=0)
        torch.testing.assert_close(inverse[0, 0][wanted], 10 / (3 * root**2 - 2), rtol=1e-6, atol=0)


def test_no_elimination_is_no_steady_state_of_one_fit_alone() -> None:
    z = {name: value[None] for name, value in values(CL=[0.0, 0.1], **SLOW).items()}
    got = stepwise.predict(two_compartment(), replace(SERIES, **NO_CHANGE), z)
    assert not got[..., 0].isfinite().any()
    close(got[..., 1:], solve(two_compartment(), SERIES, values(CL=0.1, **SLOW)).numpy(), 1e-8)
