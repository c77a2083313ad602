"""A rate function as a formula: with what does not change within an interval computed once, and with its
derivatives written down.

Where a function is arithmetic of each number for itself, the change of amounts over an interval is written as
one of amounts, of ``parts`` that are fixed there (a rate constant times the width, for one), and of the place
in it, where time matters.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk import recorded, symbols
from medcm_cli.pk.program import Program
from medcm_cli.pk.rates import Written, matrix
from medcm_cli.pk.symbols import ZERO, Node, add, derivative, given, mul
from medcm_cli.pk.trial import points

PLACE, LEFT, WIDTH = given("place", False), given("left", True), given("width", True)


class Mode(NamedTuple):
    """``weight`` exp(``length`` s) + ``rise`` (exp(``length`` s) - 1) at a place s, all of them fixed."""

    weight: Node
    length: Node
    rise: Node | None


class Term(NamedTuple):
    """A mode of the amount ``of`` those that are seen; of the others which of the tensors they are."""

    of: int
    length: int
    weight: int
    rise: int | None


@dataclass(frozen=True)
class Driver:
    """``count`` amounts that are known, each a sum of modes."""

    count: int
    terms: tuple[Term, ...]

    @property
    def lengths(self) -> list[int]:
        """Which of the tensors are those of modes."""
        return list(dict.fromkeys(term.length for term in self.terms))

    @property
    def tensors(self) -> set[int]:
        """Which of them it depends on."""
        return {place for term in self.terms for place in term[1:] if place is not None}

    def rows(self, tensors: Sequence[Node]) -> list[Node]:
        """What is seen, at PLACE."""
        found = [ZERO] * self.count
        for u, length, weight, rise in self.terms:
            along = mul(tensors[length], PLACE)
            found[u] = add(found[u], mul(tensors[weight], symbols.unary("exp", along)))
            if rise is not None:
                found[u] = add(found[u], mul(tensors[rise], symbols.unary("expm1", along)))
        return found


@dataclass(frozen=True, eq=False)
class Formula:
    """``rows``: the change of each state, of inputs ``amounts``, ``fixed`` and, where time matters, LEFT,
    WIDTH and PLACE; ``parts``: what each of ``fixed`` is, of ``p.NAME`` for each of the parameters and
    WIDTH. ``rates``: what ``rows`` are made from, of the parameters themselves. Where a ``driver`` is known,
    rows are also of what is ``seen`` of it, and some of ``fixed`` are the driver's."""

    rows: tuple[Node, ...]
    amounts: tuple[Node, ...]
    fixed: tuple[Node, ...]
    parts: tuple[Node, ...]
    rates: tuple[Node, ...] = ()
    seen: tuple[Node, ...] = ()
    driver: "Driver | None" = None

    @cached_property
    def whole(self) -> Program:
        """The change."""
        if self.driver is None:
            return Program(self.rows, self.amounts)
        by = dict(zip(self.seen, self.driver.rows(self.tensors), strict=True))
        return Program([symbols.replaced(row, by) for row in self.rows], self.amounts)

    @cached_property
    def beside(self) -> Program:
        """The same, of what is seen of a driver, too."""
        return Program(self.rows, self.amounts)

    @cached_property
    def seen_names(self) -> list[str]:
        """Of ``seen``."""
        return [str(node.value) for node in self.seen]

    @cached_property
    def sight(self) -> Program:
        """What is seen of a driver."""
        return Program([] if self.driver is None else self.driver.rows(self.tensors), [PLACE])

    @cached_property
    def tensors(self) -> tuple[Node, ...]:
        """Those of ``Where``, but for the inflow."""
        return (LEFT, WIDTH, *self.fixed)

    @cached_property
    def slope(self) -> list[list[Node]]:
        """The change of each state by the amount in each."""
        return [[derivative(row, amount) for amount in (*self.amounts, *self.seen)] for row in self.rows]

    @cached_property
    def by_tensor(self) -> list[list[Node]]:
        """The change of each state by each of ``tensors``."""
        return [[derivative(row, tensor) for tensor in self.tensors] for row in self.rows]

    def inputs(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Those of programs, of the tensors of ``Where``."""
        return {str(node.value): tensor for node, tensor in zip(self.tensors, tensors, strict=False)}

    @cached_property
    def names(self) -> list[str]:
        """Of ``amounts``."""
        return [str(node.value) for node in self.amounts]

    def of_amounts(self, amounts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Likewise of amounts, one of each state."""
        return dict(zip(self.names, amounts, strict=True))

    @cached_property
    def _of_parameters(self) -> Program:
        return Program(self.parts)

    def parts_of(self, z: Mapping[str, Tensor], width: Tensor) -> list[Tensor]:
        """From parameters and width, (S, N, B), (I, S, N, B) or broadcastable: differentiable."""
        return _tensors(self._of_parameters, z, width)

    def turned(self, name: str, z: Mapping[str, Tensor], width: Tensor) -> dict[int, Tensor]:
        """The derivative of each part that depends on a parameter by its logarithm."""
        places, program = _turned(self, f"p.{name}", True)
        return dict(zip(places, _tensors(program, z, width), strict=True))

    def along(self, name: str, turn: Tensor, z: Mapping[str, Tensor], width: Tensor) -> dict[int, Tensor]:
        """How each part that depends on an input changes where that does by ``turn``."""
        places, program = _turned(self, name, False)
        found = program(_inputs(z, width))
        return {
            place: turn if isinstance(by, float) and by == 1 else by * turn
            for place, by in zip(places, found, strict=True)
        }


def _tensors(program: Program, z: Mapping[str, Tensor], width: Tensor) -> list[Tensor]:
    found = program(_inputs(z, width))
    return [of if isinstance(of, Tensor) else torch.full_like(width, of) for of in found]


def _inputs(z: Mapping[str, Tensor], width: Tensor) -> dict[str, Tensor]:
    return {"width": width, **{f"p.{name}": value for name, value in z.items()}}


@functools.lru_cache(maxsize=256)
def _turned(formula: Formula, name: str, logarithm: bool) -> tuple[list[int], Program]:
    """Which parts depend on an input, and their derivatives by it."""
    wrt = given(name, True)
    by = wrt if logarithm else symbols.ONE
    found = {place: mul(derivative(part, wrt), by) for place, part in enumerate(formula.parts)}
    there = {place: node for place, node in found.items() if node is not ZERO}
    return list(there), Program(list(there.values()))


@functools.lru_cache(maxsize=64)
def formula_of(written: Written) -> Formula | None:
    """That of a rate; None where it is none."""
    amounts = tuple(given(f"a.{name}", False) for name in written.states)
    parameters = [given(f"p.{name}", True) for name in written.parameters]
    time = add(LEFT, mul(PLACE, WIDTH))
    found = recorded.rows(written, time, amounts, parameters)
    if found is None:
        return None
    formula = formula_from(found, amounts)
    return formula if _is(formula, written) else None


def formula_from(
    rates: Sequence[Node],
    amounts: tuple[Node, ...],
    seen: Mapping[Node, Sequence["Mode"]] | None = None,
) -> Formula:
    """Of the rates of states. :param seen: amounts that are known, and the modes that each is the sum of."""
    rows = [symbols.scaled(WIDTH, row) for row in rates]
    ends, modes = (LEFT, WIDTH), [one for of in (seen or {}).values() for one in of]
    parts = [part for part in symbols.fixed_in(tuple(rows)) if part not in ends]
    more = [node for one in modes for node in one if node is not None]
    parts += dict.fromkeys(node for node in more if node not in parts)
    fixed = tuple(given(f"part {place}", True) for place in range(len(parts)))
    by = dict(zip(parts, fixed, strict=True))
    formula = Formula(
        tuple(symbols.replaced(row, by) for row in rows), amounts, fixed, tuple(parts), tuple(rates)
    )
    if not seen:
        return formula
    place = {part: 2 + number for number, part in enumerate(parts)}
    terms = [
        Term(u, place[one.length], place[one.weight], None if one.rise is None else place[one.rise])
        for u, of in enumerate(seen.values())
        for one in of
    ]
    return replace(formula, seen=tuple(seen), driver=Driver(len(seen), tuple(terms)))


def _is(formula: Formula, written: Written) -> bool:
    """Whether it gives what its function does, with the same derivatives."""
    t, amounts, z = points(len(written.states), written.parameters, 1)
    width, place = torch.full_like(t, 0.7), torch.full_like(t, 0.4)
    for size in (1.0, 1e-3, 1e3):
        a = amounts * size
        inputs = {"place": place, **formula.of_amounts(a.unbind(0))}
        inputs |= formula.inputs([t, width, *formula.parts_of(z, width)])
        each = [(formula.whole(inputs), width * written(t + place * width, a, z))]
        at_zero = {**inputs, **formula.inputs([0 * t, 0 * t + 1, *formula.parts_of(z, 0 * t + 1)])}
        at_zero["place"] = 0 * t  # as ``matrix`` has it
        slope = matrix(written, a, z).detach()
        for row, wanted in zip(formula.slope, slope.unbind(-2), strict=True):
            each.append((Program(row)(at_zero), wanted.movedim(-1, 0)))
        for found, wanted in each:
            rows = [torch.as_tensor(of, dtype=a.dtype, device=a.device).expand_as(a[0]) for of in found]
            if not torch.allclose(torch.stack(rows), wanted, rtol=1e-9, atol=1e-12, equal_nan=True):
                return False
    return True


@functools.lru_cache(maxsize=256)
def slopes_program(formula: Formula, fixed: bool) -> tuple[list[tuple[int, int]], Program]:
    """Which slopes are not 0 and are ``fixed``, or not: (of, by); and what they are."""
    size = len(formula.amounts)
    found = {
        (c, x): node
        for c, row in enumerate(formula.slope)
        for x, node in enumerate(row[:size])
        if node is not ZERO and node.fixed == fixed
    }
    return list(found), Program(list(found.values()), formula.amounts)


@functools.lru_cache(maxsize=256)
def driven_program(formula: Formula) -> tuple[list[tuple[int, int]], Program]:
    """The same of the slopes by what is seen of a driver."""
    size = len(formula.amounts)
    found = {
        (c, x): node
        for c, row in enumerate(formula.slope)
        for x, node in enumerate(row[size:])
        if node is not ZERO
    }
    return list(found), Program(list(found.values()))


@functools.lru_cache(maxsize=256)
def source_program(formula: Formula, moves: tuple[tuple[int, int], ...], count: int) -> Program:
    """How changes vary along tangents at fixed amounts, of each state and each of ``count`` tangents: from
    ``moved I``, how the I-th of the tensors that ``moves`` names changes."""
    found = list[Node]()
    for row in formula.by_tensor:
        for k in range(count):
            total = ZERO
            for place, (number, p) in enumerate(moves):
                if number == k and p < len(row):
                    total = add(total, mul(given(f"moved {place}", True), row[p]))
            found.append(total)
    return Program(found, formula.amounts)


@dataclass(frozen=True, eq=False)
class Summed:
    """Expressions that are summed over stages: ``cores``, and from their sums, with what is fixed, the
    rest."""

    cores: Program
    rest: Program


def summed(nodes: Sequence[Node]) -> Summed:
    """Of a sum of products the fixed factors come after it."""
    cores = dict[Node, Node]()

    def parted(node: Node) -> Node:
        if node.op == "add" and not node.fixed:
            return add(*map(parted, node.args))
        coefficient, core = symbols.parted(node)
        return mul(coefficient, cores.setdefault(core, given(f"core {len(cores)}", True)))

    rest = [ZERO if node is ZERO else parted(node) for node in nodes]
    return Summed(Program(list(cores)), Program(rest))


@functools.lru_cache(maxsize=256)
def gradient_program(formula: Formula, wanted: tuple[int, ...]) -> Summed:
    """Gradients by the tensors that are ``wanted``, from those by the changes, ``bar.STATE``."""
    bars = [given(f"bar.{place}", False) for place in range(len(formula.rows))]
    nodes = []
    for p in wanted:
        total = ZERO
        for bar, row in zip(bars, formula.by_tensor, strict=True):
            total = add(total, mul(bar, row[p]))
        nodes.append(total)
    return summed(nodes)


class Weight(NamedTuple):
    """Of the slope of a state's change by the amount in a state, or by one of the tensors."""

    of: int
    by_tensor: bool
    by: int


@dataclass(frozen=True, eq=False)
class Curved:
    """Gradients of the sum of slopes by amounts and by tensors, each times its weight: ``of_amounts``, one by
    the amount in each state, at each stage, and ``of_tensors``; ``weights`` that are needed, by their
    names."""

    weights: dict[str, Weight]
    of_amounts: Program
    of_tensors: Summed


@functools.lru_cache(maxsize=256)
def curved_program(formula: Formula, moving: tuple[int, ...], wanted: tuple[int, ...]) -> Curved:
    """:param moving: tensors that the slopes by are part of the sum. :param wanted: as above."""
    states, amounts = range(len(formula.rows)), (*formula.amounts, *formula.seen)
    keys = [Weight(c, False, x) for c in states for x in range(len(amounts))]
    keys += [Weight(c, True, p) for c in states for p in moving]
    weights = dict[str, Weight]()
    totals = list[Node]()
    for target in [*amounts, *(formula.tensors[p] for p in wanted)]:
        total = ZERO
        for place, key in enumerate(keys):
            slopes = formula.by_tensor if key.by_tensor else formula.slope
            turn = derivative(slopes[key.of][key.by], target)
            if turn is not ZERO:
                weights[f"weight {place}"] = key
                total = add(total, mul(given(f"weight {place}", False), turn))
        totals.append(total)
    size = len(amounts)
    return Curved(weights, Program(totals[:size]), summed(totals[size:]))
