"""In which numbers Newton's method takes its steps: of a covariance of random effects in the entries of its
Cholesky factor.

The likelihood is often highest where that covariance is singular, or a variance is 0. Logarithms and
correlations on a scale without bounds have that place at infinity, towards which the likelihood flattens out
and each step leads a little way. An entry on the diagonal of the factor passes through 0 there, and the
likelihood is a function of its square: a quadratic.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.model import Model
from medcm_cli.model.rows import raws_of
from medcm_cli.numerics.triangular import total

LEAST = 1e-5
"""Of an entry on the diagonal, in the sds where a search begins: a prior of no width is none."""


class _Group(NamedTuple):
    """Rows among the P: ``sds`` (K,) and ``raws`` (M,) of the correlations of ``pairs`` (i, j), i > j."""

    sds: Tensor
    raws: Tensor
    pairs: Sequence[tuple[int, int]]


class Coordinates:
    """Between what is trained, (P, B), and y (P, B) in which steps are taken: of a covariance the entries of
    its factor in parts of the sds where it begins, in the rows of the sds those on the diagonal and in those
    of the correlations the others. What has bounds, and covariances that are known in part, are what they
    are."""

    def __init__(self, model: Model, places: Mapping[str, int], begin: Tensor, log: bool) -> None:
        """
        :param places: name of trained values -> the first of their rows. :param begin: (P, B), trained, where
            a search begins. :param log: whether sds are trained as logarithms, else as softplus^-1.
        """
        self._log = log
        self._groups = [] if not places else list(_groups(model, places))
        self._unit = [self._sds(begin[group.sds]) for group in self._groups]
        self.begin = begin.clone()
        for group in self._groups:
            left = [torch.ones_like(begin[0]) for _ in group.sds]
            for (i, _), row in zip(group.pairs, group.raws.tolist(), strict=True):
                self.begin[row] = torch.tanh(begin[row]) * left[i]
                left[i] = left[i] / torch.cosh(begin[row])
            self.begin[group.sds] = torch.stack(left)

    def trained(self, y: Tensor, fits: Tensor) -> Tensor:
        """What is trained at y (P, n) of some fits, by their numbers (n,); gradients flow through it."""
        x = y
        for group, unit in zip(self._groups, self._unit, strict=True):
            entries = [{i: (d * d + LEAST**2).sqrt()} for i, d in enumerate(y[group.sds])]
            for (i, j), entry in zip(group.pairs, y[group.raws], strict=True):
                entries[i][j] = entry
            squares = [total([entry * entry for entry in row.values()]) for row in entries]
            sds = torch.stack(squares).sqrt() * unit[:, fits]
            x = x.index_copy(0, group.sds, torch.log(sds) if self._log else raws_of(sds))
            if group.pairs:
                # tanh^-1 of a partial correlation, without the cancellation of one near 1.
                raws = [
                    torch.asinh(row[j] / total([e * e for place, e in row.items() if place > j]).sqrt())
                    for i, j in group.pairs
                    for row in [entries[i]]
                ]
                x = x.index_copy(0, group.raws, torch.stack(raws))
        return x

    def _sds(self, trained: Tensor) -> Tensor:
        return trained.exp() if self._log else functional.softplus(trained)


def _groups(model: Model, places: Mapping[str, int]) -> list[_Group]:
    bounded = {row.name for row in model.rows() if row.bounded}
    found = []
    for group in model.groups:
        names = [group.of, *([group.raw_correlation] if group.pairs else [])]
        whole = len(group.free) == len(group.names) and group.free_pairs == group.pairs
        if not whole or any(name in bounded or name not in places for name in names):
            continue
        rows = [
            places[name] + torch.arange(count, device="cpu")
            for name, count in ((group.of, len(group.names)), (names[-1], len(group.pairs)))
        ]
        found.append(_Group(rows[0], rows[1], group.pairs))
    return found
