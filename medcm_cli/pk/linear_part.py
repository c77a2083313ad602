"""The part of a system that is linear and depends on nothing but itself, found in a rate's formula.

With the eigenvalues l_j (1/h) of the rate matrix K of this part, all different, and P_j the product over i
other than j of (K - l_i) / (l_j - l_i), what was x becomes sum_j exp(l_j t) P_j x (Sylvester's formula), and
what is left of an inflow b is sum_j (exp(l_j t) - 1) / l_j P_j b. The rest of the system sees the part as a
function of the time.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medcm_cli.pk import symbols
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.formula import WIDTH, Formula, Mode, formula_from
from medcm_cli.pk.program import Program
from medcm_cli.pk.symbols import (
    ONE,
    ZERO,
    Node,
    add,
    derivative,
    div,
    given,
    mul,
    number,
    number_of,
    reads,
    sub,
)

MOST = 4  # states
_KINKS = ("where", "clamp", "lt", "le", "gt", "ge")

Entry = tuple[int, int, int]
"""Of P_j: (row, j, column), states by their places in the part."""


def eigenvalue(j: int) -> str:
    """What it is called among parameters."""
    return f"eigenvalue {j}"


def share(entry: Entry) -> str:
    """Likewise an entry of P_j."""
    return f"share {entry[0]} {entry[1]} {entry[2]}"


def source(c: int) -> str:
    """Likewise what is formed in a state, amount/h."""
    return f"source {c}"


def weight(c: int, j: int) -> str:
    """Likewise what of a state follows mode j, of what is there as an interval begins."""
    return f"weight {c} {j}"


def rise(c: int, j: int) -> str:
    """Likewise of what runs in meanwhile."""
    return f"rise {c} {j}"


@dataclass(frozen=True, eq=False)
class LinearPart:
    """``inside``: the states that it has, by their places, and ``outside`` the others. Of p.NAME are the
    ``eigenvalues``, ``shares``, the entries of all P_j that are not 0, ``sources`` of states, and ``roots``,
    which have to be above 0 for eigenvalues to be real.

    ``alone``: the formula of the others in an interval in which nothing runs into the part; ``fed``: in
    others.
    """

    inside: tuple[int, ...]
    outside: tuple[int, ...]
    eigenvalues: tuple[Node, ...]
    shares: Mapping[Entry, Node]
    sources: tuple[Node, ...]
    roots: tuple[Node, ...]
    alone: Formula
    fed: Formula

    @property
    def forms(self) -> bool:
        """Whether anything is formed in it."""
        return any(node is not ZERO for node in self.sources)

    @property
    def named(self) -> dict[str, Node]:
        """What depends on parameters, by its name."""
        found = {eigenvalue(j): node for j, node in enumerate(self.eigenvalues)}
        found |= {share(entry): node for entry, node in self.shares.items()}
        found |= {source(c): node for c, node in enumerate(self.sources)}
        return {name: node for name, node in found.items() if number_of(node) is None}

    def at(self, z: Values) -> dict[str, Tensor] | None:
        """All that is ``named`` at the model's parameters, (S, N, B) or (I, S, N, B), differentiable; None
        where two eigenvalues are too close to each other, or one is 0."""
        with torch.no_grad():
            roots = _values(_program(self, "roots")[1], z)
            if any(bool((root <= 0).any()) for root in roots):
                return None
        names, program = _program(self, "")
        found = dict(zip(names, _values(program, z), strict=True))
        rates = [found[eigenvalue(j)].detach() for j in range(len(self.eigenvalues))]
        dtype = next(iter(z.values())).dtype
        # Of a gap g, relative to the rates, the n-th derivatives lose a factor of 1 / g^(n + 1).
        least = torch.finfo(dtype).eps ** (1 / 8)
        for one, other in itertools.combinations(rates, 2):
            if bool(((one - other).abs() < least * torch.maximum(one.abs(), other.abs())).any()):
                return None
        if any(bool((rate == 0).any()) for rate in rates):
            return None
        return {name: of.to(dtype) for name, of in found.items()}

    def turned(self, name: str, z: Values) -> dict[str, Tensor]:
        """The derivatives of those that depend on a parameter by its logarithm."""
        names, program = _program(self, name)
        return {own: of.to(z[name].dtype) for own, of in zip(names, _values(program, z), strict=True)}


def _values(program: Program, z: Values) -> list[Tensor]:
    """In double precision, since differences of eigenvalues are taken."""
    inputs = {f"p.{name}": of.double() for name, of in z.items() if f"p.{name}" in program.inputs}
    like = next(iter(z.values())).double()
    return [of if isinstance(of, Tensor) else torch.full_like(like, of) for of in program(inputs)]


@functools.lru_cache(maxsize=256)
def _program(part: LinearPart, of: str) -> tuple[list[str], Program]:
    """Of what is named, of its derivatives by the logarithm of the parameter ``of``, or of "roots"."""
    if of == "roots":
        return [], Program(part.roots)
    found = part.named
    if of:
        wrt = given(f"p.{of}", True)
        found = {name: mul(derivative(node, wrt), wrt) for name, node in found.items()}
    there = {name: node for name, node in found.items() if node is not ZERO}
    return list(there), Program(list(there.values()))


@functools.lru_cache(maxsize=64)
def linear_parts(formula: Formula) -> tuple[LinearPart, ...]:
    """Of a system that is more than that: the largest that it has first, and then smaller ones, for where
    eigenvalues of that are too close to each other."""
    rates, amounts = formula.rates, formula.amounts
    slopes = [[derivative(rate, amount) for amount in amounts] for rate in rates]
    sources = [symbols.replaced(rate, dict.fromkeys(amounts, ZERO)) for rate in rates]
    linear = [
        c
        for c, rate in enumerate(rates)
        if sources[c].fixed and all(slope.fixed for slope in slopes[c]) and not _has_kink(rate)
    ]
    parts, inside, eigenvalues, roots = list[LinearPart](), list[int](), list[Node](), list[Node]()
    for group in _groups(slopes, linear):
        known = {*inside, *group}
        closed = all(slopes[c][x] is ZERO or x in known for c in group for x in range(len(rates)))
        found = _eigenvalues(slopes, group)
        if not closed or found is None or len(known) > MOST:
            continue
        own, root = found
        if ZERO not in own and not set(own) & set(eigenvalues):
            inside, eigenvalues, roots = [*inside, *group], [*eigenvalues, *own], [*roots, *root]
            if len(inside) < len(rates):
                parts.append(_part(formula, slopes, sources, (inside, eigenvalues, roots)))
    return tuple(reversed(parts)) if len(inside) < len(rates) else ()


def _part(
    formula: Formula,
    slopes: Sequence[Sequence[Node]],
    sources: Sequence[Node],
    found: tuple[Sequence[int], Sequence[Node], Sequence[Node]],
) -> LinearPart:
    """With some states, eigenvalues and roots."""
    inside, eigenvalues, roots = sorted(found[0]), *found[1:]
    outside = [c for c in range(len(slopes)) if c not in inside]
    shares = _projections([[slopes[c][x] for x in inside] for c in inside], eigenvalues)
    return LinearPart(
        tuple(inside),
        tuple(outside),
        tuple(eigenvalues),
        shares,
        tuple(sources[c] for c in inside),
        tuple(roots),
        *(_driven(formula, inside, outside, shares, fed) for fed in (False, True)),
    )


def _has_kink(node: Node) -> bool:
    """Whether it is another formula elsewhere."""
    return not node.fixed and (node.op in _KINKS or any(map(_has_kink, node.args)))


def _groups(slopes: Sequence[Sequence[Node]], linear: Sequence[int]) -> list[list[int]]:
    """States that depend on each other, each group after those that it depends on."""
    before = {c: {x for x in linear if slopes[c][x] is not ZERO} | {c} for c in linear}
    for _ in linear:
        before = {c: set().union(*(before[x] for x in of)) for c, of in before.items()}
    groups = {tuple(x for x in linear if x in before[c] and c in before[x]): len(before[c]) for c in linear}
    return [list(group) for group in sorted(groups, key=lambda group: groups[group])]


def _eigenvalues(
    slopes: Sequence[Sequence[Node]], group: Sequence[int]
) -> tuple[list[Node], list[Node]] | None:
    """Those of one or two states and, of two, what the root is taken of."""
    if len(group) == 1:
        return [slopes[group[0]][group[0]]], []
    if len(group) > 2:
        return None
    (a, b), (c, d) = ([slopes[x][y] for y in group] for x in group)
    half = mul(number(0.5), sub(a, d))
    root = add(mul(half, half), mul(b, c))
    # That of the faster decay is a sum, the other a quotient.
    fast = sub(mul(number(0.5), add(a, d)), symbols.unary("sqrt", root))
    return [fast, div(sub(mul(a, d), mul(b, c)), fast)], [root]


def _projections(matrix: Sequence[Sequence[Node]], eigenvalues: Sequence[Node]) -> dict[Entry, Node]:
    """``LinearPart.shares``."""
    size = range(len(matrix))
    found = dict[Entry, Node]()
    for j in size:
        product = [[ONE if c == d else ZERO for d in size] for c in size]
        for i in size:
            if i != j:
                factor = _without(matrix, eigenvalues[i], eigenvalues[j])
                product = [
                    [functools.reduce(add, (mul(row[x], factor[x][d]) for x in size)) for d in size]
                    for row in product
                ]
        found |= {(c, j, d): product[c][d] for c in size for d in size if product[c][d] is not ZERO}
    return found


def _without(matrix: Sequence[Sequence[Node]], other: Node, own: Node) -> list[list[Node]]:
    """(K - other) / (own - other)."""
    by = symbols.reciprocal(sub(own, other))

    def entry(c: int, d: int) -> Node:
        here = matrix[c][d]
        if c != d:
            return mul(by, here)
        return ZERO if here is other else ONE if here is own else mul(by, sub(here, other))

    size = range(len(matrix))
    return [[entry(c, d) for d in size] for c in size]


def _driven(
    formula: Formula, inside: Sequence[int], outside: Sequence[int], shares: Mapping[Entry, Node], fed: bool
) -> Formula:
    """Of the others, which see those states of the part that they depend on."""
    rates = [formula.rates[c] for c in outside]
    seen = dict[Node, list[Mode]]()
    for c, place in enumerate(inside):
        amount = formula.amounts[place]
        if any(reads(rate, amount) for rate in rates):
            seen[amount] = [
                Mode(
                    given(f"p.{weight(c, j)}", True),
                    mul(given(f"p.{eigenvalue(j)}", True), WIDTH),
                    given(f"p.{rise(c, j)}", True) if fed else None,
                )
                for j in dict.fromkeys(j for row, j, _ in shares if row == c)
            ]
    return formula_from(rates, tuple(formula.amounts[c] for c in outside), seen)
