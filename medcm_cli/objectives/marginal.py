"""The Gaussian marginal likelihood of a linearised model, with K x K algebra per subject whatever its
observations."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.variability import Lower, cholesky, log_det, multiply_lower_transposed, solve_lower, total


class Marginal(NamedTuple):
    """Per subject, (1, N, B): ``log_det`` = log|C|, ``quadratic`` = r' C^-1 r, ``residual`` = r' Sigma^-1
    r."""

    log_det: Tensor
    quadratic: Tensor
    residual: Tensor


def marginal(
    population: Population, deviation: Tensor, columns: Sequence[Tensor], sd: Tensor, omega: Lower
) -> Marginal:
    """C = G Omega G' + Sigma, Sigma = diag(sd^2), by the determinant lemma and Woodbury's identity.

    With Omega = L L', W = Sigma^-1/2 G L and M = I + W'W: log|C| = log|Sigma| + log|M| and
    r'C^-1 r = r'Sigma^-1 r - |chol(M)^-1 W' Sigma^-1/2 r|^2. Omega is never inverted, so it may be nearly
    singular.

    :param deviation: r, (T, 1, N, B). :param columns: those of G. :param sd: (B,) or (T, 1, N, B).
    """
    precision = 1 / sd
    white = deviation * precision
    loadings = [loading * precision for loading in multiply_lower_transposed(omega, columns)]
    if population.ragged:
        white = white * population.observed
    matrix: Lower = []
    for i, left in enumerate(loadings):
        row = [population.sum_observations(left * right) for right in loadings[:i]]
        matrix.append([*row, 1 + population.sum_observations(left * left)])
    projected = [population.sum_observations(loading * white) for loading in loadings]
    factor = cholesky(matrix)
    explained = total([x * x for x in solve_lower(factor, projected)])
    residual = (white * white).sum(0)
    log_sigma = population.sum_observations(torch.log(sd).expand_as(deviation))
    return Marginal(2 * log_sigma + log_det(factor), residual - explained, residual)
