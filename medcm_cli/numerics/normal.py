"""Normal densities, and the probability that a normal variable lies below a limit."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medcm_cli.numerics.triangular import Lower, log_det, solve_lower, total

LOG_2PI = math.log(2 * math.pi)


def normal_log_density(lower: Lower, deviation: Sequence[Tensor]) -> Tensor:
    """log N(x; m, L L'), constants included; elementwise over the other dimensions.

    :param lower: L, K rows of tensors.
    :param deviation: x - m, K tensors that broadcast to those of ``lower``.
    :returns: a tensor of the broadcast shape.
    """
    white = solve_lower(lower, deviation)
    return -0.5 * (total([w * w for w in white]) + log_det(lower) + len(white) * LOG_2PI)


def normal_points(dimensions: int, count: int) -> Tensor:
    """Standard normal points (dimensions, count): half a Sobol sequence (``count`` is a power of 2) and its
    mirror image, of mean 0 and covariance I exactly."""
    engine = torch.quasirandom.SobolEngine(dimensions)
    half = engine.draw(count // 2, dtype=torch.float64) + 1 / count  # off the edge at 0
    points = torch.special.ndtri(half).T
    points = torch.cat([points, -points], 1)
    root = torch.linalg.cholesky(points @ points.T / count)
    white: Tensor = torch.linalg.solve_triangular(root, points, upper=False)
    return white


class _LogProbabilityBelow(torch.autograd.Function):
    """See ``log_probability_below``. torch's own derivative of log_ndtr loses its digits in float32 from
    z = -1e3 on and is 0 at -1e6, where an early epoch may well come."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        result: Tensor = torch.special.log_ndtr(z)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        rate, _ = hazard(z)
        return grad * rate


class _Excess(torch.autograd.Function):
    """lambda(z) + z, with lambda as in ``hazard``; its derivative is 1 - lambda (lambda + z)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        far = _FAR[z.dtype]
        near = z.clamp(min=far)
        excess = math.sqrt(2 / math.pi) / torch.special.erfcx(near * -math.sqrt(0.5)) + near
        # Far below, lambda and -z cancel: the asymptotic series of Mills' ratio (Abramowitz and Stegun
        # 26.2.12), inverted.
        u = -1 / z.clamp(max=far)
        v = u * u
        series = u * (1 + v * (-2 + v * (10 + v * (-74 + v * 706))))
        return torch.where(z < far, series, excess)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        rate, excess = hazard(z)
        return grad * (1 - rate * excess)


# Where the series is as accurate as the quotient: the error of one falls as z^-10, that of the other grows as
# z^2 times rounding.
_FAR = {torch.float32: -9.0, torch.float64: -50.0}


def log_probability_below(z: Tensor) -> Tensor:
    """log Phi(z), the log probability that a standard normal variable lies below z; elementwise, of the shape
    of ``z``, differentiable once and again."""
    result = _LogProbabilityBelow.apply(z)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


def hazard(z: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of log Phi, and what its curvature has beside it.

    :param z: any shape, float32 or float64.
    :returns: lambda = phi(z) / Phi(z) and lambda + z, of the shape of ``z``, differentiable. The slope of
        log Phi is lambda and its curvature -lambda (lambda + z), which lies between -1 and 0.
    """
    excess = _Excess.apply(z)  # type: ignore[no-untyped-call]
    assert isinstance(excess, Tensor)
    return excess - z, excess
