"""Normalised prediction distribution errors against their definition by numpy, and on data that the model
itself has drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from medcm_cli.analysis.diagnostics import simulations
from medcm_cli.analysis.npde import SHARE, needed, npde, verdict
from medcm_cli.data import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from tests.helpers import make_population, with_error

STREAM = Stream(5, 1, 1)


def drawn(
    model: Model, population: Population, values: dict[str, torch.Tensor], sets: int, stream: int
) -> torch.Tensor:
    return simulations(model, values, population, Stream(stream, 1, 1), sets)


@pytest.fixture
def values(model: Model) -> dict[str, torch.Tensor]:
    return model.init([STREAM], torch.float64)


def test_it_is_its_definition(model: Model, values: dict[str, torch.Tensor]) -> None:
    population = make_population(5, 1, ragged=True)
    population = replace(population, dv=drawn(model, population, values, 1, 6) * population.observed)
    simulated = drawn(model, population, values, 200, 7)
    found = npde(simulated, population, STREAM)
    for subject in range(5):
        seen = population.observed[:, 0, subject, 0].numpy() > 0
        y, x = population.dv[seen, 0, subject, 0].numpy(), simulated[seen, :, subject, 0].numpy()
        inverse = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x))))
        middle = x.mean(1)
        share = (inverse @ (x - middle[:, None]) < (inverse @ (y - middle))[:, None]).mean(1)
        expected = stats.norm.ppf(np.clip(share, 1 / 400, 1 - 1 / 400))
        np.testing.assert_allclose(found[seen, 0, subject, 0], expected, atol=1e-12)
        assert (found[~seen, 0, subject, 0] == 0).all()


def rejected(model: Model, values: dict[str, torch.Tensor], sets: int, wrong: float = 1.0) -> float:
    """The share of data sets of a right model, or of one whose residual error is larger, that are rejected:
    each set is a fit of its own, with simulated ones of its own."""
    model = with_error(model, "additive")
    one = make_population(60, 1)
    observed = drawn(model, one, values, sets, 6)
    typical = model.predict(model.typical(values, one), one)
    count = 0
    for number in range(sets):
        dv = typical + wrong * (observed[:, number : number + 1] - typical)
        simulated = drawn(model, one, values, 1000, 100 + number)
        found = npde(simulated, replace(one, dv=dv), STREAM)
        count += verdict(found.flatten().numpy()).together < 0.05
    return count / sets


def test_a_right_model_is_rarely_rejected(model: Model, values: dict[str, torch.Tensor]) -> None:
    """Of 100 sets, 5 are expected: 12 or more have a probability of 0.4 %."""
    assert rejected(model, values, 100) < 0.12


@pytest.mark.slow
def test_a_right_model_is_rejected_as_often_as_the_level_says(
    model: Model, values: dict[str, torch.Tensor]
) -> None:
    assert 0.04 <= rejected(model, values, 2000) <= 0.06


def test_a_wrong_model_is_rejected(model: Model, values: dict[str, torch.Tensor]) -> None:
    assert rejected(model, values, 10, wrong=1.5) == 1


def test_censored_observations_are_those_below_their_limit(
    model: Model, values: dict[str, torch.Tensor]
) -> None:
    """Of a third of them the model knows no more than that, and the rest stay standard normal."""
    population = make_population(800, 1)
    dv = drawn(model, population, values, 1, 6)
    limit = dv.quantile(0.33)
    censored = (dv < limit).to(dv.dtype)
    seen = replace(population, dv=torch.maximum(dv, limit), censored=censored)
    found = npde(drawn(model, population, values, 1000, 7), seen, STREAM).flatten().numpy()
    assert abs(found.mean()) < 4 / np.sqrt(found.size)
    assert abs(found.var() - 1) < 4 * np.sqrt(2 / found.size)
    # At their limits they would not be.
    at_limit = npde(drawn(model, population, values, 1000, 7), replace(seen, censored=None), STREAM)
    assert abs(at_limit.mean()) > 6 / np.sqrt(found.size)


def test_too_few_simulated_data_sets_are_refused(model: Model, values: dict[str, torch.Tensor]) -> None:
    population = make_population(3, 1)
    assert needed(population) == SHARE * population.shape[0]
    with pytest.raises(ValueError, match="expected 30 or more"):
        npde(drawn(model, population, values, 29, 7), population, STREAM)


def test_tests_are_those_of_scipy() -> None:
    values = np.random.default_rng(1).standard_normal(200) + 0.1
    found = verdict(values)
    assert found.mean == stats.wilcoxon(values).pvalue
    assert found.normality == stats.shapiro(values).pvalue
    square = 199 * values.var(ddof=1)
    assert found.variance == pytest.approx(2 * min(stats.chi2(199).cdf(square), stats.chi2(199).sf(square)))
    assert found.together == pytest.approx(3 * min(found[:3]))
    assert np.isnan(verdict(values[:2]).together)
