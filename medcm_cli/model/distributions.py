"""How individual parameters lie around typical ones: what a random effect does to its parameter."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from medcm_cli.checks import number, shown
from medcm_cli.errors import InputError
from medcm_cli.model.coefficients import Coefficient, coefficient

FLOOR = 1e-3  # of the typical value: the least of an additive parameter that has to be above 0
_REACH = 3.0  # a search goes to exp(3) = 20 times the typical value, and to a 20th of it, ...
_SDS, _FURTHEST = 5.0, 10.0  # ... or so many sds where that is further, but no further than this
_LOGITS = 8.0  # likewise on the logit scale
_FLAT = 1e-6  # a shape that is 0 to rounding


class Distribution(Protocol):
    """z from zeta and eta, elementwise. ``size`` is what eta is counted in where it is trained: Omega begins,
    and has its prior, as a part of it."""

    size: float = 1.0

    def individual(self, zeta: Tensor, eta: Tensor, shape: Tensor | float) -> Tensor:
        """z. :param shape: of the distributions that have one."""

    def centre(self, zeta: Tensor) -> Tensor | None:
        """g(zeta), where there is a g with g(z) = g(zeta) + eta; None where there is none."""
        del zeta
        return None

    def slope(self, zeta: Tensor, eta: Tensor, shape: Tensor | float) -> Tensor | None:
        """The derivative of log z in eta; None where that is 1."""
        del zeta, eta, shape
        return None

    def reach(self, shape: Tensor | float, sd: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """From where to where modes of eta are searched, whose standard deviation is ``sd``."""
        del shape
        far = (_SDS * sd).clamp(_REACH, _FURTHEST)
        return -far, far


class Exponential(Distribution):
    """z = zeta exp(eta): log-normal."""

    def individual(self, zeta: Tensor, eta: Tensor, shape: Tensor | float) -> Tensor:
        """See ``Distribution``."""
        del shape
        return zeta * torch.exp(eta)

    def centre(self, zeta: Tensor) -> Tensor:
        """See ``Distribution``."""
        return torch.log(zeta)


@dataclass(frozen=True)
class Additive(Distribution):
    """z = zeta + eta: normal, eta in the unit of the parameter. One that has to be ``above_zero``, such as a
    clearance, is at least ``FLOOR`` times zeta."""

    size: float = 1.0
    above_zero: bool = True

    def individual(self, zeta: Tensor, eta: Tensor, shape: Tensor | float) -> Tensor:
        """See ``Distribution``."""
        del shape
        z = zeta + eta
        return torch.maximum(z, FLOOR * zeta) if self.above_zero else z

    def centre(self, zeta: Tensor) -> Tensor:
        """See ``Distribution``; what happens at the floor is left out."""
        return zeta

    def slope(self, zeta: Tensor, eta: Tensor, shape: Tensor | float) -> Tensor:
        """See ``Distribution``."""
        z = self.individual(zeta, eta, shape)
        if self.above_zero:
            return torch.where(zeta + eta >= FLOOR * zeta, 1 / z, 0.0)
        least = torch.finfo(z.dtype).tiny ** 0.5
        return 1 / torch.where(z.abs() < least, least, z)

    def reach(self, shape: Tensor | float, sd: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Anywhere."""
        del shape, sd
        return -torch.inf, torch.inf


