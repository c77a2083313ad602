"""Residual errors of several endpoints, against each alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import (
    CombinedVariancesError,
    EndpointErrors,
    LogNormalError,
    PowerError,
    ResidualError,
    StudentError,
)
from medcm_cli.model.residual_error import ErrorModel
from tests.helpers import make_population

F64 = torch.float64
ERRORS: dict[str, ErrorModel] = {
    "additive": ResidualError(("additive",)),
    "proportional": ResidualError(("proportional",)),
    "combined": ResidualError(("additive", "proportional"), size=3.0),
    "combined_variances": CombinedVariancesError(),
    "log_normal": LogNormalError(),
    "power": PowerError(fixed={"exponent": 0.5}),
    "student_t": StudentError(("additive", "proportional")),
}
PAIRS = [("additive", name) for name in ERRORS] + [("log_normal", "student_t"), ("power", "proportional")]


def mixed(
    pair: tuple[str, str], censored: bool = False
) -> tuple[Population, EndpointErrors, dict[str, Tensor]]:
    """Observations of which every other one is of the second endpoint, their errors and raw sigmas."""
    population = make_population(6, 2)
    number = torch.arange(population.dv.numel()).reshape(population.dv.shape) % 2
    below = (torch.arange(population.dv.numel()).reshape(population.dv.shape) % 3 == 0).to(F64)
    population = replace(population, endpoint=number, censored=below if censored else None)
    error = EndpointErrors({"cp": ERRORS[pair[0]], "pca": ERRORS[pair[1]]})
    raw = torch.linspace(-1.5, 0.3, 2 * len(error.free), dtype=F64).reshape(-1, 2)
    return population, error, {"sigma": raw}


def alone(
    error: EndpointErrors, name: str, values: dict[str, Tensor]
) -> tuple[ErrorModel, dict[str, Tensor]]:
    """One of the errors, and its raw sigmas."""
    rows = [place for place, part in enumerate(error.free) if part.endswith(f"_{name}")]
    return error.errors[name], {"sigma": values["sigma"][rows]}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("censored", [False, True])
def test_each_observation_has_the_error_of_its_endpoint(pair: tuple[str, str], censored: bool) -> None:
    population, error, values = mixed(pair, censored)
    prediction = population.dv * torch.linspace(0.7, 1.4, population.dv.numel(), dtype=F64).view_as(
        population.dv
    )
    density = error.log_density(values, prediction, population)
    deviance = error.deviance(values, prediction, population)
    normal = error.as_normal(values, prediction, population)
    white = error.of_endpoint(population.endpoint).white(values, prediction, population.dv)
    drawn = error.of_endpoint(population.endpoint).draw(values, prediction, 0.7)
    for number, name in enumerate(("cp", "pca")):
        one, own = alone(error, name, values)
        assert population.endpoint is not None
        here = population.endpoint == number
        wanted = one.deviance(own, prediction, population)
        torch.testing.assert_close(density[here], one.log_density(own, prediction, population)[here])
        for part in ("value", "pull", "curvature", "sd"):
            found, expected = getattr(deviance, part), getattr(wanted, part)
            if found is not None:
                expected = torch.ones_like(prediction) if expected is None else expected
                torch.testing.assert_close(found[here], expected.expand_as(prediction)[here])
        as_one = one.as_normal(own, prediction, population)
        torch.testing.assert_close(normal.deviation[here], as_one.deviation[here])
        torch.testing.assert_close(normal.sd[here], as_one.sd.expand_as(prediction)[here])
        torch.testing.assert_close(white[here], one.white(own, prediction, population.dv)[here])
        torch.testing.assert_close(drawn[here], one.draw(own, prediction, 0.7)[here])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_likelihood_is_the_sum_of_the_endpoints_and_its_gradient_finite(pair: tuple[str, str]) -> None:
    population, error, values = mixed(pair)
    assert population.endpoint is not None
    prediction = torch.where(population.endpoint == 0, population.dv * 1.1, population.dv * 0.9)
    prediction = prediction.clone().requires_grad_()
    raw = values["sigma"].clone().requires_grad_()
    total = error.log_likelihood({"sigma": raw}, prediction, population)
    gradient = torch.autograd.grad(total.sum(), [prediction, raw])
    assert all(bool(torch.isfinite(part).all()) for part in gradient)
    parts = torch.zeros_like(total)
    for number, name in enumerate(("cp", "pca")):
        one, own = alone(error, name, values)
        seen = replace(
            population, observed=population.observed * (population.endpoint == number), ragged=True
        )
        parts = parts + seen.sum_all(one.log_density(own, prediction, seen))
    torch.testing.assert_close(total, parts)


def test_a_prediction_of_zero_of_one_endpoint_does_no_harm_to_another() -> None:
    population, error, values = mixed(("proportional", "additive"))
    assert population.endpoint is not None
    prediction = torch.where(population.endpoint == 1, 0.0, population.dv).requires_grad_()
    total = error.log_likelihood(values, prediction, population)
    (gradient,) = torch.autograd.grad(total.sum(), prediction)
    assert bool(torch.isfinite(total).all())
    assert bool(torch.isfinite(gradient).all())


def test_sigmas_are_called_by_component_and_endpoint() -> None:
    error = EndpointErrors(
        {
            "cp": ResidualError(("additive", "proportional"), fixed={"proportional": 0.1}),
            "pca": ERRORS["power"],
        }
    )
    assert error.names == [
        "sigma_additive_cp",
        "sigma_proportional_cp",
        "sigma_power_pca",
        "sigma_exponent_pca",
    ]
    assert error.free == ["additive_cp", "power_pca"]
    raw = torch.tensor([[0.3], [0.2]], dtype=F64)
    sigmas = error.reported({"sigma": raw})
    np.testing.assert_allclose(float(sigmas["sigma_proportional_cp"]), 0.1)
    np.testing.assert_allclose(float(sigmas["sigma_additive_cp"]), np.log1p(np.exp(0.3)))
    np.testing.assert_allclose(float(sigmas["sigma_power_pca"]), np.log1p(np.exp(0.2)))


def test_deviations_that_are_added_up_are_relative_to_sizes() -> None:
    population, error, _ = mixed(("additive", "additive"))
    assert population.endpoint is not None
    found = replace(error, weights={"cp": 2.0, "pca": 50.0}).relative(population.dv, population)
    expected = torch.where(population.endpoint == 0, population.dv / 2, population.dv / 50)
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match=r"endpoints\.pca\.size"):
        replace(error, weights={"cp": 2.0}).relative(population.dv, population)


@pytest.mark.parametrize("pair", [("log_normal", "additive"), ("log_normal", "log_normal")], ids="-".join)
def test_what_a_transformation_adds_is_that_of_the_endpoints_own_observations(pair: tuple[str, str]) -> None:
    population, error, _ = mixed(pair)
    assert population.endpoint is not None
    logs = 2 * torch.log(population.dv) * population.observed
    own = sum(
        torch.where(population.endpoint == number, logs, 0.0)
        for number, name in enumerate(pair)
        if name == "log_normal"
    )
    assert isinstance(own, Tensor)
    torch.testing.assert_close(error.transformation(population), own.sum(0))


def test_without_interaction_each_has_the_spread_of_its_own_typical_predictions() -> None:
    population, error, values = mixed(("proportional", "combined"))
    prediction, typical = population.dv * 1.2, population.dv * 0.8
    found = error.without_interaction(values, typical).deviance(values, prediction, population)
    for number, name in enumerate(("cp", "pca")):
        one, own = alone(error, name, values)
        assert population.endpoint is not None
        here = population.endpoint == number
        wanted = one.without_interaction(own, typical).deviance(own, prediction, population)
        torch.testing.assert_close(found.value[here], wanted.value[here])


def test_observations_that_say_no_endpoint_are_of_the_first() -> None:
    population, error, values = mixed(("additive", "student_t"))
    whole = replace(population, endpoint=None)
    one, own = alone(error, "cp", values)
    torch.testing.assert_close(
        error.log_density(values, whole.dv * 1.1, whole), one.log_density(own, whole.dv * 1.1, whole)
    )
