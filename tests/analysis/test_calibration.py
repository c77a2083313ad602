"""Calibration of posteriors: uniform ranks where they are right, and not where they are known to be wrong."""

import numpy as np
import pytest
import torch
from scipy import stats

from medcm_cli.analysis.calibration import BINS, DRAWS, Ranks, rank, table
from medcm_cli.errors import InputError
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Mse, Objective, Vi
from tests.helpers import make_population

STREAM = Stream(5, 1, 1)


def ranked(model: Model, objective: Objective, sets: int = 12, **values: float) -> Ranks:
    """Of subjects whose levels move along straight lines with their random effects, as far as omega is
    small."""
    begun = model.init([STREAM], torch.float64)
    begun |= {name: torch.full_like(begun[name], value) for name, value in values.items()}
    return rank(objective, model, begun, make_population(50, 1), STREAM, sets)


SLOW = pytest.mark.slow  # trains a q for each subject


@pytest.mark.parametrize("objective", [Fo(), pytest.param(Vi(), marks=SLOW)])
def test_of_a_posterior_that_is_normal_ranks_are_uniform(model: Model, objective: Objective) -> None:
    found = table(ranked(model, objective, omega=-3.0))
    assert (found["p"] > 0.005).all()
    assert (abs(found["mean"] - 0.5) < 4 / np.sqrt(12 * 600)).all()
    assert (abs(found["inside_90"] - 0.9) < 4 * np.sqrt(0.09 / 600)).all()


@SLOW
def test_a_q_without_correlations_is_found_out(model: Model) -> None:
    """Levels that say little leave the correlation of the population, and such a q is too narrow."""
    found = table(ranked(model, Vi(family="mean_field"), omega=-3.0, correlation=2.0, sigma=-1.0))
    assert (found["inside_90"] < 0.7).all()
    assert (found["p"] < 1e-6).all()


def test_ranks_are_counted_in_equal_bins() -> None:
    """Against scipy on ranks that are as even as can be, and on those of a posterior twice too wide."""
    even = np.tile(np.arange(DRAWS + 1), 3)
    narrow = (stats.norm.cdf(0.5 * stats.norm.ppf((even + 0.5) / (DRAWS + 1))) * (DRAWS + 1)).astype(int)
    found = table(Ranks(("CL", "V1"), np.stack([even, narrow]), "Laplace's"))
    assert float(found["p"].iloc[0]) == 1
    assert found["inside_90"].iloc[0] == pytest.approx(0.9)
    assert found["inside_50"].iloc[0] == pytest.approx(0.5)
    counts = np.histogram(narrow, BINS, (0, DRAWS + 1))[0]
    assert float(found["p"].iloc[1]) == stats.chisquare(counts).pvalue
    assert float(found["inside_90"].iloc[1]) > 0.99


def test_an_objective_without_random_effects_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="no random effects"):
        ranked(model, Mse())
