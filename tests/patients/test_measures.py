"""Measures of curves and their quantiles, against numpy."""

import numpy as np
import pytest
import torch

from medcm_cli.patients.measures import PROBABILITIES, pooled_quantiles, pooled_sd, time_above


def test_quantiles_and_sds_pool_draws_and_fits() -> None:
    """Of fits that do not count nothing matters, not even that they have no number."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, 7, 4, 5))  # T, S, N, B
    found = pooled_quantiles(torch.from_numpy(values)).numpy()
    pooled = np.moveaxis(values, 1, 2).reshape(3, 4, -1)
    expected = np.quantile(pooled, PROBABILITIES, axis=-1, method="hazen")
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(pooled_sd(torch.from_numpy(values)), pooled.std(-1), atol=1e-12)
    keep = np.array([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0], [1, 0, 1, 0, 1]], dtype=bool)
    values = np.where(keep, values, np.nan)
    found = pooled_quantiles(torch.from_numpy(values), torch.from_numpy(keep)).numpy()
    sd = pooled_sd(torch.from_numpy(values), torch.from_numpy(keep)).numpy()
    for patient in range(4):
        kept = values[:, :, patient, keep[patient]].reshape(3, -1)
        expected = np.quantile(kept, PROBABILITIES, axis=-1, method="hazen")
        np.testing.assert_allclose(found[:, :, patient], expected, atol=1e-12)
        np.testing.assert_allclose(sd[:, patient], kept.std(-1), atol=1e-12)


def test_time_above_is_that_of_a_fine_grid() -> None:
    generator = np.random.default_rng(1)
    clock = np.cumsum(generator.exponential(1.0, 12))
    level = generator.uniform(0, 2, 12)
    level[5] = level[4]  # a flat stretch
    fine = np.linspace(clock[0], clock[-1], 2_000_001)
    straight, bent = np.interp(fine, clock, level), np.exp(np.interp(fine, clock, np.log(level)))
    falls = np.r_[np.diff(level), 0.0][np.searchsorted(clock, fine, side="right") - 1] < 0
    curve = np.where(falls, bent, straight)
    shape = torch.from_numpy(level)[:, None, None, None]
    for threshold in (0.3, 1.0, 1.7, 3.0):
        expected = (curve > threshold).mean() * (clock[-1] - clock[0])
        found = time_above(shape, torch.from_numpy(clock)[:, None], threshold)
        assert float(found) == pytest.approx(expected, abs=1e-4)
