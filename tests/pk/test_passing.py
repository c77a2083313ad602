"""Observations that amounts pass without a change: against scipy, and against intervals one by one."""

import gc
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from medcm_cli.pk import (
    OdeModel,
    Schedule,
    integrated,
    michaelis_menten_rate,
    sensitivities,
    solve,
    two_compartment_rate,
)
from medcm_cli.pk.passing import Passing
from medcm_cli.pk.steps import March, Path
from tests.pk.regimens import Dose, Regimen, built

F64 = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9, "amount_per_level": 1.0}
SATURABLE = {"VM": 12.0, "KM": 30.0, "V1": 5.0}
HOURS = (0.0, 0.5, 1.0, 2.0, 4.0, 7.0, 8.0, 12.0, 13.0, 18.0, 24.0, 25.0, 40.0)
LATER = (60.0, 61.0, 64.0, 66.0, 70.0, 71.0, 71.5)


def bound_rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """Not a formula that is known: by torch."""
    del t
    level = a.central / p.V1
    return {"central": -torch.special.expit(level / p.KM) * p.VM * a.central / (p.V1 * p.KM)}


def waking_rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """Elimination that goes up and down over the day."""
    level = a.central / p.V1
    return {"central": -p.VM * (1 + 0.5 * torch.sin(0.26 * t)) * level / (p.KM + level)}


OF_DOSES: dict[str, Any] = {"lag": {1: "LAG"}, "bioavailability": {1: "F"}, "durations": {1: "D"}}
MOVED = {"LAG": 0.7, "F": 0.6, "D": 1.5}
MODELS: dict[str, tuple[OdeModel, dict[str, float]]] = {
    "formula": (OdeModel(michaelis_menten_rate, tuple(SATURABLE), **TIGHT), SATURABLE),
    "by torch": (OdeModel(bound_rate, tuple(SATURABLE), ("central",), **TIGHT), SATURABLE),
    "of the time": (OdeModel(waking_rate, tuple(SATURABLE), ("central",), **TIGHT), SATURABLE),
    "a linear part": (
        OdeModel(michaelis_menten_rate, (*SATURABLE, "KA"), observed=2, **TIGHT),
        {**SATURABLE, "KA": 0.8},
    ),
    "implicit": (
        OdeModel(michaelis_menten_rate, (*SATURABLE, "KA"), observed=2, method="kvaerno5", **TIGHT),
        {**SATURABLE, "KA": 0.8},
    ),
    "two": (
        OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), method="tsit5", **TIGHT),
        {"CL": 0.4, "V1": 2.0, "Q": 0.15, "V2": 0.75},
    ),
    "moved": (
        OdeModel(michaelis_menten_rate, (*SATURABLE, "KA"), observed=2, **OF_DOSES, **TIGHT),
        {**SATURABLE, "KA": 0.8, **MOVED},
    ),
    "moved, of the time": (
        OdeModel(waking_rate, tuple(SATURABLE), ("central",), **OF_DOSES, **TIGHT),
        {**SATURABLE, **MOVED},
    ),
}
EACH = pytest.mark.parametrize("name", MODELS)


def values(name: str, samples: int = 2, subjects: int = 3, fits: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    shape = (samples, subjects, fits)
    return {
        key: (typical * (0.8 + 0.4 * torch.rand(shape, generator=g, dtype=F64))).requires_grad_()
        for key, typical in MODELS[name][1].items()
    }


def schedule_of(name: str, regimen: Regimen | None = None, subjects: int = 3, fits: int = 2) -> Schedule:
    """Of subjects that are observed at other times."""
    doses = [Dose(0.0, 400.0), Dose(24.0, 300.0, 2.0), Dose(60.0, 200.0, modelled="moved" in name)]
    found = built(regimen or Regimen(doses, (*HOURS, *LATER), resets=(50.0,)))
    found = found.each(lambda part: part.expand(*part.shape[:-2], subjects, fits).clone())
    shift = 0.3 * torch.arange(subjects, dtype=F64).view(-1, 1) / subjects
    return replace(found, time=torch.where(found.time % 6 == 0, found.time, found.time + shift))


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrated, "FEWEST", 10**6)