@dataclass(frozen=True)
class Logit(Distribution):
    """logit of (z - lower) / (upper - lower) is that of zeta plus eta, so that z lies between the bounds."""

    lower: float = 0.0
    upper: float = 1.0

    def individual(self, zeta: Tensor, eta: Tensor, shape: Tensor | float) -> Tensor:
        """See ``Distribution``. By odds, which have no logarithm of 0 where zeta is rounded to a bound."""
        del shape
        return self.lower + (self.upper - self.lower) * self._share(zeta, eta)

    def centre(self, zeta: Tensor) -> Tensor:
        """See ``Distribution``."""
        return self.logit(zeta)

    def slope(self, zeta: Tensor, eta: Tensor, shape: Tensor | float) -> Tensor:
        """See ``Distribution``."""
        del shape
        share = self._share(zeta, eta)
        if self.lower == 0:
            return 1 - share
        width = self.upper - self.lower
        return width * share * (1 - share) / (self.lower + width * share)

    def reach(self, shape: Tensor | float, sd: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """See ``Distribution``."""
        del shape, sd
        return -_LOGITS, _LOGITS

    def of_odds(self, odds: Tensor) -> Tensor:
        """The value between the bounds whose distance from the lower one is ``odds`` times that from the
        upper."""
        return self.lower + (self.upper - self.lower) * (odds / (1 + odds))

    def odds(self, value: float) -> float:
        """The opposite."""
        return (value - self.lower) / (self.upper - value)

    def logit(self, value: Tensor) -> Tensor:
        """The logarithm of the odds."""
        return torch.log(value - self.lower) - torch.log(self.upper - value)

    def _share(self, zeta: Tensor, eta: Tensor) -> Tensor:
        above = (zeta - self.lower) / (self.upper - self.lower)
        return above / (above + (1 - above) * torch.exp(-eta))


@dataclass(frozen=True)
class BoxCox(Distribution):
    """z = zeta exp((exp(eta)^shape - 1) / shape), which is log-normal in the limit of a shape of 0, and
    skewed to the right of that where it is above (Petersson, Hanze, Savic and Karlsson 2009, Pharm Res
    26:2174-2185)."""

    shape: Coefficient

    def individual(self, zeta: Tensor, eta: Tensor, shape: Tensor | float) -> Tensor:
        """See ``Distribution``."""
        x = shape * eta
        small = x.abs() < 1e-4  # where the quotient cancels, and has no value at 0
        ratio = torch.where(small, 1 + x / 2 + x * x / 6, torch.expm1(x) / torch.where(small, 1.0, x))
        return zeta * torch.exp(eta * ratio)

    def slope(self, zeta: Tensor, eta: Tensor, shape: Tensor | float) -> Tensor:
        """See ``Distribution``."""
        del zeta
        return torch.exp(shape * eta)

    def reach(self, shape: Tensor | float, sd: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """As far as z goes with an exponential distribution of little width, and no further than that in
        eta."""
        del sd
        if not isinstance(shape, Tensor):
            size = max(abs(shape), _FLAT)
            reach = math.log1p(_REACH * size) / size
            return -reach if shape < 0 else -_REACH, reach if shape > 0 else _REACH
        sizes = shape.abs().clamp(min=_FLAT)
        far = torch.log1p(_REACH * sizes) / sizes
        return torch.where(shape < 0, -far, -_REACH), torch.where(shape > 0, far, _REACH)


EXPONENTIAL = Exponential()
_KINDS = "exponential, additive, {logit: [LOWER, UPPER]} or {boxcox: SHAPE}"


def distributions(
    given: object, names: Sequence[str], sizes: Mapping[str, float], above_zero: Sequence[str]
) -> dict[str, Distribution]:
    """Parameter -> how it lies around its typical value, of those that option ``distributions`` names and
    that are not exponential.

    :param names: the random effects. :param sizes: where typical values of additive parameters begin, 1 of
        others. :param above_zero: parameters that have to be.
    :raises InputError: no such distribution, or one of a parameter that does not vary; a logit one may do
        without a random effect, since its typical value lies between the bounds too.
    """
    if not isinstance(given, Mapping):
        raise InputError(
            f"distributions is {shown(given)}; expected parameters and how they are distributed, as in "
            "{F: {logit: [0, 1]}, E0: additive, CL: {boxcox: 0.5}}"
        )
    found = {str(name): _distribution(str(name), of, sizes, above_zero) for name, of in given.items()}
    for name, of in found.items():
        if name not in names and not isinstance(of, Logit):
            raise InputError(
                f"distributions.{name}: has no random effect; they are those of {', '.join(names)}"
            )
    return {name: of for name, of in found.items() if not isinstance(of, Exponential)}


def _distribution(
    name: str, given: object, sizes: Mapping[str, float], above_zero: Sequence[str]
) -> Distribution:
    where = f"distributions.{name}"
    if given == "exponential":
        return EXPONENTIAL
    if given == "additive":
        return Additive(sizes.get(name, 1.0), name in above_zero)
    if isinstance(given, Mapping) and len(given) == 1:
        ((kind, option),) = given.items()
        if kind == "boxcox":
            return BoxCox(coefficient(f"{where}.boxcox", f"{name}_boxcox", option, known=True))
        if kind == "logit":
            return _logit(f"{where}.logit", option)
    raise InputError(f"{where} is {shown(given)}; expected {_KINDS}")


def _logit(where: str, option: object) -> Logit:
    if not isinstance(option, list | tuple) or len(option) != 2:
        raise InputError(f"{where} is {shown(option)}; expected two bounds, as in [0, 1]")
    lower, upper = (float(number(where, bound, least=0)) for bound in option)
    if not lower < upper:
        raise InputError(f"{where} is {shown(option)}; expected the lower bound before the upper one")
    return Logit(lower, upper)


def bounds_of(found: Mapping[str, Distribution]) -> dict[str, Logit]:
    """Those of the parameters whose typical values lie between bounds too."""
    return {name: of for name, of in found.items() if isinstance(of, Logit)}


def in_odds(network: Mapping[str, Any], bounds: Mapping[str, Logit]) -> dict[str, Any]:
    """Options of a network in which the typical values of parameters between ``bounds`` are the odds of
    where they lie: what a network gives of them is above 0 (``networks.Rescaled``).

    :raises InputError: a value that does not lie between them.
    """
    options = dict(network)
    for key, nested in (("initial", False), ("equations", True)):
        given = options.get(key)
        if not isinstance(given, Mapping):
            continue
        changed = dict(given)
        for name in bounds.keys() & given.keys():
            where, of = f"network.{key}.{name}", bounds[name]
            if not nested:
                changed[name] = _in_odds(where, given[name], of)
            elif isinstance(given[name], Mapping) and "typical" in given[name]:
                typical = _in_odds(f"{where}.typical", given[name]["typical"], of)
                changed[name] = {**given[name], "typical": typical}
        options[key] = changed
    return options


def _in_odds(where: str, value: object, of: Logit) -> object:
    """A number, or each of those that a coefficient has, as odds."""
    if isinstance(value, Mapping):
        return {key: _in_odds(f"{where}.{key}", each, of) for key, each in value.items()}
    found = float(number(where, value))
    if not of.lower < found < of.upper:
        raise InputError(f"{where} is {shown(value)}; expected a value between {of.lower:g} and {of.upper:g}")
    return of.odds(found)
