"""The steps of an interval once more, as torch records them: for gradients of any order."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medcm_cli.numerics.square import inverse, times
from medcm_cli.pk.change import Where, slopes
from medcm_cli.pk.stages import Call
from medcm_cli.pk.steps import March, Path

# A step with a fixed matrix, from a solution that is known, makes derivatives exact to one more order.
_ORDERS = 3

Moves = Sequence[tuple[int, int]]
Both = tuple[Tensor, Tensor | None]


class Inputs(NamedTuple):
    """What an interval depends on: amounts (C, S, N, B), their ``tangents`` (C, K, S, N, B) or None, the
    tensors of ``Where`` and, of those that ``moves`` names with a tangent, how they are ``moved``."""

    amounts: Tensor
    tangents: Tensor | None
    tensors: Sequence[Tensor]
    moved: Sequence[Tensor]

    def flat(self) -> list[Tensor]:
        """All of them, in this order."""
        tangents = [] if self.tangents is None else [self.tangents]
        return [self.amounts, *tangents, *self.tensors, *self.moved]

    def like(self, flat: Sequence[Tensor]) -> "Inputs":
        """With others in their place."""
        at = 1 if self.tangents is None else 2
        end = at + len(self.tensors)
        return Inputs(flat[0], None if at == 1 else flat[1], flat[at:end], flat[end:])


def gradients(
    call: Call, march: March, path: Path, given: Inputs, bars: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Of <bars, what ``call`` asks for> by each of the inputs, differentiable."""
    with torch.enable_grad():
        # Other names for the same: what amounts were found from is not part of this interval.
        flat = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in given.flat()]
        ends = replayed(call, march, path, given.like(flat))
        there = [end for end in ends if end is not None]
        return torch.autograd.grad(
            there, flat, list(bars), create_graph=True, allow_unused=True, materialize_grads=True
        )


def replayed(call: Call, march: March, path: Path, given: Inputs) -> Both:
    """Amounts and tangents at the end, or after each step, as ``call`` asks."""
    at: Both = (given.amounts, given.tangents)
    each = list[Both]()
    where = Where.of(given.tensors, march.where.inflow is not None)
    for number in range(len(path.steps)):

        def changes(s: float, amounts: Tensor, tangents: Tensor | None) -> Both:
            return _changes(march, s, amounts, tangents, where, call.moves, given)

        at = _step(march, path, number, at, changes)
        each.append(at)
    if call.each:
        amounts, tangents = zip(*each, strict=True)
        at = torch.stack(amounts), None if given.tangents is None else torch.stack(tangents)
    if march.lost is None:
        return at
    return torch.where(march.lost, torch.nan, at[0]), at[1]


def _step(
    march: March, path: Path, number: int, at: Both, changes: Callable[[float, Tensor, Tensor | None], Both]
) -> Both:
    tableau, (s, h) = march.tableau, path.steps[number]
    known = march.stages_of(path, number) if tableau.diagonal else None
    found: list[Both] = []
    for i in range(tableau.used):
        base = _moved(at, found, [h * a for a in tableau.rows[i]])
        stage_s = s + tableau.nodes[i] * h
        if i and known is not None:
            found.append(_solved(march, stage_s, h * tableau.diagonal, known[i], base, changes))
        else:
            found.append(changes(stage_s, *base))
    return _moved(at, found, [h * b for b in tableau.weights])


def _moved(at: Both, changes: Sequence[Both], by: Sequence[float]) -> Both:
    amounts, tangents = at
    for (change, turn), part in zip(changes, by, strict=False):
        if part:
            amounts = amounts + part * change
            tangents = None if tangents is None or turn is None else tangents + part * turn
    return amounts, tangents


def _solved(
    march: March,
    s: float,
    part: float,
    known: Tensor,
    base: Both,
    changes: Callable[[float, Tensor, Tensor | None], Both],
) -> Both:
    """The changes at an implicit stage whose value is ``known``."""
    unit = torch.eye(len(known), dtype=known.dtype, device=known.device).view(*[len(known)] * 2, 1, 1, 1)
    where = march.where._replace(values=tuple(v.detach() for v in march.where.values))
    matrix = inverse(unit - part * slopes(march.right, s, known, where))
    amounts, tangents = known, None if base[1] is None else torch.zeros_like(base[1])
    for order in range(_ORDERS + 1):
        change, turn = changes(s, amounts, tangents)
        amounts = amounts + times(matrix, base[0] + part * change - amounts)
        if tangents is not None and turn is not None and base[1] is not None:
            tangents = tangents + times(matrix[:, :, None], base[1] + part * turn - tangents)
        if not order:
            amounts, tangents = amounts.detach(), None if tangents is None else tangents.detach()
    turned = None if tangents is None or base[1] is None else (tangents - base[1]) / part
    return (amounts - base[0]) / part, turned


def _changes(
    march: March,
    s: float,
    amounts: Tensor,
    tangents: Tensor | None,
    where: Where,
    moves: Moves,
    given: Inputs,
) -> Both:
    """d(amounts)/ds and d(tangents)/ds."""
    if tangents is None:
        return _still(march, march.right(s, amounts, where)), None
    # Other names for the same, so that derivatives by them are those of this change and not, through amounts,
    # of what was before.
    amounts = amounts.view_as(amounts) if amounts.requires_grad else amounts.detach().requires_grad_()
    tensors = [tensor.view_as(tensor) for tensor in where.tensors]
    where = Where.of(tensors, where.inflow is not None)
    change = _still(march, march.right(s, amounts, where))
    moving = sorted({p for _, p in moves})
    # The derivative by v of the gradient of <v, change>, which is linear in v, is that along a tangent.
    dual = torch.zeros_like(change, requires_grad=True)
    leaves = [amounts, *(tensors[p] for p in moving)]
    options: dict[str, Any] = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    by, *others = torch.autograd.grad(change, leaves, dual, **options)
    turns = list[Tensor]()
    for k in range(tangents.shape[1]):
        along = (by * tangents[:, k]).sum()
        for (number, p), moved in zip(moves, given.moved, strict=True):
            along = along + (others[moving.index(p)] * moved).sum() if number == k else along
        turns += torch.autograd.grad(along, dual, **options)
    return change, torch.stack(turns, 1)


def _still(march: March, change: Tensor) -> Tensor:
    return change if march.lost is None else torch.where(march.lost, 0, change)
