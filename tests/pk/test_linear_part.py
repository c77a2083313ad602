"""The linear part of a mixed system: which states it has, that it is exact with the rest of the system, in
amounts and all derivatives, and that steps are those of the rest."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.pk import Along, OdeModel, Schedule, integrated, sensitivities, solve
from medcm_cli.pk.linear_part import linear_part
from medcm_cli.pk.steps import March, Path
from tests.pk.regimens import Dose, Piece, Regimen, built, close, together

F64 = torch.float64


def depot_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    del t
    absorbed, c = p.KA * a.depot, a.central / p.V1
    return {"depot": -absorbed, "central": absorbed - p.VM * c / (p.KM + c)}


def chain_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Depot, two compartments and one where the drug acts, all linear, and a response that is not."""
    del t
    absorbed, over = p.KA * a.depot, p.Q * (a.central / p.V1 - a.peripheral / p.V2)
    acts = p.IMAX * a.site / (p.IC50 + a.site)
    return {
        "depot": -absorbed,
        "response": p.KIN * (1 - acts) - p.KOUT * a.response,
        "central": absorbed - p.CL / p.V1 * a.central - over,
        "peripheral": over,
        "site": p.KE * (a.central / p.V1 - a.site),
    }


def two_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Two compartments, and two responses of which one depends on the other and on the time."""
    c, over = a.central / p.V1, p.Q * (a.central / p.V1 - a.peripheral / p.V2)
    lost = p.KOUT * (1 + p.EMAX * c / (p.EC50 + c)) * a.response
    return {
        "central": -p.CL * c - over,
        "peripheral": over,
        "response": p.KIN * (1 + torch.sin(t / 5) / 3) - lost,
        "later": lost - p.KOUT * a.later**1.2,
    }


def formed_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """A substance that is formed at a constant rate, and what takes it up and becomes saturated."""
    del t
    return {"own": p.CL * (p.BASE - a.own / p.V1), "bound": p.VM * a.own / (p.KM + a.bound) - a.bound / 4}


def chemical_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """As Robertson's: three substances of which the second is slow to form and fast to go, from a depot."""
    del t
    first, second, third = p.K1 * a.a, p.K2 * a.b * a.c, p.K3 * a.b * a.b
    return {
        "depot": -p.KA * a.depot,
        "a": p.KA * a.depot - first + second,
        "b": first - second - third,
        "c": third,
    }


TIGHT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8, "amount_per_level": 1.0}
DOSES: dict[str, Any] = {"lag": {1: "LAG"}, "bioavailability": {1: "F"}, "durations": {1: "D"}}
OF_DOSES = {"LAG": 0.7, "F": 0.6, "D": 3.5}
MODELS: dict[str, tuple[OdeModel, dict[str, float], tuple[int, ...]]] = {
    "depot": (
        OdeModel(depot_rate, ("VM", "KM", "V1", "KA"), observed=2, **DOSES, **TIGHT),
        {"VM": 60.0, "KM": 30.0, "V1": 5.0, "KA": 0.9, **OF_DOSES},
        (0,),
    ),
    "chain": (
        OdeModel(
            chain_rate,
            ("CL", "V1", "Q", "V2", "KA", "KE", "KIN", "KOUT", "IC50", "IMAX"),
            output=lambda t, a, p: a.response + a.site / p.V1,
            start=lambda p: {"response": p.KIN / p.KOUT},
            **DOSES,
            **TIGHT,
        ),
        {"CL": 0.4, "V1": 2.0, "Q": 0.15, "V2": 0.75, "KA": 0.9, "KE": 0.5, "KIN": 5.0, "KOUT": 0.3}
        | {"IC50": 90.0, "IMAX": 0.9, **OF_DOSES},
        (0, 2, 3, 4),
    ),
    "two": (
        OdeModel(
            two_rate,
            ("CL", "V1", "Q", "V2", "KIN", "KOUT", "EC50", "EMAX"),
            output=lambda t, a, p: a.later + a.response + a.peripheral / p.V2,
            start=lambda p: {"response": p.KIN / p.KOUT, "later": p.KIN},
            **DOSES,
            **TIGHT,
        ),
        {"CL": 0.4, "V1": 2.0, "Q": 0.15, "V2": 0.75, "KIN": 5.0, "KOUT": 0.3, "EC50": 90.0, "EMAX": 2.0}
        | OF_DOSES,
        (0, 1),
    ),
    "formed": (
        OdeModel(
            formed_rate,
            ("CL", "V1", "BASE", "VM", "KM"),
            output=lambda t, a, p: a.own / p.V1 + a.bound,
            start=lambda p: {"own": p.BASE * p.V1},
            **DOSES,
            **TIGHT,
        ),
        {"CL": 0.4, "V1": 2.0, "BASE": 30.0, "VM": 0.8, "KM": 20.0, **OF_DOSES},
        (0,),
    ),
    "chemical": (
        OdeModel(
            chemical_rate,
            ("K1", "K2", "K3", "KA"),
            observed=3,
            volume="KA",
            method="kvaerno5",
            **DOSES,
            **{**TIGHT, "rtol": 1e-7, "atol": 1e-9},
        ),
        {"K1": 0.4, "K2": 30.0, "K3": 300.0, "KA": 0.9, **OF_DOSES},
        (0,),
    ),
}
EACH = pytest.mark.parametrize("name", MODELS)
REGIMEN = Regimen(
    [Dose(0.0), Dose(4.0, 900, 9.0, 1), Dose(6.0, 700, modelled=True), Dose(21.0, 400, 1 / 60)],
    (1.0, 5.0, 14.0, 22.0),
    resets=(20.0,),
)
"""Doses at once and over a time, into two states, of which the third lasts as long as a parameter says."""


