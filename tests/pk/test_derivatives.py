"""Sensitivities and gradients of linear models against differences."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medcm_cli.pk import (
    sensitivities,
    solve,
    three_compartment,
)
from tests.pk.regimens import FULL, INFUSIONS, MAKERS, built, close, full_model, slopes_by_differences, spread


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "changing"])
def test_sensitivities(name: str, changing: bool) -> None:
    pk, schedule = full_model(name), built(FULL, (10.0, math.inf))
    z = spread(pk.parameters, 5, 2)
    if changing:
        z["CL"] = torch.stack([z["CL"], 1.5 * z["CL"]])
    prediction, slopes = sensitivities(pk, schedule, z, pk.parameters)
    torch.testing.assert_close(prediction, solve(pk, schedule, z), rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        _, fixed = sensitivities(pk, schedule, z, pk.parameters)
    for slope, other, wanted in zip(
        slopes, fixed, slopes_by_differences(pk, schedule, z, pk.parameters), strict=True
    ):
        close(slope, wanted.numpy(), 1e-7)
        torch.testing.assert_close(slope.detach(), other)


@pytest.mark.parametrize(
    ("name", "coincidence"),
    [("one", "none"), ("one", "ka"), ("two", "none"), ("two", "ka"), ("three", "ka"), ("three", "k21")],
)
def test_first_and_second_derivatives(name: str, coincidence: str) -> None:
    """By autograd.gradgradcheck, also where KA is an eigenvalue and where k21 = k31."""
    pk = full_model(name)
    z = spread(pk.parameters, 6, 1)
    if coincidence == "k21":
        z["V3"] = z["Q3"] * z["V2"] / z["Q"]
    if coincidence == "ka":
        z["KA"] = pk.response(z).rates[-1]
    schedule = built(replace(FULL, times=(5.0, 14.0, 61.0)))
    leaves = [z[n].log().requires_grad_() for n in pk.parameters]

    def predict(*logs: Tensor) -> Tensor:
        return solve(pk, schedule, {n: v.exp() for n, v in zip(pk.parameters, logs, strict=True)})

    assert torch.autograd.gradcheck(predict, leaves, atol=1e-6)
    assert torch.autograd.gradgradcheck(predict, leaves, atol=1e-6)


def test_third_derivatives_of_the_three_compartment_response() -> None:
    """What the gradient of foce needs at most: columns of G and their derivative, by differences of
    gradients."""
    pk = three_compartment(absorption=True)
    z = spread(pk.parameters, 7, 1)
    z["V3"] = z["Q3"] * z["V2"] / z["Q"]
    schedule = built(replace(INFUSIONS, times=(5.0, 14.0)))
    leaves = [z[n].log().requires_grad_() for n in pk.parameters]

    def slopes(*logs: Tensor) -> tuple[Tensor, ...]:
        at = {n: v.exp() for n, v in zip(pk.parameters, logs, strict=True)}
        return tuple(sensitivities(pk, schedule, at, ("Q3",))[1])

    assert torch.autograd.gradcheck(slopes, leaves, atol=1e-6)
    assert torch.autograd.gradgradcheck(slopes, leaves, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_sensitivities_of_several_samples_are_those_of_each(name: str, samples: int) -> None:
    """Whatever their number, that of directions among them, and with a volume that does not change."""
    pk, schedule = full_model(name), built(FULL, (10.0, math.inf))
    scale = torch.linspace(0.8, 1.3, samples, dtype=torch.float64).view(-1, 1, 1)
    z = {key: value * scale for key, value in spread(pk.parameters, 6, 2).items()}
    z["CL"] = torch.stack([z["CL"], 1.5 * z["CL"]])
    wrt = ("CL", "V1")
    prediction, slopes = sensitivities(pk, schedule, z, wrt)
    for sample in range(samples):
        alone, own = sensitivities(
            pk, schedule, {key: value[..., sample : sample + 1, :, :] for key, value in z.items()}, wrt
        )
        torch.testing.assert_close(prediction[:, sample : sample + 1], alone, rtol=1e-12, atol=1e-14)
        for slope, expected in zip(slopes, own, strict=True):
            torch.testing.assert_close(slope[:, sample : sample + 1], expected, rtol=1e-10, atol=1e-12)