def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many observations were found together, each time."""
    found, steps = list[int](), Passing.steps

    def counted(self: Passing, events: Sequence[int], *given: Any) -> Any:
        found.append(len(events))
        return steps(self, events, *given)

    monkeypatch.setattr(Passing, "steps", counted)
    return found


def everything(pk: OdeModel, schedule: Schedule, z: dict[str, Tensor], wrt: list[str]) -> list[Tensor]:
    """A prediction, its sensitivities, gradients of these, and the prediction alone with its gradient."""
    prediction, slopes = sensitivities(pk, schedule, z, wrt)
    both = torch.stack([prediction, *slopes])
    leaves = list(z.values())
    alone = solve(pk, schedule, z)
    found = [prediction, *slopes, alone]
    for of in (both, alone):
        found += torch.autograd.grad((of / of.detach().abs().mean()).square().mean(), leaves)
    with torch.no_grad():
        return [*found, solve(pk, schedule, z), *sensitivities(pk, schedule, z, wrt)[1]]


def second(pk: OdeModel, schedule: Schedule, z: dict[str, Tensor], wrt: list[str]) -> list[Tensor]:
    prediction, slopes = sensitivities(pk, schedule, z, wrt)
    unused: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    leaves, found = list(z.values()), list[Tensor]()
    for of in (solve(pk, schedule, z), torch.stack([prediction, *slopes])):
        value = torch.log1p((of / of.detach().abs().mean()).square()).mean()
        first = torch.autograd.grad(value, leaves, create_graph=True, **unused)
        found += torch.autograd.grad(torch.stack([(by * by).sum() for by in first]).sum(), leaves, **unused)
    return found


def same(got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float) -> None:
    for found, wanted in zip(got, want, strict=True):
        size = float(wanted.detach().abs().max())
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * size)


@EACH
def test_values_and_derivatives_are_those_of_intervals_one_by_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pk, z, schedule, found = MODELS[name][0], values(name), schedule_of(name), passed(monkeypatch)
    wrt = list(z)
    got = everything(pk, schedule, z, wrt)
    assert max(found) >= 5
    one_by_one(monkeypatch)
    same(got, everything(pk, schedule, z, wrt), 1e-6)


@pytest.mark.parametrize("name", ["formula", "a linear part", "by torch", "moved"])
def test_second_derivatives_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pk, z = replace(MODELS[name][0], rtol=1e-8, atol=1e-8), values(name, 1, 2, 1)
    schedule = schedule_of(name, Regimen([Dose(0.0, 400.0)], HOURS[1:7]), subjects=2, fits=1)
    wrt, found = ["LAG" if name == "moved" else [*z][-1]], passed(monkeypatch)
    got = second(pk, schedule, z, wrt)
    assert max(found) >= 4
    one_by_one(monkeypatch)
    same(got, second(pk, schedule, z, wrt), 1e-5)


@pytest.mark.parametrize("name", ["formula", "a linear part", "of the time"])
def test_amounts_are_those_of_scipy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two doses at once, the second from another time on."""
    found = passed(monkeypatch)
    doses = [Dose(0.0, 400.0), Dose(24.0, 300.0)]
    times = tuple(hour for hour in HOURS if hour % 24)
    schedule, z = schedule_of(name, Regimen(doses, times)), values(name)
    pk = MODELS[name][0]
    got = solve(pk, schedule, z).detach()
    assert max(found) >= 6

    def change(t: float, a: np.ndarray, own: dict[str, float]) -> np.ndarray:
        drug, into = a[-1], 0.0
        if len(a) > 1:
            into = own["KA"] * a[0]
        daily = 1 + 0.5 * np.sin(0.26 * t) if name == "of the time" else 1.0
        out = own["VM"] * daily * drug / own["V1"] / (own["KM"] + drug / own["V1"])
        return np.array([*([-into] if len(a) > 1 else []), into - out])

    for at in itertools.product(range(2), range(3), range(2)):
        own = {key: float(value.detach()[at]) for key, value in z.items()}
        hours = schedule.time[:, 0, at[1], 0].numpy()
        a, seen = np.zeros(2 if "KA" in own else 1), list[float]()
        for begin, end, amount in ((0.0, 24.0, 400.0), (24.0, 50.0, 300.0)):
            a[0] += amount
            inner = hours[(hours > begin) & (hours < end)]
            way = solve_ivp(
                change, (begin, end), a, "DOP853", t_eval=[*inner, end], rtol=1e-11, atol=1e-11, args=(own,)
            )
            seen += list(way.y[-1][:-1] / own["V1"])
            a = way.y[:, -1]
        assert got[:, *at].numpy() == pytest.approx(np.array(seen), rel=1e-7, abs=1e-7)