def values(name: str, samples: int = 1, subjects: int = 2, fits: int = 2, seed: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape = (samples, subjects, fits)
    return {
        key: (typical * (0.85 + 0.3 * torch.rand(shape, generator=g, dtype=F64))).requires_grad_()
        for key, typical in MODELS[name][1].items()
    }


def regimen(name: str, steady: bool = False) -> Schedule:
    """Of small amounts where equations are stiff."""
    size = {"chemical": 1e-3}.get(name, 1.0)
    doses = [replace(dose, amount=size * dose.amount) for dose in REGIMEN.doses]
    of = Regimen(doses, REGIMEN.times, REGIMEN.resets)
    if steady:
        doses.append(Dose(60.0, 400 * size, 2.0, interval=8))
        of = Regimen(doses[-2:], (*REGIMEN.times[-1:], 61.0, 70.0), (60.0,))
    return built(of).each(lambda part: part.expand(*part.shape[:-2], 2, 2))


def everything(pk: OdeModel, schedule: Schedule, z: dict[str, Tensor], wrt: list[Any]) -> list[Tensor]:
    """A prediction, its sensitivities, the gradient of a function of both, and that of a prediction alone; as
    much of this as there is without gradients."""
    prediction, slopes = sensitivities(pk, schedule, z, wrt)
    size = float(prediction.detach().abs().mean())
    both = (prediction / size).square().mean() + (torch.stack(slopes) / size).square().mean()
    alone, leaves = solve(pk, schedule, z), list(z.values())
    gradients = [torch.autograd.grad(of, leaves) for of in (both, (alone / size).square().mean())]
    with torch.no_grad():
        quiet = sensitivities(pk, schedule, z, wrt)
        return [prediction, *slopes, alone, *gradients[0], *gradients[1], quiet[0], *quiet[1]]


def curved(pk: OdeModel, schedule: Schedule, z: dict[str, Tensor], wrt: list[Any]) -> list[Tensor]:
    """Second derivatives of predictions, and of sensitivities."""
    prediction, slopes = sensitivities(pk, schedule, z, wrt)
    leaves, found = list(z.values()), list[Tensor]()
    for of in (solve(pk, schedule, z), torch.stack([prediction, *slopes])):
        value = torch.log1p((of / of.detach().abs().mean()).square()).mean()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        found += torch.autograd.grad(sum((by * by).sum() for by in first), leaves)
    return found


def same(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    assert all(bool(torch.isfinite(of).all()) for of in got)
    for found, wanted in zip(got, want, strict=True):
        size = float(wanted.detach().abs().max())
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * size + 1e-12)


def without_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrated, "linear_part", lambda _: None)


@EACH
def test_a_part_has_the_states_that_depend_on_each_other_alone(name: str) -> None:
    pk, _, inside = MODELS[name]
    assert pk.formula is not None
    part = linear_part(pk.formula)
    assert part is not None
    assert part.inside == inside
    assert {*part.inside, *part.outside} == set(range(len(pk.states)))


@EACH
def test_amounts_and_derivatives_are_those_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lag time, share that arrives, modelled duration, infusions, doses into two states, a reset."""
    pk, z, schedule = MODELS[name][0], values(name), regimen(name)
    got = everything(pk, schedule, z, list(z))
    without_parts(monkeypatch)
    same(got, everything(pk, schedule, z, list(z)), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["depot", "chain", "formed"])
def test_after_a_steady_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pk, z, schedule = MODELS[name][0], values(name), regimen(name, steady=True)
    got = everything(pk, schedule, z, list(z))
    without_parts(monkeypatch)
    same(got, everything(pk, schedule, z, list(z)), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["depot", "formed", "chemical"])
def test_second_derivatives_are_those_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pk, z = replace(MODELS[name][0], rtol=1e-7, atol=1e-7), values(name)
    size, wrt = {"chemical": 1e-3}.get(name, 1.0), list(z)[:2]
    doses = [Dose(0.0, 1500 * size), Dose(2.0, 700 * size, modelled=True)]
    schedule = built(Regimen(doses, (1.0, 6.0))).each(lambda part: part.expand(*part.shape[:-2], 2, 2))
    got = curved(pk, schedule, z, wrt)
    without_parts(monkeypatch)
    same(got, curved(pk, schedule, z, wrt), 1e-4)
