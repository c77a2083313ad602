"""Initial unconstrained values that random effects and residual errors share, and numbers that are known."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medcm_cli.numerics.streams import Stream, per_fit


def constant(values: Mapping[str, Tensor], number: float) -> Tensor:
    """A number that is the same for every fit, (B,), as the fits' ``values`` are."""
    like = next(iter(values.values()))
    return like.new_full(like.shape[-1:], number)


def positive_init(streams: Sequence[Stream], purpose: str, count: int, dtype: torch.dtype) -> Tensor:
    """Raw values whose softplus is Normal(0.1, 0.025) truncated at 0: (count, B)."""
    uniform = per_fit(streams, lambda g: g.random(count), purpose, torch.float64)
    below = torch.special.ndtr(uniform.new_tensor(-4.0))  # the part of the normal that lies below zero
    drawn = 0.1 + 0.025 * torch.special.ndtri(below + (1 - below) * uniform)
    return torch.log(torch.expm1(drawn)).to(dtype)
