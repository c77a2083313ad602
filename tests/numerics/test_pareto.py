"""The tail index of weights, against distributions whose it is known."""

import numpy as np
import pytest
import torch

from medcm_cli.numerics.pareto import tail_index


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_the_tail_of_a_pareto_distribution(k: float) -> None:
    """Twenty samples: their mean, and each of them as if it were alone."""
    uniform = np.random.default_rng(1).random((20_000, 4, 5))
    log_weight = torch.from_numpy(-k * np.log(uniform))
    found = tail_index(log_weight)
    assert found.shape == (4, 5)
    assert float(found.mean()) == pytest.approx(k, abs=0.06)
    torch.testing.assert_close(tail_index(log_weight[:, 2, 3]), found[2, 3])
    torch.testing.assert_close(tail_index(log_weight + 700.0), found)


def test_weights_that_are_bounded_have_no_tail_and_equal_ones_none_at_all() -> None:
    uniform = torch.from_numpy(np.random.default_rng(1).random((4000, 1)))
    assert float(tail_index(torch.log(1 + uniform))) < 0
    assert float(tail_index(torch.zeros(400, dtype=torch.float64))) == -np.inf
    with pytest.raises(ValueError, match="too few"):
        tail_index(torch.zeros(10))


def test_it_is_arvizs() -> None:
    array = pytest.importorskip("arviz_stats.base.array")
    draws = np.random.default_rng(0).standard_t(3, size=(4, 3000))
    log_weight = np.log(np.abs(draws))
    want = [float(array.array_stats.psislw(-row)[1]) for row in log_weight]
    np.testing.assert_allclose(tail_index(torch.from_numpy(log_weight.T)).numpy(), want, atol=0.05)
