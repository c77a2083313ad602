"""What the objectives that are taken at each subject's empirical Bayes estimate have in common."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from medcm_cli.checks import number, one_of, whole
from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Criterion, Objective, State
from medcm_cli.objectives.modes import Modes, find_modes, laplace_covariance
from medcm_cli.objectives.several_modes import best_modes

GRADIENTS = ("fixed", "implicit")


@dataclass(frozen=True, kw_only=True)
class Conditional(Objective):
    """eta_hat, found at the start of every epoch from where the last one left it.

    ``mode_gradient``: with ``fixed``, eta_hat is a constant of the epoch's step, as in the paper; with
    ``implicit`` the gradient follows eta_hat as the trained values move it, so that what is minimised is the
    objective as a function of them alone, as in NONMEM and its like; None is ``usual_gradient``.
    ``mode_tolerance`` bounds the last step of the search for eta_hat, ``mode_iterations`` their number in an
    epoch; with ``mode_stretched`` they become longer where it is slow.
    """

    mode_tolerance: float = 1e-4
    mode_iterations: int = 100
    mode_stretched: bool = False
    mode_gradient: str | None = None
    mixed: ClassVar[bool] = True
    effort: ClassVar[float] = 5.0

    def __post_init__(self) -> None:
        if self.mode_gradient is not None:
            one_of("objective.mode_gradient", self.mode_gradient, GRADIENTS)
        whole("objective.mode_iterations", self.mode_iterations, 1)
        number("objective.mode_tolerance", self.mode_tolerance, above=0)

    @property
    def usual_gradient(self) -> str:
        """``mode_gradient`` where none is given."""
        return "implicit"

    @property
    def follows(self) -> bool:
        """Whether the gradient follows eta_hat."""
        return (self.mode_gradient or self.usual_gradient) == "implicit"

    @abstractmethod
    def of_subjects(self, model: Model, population: Population, state: State) -> Tensor:
        """-2 log L of each subject, without n log(2 pi), as far as the objective approximates it: (1, N,
        B)."""

    def criterion(self, effects: int) -> Criterion:
        """With modes that follow what is estimated (``mode_gradient`` implicit), since the objective is a
        function of that alone."""
        del effects
        exact = replace(
            self, mode_gradient="implicit", mode_tolerance=1e-10, mode_iterations=200, mode_stretched=True
        )
        return Criterion(exact, 2.0)

    def searched(self, model: Model, values: Values, population: Population) -> Model:
        """The model whose modes are eta_hat."""
        del values, population
        return model

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``; the search for modes starts at zero."""
        shape = model.size(population), *population.present.shape
        zero = population.present.new_zeros(shape, dtype=dtype)
        carried = {"eta": zero, "converged": torch.zeros_like(zero[:1], dtype=torch.bool)}
        return State(model.init(streams, dtype), carried, per_subject=tuple(carried))

    @torch.no_grad()
    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        """Find the modes for the values as they stand."""
        del noise
        model = self.searched(model, state.trained, population)
        modes = self._found(find_modes, model, population, state)
        return replace(state, carried={"eta": torch.cat(modes.eta), "converged": modes.converged})

    @torch.no_grad()
    def searched_widely(self, model: Model, population: Population, state: State) -> State:
        """See ``Objective``: a posterior may have several modes."""
        model = self.searched(model, state.trained, population)
        modes = self._found(best_modes, model, population, state)
        return replace(state, carried={"eta": torch.cat(modes.eta), "converged": modes.converged})

    def _found(
        self, search: Callable[..., Modes], model: Model, population: Population, state: State
    ) -> Modes:
        """From the modes that are carried."""
        return search(
            model,
            state.trained,
            population,
            state.carried["eta"].split(1),
            self.mode_tolerance,
            self.mode_iterations,
            stretched=self.mode_stretched,
        )

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``; the gradient flows through G, and through eta_hat where it is implicit."""
        del noise
        return population.sum_subjects(self.of_subjects(model, population, state))

    def unconverged(self, population: Population, state: State) -> Tensor:
        """Subjects whose modes were not found."""
        present = population.present
        return 1 - (state.carried["converged"] * present).sum((0, 1)) / present.sum(0)

    @torch.no_grad()
    def random_effects(self, model: Model, population: Population, state: State) -> tuple[Tensor, Tensor]:
        """Modes of eta and the inverse of the information there."""
        model = self.searched(model, state.trained, population)
        modes = self._found(best_modes, model, population, state)
        return torch.cat(modes.eta), laplace_covariance(model, state.trained, population, modes.eta)
