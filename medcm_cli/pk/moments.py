"""Moments of a decaying exponential over the unit interval, accurate and differentiable to every order."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Moment(torch.autograd.Function):
    """See ``moment``. The derivative of M_n is -M_(n+1), computed as such: every derivative is as accurate
    as the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.n = n
        if n == 0:
            x = x.clamp(min=torch.finfo(x.dtype).tiny)  # M_0(0) = 1, not 0 / 0
            return torch.neg(x).expm1_().neg_().div_(x)
        if x.device.type == "cpu":  # others would have to be waited for
            low, high = torch.aminmax(x)
            if float(high) < QUADRATURE_BELOW:
                return _moment_quadrature(x, n)
            flat = x.reshape(-1)
            result = _moment_recurrence(flat.clamp(min=QUADRATURE_BELOW), n)
            if not float(low) >= QUADRATURE_BELOW:  # or not a number, which another fit may have come to
                few = (flat < QUADRATURE_BELOW).nonzero().flatten()
                result[few] = _moment_quadrature(flat[few], n)
            return result.view(x.shape)
        small = _moment_quadrature(x.clamp(max=QUADRATURE_BELOW), n)
        return torch.where(x < QUADRATURE_BELOW, small, _moment_recurrence(x.clamp(min=QUADRATURE_BELOW), n))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return -(grad * moment(x, ctx.n + 1)), None


def moment(x: Tensor, n: int) -> Tensor:
    """M_n(x) = int_0^1 u^n exp(-x u) du for x >= 0, elementwise; differentiable to all orders."""
    result = _Moment.apply(x, n)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


def moment_difference(a: Tensor, gap: Tensor) -> Tensor:
    """(M_0(a) - M_0(a + gap)) / gap for a, gap >= 0, elementwise; exact and smooth where ``gap`` is 0.

    By the product rule of divided differences of (1 - exp(-x)) (1 / x) it is
    (M_0(a) - exp(-a) M_0(gap)) / (a + gap); where a + gap is small, that would cancel, and the integral of u
    exp(-a u) M_0(gap u) over [0, 1] takes its place.
    """
    b = a + gap
    small = b < QUADRATURE_BELOW
    nodes, weights = nodes_of(b.dtype, b.device)
    points = nodes.view(-1, *[1] * b.ndim)
    near, near_gap = (torch.where(small, value, 0) for value in (a, gap))
    integrand = points * torch.exp(-near * points) * moment(near_gap * points, 0)
    integral = (weights.view_as(points) * integrand).sum(0)
    far = torch.where(small, 1, b)
    return torch.where(small, integral, (moment(a, 0) - torch.exp(-a) * moment(gap, 0)) / far)


def three_decays(rates: Sequence[Tensor], width: Tensor) -> Tensor:
    """What of a unit that leaves at three rates (1/h) in turn waits for the third after ``width`` h,
    over the product of the first two: the second divided difference of exp(-rate width); exact and smooth
    where rates are equal."""
    low, middle, high = torch.stack(torch.broadcast_tensors(*rates)).sort(0).values.unbind(0)
    difference = moment_difference((middle - low) * width, (high - middle) * width)
    return width * width * torch.exp(-low * width) * difference


# Above it the recurrence loses no more than the factor (n / x)^n of rounding; below it so few Gauss-Legendre
# nodes reach rounding error (the remainder falls as x^(2 nodes)) that they are cheaper than a series.
QUADRATURE_BELOW = 0.5
_NODES = {torch.float32: 3, torch.float64: 7}


@functools.cache
def nodes_of(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes in [0, 1] and their weights, as many as a type needs below
    ``QUADRATURE_BELOW``."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES[dtype])
    return (
        torch.tensor((1 + nodes) / 2, dtype=dtype, device=device),
        torch.tensor(weights / 2, dtype=dtype, device=device),
    )


def _moment_quadrature(x: Tensor, n: int) -> Tensor:
    nodes, weights = nodes_of(x.dtype, x.device)
    return torch.matmul(weights * nodes**n, torch.exp(-nodes[:, None] * x.reshape(1, -1))).view(x.shape)


def _moment_recurrence(x: Tensor, n: int) -> Tensor:
    less = -x
    decay = torch.exp(less)
    value = less.expm1_().neg_().div_(x)
    for order in range(1, n + 1):
        value = value.mul_(order).sub_(decay).div_(x)
    return value
