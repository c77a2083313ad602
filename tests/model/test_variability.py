"""Omega, residual errors and densities against torch.distributions, numpy and scipy."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.model import RandomEffects, ResidualError
from medcm_cli.model.initial import positive_init
from medcm_cli.numerics.normal import hazard, log_probability_below, normal_log_density
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import (
    Lower,
    cholesky,
    covariance,
    dense,
    log_det,
    lower_from_raw,
    multiply_lower,
    multiply_lower_transposed,
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


def test_blocks_are_correlated_within_and_not_between() -> None:
    """A block is what a full Omega of its effects alone would be, wherever they stand."""
    effects = RandomEffects(("A", "B", "C", "D", "E"), [["A", "D", "C"], ["E"]])
    assert effects.blocks == [[0, 2, 3], [4], [1]]
    assert effects.pairs == [(2, 0), (3, 0), (3, 2)]
    values = effects.init([Stream(0, 1, 1), Stream(0, 1, 2)], torch.float64)
    values["correlation"] = values["correlation"] * 20
    omega = dense(covariance(effects.cholesky(values)))
    block = RandomEffects(("A", "C", "D"))
    alone = dense(covariance(block.cholesky({**values, "omega": values["omega"][[0, 2, 3]]})))
    torch.testing.assert_close(omega[[0, 2, 3]][:, [0, 2, 3]], alone)
    assert bool((alone[0, 1] != 0).all())
    for i in (1, 4):
        others = [j for j in range(5) if j != i]
        assert not omega[i, others].any()
        torch.testing.assert_close(omega[i, i].sqrt(), torch.nn.functional.softplus(values["omega"][i]))


@pytest.mark.parametrize(
    "blocks", [[], [["A"], ["A", "B"]], [["A", "X"]], ["A", "B"], [[]], "block", [["A", 1]]]
)
def test_blocks_that_are_refused(blocks: Any) -> None:
    with pytest.raises(InputError, match="omega"):
        RandomEffects(("A", "B"), blocks)


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


@pytest.mark.parametrize("k", [1, 2, 6])
def test_a_diagonal_omega_has_no_correlations(k: int) -> None:
    effects = RandomEffects(tuple("abcdef"[:k]), "diagonal")
    values = effects.init([Stream(0, 1, 1), Stream(0, 1, 2)], torch.float64)
    assert set(values) == {"omega"}
    assert effects.pairs == []
    omega = dense(covariance(effects.cholesky(values))).permute(2, 0, 1).numpy()
    sd = np.log1p(np.exp(values["omega"].numpy()))
    np.testing.assert_allclose(omega, np.stack([np.diag(column**2) for column in sd.T]), atol=1e-15)


def test_a_full_omega_has_a_correlation_for_each_pair() -> None:
    effects = RandomEffects(tuple("abcdef"))
    values = effects.init([Stream(0, 1, 1)], torch.float64)
    assert values["correlation"].shape == (15, 1)
    assert effects.pairs[:3] == [(1, 0), (2, 0), (2, 1)]
    assert len(effects.pairs) == 15
    same = RandomEffects(tuple("abcdef"), "diagonal").init([Stream(0, 1, 1)], torch.float64)
    assert torch.equal(same["omega"], values["omega"])


def test_unknown_structure_of_omega() -> None:
    with pytest.raises(InputError, match="omega is 'block'; expected full or diagonal"):
        RandomEffects(("CL",), "block")


# -- the probability of lying below a limit --------------------------------------------------------

# The asymptotic branch and its neighbourhood, the middle, and where the probability is 1 to rounding.
FAR_AND_NEAR = np.r_[-np.geomspace(1e6, 5, 40), np.linspace(-4.9, 12, 40), 40.0]


def exact_hazard(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """lambda and lambda (lambda + z): by scipy, and far below 0 by the continued fraction of Mills' ratio,
    which does not cancel."""
    near = np.exp(stats.norm.logpdf(z) - stats.norm.logcdf(z))
    x = np.maximum(-z, 5.0)
    tail = np.zeros_like(x)  # lambda - x = 1 / (x + 2 / (x + 3 / (x + ...)))
    for n in range(400, 0, -1):
        tail = n / (x + tail)
    excess = np.where(z < -5, tail, near + z)
    rate = np.where(z < -5, x + tail, near)
    return rate, rate * excess


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_log_probability_below_and_its_derivatives(dtype: torch.dtype, accuracy: float) -> None:
    z = torch.tensor(FAR_AND_NEAR, dtype=dtype, requires_grad=True)
    exactly = z.detach().double().numpy()
    value = log_probability_below(z)
    np.testing.assert_allclose(value.detach().numpy(), stats.norm.logcdf(exactly), rtol=accuracy, atol=1e-30)
    rate, curvature = exact_hazard(exactly)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    np.testing.assert_allclose(slope.detach().numpy(), rate, rtol=accuracy, atol=accuracy / 10)
    (curved,) = torch.autograd.grad(slope.sum(), z)
    np.testing.assert_allclose(-curved.numpy(), curvature, rtol=accuracy, atol=accuracy)
    first, excess = hazard(z.detach())
    np.testing.assert_allclose(first * excess, curvature, rtol=accuracy, atol=accuracy)


def test_hazard_is_differentiable_to_third_order() -> None:
    z = torch.tensor(
        [-80.0, -50.5, -20.0, -3.0, -0.2, 0.0, 1.5, 6.0], dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda x: hazard(x)[0] * hazard(x)[1], z)
    assert torch.autograd.gradgradcheck(lambda x: hazard(x)[0] * hazard(x)[1], z)


# -- known, not estimated --------------------------------------------------------------------------


def test_a_fixed_omega_is_not_trained_and_is_what_was_given() -> None:
    known = [[0.5, 0.1, 0.0], [0.1, 0.3, -0.1], [0.0, -0.1, 0.2]]
    effects = RandomEffects(("CL", "V1", "Q"), fixed=known)
    assert effects.init([Stream(0, 1, 1)] * 2, torch.float64) == {}
    lower = effects.cholesky({"anything": torch.zeros(4, 2, dtype=torch.float64)})
    matrix = dense(covariance(lower))
    assert matrix.shape == (3, 3, 2)
    for fit in range(2):
        np.testing.assert_allclose(matrix[..., fit], known, atol=1e-15)


@pytest.mark.parametrize(
    "omega",
    [[[1.0, 2.0], [2.0, 1.0]], [[1.0]], [[1.0, 0.1], [0.2, 1.0]], "large", [[1.0, None], [None, 1.0]]],
)
def test_a_fixed_omega_that_is_none(omega: Any) -> None:
    with pytest.raises(InputError, match=r"fixed\.omega"):
        RandomEffects(("CL", "V1"), fixed=omega)


def test_a_fixed_sigma_beside_one_that_is_trained() -> None:
    error = ResidualError(("additive", "proportional"), {"additive": 0.02})
    raw = error.init([Stream(0, 1, 1)], torch.float64)
    assert raw["sigma"].shape == (1, 1)
    sigmas = error.sigmas(raw)
    assert list(sigmas) == ["additive", "proportional"]
    assert sigmas["additive"].tolist() == [0.02]
    np.testing.assert_allclose(sigmas["proportional"].numpy(), np.log1p(np.exp(raw["sigma"][0].numpy())))
    alone = ResidualError(("proportional",), {"proportional": 0.3})
    assert alone.init([Stream(0, 1, 1)], torch.float64) == {}


@pytest.mark.parametrize("sigma", [{"additive": 0}, {"additive": "much"}, {"proportional": 0.1}])
def test_a_fixed_sigma_that_is_none(sigma: Any) -> None:
    with pytest.raises(InputError, match=r"fixed\.sigma"):
        ResidualError(("additive",), sigma)
