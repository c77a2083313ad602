"""Absorption through a number of transit compartments that need not be whole (Savic et al., J Pharmacokinet
Pharmacodyn 2007, 34:711-726)."""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medcm_cli.checks import whole
from medcm_cli.errors import InputError
from medcm_cli.pk import amounts, dosing
from medcm_cli.pk.absorption import MAKERS, AroundLinear, given_at_once, only
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.linear import LinearModel
from medcm_cli.pk.moments import moment, three_decays
from medcm_cli.pk.schedule import Schedule

_NODES = 48
_POWER = 3  # of the nodes: where NTR is no whole number, the density has no smooth beginning
# Of a normal number, beyond which less than 1e-11 of a dose is left out.
_SPREAD = 7.0


@dataclass(frozen=True)
class TransitAbsorption(AroundLinear):
    """A linear model whose doses, given at once, pass NTR transit compartments before a depot, compartment 1,
    that empties at rate KA.

    Each is left at rate KTR = (NTR + 1) / MTT: doses enter the depot at amount KTR (KTR t)^NTR exp(-KTR t) /
    Gamma(NTR + 1), every one, not the last alone. MTT in h is the mean time until there, KA in 1/h. The level
    is the integral over the time of entry of that times the closed form after entry, by Gauss and Legendre's
    rule: to 1e-8 of the highest. What is given into the central compartment arrives as the table has it.

    ``compartments``: 1 to 3; the other options are described at ``LinearModel``.

    :raises InputError: an option of another kind, a dose parameter of a compartment that takes no doses.
    """

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
        whole("pk.compartments", self.compartments, 1, len(MAKERS))
        linear = MAKERS[self.compartments](
            self.amount_per_level,
            True,
            self.lag,
            self.bioavailability,
            self.durations,
            self.bioavailability_keeps,
            self.excreted,
        )
        object.__setattr__(self, "linear", linear)
        object.__setattr__(self, "parameters", tuple(dict.fromkeys((*linear.parameters, "NTR", "MTT"))))

    @property
    def units(self) -> dict[str, str]:
        """See ``PkModel.units``."""
        return {**self.linear.units, "NTR": "-", "MTT": "{time}"}

    @property
    def outputs(self) -> tuple[str, ...]:
        """See ``LinearModel``."""
        return self.linear.outputs

    def observing(self, outputs: Sequence[str]) -> "TransitAbsorption":
        """See ``LinearModel``."""
        copied = copy.copy(self)
        object.__setattr__(copied, "linear", self.linear.observing(outputs))
        return copied

    def check(self, schedule: Schedule) -> None:
        """See ``PkModel.check``. :raises InputError: of doses into the depot, also an infusion or a steady
        state."""
        super().check(schedule)
        into_depot = (dosing.compartments(self, schedule) == 0) & (schedule.amount > 0)
        wide = into_depot & ~given_at_once(self, schedule)
        if bool(wide.any()):
            raise InputError("pk=absorption_transit takes doses that are given at once; one has a duration")
        if schedule.interval is not None and bool((into_depot & torch.isfinite(schedule.interval)).any()):
            raise InputError(
                "pk=absorption_transit has no steady state (SS); expected the doses before (ADDL and II)"
            )

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``. :raises InputError: a parameter that changes in time."""
        of_doses = {*self.lag.values(), *self.bioavailability.values()}
        moving = [name for name in self.parameters if name not in of_doses and z[name].ndim > 3]
        if moving:
            raise InputError(
                f"pk=absorption_transit: {moving[0]} changes in time (a covariate, occasions); expected one "
                "value per subject (dataset.over_time)"
            )
        chosen = given_at_once(self, schedule)
        found = _through(self, schedule, torch.where(chosen, schedule.amount, 0), z)
        others = ~chosen & (schedule.amount > 0)
        return found + only(self.linear, schedule, others, z) if bool(others.any()) else found


@functools.lru_cache(maxsize=16)
def _rule(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights, (Q, 1, 1, 1, 1, 1) each."""
    at, weight = np.polynomial.legendre.leggauss(_NODES)
    u, share = (at + 1) / 2, weight / 2
    both = np.stack([u**_POWER, share * _POWER * u ** (_POWER - 1)])
    nodes, weights = torch.tensor(both, dtype=dtype, device=device).view(2, -1, 1, 1, 1, 1, 1).unbind(0)
    return nodes, weights


