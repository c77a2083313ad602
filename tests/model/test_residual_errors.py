"""Every residual error as a distribution: against scipy's quadrature, and its own density."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import (
    CombinedVariancesError,
    ErrorModel,
    LogNormalError,
    PowerError,
    ResidualError,
    StudentError,
)
from medcm_cli.numerics.student import normal_quantile_of_t, t_log_probability_below, t_quantile_of_normal
from tests.helpers import F64, make_population

SIGMAS = {"additive": 0.4, "proportional": 0.25, "log": 0.3, "power": 0.35, "exponent": 0.6}
ERRORS: dict[str, ErrorModel] = {
    "additive": ResidualError(("additive",)),
    "combined": ResidualError(("additive", "proportional")),
    "variances": CombinedVariancesError(),
    "power": PowerError(),
    "log-normal": LogNormalError(),
    "t, additive": StudentError(("additive",)),
    "t, combined": StudentError(("additive", "proportional"), degrees=3.0),
}
F = [0.5, 2.0, 7.0]


def known(error: ErrorModel) -> ErrorModel:
    """With every sigma fixed, so that no value is needed but that of a fit that is there."""
    return replace(error, fixed={name: SIGMAS[name] for name in error.components})  # type: ignore[type-var]


VALUES = {"none": torch.zeros(1, dtype=F64)}


def of(
    level: float, dv: np.ndarray | Sequence[float] | float, censored: bool = False
) -> tuple[Tensor, Population]:
    """Predictions of ``level``, and observations, of one subject."""
    seen = torch.as_tensor(dv, dtype=F64).reshape(-1, 1, 1, 1)
    population = make_population(1, 1)
    known = torch.full_like(seen, float(censored)) if censored else None
    return torch.full_like(seen, level), replace(population, dv=seen, censored=known)


def integral(error: ErrorModel, level: float, score: bool = False, high: float = np.inf) -> float:
    """Of the density, or of the squared score times it, up to ``high``: over u, where y is level exp(u), or
    level (1 + sinh(u)) of levels that may be below 0, so that tails of a power of y are those of an
    exponential."""
    positive = error.needs_positive
    end = np.log(high / level) if positive else np.arcsinh(high / level - 1)
    node, weight = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(-25.0, min(float(end), 25.0), 101)
    u = (edges[:-1, None] + np.diff(edges)[:, None] * (node + 1) / 2).ravel()
    weight = (np.diff(edges)[:, None] * weight / 2).ravel()
    y, slope = (level * np.exp(u),) * 2 if positive else (level * (1 + np.sinh(u)), level * np.cosh(u))
    prediction, population = of(level, y)
    terms = error.log_density(VALUES, prediction, population).exp()
    if score:
        _, sd, pull, _ = error.deviance(VALUES, prediction, population)
        terms = terms * (pull / sd).square()
    return float((terms.flatten().numpy() * slope * weight).sum())


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("level", F)
def test_densities_integrate_to_one(name: str, level: float) -> None:
    assert integral(known(ERRORS[name]), level) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("name", ERRORS)
def test_draws_and_white_residuals_are_quantiles_of_the_density(name: str) -> None:
    """So that draws have every moment of the density, and white residuals are standard normal."""
    error = known(ERRORS[name])
    for level, noise in ((0.5, -1.3), (2.0, 0.4), (7.0, 2.1)):
        drawn = error.draw(VALUES, torch.tensor([level], dtype=F64), noise)
        assert integral(error, level, high=float(drawn)) == pytest.approx(stats.norm.cdf(noise), abs=1e-7)
        white = error.white(VALUES, torch.tensor([level], dtype=F64), drawn)
        assert float(white) == pytest.approx(noise, abs=1e-9)
        # In a hundredth of the unit the same level is drawn.
        other = error.draw(VALUES, torch.tensor([level * 100], dtype=F64), noise, 100.0)
        assert float(other) == pytest.approx(100 * float(drawn))


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("censored", [False, True])
def test_deviances_are_of_the_density_and_its_slope(name: str, censored: bool) -> None:
    error, h = known(ERRORS[name]), 1e-6
    for level in F:
        prediction, population = of(level, [0.3 * level, 0.9 * level, 2.5 * level], censored)
        value, sd, pull, _ = error.deviance(VALUES, prediction, population)
        log_density = error.log_density(VALUES, prediction, population)
        torch.testing.assert_close(value + (0 if censored else np.log(2 * np.pi)), -2 * log_density)
        torch.testing.assert_close(ErrorModel.log_density(error, VALUES, prediction, population), log_density)
        torch.testing.assert_close(
            error.log_likelihood(VALUES, prediction, population), population.sum_all(log_density)
        )
        low, high = (error.log_density(VALUES, prediction + d, population) for d in (-h, h))
        torch.testing.assert_close((pull / sd).expand_as(low), (low - high) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ERRORS)
def test_curvatures_are_the_information_on_the_prediction(name: str) -> None:
    """The mean square of the score, by quadrature."""
    error = known(ERRORS[name])
    for level in F:
        prediction, population = of(level, level)
        _, sd, _, curvature = error.deviance(VALUES, prediction, population)
        information = (1 if curvature is None else curvature) / sd**2
        assert integral(error, level, score=True) == pytest.approx(float(information), rel=1e-6)


@pytest.mark.parametrize("name", ERRORS)
def test_a_censored_observation_has_the_probability_below_its_limit(name: str) -> None:
    error = known(ERRORS[name])
    prediction, population = of(2.0, 1.4, censored=True)
    below = float(error.log_density(VALUES, prediction, population).exp())
    assert below == pytest.approx(integral(error, 2.0, high=1.4), abs=1e-8)
    assert float(error.deviance(VALUES, prediction, population).curvature) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ERRORS)
def test_padding_is_finite(name: str) -> None:
    """A level of 0, at a prediction that is one."""
    error = known(ERRORS[name])
    prediction, population = of(1.0, 0.0)
    prediction.requires_grad_()
    value, sd, pull, _ = error.deviance(VALUES, prediction, population)
    total = (value + sd + pull).sum() + error.log_density(VALUES, prediction, population).sum()
    (slope,) = torch.autograd.grad(total, prediction)
    assert bool(torch.isfinite(total))
    assert bool(torch.isfinite(slope).all())


def test_logarithms_have_their_own_likelihood() -> None:
    """That of levels has 2 log y more for each in -2 log L."""
    error = LogNormalError({"log": 0.3})
    prediction, population = of(2.0, [1.4, 3.0])
    levels = error.log_density(VALUES, prediction, population)
    logs = replace(error, logged=True).log_density(VALUES, prediction, population)
    want = stats.norm.logpdf(np.log([1.4, 3.0]), np.log(2.0), 0.3)
    np.testing.assert_allclose(logs.flatten().numpy(), want)
    np.testing.assert_allclose((logs - levels).flatten().numpy(), np.log([1.4, 3.0]))


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_power_does_not_depend_on_the_unit(scale: float) -> None:
    """The same trained values are the same sd, whatever the unit of a usual level."""
    raw = {"sigma": torch.tensor([[-1.0], [-2.0]], dtype=F64)}
    one, other = PowerError(), PowerError(size=scale)
    sd, _ = one.sd(raw, torch.tensor([3.0], dtype=F64))
    scaled, slope = other.sd(raw, torch.tensor([3.0 * scale], dtype=F64))
    torch.testing.assert_close(scaled, sd * scale)
    torch.testing.assert_close(slope, one.sd(raw, torch.tensor([3.0], dtype=F64))[1])
    torch.testing.assert_close(other.reported(raw, 1 / scale), one.reported(raw))


def test_student_is_scipys() -> None:
    x = np.array([-40.0, -3.0, -0.5, 0.0, 0.7, 60.0])
    at = torch.tensor(x, requires_grad=True)
    log_below = t_log_probability_below(at, 5.0)
    np.testing.assert_allclose(log_below.detach().numpy(), stats.t.logcdf(x, 5), rtol=1e-12, atol=1e-16)
    (slope,) = torch.autograd.grad(log_below.sum(), at, create_graph=True)
    np.testing.assert_allclose(slope.detach().numpy(), stats.t.pdf(x, 5) / stats.t.cdf(x, 5), rtol=1e-10)
    assert torch.autograd.gradgradcheck(lambda v: t_log_probability_below(v, 5.0), (at,))
    quantiles = t_quantile_of_normal(torch.tensor(x / 20), 5.0)
    np.testing.assert_allclose(quantiles.numpy(), special.stdtrit(5, special.ndtr(x / 20)), rtol=1e-9)
    np.testing.assert_allclose(normal_quantile_of_t(quantiles, 5.0).numpy(), x / 20, atol=1e-12)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: StudentError(("additive",), degrees=2.0), "error.degrees"),
        (lambda: LogNormalError({"additive": 0.1}), "fixed.sigma.additive: .* expected log"),
        (lambda: PowerError({"exponent": -1.0}), "fixed.sigma.exponent"),
        (lambda: CombinedVariancesError({"power": 0.1}), "expected additive or proportional"),
    ],
)
def test_what_is_refused(made: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        made()  # type: ignore[operator]
