"""Compartment models behind one pair of functions, whichever way a model is solved.

``solve(pk, schedule, z)`` gives predictions; ``sensitivities(pk, schedule, z, wrt)`` gives them with their
derivatives.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from medcm_cli.pk import linear, ode
from medcm_cli.pk.linear import LinearModel, one_compartment, two_compartment
from medcm_cli.pk.ode import OdeModel, two_compartment_rate
from medcm_cli.pk.schedule import Schedule

PkModel = LinearModel | OdeModel

__all__ = [
    "LinearModel",
    "OdeModel",
    "PkModel",
    "Schedule",
    "one_compartment",
    "sensitivities",
    "solve",
    "two_compartment",
    "two_compartment_rate",
]


def solve(pk: PkModel, schedule: Schedule, z: Mapping[str, Tensor]) -> Tensor:
    """Predicted level (IU/mL) at the schedule's observation times.

    :param z: each of ``pk.parameters`` in its unit (L/h, L), shape (B,) or broadcastable to (S, N, B).
    :returns: (T, S, N, B), differentiable with respect to ``z``.
    """
    return linear.predict(pk, schedule, z) if isinstance(pk, LinearModel) else ode.predict(pk, schedule, z)


def sensitivities(
    pk: PkModel, schedule: Schedule, z: Mapping[str, Tensor], wrt: Sequence[str]
) -> tuple[Tensor, list[Tensor]]:
    """Prediction f (T, S, N, B) and df/dlog z for each name in ``wrt``, the same shape each; all
    differentiable.

    With z = zeta exp(eta) these are the columns of G = df/deta (METHODS, "Objectives").
    """
    if isinstance(pk, LinearModel):
        return linear.sensitivities(pk, schedule, z, wrt)
    return ode.sensitivities(pk, schedule, z, wrt)