def _through(pk: TransitAbsorption, schedule: Schedule, amount: Tensor, z: Values) -> Tensor:
    """What doses (E, 1, N, B) into the depot lead to, (T, S, N, B)."""
    linear = pk.linear
    part = dosing.doses(linear, schedule, z)
    amount = torch.where(amount > 0, part.amount, 0)[:, None]  # with bioavailability
    elapsed = schedule.since_end + schedule.infused  # of doses at once, 0 before them
    reached = (elapsed > 0) | (schedule.given != 0)
    if schedule.visible is not None:
        reached = reached & (schedule.visible > 0)
    if part.lag is not None:
        elapsed = elapsed - part.lag[:, None]
    elapsed = elapsed.clamp(min=0)
    shape = z["NTR"] + 1
    rate = shape / z["MTT"]
    # The cube root of a number of this distribution is nearly normal (Wilson and Hilferty, 1931).
    spread = 1 / (9 * shape.detach())
    least, most = (
        shape.detach() * (1 - spread + sign * _SPREAD * spread.sqrt()).clamp(min=0) ** 3 / rate.detach()
        for sign in (-1, 1)
    )
    nodes, weights = _rule(amount.dtype, amount.device)
    begin, end = torch.minimum(least, elapsed), torch.minimum(most, elapsed)
    width = end - begin
    entered = begin + width * nodes  # h after the dose, (Q, E, T, S, N, B)
    x = (rate * entered).clamp(min=torch.finfo(amount.dtype).tiny)
    density = rate * torch.exp(z["NTR"] * torch.log(x) - x - torch.lgamma(shape))
    since = (elapsed - entered).clamp(min=0)
    weight = torch.where(reached, amount * width, 0)

    def came(share: Tensor) -> Tensor:
        """Of what a unit in the depot leads to ``since`` h after it, (T, S, N, B)."""
        found: Tensor = (weight * (weights * density * share).sum(0)).sum(0)
        return found

    if linear.observes is not None:
        return came(_central(linear, since, z)) / (pk.amount_per_level * z[linear.volume])
    there = torch.stack([came(share) for share in _shares(linear, since, z)], 1)
    if amounts.EXCRETED in linear.endpoints:
        share = 1.0 if linear.excreted is None else z[linear.excreted]
        left = came(torch.ones_like(since)) - there.sum(1)
        there = torch.cat([there, (share * left)[:, None]], 1)
    return amounts.observed(linear, there, z, schedule)


def _central(linear: LinearModel, since: Tensor, z: Values) -> Tensor:
    """What the central compartment holds of a unit in the depot ``since`` h before."""
    share, of_bolus = torch.zeros_like(since), linear.response(z)
    for out, weight in zip(of_bolus.rates.unbind(0), of_bolus.weights.unbind(0), strict=True):
        low, gap = torch.minimum(out, z["KA"]), (out - z["KA"]).abs()
        share = share + weight * z["KA"] * since * torch.exp(-low * since) * moment(gap * since, 0)
    return share


def _shares(linear: LinearModel, since: Tensor, z: Values) -> list[Tensor]:
    """The same of every compartment, by number. A peripheral one takes up what each exponential of the
    central one brings, and empties at a rate of its own."""
    of_bolus = linear.response(z)
    found = [torch.exp(-z["KA"] * since), _central(linear, since, z)]
    for flow, volume in (("Q", "V2"), ("Q3", "V3"))[: len(linear.states) - 2]:
        into, back = z[flow] / z[linear.volume], z[flow] / z[volume]
        decays = zip(of_bolus.rates.unbind(0), of_bolus.weights.unbind(0), strict=True)
        each = [weight * three_decays((z["KA"], out, back), since) for out, weight in decays]
        found.append(z["KA"] * into * torch.stack(each).sum(0))
    return found
