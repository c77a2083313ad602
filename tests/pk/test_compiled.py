"""Steps that are compiled: what they are without a compiler, in Python, and in machine code."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk import (
    OdeModel,
    Schedule,
    compiled,
    learned_elimination_rate,
    michaelis_menten_rate,
    one_compartment,
    sensitivities,
    solve,
    two_compartment_rate,
    with_given,
)
from tests.pk.regimens import TYPICAL, Dose, Regimen, built

F64 = torch.float64
REGIMEN = Regimen([Dose(0.0), Dose(4.0, 900, 9.0)], (1.0, 1.5, 2.0, 3.0, 14.0), resets=(15.0,))
LOOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


def swinging(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Elimination that depends on the time of day, and a compartment that nothing changes."""
    return {"central": -p.CL / p.V1 * (1 + torch.sin(t) / 2) * a.central / (1 + a.central), "other": 0.0}


MODELS = {
    "two compartments": OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), method="tsit5", **LOOSE),
    "saturable": OdeModel(michaelis_menten_rate, ("VM", "KM", "V1"), norm="largest", **LOOSE),
    "absorbed": OdeModel(michaelis_menten_rate, ("VM", "KM", "V1", "KA"), observed=2, **LOOSE),
    "timed": OdeModel(swinging, ("CL", "V1"), **LOOSE),
}


@pytest.fixture(params=["in Python", pytest.param("in machine code", marks=pytest.mark.slow)])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same functions, compiled or not."""
    compiled._steps_of.cache_clear()
    if request.param == "in Python":
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    yield
    compiled._steps_of.cache_clear()


def values(pk: OdeModel, fits: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    typical = {**TYPICAL, "VM": 60.0, "KM": 300.0}
    return {
        name: (
            typical[name] * torch.exp(0.3 * torch.randn(2, 3, fits, generator=g, dtype=F64))
        ).requires_grad_()
        for name in pk.parameters
    }


def schedule(fits: int) -> Schedule:
    return built(REGIMEN).each(lambda part: part.expand(*part.shape[:-2], 3, fits))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_those_of_plain_steps(name: str) -> None:
    """Predictions, their gradient, and the gradient of that."""
    found = []
    for pk in (MODELS[name], MODELS[name].with_compiled_steps()):
        z = values(pk, 2)
        prediction = solve(pk, schedule(2), z)
        slopes = torch.autograd.grad(prediction.square().sum(), list(z.values()), create_graph=True)
        total = torch.stack([slope.square().sum() for slope in slopes]).sum()
        found.append([prediction, *slopes, *torch.autograd.grad(total, list(z.values()))])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9 * float(want.detach().abs().max()))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("way")
def test_a_trajectory_without_a_way_stands_alone() -> None:
    pk = MODELS["saturable"].with_compiled_steps()
    z = {name: value.detach().clone() for name, value in values(pk, 2).items()}
    z["VM"][0, 1, 1] = torch.nan
    z = {name: value.requires_grad_() for name, value in z.items()}
    got = solve(pk, schedule(2), z)
    assert got[..., 0, 1, 1].isnan().any()
    assert int(got.isnan().any(0).sum()) == 1
    got.nan_to_num().sum().backward()
    plain = {name: value.detach().clone().requires_grad_() for name, value in z.items()}
    solve(MODELS["saturable"], schedule(2), plain).nan_to_num().sum().backward()
    for name, value in z.items():
        assert value.grad is not None
        torch.testing.assert_close(value.grad, plain[name].grad, rtol=1e-7, atol=1e-10, equal_nan=True)


def test_sensitivities_are_those_of_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    pk = MODELS["saturable"]
    z = values(pk, 2)
    for want, got in zip(
        sensitivities(pk, schedule(2), z, ("VM",))[1],
        sensitivities(pk.with_compiled_steps(), schedule(2), z, ("VM",))[1],
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


LEARNED = OdeModel(
    learned_elimination_rate, ("CL", "V1"), terms={"elimination": {"inputs": {"concentration": 1.0}}}
)


@pytest.mark.parametrize(
    ("pk", "words"),
    [
        (one_compartment(), "is of models that are integrated by pk.method=tsit5; leave it out"),
        (with_given(one_compartment(), {"CL": "K * V1"}), "is of models that are integrated"),
        (replace(MODELS["two compartments"], method="auto"), "expected one that is integrated"),
        (replace(MODELS["saturable"], method="kvaerno5", norm="rms"), "expected pk.method=tsit5"),
        (replace(MODELS["saturable"], method="dopri5", norm="rms"), "expected pk.method=tsit5"),
        (LEARNED, "expected a model without learned terms"),
    ],
)
def test_what_has_no_steps_to_compile_is_refused(pk: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pk.with_compiled_steps()


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler"):
        MODELS["saturable"].with_compiled_steps()
