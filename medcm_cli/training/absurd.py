"""Fits that have failed: whose objective is not finite, or is and says that they are none."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.objectives.base import Objective
from medcm_cli.training.trained import Failure, Trained

_EPOCHS = 100  # of which a fit that has not converged has had fewer says nothing yet


def with_absurd_failed(
    objective: Objective, population: Population, trained: Trained, penalty: Tensor | float = 0.0
) -> Trained:
    """Fits, of which those have failed whose likelihood is below that of one normal with the mean and the
    variance of their own observations; not those that have neither converged nor had time to.

    :param population: their subjects. :param penalty: what priors have added to the objective, (B,).
    """
    assert trained.ends is not None
    described = objective.describe()
    if described.scale is None or population.censored is not None:
        return trained
    count = population.observation_count.double()
    ofv = (
        2 / described.scale * (trained.ends.objective.double() - penalty - described.per_observation * count)
    )
    most = ofv_of_one_normal(population)
    asked = trained.ends.converged | (trained.ends.epoch >= _EPOCHS)
    failures = list(trained.failures)
    for fit, failure in enumerate(failures):
        if failure is None and bool(asked[fit]) and not bool(ofv[fit] <= most[fit]):
            cause = (
                f"objective is absurd: an OFV of {float(ofv[fit]):.6g} is above that of one normal with the "
                f"mean and variance of the observations, {float(most[fit]):.6g}"
            )
            failures[fit] = Failure(int(trained.ends.epoch[fit]) + 1, cause)
    return replace(trained, failures=tuple(failures))


def ofv_of_one_normal(population: Population) -> Tensor:
    """-2 log L - n log(2 pi) of all n observations of each fit as one sample of a normal, (B,)."""
    count = population.observation_count.double()
    dv, there = population.dv.double(), population.observed.double()
    mean = (dv * there).sum((0, 1, 2)) / count
    variance = ((dv - mean).square() * there).sum((0, 1, 2)) / count
    return count * (torch.log(variance.clamp(min=1e-300)) + 1)


def cause_of(
    model: Model,
    objective: Objective,
    values: Mapping[str, Tensor],
    loss: Tensor,
    limit: Tensor,
    fit: int,
) -> str:
    """Why a fit stops whose loss, (B,), or gradient is not sound."""
    if objective.mixed:
        estimates = objective.estimates(model, values)
        for group in model.groups:
            diagonal = torch.stack([row[-1] for row in group.cholesky(estimates)])[:, fit]
            if not bool((diagonal > 0).all()):
                return f"{group.of.capitalize()} is not positive definite"
    if not bool(torch.isfinite(loss[fit])):
        return "objective is not finite"
    if bool(loss[fit].abs() > limit[fit]):
        return f"objective of {float(loss[fit]):.3g} is beyond that of any fit"
    return "gradient is not finite"
