"""Markov chains of each subject's random effects, and what their proposals say of its likelihood."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.numerics.normal import LOG_2PI
from medcm_cli.numerics.triangular import (
    cholesky,
    log_det,
    multiply_lower,
    multiply_lower_transposed,
    solve_lower,
    solve_lower_transposed,
    total,
)
from medcm_cli.objectives.integral import Peak, joint, joint_of
from medcm_cli.objectives.modes import evaluate, find_modes

_FREEDOM = 4.0  # degrees of freedom of proposals: chi-squared with 4 is the sum of two exponentials
_REST = 4  # numbers of a draw beside those of the two proposals
_HIGHER = 1.0  # -2 log density that a mode is no mode by
_WALK = 2.38  # of a random walk in one dimension (Roberts, Gelman and Gilks 1997, Ann Appl Probab 7:110-120)


class Around(NamedTuple):
    """Where posteriors of eta lie: a ``peak`` with the expected information, the modes ``eta``, or how far
    their search is, R of (1, N, B), and the ``value`` there, (1, N, B), as of ``integral.joint``."""

    peak: Peak
    eta: list[Tensor]
    value: Tensor


class Draws(NamedTuple):
    """``eta``, R of (S, N, B): where S chains of each subject are. Of each subject, (1, N, B), the logarithm
    of the mean weight of S proposals, ``log_mean``, whose expectation is the likelihood without n / 2
    log(2 pi), and that of the mean square, ``log_square``. ``start`` of the next search for modes, R of (1,
    N, B): the mode, but where a chain has come to where the density is higher."""

    eta: list[Tensor]
    start: list[Tensor]
    log_mean: Tensor
    log_square: Tensor


def numbers(effects: int) -> int:
    """How many standard normal numbers a draw of so many random effects takes."""
    return 2 * effects + _REST


def around(
    model: Model,
    values: Values,
    population: Population,
    start: Sequence[Tensor],
    tolerance: float,
    iterations: int,
) -> Around:
    """See ``Around``.

    :param start: of the search for modes. :param tolerance: see ``find_modes``, as of ``iterations``.
    """
    modes = find_modes(model, values, population, start, tolerance, iterations)
    omega, zeta = model.prior_cholesky(values, population), model.typical(values, population)
    u = solve_lower(omega, modes.eta)
    at = evaluate(model, values, zeta, omega, population, u)
    return Around(Peak(zeta, omega, u, cholesky(at.information)), modes.eta, at.value)


def step(
    model: Model,
    values: Values,
    population: Population,
    around: Around,
    eta: Sequence[Tensor],
    fresh: Tensor,
    prediction: Tensor,
    noise: Sequence[Tensor],
) -> Draws:
    """One step of every chain by two kernels, both of which leave the posterior as it is: a proposal from a
    multivariate t at the mode, whatever the chain's place, and a random walk of the posterior's shape.

    :param eta: where chains are, R of (S, N, B). :param fresh: (1, N, B), those of subjects who have none
        yet, which begin at the first proposal. :param prediction: there, (T, S, N, B).
    :param noise: as many as ``numbers`` says, (S, N, B) each, standard normal.
    """
    k, at = len(eta), around.peak
    first, second, (a, b, c, d) = noise[:k], noise[k : 2 * k], noise[2 * k :]
    u = solve_lower(at.omega, eta)
    value = joint_of(model, values, population, prediction, eta, u)
    chi2 = -2 * (torch.special.log_ndtr(a) + torch.special.log_ndtr(b))
    scale = torch.sqrt(_FREEDOM / chi2)
    t = [x * scale for x in first]
    there = at.away(t)
    value_there = _dense(joint(model, values, population, at, there))
    weight = -value_there / 2 - _log_t(t)
    here = multiply_lower_transposed(at.factor, [x - m for x, m in zip(u, at.u, strict=True)])
    accept = fresh | (torch.special.log_ndtr(c) < weight + _dense(value) / 2 + _log_t(here))
    u = [torch.where(accept, new, old) for new, old in zip(there, u, strict=True)]
    value = torch.where(accept, value_there, value)
    shift = solve_lower_transposed(at.factor, second)
    there = [x + _WALK / math.sqrt(k) * move for x, move in zip(u, shift, strict=True)]
    value_there = _dense(joint(model, values, population, at, there))
    accept = torch.special.log_ndtr(d) < (value - value_there) / 2
    u = [torch.where(accept, new, old) for new, old in zip(there, u, strict=True)]
    value, best = torch.where(accept, value_there, value).min(0, keepdim=True)
    eta = multiply_lower(at.omega, u)
    higher = ~(around.value <= value + _HIGHER)
    start = [
        torch.where(higher, effect.gather(0, best), mode)
        for effect, mode in zip(eta, around.eta, strict=True)
    ]
    log_weight = weight - k / 2 * LOG_2PI - log_det(at.factor) / 2
    means = [
        torch.logsumexp(power * log_weight, 0, keepdim=True) - math.log(len(log_weight)) for power in (1, 2)
    ]
    return Draws(eta, start, *means)


def _log_t(x: Sequence[Tensor]) -> Tensor:
    """Log density of a multivariate t at x, of scale 1."""
    k = len(x)
    constant = math.lgamma((_FREEDOM + k) / 2) - math.lgamma(_FREEDOM / 2)
    constant -= k / 2 * math.log(_FREEDOM * math.pi)
    return constant - (_FREEDOM + k) / 2 * torch.log1p(total([part * part for part in x]) / _FREEDOM)


def _dense(value: Tensor) -> Tensor:
    """Where a prediction is no number, there is no density."""
    return torch.where(torch.isfinite(value), value, torch.inf)
