"""What endless doses lead to in a model that is integrated: the amounts that a period of them leaves as they
are."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medcm_cli.numerics.square import inverse as inverse_of
from medcm_cli.numerics.square import times

Period = Callable[[Tensor], Tensor]
"""Amounts (C, S, N, B) just before a dose -> just before the next."""

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Likewise, with their derivatives (C, C, S, N, B) by those before."""

Some = Callable[[Tensor], tuple[Period, Slope]]
"""Which trajectories (n,), of all flattened -> both, of these alone: amounts (C, 1, 1, n)."""

_STEPS = 50
_SQUARED = 0.1  # of a step's length in the last: Newton's method is as fast as it should be
# Of rough ones, which cost little, how many at most, as long as not most trajectories take steps below a
# tenth of their amounts; one above the half of them leads nowhere.
_ROUGH_STEPS, _MOST, _NEAR, _FAR = 4, 0.8, 0.1, 0.5
_TURNED = 1e-6  # that the matrix of a last step may be off where it leads to, if the solver is not
_FEW = 0.7  # of all trajectories: fewer are followed without the others
_DIGITS = 1e-4  # of the amounts, that the solver's error may have grown to
_WITHOUT_BOUND = 1e6  # of what one dose leaves: amounts that will not settle
# A step with a fixed matrix, from a solution that is known, makes derivatives exact to one more order. An
# objective with df/deta in it needs two, and its own second derivatives three.
_ORDERS = 3


class Tolerance(NamedTuple):
    """``rtol`` and ``atol`` (amounts) of a period, and of the solution, ``relative`` and ``absolute``."""

    rtol: float
    atol: float
    relative: float
    absolute: float


class Followed(NamedTuple):
    """How a period is followed, to which tolerances, and how ``some`` trajectories of it are."""

    period: Period
    slope: Slope
    within: Tolerance
    some: Some | None = None


def settle(
    period: Period, constant: Period, nothing: Tensor, wanted: Tensor, search: Tolerance, doses: int
) -> tuple[Tensor, Tensor]:
    """The fixed point x = P(x) of a period that torch can differentiate, and whether (S, N, B) there is one;
    arguments as of ``searched``.

    :param constant: the same period, of parameters without a gradient.
    :returns: differentiable with respect to what ``period`` depends on, up to the third derivative.
    """

    def slope(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            after = constant(x)
            rows = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in after]
        return after.detach(), torch.stack(rows)

    way = Followed(constant, slope, search)
    x, inverse, settled = searched(way, nothing, wanted, doses)
    for _ in range(_ORDERS):
        x = x + times(inverse, period(x) - x)
    return x, settled


@torch.no_grad()
def searched(
    way: Followed, nothing: Tensor, wanted: Tensor, doses: int, begin: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The fixed point x = P(x) of a period, by Newton's method; (1 - dP/dx)^-1 (C, C, S, N, B) there; and
    whether (S, N, B) there is one.

    :param nothing: amounts of 0, (C, S, N, B). :param wanted: where to solve, (S, N, B).
    :param doses: that a second search begins after, where the first fails; 0: there is none.
    :param begin: where the search begins, such as ``nearly``, in place of nothing.
    """
    x, inverse, settled, lost = _newton(way, nothing if begin is None else begin, wanted)
    missing = wanted & ~settled & ~lost
    if doses and bool(missing.any()):
        index, begin = missing.flatten().nonzero().flatten(), nothing
        if way.some is not None:
            period, slope = way.some(index)
            way = Followed(period, slope, way.within)
            begin, missing = _chosen(begin, index), _chosen(missing, index)
        some = begin is not nothing
        for _ in range(doses):
            begin = way.period(begin)
        other, other_inverse, found, _ = _newton(way._replace(some=None), begin, missing)
        if some:
            other, other_inverse = _put(x, index, other), _put(inverse, index, other_inverse)
            found = _put(torch.zeros_like(settled), index, found)
        x, inverse = torch.where(found, other, x), torch.where(found, other_inverse, inverse)
        settled = settled | found
    return x, torch.where(settled, inverse, 0), settled


@torch.no_grad()
def nearly(way: Followed, rough: Slope, nothing: Tensor, wanted: Tensor) -> Tensor:
    """Where a search may begin: after a few of Newton's steps by ``rough`` periods, which cost less, and one
    from there by a period as it is, for which their derivatives are good enough; at nothing for who comes
    near no solution."""
    x, first, unit = nothing, nothing, unit_of(nothing)
    for number in range(_ROUGH_STEPS):
        after, by = rough(x)
        first = first if number else after
        inverse = inverse_of(torch.where(wanted, unit - by, unit))
        step = times(inverse, after - x)
        there = moved(x, step)
        size, length = there.abs().amax(0), step.abs().amax(0)
        sound = wanted & (size < _WITHOUT_BOUND * first.abs().amax(0))
        x = torch.where(sound, there, first)
        if float((sound & (length < _NEAR * size)).sum()) > _MOST * float(wanted.sum()):
            break
    near = sound & (length < _FAR * size)
    there = moved(x, times(inverse, way.period(x) - x))
    return torch.where(near & torch.isfinite(there).all(0), there, nothing)


def unit_of(like: Tensor) -> Tensor:
    """(C, C, 1, 1, 1)."""
    return torch.eye(len(like), dtype=like.dtype, device=like.device).view(*[len(like)] * 2, 1, 1, 1)


def moved(x: Tensor, step: Tensor) -> Tensor:
    """No step makes an amount negative, where a rate may not be defined."""
    there = x + step
    return torch.where((x > 0) & (there < 0), x / 10, there)


Refine = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def solution(refine: Refine, found: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What was ``found``, differentiable with respect to ``inputs``, up to the second time.

    :param refine: (found, inputs) -> the same again, by one step of Newton's method with a fixed matrix. Each
        makes derivatives exact to one more order.
    """
    return _Solution.apply(refine, len(found), *found, *inputs)  # type: ignore[no-any-return, no-untyped-call]


class _Solution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, refine: Refine, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.refine, ctx.count = refine, count
        ctx.save_for_backward(*tensors)
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> Any:
        again = torch.is_grad_enabled()
        found = [tensor.detach() for tensor in ctx.saved_tensors[: ctx.count]]
        needs = ctx.needs_input_grad[2 + ctx.count :]
        inputs = ctx.saved_tensors[ctx.count :]
        with torch.enable_grad():
            # By other names where they go on: a duration may itself come from a parameter.
            inputs = [
                t.view_as(t) if again else t.detach().requires_grad_(need)
                for t, need in zip(inputs, needs, strict=True)
            ]
            for _ in range(_ORDERS if again else 1):
                found = list(ctx.refine(found, inputs))
            wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]
            grads = iter(
                torch.autograd.grad(
                    found, wanted, bars, create_graph=again, allow_unused=True, materialize_grads=True
                )
            )
        return None, None, *[None] * ctx.count, *(next(grads) if need else None for need in needs)


