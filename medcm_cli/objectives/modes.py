"""Empirical Bayes estimates: the mode of each subject's posterior of eta, all subjects of all fits at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.variability import (
    Lower,
    cholesky,
    dense,
    inverse_spd,
    solve_lower,
    solve_lower_transposed,
    total,
)

BOUND = 3.0  # eta is searched within [-3, 3] (METHODS, "Objectives")


class Modes(NamedTuple):
    """``eta`` one (1, N, B) per random effect; ``information`` half the Fisher Hessian there, full K x K of the same shape;
    ``converged`` (1, N, B) whether the last step was below the tolerance."""

    eta: list[Tensor]
    information: list[list[Tensor]]
    converged: Tensor


class _Point(NamedTuple):
    value: Tensor
    gradient: list[Tensor]
    information: list[list[Tensor]]


@torch.no_grad()
def find_modes(
    model: Model,
    values: Values,
    population: Population,
    start: Sequence[Tensor],
    tolerance: float,
    max_iterations: int,
) -> Modes:
    """eta minimising log|Sigma| + r' Sigma^-1 r + eta' Omega^-1 eta within [-3, 3], for each subject.

    Fisher scoring with Levenberg-Marquardt damping per subject: for Gaussian observations with mean f and sd s(f) the
    expected Hessian is positive definite, and exact where the model is linear in eta. A step that does not lower a
    subject's value is refused and its damping raised, other subjects going on.

    :param start: first guess, one (1, N, B) per random effect.
    :param tolerance: a subject has converged once no component of its step exceeds it.
    """
    zeta = model.typical(values, population)
    omega = model.omega_cholesky(values)
    eta = [value.clamp(-BOUND, BOUND) for value in start]
    at = _evaluate(model, values, zeta, omega, population, eta)
    damping = torch.zeros_like(eta[0])
    converged = torch.zeros_like(eta[0], dtype=torch.bool)
    # Near the mode the value is flat to rounding: a step that changes it by no more than that is not a bad step.
    slack = 8 * torch.finfo(eta[0].dtype).eps
    for _ in range(max_iterations):
        damped = [
            [entry * (1 + damping) if i == j else entry for j, entry in enumerate(row)]
            for i, row in enumerate(at.information)
        ]
        factor = cholesky(damped)
        step = solve_lower_transposed(factor, solve_lower(factor, at.gradient))
        candidate = [(value - change).clamp(-BOUND, BOUND) for value, change in zip(eta, step, strict=True)]
        moved = total([(new - old).abs() for new, old in zip(candidate, eta, strict=True)])
        new = _evaluate(model, values, zeta, omega, population, candidate)
        accept = new.value <= at.value + slack * (1 + at.value.abs())
        eta = [torch.where(accept, c, e) for c, e in zip(candidate, eta, strict=True)]
        at = _merge(accept, new, at)
        converged = moved <= tolerance
        if bool((converged | ~torch.isfinite(new.value)).all()):
            break
        damping = torch.where(accept, damping * 0.1, (damping * 10).clamp(min=0.1))
    return Modes(eta, at.information, converged)


def posterior_covariance(modes: Modes) -> Tensor:
    """Inverse of the information at the modes, (K, K, N, B): the covariance of Laplace's approximation."""
    return dense(inverse_spd(modes.information))[:, :, 0]


def _evaluate(
    model: Model, values: Values, zeta: Values, omega: Lower, population: Population, eta: Sequence[Tensor]
) -> _Point:
    prediction, columns = model.linearise(zeta, population, eta)
    sd, slope = model.error.sd(values, prediction)
    residual = (population.dv - prediction) / sd
    per_sd = [column / sd for column in columns]
    white = solve_lower(omega, eta)
    prior = solve_lower_transposed(omega, white)
    log_sigma = torch.log(sd).expand_as(residual)
    value = population.sum_observations(residual * residual + 2 * log_sigma) + total([w * w for w in white])
    pull = -residual if slope is None else slope * (1 - residual * residual) - residual
    curvature = 1.0 if slope is None else 1 + 2 * slope * slope
    gradient = [
        population.sum_observations(column * pull) + p for column, p in zip(per_sd, prior, strict=True)
    ]
    identity = torch.eye(len(columns), dtype=prediction.dtype)
    inverse_omega = [
        solve_lower_transposed(omega, solve_lower(omega, [*unit.unbind(0)])) for unit in identity
    ]
    information = [
        [
            population.sum_observations(left * right) * curvature + inverse_omega[i][j]
            for j, right in enumerate(per_sd[: i + 1])
        ]
        for i, left in enumerate(per_sd)
    ]
    return _Point(value, gradient, information)


def _merge(accept: Tensor, new: _Point, old: _Point) -> _Point:
    return _Point(
        torch.where(accept, new.value, old.value),
        [torch.where(accept, a, b) for a, b in zip(new.gradient, old.gradient, strict=True)],
        [
            [torch.where(accept, a, b) for a, b in zip(*rows, strict=True)]
            for rows in zip(new.information, old.information, strict=True)
        ],
    )
