"""A Gaussian q of random effects between subjects and between occasions, whose cost grows with the number of
occasions and not with its square."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.model.random_effects import raw_correlation_init
from medcm_cli.numerics.normal import LOG_2PI
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import (
    Lower,
    dense,
    lower_from_raw,
    multiply_lower,
    solve_lower,
    total,
)


class ByOccasion(NamedTuple):
    """q(eta) prod_o q(kappa_o | eta): a full covariance of eta, and of the kappas of each occasion one given
    eta, on which their mean depends linearly. Given eta the occasions are independent, as they are in the
    posterior of a linear model where nothing of an occasion is left in the next.

    ``mean`` and ``lower`` of K random effects, entries (N, B), and then of the L of an occasion, (O, 1, N,
    B), whose rows have the same form on each. ``there`` (O, 1, N, B): 1 of an occasion that a subject
    has, 0 of one that it lacks, of which there is no density. See ``families.Posterior``.
    """

    mean: list[Tensor]
    lower: Lower
    first: int
    there: Tensor | None = None

    @classmethod
    def of(
        cls, values: Mapping[str, Tensor], sizes: Sequence[float] | None, there: Tensor | None
    ) -> "ByOccasion":
        """From trained values (``init``).

        :param sizes: what each random effect is counted in there. :param there: (R, 1, N, B), of each.
        """
        mean, sd, cross = values["q.mean"], functional.softplus(values["q.sd"]), values["q.cross"]
        if sizes is not None:
            size = mean.new_tensor(sizes).view(-1, 1, 1)
            mean, sd = mean * size, sd * size
        pairs = len(values.get("q.correlation", ()))
        first = (1 + math.isqrt(1 + 8 * pairs)) // 2

        def by_effect(of: Tensor) -> list[Tensor]:
            own = of[first:].unflatten(0, (len(cross), -1)).transpose(0, 1)[:, :, None]
            return [*of[:first].unbind(0), *own.unbind(0)]

        raw = [*values["q.correlation"].unbind(0)] if pairs else []
        raw += cross.transpose(0, 1)[:, :, None].unbind(0)
        own = None if there is None else there[first :: (len(mean) - first) // len(cross)]
        return cls(by_effect(mean), lower_from_raw(by_effect(sd), raw), first, own)

    def _by_effect(self, values: Sequence[Tensor]) -> list[Tensor]:
        """R tensors (S, N, B) as K of these and L (O, S, N, B)."""
        step = len(self.mean) - self.first
        own = [torch.stack(list(values[self.first + place :: step])) for place in range(step)]
        return [*values[: self.first], *own]

    def _by_occasion(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The opposite."""
        own = torch.stack(list(values[self.first :]), 1)  # (O, L, S, N, B)
        return [*values[: self.first], *own.flatten(0, 1).unbind(0)]

    def points(self, eps: Sequence[Tensor]) -> list[Tensor]:
        """See ``Posterior``."""
        shifts = multiply_lower(self.lower, self._by_effect(eps))
        return self._by_occasion([m + shift for m, shift in zip(self.mean, shifts, strict=True)])

    def draw(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """See ``Posterior``."""
        return self.points(noise)

    @property
    def numbers(self) -> int:
        """See ``Posterior``."""
        return self.first + (len(self.mean) - self.first) * len(self.mean[-1])

    def weights(self, draws: int) -> None:
        """Equal."""
        del draws

    def _density(self, white: Sequence[Tensor]) -> Tensor:
        terms = [
            -0.5 * (w * w + LOG_2PI) - torch.log(row[-1]) for w, row in zip(white, self.lower, strict=True)
        ]
        own = total(terms[self.first :])
        return total(terms[: self.first]) + (own if self.there is None else own * self.there).sum(0)

    def log_density(self, eta: Sequence[Tensor]) -> Tensor:
        """See ``Posterior``."""
        deviation = [x - m for x, m in zip(self._by_effect(eta), self.mean, strict=True)]
        return self._density(solve_lower(self.lower, deviation))

    def log_density_at(self, eps: Sequence[Tensor], eta: Sequence[Tensor]) -> Tensor:
        """See ``Posterior``."""
        del eta
        return self._density(self._by_effect(eps))

    def entropy(self) -> Tensor:
        """-E log q, without a dimension for draws."""
        one = torch.ones_like(self.mean[0])[None]
        return -self._density([one] * len(self.mean))[0]

    def detach(self) -> "ByOccasion":
        """See ``Posterior``."""
        lower = [[entry.detach() for entry in row] for row in self.lower]
        return ByOccasion([m.detach() for m in self.mean], lower, self.first, self.there)

    def moments(self) -> tuple[Tensor, Tensor]:
        """See ``Posterior``: kappas of two occasions are correlated through eta."""
        first, (occasions, _, n, b) = self.first, self.mean[-1].shape
        mean = torch.cat(self._by_occasion([*(m[None] for m in self.mean[:first]), *self.mean[first:]]))
        whole = dense([[entry.expand(occasions, 1, n, b) for entry in row] for row in self.lower])[:, :, :, 0]
        load = whole[first:, :first].movedim(2, 0)  # (O, L, K, N, B): on the numbers that eta depends on
        rows = torch.cat([whole[:first, :first, 0], load.flatten(0, 1)])
        spread = torch.einsum("iknb,jknb->ijnb", rows, rows)
        own = torch.einsum("iaonb,jaonb->ijnbo", whole[first:, first:], whole[first:, first:])
        size = occasions, len(own)
        blocks = spread[first:, first:].unflatten(0, size).unflatten(2, size)  # (O, L, O, L, N, B)
        blocks.diagonal(dim1=0, dim2=2).add_(own)
        return mean, spread


def init(
    streams: Sequence[Stream], sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Raw correlations ~ N(0, 0.1) of q of K random effects between N subjects and of L on each of O
    occasions, ``sizes`` = (K, O, L, N): ``q.correlation`` (K (K - 1) / 2, N, B) of the former, and
    ``q.cross`` (O, K L + L (L - 1) / 2, N, B) of the latter with them and with one another, row by row."""
    k, occasions, own, n = sizes
    values = {}
    if k > 1:
        drawn = raw_correlation_init(streams, "q.correlation", (n, k * (k - 1) // 2), dtype)
        values["q.correlation"] = drawn.transpose(0, 1)
    shape = n, occasions, k * own + own * (own - 1) // 2
    values["q.cross"] = raw_correlation_init(streams, "q.cross", shape, dtype).permute(1, 2, 0, 3)
    return values
