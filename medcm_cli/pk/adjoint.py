"""Gradients of what an interval leads to: backwards along the stages of its steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medcm_cli.numerics.square import times
from medcm_cli.pk.compiled import CompiledMarch
from medcm_cli.pk.slopes import slopes_along, solver
from medcm_cli.pk.stages import Call, pieces
from medcm_cli.pk.steps import March, Path
from medcm_cli.pk.tableaux import coefficients


def adjoint(
    call: Call, march: March, path: Path, tensors: Sequence[Tensor], needs: Sequence[bool], bar: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradient by the amounts at the beginning, from ``bar``, that by what ``call`` asks for, and by
    ``tensors``."""
    bar, between = split(call, sound(march, bar))
    if isinstance(march, CompiledMarch):
        bar, all_of_them = march.gradients(path, bar, [tensor.shape for tensor in tensors], between)
        grads = [grad if need else None for grad, need in zip(all_of_them, needs, strict=True)]
        return bar, [None if grad is None else sound(march, grad) for grad in grads]
    slopes = slopes_along(call, march, path, tensors, needs)
    for numbers in reversed(pieces(march, path)):
        slopes.at(numbers)
        bars, bar = backwards(march, path, numbers, slopes.slope, bar, between=between)
        slopes.add_gradient(bars)
    return bar, [None if grad is None else sound(march, grad) for grad in slopes.gradients()]


def split(call: Call, bar: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """From the gradient by what ``call`` asks for that by the end, and those by what is there after each
    step before the last, where these are asked for."""
    if not call.each:
        return bar, ()
    *between, last = bar.unbind(0)
    return last, between


def backwards(
    march: March,
    path: Path,
    numbers: range,
    slope: Tensor,
    bar: Tensor,
    source: Tensor | None = None,
    between: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Along some steps, from the gradient (C, ..., S, N, B) by what is there at their end to those by the
    changes at each stage (I, C, ..., S, N, B), and by what was there at the beginning.

    :param slope: of ``Slopes``. :param source: (C, I, S, N, B), gradients by stages as such. :param between:
        gradients by what is there after each step of the path but the last, as such.
    """
    tableau, used = march.tableau, march.tableau.used
    more = [1] * (bar.ndim - 4)
    matrix = solver(march, path, numbers, slope)
    if matrix is not None:
        inverted = matrix.transpose(0, 1).unbind(2)
    rows_of_slope = of_stages(slope.transpose(0, 1), len(numbers) * used, len(more))
    bars = bar.new_empty(len(numbers) * used, *bar.shape)
    by_stages = bar.new_empty(used + 1, *bar.shape)
    parts, backs = bars.flatten(0, 1).unbind(0), by_stages.unbind(0)
    flat_bars, flat = bars.flatten(1).unbind(0), by_stages.flatten(1).t()
    rows = coefficients(tableau, bar.dtype, bar.device).later
    sources = None if source is None else source.unbind(1)
    after = [flat[:, i + 1 :] for i in range(used)]
    for place, number in reversed([*enumerate(numbers)]):
        h = path.steps[number][1]
        backs[used].copy_(bar)
        for i in reversed(range(used)):
            at, back = place * used + i, backs[i]
            torch.addmv(flat_bars[at], after[i], rows[i], beta=0, alpha=h, out=flat_bars[at])
            more_here = None if sources is None else sources[at]
            multiplied(rows_of_slope[at], parts[at * len(bar) :], back, more_here)
            if i and matrix is not None:
                back.copy_(times(inverted[at].view(len(bar), len(bar), *more, *bar.shape[-3:]), back))
                bars[at].add_(back, alpha=h * tableau.diagonal)
        bar = by_stages.sum(0)
        if between and number:
            bar.add_(between[number - 1])
    return bars, bar


def of_stages(matrix: Tensor, stages: int, more: int) -> list[tuple[Tensor, ...]]:
    """The columns of a matrix (C, C, I or 1, S, N, B) at each of so many stages, (C, 1, ..., S, N, B) with
    ``more`` dimensions of 1."""
    size, known = matrix.shape[1:3]
    flat = matrix.reshape(len(matrix), size * known, *[1] * more, *matrix.shape[3:]).unbind(1)
    columns = [flat[at::known] for at in range(known)]
    return columns if known == stages else columns * stages


def multiplied(
    columns: Sequence[Tensor], by: Sequence[Tensor], out: Tensor, more: Tensor | None = None
) -> None:
    """The sum of columns, each times that of ``by`` in its place, and of what there is more, into
    ``out``."""
    if more is None:
        torch.mul(columns[0], by[0], out=out)
    else:
        torch.addcmul(more, columns[0], by[0], out=out)
    for place in range(1, len(columns)):
        torch.addcmul(out, columns[place], by[place], out=out)


def sound(march: March, grad: Tensor) -> Tensor:
    """Without what comes from trajectories that have no way."""
    # What subjects share has its gradient from all of them.
    if march.lost is None or grad.shape[-3:] != march.lost.shape:
        return grad
    return grad.masked_fill(march.lost, 0)
