"""Normal residual errors given that levels are above 0 (Beal 2001, J Pharmacokinet Pharmacodyn 28:481-504,
method M4): a density and a probability are divided by P(y > 0)."""

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model.residual_error import Deviance
from medcm_cli.numerics.normal import LOG_2PI, hazard, log_probability_below


def white(height: Tensor, noise: Tensor) -> Tensor:
    """(y - f) / sd at the quantile of ``noise``, a standard normal one, of what is above 0.

    :param height: f / sd.
    """
    left: Tensor = torch.special.ndtr(height) * torch.special.ndtr(-noise)  # P(y' > y)
    found: Tensor = -torch.special.ndtri(left)
    return found


def deviance(
    white: Tensor, prediction: Tensor, sd: Tensor, slope: Tensor | None, population: Population
) -> Deviance:
    """See ``ErrorModel.deviance``. The curvature of an observation is the expected one; of a censored one it
    is how much less the level varies where it is known to lie beyond the limit, times the square of how the
    limit moves.

    :param white: (dv - f) / sd. :param slope: the derivative of sd in f, None for 0.
    """
    height = prediction / sd
    rate, excess = hazard(height)
    below = log_probability_below(height)  # log P(y > 0)
    # (y - f) / sd moves by -tilt / sd as f does, and that of a level of 0 by -edge / sd.
    tilt, edge = (1.0, 1.0) if slope is None else (1 + slope * white, 1 - slope * height)
    value = white * white + 2 * torch.log(sd) + 2 * below
    pull = rate * edge - white + (0 if slope is None else slope * (1 - white * white))
    # The variance of a standard normal above -height.
    spread = 1 - rate * excess
    curvature = spread if slope is None else _information(height, rate, slope)
    if population.censored is not None:
        censored = population.censored > 0
        terms, lower, upper, narrowed = _beyond(white, height, population)
        value = torch.where(censored, terms + 2 * below, value)
        pull = torch.where(censored, upper * tilt - lower * edge + rate * edge, pull)
        less = (narrowed - rate * excess).clamp(min=0)
        curvature = torch.where(censored, less * tilt * tilt, curvature)
    return Deviance(value, sd, pull, curvature)


def _beyond(white: Tensor, height: Tensor, population: Population) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a limit: -2 log P of lying beyond it and above 0; the densities at 0 and at the limit over that
    probability, the latter negative where the observation is above it; and how much less than 1 the variance
    of a standard normal is there."""
    side = torch.as_tensor(population.side, dtype=white.dtype, device=white.device)
    up = side < 0
    log_below = log_probability_below(side * white)
    # Of what is below the limit the part below 0 is taken off: by a factor, of which 1 is ``more``.
    gap = (log_probability_below(-height) - log_below).clamp(max=-torch.finfo(white.dtype).eps)
    more = torch.where(up, 0.0, torch.exp(gap) / -torch.expm1(gap))
    log_p = log_below - torch.log1p(more)
    rate, excess = hazard(side * white)
    at_limit = rate * (1 + more)
    at_zero = torch.where(up, 0.0, torch.exp(-0.5 * (height * height + LOG_2PI) - log_p))
    narrowed = at_limit * (excess + more * rate) + at_zero * (height + at_zero - 2 * at_limit)
    return -2 * log_p, at_zero, side * at_limit, narrowed


def _information(height: Tensor, rate: Tensor, slope: Tensor) -> Tensor:
    """The variance of x + slope x^2, x standard normal above -``height``: that of the score."""
    first = rate
    second = 1 - height * rate
    third = 2 * first + height * height * rate
    fourth = 3 * second - height**3 * rate
    return (
        second
        - first * first
        + 2 * slope * (third - first * second)
        + slope * slope * (fourth - second * second)
    )
