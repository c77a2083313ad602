"""Several outputs of a linear model, by the exponential of its rate matrix.

``central``: the concentration in the central compartment, in the unit of DV; ``depot``, ``peripheral``,
``peripheral_2``: the amount in another one; ``central_amount``, ``peripheral_concentration`` and
``peripheral_2_concentration`` the opposite; ``excreted``: what of the doses has been eliminated since the
first, since a reset, or since a steady state; the share of it that a parameter says, where a model has that.
"""

from typing import Protocol

import torch
from torch import Tensor

from medcm_cli.pk import stepwise
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.outputs import picked
from medcm_cli.pk.schedule import Schedule

EXCRETED = "excreted"
_AMOUNT, _CONCENTRATION = "_amount", "_concentration"
_VOLUMES = {"peripheral": "V2", "peripheral_2": "V3"}


class Linear(stepwise.Rates, Protocol):
    """A linear model, as this module sees it (``medcm_cli.pk.linear.LinearModel``)."""

    @property
    def states(self) -> tuple[str, ...]: ...
    @property
    def endpoints(self) -> tuple[str, ...]: ...
    @property
    def excreted(self) -> str | None: ...


def outputs(pk: Linear) -> tuple[str, ...]:
    """What an endpoint can be of, first the central compartment."""
    others = [name for name in pk.states if name != "central"]
    concentrations = [name + _CONCENTRATION for name in others if name in _VOLUMES]
    return ("central", *others, "central" + _AMOUNT, *concentrations, EXCRETED)


def predict(pk: Linear, schedule: Schedule, z: Values) -> Tensor:
    """See ``medcm_cli.pk.solve``: of each observation the output of its endpoint, concentrations in the unit
    of DV, amounts in that of doses."""
    z = stepwise.expanded(pk, schedule, z)
    collects = EXCRETED in pk.endpoints
    size = len(pk.states)

    def matrix(values: Values) -> Tensor:
        found = pk.rate_matrix(values)
        if not collects:
            return found
        row = torch.zeros_like(found[..., :1, :])
        leaving = values["CL"] / values[pk.volume]
        row[..., 0, pk.central] = leaving if pk.excreted is None else leaving * values[pk.excreted]
        return torch.nn.functional.pad(torch.cat([found, row], -2), (0, 1))

    flow = stepwise.Flow(size + collects, matrix, collects=collects)
    amounts, then = stepwise.amounts(pk, flow, None, schedule, z)

    def one(name: str) -> Tensor:
        place = (
            size
            if name == EXCRETED
            else pk.states.index(name.removesuffix(_AMOUNT).removesuffix(_CONCENTRATION))
        )
        if name == "central" or name.endswith(_CONCENTRATION):
            return amounts[:, place] / (pk.amount_per_level * then[_VOLUMES.get(pk.states[place], pk.volume)])
        return amounts[:, place]

    each = {name: one(name) for name in dict.fromkeys(pk.endpoints)}
    return picked([each[name] for name in pk.endpoints], schedule.endpoint)
