"""Tangents of what an interval leads to, forwards along the stages of its steps, and the gradient of these.

With the slopes J at a stage and the derivatives g of its change along a tangent at fixed amounts, that of
amounts x' goes as d(x')/ds = J x' + g. Its own gradient is that along the stages backwards, and the second
derivatives of the rate in it are those of the sum of J and g, weighted by what that found.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medcm_cli.numerics.square import times
from medcm_cli.pk.adjoint import backwards, multiplied, of_stages, sound
from medcm_cli.pk.replay import Inputs
from medcm_cli.pk.slopes import slopes_along, solver
from medcm_cli.pk.stages import Call, pieces
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
    slopes = slopes_along(call, march, path, given.tensors, nothing)
    for numbers in pieces(march, path):
        slopes.at(numbers)
        source = sound(march, slopes.source(given.moved, tangents.shape[1]))
        stages, tangents = _forwards(march, path, numbers, slopes.slope, source, tangents)
        if kept is not None:
            kept.append(stages)
    return tangents


def _forwards(
    march: March,
    path: Path,
    numbers: range,
    slope: Tensor,
    source: Tensor,
    tangents: Tensor,
) -> tuple[Tensor, Tensor]:
    """Tangents at each stage of some steps, (I, C, K, S, N, B), and at their end.

    :param source: (C, K, I, S, N, B).
    """
    tableau, used = march.tableau, march.tableau.used
    of = coefficients(tableau, tangents.dtype, tangents.device)
    matrix = solver(march, path, numbers, slope)
    columns = of_stages(slope, len(numbers) * used, 1)
    stages = tangents.new_empty(len(numbers) * used, *tangents.shape)
    changes = tangents.new_empty(used, *tangents.shape)
    flat, flat_stages = changes.flatten(1).t(), stages.flatten(1).unbind(0)
    before = [flat[:, :i] for i in range(used)]
    parts, turned, here = stages.flatten(0, 1).unbind(0), changes.unbind(0), source.unbind(2)
    for place, number in enumerate(numbers):
        h, begin = path.steps[number][1], tangents.flatten()
        for i in range(used):
            at = place * used + i
            if i:
                torch.addmv(begin, before[i], of.rows[i], alpha=h, out=flat_stages[at])
            else:
                flat_stages[at].copy_(begin)
            if i and matrix is not None:
                part = h * tableau.diagonal
                base = stages[at] + part * source.select(-4, at)
                stages[at] = times(matrix.select(-4, at)[:, :, None], base)
            multiplied(columns[at], parts[at * len(changes[0]) :], turned[i])
            turned[i].add_(here[at])
        tangents = torch.addmv(begin, flat, of.weights, alpha=h).view_as(tangents)
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
    slopes = slopes_along(call, march, path, given.tensors, needs, twice=True)
    for numbers, stages in zip(reversed(pieces(march, path)), reversed(kept), strict=True):
        slopes.at(numbers)
        turned, turning = backwards(march, path, numbers, slopes.slope, turning)
        source = slopes.curved(turned, stages, given.moved)
        changed, bar = backwards(march, path, numbers, slopes.slope, bar, source)
        slopes.add_gradient(changed)
        slopes.add_turned(turned)
    grads = [None if g is None else sound(march, g) for g in slopes.gradients()]
    return [bar, turning, *grads, *(sound(march, by) for by in slopes.by_moved())]
