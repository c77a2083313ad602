"""A piece of every trajectory between events, as the solver has it: what it depends on there, and how
parameters that move change that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from medcm_cli.pk.change import Right
from medcm_cli.pk.derivatives import Direction, key_of, moves
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.formula import Formula
from medcm_cli.pk.moving import Tangents


@dataclass(frozen=True)
class Stretch:
    """A piece of every trajectory, with constant parameters: ``left``, ``width``, ``inflow`` as in
    ``Timeline``, and the derivatives of these by each of K parameters, where there are any. ``parts`` of the
    rate's formula, and derivatives of these, where they are known already."""

    left: Tensor
    width: Tensor
    inflow: Tensor | None
    z: Values
    moved: Sequence[Tangents] = ()
    parts: Sequence[Tensor] | None = None
    turned: Sequence[Mapping[int, Tensor]] | None = None

    def some(self, states: Sequence[int]) -> "Stretch":
        """Of some states alone."""
        inflow = None if self.inflow is None else self.inflow[[*states]]
        if inflow is not None and not bool((inflow != 0).any()):
            inflow = None
        moved = [
            {name: turn[[*states]] if name == "inflow" else turn for name, turn in of.items()}
            for of in self.moved
        ]
        return replace(self, inflow=inflow, moved=moved)


def tensors_of(right: Right, stretch: Stretch) -> list[Tensor]:
    """Those of ``Where``."""
    formula = right.formula
    inflow = stretch.inflow
    if formula is None:
        values = [stretch.z[name] for name in right.names]
    else:
        parts = stretch.parts
        values = list(formula.parts_of(stretch.z, stretch.width) if parts is None else parts)
        inflow = None if inflow is None else inflow * stretch.width
    return [stretch.left, stretch.width, *values, *([] if inflow is None else [inflow])]


def moved_by(right: Right, stretch: Stretch, wrt: Sequence[Direction]) -> list[dict[int, Tensor]]:
    """How each parameter that moves changes the tensors of ``Where``, by their places."""
    if right.formula is not None:
        return _parts_moved_by(right, right.formula, stretch, wrt)
    last = 2 + len(right.names)
    found = []
    for k, one in enumerate(wrt):
        name, turns = moves(one), stretch.moved[k] if stretch.moved else {}
        own = {2 + right.names.index(name): stretch.z[name] * share(stretch.z, k)}
        places = {"left": 0, "width": 1} | ({} if stretch.inflow is None else {"inflow": last})
        found.append(own | {place: turns[of] for of, place in places.items() if of in turns})
    return found


def _parts_moved_by(
    right: Right, formula: Formula, stretch: Stretch, wrt: Sequence[Direction]
) -> list[dict[int, Tensor]]:
    """The same of the parts of a formula, and of an inflow that is that of the whole interval."""
    turned = stretch.turned
    if turned is None:
        turned = turned_parts(right, stretch.z, stretch.width, wrt)
    found = []
    for k, of_parts in enumerate(turned):
        turns = stretch.moved[k] if stretch.moved else {}
        own = {2 + place: turn for place, turn in of_parts.items()}
        if right.timed:
            own |= {place: turns[of] for of, place in (("left", 0), ("width", 1)) if of in turns}
        for name, turn in turns.items():
            if name not in ("left", "inflow"):  # what is carried along is as a parameter
                of = name if name == "width" else f"p.{name}"
                more = formula.along(of, turn, stretch.z, stretch.width)
                own |= {2 + at: own[2 + at] + by if 2 + at in own else by for at, by in more.items()}
        if stretch.inflow is not None and ("inflow" in turns or "width" in turns):
            by_rate, by_width = turns.get("inflow"), turns.get("width")
            each = [] if by_rate is None else [by_rate * stretch.width]
            each += [] if by_width is None else [stretch.inflow * by_width]
            own[2 + len(formula.parts)] = each[0] if len(each) == 1 else each[0] + each[1]
        found.append(own)
    return found


def turned_parts(right: Right, z: Values, width: Tensor, wrt: Sequence[Direction]) -> list[dict[int, Tensor]]:
    """Of the parts of a formula their derivatives in each direction."""
    assert right.formula is not None
    return [
        {place: turn * share(z, k) for place, turn in right.formula.turned(moves(one), z, width).items()}
        for k, one in enumerate(wrt)
    ]


def share(z: Values, place: int) -> Tensor | float:
    """That of a direction which is in force where the parameters are."""
    return z.get(key_of(place), 1.0)
