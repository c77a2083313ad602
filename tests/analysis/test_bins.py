"""Bins along an axis: in order, every observation in one, equal times together, and none that is a sliver."""

import numpy as np
import pytest

from medcm_cli.analysis import bins
from medcm_cli.data.sheet import FloatArray

PLANNED = np.array([0.0, 0.25, 0.5, 1.0, 2.0, 12.0, 24.0])


def drawn(kind: str) -> FloatArray:
    """A third of the observations of a dense early phase, at planned times or about them."""
    generator = np.random.default_rng(3)
    if kind == "planned":
        return np.asarray(generator.permutation(np.repeat(PLANNED, 12)))
    if kind == "about":  # minutes off the plan
        return np.asarray(np.repeat(PLANNED, 40) + generator.uniform(0, 0.02, 280))
    if kind == "some planned":  # half of the observations at one time
        return np.concatenate([np.full(60, 1.0), generator.uniform(0, 30, 60)])
    return generator.uniform(0, 100, 300)


@pytest.mark.parametrize("kind", ["planned", "about", "some planned", "spread"])
def test_bins_are_in_order_hold_all_and_part_no_equal_times(kind: str) -> None:
    x = drawn(kind)
    found = bins.numbers(x, 25, 8)
    assert found.shape == x.shape
    assert np.unique(found).tolist() == list(range(found.max() + 1))
    assert np.bincount(found).sum() == len(x)
    assert (np.diff(found[np.argsort(x, kind="stable")]) >= 0).all()
    medians = [np.median(x[found == number]) for number in range(found.max() + 1)]
    assert len(medians) > 2
    assert np.diff(medians).min() > 0  # so that no line through them is vertical
    for time in np.unique(x):
        assert len(np.unique(found[x == time])) == 1


def test_few_planned_times_are_a_bin_each() -> None:
    x = drawn("planned")
    found = bins.numbers(x, 25, 8)
    assert [np.unique(x[found == number]).tolist() for number in range(7)] == [[t] for t in PLANNED]
    assert np.bincount(found).tolist() == [12] * 7


def test_bins_whose_medians_cannot_be_told_apart_are_one() -> None:
    """280 observations within minutes of seven times, the first four close together: no bin is a sliver."""
    x = drawn("about")
    found = bins.numbers(x, 10, 8)
    medians = np.array([np.median(x[found == number]) for number in range(found.max() + 1)])
    assert np.diff(medians).min() >= 0.03 * np.ptp(x)
    assert np.abs(medians[:, None] - [24.0, 12.0]).min(0).max() < 0.02


def test_bins_keep_planned_times_together() -> None:
    generator = np.random.default_rng(0)
    planned = np.repeat([4.0, 24.0, 48.0], [55, 60, 65])
    found = bins.numbers(planned + generator.uniform(-1.5, 1.5, 180), 25, 8)
    for one in np.unique(found):
        assert len(np.unique(planned[found == one])) == 1


@pytest.mark.parametrize("seed", range(10))
def test_no_bin_is_left_with_a_few(seed: int) -> None:
    """Around gaps, where edges of two bins move towards each other."""
    x = np.random.default_rng(seed).normal([0, 1, 5], [0.1, 2, 0.1], (40, 3)).ravel()
    assert np.bincount(bins.numbers(x, 10, 8)).min() >= 120 / 8 / 2


@pytest.mark.parametrize("x", [np.full(100, 7.0), np.full(3, 7.0), np.array([1.0, 2.0]), np.zeros(0)])
def test_what_cannot_be_parted_is_one_bin(x: FloatArray) -> None:
    assert bins.numbers(x, 25, 8).max(initial=0) == 0
