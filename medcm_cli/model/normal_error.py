"""Residual errors that are normal: additive, proportional, both, or a power of the prediction."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model import above_zero
from medcm_cli.model.residual_error import Deviance, ErrorModel, Normal, Scale, check_fixed, root_of
from medcm_cli.numerics.normal import LOG_2PI, hazard, log_probability_below


class Spread(ErrorModel):
    """An error whose size is an sd that depends on the prediction."""

    @abstractmethod
    def sd(self, values: Mapping[str, Tensor], prediction: Tensor) -> tuple[Tensor, Tensor | None]:
        """sd, (B,) or the shape of ``prediction``, and its derivative with respect to the prediction (None
        for zero)."""

    def without_interaction(self, values: Mapping[str, Tensor], typical: Tensor) -> ErrorModel:
        """See ``ErrorModel``."""
        spread = self.sd(values, typical)[0], None
        known = copy.copy(self)
        object.__setattr__(known, "sd", lambda *_: spread)  # of this one alone, which is frozen
        return known


class NormalError(Spread):
    """y = f + sd(f) e, e standard normal; given that y is above 0 where ``above_zero``."""

    def white(self, values: Mapping[str, Tensor], prediction: Tensor, dv: Tensor) -> Tensor:
        """(y - f) / sd, or the normal quantile of P(y' < y | y' > 0)."""
        sd, _ = self.sd(values, prediction)
        white: Tensor = (dv - prediction) / sd
        if self.above_zero:
            white = -torch.special.ndtri(torch.special.ndtr(-white) / torch.special.ndtr(prediction / sd))
        return white

    def deviance(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Deviance:
        """See ``ErrorModel``. The curvature of a censored observation is the observed one, of which what the
        change of sd adds is left out so that it stays positive."""
        sd, slope = self.sd(values, prediction)
        white = (population.dv - prediction) / sd
        if self.above_zero:
            return above_zero.deviance(white, prediction, sd, slope, population)
        value = white * white + 2 * torch.log(sd)
        if slope is None:
            pull, curvature = -white, None
        else:  # the sd depends on the prediction too
            pull = slope * (1 - white * white) - white
            curvature = 1 + 2 * slope * slope
        if population.censored is not None:
            censored, side = population.censored > 0, population.side
            rate, excess = hazard(side * white)
            tilt = 1.0 if slope is None else 1 + slope * white  # d white / df = -tilt / sd
            value = torch.where(censored, -2 * log_probability_below(side * white), value)
            pull = torch.where(censored, side * rate * tilt, pull)
            curvature = torch.where(
                censored, rate * excess * tilt * tilt, 1.0 if curvature is None else curvature
            )
        return Deviance(value, sd, pull, curvature)

    def scale(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Scale:
        """See ``ErrorModel``."""
        if self.above_zero:
            return super().scale(values, prediction, population)
        sd, slope = self.sd(values, prediction)
        return scale_of_normal((population.dv - prediction) / sd, slope, population)

    def draw(
        self, values: Mapping[str, Tensor], prediction: Tensor, noise: Tensor | float, unit: float = 1.0
    ) -> Tensor:
        """f + sd times ``noise``, or the quantile of what is above 0."""
        sd, _ = self.sd(values, prediction / unit)
        if self.above_zero:
            noise = above_zero.white(prediction / unit / sd, torch.as_tensor(noise).to(prediction))
        return prediction + sd * unit * noise

    def log_density(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Tensor:
        """log N(y; f, sd^2), or log Phi((limit - f) / sd), or of its negative, where censored."""
        sd, _ = self.sd(values, prediction)
        white = (population.dv - prediction) / sd
        if self.above_zero:
            return super().log_density(values, prediction, population)
        terms = -0.5 * (white * white + LOG_2PI) - torch.log(sd)
        if population.censored is not None:
            beyond = log_probability_below(population.side * white)
            terms = torch.where(population.censored > 0, beyond, terms)
        return terms

    def log_likelihood(
        self,
        values: Mapping[str, Tensor],
        prediction: Tensor,
        population: Population,
        weights: Tensor | None = None,
    ) -> Tensor:
        """See ``ErrorModel``; written out since it is what training spends its time on."""
        if self.above_zero:
            return super().log_likelihood(values, prediction, population, weights)
        sd, _ = self.sd(values, prediction)
        deviation = population.dv - prediction
        if sd.ndim == 1 and population.censored is None and weights is None:
            # Additive error: one sd per fit, which need not be spread over the observations.
            count = prediction.shape[1] * population.observation_count
            return -0.5 * population.sum_all(deviation * deviation) / (sd * sd) - count * (
                torch.log(sd) + 0.5 * LOG_2PI
            )
        white = deviation / sd
        terms = 0.5 * white * white + torch.log(sd) + 0.5 * LOG_2PI
        if population.censored is not None:
            beyond = -log_probability_below(population.side * white)
            terms = torch.where(population.censored > 0, beyond, terms)
        return -population.sum_all(terms if weights is None else terms * weights)

    def as_normal(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Normal:
        """Deviation and sd as they are: that the sd moves with the prediction is left out."""
        sd, _ = self.sd(values, prediction)
        deviation = population.dv - prediction
        if self.above_zero:
            found = above_zero.deviance(deviation / sd, prediction, sd, None, population)
            assert found.curvature is not None
            return Normal(
                deviation, sd / root_of(found.curvature), found.value, torch.zeros_like(found.value)
            )
        censored = None if population.censored is None else population.censored > 0
        return Normal(deviation, sd, censored=censored, side=population.side)


def scale_of_normal(white: Tensor, slope: Tensor | None, population: Population) -> Scale:
    """``Scale`` of what is normal on some scale.

    :param white: (dv - f) / sd there. :param slope: the derivative of sd in f, None for 0.
    """
    pull, curvature = 1 - white * white, torch.full_like(white, 2.0)
    cross = None if slope is None else 2 * slope.expand_as(white)
    if population.censored is not None:
        censored, side = population.censored > 0, population.side
        rate, excess = hazard(side * white)
        pull = torch.where(censored, side * rate * white, pull)
        curvature = torch.where(censored, rate * excess * white * white, curvature)
        tilt = 1.0 if slope is None else 1 + slope * white
        cross = torch.where(censored, rate * excess * white * tilt, 0.0 if cross is None else cross)
    return Scale(pull, curvature, cross)


@dataclass(frozen=True)
class SummedSpread(Spread):
    """The sd of an observation with prediction f is the sum of its components' sds
    (docs/methods.md, "Residual error").

    ``components`` is a subset of ``additive`` (sigma_additive, in the unit of DV) and ``proportional``
    (sigma_proportional * f). ``fixed`` holds the sigmas that are known, and not estimated.
    """

    components: tuple[str, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)
    size: float = 1.0
    above_zero: bool = False

    def __post_init__(self) -> None:
        distinct = set(self.components)
        if not distinct or distinct - {"additive", "proportional"} or len(distinct) < len(self.components):
            raise InputError(
                f"error.components is {list(self.components)}: expected additive, proportional or both"
            )
        check_fixed(self)

    @property
    def allows_zero(self) -> bool:
        """Where something is added to what is proportional."""
        return "additive" in self.components

    def sd(self, values: Mapping[str, Tensor], prediction: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``Spread``."""
        sigmas = self.sigmas(values)
        if "proportional" not in sigmas:
            return sigmas["additive"], None
        slope = sigmas["proportional"]
        sd = slope * prediction
        return (sd + sigmas["additive"] if "additive" in sigmas else sd), slope


