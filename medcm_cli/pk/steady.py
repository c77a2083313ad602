"""What endless doses lead to in a model that is integrated: the amounts that a period of them leaves as they
are."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Period = Callable[[Tensor], Tensor]
"""Amounts (C, S, N, B) just before a dose -> just before the next."""

_STEPS = 50
_WITHOUT_BOUND = 1e6  # of what one dose leaves: amounts that will not settle
_DIGITS = 1e-4  # of the amounts, that the solver's error may have grown to
# A step with a fixed matrix, from a solution that is known, makes derivatives exact to one more order. An
# objective with df/deta in it needs two, and its own second derivatives three.
_ORDERS = 3


class Tolerance(NamedTuple):
    """``rtol`` and ``atol`` (amounts) of a period, and of the solution, ``relative`` and ``absolute``."""

    rtol: float
    atol: float
    relative: float
    absolute: float


def settle(
    period: Period, constant: Period, nothing: Tensor, wanted: Tensor, search: Tolerance, doses: int
) -> tuple[Tensor, Tensor]:
    """The fixed point x = P(x) of a period, by Newton's method; and whether (S, N, B) there is one.

    :param constant: the same period, of parameters without a gradient.
    :param nothing: amounts of 0, (C, S, N, B). :param wanted: where to solve, (S, N, B).
    :param doses: that a second search begins after, where the first fails.
    :returns: differentiable with respect to what ``period`` depends on, up to the third derivative.
    """
    with torch.no_grad():
        begin = constant(nothing)
        x, inverse, settled, lost = _newton(constant, begin, wanted, search)
        missing = wanted & ~settled & ~lost
        if bool(missing.any()):
            for _ in range(doses - 1):
                begin = constant(begin)
            other, other_inverse, found, _ = _newton(constant, begin, missing, search)
            x = torch.where(found, other, x)
            inverse = torch.where(found[..., None, None], other_inverse, inverse)
            settled = settled | found
        inverse = torch.where(settled[..., None, None], inverse, 0)
    for _ in range(_ORDERS):
        x = x + _times(inverse, period(x) - x)
    return x, settled


def _newton(
    period: Period, begin: Tensor, wanted: Tensor, search: Tolerance
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Amounts, (1 - dP/dx)^-1 (S, N, B, C, C) there, whether these are a solution, and whether amounts grow
    without bound. Where there is no solution they are those of the beginning, so that no other's period is
    harder to integrate."""
    x, active, settled, boundless = begin, wanted, torch.zeros_like(wanted), torch.zeros_like(wanted)
    most = _WITHOUT_BOUND * begin.abs().amax(0)
    unit = torch.eye(len(begin), dtype=begin.dtype, device=begin.device)
    inverse = unit.expand(*wanted.shape, *unit.shape)
    for _ in range(_STEPS):
        after, slope = _with_slope(period, x)
        now, _ = torch.linalg.inv_ex(torch.where(active[..., None, None], unit - slope, unit))
        inverse = torch.where(active[..., None, None], now, inverse)
        step = _times(now, after - x)
        # No step makes an amount negative, where a rate may not be defined.
        there = torch.where((x > 0) & (x + step < 0), x / 10, x + step)
        size = there.abs().amax(0)
        growth = now.abs().sum(-1).amax(-1)
        doubt = growth * (search.rtol * size + search.atol)
        done = active & (step.abs().amax(0) <= search.relative * size + search.absolute + 4 * doubt)
        lost = active & ~(size < most)
        settled = settled | (done & ~lost & (growth * search.rtol < _DIGITS))
        boundless = boundless | lost
        x = torch.where(lost, begin, torch.where(active, there, x))
        active = active & ~done & ~lost
        if not bool(active.any()):
            break
    return torch.where(active, begin, x), inverse, settled, boundless


def _with_slope(period: Period, x: Tensor) -> tuple[Tensor, Tensor]:
    """P(x) and dP/dx (S, N, B, C, C)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        after = period(x)
        rows = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in after]
    return after.detach(), torch.stack([row.movedim(0, -1) for row in rows], -2)


def _times(matrix: Tensor, amounts: Tensor) -> Tensor:
    """(S, N, B, C, C) times (C, S, N, B)."""
    return (matrix @ amounts.movedim(0, -1)[..., None])[..., 0].movedim(-1, 0)
