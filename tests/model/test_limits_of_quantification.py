"""Observations beyond a limit, below or above it, and errors given that levels are above 0 (M4)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import (
    ErrorModel,
    Model,
    StudentError,
)
from medcm_cli.model.endpoint_errors import EndpointErrors
from medcm_cli.objectives import Fo, Foce
from medcm_cli.objectives.marginal import marginal
from tests.helpers import ERROR_MODELS, F64, STREAMS, make_population

POSITIVE = {
    name: replace(error, above_zero=True)  # type: ignore[type-var]
    for name, error in ERROR_MODELS.items()
    if name in ("additive", "combined", "variances", "power")
}
RAW = {"sigma": torch.tensor([[-0.6, -0.6], [-1.2, -1.2]], dtype=F64)}
KINDS = {"seen": (0, 0), "below": (1, 0), "above": (1, 1)}


def values_of(error: ErrorModel) -> dict[str, Tensor]:
    return {"sigma": RAW["sigma"][: len(error.free)]}


def observed(dv: Tensor, kind: str) -> Population:
    """As many observations as ``dv`` has, of one subject in two fits, all of one kind."""
    censored, above = KINDS[kind]
    one = dv.new_ones(len(dv), 1, 1, 2)
    population = make_population(1, 2)
    return replace(
        population,
        dv=dv[:, None, None, None] * one,
        observed=one,
        time=one,
        censored=censored * one if censored else None,
        above=above * one if above else None,
        ragged=False,
    )


def spread(error: ErrorModel, f: Tensor) -> Tensor:
    return error.sd(values_of(error), f)[0].expand_as(f)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("kind", ["below", "above"])
@pytest.mark.parametrize("name", ERROR_MODELS)
def test_the_probability_of_lying_beyond_a_limit_is_scipys(name: str, kind: str) -> None:
    error, f = ERROR_MODELS[name], torch.linspace(0.4, 2.0, 9, dtype=F64)
    limit = torch.full_like(f, 0.9)
    population, prediction = observed(limit, kind), f[:, None, None, None].expand(-1, 1, 1, 2)
    found = error.log_density(values_of(error), prediction, population)[:, 0, 0, 0].numpy()
    law: Any
    if name == "log-normal":
        sigma = float(error.sigmas(values_of(error))["log"][0])
        law = stats.lognorm(sigma, scale=f.numpy())
    elif name == "student":
        law = stats.t(4, f.numpy(), spread(error, prediction)[:, 0, 0, 0].numpy())
    else:
        law = stats.norm(f.numpy(), spread(error, prediction)[:, 0, 0, 0].numpy())
    want = law.logcdf(0.9) if kind == "below" else law.logsf(0.9)
    np.testing.assert_allclose(found, want, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", ERROR_MODELS)
def test_slopes_are_those_of_the_density(name: str, positive: bool, kind: str) -> None:
    if positive and name not in POSITIVE:
        pytest.skip("has no such form")
    error = POSITIVE[name] if positive else ERROR_MODELS[name]
    f = torch.linspace(0.05, 2.5, 30, dtype=F64)
    population = observed(torch.full_like(f, 0.9), kind)
    prediction = f[:, None, None, None].expand(-1, 1, 1, 2).clone().requires_grad_()
    values = values_of(error)
    (slope,) = torch.autograd.grad(error.log_density(values, prediction, population).sum(), prediction)
    value, sd, pull, curvature = error.deviance(values, prediction, population)
    torch.testing.assert_close(-(pull / sd).expand_as(slope), slope, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        error.deviance_of(error.log_density(values, prediction, population), population), value
    )
    assert curvature is None or bool((curvature >= 0).all())


@pytest.mark.parametrize("name", POSITIVE)
def test_m4_is_the_truncated_normal_of_scipy(name: str) -> None:
    error, f = POSITIVE[name], torch.linspace(0.1, 2.0, 9, dtype=F64)
    prediction = f[:, None, None, None].expand(-1, 1, 1, 2)
    sd = spread(error, prediction)[:, 0, 0, 0].numpy()
    law = stats.truncnorm(-f.numpy() / sd, np.inf, f.numpy(), sd)
    for kind, want in (("seen", law.logpdf(0.9)), ("below", law.logcdf(0.9)), ("above", law.logsf(0.9))):
        population = observed(torch.full_like(f, 0.9), kind)
        found = error.log_density(values_of(error), prediction, population)[:, 0, 0, 0]
        np.testing.assert_allclose(found, want, rtol=1e-8, atol=1e-12)
    noise = torch.tensor(-1.3, dtype=F64)
    drawn = error.draw(values_of(error), prediction, noise)[:, 0, 0, 0]
    np.testing.assert_allclose(drawn, law.ppf(stats.norm.cdf(-1.3)), rtol=1e-8)
    white = error.white(values_of(error), prediction, drawn[:, None, None, None].expand(-1, 1, 1, 2))
    np.testing.assert_allclose(white[:, 0, 0, 0], -1.3, rtol=1e-8)


@pytest.mark.parametrize("name", POSITIVE)
def test_the_curvature_of_m4_is_fishers_information(name: str) -> None:
    error = POSITIVE[name]
    values, f = values_of(error), torch.tensor([0.3], dtype=F64)
    prediction = f[:, None, None, None].expand(-1, 1, 1, 2)
    sd = float(spread(error, prediction)[0, 0, 0, 0])

    def at(y: float, squared: bool) -> float:
        population = observed(torch.tensor([y], dtype=F64), "seen")
        density = float(torch.exp(error.log_density(values, prediction, population)[0, 0, 0, 0]))
        pull = float(error.deviance(values, prediction, population).pull[0, 0, 0, 0])
        return density * (pull * pull if squared else 1.0)

    total, _ = integrate.quad(lambda y: at(y, False), 0, 0.3 + 12 * sd)
    assert total == pytest.approx(1, rel=1e-8)
    information, _ = integrate.quad(lambda y: at(y, True), 0, 0.3 + 12 * sd)
    curvature = error.deviance(values, prediction, observed(f, "seen")).curvature
    assert curvature is not None
    assert float(curvature[0, 0, 0, 0]) == pytest.approx(information, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", POSITIVE)
def test_far_above_0_m4_is_m3(name: str, kind: str) -> None:
    """Predictions of 60 and more sds, and limits as far from them."""
    f = torch.linspace(0.4, 2.0, 9, dtype=F64)
    population = observed(torch.full_like(f, 0.9), kind)
    prediction = f[:, None, None, None].expand(-1, 1, 1, 2)
    values = {"sigma": torch.full((len(ERROR_MODELS[name].free), 2), -6.0, dtype=F64)}
    if name == "power":
        values["sigma"] = torch.tensor([[-6.0] * 2, [-2.0] * 2], dtype=F64)
    columns = [torch.ones_like(prediction)]
    omega = [[torch.full((2,), 0.3, dtype=F64)]]
    found = []
    for error in (ERROR_MODELS[name], POSITIVE[name]):
        seen = marginal(population, error.as_normal(values, prediction, population), columns, omega)
        found.append((error.log_density(values, prediction, population), seen.log_det + seen.residual))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_a_level_above_a_limit_is_one_below_it_turned_round(model: Model) -> None:
    """-y around -f: FOCE of it, by the mirrored normal."""
    population = make_population(5, 2)
    below = replace(population, censored=(population.dv < 0.2).to(F64))
    above = replace(below, above=below.censored)
    raw = {"sigma": torch.full((1, 2), -3.0, dtype=F64)}
    objective = Foce(mode_tolerance=1e-10)
    state = objective.init(model, above, STREAMS, F64)
    state = objective.refresh(model, above, replace(state, trained=state.trained | raw))
    assert float(objective.unconverged(above, state).amax()) == 0
    eta = [e.clone().requires_grad_() for e in state.carried["eta"].split(1)]
    zeta = model.typical(state.trained, above)
    density = model.log_joint(state.trained, zeta, above, eta).sum()
    for slope in torch.autograd.grad(density, eta):
        assert float(slope.abs().amax()) < 1e-6  # the modes are those of the density
    assert not torch.allclose(
        objective.loss(model, above, state, None), objective.loss(model, below, state, None)
    )


@pytest.mark.parametrize("objective", [Fo(), Foce(formulation="linearised")])
def test_linear_objectives_refuse_m4_and_limits(model: Model, objective: Fo | Foce) -> None:
    population = make_population(5, 2)
    with pytest.raises(InputError, match="given that levels are above 0"):
        objective.init(replace(model, error=POSITIVE["additive"]), population, STREAMS, F64)
    above = torch.ones_like(population.dv)
    with pytest.raises(InputError, match="beyond a limit of quantification"):
        objective.init(model, replace(population, censored=above, above=above), STREAMS, F64)


def test_one_of_several_endpoints_is_enough_to_refuse(model: Model) -> None:
    errors = EndpointErrors({"pk": POSITIVE["additive"], "pca": ERROR_MODELS["log-normal"]})
    with pytest.raises(InputError, match="given that levels are above 0"):
        Fo().init(replace(model, error=errors), make_population(5, 2), STREAMS, F64)


def test_student_t_has_no_m4() -> None:
    with pytest.raises(InputError, match=r"dataset.blq=M4 is there for normal errors"):
        StudentError(("additive",), above_zero=True)
