"""Gradients of what an interval leads to: backwards along the stages of its steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medcm_cli.numerics.square import times
from medcm_cli.pk.compiled import CompiledMarch
from medcm_cli.pk.stages import Call, Slopes, pieces, slopes_of, solver
from medcm_cli.pk.steps import March, Path
from medcm_cli.pk.tableaux import coefficients


def adjoint(
    call: Call, march: March, path: Path, tensors: Sequence[Tensor], needs: Sequence[bool], bar: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradient by the amounts at the beginning, from that by those at the end, and by ``tensors``."""
    grads: list[Tensor | None] = [None] * len(tensors)
    bar = sound(march, bar)
    if isinstance(march, CompiledMarch):
        bar, all_of_them = march.gradients(path, bar, [tensor.shape for tensor in tensors])
        grads = [grad if need else None for grad, need in zip(all_of_them, needs, strict=True)]
        return bar, [None if grad is None else sound(march, grad) for grad in grads]
    for numbers in reversed(pieces(march, path)):
        at = slopes_of(call, march, path, numbers, tensors, needs)
        bars, bar = backwards(march, path, numbers, at.slope, bar)
        add(call, grads, needs, gradients_at(at, needs, bars))
    return bar, [None if grad is None else sound(march, grad) for grad in grads]


def backwards(
    march: March,
    path: Path,
    numbers: range,
    slope: Sequence[Tensor],
    bar: Tensor,
    source: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Along some steps, from the gradient (C, ..., S, N, B) by what is there at their end to those by the
    changes at each stage (I, C, ..., S, N, B), and by what was there at the beginning.

    :param slope: of ``Slopes``. :param source: (C, I, S, N, B), gradients by stages as such.
    """
    tableau, used = march.tableau, march.tableau.used
    more = [1] * (bar.ndim - 4)
    matrix = solver(march, path, numbers, slope)
    if matrix is not None:
        inverted = matrix.transpose(0, 1).unbind(2)
    each = (row.view(len(row), *more, *row.shape[1:]).unbind(-4) for row in slope)
    stages = list(zip(*each, strict=True))
    bars = bar.new_empty(len(numbers) * used, *bar.shape)
    by_stages = bar.new_empty(used + 1, *bar.shape)
    parts, backs = [of.unbind(0) for of in bars.unbind(0)], by_stages.unbind(0)
    flat_bars, flat = bars.flatten(1).unbind(0), by_stages.flatten(1).t()
    rows = coefficients(tableau, bar.dtype, bar.device).later
    after = [flat[:, i + 1 :] for i in range(used)]
    for place in reversed(range(len(numbers))):
        h = path.steps[numbers[place]][1]
        backs[used].copy_(bar)
        for i in reversed(range(used)):
            at, back = place * used + i, backs[i]
            torch.addmv(flat_bars[at], after[i], rows[i], beta=0, alpha=h, out=flat_bars[at])
            torch.mul(stages[at][0], parts[at][0], out=back)
            for row, part in zip(stages[at][1:], parts[at][1:], strict=True):
                back.addcmul_(row, part)
            if source is not None:
                back.add_(source[:, at])
            if i and matrix is not None:
                back.copy_(times(inverted[at].view(len(bar), len(bar), *more, *bar.shape[-3:]), back))
                bars[at].add_(back, alpha=h * tableau.diagonal)
        bar = by_stages.sum(0)
    return bars, bar


def gradients_at(at: Slopes, needs: Sequence[bool], bars: Tensor) -> list[Tensor]:
    """By the tensors that need one, from gradients by changes (I, C, S, N, B)."""
    wanted = [tensor for tensor, need in zip(at.tensors, needs, strict=True) if need]
    if not wanted or not at.change.requires_grad:
        return [torch.zeros_like(tensor) for tensor in wanted]
    return list(
        torch.autograd.grad(
            at.change,
            wanted,
            bars.movedim(0, 1),
            allow_unused=True,
            materialize_grads=True,
        )
    )


def add(call: Call, grads: list[Tensor | None], needs: Sequence[bool], more: Sequence[Tensor]) -> None:
    """Add to ``grads`` those of tensors that need one, of each stage apart where they move."""
    places = [p for p, need in enumerate(needs) if need]
    for p, grad in zip(places, more, strict=True):
        whole, old = grad.sum(-4) if p in call.moving else grad, grads[p]
        grads[p] = whole if old is None else old + whole


def sound(march: March, grad: Tensor) -> Tensor:
    """Without what comes from trajectories that have no way."""
    # What subjects share has its gradient from all of them.
    if march.lost is None or grad.shape[-3:] != march.lost.shape:
        return grad
    return grad.masked_fill(march.lost, 0)
