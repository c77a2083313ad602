"""Priors of the population parameters (docs/methods.md, "Objectives"), on the unconstrained scale on which
they are sampled."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import number
from medcm_cli.errors import InputError
from medcm_cli.model.model import Model
from medcm_cli.model.penalty import Priors
from medcm_cli.model.random_effects import RandomEffects
from medcm_cli.model.rows import raws_of
from medcm_cli.numerics.normal import LOG_2PI
from medcm_cli.numerics.triangular import covariance, lower_from_raw, total

SIGMA = -3.0, 1.0  # of log sigma, of a usual level (``ErrorModel.size``): mean and sd
OMEGA = -1.5, 1.0  # of log omega, as a part of what it is counted in (``RandomEffects.sizes``); of Pi too
POPULATION = ("sigma", "omega", "correlation", "pi", "pi_correlation")
"""What unconstrained values a prior is of, in the order of its coordinates."""


@dataclass(frozen=True)
class PopulationPrior:
    """sigma ~ LogNormal(-3, 1), omega ~ LogNormal(-1.5, 1), C ~ LKJ(``lkj``) of each block, over those of a
    model that are not fixed; of Pi, between occasions, as of Omega.

    Its coordinates, (P, ...), are log sigma of each free component, log omega of each random effect, and the
    raw correlations, whose tanh are the canonical partial correlations (``variability.lower_from_raw``); then
    the same of Pi.

    Those that are ``given`` take the place of these, of sigma_* and omega_*, and of the correlations.

    :raises InputError: a shape of LKJ's that is not above 0, everything is fixed, or one is given of all of
        Omega.
    """

    model: Model
    lkj: float = 1.0
    given: Priors | None = None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        number("lkj", self.lkj, above=0)
        if self.given is not None and self.given.wishart is not None:
            raise InputError("priors.omega.inverse_wishart is of fits; expected omega_* and rho here")
        if self.given is not None and self.given.lkj is not None:
            object.__setattr__(self, "lkj", self.given.lkj)
        for group in self.model.groups:
            free = len(group.free) + len(group.free_pairs)
            if free not in (0, len(group.names) + len(group.pairs)):
                raise InputError(
                    f"initial: some of {group.of.capitalize()} is known; it has a prior as a whole, or is "
                    f"fixed.{group.of}"
                )
        size = len(self.location)
        if not size:
            raise InputError("sigma and Omega are fixed: they have no posterior")
        object.__setattr__(self, "size", size)

    @property
    def _free(self) -> list[str]:
        return self.model.error.free

    @property
    def _groups(self) -> list[RandomEffects]:
        """The random effects whose covariance is estimated."""
        return [group for group in self.model.groups if group.free]

    @property
    def location(self) -> list[float]:
        """The prior median of each coordinate."""
        found = [SIGMA[0]] * len(self._free)
        for group in self._groups:
            found += [*[OMEGA[0]] * len(group.names), *[0.0] * len(group.pairs)]
        return found

    def _parts(self, x: Tensor) -> tuple[Tensor, list[tuple[RandomEffects, Tensor, Tensor]]]:
        """log sigma; and of each covariance, log sds and raw correlations."""
        start, found = len(self._free), []
        for group in self._groups:
            middle = start + len(group.names)
            end = middle + len(group.pairs)
            found.append((group, x[start:middle], x[middle:end]))
            start = end
        return x[: len(self._free)], found

    def log_density(self, x: Tensor) -> Tensor:
        """Log prior density of coordinates (P, ...), Jacobians included: (...)."""
        log_sigma, parts = self._parts(x)
        terms = [_normal(log_sigma[:0], *SIGMA).sum(0)]
        for name, part in zip(self._free, log_sigma, strict=True):
            terms.append(self._of(f"sigma_{name}", part, self.model.error.counted_in(name, {}), SIGMA))
        for group, log_sd, raw in parts:
            sizes = group.sizes or [1.0] * len(log_sd)
            for name, part, size in zip(group.names, log_sd, sizes, strict=True):
                terms.append(self._of(f"{group.of}_{name}", part, size, OMEGA))
            terms += [
                lkj_partial(value, column, size, self.lkj)
                for value, (column, size) in zip(raw, _columns(group), strict=True)
            ]
        return total(terms)

    def _of(self, name: str, log_part: Tensor, unit: float, usual: tuple[float, float]) -> Tensor:
        """Log density of the logarithm of a part of what is reported, which is ``unit`` times as large."""
        given = None if self.given is None else self.given.numbers.get(name)
        if given is None:
            return _normal(log_part, *usual)
        log_value = log_part + math.log(unit)
        density = given.log_density(log_value.exp())
        return density if given.kind == "log_normal" else density + log_value

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """The model's unconstrained values at coordinates (P, B)."""
        log_sigma, parts = self._parts(x)
        named = {"sigma": raws_of(log_sigma.exp())}
        for group, log_sd, raw in parts:
            named |= {group.of: raws_of(log_sd.exp()), group.raw_correlation: raw}
        return {name: value for name, value in named.items() if len(value)}

    def report(self, x: Tensor) -> dict[str, Tensor]:
        """sigma_*, omega_*, rho_* and pi_* as reported, (...) each, from coordinates (P, ...)."""
        log_sigma, parts = self._parts(x)
        of_sigma = {name: v.exp() for name, v in zip(self._free, log_sigma, strict=True)}
        rows = {f"sigma_{name}": sigma for name, sigma in self.model.error.of_trained(of_sigma).items()}
        for group, log_sd, raw in parts:
            sizes = group.sizes or [1.0] * len(log_sd)
            sds = zip(group.sds, log_sd, sizes, strict=True)
            rows |= {name: v.exp() * size for name, v, size in sds}
            if len(raw):
                one = torch.ones_like(raw[0])
                correlation = covariance(lower_from_raw([one] * len(log_sd), raw.unbind(0), group.pairs))
                rows |= {
                    name: correlation[i][j] for name, (i, j) in zip(group.rhos, group.pairs, strict=True)
                }
        return rows


def _columns(group: RandomEffects) -> list[tuple[int, int]]:
    """Of each estimated correlation the column in its block, and the size of that."""
    block_of = {place: block for block in group.blocks for place in block}
    return [(block_of[j].index(j), len(block_of[j])) for _, j in group.pairs]


def lkj_partial(raw: Tensor, column: int, size: int, shape: float) -> Tensor:
    """Log density of atanh of a canonical partial correlation in a column, from 0, of the ``size`` x ``size``
    Cholesky factor when C ~ LKJ(``shape``); elementwise.

    The partial correlation is Beta(b, b) on (-1, 1) with b = shape + (size - 2 - column) / 2 (Lewandowski,
    Kurowicka and Joe 2009, section 2.4), and tanh has the derivative 1 - tanh^2.
    """
    b = shape + (size - 2 - column) / 2
    # log(1 - tanh^2), by a form that does not cancel where tanh is 1 to rounding.
    log_left = 2 * (math.log(2) - raw.abs() - functional.softplus(-2 * raw.abs()))
    log_beta = 2 * math.lgamma(b) - math.lgamma(2 * b)
    return b * log_left - (2 * b - 1) * math.log(2) - log_beta


def _normal(x: Tensor, mean: float, sd: float) -> Tensor:
    return -0.5 * (((x - mean) / sd) ** 2 + LOG_2PI) - math.log(sd)
