"""Student's t distribution: what torch does not have of it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def t_log_density(x: Tensor, degrees: float) -> Tensor:
    """log of the density of t with ``degrees`` of freedom, elementwise."""
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    return scale - 0.5 * (degrees + 1) * torch.log1p(x * x / degrees)


def t_quantile_of_normal(noise: Tensor | float, degrees: float) -> Tensor:
    """The value of t that is as improbable as ``noise`` is of a standard normal, of its shape. No gradient:
    computed by scipy, in double precision, from the nearer tail."""
    from scipy import special  # slow to load, here and below

    normal = noise if isinstance(noise, Tensor) else torch.tensor(noise, dtype=torch.float64, device="cpu")
    return _by_the_nearer_tail(normal, lambda far: special.stdtrit(degrees, special.ndtr(far)))


def normal_quantile_of_t(x: Tensor, degrees: float) -> Tensor:
    """The inverse of ``t_quantile_of_normal``, without a gradient likewise."""
    from scipy import special

    return _by_the_nearer_tail(x, lambda far: special.ndtri(special.stdtr(degrees, far)))


def _by_the_nearer_tail(x: Tensor, quantile: Callable[[np.ndarray], object]) -> Tensor:
    """An odd function by its values below 0, where a small probability keeps its digits."""
    whole = x.detach().double().cpu()
    found = torch.from_numpy(np.asarray(quantile(-whole.abs().numpy())))
    return torch.copysign(found, whole).to(x)


class _LogBelow(torch.autograd.Function):
    """See ``t_log_probability_below``; the derivative is the density over the probability."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, degrees: float) -> Tensor:
        from scipy import special

        below = special.stdtr(degrees, x.detach().double().cpu().numpy())
        result = torch.from_numpy(np.asarray(below)).log().to(x)
        ctx.degrees = degrees
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, result = ctx.saved_tensors
        return grad * torch.exp(t_log_density(x, ctx.degrees) - result), None


def t_log_probability_below(x: Tensor, degrees: float) -> Tensor:
    """log P(T < x) of t with ``degrees`` of freedom, elementwise, differentiable as often as asked."""
    result = _LogBelow.apply(x, degrees)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result
