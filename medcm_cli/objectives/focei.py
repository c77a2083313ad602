"""First-order conditional estimation with interaction, as NONMEM has it."""

from dataclasses import dataclass

from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.objectives.base import State
from medcm_cli.objectives.conditional import Conditional
from medcm_cli.objectives.integral import around_modes
from medcm_cli.runs.description import Description


@dataclass(frozen=True)
class Focei(Conditional):
    """Laplace's approximation with the expected information (docs/methods.md, "Objectives"): l(eta_hat) +
    log|Omega| + log|Omega^-1 + sum_j (a_j a_j' / R_j + c_j c_j' / 2)|, a = df/deta, c = (dR/deta) / R."""

    def describe(self) -> Description:
        """-2 log L, approximated at the modes."""
        kind = "first-order conditional, with interaction"
        return Description(unit="-2 log L", likelihood=kind, scale=2.0)

    def of_subjects(self, model: Model, population: Population, state: State) -> Tensor:
        """See ``Conditional``."""
        eta = state.carried["eta"].split(1)
        return around_modes(model, state.trained, population, eta, exact=False, follow=self.follows)
