"""Dose-response models without time, against their formulas and finite differences."""

import numpy as np
import pytest
import torch

from medcm_cli.errors import InputError
from medcm_cli.pk import DirectModel, Schedule, sensitivities, solve
from medcm_cli.pk.direct import FORMS

F64 = torch.float64
TRUE = {"E0": 5.0, "EMAX": 30.0, "ED50": 500.0, "GAMMA": 3.0, "SLOPE": 0.02}


def schedule(x: list[float]) -> Schedule:
    """Observations at x, no dose."""
    nothing = torch.zeros(1, 1, 1, 1, dtype=F64)
    return Schedule.build(torch.tensor(x, dtype=F64).view(-1, 1, 1, 1), nothing, nothing, nothing)


def values(form: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([TRUE[name]], dtype=F64) for name in FORMS[form]}


X = [0.0, 1e-300, 1.0, 100.0, 500.0, 1000.0, 1e6]


@pytest.mark.parametrize("form", FORMS)
def test_a_response_is_that_of_its_formula(form: str) -> None:
    x = np.array(X)
    g = TRUE["GAMMA"] if form == "hill" else 1.0
    of = {"linear": TRUE["SLOPE"] * x}
    expected = TRUE["E0"] + of.get(form, TRUE["EMAX"] * x**g / (TRUE["ED50"] ** g + x**g))
    found = solve(DirectModel(form), schedule(X), values(form))
    np.testing.assert_allclose(found[:, 0, 0, 0].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_sensitivities_are_those_of_finite_differences(form: str) -> None:
    pk, z, at = DirectModel(form), values(form), schedule(X)
    found, columns = sensitivities(pk, at, z, list(FORMS[form]))
    torch.testing.assert_close(found, solve(pk, at, z))
    for name, column in zip(FORMS[form], columns, strict=True):
        high, low = (solve(pk, at, {**z, name: z[name] * np.exp(by)}) for by in (1e-5, -1e-5))
        torch.testing.assert_close(column, (high - low) / 2e-5, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_at_no_dose(form: str) -> None:
    z = {name: value.requires_grad_() for name, value in values(form).items()}
    _, columns = sensitivities(DirectModel(form), schedule(X), z, list(FORMS[form]))
    gradients = torch.autograd.grad(torch.stack(columns).sum(), list(z.values()))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_a_form_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"pk\.form is 'square'; expected one of linear, emax, hill"):
        DirectModel("square")
