"""Laplace's approximation of each subject's likelihood."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.objectives.base import State
from medcm_cli.objectives.conditional import Conditional
from medcm_cli.objectives.integral import around_modes
from medcm_cli.runs.description import Description


@dataclass(frozen=True)
class Laplace(Conditional):
    """l(eta_hat) + log|Omega| + log|H|, H half the Hessian of l at eta_hat, l = -2 log p(y, eta)
    (docs/methods.md, "Objectives")."""

    effort: ClassVar[float] = 12.0

    def describe(self) -> Description:
        """-2 log L, approximated at the modes."""
        return Description(unit="-2 log L", likelihood="Laplace's, exact Hessian", scale=2.0)

    def of_subjects(self, model: Model, population: Population, state: State) -> Tensor:
        """See ``Conditional``."""
        eta = state.carried["eta"].split(1)
        return around_modes(model, state.trained, population, eta, exact=True, follow=self.follows)
