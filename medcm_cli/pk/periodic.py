"""A period that leaves amounts as they are, with all of its steps solved for at once.

What the steps of a period make of its beginning is a system of equations for the amounts at all of their
stages. Newton's method solves these together with the condition that the end is the beginning: in each sweep
the rate and its slopes are evaluated at all stages at once, and what is left is linear. The steps are those
of a period that begins near the solution, and their errors are checked there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.numerics.square import inverse as inverse_of
from medcm_cli.numerics.square import times
from medcm_cli.pk.change import Right, Where, slopes
from medcm_cli.pk.slopes import amounts_at, places_at, slopes_along
from medcm_cli.pk.stages import Call, pieces
from medcm_cli.pk.steady import Tolerance, close, moved, unit_of
from medcm_cli.pk.steps import KEPT, Way
from medcm_cli.pk.tangents import forwards

_BALANCES = 8  # of Newton's steps to amounts that stay as they are
_NEAR = 0.1  # of these amounts: a step that is the last
_SIMPSON = (1 / 6, 4 / 6, 1 / 6)
_MESHES, _SWEEPS = 2, 5
GROWTH = 10.0  # of what a period is off: more is left to a search period by period, to finer tolerances


class Part(NamedTuple):
    """A stretch of a period: with what it is followed, and the tensors of ``Where``."""

    call: Call
    tensors: Sequence[Tensor]


class Solved(NamedTuple):
    """Amounts ``x`` (C, S, N, B) at the beginning of a period that ends with them, (1 - dP/dx)^-1 (C, C, S,
    N, B) there, and the ways along its parts."""

    x: Tensor
    inverse: Tensor
    ways: list[Way]


@torch.no_grad()
def between(
    right: Right, where: Where, dose: Tensor, at_once: Tensor, nothing: Tensor, wanted: Tensor
) -> Tensor | None:
    """Amounts (C, S, N, B) that are near those before a dose: where the same dose, spread over the interval,
    would leave amounts as they are, and from there where a linear model, of the slopes there, has them then,
    put right once by what that leaves out. None where some that are ``wanted`` (S, N, B) have none, or doses
    add up for long.

    :param where: an interval, with the dose as its inflow. :param dose: (C, S, N, B). :param at_once: 1 of a
        dose given at once, 0 of one that lasts for the interval, (S, N, B).
    """
    unit = unit_of(nothing)
    x = nothing
    for _ in range(_BALANCES):
        slope = torch.where(wanted, slopes(right, 0.0, x, where), -unit)
        back = inverse_of(slope)
        step = -times(back, right(0.0, x, where))
        x = moved(x, step)
        far = (step.abs() > _NEAR * x.abs().amax(0)).any(0) & wanted
        if not bool(far.any()):
            break
    else:
        return None
    # exp(slope / 2), stable whatever its size, and the sum of those of all whole periods
    part = slope / 8
    half = inverse_of(unit - part + _product(part, part) / 2)
    for _ in range(2):
        half = _product(half, half)
    added = inverse_of(torch.where(wanted, unit - _product(half, half), unit))
    dose = at_once * dose
    away = [times(added, dose)]
    for _ in _SIMPSON[1:]:
        away.append(times(half, away[-1]))
    rest = times(back, dose)
    begin = x + rest + away[-1]
    # What the linear model leaves out of the change along its own way, by the rule of Simpson
    along = torch.stack([rest + by for by in away], 1)
    missed = right(0.0, x[:, None] + along, where) - times(slope[:, :, None], along)
    total = missed[:, 0] * _SIMPSON[0]
    for place, weight in enumerate(_SIMPSON[1:], 1):
        total = torch.add(times(half, total), missed[:, place], alpha=weight)
    x = moved(moved(x, begin - x), times(added, total))
    growth = added.abs().sum(1).amax(0)
    good = (growth < GROWTH) & torch.isfinite(x).all(0)
    return torch.where(wanted, x, nothing) if bool((good | ~wanted).all()) else None


def _product(a: Tensor, b: Tensor) -> Tensor:
    return times(a[:, :, None], b)


@torch.no_grad()
def solved(
    parts: Sequence[Part], given: Tensor, begin: Tensor, wanted: Tensor, within: Tolerance
) -> Solved | None:
    """None where it is not found, at all trajectories (S, N, B) that are ``wanted``, in a few sweeps.

    :param given: what a dose adds at once at the beginning, (C, S, N, B). :param begin: where to begin.
    """
    x = begin
    for _ in range(_MESHES):
        ways, state = list[Way](), x + given
        for call, tensors in parts:
            march, path = call.followed(state, tensors, keep=True)
            if march.lost is not None or any(kept.ndim != march.k.ndim for kept in path.stages):
                return None
            ways.append((march, path))
            state = path.end
        if (1 + len(x)) * sum(kept.nbytes for _, path in ways for kept in path.stages) > KEPT:
            return None  # of all stages there are derivatives at once
        found = _swept(parts, ways, given, x, wanted, within)
        if found is None:
            return None
        if all(_checked(call, tensors, way) for (call, tensors), way in zip(parts, found.ways, strict=True)):
            return found
        x = found.x
    return None


def _swept(
    parts: Sequence[Part],
    ways: list[Way],
    given: Tensor,
    x: Tensor,
    wanted: Tensor,
    within: Tolerance,
) -> Solved | None:
    unit = unit_of(x)
    turns, last, inverse = unit.expand(len(x), *x.shape), torch.zeros_like(x[0]), torch.zeros_like(unit)
    for sweep in range(_SWEEPS):
        # Of a way that begins with x nothing is left but that its end is not x.
        state = turns if not sweep else torch.cat([(x + given)[:, None], turns], 1)
        stages, ends = list[_Linear](), list[_Linear]()
        for (call, tensors), way in zip(parts, ways, strict=True):
            at_stages, state = _along(call, tensors, way, state, bool(sweep))
            stages.append(_Linear.of(at_stages, 2, None if sweep else torch.cat(way[1].stages)))
            ends.append(_Linear.of(state, 1, None if sweep else way[1].end))
        end = ends[-1]
        now = inverse_of(torch.where(wanted, unit - end.by, unit))
        step = times(now, torch.where(wanted, end.value - x, 0))
        x, length = x + step, step.abs().amax(0)
        done = ~wanted
        if sweep:
            turned = (now - inverse).abs().amax((0, 1)) / now.abs().amax((0, 1))
            growth = now.abs().sum(1).amax(0)
            found = close(within, x.abs().amax(0), growth, length, last, turned)
            done = done | (found & (growth < GROWTH))
        inverse, last = now, length
        ways = [
            (
                march,
                path._replace(end=there.at(step), stages=list(here.at(step).split(march.tableau.used))),
            )
            for (march, path), here, there in zip(ways, stages, ends, strict=True)
        ]
        if bool(done.all()):
            return Solved(x, inverse, ways)
        if not bool(torch.isfinite(x).all()):
            return None
    return None


class _Linear(NamedTuple):
    """A ``value`` (..., C, S, N, B), as it depends on what is there at first: ``by`` (..., C, C, S, N, B)."""

    value: Tensor
    by: Tensor

    @classmethod
    def of(cls, both: Tensor, dim: int, value: Tensor | None) -> "_Linear":
        """From both side by side along ``dim``, or derivatives alone of a ``value``."""
        if value is not None:
            return cls(value, both)
        return cls(both.select(dim, 0), both.narrow(dim, 1, both.shape[dim] - 1))

    def at(self, step: Tensor) -> Tensor:
        """What is there after a step (C, S, N, B)."""
        total = self.value
        for by, along in zip(self.by.unbind(-4), step.unbind(0), strict=True):
            total = torch.addcmul(total, by, along)
        return total


def _along(
    call: Call, tensors: Sequence[Tensor], way: Way, state: Tensor, values: bool
) -> tuple[Tensor, Tensor]:
    """Derivatives (C, C, S, N, B), and before them ``values``, along a part whose rate is linear about the
    amounts that its stages have: at all stages (I, C, C, S, N, B) or (I, C, 1 + C, S, N, B), and at its
    end."""
    march, path = way
    of = slopes_along(call, march, path, tensors, [False] * len(tensors))
    where, found = Where.of(tensors, call.inflow), list[Tensor]()
    for numbers in pieces(march, path):
        of.at(numbers)
        stages = len(numbers) * march.tableau.used
        if values:
            amounts = amounts_at(march, path, numbers).movedim(0, 1)
            change = call.right(_places(call, way, numbers), amounts, where)
            for by, of_state in zip(of.slope.unbind(1), amounts, strict=True):
                change = torch.addcmul(change, by, of_state, value=-1)
            source = change[:, None]
        else:
            source = state.new_zeros(len(state), 0, stages, *state.shape[2:])
        at_stages, reached = forwards(march, path, numbers, of.slope, source, state, keep=True)
        assert at_stages is not None
        found.append(at_stages)
        state = reached[-1]
    return (torch.cat(found) if len(found) > 1 else found[0]), state


def _places(call: Call, way: Way, numbers: range) -> Tensor | float:
    return places_at(*way, numbers) if call.right.timed else 0.0


def _checked(call: Call, tensors: Sequence[Tensor], way: Way) -> bool:
    """Whether the error of each step is within the tolerances."""
    (march, path), where = way, Where.of(tensors, call.inflow)
    used, found = march.tableau.used, list[Tensor]()
    for numbers in pieces(march, path):
        amounts = amounts_at(march, path, numbers).movedim(0, 1)
        found.append(call.right(_places(call, way, numbers), amounts, where))
    changes = torch.cat(found, 1).unflatten(1, (-1, used))  # (C, n, I, S, N, B)
    begins = torch.stack([stages[0] for stages in path.stages] + [path.end], 1)
    last = torch.cat([changes[:, 1:, 0], call.right(1.0, path.end, where)[:, None]], 1)
    lengths = changes.new_tensor([h for _, h in path.steps]).view(-1, 1, 1, 1)
    error = march.error[used] * last
    for stage, weight in zip(changes.unbind(2), march.tableau.error, strict=False):
        error.add_(stage, alpha=weight)
    size, control = begins.abs(), call.how.control
    scale = torch.maximum(size[:, 1:], size[:, :-1]).mul_(control.rtol).add_(control.atol)
    squares = error.mul_(lengths).div_(scale).square_()
    return march.norm(squares) <= 1
