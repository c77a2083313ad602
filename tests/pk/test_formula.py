"""Rates as formulas: which have one, and that nothing is another number by it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from medcm_cli.pk import OdeModel, learned_elimination_rate, sensitivities, two_compartment_rate
from medcm_cli.pk.formula import formula_of
from medcm_cli.pk.rates import Written
from medcm_cli.pk.symbols import ONE, ZERO, add, derivative, div, given, mul, neg, number, scaled, sub
from tests.pk.regimens import DOSE_TYPICAL, NAMED, Dose, Regimen, built
from tests.pk.test_models import CASES, named

F64 = torch.float64


def everything(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Whatever a formula knows."""
    c = a.central / p.V1
    swings = 1 + torch.sin(t / 3) * torch.cos(p.K * t) / 4
    hill = c.clamp(min=1e-6) ** p.G / (p.H**p.G + c.clamp(1e-6).pow(p.G))
    switched = torch.where(c > p.H, torch.log1p(c), torch.expm1(0.1 * c).clamp(min=0.01, max=2.0))
    smooth = torch.tanh(c) + torch.sigmoid(-a.other) + torch.exp(-p.K * c) + torch.log(2 + a.other)
    flow = p.K * swings * hill + torch.square(c) / (1 + c * c) - 0.5 * torch.sqrt(1 + c)
    return {"central": -flow - switched * a.central, "other": 3.0 - a.other / (2 - smooth.reciprocal() / 9)}


CHOICES = [
    *(
        (f"{case.choice} {'-'.join(case.values)}", named(case.choice, tuple(case.values)), dict(case.values))
        for case in CASES
        if case.size == 100 and not case.choice.startswith("effect_h")  # fast binding takes seconds
    ),
    ("two", OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2")), {"CL": 0.4, "V1": 2, "Q": 0.3, "V2": 3}),
    ("everything", OdeModel(everything, ("V1", "K", "G", "H")), {"V1": 5.0, "K": 0.3, "G": 1.7, "H": 2.0}),
]
"""Two doses, of which the infusion lasts longer in one subject than in the other."""
REGIMEN = Regimen([Dose(0.25, 60.0), Dose(4.0, 50.0, 3.0)], (0.0, 3.0, 6.0, 9.0))


def differentiated(pk: OdeModel, typical: dict[str, float]) -> list[Tensor]:
    """A prediction, its derivatives, and the gradient of a function of these."""
    g = torch.Generator().manual_seed(1)
    z = {
        name: (value * (0.8 + 0.4 * torch.rand(2, 3, 2, generator=g, dtype=F64))).requires_grad_()
        for name, value in typical.items()
    }
    schedule = built(REGIMEN, None).each(lambda part: part.expand(*part.shape[:-2], 3, 2))
    prediction, slopes = sensitivities(pk, schedule, z, list(typical))
    total = prediction.square().mean() + torch.stack(slopes).square().mean()
    with torch.no_grad():
        quiet, quiet_slopes = sensitivities(pk, schedule, z, list(typical))
    gradients = torch.autograd.grad(total, list(z.values()))
    return [prediction, *slopes, *gradients, quiet, *quiet_slopes]


@pytest.mark.parametrize(("pk", "typical"), [of[1:] for of in CHOICES], ids=[of[0] for of in CHOICES])
@pytest.mark.parametrize("doses", ["given", "modelled"])
def test_numbers_are_those_of_the_function(
    pk: OdeModel, typical: dict[str, float], doses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions, sensitivities and gradients, along the same steps; also where doses have a lag time, and a
    share arrives."""
    monkeypatch.setattr("medcm_cli.pk.integrated.linear_parts", lambda _: ())  # which takes others
    tolerance = 1e-2 if pk.rate is everything else 1e-5  # its kinks take many steps
    options: dict[str, Any] = {"method": "tsit5", "rtol": tolerance, "atol": tolerance}
    if doses == "modelled":
        options |= {"lag": NAMED["lag"], "bioavailability": NAMED["bioavailability"]}
        typical = {**typical, "LAG": DOSE_TYPICAL["LAG"], "F": DOSE_TYPICAL["F"]}
    pk = replace(pk, **options)
    asks_for_type = {"L1", "HILL"} & set(typical)
    assert (pk.formula is None) == bool(asks_for_type)
    got = differentiated(pk, typical)
    monkeypatch.setattr("medcm_cli.pk.ode.formula_of", lambda _: None)
    for found, wanted in zip(got, differentiated(pk, typical), strict=True):
        size = float(wanted.detach().abs().max())
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7 * size)


def of(function: Callable[..., Any], parameters: tuple[str, ...] = ("K",)) -> bool:
    return formula_of(Written(function, ("central",), parameters)) is not None


def looked_up(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    del t
    return {"central": -p.K * torch.special.gammaln(1 + a.central)}


def in_place(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    del t
    loss = p.K * a.central
    loss.mul_(2.0)
    return {"central": -loss}


def branched(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    del t
    return {"central": -p.K * a.central if bool((a.central > 0).all()) else a.central}


def typed(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    del t
    return {"central": -p.K * a.central * torch.finfo(a.central.dtype).eps}


@pytest.mark.parametrize("function", [looked_up, in_place, branched, typed])
def test_a_function_that_does_something_else_has_none(function: Callable[..., Any]) -> None:
    assert not of(function)


def test_learned_terms_have_none() -> None:
    pk = OdeModel(
        learned_elimination_rate, ("CL", "V1"), 1, terms={"elimination": {"inputs": {"level": 100}}}
    )
    assert pk.formula is None


def test_expressions_are_simplified() -> None:
    x, y, k = given("x", False), given("y", False), given("k", True)
    assert mul(k, mul(number(2), x)) is mul(mul(number(2), k), x)
    assert sub(mul(k, x), mul(k, x)) is ZERO
    assert derivative(mul(k, x), x) is k
    assert derivative(mul(k, x), y) is ZERO
    assert div(mul(k, x), x) is k
    assert derivative(div(x, y), x) is div(ONE, y)


def test_multiples_of_one_thing_are_gathered_where_that_leaves_less() -> None:
    x, y, k, r, w = (given(name, name in "krw") for name in "xykrw")
    over = sub(mul(k, x), mul(r, y))
    gathered = scaled(w, sub(neg(mul(k, x)), over))  # -2 k x + r y
    assert gathered is add(mul(add(mul(w, neg(k)), mul(neg(w), k)), x), mul(mul(neg(w), neg(r)), y))
    assert scaled(w, over) is add(mul(mul(w, k), x), mul(mul(w, neg(r)), y))
    apart = mul(k, add(mul(x, y), mul(r, x)))  # whose first term has no factor that is fixed
    assert scaled(w, apart) is mul(w, apart)
