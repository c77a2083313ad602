"""Omega, residual errors and densities against torch.distributions, numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.streams import Stream
from medcm_cli.variability import (
    Lower,
    RandomEffects,
    ResidualError,
    cholesky,
    covariance,
    dense,
    log_det,
    lower_from_raw,
    multiply_lower,
    multiply_lower_transposed,
    normal_log_density,
    positive_init,
    solve_lower,
    solve_lower_transposed,
)


def random_lower(k: int, n: int = 5) -> tuple[Lower, Tensor]:
    g = torch.Generator().manual_seed(k)
    full = torch.randn(n, k, k, generator=g, dtype=torch.float64).tril()
    full.diagonal(dim1=-2, dim2=-1).abs_().add_(0.3)
    return [[full[:, i, j] for j in range(i + 1)] for i in range(k)], full


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_small_matrices_equal_linear_algebra(k: int) -> None:
    lower, full = random_lower(k)
    vector = torch.randn(5, k, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    parts = list(vector.unbind(-1))
    spd = full @ full.mT

    def same(got: list[Tensor], want: Tensor) -> None:
        torch.testing.assert_close(torch.stack(got, -1), want, rtol=1e-10, atol=1e-12)

    same(multiply_lower(lower, parts), (full @ vector[..., None])[..., 0])
    same(multiply_lower_transposed(lower, parts), (full.mT @ vector[..., None])[..., 0])
    same(solve_lower(lower, parts), torch.linalg.solve(full, vector))
    same(solve_lower_transposed(lower, parts), torch.linalg.solve(full.mT, vector))
    torch.testing.assert_close(log_det(lower), torch.logdet(spd))
    torch.testing.assert_close(dense(covariance(lower)).permute(2, 0, 1), spd)
    rows = [[spd[:, i, j] for j in range(k)] for i in range(k)]
    torch.testing.assert_close(dense(cholesky(rows)).permute(2, 0, 1), torch.linalg.cholesky(spd))
    normal = torch.distributions.MultivariateNormal(torch.zeros(k, dtype=torch.float64), scale_tril=full)
    torch.testing.assert_close(normal_log_density(lower, parts), normal.log_prob(vector))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_correlations_are_valid_and_keep_the_marginal_sds(k: int) -> None:
    g = torch.Generator().manual_seed(k)
    sd = torch.rand(k, 4, generator=g, dtype=torch.float64) + 0.1
    raw = torch.randn(k * (k - 1) // 2, 4, generator=g, dtype=torch.float64) * 2
    omega = dense(covariance(lower_from_raw(sd.unbind(0), raw.unbind(0)))).permute(2, 0, 1)
    torch.testing.assert_close(omega.diagonal(dim1=-2, dim2=-1).sqrt().T, sd)
    assert bool((torch.linalg.eigvalsh(omega) > 0).all())
    first = omega[:, 1, 0] / (sd[0] * sd[1])
    torch.testing.assert_close(first, torch.tanh(raw[0]))  # with K = 2 the only one is rho


def test_partial_correlation_of_three() -> None:
    """The canonical partial correlation (3,2) is that of eta_3 and eta_2 given eta_1."""
    raw = [torch.tensor([v], dtype=torch.float64) for v in (0.3, -0.4, 0.7)]
    one = torch.ones(1, dtype=torch.float64)
    c = dense(covariance(lower_from_raw([one, one, one], raw)))[..., 0].numpy()
    partial = (c[2, 1] - c[2, 0] * c[1, 0]) / np.sqrt((1 - c[2, 0] ** 2) * (1 - c[1, 0] ** 2))
    assert partial == pytest.approx(np.tanh(0.7))
    assert c[2, 0] == pytest.approx(np.tanh(-0.4))


def test_initial_sds_are_a_normal_truncated_at_zero() -> None:
    streams = [Stream(0, 1, replicate) for replicate in range(1, 2001)]
    raw = positive_init(streams, "omega", 2, torch.float64)
    drawn = torch.nn.functional.softplus(raw).flatten().numpy()
    assert stats.kstest(drawn, stats.truncnorm(-4, np.inf, loc=0.1, scale=0.025).cdf).pvalue > 0.001


def test_random_effects_round_trip() -> None:
    effects = RandomEffects(("CL", "V1"))
    values = effects.init([Stream(0, 1, 1), Stream(0, 1, 2)], torch.float64)
    assert {name: tuple(v.shape) for name, v in values.items()} == {"omega": (2, 2), "correlation": (1, 2)}
    omega = dense(covariance(effects.cholesky(values)))
    sd = np.log1p(np.exp(values["omega"].numpy()))
    rho = np.tanh(values["correlation"][0].numpy())
    np.testing.assert_allclose(omega[0, 1].numpy(), sd[0] * sd[1] * rho)
    np.testing.assert_allclose(omega[1, 1].numpy(), sd[1] ** 2)
    assert RandomEffects(("CL",)).pairs == []


@pytest.mark.parametrize(
    ("components", "want"),
    [(("additive",), 0.2), (("proportional",), 1.5), (("additive", "proportional"), 0.4 * 5 + 0.2)],
)
def test_residual_sd(components: tuple[str, ...], want: float) -> None:
    """The sds of the combined error add, not the variances."""
    sigma = {"additive": 0.2, "proportional": 0.4 if len(components) > 1 else 0.3}
    raw = torch.log(torch.expm1(torch.tensor([[sigma[c]] for c in components], dtype=torch.float64)))
    error = ResidualError(components)
    f = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    sd, slope = error.sd({"sigma": raw}, f)
    assert float(sd.detach()) == pytest.approx(want)
    assert error.names == [f"sigma_{c}" for c in components]
    if slope is not None:
        assert float(slope) == pytest.approx(float(torch.autograd.grad(sd.sum(), f)[0]))


@pytest.mark.parametrize("components", [(), ("poisson",)])
def test_unknown_error_component(components: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="additive, proportional or both"):
        ResidualError(components)
