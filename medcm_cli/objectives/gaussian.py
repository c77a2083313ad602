"""A Gaussian q, of a subject's random effects or of a fit's population parameters."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.numerics.normal import LOG_2PI, normal_log_density
from medcm_cli.numerics.triangular import (
    Lower,
    covariance,
    dense,
    diagonal,
    log_det,
    lower_from_raw,
    multiply_lower,
    solve_lower,
    total,
)

RAW_SD = -1.0  # softplus of it is q's initial sd (docs/methods.md, "Objectives")


class Gaussian(NamedTuple):
    """N(mean, L L'), ``mean`` of K tensors and ``lower`` = L; see ``families.Posterior``.

    ``there`` (K, 1, N, B): 1 of a random effect that a subject has, 0 of one that it lacks, which comes after
    those that it has, and of which there is no density; None: all have all.
    """

    mean: list[Tensor]
    lower: Lower
    there: Tensor | None = None

    @classmethod
    def from_raw(
        cls,
        mean: Tensor,
        sd: Tensor,
        correlation: Tensor | None,
        sizes: Sequence[float] | None = None,
        there: Tensor | None = None,
    ) -> "Gaussian":
        """From values with K, or its pairs, as first dimension; uncorrelated where there are none.

        :param sizes: what each of the K is counted in there, 1 by default.
        """
        scale: Sequence[Tensor] = functional.softplus(sd).unbind(0)
        centre: Sequence[Tensor] = mean.unbind(0)
        if sizes is not None:
            scale, centre = ([x * size for x, size in zip(xs, sizes, strict=True)] for xs in (scale, centre))
        lower = diagonal(scale) if correlation is None else lower_from_raw(scale, correlation.unbind(0))
        return cls(list(centre), lower, there)

    def points(self, eps: Sequence[Tensor]) -> list[Tensor]:
        """mu + L eps."""
        return [m + shift for m, shift in zip(self.mean, multiply_lower(self.lower, eps), strict=True)]

    def draw(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """See ``Posterior``."""
        return self.points(noise)

    @property
    def numbers(self) -> int:
        """See ``Posterior``."""
        return len(self.mean)

    def weights(self, draws: int) -> None:
        """Equal."""
        del draws

    def deviation(self, eta: Sequence[Tensor]) -> list[Tensor]:
        """eta - mu."""
        return [effect - m for effect, m in zip(eta, self.mean, strict=True)]

    def log_density(self, eta: Sequence[Tensor]) -> Tensor:
        """See ``Posterior``."""
        if self.there is None:
            return normal_log_density(self.lower, self.deviation(eta))
        return self._of_those_there(solve_lower(self.lower, self.deviation(eta)))

    def _of_those_there(self, white: Sequence[Tensor]) -> Tensor:
        """log q of the random effects that a subject has, the first of all, from L^-1 (eta - mu)."""
        assert self.there is not None
        terms = zip(white, self.lower, self.there, strict=True)
        return total([there * (-0.5 * (w * w + LOG_2PI) - torch.log(row[-1])) for w, row, there in terms])

    def log_density_at(self, eps: Sequence[Tensor], eta: Sequence[Tensor]) -> Tensor:
        """See ``Posterior``: L^-1 (eta - mu) is eps whatever the parameters, so that only the determinant has
        a gradient."""
        del eta
        if self.there is not None:
            return self._of_those_there(eps)
        return -0.5 * (total([e * e for e in eps]) + log_det(self.lower) + len(eps) * LOG_2PI)

    def entropy(self) -> Tensor:
        """-E log q, without a dimension for draws."""
        if self.there is not None:
            return -self._of_those_there([torch.ones_like(m) for m in self.mean])[0]
        return 0.5 * log_det(self.lower) + 0.5 * len(self.lower) * (1 + LOG_2PI)

    def detach(self) -> "Gaussian":
        """See ``Posterior``."""
        lower = [[entry.detach() for entry in row] for row in self.lower]
        return Gaussian([m.detach() for m in self.mean], lower, self.there)

    def moments(self) -> tuple[Tensor, Tensor]:
        """See ``Posterior``."""
        return torch.stack(self.mean), dense(covariance(self.lower))
