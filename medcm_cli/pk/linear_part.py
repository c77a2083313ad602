"""The part of a system that is linear and depends on nothing but itself: as modes that decay one by one.

With the eigenvalues l_j (1/h) of the rate matrix K of this part, all different, and P_j, the product over i
other than j of (K - l_i) / (l_j - l_i), amounts x become sum_j exp(l_j t) P_j x (Sylvester's formula), and
what is left of an inflow b is sum_j (exp(l_j t) - 1) / l_j P_j b. The rest of the system sees the part as a
function of the time.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk import symbols
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.formula import WIDTH, Formula, Mode, formula_from
from medcm_cli.pk.program import Program
from medcm_cli.pk.symbols import ONE, ZERO, Node, add, derivative, div, given, mul, number, number_of, reads, sub

MOST = 4  # states
_KINKS = {"where", "clamp", "lt", "le", "gt", "ge"}


def mode(j: int) -> str:
    """What an eigenvalue is called among parameters."""
    return f"mode {j}"


def share(c: int, j: int, d: int) -> str:
    """Likewise, what of the amount in state d is in mode j of state c."""
    return f"share {c} {j} {d}"


def weight(c: int, j: int) -> str:
    """What of the amount in state c decays as mode j."""
    return f"weight {c} {j}"


def rise(c: int, j: int) -> str:
    """Likewise of inflows, over the eigenvalue."""
    return f"rise {c} {j}"


@dataclass(frozen=True, eq=False)
class LinearPart:
    """``inside``: which states it has, by place, and ``outside`` the others. ``eigenvalues``, and of each
    mode ``shares`` (c, j, d), entries of P_j that are not 0; ``sources``, what is formed in each state;
    ``roots``: what has to be above 0, so that eigenvalues are real. All are of ``p.NAME``."""

    inside: tuple[int, ...]
    outside: tuple[int, ...]
    eigenvalues: tuple[Node, ...]
    shares: Mapping[tuple[int, int, int], Node]
    sources: tuple[Node, ...]
    roots: tuple[Node, ...]
    still: Formula
    fed: Formula

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """By their names what depends on parameters."""
        found = {mode(j): node for j, node in enumerate(self.eigenvalues)}
        found |= {share(*place): node for place, node in self.shares.items()}
        found |= {f"source {c}": node for c, node in enumerate(self.sources)}
        return {name: node for name, node in found.items() if number_of(node) is None}

    def modes(self, z: Values) -> dict[str, Tensor]:
        """At parameters; found in double precision, since differences of eigenvalues are taken."""
        return self._found(None, z)

    def turned(self, name: str, z: Values) -> dict[str, Tensor]:
        """Their derivatives by the logarithm of a parameter, of those that depend on it."""
        return self._found(name, z)

    def _found(self, name: str | None, z: Values) -> dict[str, Tensor]:
        names, program = _modes_program(self, name)
        inputs = {f"p.{name}": z[name].double() for name in z if f"p.{name}" in program.inputs}
        like = next(iter(z.values()))
        found = [of if isinstance(of, Tensor) else like.new_full(like.shape, of) for of in program(inputs)]
        return {name: of.to(like.dtype) for name, of in zip(names, found, strict=True)}

    def apart(self, modes: Values) -> bool:
        rates = [modes[mode(j)].detach() for j in range(len(self.eigenvalues))]
        for one, other in itertools.combinations(rates, 2):
            least = torch.finfo(one.dtype).eps ** (1 / 8)
            if bool(((one - other).abs() < least * torch.maximum(one.abs(), other.abs())).any()):
                return False
        return not any(bool((rate == 0).any()) for rate in rates)


@functools.lru_cache(maxsize=256)
def _modes_program(part: LinearPart, name: str | None) -> tuple[list[str], Program]:
    if name is None:
        return list(part.nodes), Program(list(part.nodes.values()))
    wrt = given(f"p.{name}", True)
    found = {own: mul(derivative(node, wrt), wrt) for own, node in part.nodes.items()}
    there = {own: node for own, node in found.items() if node is not ZERO}
    return list(there), Program(list(there.values()))


@functools.lru_cache(maxsize=64)
def linear_part(formula: Formula) -> LinearPart | None:
    """Of a system that has one and is more than that."""
    rows, amounts = formula.rates, formula.amounts
    slopes = [[derivative(row, amount) for amount in amounts] for row in rows]
    nothing = dict.fromkeys(amounts, ZERO)
    sources = [symbols.replaced(row, dict(nothing)) for row in rows]
    linear = {
        c for c, row in enumerate(rows)
        if sources[c].fixed and all(slope.fixed for slope in slopes[c]) and not _has_kink(row)
    }
    inside = list[int]()
    eigenvalues, roots = list[Node](), list[Node]()
    for group in _groups(slopes, linear):
        if any(slopes[c][x] is not ZERO and x not in group and x not in inside for c in group for x in range(len(rows))):
            continue
        found = _eigenvalues(slopes, group)
        if found is None or len(inside) + len(group) > MOST:
            continue
        own, root = found
        if any(of is ZERO or of in eigenvalues for of in own):
            continue
        inside += group
        eigenvalues += own
        roots += root
    if not inside or len(inside) == len(rows):
        return None
    inside.sort()
    matrix = [[slopes[c][x] for x in inside] for c in inside]
    shares = _projections(matrix, eigenvalues)
    outside = tuple(c for c in range(len(rows)) if c not in inside)
    of = [sources[c] for c in inside]
    still, fed = (
        _driven(formula, inside, outside, shares, fed) for fed in (False, True)
    )
    return LinearPart(tuple(inside), outside, tuple(eigenvalues), shares, tuple(of), tuple(roots), still, fed)


def _has_kink(node: Node) -> bool:
    return not node.fixed and (node.op in _KINKS or any(map(_has_kink, node.args)))


def _groups(slopes: Sequence[Sequence[Node]], linear: set[int]) -> list[list[int]]:
    """States that depend on each other, those first on which others depend."""
    below = {c: {c} for c in linear}
    for _ in linear:
        for c in linear:
            below[c] |= {y for x in list(below[c]) for y in linear if slopes[x][y] is not ZERO}
    found = list[list[int]]()
    for c in sorted(linear, key=lambda c: len(below[c])):
        group = sorted(x for x in below[c] if c in below[x])
        if group not in found:
            found.append(group)
    return found


def _eigenvalues(slopes: Sequence[Sequence[Node]], group: list[int]) -> tuple[list[Node], list[Node]] | None:
    if len(group) == 1:
        return [slopes[group[0]][group[0]]], []
    if len(group) > 2:
        return None
    (a, b), (c, d) = [[slopes[x][y] for y in group] for x in group]
    half = mul(number(0.5), sub(a, d))
    root = add(mul(half, half), mul(b, c))
    first = sub(mul(number(0.5), add(a, d)), symbols.unary("sqrt", root))
    return [first, div(sub(mul(a, d), mul(b, c)), first)], [root]


def _projections(matrix: list[list[Node]], eigenvalues: list[Node]) -> dict[tuple[int, int, int], Node]:
    """Entries of P_j that are not 0."""
    size = range(len(matrix))
    found = dict[tuple[int, int, int], Node]()
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


def _without(matrix: list[list[Node]], other: Node, own: Node) -> list[list[Node]]:
    """(K - other) / (own - other)."""
    size, by = range(len(matrix)), symbols.reciprocal(sub(own, other))
    return [
        [
            mul(by, matrix[c][d])
            if c != d
            else ZERO if matrix[c][c] is other
            else ONE if matrix[c][c] is own
            else mul(by, sub(matrix[c][c], other))
            for d in size
        ]
        for c in size
    ]


def _driven(
    formula: Formula,
    inside: Sequence[int],
    outside: Sequence[int],
    shares: Mapping[tuple[int, int, int], Node],
    fed: bool,
) -> Formula:
    """The others, which see what they read of the part."""
    rates = [formula.rates[c] for c in outside]
    seen = dict[Node, list[Mode]]()
    for c, place in enumerate(inside):
        amount = formula.amounts[place]
        if any(reads(row, amount) for row in rates):
            seen[amount] = [
                Mode(
                    given("p." + weight(c, j), True),
                    mul(given("p." + mode(j), True), WIDTH),
                    given("p." + rise(c, j), True) if fed else None,
                )
                for j in dict.fromkeys(j for own, j, _ in shares if own == c)
            ]
    return formula_from(rates, tuple(formula.amounts[c] for c in outside), seen)


class Carried(NamedTuple):
    """The part along an interval: ``values`` of weights and rises by their names, and how K directions move
    them; amounts (m, S, N, B), or (m, 1 + K, S, N, B), at its ``end``."""

    values: dict[str, Tensor]
    moved: list[dict[str, Tensor]]
    end: Tensor


def carried(
    part: LinearPart,
    z: Values,
    amounts: Tensor,
    width: Tensor,
    inflow: Tensor | None,
    moved: Sequence[Values],
) -> Carried:
    """:param z: modes. :param moved: derivatives of modes, of "width" and of "inflow"."""
    modes, size = range(len(part.eigenvalues)), range(len(part.inside))
    fed = inflow is not None or any(source is not ZERO for source in part.sources)
    x = list(amounts.unbind(0)) if not moved else list(amounts[:, 0].unbind(0))
    rates = [z[mode(j)] for j in modes]
    values = _times(part, z, x, weight)
    if fed:
        b = _formed(part, z, inflow, x)
        values |= {
            name: of / rates[j] for (name, j), of in _by_mode(part, _times(part, z, b, rise))
        }
    lengths = [rate * width for rate in rates]
    decays = [torch.exp(length) for length in lengths]
    gone = [torch.expm1(length) for length in lengths] if fed else []

    def at_end(of: Mapping[str, Tensor], c: int) -> list[Tensor]:
        total = [of[weight(c, j)] * decays[j] for j in modes if weight(c, j) in of]
        return total + [of[rise(c, j)] * gone[j] for j in modes if rise(c, j) in of]

    ends = [functools.reduce(torch.add, at_end(values, c)) for c in size]
    turns, ends_turned = list[dict[str, Tensor]](), list[Tensor]()
    for k, by in enumerate(moved):
        dx = list(amounts[:, 1 + k].unbind(0))
        own = _sum(_times(part, z, dx, weight), _turned(part, by, x, weight))
        if fed:
            db = _moved_formed(part, by, x)
            risen = _turned(part, by, b, rise)
            if db is not None:
                risen = _sum(risen, _times(part, z, db, rise))
            for name, j in [(rise(c, j), j) for c in size for j in modes if rise(c, j) in values]:
                total = risen.get(name)
                if mode(j) in by:
                    more = values[name] * by[mode(j)]
                    total = -more if total is None else total - more
                if total is not None:
                    own[name] = total / rates[j]
        stretched = dict[int, Tensor]()
        for j in modes:
            parts = [by[mode(j)] * width] if mode(j) in by else []
            parts += [rates[j] * by["width"]] if "width" in by else []
            if parts:
                stretched[j] = functools.reduce(torch.add, parts) * decays[j]
        turned = []
        for c in size:
            total = at_end(own, c)
            for j, more in stretched.items():
                if weight(c, j) in values:
                    both = values[weight(c, j)] + values[rise(c, j)] if fed else values[weight(c, j)]
                    total.append(both * more)
            turned.append(functools.reduce(torch.add, total).expand_as(ends[c]))
        turns.append(own)
        ends_turned.append(torch.stack(turned))
    end = torch.stack(ends)
    if moved:
        end = torch.stack([end, *ends_turned], 1)
    return Carried(values, turns, end)


def _of(part: LinearPart, z: Values, key: tuple[int, int, int]) -> Tensor | float:
    value = number_of(part.shares[key])
    return z[share(*key)] if value is None else value


def _times(part: LinearPart, z: Values, x: Sequence[Tensor], named) -> dict[str, Tensor]:
    found = dict[str, Tensor]()
    for c, j, d in part.shares:
        own = _of(part, z, (c, j, d))
        more = x[d] if isinstance(own, float) and own == 1 else own * x[d]
        name = named(c, j)
        found[name] = found[name] + more if name in found else more
    return found


def _turned(part: LinearPart, by: Values, x: Sequence[Tensor], named) -> dict[str, Tensor]:
    found = dict[str, Tensor]()
    for c, j, d in part.shares:
        if share(c, j, d) in by:
            more, name = by[share(c, j, d)] * x[d], named(c, j)
            found[name] = found[name] + more if name in found else more
    return found


def _by_mode(part: LinearPart, of: dict[str, Tensor]):
    modes = {rise(c, j): j for c, j, _ in part.shares}
    return [((name, modes[name]), value) for name, value in of.items()]


def _sum(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: a[name] + b[name] if name in a and name in b else a.get(name, b.get(name)) for name in {**a, **b}}


def _formed(part: LinearPart, z: Values, inflow: Tensor | None, like: Sequence[Tensor]) -> list[Tensor]:
    found = []
    for c, node in enumerate(part.sources):
        own = None if inflow is None else inflow[c]
        if node is not ZERO:
            value = number_of(node)
            source = z[f"source {c}"] if value is None else value
            own = source if own is None else own + source
        if own is None:
            own = torch.zeros_like(like[c])
        found.append(own if isinstance(own, Tensor) else torch.full_like(like[c], own))
    return found


def _moved_formed(part: LinearPart, by: Values, like: Sequence[Tensor]) -> list[Tensor] | None:
    names = [f"source {c}" for c in range(len(part.sources))]
    if "inflow" not in by and not any(name in by for name in names):
        return None
    return [
        (by["inflow"][c] if "inflow" in by else 0) + by.get(name, torch.zeros_like(like[c]))
        for c, name in enumerate(names)
    ]
