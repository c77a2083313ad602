"""First-order conditional estimation: the model linearised at each subject's empirical Bayes estimate."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medcm_cli.checks import one_of
from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import solve_lower, total
from medcm_cli.objectives.base import State, refuse_censored, refuse_sigma
from medcm_cli.objectives.conditional import Conditional
from medcm_cli.objectives.integral import around_modes
from medcm_cli.objectives.marginal import marginal
from medcm_cli.objectives.modes import moving_modes
from medcm_cli.runs.description import Description

FORMULATIONS = ("joint", "linearised", "nonmem")


@dataclass(frozen=True)
class Foce(Conditional):
    """At eta_hat (docs/methods.md, "Objectives"):

    - ``joint`` (Eq. s10): log|G Omega G' + Sigma| + r' Sigma^-1 r + eta_hat' Omega^-1 eta_hat, r = y -
        f(eta_hat);
    - ``linearised`` (Eq. s9): log|C| + r' C^-1 r, r = y - (f(eta_hat) - G eta_hat);
    - ``nonmem``, which is NONMEM's without interaction: as ``joint``, with Sigma at eta = 0 everywhere, in
        the search for eta_hat too.

    ``mode_gradient``, where it is None, is ``implicit`` of ``nonmem`` and ``fixed`` of the paper's two.
    """

    formulation: str = "joint"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("objective.formulation", self.formulation, FORMULATIONS)

    def describe(self) -> Description:
        """-2 log L, approximated at the modes."""
        kinds = {"joint": "Laplace's", "linearised": "first-order conditional"}
        kind = kinds.get(self.formulation, "first-order conditional, without interaction")
        return Description(unit="-2 log L", likelihood=kind, scale=2.0, rank=2)

    @property
    def usual_gradient(self) -> str:
        """See ``Conditional``."""
        return "implicit" if self.formulation == "nonmem" else "fixed"

    def searched(self, model: Model, values: Values, population: Population) -> Model:
        """See ``Conditional``; of ``nonmem`` the spread of observations is that at eta = 0."""
        if self.formulation != "nonmem":
            return model
        typical = model.predict(model.typical(values, population), population)
        return replace(model, error=model.error.without_interaction(values, typical))

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Conditional``.

        :raises InputError: censored observations in the linearised formulation.
        """
        if self.formulation != "joint":
            refuse_sigma(f"objective.formulation={self.formulation}", model)
        if self.formulation == "linearised":
            refuse_censored("objective.formulation=linearised", model, population)
        state = super().init(model, population, streams, dtype)
        self.searched(model, state.trained, population)  # says what error has no spread
        return state

    def of_subjects(self, model: Model, population: Population, state: State) -> Tensor:
        """See ``Conditional``."""
        values = state.trained
        eta: Sequence[Tensor] = state.carried["eta"].split(1)
        if self.formulation == "nonmem":
            model = self.searched(model, values, population)
            return around_modes(model, values, population, eta, exact=False, follow=self.follows)
        if self.follows and torch.is_grad_enabled():
            eta = moving_modes(model, values, population, eta)
            state = replace(state, carried={**state.carried, "eta": torch.cat(list(eta))})
        prediction, columns = self.linearise(model, state, population)
        own = model.of_subjects(values, eta)
        seen = model.error.as_normal(own, prediction, population)
        omega = model.prior_cholesky(values, population)
        if self.formulation == "linearised":
            shift = total([column * effect for column, effect in zip(columns, eta, strict=True)])
            terms = marginal(population, seen.shifted(shift), columns, omega)
            return terms.log_det + terms.quadratic
        place = model.random_effects.place_of_sigma
        informing = None
        if place is not None:
            informing = place, model.error.scale(own, prediction, population).curvature
        terms = marginal(population, seen, columns, omega, informing)
        penalty = total([white * white for white in solve_lower(omega, eta)])
        return terms.log_det + terms.residual + penalty

    def linearise(self, model: Model, state: State, population: Population) -> tuple[Tensor, list[Tensor]]:
        """f and the columns of G at eta_hat."""
        zeta = model.typical(state.trained, population)
        return model.linearise(zeta, population, state.carried["eta"].split(1))