def test_fewer_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where observations are close, no more than a few for all of them."""
    taken, path = list[int](), March.path

    def counted(self: March, *given: Any) -> Path:
        found = path(self, *given)
        taken.append(len(found.steps))
        return found

    monkeypatch.setattr(March, "path", counted)
    pk, z = replace(MODELS["formula"][0], rtol=1e-6, atol=1e-6), values("formula")
    times = tuple(0.1 * number for number in range(1, 40))
    schedule = schedule_of("formula", Regimen([Dose(0.0, 400.0)], times))
    solve(pk, schedule, z)
    together = sum(taken)
    one_by_one(monkeypatch)
    solve(pk, schedule, z)
    assert sum(taken) - together >= 39 > 4 * together


def test_who_has_no_more_observations_does_not_disturb_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one subject of ten the last observations are at one time, as padding has it."""
    found = passed(monkeypatch)
    schedule = schedule_of("formula", Regimen([Dose(0.0, 400.0)], HOURS[1:]), subjects=10)
    z = values("formula", subjects=10)
    time = schedule.time.clone()
    time[4:, :, 3] = time[3:4, :, 3]
    padded = replace(schedule, time=time)
    pk = MODELS["formula"][0]
    got, whole = solve(pk, padded, z), solve(pk, schedule, z)
    others = [number for number in range(10) if number != 3]
    torch.testing.assert_close(got[:, :, others], whole[:, :, others], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(got[4:, :, 3], whole[3:4, :, 3].expand(8, -1, -1), rtol=1e-7, atol=1e-7)
    assert max(found) >= 6
    gradient = torch.autograd.grad(got.sum(), z["VM"])[0]
    assert bool(torch.isfinite(gradient).all())


def test_where_there_is_no_way_others_have_theirs() -> None:
    """Amounts that are not a number, of one trajectory of many."""
    schedule = schedule_of("formula", Regimen([Dose(0.0, 400.0)], HOURS[1:]))
    z = values("formula")
    wild = z["VM"].detach().clone()
    wild[1, 2, 0] = torch.nan
    z["VM"] = wild.requires_grad_()
    pk = MODELS["formula"][0]
    got = solve(pk, schedule, z)
    assert bool(got[:, 1, 2, 0].isnan().all())
    assert int(got.isnan().sum()) == len(got)
    gradient = torch.autograd.grad(torch.nan_to_num(got).sum(), z["KM"])[0]
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[1, 2, 0]) == 0


def test_values_do_not_depend_on_how_many_are_found_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from medcm_cli.pk import passing

    pk, z, schedule = MODELS["a linear part"][0], values("a linear part"), schedule_of("a linear part")
    whole = everything(pk, schedule, z, ["VM", "KA"])
    monkeypatch.setattr(passing, "_AT_ONCE", 1)
    same(everything(pk, schedule, z, ["VM", "KA"]), whole, 1e-8)


@pytest.mark.parametrize("name", ["formula", "a linear part", "by torch", "moved"])
def test_nothing_is_left_of_predictions_once_they_are_gone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds itself waits for Python's collector of garbage, which knows nothing of its size."""
    marches, begin = list[weakref.ref[March]](), March.__init__

    def seen(self: March, *given: Any) -> None:
        begin(self, *given)
        marches.append(weakref.ref(self))

    monkeypatch.setattr(March, "__init__", seen)
    gc.disable()
    try:
        everything(MODELS[name][0], schedule_of(name), values(name), ["VM"])
        assert len(marches) > 4
        assert [march() for march in marches if march() is not None] == []
    finally:
        gc.enable()
