"""What an interval is followed with, and how many of its steps are looked at together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from medcm_cli.pk.change import Right, Where
from medcm_cli.pk.compiled import CompiledMarch
from medcm_cli.pk.steps import Control, March, Path, Way

_ELEMENTS = 200_000  # about, of the amounts at stages that are evaluated at once


class How(NamedTuple):
    """How an interval is followed: to which tolerances; ``fit`` as in ``March``; ``known``: the way, where it
    has been found already, with all that derivatives need; ``first``: a step that is tried first. What is
    told of it is added to lists: to ``ahead`` the step that would follow the last, and to ``places`` where in
    [0, 1] steps begin. With these, what is asked for is what is there after each step."""

    control: Control
    fit: tuple[Tensor, int] | None = None
    known: Way | None = None
    first: float | None = None
    ahead: list[float] | None = None
    places: list[float] | None = None


@dataclass(frozen=True)
class Call:
    """What an interval is followed with; ``inflow``: whether there is one.

    ``moves``: pairs of a tangent and of which of the tensors of ``Where`` changes along it. ``notes`` on
    trajectories that had no way are added to. ``compiled``: steps are, where nothing moves.
    """

    right: Right
    how: How
    inflow: bool
    moves: tuple[tuple[int, int], ...] = ()
    notes: list[str] = field(default_factory=list)
    compiled: bool = False

    @property
    def moving(self) -> list[int]:
        """Which of the tensors change along any tangent."""
        return sorted({p for _, p in self.moves})

    @property
    def each(self) -> bool:
        """Whether what is there after each step is asked for, and not the end alone."""
        return self.how.places is not None

    def followed(self, amounts: Tensor, tensors: Sequence[Tensor], keep: bool) -> Way:
        """From amounts (C, S, N, B).

        :param keep: what derivatives need.
        """
        how = self.how
        if how.known is not None:
            march, path = how.known
        else:
            still = [tensor.detach() for tensor in tensors]
            kind = CompiledMarch if self.compiled and not self.moves else March
            march = kind(self.right, amounts, Where.of(still, self.inflow), how.control, how.fit)
            path = march.path(keep, how.first, self.each)
            self.notes.extend(march.notes)
            if how.ahead is not None and march.ahead is not None:
                how.ahead.append(march.ahead)
        if how.places is not None:
            how.places.extend(s for s, _ in path.steps)
        return march, path

    def reached(self, march: March, path: Path) -> Tensor:
        """Amounts (C, S, N, B) at the end, or (n, C, S, N, B) after each of n steps."""
        # Not the march's own: what a gradient is asked of would hold the march, and that hold it, for ever.
        return march.reached(path) if self.each else path.end.clone()


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