def _chosen(values: Tensor, index: Tensor) -> Tensor:
    """Some trajectories, (..., 1, 1, n)."""
    return values.flatten(-3).index_select(-1, index)[..., None, None, :]


def _put(values: Tensor, index: Tensor, some: Tensor) -> Tensor:
    """The opposite: all, with others in their place."""
    flat = values.flatten(-3)
    return flat.index_copy(-1, index, some.flatten(-3).expand(*flat.shape[:-1], -1)).view_as(values)


def _among(some: Some, index: Tensor, inner: Tensor) -> tuple[Period, Slope]:
    return some(index[inner])


class _Search(NamedTuple):
    """Amounts ``x`` (C, S, N, B); those that trajectories without a solution are put back to; the length of
    the ``last`` step and the ``most`` that amounts may come to, (S, N, B); ``inverse`` of the last step."""

    x: Tensor
    begin: Tensor
    last: Tensor
    most: Tensor
    inverse: Tensor


def _newton(way: Followed, begin: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Amounts, (1 - dP/dx)^-1 (C, C, S, N, B) there, whether these are a solution, and whether amounts grow
    without bound. Where there is no solution they are what one period makes of the beginning, so that no
    other's period is harder to integrate."""
    zero = torch.zeros_like(begin[0])
    nowhere = unit_of(begin).expand(len(begin), *begin.shape)
    return _steps(way, _Search(begin, begin, zero, zero, nowhere), wanted, range(_STEPS))


def _steps(
    way: Followed, at: _Search, wanted: Tensor, numbers: range
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``_newton``. Where most have their solution, the others are followed without them."""
    x, begin, last, most, inverse = at
    search = way.within
    active, settled, boundless = wanted, torch.zeros_like(wanted), torch.zeros_like(wanted)
    unit = unit_of(begin)
    for number in numbers:
        after, by = way.slope(x)
        if not number:
            begin, most = after, _WITHOUT_BOUND * after.abs().amax(0)
        now = inverse_of(torch.where(active, unit - by, unit))
        turned = (now - inverse).abs().amax((0, 1)) / now.abs().amax((0, 1))
        inverse = torch.where(active, now, inverse)
        step = times(now, after - x)
        there = moved(x, step)
        size, growth, length = there.abs().amax(0), now.abs().sum(1).amax(0), step.abs().amax(0)
        done = active & close(search, size, growth, length, last, turned)
        last, lost = length, active & ~(size < most)
        settled = settled | (done & ~lost & (growth * search.rtol < _DIGITS))
        boundless = boundless | lost
        x = torch.where(lost, begin, torch.where(active, there, x))
        active = active & ~done & ~lost
        if not bool(active.any()):
            break
        if way.some is not None and float(active.double().mean()) < _FEW:
            index = active.flatten().nonzero().flatten()
            part = _Search(*(_chosen(values, index) for values in (x, begin, last, most, inverse)))
            period, slope = way.some(index)
            alone = Followed(period, slope, search, functools.partial(_among, way.some, index))
            all_of_them = torch.ones_like(part.last, dtype=torch.bool)
            found = _steps(alone, part, all_of_them, range(number + 1, _STEPS))
            whole = zip((x, inverse, settled, boundless), found, strict=True)
            x, inverse, settled, boundless = (_put(values, index, own) for values, own in whole)
            active = torch.zeros_like(active)
            break
    return torch.where(active, begin, x), inverse, settled, boundless


def close(
    search: Tolerance, size: Tensor, growth: Tensor, length: Tensor, last: Tensor, turned: Tensor
) -> Tensor:
    """Whether a step of this ``length``, the ``last`` of which is known, leads to a solution.

    :param turned: by how much, as a share, that changed the matrix of the step.
    """
    doubt = growth * (search.rtol * size + search.atol)
    enough = search.relative * size + search.absolute + 4 * doubt
    # Errors are squared: the next step would be as many times shorter once more, and squared.
    shorter = length / last
    beyond = torch.where(shorter < _SQUARED, length * shorter.square(), torch.inf)
    # The matrix is that of where the step begins, and derivatives are as exact as it.
    exact = turned * shorter <= (growth * search.rtol).clamp(min=_TURNED)
    return (length <= enough) | ((10 * beyond <= enough) & exact)
