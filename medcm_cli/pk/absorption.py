"""Absorption of zero order, alone or beside one of first order (Zhou, J Clin Pharmacol 2003, 43:211-227)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medcm_cli.checks import one_of, whole
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.compartments import one_compartment, three_compartment, two_compartment
from medcm_cli.pk.derivatives import Direction, reverse_over_reverse
from medcm_cli.pk.dosing import Values, compartments
from medcm_cli.pk.linear import LinearModel
from medcm_cli.pk.schedule import Schedule

ORDERS = ("zero", "parallel", "sequential")
MAKERS = {1: one_compartment, 2: two_compartment, 3: three_compartment}
_SHARE, _LAG = "share of a dose", "lag of a dose"  # parameters of the parts, which no user names


class AroundLinear(PkModel):
    """A linear model whose doses arrive in a way of their own, and that is else as it is: ``linear``. A
    frozen dataclass that has this as its base gives ``units`` and ``predict``."""

    linear: LinearModel

    @property
    def observes(self) -> int | None:
        """See ``LinearModel``."""
        return self.linear.observes

    @property
    def dosed(self) -> int:
        """The first."""
        return 0

    @property
    def takes_doses(self) -> int:
        """How many compartments, from the first, doses can go to."""
        return self.linear.takes_doses

    @property
    def scales_with_dose(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_double(self) -> bool:
        """See ``LinearModel``."""
        return self.linear.needs_double

    @property
    def above_zero(self) -> tuple[str, ...]:
        """All."""
        return self.parameters

    def half_life(self, z: Values) -> Tensor:
        """See ``LinearModel.half_life``: of what has been absorbed."""
        return self.linear.half_life(z)

    def sensitivities(
        self, schedule: Schedule, z: Values, wrt: Sequence[Direction]
    ) -> tuple[Tensor, list[Tensor]]:
        """See ``medcm_cli.pk.sensitivities``."""
        return reverse_over_reverse(lambda values: self.predict(schedule, values), schedule, z, wrt)


@dataclass(frozen=True)
class MixedAbsorption(AroundLinear):
    """A linear model, in closed form, in which a dose that is given at once arrives in other ways.

    ``order``: zero, evenly over D (h) in the central compartment; or in part so, the share ODDS / (1 + ODDS),
    and the rest from a depot, compartment 1, at rate KA (1/h): from the dose on (parallel) or once the first
    part has arrived (sequential). ODDS is the ratio of the two parts, so that a log-normal ODDS is a
    logit-normal share. What is infused, or given into the central compartment beside a depot, arrives as the
    table has it.

    ``compartments``: 1 to 3; the other options are described at ``LinearModel``.

    :raises InputError: an option of another kind, a dose parameter of a compartment that takes no doses.
    """

    order: str
    compartments: int = 1
    amount_per_level: float = 1000.0
    lag: Mapping[int, str] = field(default_factory=dict)
    bioavailability: Mapping[int, str] = field(default_factory=dict)
    durations: Mapping[int, str] = field(default_factory=dict)
    bioavailability_keeps: str = "rate"
    excreted: str | None = None
    linear: LinearModel = field(init=False, repr=False, compare=False)
    parameters: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        one_of("pk.order", self.order, ORDERS)
        whole("pk.compartments", self.compartments, 1, len(MAKERS))
        make = MAKERS[self.compartments]
        linear = make(
            self.amount_per_level,
            self.order != "zero",
            self.lag,
            self.bioavailability,
            {**self.durations, 1: "D"} if self.order == "zero" else self.durations,
            self.bioavailability_keeps,
            self.excreted,
        )
        own = ("D",) if self.order == "zero" else ("D", "ODDS")
        object.__setattr__(self, "linear", linear)
        object.__setattr__(self, "durations", linear.durations)
        object.__setattr__(self, "parameters", tuple(dict.fromkeys((*linear.parameters, *own))))

    @property
    def units(self) -> dict[str, str]:
        """See ``PkModel.units``."""
        return {**self.linear.units, "D": "{time}", **({} if self.order == "zero" else {"ODDS": "-"})}

    @property
    def outputs(self) -> tuple[str, ...]:
        """See ``LinearModel``."""
        return self.linear.outputs

    def observing(self, outputs: Sequence[str]) -> "MixedAbsorption":
        """See ``LinearModel``."""
        copied = copy.copy(self)
        object.__setattr__(copied, "linear", self.linear.observing(outputs))
        return copied

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``."""
        linear = self.linear
        chosen = given_at_once(self, schedule)
        if self.order == "zero":
            plain = torch.zeros_like(schedule.amount)
            modelled = plain if schedule.modelled is None else schedule.modelled
            return linear.predict(replace(schedule, modelled=torch.where(chosen, 1, modelled)), z)
        own = {**z, _SHARE: z["ODDS"] / (1 + z["ODDS"]), _LAG: z["D"]}
        rest = {**own, _SHARE: 1 / (1 + z["ODDS"])}
        if 1 in self.bioavailability:
            own[_SHARE], rest[_SHARE] = (of[_SHARE] * z[self.bioavailability[1]] for of in (own, rest))
        if 1 in self.lag:
            own[_LAG] = z[self.lag[1]]
            rest[_LAG] = own[_LAG] + z["D"] if self.order == "sequential" else own[_LAG]
        central, waits = linear.central + 1, 1 in self.lag
        zero = replace(
            linear,
            bioavailability={central: _SHARE},
            lag={central: _LAG} if waits else {},
            durations={central: "D"},
        )
        first = replace(
            linear,
            bioavailability={1: _SHARE},
            lag={1: _LAG} if waits or self.order == "sequential" else {},
            durations={},
        )
        found = only(zero, schedule, chosen, own, into=linear.central) + only(first, schedule, chosen, rest)
        others = ~chosen & (schedule.amount > 0)
        return found + only(linear, schedule, others, z) if bool(others.any()) else found


def given_at_once(pk: PkModel, schedule: Schedule) -> Tensor:
    """Which doses (E, 1, N, B) go into the first compartment at once."""
    at_once = (compartments(pk, schedule) == 0) & (schedule.duration == 0)
    return at_once if schedule.modelled is None else at_once & (schedule.modelled == 0)


def only(pk: LinearModel, schedule: Schedule, chosen: Tensor, z: Values, into: int | None = None) -> Tensor:
    """What some of the doses lead to. :param into: the compartment, from 0, over its modelled duration."""
    part = replace(
        schedule,
        amount=torch.where(chosen, schedule.amount, 0),
        given=torch.where(chosen[:, None], schedule.given, 0),
        width=None,
        inflow=None,
        seen=None,
        pieces=None,
    )
    if into is not None:
        where = torch.full_like(schedule.start, into, dtype=torch.long)
        part = replace(part, compartment=where, modelled=torch.ones_like(schedule.amount))
    return pk.predict(part, {name: z[name] for name in pk.parameters})
