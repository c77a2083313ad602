"""Mean squared error of typical predictions: a deep compartment model without random effects."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.objectives.base import State
from medcm_cli.streams import Stream


@dataclass(frozen=True)
class Mse:
    """mean over all observations of (y - f(zeta))^2, IU^2/mL^2 (METHODS, "Objectives")."""

    mixed: bool = False

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``."""
        del population
        return State(model.init(streams, dtype, typical_only=True))

    def noise_shape(self, model: Model, population: Population) -> None:
        """No noise."""
        del model, population

    def refresh(self, model: Model, population: Population, state: State) -> State:
        """Nothing is carried."""
        del model, population
        return state

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``."""
        del noise
        prediction = model.predict(model.typical(state.trained, population), population)
        return population.sum_all((prediction - population.dv).square()) / population.observation_count

    def random_effects(self, model: Model, population: Population, state: State) -> None:
        """No random effects."""
        del model, population, state
