"""Residual error on the log scale: levels are log-normal around the prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model.normal_error import scale_of_normal
from medcm_cli.model.residual_error import Deviance, ErrorModel, Scale, check_fixed
from medcm_cli.numerics.normal import LOG_2PI, hazard, log_probability_below


@dataclass(frozen=True)
class LogNormalError(ErrorModel):
    """log y = log f + sigma_log e, e standard normal (docs/methods.md, "Residual error").

    ``logged``: the data set gives logarithms, and the likelihood is theirs; otherwise it is that of levels,
    whose -2 log has 2 log y more for each that is not censored.
    """

    fixed: Mapping[str, float] = field(default_factory=dict)
    logged: bool = False
    components = ("log",)

    def __post_init__(self) -> None:
        check_fixed(self)

    @property
    def in_proportion(self) -> bool:
        """On the log scale."""
        return True

    @property
    def needs_positive(self) -> bool:
        """A level of 0 has no logarithm."""
        return True

    def white(self, values: Mapping[str, Tensor], prediction: Tensor, dv: Tensor) -> Tensor:
        """log(y / f) / sigma."""
        return (_log(dv) - _log(prediction)) / self.sigmas(values)["log"]

    def log_density(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Tensor:
        """log N(log y; log f, sigma^2), less log y but for data that are ``logged``; log Phi((log limit -
        log f) / sigma), or of its negative, where censored."""
        sigma, seen = self.sigmas(values)["log"], _log(population.dv)
        white = (seen - _log(prediction)) / sigma
        terms = -0.5 * (white * white + LOG_2PI) - torch.log(sigma) - (0 if self.logged else seen)
        if population.censored is not None:
            beyond = log_probability_below(population.side * white)
            terms = torch.where(population.censored > 0, beyond, terms)
        return terms

    def deviance(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Deviance:
        """See ``ErrorModel``. The curvature is that with respect to log f, over f^2."""
        sigma = self.sigmas(values)["log"]
        white = self.white(values, prediction, population.dv)
        value = self.deviance_of(self.log_density(values, prediction, population), population)
        pull, curvature = -white, None
        if population.censored is not None:
            censored, side = population.censored > 0, population.side
            rate, excess = hazard(side * white)
            pull = torch.where(censored, side * rate, pull)
            curvature = torch.where(censored, rate * excess, 1.0)
        return Deviance(value, sigma * _positive(prediction), pull, curvature)

    def scale(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Scale:
        """See ``ErrorModel``."""
        return scale_of_normal(self.white(values, prediction, population.dv), None, population)

    def without_interaction(self, values: Mapping[str, Tensor], typical: Tensor) -> ErrorModel:
        """Itself: on the log scale its sd is the same everywhere."""
        del values, typical
        return self

    def transformation(self, population: Population) -> Tensor:
        """See ``ErrorModel``; 0 of data that are ``logged``."""
        if self.logged:
            return super().transformation(population)
        terms = 2 * _log(population.dv)
        if population.censored is not None:
            terms = terms * (1 - population.censored)
        return population.sum_observations(terms)

    def draw(
        self, values: Mapping[str, Tensor], prediction: Tensor, noise: Tensor | float, unit: float = 1.0
    ) -> Tensor:
        """f exp(sigma times ``noise``), whatever the unit."""
        del unit
        shift = self.sigmas(values)["log"] * noise
        return prediction * torch.exp(shift)


def _positive(level: Tensor) -> Tensor:
    """A level that rounding, or padding, has at 0 or below is the least that there is."""
    return level.clamp(min=torch.finfo(level.dtype).tiny)


def _log(level: Tensor) -> Tensor:
    return torch.log(_positive(level))