class ResidualError(SummedSpread, NormalError):
    """The paper's: normal, and the sds add."""

    @property
    def in_proportion(self) -> bool:
        """Of one component; not of levels above 0, whose normal is cut off."""
        return len(self.components) == 1 and not self.above_zero


@dataclass(frozen=True)
class CombinedVariancesError(NormalError):
    """Normal, of variance sigma_additive^2 + (sigma_proportional f)^2: the variances add, and not the sds."""

    fixed: Mapping[str, float] = field(default_factory=dict)
    size: float = 1.0
    above_zero: bool = False
    components = "additive", "proportional"

    def __post_init__(self) -> None:
        check_fixed(self)

    @property
    def allows_zero(self) -> bool:
        """The additive part is left there."""
        return True

    def sd(self, values: Mapping[str, Tensor], prediction: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Spread``."""
        sigmas = self.sigmas(values)
        relative = sigmas["proportional"] * prediction
        sd = torch.hypot(relative, sigmas["additive"])
        return sd, sigmas["proportional"] * (relative / sd)


@dataclass(frozen=True)
class PowerError(NormalError):
    """Normal, of sd sigma_power f^exponent: of an exponent of 1 it is proportional, of 0 additive.

    sigma_power is the sd where the prediction is 1, in the unit of DV to the power of 1 - exponent. What is
    trained is the sd where the prediction is ``size``, as a part of it, so that the two do not depend on the
    unit of the data.
    """

    fixed: Mapping[str, float] = field(default_factory=dict)
    size: float = 1.0
    above_zero: bool = False
    components = "power", "exponent"
    shapes = ("exponent",)

    def __post_init__(self) -> None:
        check_fixed(self)

    def unit_of(self, component: str) -> float:
        """See ``ErrorModel``; an exponent begins near 1."""
        return 10.0 if component == "exponent" else 1.0

    def counted_in(self, component: str, begins: Mapping[str, float]) -> float:
        """See ``ErrorModel``."""
        if component == "exponent":
            return self.unit_of(component)
        exponent = self.fixed.get("exponent", begins.get("exponent", 1.0))
        return float(self.size ** (1 - exponent))

    def of_trained(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``ErrorModel``."""
        found = super().of_trained(parts)
        if "power" in found and self.size != 1:
            exponent = found["exponent"] if "exponent" in found else self.fixed["exponent"]
            found["power"] = found["power"] * self.size ** (1 - exponent)
        return found

    def reported(self, values: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        """See ``ErrorModel``."""
        sigmas = self.sigmas(values)
        power, exponent = sigmas["power"], sigmas["exponent"]
        return {"sigma_power": power * scale ** (1 - exponent), "sigma_exponent": exponent}

    def sd(self, values: Mapping[str, Tensor], prediction: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Spread``; a prediction that rounding has below 0 has the sd of one next to it."""
        sigmas = self.sigmas(values)
        level = prediction.clamp(min=torch.finfo(prediction.dtype).tiny)
        sd = sigmas["power"] * level ** sigmas["exponent"]
        return sd, sigmas["exponent"] * (sd / level)
