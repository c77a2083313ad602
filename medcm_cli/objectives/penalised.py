"""An objective with priors of the population: what is minimised has minus their log density, once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.model.penalty import Priors
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Criterion, Objective, PopulationPosterior, State
from medcm_cli.runs.description import Description

SHARE = "priors.share"


@dataclass(frozen=True)
class Penalised(Objective):
    """``objective``, plus the penalty of ``priors`` on its scale. Each subject carries its share of it, so
    that minibatches, and subjects that are looked at one by one, add up to the whole."""

    objective: Objective
    priors: Priors

    def __post_init__(self) -> None:
        if self.objective.describe().scale is None or not self.mixed:
            raise InputError("priors: objective=mse is no likelihood, beside which a prior has no weight")
        if getattr(self.objective, "population", "point") != "point":
            raise InputError("priors: objective.population=variational has its own; choose point")

    def __getattr__(self, name: str) -> Any:  # options of the objective, for who knows it
        if name.startswith("__") or name == "objective":
            raise AttributeError(name)
        return getattr(self.objective, name)

    @property
    def mixed(self) -> bool:  # type: ignore[override]
        """See ``Objective``."""
        return self.objective.mixed

    @property
    def effort(self) -> float:  # type: ignore[override]
        """See ``Objective``."""
        return self.objective.effort

    def describe(self) -> Description:
        """That of the objective: the penalty is no part of the value that is shown."""
        return self.objective.describe()

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``. :raises InputError: a prior of nothing that is estimated."""
        state = self.objective.init(model, population, streams, dtype)
        if state.moved:
            raise InputError(
                "priors: objective=saem takes steps that know of none; choose objective=focei, laplace or agq"
            )
        self.of_priors(model, state.trained)
        share = population.present / population.present.sum(0)
        return replace(
            state, carried={**state.carried, SHARE: share}, per_subject=(*state.per_subject, SHARE)
        )

    def of_priors(self, model: Model, values: Values) -> Tensor:
        """What is added to the objective's value, (B,)."""
        scale = self.objective.describe().scale
        assert scale is not None
        return scale * self.priors.penalty(model, values)

    def first(self, model: Model, population: Population) -> Objective | None:
        """See ``Objective``."""
        found = self.objective.first(model, population)
        return None if found is None else Penalised(found, self.priors)

    def near(self, model: Model, population: Population, state: State) -> State:
        """See ``Objective``."""
        return self.objective.near(model, population, state)

    def noise_shape(self, model: Model, population: Population) -> tuple[int, ...] | None:
        """See ``Objective``."""
        return self.objective.noise_shape(model, population)

    def refresh_shape(self, model: Model, population: Population) -> tuple[int, ...] | None:
        """See ``Objective``."""
        return self.objective.refresh_shape(model, population)

    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        """See ``Objective``."""
        moved = self.objective.refresh(model, population, state, noise)
        return replace(moved, carried={**state.carried, **moved.carried})

    def searched_widely(self, model: Model, population: Population, state: State) -> State:
        """See ``Objective``."""
        moved = self.objective.searched_widely(model, population, state)
        return replace(moved, carried={**state.carried, **moved.carried})

    def held(self) -> Objective | None:
        """See ``Objective``."""
        held = self.objective.held()
        return None if held is None else Penalised(held, self.priors)

    def profile(self, model: Model, population: Population) -> Criterion | None:
        """See ``Objective``."""
        found = self.objective.profile(model, population)
        return found and replace(found, objective=Penalised(found.objective, self.priors))

    def profiled(self, model: Model, population: Population, state: State) -> dict[str, Tensor]:
        """See ``Objective``."""
        return {**self.objective.profiled(model, population, state), SHARE: state.carried[SHARE]}

    def restored(self, model: Model, population: Population, state: State) -> dict[str, Tensor]:
        """See ``Objective``."""
        return self.objective.restored(model, population, state)

    def unconverged(self, population: Population, state: State) -> Tensor | None:
        """See ``Objective``."""
        return self.objective.unconverged(population, state)

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective``."""
        share = population.sum_subjects(state.carried[SHARE])
        of_data = self.objective.loss(model, population, state, noise)
        return of_data + share * self.of_priors(model, state.trained)

    def divisor(self, population: Population) -> Tensor | float:
        """See ``Objective``."""
        return self.objective.divisor(population)

    def estimates(self, model: Model, values: Values) -> Values:
        """See ``Objective``."""
        return self.objective.estimates(model, values)

    def random_effects(
        self, model: Model, population: Population, state: State
    ) -> tuple[Tensor, Tensor] | None:
        """See ``Objective``."""
        return self.objective.random_effects(model, population, state)

    def draw(self, model: Model, state: State, streams: Sequence[Stream], count: int) -> Tensor | None:
        """See ``Objective``."""
        return self.objective.draw(model, state, streams, count)

    def population_posterior(self, model: Model, values: Values) -> PopulationPosterior | None:
        """See ``Objective``."""
        return self.objective.population_posterior(model, values)

    def criterion(self, effects: int) -> Criterion:
        """That of the objective, with the priors."""
        found = self.objective.criterion(effects)
        return replace(found, objective=Penalised(found.objective, self.priors))
