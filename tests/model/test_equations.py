"""Typical parameters that are written down, against the same formulas in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from medcm_cli.errors import InputError
from medcm_cli.model import Equations
from medcm_cli.model.coefficients import coefficient
from tests.helpers import F64, STREAMS

COVARIATES: dict[str, dict[str, Any]] = {
    "weight": {"column": "wt", "scale": 150, "reference": 70, "unit": "kg"},
    "age": {"column": "age", "scale": 80, "reference": 40, "unit": "week"},
    "sex": {"column": "sex", "scale": 1, "reference": 0, "unit": "", "values": {"F": 0, "M": 1, "other": 2}},
}
WEIGHT, AGE, SEX = np.array([12.0, 70.0, 130.0]), np.array([0.0, 40.0, 75.0]), np.array([0.0, 1.0, 2.0])


def half_power(x: torch.Tensor, a: torch.Tensor | float, b: float) -> torch.Tensor:
    return 1 + a * (x - 70) / 70 + b * 0


def covariates(dtype: torch.dtype = F64) -> dict[str, torch.Tensor]:
    """(1, N, B) of three subjects and two fits."""
    values = {"weight": WEIGHT, "age": AGE, "sex": SEX}
    return {name: torch.tensor(v, dtype=dtype)[None, :, None].expand(1, 3, 2) for name, v in values.items()}


def hockey(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 + 0.02 * np.minimum(x - 50, 0) + 0.005 * np.maximum(x - 50, 0))


CASES: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "fixed power": ({"weight": {"power": 0.75}}, (WEIGHT / 70) ** 0.75),
    "estimated power": ({"weight": {"power": {"initial": -0.5}}}, (WEIGHT / 70) ** -0.5),
    "exponential": ({"weight": {"exponential": {"initial": 0.01}}}, np.exp(0.01 * (WEIGHT - 70))),
    "linear": ({"weight": {"linear": {"initial": 0.01}}}, 1 + 0.01 * (WEIGHT - 70)),
    "piecewise": (
        {"weight": {"piecewise": {"knot": 50, "below": {"initial": 0.02}, "above": 0.005}}},
        hockey(WEIGHT) / hockey(np.array(70.0)),
    ),
    "category": ({"sex": {"category": {"M": {"initial": 1.2}, "other": 0.9}}}, np.array([1.0, 1.2, 0.9])),
    "maturation": (
        {"age": {"maturation": {"half": {"initial": 47.7}, "hill": 3.4}}},
        AGE**3.4 / (47.7**3.4 + AGE**3.4),
    ),
    "function": (
        {"weight": {"function": {"of": half_power, "a": {"initial": 0.4}, "b": 2}}},
        1 + 0.4 * (WEIGHT - 70) / 70,
    ),
    "two terms": (
        {"weight": {"power": 1}, "sex": {"category": {"M": 2, "other": 3}}},
        WEIGHT / 70 * np.array([1.0, 2.0, 3.0]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_terms_are_their_formulas(name: str) -> None:
    terms, want = CASES[name]
    network = Equations.build({"CL": {"typical": 4, **terms}, "V1": {"typical": {"fixed": 30}}}, COVARIATES)
    values = {k: v.requires_grad_() for k, v in network.init(STREAMS, F64).items()}
    zeta = network.typical(values, covariates())
    np.testing.assert_allclose(zeta["CL"][0, :, 1].detach().numpy(), 4 * want, rtol=1e-12, atol=1e-12)
    assert zeta["V1"].tolist() == [30.0, 30.0]
    assert network.parameters == ("CL", "V1")
    assert set(network.effects) == {(covariate, "CL") for covariate in terms}
    found = torch.autograd.grad(zeta["CL"].sum(), list(values.values()))
    assert all(bool(slope.isfinite().all()) for slope in found)
    # Only what is estimated is trained, and has a name.
    assert set(values) == {"global.CL", *(f"global.{c}" for c in network.coefficients(values))}


def test_coefficients_have_units_and_signs() -> None:
    network = Equations.build(
        {
            "CL": {
                "typical": 1,
                "weight": {"linear": {"initial": 0.01}},
                "age": {"maturation": {"half": {"initial": 40}, "hill": {"initial": 3}}},
            }
        },
        COVARIATES,
    )
    found = network.coefficients(network.init(STREAMS, F64))
    assert {name: (unit, positive) for name, (_, unit, positive) in found.items()} == {
        "CL_weight_slope": ("1/kg", False),
        "CL_age_half": ("week", True),
        "CL_age_hill": ("-", True),
    }
    assert [float(value[0]) for value, _, _ in found.values()] == pytest.approx([0.01, 40, 3])


@pytest.mark.parametrize(
    ("option", "low", "high"),
    [
        ({"initial": 0.3, "lower": 0, "upper": 1}, 0.0, 1.0),
        ({"initial": -2, "upper": -1}, -math.inf, -1.0),
        ({"initial": 5, "lower": 2}, 2.0, math.inf),
        ({"initial": 5}, -math.inf, math.inf),
    ],
)
def test_coefficients_stay_within_bounds(option: dict[str, float], low: float, high: float) -> None:
    made = coefficient("x", "x", option, known=True)
    raw = torch.tensor([-8.0, 0.0, 8.0], dtype=F64, requires_grad=True)
    value = made.value({"global.x": raw})
    assert isinstance(value, torch.Tensor)
    assert float(value[1].detach()) == pytest.approx(option["initial"])
    assert bool(((value > low) & (value < high)).all())
    (slope,) = torch.autograd.grad(value.sum(), raw)
    assert bool((slope != 0).all())


def test_a_network_learns_what_is_left() -> None:
    """A branch beside a power: the product of both. Its weights are trained, the typical value is not."""
    options = {"CL": {"typical": 4, "weight": {"power": 0.75}, "age": {"network": [6]}}}
    network = Equations.build(options, COVARIATES)
    values = network.init(STREAMS, F64)
    assert set(values) == {f"age.{part}" for part in _BRANCH}
    alone = Equations.build({"CL": {"typical": 1, "age": {"network": [6]}}}, COVARIATES)
    effect = alone.typical(values, covariates())["CL"]
    both = network.typical(values, covariates())["CL"]
    np.testing.assert_allclose(
        both[0, :, 0].numpy(), 4 * (WEIGHT / 70) ** 0.75 * effect[0, :, 0].numpy(), rtol=1e-12
    )


_BRANCH = ("hidden_1.weight", "hidden_1.bias", "heads.weight", "heads.bias")


def test_a_network_of_several_covariates() -> None:
    options = {"CL": {"typical": 4, "network": {"inputs": ["weight", "age"], "hidden": [6]}}}
    network = Equations.build(options, COVARIATES)
    assert network.inputs == ("weight", "age")
    assert network.typical(network.init(STREAMS, F64), covariates())["CL"].shape == (1, 3, 2)


@pytest.mark.parametrize(
    ("equation", "says"),
    [
        ({"weight": {"power": 0.75}}, "network.equations.CL is .*; expected its typical value"),
        ({"typical": 0}, "network.equations.CL.typical is 0; expected a value above 0"),
        ({"typical": 1, "height": {"power": 1}}, "covariate 'height' is not in the dataset"),
        ({"typical": 1, "weight": {"spline": 1}}, "weight.spline: no such term; expected one of power"),
        ({"typical": 1, "weight": 0.75}, "weight is 0.75; expected one of power"),
        ({"typical": 1, "weight": {"power": {"start": 1}}}, "power is .*; expected a number"),
        ({"typical": 1, "weight": {"power": {"initial": 2, "upper": 1}}}, "expected a value below 1"),
        ({"typical": 1, "sex": {"power": 1}}, "a power needs a reference above 0"),
        ({"typical": 1, "age": {"category": {"1": 2}}}, "dataset.covariates.age.values"),
        ({"typical": 1, "sex": {"category": {"M": 2}}}, "sex.category is .*; expected M, other"),
        ({"typical": 1, "age": {"maturation": {"half": 40}}}, "maturation is .*; expected half, hill"),
        ({"typical": {"initial": 1}, "age": {"network": [4]}}, "typical is estimated"),
        ({"typical": 1, "age": {"network": []}}, r"CL\.age\.network: 'hidden' is .*; expected a list"),
        ({"typical": 1, "age": {"function": {"a": 1}}}, "function is .*; expected of"),
    ],
)
def test_what_is_refused(equation: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Equations.build({"CL": equation}, COVARIATES)


def test_categories_are_those_that_texts_stand_for() -> None:
    options = {"CL": {"typical": 1, "weight": {"power": 1}, "sex": {"category": {"M": 2, "other": 1}}}}
    assert Equations.build(options, COVARIATES).categories == {"sex": (0.0, 1.0, 2.0)}


def test_a_fault_in_a_function_of_ones_own_is_one_line() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("age", x.ndim)

    network = Equations.build({"CL": {"typical": 1, "weight": {"function": {"of": broken}}}}, COVARIATES)
    with pytest.raises(InputError, match=r"weight.function: KeyError: .*age"):
        network.typical(network.init(STREAMS, F64), covariates())
