"""The linear part of a system along an interval, exactly: amounts at its end, what the rest of the system
sees of them (``medcm_cli.pk.linear_part``), and how parameters that move change both."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk.dosing import Values
from medcm_cli.pk.linear_part import Entry, LinearPart, eigenvalue, rise, share, source, weight
from medcm_cli.pk.moving import Tangents
from medcm_cli.pk.symbols import number_of

_Modes = Mapping[tuple[int, int], Tensor]
"""Of a state and a mode."""


class Carried(NamedTuple):
    """Amounts (m, S, N, B), or (m, 1 + K, S, N, B), at the ``end`` of an interval; weights and rises by their
    names, ``values``, and their derivatives, ``moved``, by each of K things."""

    end: Tensor
    values: dict[str, Tensor]
    moved: list[dict[str, Tensor]]


class _Along(NamedTuple):
    """``eigenvalues``, 1/h; over the ``width``, what each mode ``decays`` to, and the same less 1."""

    eigenvalues: list[Tensor]
    width: Tensor
    decays: list[Tensor]
    less: list[Tensor]


def carried(
    part: LinearPart,
    z: Values,
    amounts: Tensor,
    width: Tensor,
    inflow: Tensor | None,
    moved: Sequence[Tangents],
) -> Carried:
    """Along an interval.

    :param z: with what is named of the part. :param amounts: (m, S, N, B), or with K derivatives after them.
    :param width: h. :param inflow: (m, S, N, B), amount/h. :param moved: how K things change what is named,
        the width and the inflow.
    """
    x, *turns = amounts.unbind(1) if moved else [amounts]
    rates = [z[eigenvalue(j)] for j in range(len(part.eigenvalues))]
    lengths = [rate * width for rate in rates]
    fed = inflow is not None or part.forms
    less = [torch.expm1(length) for length in lengths] if fed else []
    along = _Along(rates, width, [torch.exp(length) for length in lengths], less)
    shares = {
        entry: z[share(entry)] if (value := number_of(node)) is None else value
        for entry, node in part.shares.items()
    }
    weights, formed, rises = _spread(shares, x), None, dict[tuple[int, int], Tensor]()
    if fed:
        formed = _formed(part, z, inflow, x)
        rises = {(c, j): of / rates[j] for (c, j), of in _spread(shares, formed).items()}
    ends, named = [_at_end(weights, rises, along)], list[dict[str, Tensor]]()
    for turn, by in zip(turns, moved, strict=True):
        moved_shares = {entry: by[share(entry)] for entry in shares if share(entry) in by}
        own = _sum(_spread(shares, turn), _spread(moved_shares, x))
        own_rises = dict[tuple[int, int], Tensor]()
        if formed is not None:
            own_rises = _spread(moved_shares, formed)
            more = _formed_by(part, by, inflow, x)
            own_rises = own_rises if more is None else _sum(own_rises, _spread(shares, more))
            slower = {(c, j): -of * by[eigenvalue(j)] for (c, j), of in rises.items() if eigenvalue(j) in by}
            own_rises = {(c, j): of / rates[j] for (c, j), of in _sum(own_rises, slower).items()}
        longer = {j: of for j in range(len(rates)) if (of := _longer(along, by, j)) is not None}
        both = _sum(weights, rises)
        further = {(c, j): of * longer[j] for (c, j), of in both.items() if j in longer}
        ends.append(_at_end(_sum(own, further), own_rises, along))
        named.append(_named(own, own_rises))
    end = torch.stack(ends, 1) if moved else ends[0]
    return Carried(end, _named(weights, rises), named)


def _spread(shares: Mapping[Entry, Tensor | float], x: Tensor) -> dict[tuple[int, int], Tensor]:
    """The products P_j x."""
    found = dict[tuple[int, int], Tensor]()
    for (c, j, d), by in shares.items():
        more = x[d] if isinstance(by, float) and by == 1 else by * x[d]
        found[c, j] = found[c, j] + more if (c, j) in found else more
    return found


def _sum(one: _Modes, other: _Modes) -> dict[tuple[int, int], Tensor]:
    both = {place: one[place] + of for place, of in other.items() if place in one}
    return {**one, **other, **both}


def _at_end(weights: _Modes, rises: _Modes, along: _Along) -> Tensor:
    """Amounts (m, S, N, B)."""
    each: list[list[Tensor]] = [[] for _ in along.eigenvalues]
    for (c, j), of in weights.items():
        each[c].append(of * along.decays[j])
    for (c, j), of in rises.items():
        each[c].append(of * along.less[j])
    return torch.stack(torch.broadcast_tensors(*(functools.reduce(torch.add, of) for of in each)))


def _longer(along: _Along, by: Tangents, j: int) -> Tensor | None:
    """How the product of an eigenvalue and the width changes."""
    own = [by[eigenvalue(j)] * along.width] if eigenvalue(j) in by else []
    own += [along.eigenvalues[j] * by["width"]] if "width" in by else []
    return functools.reduce(torch.add, own) if own else None


def _formed(part: LinearPart, z: Values, inflow: Tensor | None, like: Tensor) -> Tensor:
    """What runs into each state and what is formed there, (m, S, N, B)."""
    into = torch.zeros_like(like) if inflow is None else inflow
    if not part.forms:
        return into
    formed = [
        z[source(c)] if (value := number_of(node)) is None else torch.full_like(like[0], value)
        for c, node in enumerate(part.sources)
    ]
    return into + torch.stack(torch.broadcast_tensors(*formed))


def _formed_by(part: LinearPart, by: Tangents, inflow: Tensor | None, like: Tensor) -> Tensor | None:
    """How that changes, None where it does not."""
    into = by.get("inflow") if inflow is not None else None
    names = [source(c) for c in range(len(part.sources))]
    if not any(name in by for name in names):
        return into
    none = torch.zeros_like(like[0])
    more = torch.stack(torch.broadcast_tensors(*(by.get(name, none) for name in names)))
    return more if into is None else into + more


def _named(weights: _Modes, rises: _Modes) -> dict[str, Tensor]:
    return {
        **{weight(*place): of for place, of in weights.items()},
        **{rise(*place): of for place, of in rises.items()},
    }
