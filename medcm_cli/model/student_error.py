"""Residual error with heavy tails, which outliers move less: Student's t."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medcm_cli.checks import number
from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model.normal_error import SummedSpread
from medcm_cli.model.residual_error import Deviance, Scale
from medcm_cli.numerics.student import (
    normal_quantile_of_t,
    t_log_density,
    t_log_probability_below,
    t_quantile_of_normal,
)


@dataclass(frozen=True)
class StudentError(SummedSpread):
    """y = f + s(f) e, e of Student's t with so many ``degrees`` of freedom, which are not estimated; s is the
    sum of the components' sigmas, as in ``ResidualError`` (docs/methods.md, "Residual error").

    s is a scale and no sd: that is s sqrt(degrees / (degrees - 2)).
    """

    degrees: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("error.degrees", self.degrees, above=2, most=1000)
        if self.above_zero:
            raise InputError("dataset.blq=M4 is there for normal errors and log_normal; expected M3 or M1")

    def white(self, values: Mapping[str, Tensor], prediction: Tensor, dv: Tensor) -> Tensor:
        """The standard normal quantile of (y - f) / s."""
        scale, _ = self.sd(values, prediction)
        return normal_quantile_of_t((dv - prediction) / scale, self.degrees)

    def log_density(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Tensor:
        """log t((y - f) / s) - log s, or the log probability of lying beyond the limit where censored."""
        scale, _ = self.sd(values, prediction)
        x = (population.dv - prediction) / scale
        terms = t_log_density(x, self.degrees) - torch.log(scale)
        if population.censored is not None:
            beyond = t_log_probability_below(population.side * x, self.degrees)
            terms = torch.where(population.censored > 0, beyond, terms)
        return terms

    def deviance(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Deviance:
        """See ``ErrorModel``: the information of t on location and scale (Lange, Little and Taylor 1989). The
        curvature of a censored observation is the square of its slope, since the observed one may be
        negative."""
        degrees = self.degrees
        scale, given = self.sd(values, prediction)
        slope = torch.zeros_like(scale) if given is None else given
        x = (population.dv - prediction) / scale
        value = self.deviance_of(self.log_density(values, prediction, population), population)
        tilt = 1 + slope * x  # dx / df = -tilt / scale
        pull = slope - (degrees + 1) * x * tilt / (degrees + x * x)
        curvature = (degrees + 1 + 2 * degrees * slope * slope) / (degrees + 3)
        curvature = curvature.expand_as(x)
        if population.censored is not None:
            censored, side = population.censored > 0, population.side
            rate = torch.exp(t_log_density(x, degrees) - t_log_probability_below(side * x, degrees)) * tilt
            pull = torch.where(censored, side * rate, pull)
            curvature = torch.where(censored, rate * rate, curvature)
        return Deviance(value, scale, pull, curvature)

    def scale(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Scale:
        """See ``ErrorModel``: the information of t on its scale. Of a censored observation it is the square
        of its slope."""
        degrees = self.degrees
        scale, slope = self.sd(values, prediction)
        x = (population.dv - prediction) / scale
        pull = 1 - (degrees + 1) * x * x / (degrees + x * x)
        curvature = torch.full_like(x, 2 * degrees / (degrees + 3))
        cross = None if slope is None else curvature * slope
        if population.censored is not None:
            censored, side = population.censored > 0, population.side
            rate = torch.exp(t_log_density(x, degrees) - t_log_probability_below(side * x, degrees))
            tilt = 1.0 if slope is None else 1 + slope * x
            pull = torch.where(censored, side * rate * x, pull)
            curvature = torch.where(censored, (rate * x).square(), curvature)
            cross = torch.where(censored, rate * rate * x * tilt, 0.0 if cross is None else cross)
        return Scale(pull, curvature, cross)

    def draw(
        self, values: Mapping[str, Tensor], prediction: Tensor, noise: Tensor | float, unit: float = 1.0
    ) -> Tensor:
        """f + s times the value of t at the quantile of ``noise``."""
        scale, _ = self.sd(values, prediction / unit)
        return prediction + scale * unit * t_quantile_of_normal(noise, self.degrees).to(prediction)
