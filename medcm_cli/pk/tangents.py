"""Tangents of what an interval leads to, forwards along the stages of its steps, and the gradient of these.

With the slopes J at a stage and the derivatives g of its change along a tangent at fixed amounts, that of
amounts x' goes as d(x')/ds = J x' + g. Its own gradient is that along the stages backwards, and the second
derivatives of the rate in it are those of the sum of J and g, weighted by what that found.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medcm_cli.numerics.square import times
from medcm_cli.pk.adjoint import backwards, multiplied, of_stages, sound, split
from medcm_cli.pk.replay import Inputs
from medcm_cli.pk.slopes import slopes_along, solver
from medcm_cli.pk.stages import Call, pieces
from medcm_cli.pk.steps import March, Path
from medcm_cli.pk.tableaux import coefficients

_SMALL = 8_000  # tangents: of fewer it is the number of operations that takes the time, not their size


def carried(
    call: Call,
    march: March,
    path: Path,
    given: Inputs,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Tangents (C, K, S, N, B) at the end, or (n, C, K, S, N, B) after each step, as ``call`` asks; into
    ``kept``, those at the stages of each piece (I, C, K, S, N, B)."""
    assert given.tangents is not None
    tangents, nothing = sound(march, given.tangents), [False] * len(given.tensors)
    slopes, after = slopes_along(call, march, path, given.tensors, nothing), list[Tensor]()
    for numbers in pieces(march, path):
        slopes.at(numbers)
        source = sound(march, slopes.source(given.moved, tangents.shape[1]))
        keep = kept is not None
        stages, reached = forwards(march, path, numbers, slopes.slope, source, tangents, keep, call.each)
        tangents = reached[-1]
        after += reached if call.each else []
        if kept is not None and stages is not None:
            kept.append(stages)
    return torch.stack(after) if call.each else tangents


def forwards(
    march: March,
    path: Path,
    numbers: range,
    slope: Tensor,
    source: Tensor,
    tangents: Tensor,
    keep: bool,
    each: bool = False,
) -> tuple[Tensor | None, list[Tensor]]:
    """Tangents at each stage of some steps, (I, C, K, S, N, B), where these are kept, and after each step,
    or the last alone.

    :param source: of the first of the K tangents, (C, L, I, S, N, B) with L at most K; that of others is 0.
    """
    way = _side_by_side if tangents.numel() < _SMALL else _one_by_one
    return way(march, path, numbers, slope, source, tangents, keep, each)


def _one_by_one(
    march: March,
    path: Path,
    numbers: range,
    slope: Tensor,
    source: Tensor,
    tangents: Tensor,
    keep: bool,
    each: bool = False,
) -> tuple[Tensor | None, list[Tensor]]:
    """See ``forwards``."""
    tableau, used, size = march.tableau, march.tableau.used, len(tangents)
    source = _wide(source, tangents.shape[1])
    of = coefficients(tableau, tangents.dtype, tangents.device)
    matrix = solver(march, path, numbers, slope)
    columns = of_stages(slope, len(numbers) * used, 1)
    # Of stages that nobody wants there is room for those of one step.
    stages = tangents.new_empty((len(numbers) if keep else 1) * used, *tangents.shape)
    changes = tangents.new_empty(used, *tangents.shape)
    flat, flat_stages = changes.flatten(1).t(), stages.flatten(1).unbind(0)
    before = [flat[:, :i] for i in range(used)]
    parts, turned, here = stages.flatten(0, 1).unbind(0), changes.unbind(0), source.unbind(2)
    after = list[Tensor]()
    for place, number in enumerate(numbers):
        h, begin = path.steps[number][1], tangents.flatten()
        for i in range(used):
            at, room = place * used + i, (place * used if keep else 0) + i
            if i:
                torch.addmv(begin, before[i], of.rows[i], alpha=h, out=flat_stages[room])
            else:
                flat_stages[room].copy_(begin)
            if i and matrix is not None:
                part = h * tableau.diagonal
                base = stages[room] + part * here[at]
                stages[room] = times(matrix.select(-4, at)[:, :, None], base)
            multiplied(columns[at], parts[room * size :], turned[i], here[at])
        tangents = torch.addmv(begin, flat, of.weights, alpha=h).view_as(tangents)
        # What nobody asks for makes room for the next.
        after = [*after, tangents] if each else [tangents]
    return (stages if keep else None), after


