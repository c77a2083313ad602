"""The lowest mode of posteriors that have several: searches from more than one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.model.residual_error import Deviance, ErrorModel
from medcm_cli.numerics.triangular import Lower, multiply_lower
from medcm_cli.objectives.modes import Modes, find_modes


def best_modes(
    model: Model,
    values: Values,
    population: Population,
    start: Sequence[Tensor],
    tolerance: float,
    max_iterations: int,
    *,
    stretched: bool = False,
) -> Modes:
    """``find_modes`` from more than one ``start``, one (1, N, B) per random effect, of the subjects whose
    posterior has several modes: from 0 too, and from two sds either way along each axis of L; where
    searches are ``stretched``, from ``mode_on_logs`` as well.

    A subject whose ``start`` leads to the lowest of them keeps that mode, to the last bit.
    """
    omega = model.prior_cholesky(values, population)
    others = _around_zero(omega, start[0])
    if stretched and (near := mode_on_logs(model, values, population, start)) is not None:
        others = [torch.cat([other, eta]) for other, eta in zip(others, near, strict=True)]
    size = max(1, _ELEMENTS // (start[0].numel() * len(population.time)))
    for first in range(0, len(others[0]), size):
        some = [torch.cat([s, other[first : first + size]]) for s, other in zip(start, others, strict=True)]
        modes = find_modes(model, values, population, some, tolerance, max_iterations, stretched=stretched)
        start = modes.eta
    return modes


_AWAY = 2.0  # sds along an axis: of these designs' modes nothing is missed by 1.5 to 2, but by 1 and 3
_ELEMENTS = 4_000_000  # predictions at once


def _around_zero(omega: Lower, like: Tensor) -> list[Tensor]:
    """eta = L u at u = 0 and at ``_AWAY`` either way along each axis, K of (2 K + 1, N, B)."""
    k = len(omega)
    away = _AWAY * torch.eye(k, dtype=like.dtype, device=like.device)
    points = torch.cat([torch.zeros_like(away[:1]), away, -away])  # (2 K + 1, K)
    u = [column.view(-1, 1, 1).expand(-1, *like.shape[1:]) for column in points.unbind(1)]
    return multiply_lower(omega, u)


_NEAR, _ITERATIONS = 1e-2, 50  # of where a search only begins


def mode_on_logs(
    model: Model, values: Values, population: Population, start: Sequence[Tensor]
) -> list[Tensor] | None:
    """Where the logarithms of predictions are near those of observations: eta (1, N, B) each, or None where
    an observation may have any prediction.

    An error in proportion to the prediction is as good as none where that is many times the observation, and
    does not tell where to go; their logarithms do. An observation is as certain as if it were predicted.
    """
    error = model.error
    if error.allows_zero or error.needs_positive or model.random_effects.place_of_sigma is not None:
        return None
    dv = population.dv
    known = (population.observed > 0) & (dv > 0)
    if population.censored is not None:
        known = known & (population.censored == 0)
    sd = error.deviance(values, torch.where(known, dv, 1.0), population).sd
    there = replace(model, error=OnLogs(torch.where(known, dv / sd, 0.0)))
    return find_modes(there, values, population, start, _NEAR, _ITERATIONS, stretched=True).eta


@dataclass(frozen=True)
class OnLogs(ErrorModel):
    """log y = log f + e, with e of sd 1 / ``precision`` (T, 1, N, B), which is known; of f of 0 or less as
    if it were the least there is."""

    precision: Tensor
    components: tuple[str, ...] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)

    def white(self, values: Mapping[str, Tensor], prediction: Tensor, dv: Tensor) -> Tensor:
        """e, in sds."""
        del values
        least = torch.finfo(prediction.dtype).tiny
        log_ratio = dv.clamp(min=least).log() - prediction.clamp(min=least).log()
        return torch.where(self.precision > 0, log_ratio * self.precision, 0.0)

    def deviance(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Deviance:
        """See ``ErrorModel``; of f alone, with the logarithm of y as it is."""
        white = self.white(values, prediction, population.dv)
        f = prediction.clamp(min=torch.finfo(prediction.dtype).tiny)
        return Deviance(white * white, f, -white * self.precision, self.precision.square())

    def draw(
        self, values: Mapping[str, Tensor], prediction: Tensor, noise: Tensor | float, unit: float = 1.0
    ) -> Tensor:
        """f exp(e)."""
        del values, unit
        return prediction * torch.exp(noise / self.precision)
