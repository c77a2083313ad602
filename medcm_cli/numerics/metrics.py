"""Measures of a fit, as pure functions."""

import math

import torch
from torch import Tensor


def rmse(prediction: Tensor, dv: Tensor, observed: Tensor) -> Tensor:
    """Root mean squared error of each fit over all observations that exist.

    :param prediction: (T, S, N, B), or broadcastable to it; ``dv`` likewise, in the same unit.
    :param observed: 1 where there is an observation, 0 elsewhere.
    :returns: (B,), in the unit of ``dv``.
    """
    squared = (prediction - dv).square() * observed
    return torch.sqrt(squared.sum((0, 1, 2)) / observed.expand_as(squared).sum((0, 1, 2)))


def kl_zero_mean(true: Tensor, estimated: Tensor) -> Tensor:
    """KL(N(0, true) || N(0, estimated)) = (tr(E^-1 T) - K + log|E| - log|T|) / 2.

    :param true: covariance T, (K, K).
    :param estimated: covariances E, (..., K, K).
    :returns: (...), in nats; NaN where ``estimated`` is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(estimated)
    ratio = torch.cholesky_solve(true.expand_as(estimated), factor)
    trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    kl = 0.5 * (trace - true.shape[-1] + log_det - torch.logdet(true))
    return torch.where(failed == 0, kl, torch.nan)


def squared_wasserstein(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of two Gaussians, |m - n|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) (Olkin
    and Pukelsheim 1982).

    :param mean: m, (..., K).
    :param cov: A, (..., K, K), positive definite.
    :param other_mean: n; ``other_cov``: B, likewise.
    :returns: (...), in the squared unit of ``mean``.
    """
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp(min=0).sqrt()[..., None, :] @ vectors.mT
    # The trace of the root of a matrix is the sum of the roots of its eigenvalues.
    shared = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt().sum(-1)
    trace = (cov + other_cov).diagonal(dim1=-2, dim2=-1).sum(-1)
    distance: Tensor = (mean - other_mean).square().sum(-1) + trace - 2 * shared
    return distance


DIRECTIONS = 32


def sliced_wasserstein(draws: Tensor, other: Tensor) -> Tensor:
    """K times the squared sliced 2-Wasserstein distance of two samples of one size.

    The mean, over ``DIRECTIONS`` fixed directions, of the squared distance of the samples' projections, which
    in one dimension is that of their sorted values (Bonneel et al. 2015). Times K it equals the squared
    distance itself where one sample is the other moved, and it needs no normality.

    :param draws: (S, ..., K); ``other`` likewise.
    :returns: (...), in the squared unit of ``draws``.
    """
    k = draws.shape[-1]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(k, DIRECTIONS, generator=generator, dtype=torch.float64).to(draws.dtype)
    if k == 2:  # evenly around the half circle
        angle = torch.arange(DIRECTIONS, dtype=draws.dtype) * (math.pi / DIRECTIONS)
        directions = torch.stack([angle.cos(), angle.sin()])
    directions = directions / directions.norm(dim=0)
    gap = (draws @ directions).sort(0).values - (other @ directions).sort(0).values
    distance: Tensor = k * gap.square().mean((0, -1))
    return distance
