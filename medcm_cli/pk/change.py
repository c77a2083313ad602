"""How amounts change in an interval between events, which every trajectory goes through from 0 to 1."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk.formula import Formula, slopes_program

Rate = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


class Where(NamedTuple):
    """What the right-hand side depends on beside the state, in an interval of each trajectory: times and
    parameters (S, N, B); ``inflow`` (C, S, N, B), None where there is none. Each may have a gradient."""

    left: Tensor
    width: Tensor
    values: tuple[Tensor, ...]
    inflow: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, ``inflow`` last."""
        return [self.left, self.width, *self.values, *([] if self.inflow is None else [self.inflow])]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], inflow: bool) -> "Where":
        """From ``tensors``, the last of which is the inflow or not."""
        left, width, *values = tensors
        last = values.pop() if inflow else None
        return cls(left, width, tuple(values), last)


@dataclass(frozen=True)
class Right:
    """d(amounts)/ds at s in [0, 1], to which the interval of every trajectory is mapped.

    ``timed``: the rate depends on the time. ``formula`` of the rate, where it is used: the values of
    ``Where`` are then its parts, and the inflow that of the whole interval.
    """

    rate: Rate
    names: tuple[str, ...]
    timed: bool = True
    formula: Formula | None = None

    def __call__(self, s: float | Tensor, amounts: Tensor, where: Where, out: Tensor | None = None) -> Tensor:
        """:param s: of amounts (C, S, N, B), or (I, 1, 1, 1) of (C, I, S, N, B)."""
        if self.formula is not None:
            return self._by_formula(self.formula, s, amounts, where)
        time = where.left
        if self.timed:
            time = time + s * where.width
        change = self.rate(time, amounts, dict(zip(self.names, where.values, strict=True)))
        if where.inflow is not None:
            lacks_stages = amounts.ndim > 4 and where.inflow.ndim == 4
            change = change + (where.inflow[:, None] if lacks_stages else where.inflow)
        return torch.mul(change, where.width, out=out)

    def inputs(self, formula: Formula, s: float | Tensor, amounts: Tensor, where: Where) -> dict[str, Tensor]:
        """Those of a formula's programs."""
        inputs = {
            **formula.inputs([where.left, where.width, *where.values]),
            **formula.of_amounts(amounts.unbind(0)),
        }
        if self.timed:
            inputs["place"] = s if isinstance(s, Tensor) else amounts.new_tensor(s)
        return inputs

    def seen(self, formula: Formula, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is seen of a driver, at these inputs."""
        found = formula.sight(inputs)
        return {
            str(node.value): of
            for node, of in zip(formula.seen, found, strict=True)
            if isinstance(of, Tensor)
        }

    def _by_formula(self, formula: Formula, s: float | Tensor, amounts: Tensor, where: Where) -> Tensor:
        inputs, like = self.inputs(formula, s, amounts, where), amounts[0]
        found = torch.stack(
            [
                row.expand_as(like) if isinstance(row, Tensor) else torch.full_like(like, row)
                for row in formula.whole(inputs)
            ]
        )
        if where.inflow is None:
            return found
        lacks_stages = amounts.ndim > 4 and where.inflow.ndim == 4
        return found + (where.inflow[:, None] if lacks_stages else where.inflow)

    def sight(self, where: Where) -> "Sight | None":
        """Of a driver, in one interval, without gradients."""
        formula = self.formula
        if formula is None or formula.driver is None:
            return None
        return Sight(formula, formula.inputs([where.left, where.width, *where.values]))

    def bound(self, where: Where, sight: "Sight | None" = None) -> "Evaluate":
        """For one interval, without gradients."""
        formula = self.formula
        if formula is None:
            return lambda s, amounts, out: self(s, amounts.whole, where, out.whole)
        fixed = formula.inputs([where.left, where.width, *where.values])
        names = [*formula.names, "place", *formula.seen_names]
        run, timed = formula.beside.bound(fixed, names), self.timed

        def evaluate(s: float, amounts: Parts, out: Parts) -> None:
            if sight is not None:
                run((*amounts.rows, *sight.at(s)), out.rows)
            else:
                run((*amounts.rows, amounts.whole.new_tensor(s) if timed else amounts.whole), out.rows)
            if where.inflow is not None:
                out.whole.add_(where.inflow)

        return evaluate


class Sight:
    """Places, and what is seen there of a driver: of several at once, since each operation has its price."""

    def __init__(self, formula: Formula, fixed: Mapping[str, Tensor]) -> None:
        self.run = formula.sight.bound(fixed, ["place"])
        self.like, self.count = fixed["width"], len(formula.seen)
        self.known = dict[float, Sequence[Tensor]]()

    def look(self, places: Sequence[float]) -> None:
        """At these, from now on."""
        places = list(dict.fromkeys(places))
        at = self.like.new_tensor(places)
        found = self.like.new_empty(self.count, len(places), *self.like.shape)
        self.run([at.view(-1, 1, 1, 1)], found.unbind(0))
        self.known = dict(zip(places, zip(at, *found, strict=True), strict=True))

    def at(self, s: float) -> Sequence[Tensor]:
        """The place and what is seen."""
        if s not in self.known:
            self.look([s])
        return self.known[s]


class Parts(NamedTuple):
    """Of (C, S, N, B), the whole and its C rows."""

    whole: Tensor
    rows: Sequence[Tensor]

    @classmethod
    def of(cls, whole: Tensor) -> "Parts":
        """Both."""
        return cls(whole, whole.unbind(0))


Evaluate = Callable[[float, Parts, Parts], Any]
"""Of s and amounts, and where to put the change."""


def slopes(right: Right, s: float | Tensor, amounts: Tensor, where: Where) -> Tensor:
    """The change of each compartment by the amount in each, (C, C, ...), without gradients."""
    if right.formula is not None:
        inputs = right.inputs(right.formula, s, amounts.detach(), where)
        inputs |= right.seen(right.formula, inputs)
        found = amounts.new_zeros(len(amounts), *amounts.shape)
        with torch.no_grad():
            for fixed in (True, False):
                names, program = slopes_program(right.formula, fixed)
                program.into(inputs, [found[c, x] for c, x in names])
        return found
    with torch.enable_grad():
        leaf = amounts.detach().requires_grad_()
        change = right(s, leaf, where)
        return torch.stack([row for (row,) in rows_of(change, [leaf])]).detach()


def rows_of(change: Tensor, leaves: Sequence[Tensor], create_graph: bool = False) -> list[tuple[Tensor, ...]]:
    """The derivatives of the change of each compartment by ``leaves``."""
    if not change.requires_grad:
        return [tuple(torch.zeros_like(leaf) for leaf in leaves) for _ in change]
    each = torch.eye(len(change), dtype=change.dtype, device=change.device)
    return [
        torch.autograd.grad(
            change,
            leaves,
            one.view(-1, *[1] * (change.ndim - 1)).expand_as(change),
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        for one in each
    ]


def leaf(value: Tensor) -> Tensor:
    """The same, that has a gradient by it."""
    return value if value.requires_grad else value.detach().requires_grad_()
