"""The Gaussian marginal likelihood of a linearised model, with K x K algebra per subject whatever its
observations."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model.residual_error import Normal
from medcm_cli.numerics.normal import hazard, log_probability_below
from medcm_cli.numerics.triangular import (
    Lower,
    cholesky,
    log_det,
    multiply_lower_transposed,
    solve_lower,
    total,
)


class Marginal(NamedTuple):
    """Per subject, (1, N, B): ``log_det`` = log|C|, ``quadratic`` = r' C^-1 r, ``residual`` = r' Sigma^-1 r.

    With censored observations C is no matrix of data: ``log_det`` = log|Sigma| of the others + log|M|,
    ``residual`` has -2 log Phi for each censored one, and ``quadratic`` has no meaning.
    """

    log_det: Tensor
    quadratic: Tensor
    residual: Tensor


def marginal(
    population: Population,
    seen: Normal,
    columns: Sequence[Tensor],
    omega: Lower,
    informing_of_sigma: tuple[int, Tensor] | None = None,
) -> Marginal:
    """C = G Omega G' + Sigma, Sigma = diag(sd^2), by the determinant lemma and Woodbury's identity.

    With Omega = L L', W = Sigma^-1/2 G L and M = I + W'W: log|C| = log|Sigma| + log|M| and
    r'C^-1 r = r'Sigma^-1 r - |chol(M)^-1 W' Sigma^-1/2 r|^2. Omega is never inverted, so it may be nearly
    singular.

    An observation known to lie below a limit has likelihood Phi(z), z = (limit - f) / sd, and one above it
    Phi(-z), in place of a normal density: its information on f is lambda (lambda + z) / sd^2 in place of 1 /
    sd^2 (see ``hazard``), and it has no part in Sigma. One that is not normal has a -2 log density of its own
    (``Normal``).

    :param seen: r and Sigma, (T, 1, N, B). :param columns: those of G.
    :param informing_of_sigma: which random effect is that of the residual error, and what information each
        observation has on it; then too C is no matrix of data.
    """
    precision = 1 / seen.sd
    white = seen.deviation * precision
    loadings = [loading * precision for loading in multiply_lower_transposed(omega, columns)]
    informing = loadings
    if seen.censored is not None:
        rate, excess = hazard(seen.side * white)
        weight = torch.where(seen.censored, rate * excess, 1.0)
        informing = [loading * weight for loading in loadings]
    matrix: Lower = []
    for i, left in enumerate(loadings):
        row = [population.sum_observations(left * right) for right in informing[:i]]
        matrix.append([*row, 1 + population.sum_observations(left * informing[i])])
    if informing_of_sigma is not None:
        place, each = informing_of_sigma
        known = population.sum_observations(each)
        for i, left in enumerate(omega[place]):
            for j, right in enumerate(omega[place][: i + 1]):
                matrix[i][j] = matrix[i][j] + left * right * known
    projected = [population.sum_observations(loading * white) for loading in loadings]
    factor = cholesky(matrix)
    explained = total([x * x for x in solve_lower(factor, projected)])
    misfit = white * white if seen.misfit is None else seen.misfit
    log_sd = torch.log(seen.sd).expand_as(white) if seen.log_scale is None else seen.log_scale
    if seen.censored is not None:
        misfit = torch.where(seen.censored, -2 * log_probability_below(seen.side * white), misfit)
        log_sd = torch.where(seen.censored, 0.0, log_sd)
    residual = population.sum_observations(misfit)
    return Marginal(2 * population.sum_observations(log_sd) + log_det(factor), residual - explained, residual)
