"""Models of kinetics and of what a drug does, as rate, output and start functions (docs/models.md).

A family is one function, and ``pk.parameters`` say which of it is meant: a depot where there is KA, a
peripheral compartment where there are Q and V2, a Hill exponent where there is HILL.
"""

from medcm_cli.pk.models.binding import (
    binding_rate,
    free_concentration,
    quasi_steady_binding_rate,
    target_at_rest,
)
from medcm_cli.pk.models.effects import effect, effect_rate
from medcm_cli.pk.models.kinetics import (
    concentration,
    endogenous_at_rest,
    endogenous_rate,
    metabolite_concentration,
    metabolite_rate,
)
from medcm_cli.pk.models.responses import (
    inhibited_formation_rate,
    inhibited_loss_rate,
    response,
    response_at_rest,
    stimulated_formation_rate,
    stimulated_loss_rate,
    turnover_rate,
)
from medcm_cli.pk.models.tumours import (
    claret_rate,
    claret_size,
    claret_start,
    simeoni_rate,
    simeoni_size,
    simeoni_start,
)

__all__ = [
    "binding_rate",
    "claret_rate",
    "claret_size",
    "claret_start",
    "concentration",
    "effect",
    "effect_rate",
    "endogenous_at_rest",
    "endogenous_rate",
    "free_concentration",
    "inhibited_formation_rate",
    "inhibited_loss_rate",
    "metabolite_concentration",
    "metabolite_rate",
    "quasi_steady_binding_rate",
    "response",
    "response_at_rest",
    "simeoni_rate",
    "simeoni_size",
    "simeoni_start",
    "stimulated_formation_rate",
    "stimulated_loss_rate",
    "target_at_rest",
    "turnover_rate",
]
