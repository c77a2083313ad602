"""First-order approximation: the model linearised in eta at zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Criterion, Objective, State, refuse_censored, refuse_sigma
from medcm_cli.objectives.marginal import marginal
from medcm_cli.objectives.modes import laplace_covariance
from medcm_cli.objectives.several_modes import best_modes
from medcm_cli.runs.description import Description


@dataclass(frozen=True)
class Fo(Objective):
    """sum_i log|C| + r' C^-1 r with C = G Omega G' + Sigma; G, Sigma and r = y - f at eta = 0
    (docs/methods.md, "Objectives").

    ``mode_tolerance`` and ``mode_iterations`` are for the empirical Bayes estimates reported after the fit.
    """

    mode_tolerance: float = 1e-4
    mode_iterations: int = 100
    mixed: ClassVar[bool] = True

    def describe(self) -> Description:
        """-2 log L of the linearised model."""
        return Description(unit="-2 log L", likelihood="first-order", scale=2.0, rank=1)

    def criterion(self, effects: int) -> Criterion:
        """Itself."""
        del effects
        return Criterion(self, 2.0)

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``. :raises InputError: censored observations, or a random effect of
        the residual error."""
        refuse_censored("objective=fo", model, population)
        refuse_sigma("objective=fo", model)
        return State(model.init(streams, dtype))

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``; the gradient flows through G."""
        del noise
        return population.sum_subjects(self.of_subjects(model, population, state))

    def of_subjects(self, model: Model, population: Population, state: State) -> Tensor:
        """-2 log L of each subject, without n log(2 pi), of the linearised model: (1, N, B)."""
        values = state.trained
        prediction, columns = model.linearise(model.typical(values, population), population)
        seen = model.error.as_normal(values, prediction, population)
        terms = marginal(population, seen, columns, model.prior_cholesky(values, population))
        return terms.log_det + terms.quadratic

    def random_effects(self, model: Model, population: Population, state: State) -> tuple[Tensor, Tensor]:
        """Modes of eta and the inverse of the information there."""
        start = [torch.zeros_like(population.present)[None]] * model.size(population)
        modes = best_modes(model, state.trained, population, start, self.mode_tolerance, self.mode_iterations)
        return torch.cat(modes.eta), laplace_covariance(model, state.trained, population, modes.eta)
