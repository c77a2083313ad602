"""Compartment models behind one pair of functions, whichever way a model is solved.

``solve(pk, schedule, z)`` gives predictions; ``sensitivities(pk, schedule, z, wrt)`` gives them with their
derivatives; ``check_schedule(pk, schedule)`` says whether a model can take the regimens of a table.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medcm_cli.pk import dosing, models
from medcm_cli.pk.absorption import MixedAbsorption
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.collected import both_ends, gained
from medcm_cli.pk.compartments import one_compartment, three_compartment, two_compartment
from medcm_cli.pk.derivatives import Along, Direction, parted
from medcm_cli.pk.direct import DirectModel
from medcm_cli.pk.equations import (
    learned_elimination_rate,
    michaelis_menten_rate,
    neural_elimination_rate,
    two_compartment_rate,
)
from medcm_cli.pk.given import with_given
from medcm_cli.pk.linear import LinearModel
from medcm_cli.pk.ode import OdeModel
from medcm_cli.pk.ragged import Ragged
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.transit import TransitAbsorption

__all__ = [
    "Along",
    "DirectModel",
    "Direction",
    "LinearModel",
    "MixedAbsorption",
    "OdeModel",
    "PkModel",
    "Ragged",
    "Schedule",
    "TransitAbsorption",
    "check_schedule",
    "learned_elimination_rate",
    "michaelis_menten_rate",
    "models",
    "neural_elimination_rate",
    "one_compartment",
    "sensitivities",
    "solve",
    "spans",
    "three_compartment",
    "two_compartment",
    "two_compartment_rate",
    "with_given",
]


def solve(pk: PkModel, schedule: Schedule | Ragged, z: Mapping[str, Tensor]) -> Tensor:
    """Predicted level, in the unit of DV, at the schedule's observation times.

    :param z: each of ``pk.parameters`` in its unit, shape (B,) or broadcastable to
        (S, N, B); (P, S, N, B), one value per regime of the schedule, where it changes in time.
    :returns: (T, S, N, B), differentiable with respect to ``z``.
    """
    return schedule.together([_predicted(pk, part, own) for part, own in schedule.apart(z)])


def sensitivities(
    pk: PkModel, schedule: Schedule | Ragged, z: Mapping[str, Tensor], wrt: Sequence[Direction]
) -> tuple[Tensor, list[Tensor]]:
    """Prediction f (T, S, N, B) and df/dlog z for each name in ``wrt``, or a part of it (``Along``), the same
    shape each; all differentiable.

    With z = zeta exp(eta) these are the columns of G = df/deta (docs/methods.md, "Objectives"); of other
    distributions they are so times dlog z/deta.
    """
    if all(isinstance(one, str) for one in wrt):
        found = [_differentiated(pk, part, own, wrt) for part, own in schedule.apart(z)]
    else:
        found = [_differentiated(pk, part, own, of) for part, own, of in parted(z, wrt, schedule.apart)]
    columns = [schedule.together(column) for column in zip(*(own for _, own in found), strict=True)]
    return schedule.together([prediction for prediction, _ in found]), columns


def _predicted(pk: PkModel, schedule: Schedule, z: Mapping[str, Tensor]) -> Tensor:
    if schedule.over is None:
        return pk.predict(schedule, z)
    return gained(pk.predict(both_ends(schedule), z), schedule)


def _differentiated(
    pk: PkModel, schedule: Schedule, z: Mapping[str, Tensor], wrt: Sequence[Direction]
) -> tuple[Tensor, list[Tensor]]:
    if schedule.over is None:
        return pk.sensitivities(schedule, z, wrt)
    prediction, columns = pk.sensitivities(both_ends(schedule), z, wrt)
    return gained(prediction, schedule), [gained(column, schedule) for column in columns]


def spans(pk: PkModel, schedule: Schedule | Ragged, z: Mapping[str, Tensor]) -> Tensor:
    """When each dose begins to arrive and all of it has, after its lag time and over the duration that
    bioavailability may have stretched, h on the clock.

    :param z: as of ``solve``. :returns: (2, E, S, N, B).
    """
    begin, end = list[Tensor](), list[Tensor]()
    for part, own in schedule.apart(z):
        doses = dosing.doses(pk, part, own)
        start = part.start if doses.lag is None else part.start + doses.lag
        both = torch.broadcast_tensors(start, start + doses.duration)
        begin.append(both[0])
        end.append(both[1])
    return torch.stack([schedule.together(begin), schedule.together(end)])


def check_schedule(pk: PkModel, schedule: Schedule | Ragged) -> None:
    """Whether ``pk`` can take the doses of ``schedule``.

    :raises InputError: a dose into a compartment that takes none (CMT), a duration that is to be a parameter
        of the model but has no name there (RATE -2), a steady state on top of what is there (SS 2) in a
        model that cannot add it, infusions of a steady state too many of which overlap.
    """
    for part, _ in schedule.apart({}):
        pk.check(part)
