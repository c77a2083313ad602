"""Tangents of what an interval leads to, forwards along the stages of its steps, and the gradient of these.

With the slopes J at a stage and the derivatives g of its change along a tangent at fixed amounts, that of
amounts x' goes as d(x')/ds = J x' + g. Its own gradient is that along the stages backwards, and the second
derivatives of the rate in it are those of the sum of J and g, weighted by what that found.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medcm_cli.numerics.square import times
from medcm_cli.pk.adjoint import add, backwards, gradients_at, sound
from medcm_cli.pk.replay import Inputs
from medcm_cli.pk.stages import Call, Slopes, pieces, slopes_of, solver, staged
from medcm_cli.pk.steps import March, Path
from medcm_cli.pk.tableaux import coefficients


def carried(
    call: Call,
    march: March,
    path: Path,
    given: Inputs,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Tangents (C, K, S, N, B) at the end; into ``kept``, those at the stages of each piece (I, C, K, S, N,
    B)."""
    assert given.tangents is not None
    tangents, nothing = sound(march, given.tangents), [False] * len(given.tensors)
    for numbers in pieces(march, path):
        at = slopes_of(call, march, path, numbers, given.tensors, nothing)
        source = sound(march, _source(call, at, given.moved, tangents.shape[1]))
        stages, tangents = _forwards(march, path, numbers, at.slope, source, tangents)
        if kept is not None:
            kept.append(stages)
    return tangents


def _source(call: Call, at: Slopes, moved: Sequence[Tensor], count: int) -> Tensor:
    """How the changes at stages vary along tangents at fixed amounts, (C, K, I, S, N, B)."""
    change = at.change
    source = change.new_zeros(len(change), count, *change.shape[1:])
    for (k, p), by in zip(call.moves, moved, strict=True):
        place = 1 + call.moving.index(p)
        for c, row in enumerate(at.rows):
            part = row[place].detach() * staged(by, len(change[0]))
            source[c, k] += part.sum(0) if part.ndim > 4 else part
    return source


def _forwards(
    march: March,
    path: Path,
    numbers: range,
    slope: Sequence[Tensor],
    source: Tensor,
    tangents: Tensor,
) -> tuple[Tensor, Tensor]:
    """Tangents at each stage of some steps, (I, C, K, S, N, B), and at their end."""
    tableau, used = march.tableau, march.tableau.used
    of = coefficients(tableau, tangents.dtype, tangents.device)
    matrix = solver(march, path, numbers, slope)
    of_stages = torch.stack(list(slope))[:, :, None].unbind(-4)
    stages = tangents.new_empty(len(numbers) * used, *tangents.shape)
    changes = tangents.new_empty(used, *tangents.shape)
    flat = changes.flatten(1)
    for place, number in enumerate(numbers):
        h, begin = path.steps[number][1], tangents.flatten()
        for i in range(used):
            at = place * used + i
            base = begin if not i else torch.addmv(begin, flat[:i].t(), of.rows[i], alpha=h)
            stage, here = base.view_as(tangents), source.select(-4, at)
            if i and matrix is not None:
                part = h * tableau.diagonal
                stage = times(matrix.select(-4, at)[:, :, None], stage + part * here)
            stages[at] = stage
            changes[i] = times(of_stages[at], stage) + here
        tangents = torch.addmv(begin, flat.t(), of.weights, alpha=h).view_as(tangents)
    return stages, tangents


def adjoint_with(
    call: Call,
    march: March,
    path: Path,
    given: Inputs,
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    bars: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """The gradient by each of the inputs, from that by amounts and tangents at the end.

    :param kept: what ``carried`` kept. :param needs: which tensors need one.
    """
    bar, turning = (sound(march, of) for of in bars)
    grads: list[Tensor | None] = [None] * len(given.tensors)
    by_moved = [torch.zeros_like(moved) for moved in given.moved]
    for numbers, stages in zip(reversed(pieces(march, path)), reversed(kept), strict=True):
        at = slopes_of(call, march, path, numbers, given.tensors, needs, twice=True)
        turned, turning = backwards(march, path, numbers, at.slope, turning)
        source, curved = _curvature(call, at, given.moved, needs, turned, stages)
        changed, bar = backwards(march, path, numbers, at.slope, bar, source)
        add(call, grads, needs, curved)
        add(call, grads, needs, gradients_at(at, needs, changed))
        for place, (k, p) in enumerate(call.moves):
            for c, row in enumerate(at.rows):
                by = row[1 + call.moving.index(p)].detach() * turned[:, c, k]
                by_moved[place] += by.sum(-4)
    return [bar, turning, *(None if g is None else sound(march, g) for g in grads), *by_moved]


def _curvature(
    call: Call,
    at: Slopes,
    moved: Sequence[Tensor],
    needs: Sequence[bool],
    turned: Tensor,
    stages: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of <``turned``, J x' + g>, both (I, C, K, S, N, B), with ``stages`` the tangents x': by
    amounts, (C, I, S, N, B), and by the tensors that need one."""
    outputs, weights = list[Tensor](), list[Tensor]()
    for c, row in enumerate(at.rows):
        along = turned[:, c]
        weight = [(along[:, None] * stages).sum(2).movedim(0, 1)]
        for p in call.moving:
            pairs = [(k, by) for (k, q), by in zip(call.moves, moved, strict=True) if p == q]
            parts = [along[:, k] * staged(by, len(along)) for k, by in pairs]
            weight.append(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0])
        for output, by in zip(row, weight, strict=True):
            if output.requires_grad:
                outputs.append(output)
                weights.append(by)
    wanted = [at.amounts, *(tensor for tensor, need in zip(at.tensors, needs, strict=True) if need)]
    if not outputs:
        first, *others = (torch.zeros_like(tensor) for tensor in wanted)
        return first, others
    first, *others = torch.autograd.grad(
        outputs, wanted, weights, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return first, others
