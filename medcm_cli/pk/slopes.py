"""Derivatives of the change at the stages of an interval's steps, of many at once, and what gradients come
from them: by the formula of a rate, or where it has none by torch."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from medcm_cli.numerics.square import inverse
from medcm_cli.pk.change import Where, rows_of
from medcm_cli.pk.driven import Driven
from medcm_cli.pk.formula import (
    Formula,
    Summed,
    curved_program,
    driven_program,
    gradient_program,
    slopes_program,
    source_program,
)
from medcm_cli.pk.stages import Call, staged
from medcm_cli.pk.steps import March, Path


class Slopes(Protocol):
    """At the stages of some steps, which ``at`` chooses and of which the others speak. Gradients by the
    tensors of ``Where`` and by how these are moved add up from ``at`` to ``at``.

    ``slope``: the change of each state by the amount in each, (C, C, I, S, N, B), with 1 for I where all
    stages share it.
    """

    slope: Tensor

    def at(self, numbers: range) -> None:
        """At the I stages of these steps."""

    def source(self, moved: Sequence[Tensor], count: int) -> Tensor:
        """How changes vary along ``count`` tangents at fixed amounts, (C, K, I, S, N, B)."""

    def add_gradient(self, bars: Tensor) -> None:
        """From gradients by changes, (I, C, S, N, B)."""

    def add_turned(self, turned: Tensor) -> None:
        """From gradients by tangents of changes, (I, C, K, S, N, B)."""

    def curved(self, turned: Tensor, stages: Tensor, moved: Sequence[Tensor]) -> Tensor:
        """Gradients of <``turned``, J x' + g>, both (I, C, K, S, N, B), with ``stages`` the tangents x': by
        amounts, (C, I, S, N, B)."""

    def gradients(self) -> list[Tensor | None]:
        """By each of the tensors, None where none is needed."""

    def by_moved(self) -> list[Tensor]:
        """By how each of those that ``Call.moves`` names is moved."""


def slopes_along(
    call: Call,
    march: March,
    path: Path,
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    twice: bool = False,
) -> Slopes:
    """:param needs: of which tensors a gradient is wanted. :param twice: slopes are differentiated."""
    if call.right.formula is None:
        return _ByTorch(call, march, path, tensors, needs, twice)
    return _ByFormula(call, call.right.formula, march, path, tensors, needs)


def solver(march: March, path: Path, numbers: range, slope: Tensor) -> Tensor | None:
    """What solves the equations of implicit stages, (C, C, I, S, N, B)."""
    tableau, size = march.tableau, len(slope)
    if not tableau.diagonal:
        return None
    parts = [tableau.diagonal * path.steps[number][1] for number in numbers for _ in range(tableau.used)]
    unit = torch.eye(size, dtype=slope.dtype, device=slope.device).view(size, size, 1, 1, 1, 1)
    return inverse(unit - slope.new_tensor(parts).view(-1, 1, 1, 1) * slope)


def amounts_at(march: March, path: Path, numbers: range) -> Tensor:
    """At the stages of some steps, (I, C, S, N, B)."""
    kept = [march.stages_of(path, number) for number in numbers]
    return torch.cat(kept) if len(kept) > 1 else kept[0]


def places_at(march: March, path: Path, numbers: range) -> Tensor:
    """In the interval, of the same, (I, 1, 1, 1)."""
    nodes = march.tableau.nodes[: march.tableau.used]
    moments = [path.steps[number][0] + c * path.steps[number][1] for number in numbers for c in nodes]
    return march.x.new_tensor(moments).view(-1, 1, 1, 1)


def _sum(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else old + new


class _Total:
    """Gradients of ``Summed``, of one stage after another."""

    def __init__(self, program: Summed) -> None:
        self.program = program
        self.sums: list[Tensor] | None = None

    def add(self, inputs: dict[str, Tensor]) -> None:
        cores = [core.sum(-4) for core in self.program.cores(inputs) if isinstance(core, Tensor)]
        self.sums = cores if self.sums is None else [a.add_(b) for a, b in zip(self.sums, cores, strict=True)]

    def rest(self, inputs: dict[str, Tensor], like: Tensor) -> list[Tensor]:
        """What they come to."""
        sums = {} if self.sums is None else {f"core {i}": total for i, total in enumerate(self.sums)}
        found = self.program.rest({**inputs, **sums})
        return [of if isinstance(of, Tensor) else torch.full_like(like, of) for of in found]


class _ByFormula:
    slope: Tensor

    def __init__(
        self,
        call: Call,
        formula: Formula,
        march: March,
        path: Path,
        tensors: Sequence[Tensor],
        needs: Sequence[bool],
    ) -> None:
        self.call, self.formula, self.march, self.path, self.tensors = call, formula, march, path, tensors
        self.known = len(formula.tensors)  # what stands after these is the inflow
        self.fixed = formula.inputs([tensor.detach() for tensor in tensors])
        own = [p for p in range(self.known) if formula.driver is None or p not in formula.driver.tensors]
        self.wanted = tuple(p for p in own if needs[p])
        self.inflow = [p for p in range(self.known, len(tensors)) if needs[p]]
        moving = tuple(p for p in call.moving if p in own)
        self.first = _Total(gradient_program(formula, self.wanted))
        self.curves = curved_program(formula, moving, self.wanted)
        self.second = _Total(self.curves.of_tensors)
        self.driven = None if formula.driver is None else Driven(formula.driver, tensors, call.moves)
        self.moved: Sequence[Tensor] = ()
        self.by_inflow: Tensor | None = None
        self.turns = [_Total(gradient_program(formula, (p,))) if p in own else None for _, p in call.moves]
        self.turned_inflow: list[Tensor | None] = [None] * len(call.moves)
        self.varies = bool(slopes_program(formula, False)[0])
        self.count = 0
        if not self.varies:
            self._fix(1)

    def _fix(self, stages: int) -> None:
        """Slopes of so many stages that are the same at all of them."""
        x, both = self.march.x, (slopes_program(self.formula, fixed)[0] for fixed in (True, False))
        made = x.new_empty if sum(map(len, both)) == len(x) ** 2 else x.new_zeros
        self.slope = made(len(x), len(x), stages, *x.shape[1:])
        self._fill(True, self.fixed)

    def _fill(self, fixed: bool, inputs: dict[str, Tensor]) -> None:
        names, program = slopes_program(self.formula, fixed)
        program.into(inputs, [self.slope[c, x] for c, x in names])
        if names and self.march.lost is not None:
            self.slope.masked_fill_(self.march.lost, 0)

    def at(self, numbers: range) -> None:
        amounts = amounts_at(self.march, self.path, numbers)
        before, self.count = self.count, len(amounts)
        self.inputs = {**self.fixed, **self.formula.of_amounts(amounts.unbind(1))}
        if self.call.right.timed:
            self.inputs["place"] = places_at(self.march, self.path, numbers)
        if self.driven is not None:
            self._see(self.driven)
        if self.varies:
            if self.count != before:
                self._fix(self.count)
            self._fill(False, self.inputs)

    def _see(self, driven: Driven) -> None:
        """What is seen of a driver, and the slopes by that."""
        driven.at(self.inputs["place"])
        names = (str(node.value) for node in self.formula.seen)
        self.inputs |= dict(zip(names, driven.seen(), strict=True))
        places, program = driven_program(self.formula)
        found = [
            of if isinstance(of, Tensor) else torch.full_like(self.march.x[:1], of)
            for of in program(self.inputs)
        ]
        if self.march.lost is not None:
            found = [of.masked_fill(self.march.lost, 0) for of in found]
        self.by_seen = dict(zip(places, found, strict=True))

    def _to_seen(self, bars: Tensor) -> Tensor:
        """From gradients by changes (I, C, ...) those by what is seen, (I, U, ...)."""
        more = [1] * (bars.ndim - 5)
        found = bars.new_zeros(len(bars), len(self.formula.seen), *bars.shape[2:])
        for (c, u), of in self.by_seen.items():
            slope = of.view(*of.shape[:-3], *more, *of.shape[-3:])
            found[:, u].addcmul_(slope, bars[:, c])
        return found

    def source(self, moved: Sequence[Tensor], count: int) -> Tensor:
        shape = self.march.x.shape
        source = moved[0].new_empty(shape[0], count, self.count, *shape[1:]) if moved else None
        if source is None:
            return self.march.x.new_zeros(shape[0], count, self.count, *shape[1:])
        inputs = {f"moved {place}": by.detach() for place, by in enumerate(moved)}
        program = source_program(self.formula, self.call.moves, count)
        program.into({**self.inputs, **inputs}, source.flatten(0, 1).unbind(0))
        if self.driven is not None:
            seen = self.driven.tangents(moved, count)
            for (c, u), of in self.by_seen.items():
                source[c].addcmul_(of, seen[u])
        for (k, p), by in zip(self.call.moves, moved, strict=True):
            if p >= self.known:
                source[:, k] += by.detach()[:, None]
        return source

    def add_gradient(self, bars: Tensor) -> None:
        if self.wanted:
            self.first.add({**self.inputs, **_bars(bars.unbind(1))})
        if self.driven is not None:
            self.driven.add(self._to_seen(bars))
        if self.inflow:
            self.by_inflow = _sum(self.by_inflow, bars.sum(0))

    def add_turned(self, turned: Tensor) -> None:
        if self.driven is not None:
            self.driven.add_turned(self._to_seen(turned))
        for place, (k, p) in enumerate(self.call.moves):
            total, bars = self.turns[place], turned[:, :, k]
            if total is not None:
                total.add({**self.inputs, **_bars(bars.unbind(1))})
            elif p >= self.known:
                self.turned_inflow[place] = _sum(self.turned_inflow[place], bars.sum(0))

    def curved(self, turned: Tensor, stages: Tensor, moved: Sequence[Tensor]) -> Tensor:
        inputs, size = dict(self.inputs), turned.shape[1]
        tangents = [of.unbind(1) for of in stages.unbind(1)]
        if self.driven is not None:
            self.moved = moved
            tangents += [of.unbind(0) for of in self.driven.tangents(moved, turned.shape[2])]
        for name, (c, by_tensor, q) in self.curves.weights.items():
            along = turned[:, c]
            if by_tensor:
                pairs = [(k, by) for (k, p), by in zip(self.call.moves, moved, strict=True) if p == q]
            else:
                pairs = list(enumerate(tangents[q]))
            weight = along[:, pairs[0][0]] * pairs[0][1].detach()
            for k, by in pairs[1:]:
                weight.addcmul_(along[:, k], by.detach())
            inputs[name] = weight
        if self.wanted:
            self.second.add(inputs)
        source = turned.new_empty(len(tangents), self.count, *turned.shape[3:])
        self.curves.of_amounts.into(inputs, source.unbind(0))
        if self.driven is not None:
            self.driven.add(source[size:].movedim(0, 1))
        return source[:size]

    def gradients(self) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * len(self.tensors)
        like = self.march.x[0]
        for total in (self.first, self.second):
            if total.sums is not None:
                for p, grad in zip(self.wanted, total.rest(self.fixed, like), strict=True):
                    found[p] = _sum(found[p], grad)
        if self.driven is not None:
            for p, grad in self.driven.gradients(self.moved).items():
                found[p] = grad
        for p in self.inflow:
            found[p] = self.by_inflow
        return found

    def by_moved(self) -> list[Tensor]:
        like = self.march.x[0]
        found = list[Tensor]()
        for (k, p), total, inflow in zip(self.call.moves, self.turns, self.turned_inflow, strict=True):
            if total is not None:
                found.append(total.rest(self.fixed, like)[0])
            elif inflow is not None:
                found.append(inflow)
            else:
                assert self.driven is not None
                found.append(self.driven.by_moved(k, p))
        return found


def _bars(bars: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"bar.{place}": bar for place, bar in enumerate(bars)}


class _ByTorch:
    slope: Tensor

    def __init__(
        self,
        call: Call,
        march: March,
        path: Path,
        tensors: Sequence[Tensor],
        needs: Sequence[bool],
        twice: bool,
    ) -> None:
        self.call, self.march, self.path = call, march, path
        self.tensors, self.needs, self.twice = tensors, needs, twice
        self.grads: list[Tensor | None] = [None] * len(tensors)
        self.moved: list[Tensor | None] = [None] * len(call.moves)

    def at(self, numbers: range) -> None:
        self.amounts = amounts_at(self.march, self.path, numbers).movedim(0, 1).detach().requires_grad_()
        self.leaves = [
            (staged(tensor, self.amounts.shape[1]) if p in self.call.moving else tensor)
            .detach()
            .requires_grad_(self.needs[p] or p in self.call.moving)
            for p, tensor in enumerate(self.tensors)
        ]
        with torch.enable_grad():
            place = places_at(self.march, self.path, numbers)
            self.change = self.call.right(place, self.amounts, Where.of(self.leaves, self.call.inflow))
            moving = [self.leaves[p] for p in self.call.moving]
            self.rows = rows_of(self.change, [self.amounts, *moving], self.twice)
        self.slope = torch.stack([row[0].detach() for row in self.rows])
        if self.march.lost is not None:
            self.slope = self.slope.masked_fill(self.march.lost, 0)

    def source(self, moved: Sequence[Tensor], count: int) -> Tensor:
        change = self.change
        source = change.new_zeros(len(change), count, *change.shape[1:])
        for (k, p), by in zip(self.call.moves, moved, strict=True):
            place = 1 + self.call.moving.index(p)
            for c, row in enumerate(self.rows):
                part = row[place].detach() * staged(by, len(change[0]))
                source[c, k] += part.sum(0) if part.ndim > 4 else part
        return source

    def add_gradient(self, bars: Tensor) -> None:
        wanted = self._wanted
        if wanted and self.change.requires_grad:
            weights = bars.movedim(0, 1)
            self._add(
                torch.autograd.grad(self.change, wanted, weights, allow_unused=True, materialize_grads=True)
            )

    def add_turned(self, turned: Tensor) -> None:
        for place, (k, p) in enumerate(self.call.moves):
            for c, row in enumerate(self.rows):
                by = row[1 + self.call.moving.index(p)].detach() * turned[:, c, k]
                self.moved[place] = _sum(self.moved[place], by.sum(-4))

    def curved(self, turned: Tensor, stages: Tensor, moved: Sequence[Tensor]) -> Tensor:
        outputs, weights = list[Tensor](), list[Tensor]()
        for c, row in enumerate(self.rows):
            along = turned[:, c]
            weight = [(along[:, None] * stages).sum(2).movedim(0, 1)]
            for p in self.call.moving:
                pairs = [(k, by) for (k, q), by in zip(self.call.moves, moved, strict=True) if p == q]
                parts = [along[:, k] * staged(by, len(along)) for k, by in pairs]
                weight.append(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0])
            for output, by in zip(row, weight, strict=True):
                if output.requires_grad:
                    outputs.append(output)
                    weights.append(by)
        if not outputs:
            return torch.zeros_like(self.amounts)
        first, *others = torch.autograd.grad(
            outputs,
            [self.amounts, *self._wanted],
            weights,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        self._add(others)
        return first

    @property
    def _wanted(self) -> list[Tensor]:
        return [tensor for tensor, need in zip(self.leaves, self.needs, strict=True) if need]

    def _add(self, more: Sequence[Tensor]) -> None:
        """Of each stage apart where tensors move."""
        places = [p for p, need in enumerate(self.needs) if need]
        for p, grad in zip(places, more, strict=True):
            self.grads[p] = _sum(self.grads[p], grad.sum(-4) if p in self.call.moving else grad)

    def gradients(self) -> list[Tensor | None]:
        return self.grads

    def by_moved(self) -> list[Tensor]:
        return [of for of in self.moved if of is not None]
