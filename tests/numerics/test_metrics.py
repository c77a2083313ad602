"""Measures against numpy and torch.distributions."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg

from medcm_cli.numerics.metrics import kl_zero_mean, rmse, sliced_wasserstein, squared_wasserstein

F64 = torch.float64


@pytest.mark.parametrize("samples", [1, 4])
def test_rmse_counts_only_observations_that_exist(samples: int) -> None:
    generator = np.random.default_rng(0)
    observations, subjects, fits = 5, 7, 3
    prediction = generator.normal(size=(observations, samples, subjects, fits))
    dv = generator.normal(size=(observations, 1, subjects, fits))
    observed = generator.random((observations, 1, subjects, fits)) < 0.7
    prediction[~np.broadcast_to(observed, prediction.shape)] = 1e9  # padding: anything may stand there
    got = rmse(torch.tensor(prediction), torch.tensor(dv), torch.tensor(observed, dtype=F64))
    for fit in range(fits):
        errors = [
            prediction[t, s, n, fit] - dv[t, 0, n, fit]
            for t, s, n in np.ndindex(observations, samples, subjects)
            if observed[t, 0, n, fit]
        ]
        assert len(errors) < observations * samples * subjects
        assert float(got[fit]) == pytest.approx(math.sqrt(np.mean(np.square(errors))), rel=1e-12)


def test_rmse_by_hand() -> None:
    prediction, dv = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 5.0, 0.0])
    shape = (3, 1, 1, 1)
    observed = torch.tensor([1.0, 1.0, 0.0]).view(shape)
    got = rmse(prediction.view(shape), dv.view(shape), observed)
    torch.testing.assert_close(got, torch.tensor([math.sqrt(4.5)]))


def random_covariances(k: int, count: int) -> torch.Tensor:
    root = torch.randn(count, k, k + 2, generator=torch.Generator().manual_seed(k), dtype=F64)
    return root @ root.mT / 10


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_kl_equals_torch_distributions(k: int) -> None:
    covariances = random_covariances(k, 21)
    true, estimated = covariances[0], covariances[1:].reshape(4, 5, k, k)
    zero = torch.zeros(k, dtype=F64)
    normal = torch.distributions.MultivariateNormal
    expected = torch.distributions.kl_divergence(normal(zero, true), normal(zero.expand(4, 5, k), estimated))
    torch.testing.assert_close(kl_zero_mean(true, estimated), expected, rtol=1e-10, atol=1e-12)


def test_kl_of_a_covariance_to_itself_is_zero_and_the_order_matters() -> None:
    a, b = random_covariances(2, 2)
    assert float(kl_zero_mean(a, a)) == pytest.approx(0, abs=1e-13)
    assert float(kl_zero_mean(a, b)) != pytest.approx(float(kl_zero_mean(b, a)), rel=1e-3)


def test_kl_of_variances_by_hand() -> None:
    """log(s2 / s1) + s1^2 / (2 s2^2) - 1/2 with s1 = 1, s2 = 2."""
    got = kl_zero_mean(torch.tensor([[1.0]], dtype=F64), torch.tensor([[4.0]], dtype=F64))
    assert float(got) == pytest.approx(math.log(2) + 1 / 8 - 1 / 2, rel=1e-14)


BAD = {
    "negative variance": [[-1.0, 0.0], [0.0, 1.0]],
    "correlation above 1": [[1.0, 1.5], [1.5, 1.0]],
    "correlation of 1": [[1.0, 1.0], [1.0, 1.0]],
    "zero": [[0.0, 0.0], [0.0, 0.0]],
    "not a number": [[math.nan, 0.0], [0.0, 1.0]],
}


@pytest.mark.parametrize("case", BAD)
def test_kl_is_nan_where_an_estimate_is_not_positive_definite_and_only_there(case: str) -> None:
    true = torch.tensor([[0.037, 0.0113], [0.0113, 0.017]], dtype=F64)
    good = random_covariances(2, 2)
    got = kl_zero_mean(true, torch.stack([good[0], torch.tensor(BAD[case], dtype=F64), good[1]]))
    assert got.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(got[::2], torch.stack([kl_zero_mean(true, matrix) for matrix in good]))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_squared_wasserstein_equals_its_definition_by_matrix_roots(k: int) -> None:
    a, b = random_covariances(k, 2)
    generator = torch.Generator().manual_seed(9)
    m, n = torch.randn(2, k, generator=generator, dtype=F64)
    root = linalg.sqrtm(a.numpy())
    both = linalg.sqrtm(root @ b.numpy() @ root).real
    expected = (m - n).square().sum() + np.trace(a.numpy() + b.numpy() - 2 * both)
    stacked = [x.expand(3, 4, *x.shape) for x in (m, a, n, b)]
    got = squared_wasserstein(*stacked)
    assert got.shape == (3, 4)
    torch.testing.assert_close(got, expected.expand(3, 4), rtol=1e-9, atol=1e-12)
    assert float(squared_wasserstein(m, a, m, a)) == pytest.approx(0, abs=1e-12)


def test_squared_wasserstein_in_one_dimension_by_hand() -> None:
    """(m - n)^2 + (s - t)^2 with m - n = 3, s = 1, t = 2."""
    one = torch.ones(1, dtype=F64)
    got = squared_wasserstein(3 * one, one[None], 0 * one, 4 * one[None])
    assert float(got) == pytest.approx(9 + 1)


def test_sliced_wasserstein_of_a_moved_sample_is_the_square_of_the_way() -> None:
    for k, tolerance in ((1, 1e-12), (2, 1e-12), (3, 0.5)):  # directions in 3 dimensions are random ones
        draws = torch.randn(500, 4, k, generator=torch.Generator().manual_seed(k), dtype=F64)
        way = torch.arange(1, k + 1, dtype=F64)
        got = sliced_wasserstein(draws, draws.flip(0) + way)
        torch.testing.assert_close(got, way.square().sum().expand(4), rtol=tolerance, atol=0)


@pytest.mark.slow
def test_sliced_wasserstein_of_gaussians() -> None:
    """Along a direction u the projections are N(0, u'Au): the mean of (sd_A - sd_B)^2 over the circle."""
    a, b = random_covariances(2, 2)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 200_000, 2, generator=generator, dtype=F64)
    samples = [z @ torch.linalg.cholesky(c).mT for z, c in zip(noise, (a, b), strict=True)]
    got = float(sliced_wasserstein(*samples))

    def gap(angle: float) -> float:
        u = np.array([np.cos(angle), np.sin(angle)])
        return float((np.sqrt(u @ a.numpy() @ u) - np.sqrt(u @ b.numpy() @ u)) ** 2)

    assert got == pytest.approx(2 * integrate.quad(gap, 0, np.pi)[0] / np.pi, rel=0.03)
