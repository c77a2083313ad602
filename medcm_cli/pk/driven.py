"""What is seen of amounts that are known, at the stages of an interval's steps, and what gradients come from
that.

With u = sum_j w_j exp(m_j s) + r_j (exp(m_j s) - 1) at the place s all derivatives, also second ones, are
made of sums over stages of a gradient times s^n exp(m_j s), n = 0, 1, 2, or times exp(m_j s) - 1.
"""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medcm_cli.pk.formula import Driver, Term

_ORDERS = 3  # of s, from 0


class Driven:
    """At the stages that ``at`` chooses.

    :param tensors: those of ``Where``. :param moves: as of ``Call``.
    """

    def __init__(self, driver: Driver, tensors: Sequence[Tensor], moves: Sequence[tuple[int, int]]) -> None:
        self.driver, self.moves = driver, moves
        self.tensors = [tensor.detach() for tensor in tensors]
        self.both = {
            term: self.tensors[term.weight] + (0 if term.rise is None else self.tensors[term.rise])
            for term in driver.terms
        }
        self.sums: _Sums | None = None
        self.turned: _Sums | None = None

    def at(self, place: Tensor) -> None:
        """At the places (I, 1, 1, 1) of stages."""
        lengths = {p: self.tensors[p] * place for p in self.driver.lengths}
        self.place = place
        self.decays = {p: torch.exp(length) for p, length in lengths.items()}
        fed = {term.length for term in self.driver.terms if term.rise is not None}
        self.rises = {p: torch.expm1(lengths[p]) for p in fed}

    def seen(self) -> list[Tensor]:
        """(I, S, N, B) each."""
        found: list[Tensor | None] = [None] * self.driver.count
        for term in self.driver.terms:
            found[term.of] = _plus(found[term.of], self.decays[term.length], self.tensors[term.weight])
            if term.rise is not None:
                found[term.of] = _plus(found[term.of], self.rises[term.length], self.tensors[term.rise])
        return [of for of in found if of is not None]

    def tangents(self, moved: Sequence[Tensor], count: int) -> Tensor:
        """Of what is seen, (U, K, I, S, N, B), where tensors are ``moved``."""
        by = self._moved(moved)
        like = self.decays[self.driver.lengths[0]]
        found = like.new_zeros(self.driver.count, count, *like.shape)
        for term in self.driver.terms:
            for k in range(count):
                turn, total = found[term.of, k], by.get((k, term.weight))
                if (k, term.length) in by:
                    longer = self.place * (self.both[term] * by[k, term.length])
                    total = longer if total is None else longer.add_(total)
                if total is not None:
                    turn.addcmul_(total, self.decays[term.length])
                if term.rise is not None and (k, term.rise) in by:
                    turn.addcmul_(by[k, term.rise], self.rises[term.length])
        return found

    def add(self, bars: Tensor) -> None:
        """From gradients by what is seen, (I, U, S, N, B)."""
        self.sums = self._summed(bars, self.sums, 2)

    def add_turned(self, turned: Tensor) -> None:
        """From gradients by ``tangents``, (I, U, K, S, N, B)."""
        self.turned = self._summed(turned, self.turned, _ORDERS)

    def gradients(self, moved: Sequence[Tensor]) -> dict[int, Tensor]:
        """By the tensors that it depends on."""
        found = dict[int, Tensor]()
        for term in self.driver.terms:
            each = [] if self.sums is None else self._first(term, self.sums)
            each += [] if self.turned is None else self._second(term, self.turned, self._moved(moved))
            for place, grad in each:
                found[place] = found[place] + grad if place in found else grad
        return found

    def _first(self, term: Term, sums: "_Sums") -> list[tuple[int, Tensor]]:
        """From gradients by what is seen."""
        found = [(term.weight, sums.decayed(term, 0)), (term.length, self.both[term] * sums.decayed(term, 1))]
        return found if term.rise is None else [*found, (term.rise, sums.risen(term))]

    def _second(
        self, term: Term, turned: "_Sums", by: Mapping[tuple[int, int], Tensor]
    ) -> list[tuple[int, Tensor]]:
        """From those by tangents."""
        found, ends = list[tuple[int, Tensor]](), [p for p in (term.weight, term.rise) if p is not None]
        for k, (first, second) in enumerate(
            zip(turned.decayed(term, 1), turned.decayed(term, 2), strict=True)
        ):
            longer = by.get((k, term.length))
            if longer is not None:
                found += [(p, longer * first) for p in ends]
                found.append((term.length, self.both[term] * longer * second))
            found += [(term.length, by[k, p] * first) for p in ends if (k, p) in by]
        return found

    def by_moved(self, k: int, p: int) -> Tensor:
        """By how a tensor is moved along a tangent."""
        assert self.turned is not None
        found = list[Tensor]()
        for term in self.driver.terms:
            if p == term.weight:
                found.append(self.turned.decayed(term, 0)[k])
            elif p == term.rise:
                found.append(self.turned.risen(term)[k])
            elif p == term.length:
                found.append(self.both[term] * self.turned.decayed(term, 1)[k])
        return functools.reduce(torch.add, found)

    def _moved(self, moved: Sequence[Tensor]) -> dict[tuple[int, int], Tensor]:
        return {place: by.detach() for place, by in zip(self.moves, moved, strict=True)}

    def _summed(self, bars: Tensor, before: "_Sums | None", orders: int) -> "_Sums":
        place = self.place.flatten()
        powers = torch.stack([place**order for order in range(orders)])
        more = [1] * (bars.ndim - 4)

        def staged(values: Tensor) -> Tensor:
            return values.view(len(values), *more, *values.shape[1:])

        decayed = {
            p: torch.matmul(powers, (bars * staged(decay)).flatten(1)).view(orders, *bars.shape[1:])
            for p, decay in self.decays.items()
        }
        risen = {p: (bars * staged(of)).sum(0) for p, of in self.rises.items()}
        found = _Sums(decayed, risen)
        return found if before is None else before.plus(found)


class _Sums:
    """Over stages, of gradients (U, ...) times decays with powers of s, (n, U, ...), and times rises."""

    def __init__(self, of_decays: dict[int, Tensor], of_rises: dict[int, Tensor]) -> None:
        self.of_decays, self.of_rises = of_decays, of_rises

    def decayed(self, term: Term, order: int) -> Tensor:
        return self.of_decays[term.length][order, term.of]

    def risen(self, term: Term) -> Tensor:
        return self.of_rises[term.length][term.of]

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums(
            {p: of + other.of_decays[p] for p, of in self.of_decays.items()},
            {p: of + other.of_rises[p] for p, of in self.of_rises.items()},
        )


def _plus(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a * b if total is None else total.addcmul_(a, b)
