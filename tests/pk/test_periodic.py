"""A steady state with all steps of its period solved at once: against scipy, and the search period by
period."""

import functools
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import Tensor

from medcm_cli.pk import OdeModel, Schedule, michaelis_menten_rate, periodic, sensitivities, solve
from medcm_cli.pk.endless import Steady
from medcm_cli.pk.integrated import _Run as Run
from medcm_cli.pk.stages import Call
from tests.pk.regimens import Dose, Regimen, built

F64 = torch.float64
NAMES = ("VM", "KM", "V1")
SATURABLE = {"VM": [30.0, 60.0, 25.0], "KM": [100.0, 300.0, 30.0], "V1": [2.0, 2.0, 4.0]}
HOURS = (0.0, 1.0, 5.0, 11.0, 20.0)
AMOUNT, EVERY = 150.0, 12.0


def absorbed(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """Absorption, and elimination that saturates."""
    del t
    level = a.central / p.V1
    return {"depot": -p.KA * a.depot, "central": p.KA * a.depot - p.VM * level / (p.KM + level)}


MODELS: dict[str, tuple[OdeModel, Dose, dict[str, list[float]]]] = {
    "bolus": (OdeModel(michaelis_menten_rate, NAMES), Dose(0.0, AMOUNT, interval=EVERY), {}),
    "infusion": (OdeModel(michaelis_menten_rate, NAMES), Dose(0.0, AMOUNT, 3.0, interval=EVERY), {}),
    "absorbed": (
        OdeModel(absorbed, (*NAMES, "KA"), ("depot", "central"), observed="central"),
        Dose(0.0, AMOUNT, interval=EVERY),
        {"KA": [0.8, 2.0, 0.4]},
    ),
    "with a lag": (
        OdeModel(absorbed, (*NAMES, "KA"), ("depot", "central"), observed="central", lag={1: "LAG"}),
        Dose(0.0, AMOUNT, interval=EVERY),
        {"KA": [0.8, 2.0, 0.4], "LAG": [1.0, 2.0, 0.5]},
    ),
}
"""Model, dose, and parameters beside ``SATURABLE``."""


def values(more: dict[str, list[float]]) -> dict[str, Tensor]:
    """(1, 1, B), that have gradients."""
    named = {**SATURABLE, **more}
    return {
        name: torch.tensor(value, dtype=F64).view(1, 1, -1).requires_grad_() for name, value in named.items()
    }


def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each steady state was found at once."""
    found, whole = list[bool](), Steady._at_once

    def at_once(self: Steady) -> Any:
        of = whole(self)
        found.append(of is not None)
        return of

    monkeypatch.setattr(Steady, "_at_once", at_once)
    return found


def derived(pk: OdeModel, schedule: Schedule, more: dict[str, list[float]]) -> list[Tensor]:
    """Predictions, their gradient, sensitivities by two parameters, and the gradient of these."""
    z = values(more)
    wrt = list(z)[:2] + list(more)[-1:]
    first = solve(pk, schedule, z)
    weights = torch.arange(1.0, 1 + first.numel(), dtype=F64).view_as(first)
    f, slopes = sensitivities(pk, schedule, z, wrt)
    value = (f * weights).sum() + sum(((1 + k) * slope * weights).sum() for k, slope in enumerate(slopes))
    each = list(z.values())
    return [
        *(of.detach() for of in (first, f, *slopes)),
        *torch.autograd.grad((first * weights).sum(), each),
        *torch.autograd.grad(value, each),
    ]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_the_search_period_by_period_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pk, dose, more = MODELS[name]
    schedule = built(Regimen([dose], HOURS))
    found = counted(monkeypatch)
    got = derived(pk, schedule, more)
    assert found == [True, True]
    monkeypatch.setattr(Steady, "_at_once", lambda _: None)
    for one, wanted in zip(got, derived(pk, schedule, more), strict=True):
        torch.testing.assert_close(one, wanted, rtol=2e-5, atol=2e-5 * float(wanted.abs().max()))


SAME = Dose(0.0, AMOUNT, interval=EVERY)
BESIDE: dict[str, tuple[list[Dose], bool]] = {
    "nothing": ([SAME], True),
    "a dose later": ([SAME, Dose(4.0, 40.0)], True),
    "another dose at the same time": ([SAME, Dose(0.0, 40.0)], False),
    "an infusion from the same time on": ([SAME, Dose(0.0, 40.0, 3.0)], False),
}
"""Doses, and whether what follows is the period that has been found."""


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("name", ["bolus", "absorbed"])
def test_what_follows_is_found_along_the_period_where_it_is_the_same(
    name: str, beside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last observation is after the period."""
    pk, _, more = MODELS[name]
    doses, same = BESIDE[beside]
    schedule = built(Regimen(doses, (0.5, 1.0, 3.0, 11.0, 20.0)))
    found, period = list[bool](), Run._period

    def seen(self: Run, *given: Any) -> Any:
        of = period(self, *given)
        found.append(of is not None)
        return of

    monkeypatch.setattr(Run, "_period", seen)
    got = derived(pk, schedule, more)
    assert any(found) == same
    monkeypatch.setattr(Run, "_period", lambda *_: None)
    for one, wanted in zip(got, derived(pk, schedule, more), strict=True):
        torch.testing.assert_close(one, wanted, rtol=2e-5, atol=2e-5 * float(wanted.abs().max()))


def integrated(vm: float, km: float, length: float, begin: float, hours: list[float]) -> Any:
    """Amounts at these hours, all above 0, after one dose, by scipy."""
    parts = [(0.0, length, AMOUNT / length)] if length else []
    x, found = begin + (0.0 if length else AMOUNT), list[float]()
    for first, last, rate in [*parts, (length, EVERY, 0.0)]:
        here = [hour for hour in hours if first < hour <= last]

        def change(t: float, a: Any, rate: float = rate) -> Any:
            del t
            return rate - vm * a / (km + a)

        run: Any = solve_ivp(
            change,
            (first, last),
            [x],
            "DOP853",
            sorted({*here, last}),
            rtol=1e-11,
            atol=1e-11,
        )
        found += run.y[0, : len(here)].tolist()
        x = run.y[0, -1]
    return numpy.array(found)


@pytest.mark.parametrize("length", [0.0, 3.0])
def test_it_is_the_periodic_state_of_scipy(length: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(monkeypatch)
    pk = OdeModel(michaelis_menten_rate, NAMES, rtol=1e-8, atol=1e-8)
    hours = [1.0, 5.0, 11.0]
    got = solve(pk, built(Regimen([Dose(0.0, AMOUNT, length, interval=EVERY)], hours)), values({}))
    assert found == [True]
    for fit in range(3):
        vm, km, v = (SATURABLE[name][fit] for name in NAMES)
        along = functools.partial(integrated, vm, km * v, length)
        begin = brentq(lambda x, along=along: along(x, [EVERY])[0] - x, 0.0, 50 * AMOUNT, xtol=1e-10)
        wanted = along(begin, hours) / (1000 * v)
        assert got[:, 0, 0, fit].detach().numpy() == pytest.approx(wanted, rel=1e-6)


def test_steps_that_are_too_long_there_are_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a first period, which is followed to a hundredth of the amounts alone."""
    pk, dose, more = MODELS["absorbed"]
    schedule, z = built(Regimen([dose], HOURS)), values(more)
    wanted = solve(pk, schedule, z).detach()
    checks, check, follow = list[bool](), periodic._checked, Call.followed
    found = counted(monkeypatch)

    def checked(*given: Any) -> bool:
        checks.append(check(*given))
        return checks[-1]

    monkeypatch.setattr(periodic, "_checked", checked)

    def followed(self: Call, *given: Any, **options: Any) -> Any:
        rough = replace(self, how=self.how._replace(control=replace(self.how.control, rtol=1e-2, atol=1e-2)))
        return follow(self if checks else rough, *given, **options)

    monkeypatch.setattr(Call, "followed", followed)
    got = solve(pk, schedule, z).detach()
    assert found == [True]
    assert checks == [False, True]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-8)


def test_where_doses_add_up_for_long_or_for_ever_it_is_left_to_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """VM 14 and 12.4 per hour of 12.5 that are given."""
    pk, dose, _ = MODELS["bolus"]
    schedule, found = built(Regimen([dose], HOURS)), counted(monkeypatch)
    z = values({"VM": [60.0, 14.0, 12.4]})
    got = solve(pk, schedule, z)
    assert found == [False]
    assert got.isnan().any(0).flatten().tolist() == [False, False, True]
