"""What an interval is followed with, and how many of its steps are looked at together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from medcm_cli.pk.change import Right, Where
from medcm_cli.pk.compiled import CompiledMarch
from medcm_cli.pk.steps import Control, March, Path, Way

_ELEMENTS = 200_000  # about, of the amounts at stages that are evaluated at once


@dataclass(frozen=True)
class Call:
    """What an interval is followed with; ``fit`` as in ``March``; ``inflow``: whether there is one.

    ``moves``: pairs of a tangent and of which of the tensors of ``Where`` changes along it. ``notes`` on
    trajectories that had no way are added to. ``compiled``: steps are, where nothing moves.
    ``known``: the way, where it has been found already, with all that derivatives need. ``first``: a step
    that is tried first; ``ahead``: that which would follow the last is added to it.
    """

    right: Right
    control: Control
    inflow: bool
    fit: tuple[Tensor, int] | None = None
    moves: tuple[tuple[int, int], ...] = ()
    notes: list[str] = field(default_factory=list)
    compiled: bool = False
    known: Way | None = None
    first: float | None = None
    ahead: list[float] = field(default_factory=list)

    @property
    def moving(self) -> list[int]:
        """Which of the tensors change along any tangent."""
        return sorted({p for _, p in self.moves})

    def followed(self, amounts: Tensor, tensors: Sequence[Tensor], keep: bool) -> Way:
        """From amounts (C, S, N, B).

        :param keep: what derivatives need.
        """
        if self.known is not None:
            march, path = self.known
            return march, path._replace(end=path.end.clone())
        still = [tensor.detach() for tensor in tensors]
        kind = CompiledMarch if self.compiled and not self.moves else March
        march = kind(self.right, amounts, Where.of(still, self.inflow), self.control, self.fit)
        path = march.path(keep, self.first)
        self.notes.extend(march.notes)
        self.ahead.extend([] if march.ahead is None else [march.ahead])
        return march, path


def pieces(march: March, path: Path) -> list[range]:
    """Steps that are evaluated at once."""
    formula = march.right.formula
    driven = 0 if formula is None or formula.driver is None else len(formula.driver.lengths)
    rows = len(march.x) + driven
    length = max(1, _ELEMENTS // (march.tableau.used * rows * march.x[0].numel() + 1))
    return [range(i, min(i + length, len(path.steps))) for i in range(0, len(path.steps), length)]


def staged(tensor: Tensor, stages: int) -> Tensor:
    """(S, N, B) -> (I, S, N, B), and (C, S, N, B) -> (C, I, S, N, B)."""
    shape = (*tensor.shape[:-3], stages, *tensor.shape[-3:])
    return tensor.unsqueeze(-4).expand(shape)
