"""The linear part of a mixed system: it is exact with the rest of the system, in amounts and all derivatives,
and steps are those of the rest."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.pk import Along, OdeModel, Schedule, integrated, sensitivities, solve
from medcm_cli.pk.linear_part import linear_parts
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
            output=lambda _, a, p: a.response + a.site / p.V1,
            start=lambda p: {"response": p.KIN / p.KOUT},
            **DOSES,
            **TIGHT,
        ),
        {"CL": 0.4, "V1": 2.0, "Q": 0.15, "V2": 0.75, "KA": 0.9, "KE": 2.5, "KIN": 5.0, "KOUT": 0.3}
        | {"IC50": 90.0, "IMAX": 0.9, **OF_DOSES},
        (0, 2, 3, 4),
    ),
    "two": (
        OdeModel(
            two_rate,
            ("CL", "V1", "Q", "V2", "KIN", "KOUT", "EC50", "EMAX"),
            output=lambda _, a, p: a.later + a.response + a.peripheral / p.V2,
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
            output=lambda _, a, p: a.own / p.V1 + a.bound,
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
            **{**TIGHT, "atol": 1e-10},
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
        found += torch.autograd.grad(torch.stack([(by * by).sum() for by in first]).sum(), leaves)
    return found


def same(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    assert all(bool(torch.isfinite(of).all()) for of in got)
    for found, wanted in zip(got, want, strict=True):
        size = float(wanted.detach().abs().max())
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * size + 1e-12)


def without_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrated, "linear_parts", lambda _: ())


@EACH
def test_a_part_has_the_states_that_depend_on_each_other_alone(name: str) -> None:
    pk, _, inside = MODELS[name]
    assert pk.formula is not None
    part = linear_parts(pk.formula)[0]
    assert part.inside == inside
    assert {*part.inside, *part.outside} == set(range(len(pk.states)))
    assert part.at({name: value for name, value in values(name).items() if name in pk.parameters})


@EACH
def test_amounts_and_derivatives_are_those_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lag time, share that arrives, modelled duration, infusions, doses into two states, a reset."""
    pk, z, schedule = MODELS[name][0], values(name), regimen(name)
    wrt = [*list(MODELS[name][1])[::3], *OF_DOSES]
    got = everything(pk, schedule, z, wrt)
    without_parts(monkeypatch)
    same(got, everything(pk, schedule, z, wrt), 1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "chemical" else ()) for name in MODELS]
)
def test_amounts_are_those_of_scipy(name: str) -> None:
    """Of doses at once and infusions into the first two states, one of which does not end before it is
    seen."""
    pk = replace(MODELS[name][0], lag={}, bioavailability={}, durations={})
    z = {key: value.detach()[..., :1] for key, value in values(name, subjects=3).items()}
    size = {"chemical": 1e-3}.get(name, 1.0)
    doses = [Dose(0.0, 1500 * size), Dose(4.0, 900 * size, 9.0, 1), Dose(8.0, 500 * size, 3.0)]
    schedule = built(Regimen(doses, REGIMEN.times)).each(lambda part: part.expand(*part.shape[:-2], 3, 1))
    given = [
        Piece(dose.compartment or 0, *(np.full(3, of) for of in (dose.start, dose.duration, dose.amount)))
        for dose in doses
    ]

    def right(t: np.ndarray, amounts: np.ndarray) -> np.ndarray:
        a = torch.from_numpy(amounts)[:, None, :, None]
        return np.asarray(pk.right_side(torch.from_numpy(t)[None, :, None], a, z)[:, 0, :, 0].numpy())

    begun = pk.begin(z)
    start = np.zeros((len(pk.states), 3)) if begun is None else begun[:, 0, :, 0].numpy()
    want = torch.from_numpy(together(right, start, given, schedule, name == "chemical", 1e-13))
    want = want[:, :, None, :, None] if pk.seen is None else want[:, pk.seen, None, :, None]
    close(solve(pk, schedule, z), pk._observed(schedule, want, z).numpy(), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["depot", "chain", "formed"])
def test_after_a_steady_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pk, z, schedule = MODELS[name][0], values(name), regimen(name, steady=True)
    wrt = list(z)
    got = everything(pk, schedule, z, wrt)
    without_parts(monkeypatch)
    same(got, everything(pk, schedule, z, wrt), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["depot", "formed"])
def test_second_derivatives_are_those_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pk, z = replace(MODELS[name][0], rtol=1e-7, atol=1e-7), values(name)
    wrt, doses = list(z)[:2], [Dose(0.0, 1500), Dose(2.0, 700, modelled=True)]
    schedule = built(Regimen(doses, (1.0, 6.0))).each(lambda part: part.expand(*part.shape[:-2], 2, 2))
    got = curved(pk, schedule, z, wrt)
    without_parts(monkeypatch)
    same(got, curved(pk, schedule, z, wrt), 1e-4)