def _side_by_side(
    march: March,
    path: Path,
    numbers: range,
    slope: Tensor,
    source: Tensor,
    tangents: Tensor,
    keep: bool,
    each: bool = False,
) -> tuple[Tensor | None, list[Tensor]]:
    """The same: what a step makes of tangents is linear in them, so that what all steps make of any, and of
    none, is found first, at once. That is more arithmetic in fewer operations."""
    tableau, used, size, count = march.tableau, march.tableau.used, len(tangents), len(numbers)
    of = coefficients(tableau, tangents.dtype, tangents.device)
    matrix = solver(march, path, numbers, slope)
    h = tangents.new_tensor([path.steps[number][1] for number in numbers]).view(-1, 1, 1, 1)
    slopes, sources, matrices = (_by_step(of_all, count, used) for of_all in (slope, source, matrix))
    begin = tangents.new_zeros(size, size + source.shape[1], count, *tangents.shape[2:])
    begin[:, :size].diagonal().fill_(1)
    changes = begin.new_empty(used, *begin.shape)
    stages = begin.new_empty(used if keep else 1, *begin.shape)
    first, flat, flat_stages = begin.flatten(), changes.flatten(1).t(), stages.flatten(1).unbind(0)
    rooms = stages.unbind(0)
    for i, change in enumerate(changes.unbind(0)):
        stage = rooms[i if keep else 0]
        torch.addmv(first, flat[:, :i], of.rows[i], out=flat_stages[i if keep else 0])
        if i and matrices:
            stage[:, size:].addcmul_(h, sources[i], value=tableau.diagonal)
            stage.copy_(times(matrices[i][:, :, None], stage))
        by = slopes[i]
        multiplied([by[:, x, None] for x in range(size)], stage.unbind(0), change)
        if source.shape[1]:
            change[:, size:].add_(sources[i])
        change.mul_(h)
    ends = torch.addmv(first, flat, of.weights).view_as(begin)
    columns = [column.unbind(1) for column in ends[:, :size].unsqueeze(3).unbind(1)]
    reached = [tangents]
    for place, more in enumerate(_wide(ends[:, size:], tangents.shape[1]).unbind(2)):
        for column, of_state in zip(columns, reached[-1].unbind(0), strict=True):
            more = torch.addcmul(more, column[place], of_state)
        reached.append(more)
    if not keep:
        return None, reached[1:] if each else reached[-1:]
    whole = stages.movedim(3, 0)  # (n, used, C, C + L, S, N, B)
    before = torch.stack(reached[:-1])[:, None, None].unbind(3)
    found = tangents.new_empty(*whole.shape[:3], *tangents.shape[1:])
    torch.mul(whole[:, :, :, 0, None], before[0], out=found)
    for x in range(1, size):
        found.addcmul_(whole[:, :, :, x, None], before[x])
    if source.shape[1]:
        found[:, :, :, : source.shape[1]].add_(whole[:, :, :, size:])
    return found.flatten(0, 1), reached[1:] if each else reached[-1:]


def _wide(values: Tensor, tangents: int) -> Tensor:
    """With 0 for the last of them, which have no source."""
    size, given, *others = values.shape
    if given == tangents:
        return values
    zero = values.new_zeros(1).expand(size, tangents - given, *others)
    return torch.cat([values, zero], 1) if given else zero


def _by_step(values: Tensor | None, count: int, used: int) -> list[Tensor]:
    """(A, B, I or 1, S, N, B) -> of each stage, (A, B, n or 1, S, N, B)."""
    if values is None:
        return []
    if values.shape[2] == 1:
        return [values] * used
    return list(values.unflatten(2, (count, used)).unbind(3))


def adjoint_with(
    call: Call,
    march: March,
    path: Path,
    given: Inputs,
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    bars: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """The gradient by each of the inputs, from that by the amounts and tangents that ``call`` asks for.

    :param kept: what ``carried`` kept. :param needs: which tensors need one.
    """
    (bar, between), (turning, turning_between) = (split(call, sound(march, of)) for of in bars)
    slopes = slopes_along(call, march, path, given.tensors, needs, twice=True)
    for numbers, stages in zip(reversed(pieces(march, path)), reversed(kept), strict=True):
        slopes.at(numbers)
        turned, turning = backwards(march, path, numbers, slopes.slope, turning, between=turning_between)
        source = slopes.curved(turned, stages, given.moved)
        changed, bar = backwards(march, path, numbers, slopes.slope, bar, source, between)
        slopes.add_gradient(changed)
        slopes.add_turned(turned)
    grads = [None if g is None else sound(march, g) for g in slopes.gradients()]
    return [bar, turning, *grads, *(sound(march, by) for by in slopes.by_moved())]
