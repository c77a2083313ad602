"""Mean squared error of typical predictions: a deep compartment model without random effects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Objective, State
from medcm_cli.runs.description import Description


@dataclass(frozen=True)
class Mse(Objective):
    """mean over all observations of (y - f(zeta))^2, the unit of DV squared (docs/methods.md, "Objectives").
    Censored ones are left out (Beal's method M1). Of several endpoints each deviation is relative to the size
    of its own, so that the mean has no unit."""

    mixed: ClassVar[bool] = False
    effort: ClassVar[float] = 1.0

    def describe(self) -> Description:
        """No likelihood: the square of a concentration."""
        return Description("mean squared error", power=2, rank=0)

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
        squared = model.error.relative(prediction - population.dv, population).square()
        if population.censored is not None:
            squared = torch.where(population.censored > 0, 0.0, squared)
        return population.sum_all(squared) / self.divisor(population)

    def divisor(self, population: Population) -> Tensor:
        """Observations that count, (B,)."""
        if population.censored is None:
            return population.observation_count.clamp(min=1)
        return population.sum_all(1 - population.censored).clamp(min=1)

    def random_effects(self, model: Model, population: Population, state: State) -> None:
        """No random effects."""
        del model, population, state
