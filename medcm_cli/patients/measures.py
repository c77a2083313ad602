"""Measures of curves, and their quantiles over the draws and fits that a prediction pools."""

import numpy as np
import torch
from torch import Tensor

from medcm_cli.data.sheet import FloatArray

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)
BOUNDS = ("lower_90", "lower_50", "median", "upper_50", "upper_90")


def time_above(level: Tensor, clock: Tensor, threshold: float) -> Tensor:
    """Hours above a threshold between the first and the last time. Between two of them the level is taken as
    linear where it rises, and its logarithm where it falls.

    :param level: (T, S, N, B). :param clock: (T, N), in double precision where it is far from 0.
    :param threshold: in the unit of the level.
    :returns: (S, N, B), in the clock's unit.
    """
    one, other = level[:-1], level[1:]
    falls = other < one
    tiny = torch.finfo(level.dtype).tiny
    high = torch.where(falls, torch.log(one.clamp(min=tiny)), other)
    low = torch.where(falls, torch.log(other.clamp(min=tiny)), one)
    wanted = torch.where(falls, float(np.log(threshold)), threshold)
    # Where two are equal, the quotient is far below 0 or above 1.
    share = ((high - wanted) / (high - low).clamp(min=tiny)).clamp(0, 1)
    return (share * torch.diff(clock, dim=0)[:, None, :, None].to(level.dtype)).sum(0)


def area(level: Tensor, clock: Tensor) -> Tensor:
    """The integral over time by the linear-up, logarithmic-down rule.

    :param level: (T, S, N, B). :param clock: (T, N).
    :returns: (S, N, B), the unit of the level times that of the clock.
    """
    one, other = level[:-1], level[1:]
    tiny = torch.finfo(level.dtype).tiny
    mean = (one + other) / 2
    ratio = torch.log(one.clamp(min=tiny) / other.clamp(min=tiny))
    # Of a ratio near 1 the logarithmic mean is the arithmetic one, and its formula a difference of equals.
    falls = (ratio > 1e-2) & (other > 0)
    mean = torch.where(falls, (one - other) / torch.where(falls, ratio, 1), mean)
    return (mean * torch.diff(clock, dim=0)[:, None, :, None].to(level.dtype)).sum(0)


def pooled_quantiles(values: Tensor, keep: Tensor | None = None) -> Tensor:
    """Quantiles ``PROBABILITIES`` over draws and fits, (X, S, N, B) -> (5, X, N).

    :param keep: (N, B), whether a fit counts for a patient; all do by default.
    """
    if keep is not None:
        values = torch.where(keep, values, torch.inf)
    pooled = values.permute(0, 2, 1, 3).flatten(2).sort(-1)[0]  # (X, N, S B)
    size = pooled.shape[-1]
    count = torch.full((1, pooled.shape[1]), size) if keep is None else keep.sum(-1)[None] * values.shape[1]
    quantiles = []
    for probability in PROBABILITIES:
        position = (probability * count.double() - 0.5).clamp(min=0)
        low = position.floor()
        index = torch.stack([low, torch.minimum(low + 1, count - 1)]).long().expand(2, *pooled.shape[:2])
        below, beyond = pooled.gather(-1, index.permute(1, 2, 0)).unbind(-1)
        quantiles.append(below + (position - low).to(pooled.dtype) * (beyond - below))
    return torch.stack(quantiles)


def pooled_sd(values: Tensor, keep: Tensor | None = None) -> Tensor:
    """Standard deviation over draws and fits, (X, S, N, B) -> (X, N).

    :param keep: as of ``pooled_quantiles``; what does not count may be no number.
    """
    if keep is None:
        keep = torch.ones(1, 1, dtype=torch.bool)
    count = keep.expand(values.shape[2:]).sum(-1) * values.shape[1]
    mean = torch.where(keep, values, 0).sum((1, 3)) / count
    square = (values - mean[:, None, :, None]).square()
    return (torch.where(keep, square, 0).sum((1, 3)) / count).sqrt()


def middle(values: Tensor) -> FloatArray:
    """The median over fits: (..., B) -> (...)."""
    return np.asarray(values.quantile(0.5, dim=-1).numpy())


def quantile_columns(bounds: Tensor, prefix: str = "") -> dict[str, np.ndarray]:
    """Name of the bound -> its values (X N,), patients innermost, of quantiles (5, X, N)."""
    return {prefix + name: values.numpy().ravel() for name, values in zip(BOUNDS, bounds, strict=True)}