def test_parameters_and_directions_that_change_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on occasions."""
    pk, typical, _ = MODELS["chain"]
    schedule = built(Regimen(REGIMEN.doses[:3], REGIMEN.times[:3]), (4.5, math.inf))
    g = torch.Generator().manual_seed(4)
    z = {
        name: (value * (0.85 + 0.3 * torch.rand(2, 1, 1, 1, generator=g, dtype=F64))).requires_grad_()
        for name, value in typical.items()
    }
    second = torch.tensor([0.0, 1.0], dtype=F64).view(2, 1, 1, 1)
    wrt = [Along("CL", second), Along("KA", 1 - second), Along("LAG", second), "KE"]
    got = everything(pk, schedule, z, wrt)
    without_parts(monkeypatch)
    same(got, everything(pk, schedule, z, wrt), 1e-5)


def oral_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Whose part has two rates, which may be equal."""
    del t
    absorbed, lost = p.KA * a.depot, p.CL / p.V1 * a.central
    c = a.central / p.V1
    return {
        "depot": -absorbed,
        "central": absorbed - lost,
        "response": p.KIN - p.KOUT * (1 + c / (1 + c)) * a.response,
    }


ORAL = OdeModel(
    oral_rate,
    ("KA", "CL", "V1", "KIN", "KOUT"),
    output=lambda _, a, __: a.response,
    start=lambda p: {"response": p.KIN / p.KOUT},
    **TIGHT,
)


@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-3, 0.05, 0.5])
def test_rates_may_come_close_to_each_other(apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part whose rates do the depot alone is left."""
    assert ORAL.formula is not None
    both, depot = linear_parts(ORAL.formula)
    assert (both.inside, depot.inside) == ((0, 1), (0,))
    z = {"KA": 0.4 * (1 + apart), "CL": 0.8, "V1": 2.0, "KIN": 3.0, "KOUT": 0.5}
    leaves = {name: torch.full((1, 1, 1), of, dtype=F64).requires_grad_() for name, of in z.items()}
    assert (both.at(leaves) is None) == (apart < 0.01)
    assert depot.at(leaves) is not None
    schedule = built(Regimen([Dose(0.0, 30.0), Dose(2.0, 20.0, 3.0, 1)], (1.0, 4.0, 12.0)))
    got = everything(ORAL, schedule, leaves, list(z))
    without_parts(monkeypatch)
    same(got, everything(ORAL, schedule, leaves, list(z)), 1e-5)


def test_in_single_precision_derivatives_keep_their_digits() -> None:
    """After an infusion of a minute, and where rates are as close to each other as they may be."""
    schedule = built(Regimen([Dose(0.0, 30.0, 1 / 60), Dose(8.0, 20.0, 6.0)], (0.02, 1.0, 9.0, 24.0)))
    z = {"KA": 0.4, "CL": 0.8 * 0.86, "V1": 2.0, "KIN": 3.0, "KOUT": 0.5}
    found = []
    for dtype in (torch.float32, F64):
        leaves = {name: torch.full((1, 1, 1), of, dtype=dtype).requires_grad_() for name, of in z.items()}
        pk = replace(ORAL, rtol=1e-5, atol=1e-5)
        found.append(everything(pk, schedule.to(dtype), leaves, ["KA", "CL"]))
    same([of.double() for of in found[0]], found[1], 2e-4)


def test_steps_are_those_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a depot that empties within minutes none is left after that."""
    taken = list[int]()
    path = March.path

    def counted(self: March, *given: Any) -> Path:
        found = path(self, *given)
        taken.append(len(found.steps))
        return found

    monkeypatch.setattr(March, "path", counted)
    pk, typical, _ = MODELS["depot"]
    z = {name: torch.full((1, 1, 1), value, dtype=F64) for name, value in {**typical, "KA": 60.0}.items()}
    schedule = built(Regimen([Dose(0.0, 100.0)], (1.0, 24.0)))
    pk = replace(pk, lag={}, rtol=1e-6, atol=1e-6)
    amounts = [solve(pk, schedule, z)]
    apart = sum(taken)
    without_parts(monkeypatch)
    amounts.append(solve(pk, schedule, z))
    torch.testing.assert_close(*amounts, rtol=1e-4, atol=1e-4)
    assert sum(taken) - apart > 5 * apart


def test_what_is_at_rest_begins_with_a_step_as_long_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response which the drug has not reached changes at a rate of 0, to rounding."""
    begun = list[float]()
    path = March.path

    def seen(self: March, *given: Any) -> Path:
        found = path(self, *given)
        begun.append(found.steps[0][1])
        return found

    monkeypatch.setattr(March, "path", seen)
    z = {"KA": 0.4, "CL": 0.2, "V1": 2.0, "KIN": 3.0, "KOUT": 0.7}
    leaves = {name: torch.full((1, 1, 1), of, dtype=F64) for name, of in z.items()}
    solve(replace(ORAL, rtol=1e-6, atol=1e-6), built(Regimen([Dose(0.0, 30.0)], (4.0,))), leaves)
    assert begun[-1] > 1e-3


def test_a_part_that_swings_is_integrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose eigenvalues are not real."""

    def rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
        del t
        return {
            "one": -p.K * a.two,
            "two": p.K * a.one - p.K * a.two / 4,
            "rest": p.K * a.one**2 - p.V * a.rest / (1 + a.rest),
        }

    pk = OdeModel(rate, ("K", "V"), observed="rest", volume="V", **TIGHT)
    assert pk.formula is not None
    z = {name: torch.full((1, 1, 1), 0.7, dtype=F64) for name in ("K", "V")}
    assert [part.inside for part in linear_parts(pk.formula)] == [(0, 1)]
    assert linear_parts(pk.formula)[0].at(z) is None
    schedule = built(Regimen([Dose(0.0, 3.0)], (1.0, 6.0)))
    got = solve(pk, schedule, z)
    without_parts(monkeypatch)
    assert torch.equal(got, solve(pk, schedule, z))
