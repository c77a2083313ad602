"""Measures of a fit, as pure functions."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rmse(prediction: Tensor, dv: Tensor, observed: Tensor) -> Tensor:
    """Root mean squared error per fit over all observations that exist: (T, S, N, B) -> (B,), in the unit of
    ``dv``."""
    squared = (prediction - dv).square() * observed
    return torch.sqrt(squared.sum((0, 1, 2)) / observed.expand_as(squared).sum((0, 1, 2)))


def kl_zero_mean(true: Tensor, estimated: Tensor) -> Tensor:
    """KL(N(0, true) || N(0, estimated)) = (tr(E^-1 T) - K + log|E| - log|T|) / 2.

    :param true: (K, K). :param estimated: (..., K, K).
    :returns: (...), NaN where ``estimated`` is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(estimated)
    ratio = torch.cholesky_solve(true.expand_as(estimated), factor)
    trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    kl = 0.5 * (trace - true.shape[-1] + log_det - torch.logdet(true))
    return torch.where(failed == 0, kl, torch.nan)


def mean_absolute_error(estimates: Sequence[float], truth: Sequence[float]) -> float:
    """Mean of |estimate - truth| over the entries of a parameter vector."""
    return sum(abs(e - t) for e, t in zip(estimates, truth, strict=True)) / len(truth)
