"""First-order conditional estimation: the model linearised at each subject's empirical Bayes estimate."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from medcm_cli.checks import number, one_of, whole
from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import solve_lower, total
from medcm_cli.objectives.base import Criterion, Objective, State, refuse_censored
from medcm_cli.objectives.marginal import marginal
from medcm_cli.objectives.modes import find_modes, laplace_covariance, moving_modes
from medcm_cli.runs.description import Description


@dataclass(frozen=True)
class Foce(Objective):
    """At eta_hat, found at the start of every epoch (docs/methods.md, "Objectives"):

    - ``joint`` (Eq. s10): log|G Omega G' + Sigma| + r' Sigma^-1 r + eta_hat' Omega^-1 eta_hat, r = y -
        f(eta_hat);
    - ``linearised`` (Eq. s9): log|C| + r' C^-1 r, r = y - (f(eta_hat) - G eta_hat).

    ``mode_gradient``: with ``fixed``, eta_hat is a constant of the epoch's step, as in the paper; with
    ``implicit`` the gradient follows eta_hat as the trained values move it, so that what is minimised is the
    objective as a function of them alone, as in NONMEM and its like.
    ``mode_tolerance`` bounds the last step of the search for eta_hat, ``mode_iterations`` their number in an
    epoch; the search starts from the last epoch's estimates.
    """

    formulation: str = "joint"
    mode_tolerance: float = 1e-4
    mode_iterations: int = 100
    mode_gradient: str = "fixed"
    mixed: ClassVar[bool] = True
    effort: ClassVar[float] = 5.0

    def __post_init__(self) -> None:
        one_of("objective.formulation", self.formulation, ("joint", "linearised"))
        one_of("objective.mode_gradient", self.mode_gradient, ("fixed", "implicit"))
        whole("objective.mode_iterations", self.mode_iterations, 1)
        number("objective.mode_tolerance", self.mode_tolerance, above=0)

    def describe(self) -> Description:
        """-2 log L, approximated at the modes."""
        kind = "Laplace's" if self.formulation == "joint" else "first-order conditional"
        return Description(unit="-2 log L", likelihood=kind, scale=2.0, rank=2)

    def criterion(self, effects: int) -> Criterion:
        """With modes that follow what is estimated (``mode_gradient`` implicit), since the objective is a
        function of that alone."""
        del effects
        return Criterion(
            replace(self, mode_gradient="implicit", mode_tolerance=1e-10, mode_iterations=200), 2.0
        )

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``; the search for modes starts at zero.

        :raises InputError: censored observations in the linearised formulation.
        """
        if self.formulation == "linearised":
            refuse_censored("objective.formulation=linearised", population)
        shape = model.size(population), *population.present.shape
        zero = population.present.new_zeros(shape, dtype=dtype)
        carried = {"eta": zero, "converged": torch.zeros_like(zero[:1], dtype=torch.bool)}
        return State(model.init(streams, dtype), carried, per_subject=tuple(carried))

    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        """Find the modes for the values as they stand."""
        del noise
        start = state.carried["eta"].split(1)
        modes = find_modes(model, state.trained, population, start, self.mode_tolerance, self.mode_iterations)
        return replace(state, carried={"eta": torch.cat(modes.eta), "converged": modes.converged})

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``; the gradient flows through G, and through eta_hat where it is implicit."""
        del noise
        values = state.trained
        eta: Sequence[Tensor] = state.carried["eta"].split(1)
        if self.mode_gradient == "implicit" and torch.is_grad_enabled():
            eta = moving_modes(model, values, population, eta)
            state = replace(state, carried={**state.carried, "eta": torch.cat(list(eta))})
        prediction, columns = self.linearise(model, state, population)
        seen = model.error.as_normal(values, prediction, population)
        omega = model.prior_cholesky(values, population)
        if self.formulation == "linearised":
            shift = total([column * effect for column, effect in zip(columns, eta, strict=True)])
            terms = marginal(population, seen.shifted(shift), columns, omega)
            return population.sum_subjects(terms.log_det + terms.quadratic)
        terms = marginal(population, seen, columns, omega)
        penalty = total([white * white for white in solve_lower(omega, eta)])
        return population.sum_subjects(terms.log_det + terms.residual + penalty)

    def unconverged(self, population: Population, state: State) -> Tensor:
        """Subjects whose modes were not found."""
        present = population.present
        return 1 - (state.carried["converged"] * present).sum((0, 1)) / present.sum(0)

    def linearise(self, model: Model, state: State, population: Population) -> tuple[Tensor, list[Tensor]]:
        """f and the columns of G at eta_hat."""
        zeta = model.typical(state.trained, population)
        return model.linearise(zeta, population, state.carried["eta"].split(1))

    def random_effects(self, model: Model, population: Population, state: State) -> tuple[Tensor, Tensor]:
        """Modes of eta and the inverse of the information there."""
        start = state.carried["eta"].split(1)
        modes = find_modes(model, state.trained, population, start, self.mode_tolerance, self.mode_iterations)
        return torch.cat(modes.eta), laplace_covariance(model, state.trained, population, modes.eta)
