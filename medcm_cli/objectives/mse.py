"""Mean squared error of typical predictions: a deep compartment model without random effects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.objectives.base import Objective, State
from medcm_cli.streams import Stream


@dataclass(frozen=True)
class Mse(Objective):
    """mean over all observations of (y - f(zeta))^2, IU^2/mL^2 (METHODS, "Objectives")."""

    mixed: ClassVar[bool] = False

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``."""
        del population
        return State(model.init(streams, dtype, typical_only=True))

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``."""
        del noise
        prediction = model.predict(model.typical(state.trained, population), population)
        return population.sum_all((prediction - population.dv).square()) / population.observation_count

    def random_effects(self, model: Model, population: Population, state: State) -> None:
        """No random effects."""
        del model, population, state
