"""The rate and its slopes at the stages of an interval's steps, of many at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.numerics.square import inverse
from medcm_cli.pk.compiled import CompiledMarch
from medcm_cli.pk.steps import Control, March, Path, Right, Where, rows_of

_ELEMENTS = 200_000  # about, of the amounts at stages that are evaluated at once


@dataclass(frozen=True)
class Call:
    """What an interval is followed with; ``fit`` as in ``March``; ``inflow``: whether there is one.

    ``moves``: pairs of a tangent and of which of the tensors of ``Where`` changes along it. ``notes`` on
    trajectories that had no way are added to. ``compiled``: steps are, where nothing moves.
    """

    right: Right
    control: Control
    inflow: bool
    fit: tuple[Tensor, int] | None = None
    moves: tuple[tuple[int, int], ...] = ()
    notes: list[str] = field(default_factory=list)
    compiled: bool = False

    @property
    def moving(self) -> list[int]:
        """Which of the tensors change along any tangent."""
        return sorted({p for _, p in self.moves})

    def followed(self, amounts: Tensor, tensors: Sequence[Tensor], keep: bool) -> tuple[March, Path]:
        """From amounts (C, S, N, B).

        :param keep: what derivatives need.
        """
        still = [tensor.detach() for tensor in tensors]
        kind = CompiledMarch if self.compiled and not self.moves else March
        march = kind(self.right, amounts, Where.of(still, self.inflow), self.control, self.fit)
        path = march.path(keep)
        self.notes.extend(march.notes)
        return march, path


class Slopes(NamedTuple):
    """The rate at I stages of some steps: ``change`` (C, I, S, N, B), the ``amounts`` there and the
    ``tensors`` of ``Where`` as leaves; ``rows``, the derivatives of the change of each compartment by amounts
    and by tensors that move, of which each stage has its own; ``slope``, those by amounts alone, C of (C, I,
    S, N, B)."""

    change: Tensor
    amounts: Tensor
    tensors: list[Tensor]
    rows: list[tuple[Tensor, ...]]
    slope: list[Tensor]


def pieces(march: March, path: Path) -> list[range]:
    """Steps that are evaluated at once."""
    length = max(1, _ELEMENTS // (march.tableau.used * march.x.numel() + 1))
    return [range(i, min(i + length, len(path.steps))) for i in range(0, len(path.steps), length)]


def slopes_of(
    call: Call,
    march: March,
    path: Path,
    numbers: range,
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    twice: bool = False,
) -> Slopes:
    """:param needs: of which tensors a gradient is wanted. :param twice: rows can be differentiated."""
    nodes = march.tableau.nodes[: march.tableau.used]
    kept = [march.stages_of(path, number) for number in numbers]
    amounts = (torch.cat(kept) if len(kept) > 1 else kept[0]).movedim(0, 1).detach().requires_grad_()
    moments = [path.steps[number][0] + c * path.steps[number][1] for number in numbers for c in nodes]
    leaves = [
        (staged(tensor, len(moments)) if p in call.moving else tensor)
        .detach()
        .requires_grad_(needs[p] or p in call.moving)
        for p, tensor in enumerate(tensors)
    ]
    with torch.enable_grad():
        s = amounts.new_tensor(moments).view(-1, 1, 1, 1)
        change = call.right(s, amounts, Where.of(leaves, call.inflow))
        rows = rows_of(change, [amounts, *(leaves[p] for p in call.moving)], twice)
    slope = [row[0].detach() for row in rows]
    if march.lost is not None:
        slope = [row.masked_fill(march.lost, 0) for row in slope]
    return Slopes(change, amounts, leaves, rows, slope)


def staged(tensor: Tensor, stages: int) -> Tensor:
    """(S, N, B) -> (I, S, N, B), and (C, S, N, B) -> (C, I, S, N, B)."""
    shape = (*tensor.shape[:-3], stages, *tensor.shape[-3:])
    return tensor.unsqueeze(-4).expand(shape)


def solver(march: March, path: Path, numbers: range, rows: Sequence[Tensor]) -> Tensor | None:
    """What solves the equations of implicit stages, (C, C, I, S, N, B)."""
    tableau = march.tableau
    if not tableau.diagonal:
        return None
    slope = torch.stack(list(rows))
    parts = [tableau.diagonal * path.steps[number][1] for number in numbers for _ in range(tableau.used)]
    unit = torch.eye(len(slope), dtype=slope.dtype, device=slope.device).view(*[len(slope)] * 2, 1, 1, 1, 1)
    return inverse(unit - slope.new_tensor(parts).view(-1, 1, 1, 1) * slope)
