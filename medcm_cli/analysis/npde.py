"""Normalised prediction distribution errors: standard normal of a right model, whatever it is."""

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.data.sheet import FloatArray
from medcm_cli.numerics.streams import Stream, per_fit

SHARE = 10  # simulated data sets for each observation of a subject, at least: their covariance is estimated
_MOST = 5000  # values that the test of normality takes


class Verdict(NamedTuple):
    """Of npde against a standard normal: p-values of Wilcoxon's signed ranks (their middle is 0), of
    chi-squared (their variance is 1), of Shapiro and Wilk (they are normal), and of all three, the least
    times three."""

    mean: float
    variance: float
    normality: float
    together: float


@torch.no_grad()
def npde(simulated: Tensor, population: Population, stream: Stream) -> Tensor:
    """Brendel, Comets, Laffont, Laveille and Mentre 2006 (Pharm Res 23:2036-2049): the observations of a
    subject, and the same of each simulated data set, less the mean of the simulated and times the inverse of
    the Cholesky factor of their covariance; the share of the simulated that lies below the observed is then
    uniform, and its quantile of the normal is the npde.

    A censored observation is drawn from the simulated ones below its limit, and so are simulated ones that
    lie below it (Nguyen, Comets and Mentre 2012, J Pharmacokinet Pharmacodyn 39:499-518).

    :param simulated: (T, S, N, B), in the unit of ``population.dv``. :param stream: what draws these.
    :returns: (T, 1, N, B), 0 where there is no observation.
    :raises ValueError: fewer than ``SHARE`` simulated data sets for each observation of a subject.
    """
    count = simulated.shape[1]
    if count < needed(population):
        raise ValueError(f"{count} simulated data sets: expected {needed(population)} or more")
    drawn = simulated.permute(2, 3, 0, 1).double()  # (N, B, T, S)
    dv, seen = (of[:, 0].permute(1, 2, 0) for of in (population.dv.double(), population.observed.double()))
    if population.censored is not None:
        below = (population.censored[:, 0].permute(1, 2, 0) > 0) & (seen > 0)
        # Turned round, what lies above a limit lies below it.
        side = (dv.new_ones(()) * population.side).expand_as(population.dv)[:, 0].permute(1, 2, 0)
        dv, drawn = _imputed(dv * side, drawn * side[..., None], below, stream)
        dv, drawn = dv * side, drawn * side[..., None]
    middle = drawn.mean(-1)
    centred = (drawn - middle[..., None]) * seen[..., None]
    covariance = centred @ centred.mT / (count - 1) + torch.diag_embed(1 - seen)
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, centred, upper=False)
    own = torch.linalg.solve_triangular(factor, ((dv - middle) * seen)[..., None], upper=False)
    share = ((white < own).double() + 0.5 * (white == own).double()).mean(-1)
    share = share.clamp(1 / (2 * count), 1 - 1 / (2 * count))
    result: Tensor = (torch.special.ndtri(share) * seen).permute(2, 0, 1)[:, None]
    return result


def needed(population: Population) -> int:
    """How many simulated data sets ``npde`` needs at least."""
    return int(SHARE * population.observed.sum(0).max())


def _imputed(dv: Tensor, drawn: Tensor, below: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
    """Observations (N, B, T) and simulated ones (..., S) with those below a limit, which is the dv of one
    that is, drawn from the simulated ones below it."""
    limit, count = dv[..., None], drawn.shape[-1]
    under = below[..., None] & (drawn < limit)
    ordered = drawn.sort(-1)[0]
    least = under.sum(-1, keepdim=True).clamp(min=1)  # a limit that lies below all of them: the lowest
    shape = *drawn.shape[:1], *drawn.shape[2:-1], count + 1
    uniform = per_fit([stream], lambda g: g.random(shape), "npde", torch.float64).movedim(-1, 1)
    chosen = ordered.gather(-1, (uniform * least).long().clamp(max=count - 1))
    return torch.where(below, chosen[..., -1], dv), torch.where(under, chosen[..., :-1], drawn)


def verdict(values: FloatArray) -> Verdict:
    """See ``Verdict``; of more than ``_MOST`` values normality is that of as many among them, in equal steps.
    Of fewer than three, NaN."""
    count = len(values)
    if count < 3:
        return Verdict(*[float("nan")] * 4)
    mean = float(stats.wilcoxon(values).pvalue)
    square = (count - 1) * float(np.var(values, ddof=1))
    variance = 2 * min(stats.chi2.cdf(square, count - 1), stats.chi2.sf(square, count - 1))
    some = values[np.unique(np.linspace(0, count - 1, min(count, _MOST)).round().astype(int))]
    normality = float(stats.shapiro(some).pvalue)
    return Verdict(mean, float(variance), normality, min(1.0, 3 * min(mean, float(variance), normality)))
