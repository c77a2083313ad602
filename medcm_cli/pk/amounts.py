"""Several outputs of a linear model, by the exponential of its rate matrix.

``central``: the concentration in the central compartment, in the unit of DV; ``depot``, ``peripheral``,
``peripheral_2``: the amount in another one; ``central_amount``, ``peripheral_concentration`` and
``peripheral_2_concentration`` the opposite; ``excreted``: what of the doses has been eliminated since the
first, since a reset, or since a steady state; the share of it that a parameter says, where a model has that.
"""

from typing import Protocol

from torch import Tensor

from medcm_cli.pk import exponential, stepwise
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
    size, collects = len(pk.states), EXCRETED in pk.endpoints
    flow = stepwise.Flow(
        size + collects,
        pk.rate_matrix,
        rates=pk.rates if size <= exponential.MOST else None,
        collects=(lambda values: 1.0 if pk.excreted is None else values[pk.excreted]) if collects else None,
    )
    amounts, then = stepwise.amounts(pk, flow, None, schedule, z)

    return observed(pk, amounts, then, schedule)


def observed(pk: Linear, amounts: Tensor, z: Values, schedule: Schedule) -> Tensor:
    """Of each observation the output of its endpoint, (T, S, N, B), as ``predict`` has it.

    :param amounts: in each compartment and, last, excreted, where an endpoint is that: (T, C, S, N, B).
    :param z: parameters in force then, (S, N, B) or (T, S, N, B).
    """

    def one(name: str) -> Tensor:
        if name == EXCRETED:
            return amounts[:, -1]
        place = pk.states.index(name.removesuffix(_AMOUNT).removesuffix(_CONCENTRATION))
        if name == "central" or name.endswith(_CONCENTRATION):
            return amounts[:, place] / (pk.amount_per_level * z[_VOLUMES.get(pk.states[place], pk.volume)])
        return amounts[:, place]

    each = {name: one(name) for name in dict.fromkeys(pk.endpoints)}
    return picked([each[name] for name in pk.endpoints], schedule.endpoint)
