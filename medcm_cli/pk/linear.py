"""Linear compartment models in closed form, for any number of doses, by superposition.

The amount in the central compartment after a unit bolus is a sum of exponentials, sum_j w_j exp(-lambda_j
t). After a dose given evenly over l hours (the part that lies before the observation) that ended, or was
still running, ``since_end`` = tau hours ago it is, per unit given, sum_j w_j g(lambda_j) with

    g(lambda) = exp(-lambda tau) M_0(lambda l) [/ (1 - exp(-lambda I))], M_n(x) = int_0^1 u^n exp(-x u) du,

a product of positive factors: nothing cancels, neither for a one-minute bolus seen 48 h later nor inside an
infusion. The factor in brackets is there for a dose that stands for an endless series at intervals I before
it, too. After a dose into a depot that empties at rate ka it is sum_j w_j ka (g(lambda_j) - g(ka)) / (ka -
lambda_j), a divided difference.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk import amounts, carried, stepwise, superposition
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.derivatives import Direction, moves, reverse_over_reverse, shares_of, times_share
from medcm_cli.pk.dosing import Values, with_dose_parameters
from medcm_cli.pk.moments import moment
from medcm_cli.pk.pieces import Pieces
from medcm_cli.pk.schedule import Schedule

_OF_AMOUNTS = ("CL", "Q", "Q3", "V2", "V3", "KA")  # what, with the central volume, moves amounts in time


@dataclass(frozen=True)
class Exponentials:
    """A unit impulse response sum_j weights[j] exp(-rates[j] t): (J, S, N, B) or broadcastable, ``rates`` in
    1/h."""

    rates: Tensor
    weights: Tensor


@dataclass(frozen=True)
class LinearModel(PkModel):
    """A linear compartment model, of which the concentration in the central compartment is observed, or
    several ``endpoints`` (``medcm_cli.pk.amounts``).

    ``response`` maps parameters to what the central compartment holds after a unit bolus into it;
    ``tangents``, where a model has them, maps them and names to the derivatives of that response with
    respect to the logarithm of each named parameter, stacked to (K, J, S, N, B). ``volume`` names the
    central volume (L); ``amount_per_level``, the amount per L that is a level of 1, is 1000 where levels
    are in the amount per mL. With
    ``absorption`` compartment 1 is a depot that empties into the central one, 2, at rate KA (1/h), and doses
    go there unless they say otherwise; without it the central compartment is 1.

    ``lag`` (h), ``bioavailability`` (fraction) and ``durations`` (h): compartment, from 1 -> the parameter
    of doses into it (NONMEM's ALAGn, Fn and Dn), which becomes one of ``parameters``. Bioavailability scales
    the amount; of an infusion whose rate was given ``bioavailability_keeps`` the ``rate``, so that it lasts
    longer or shorter, or the ``duration``. ``excreted``: the parameter, if there is one, that is the share of
    what is eliminated which is excreted, in the urine for example: all of it where that is None.

    :raises InputError: a dose parameter of a compartment that takes no doses.
    """

    parameters: tuple[str, ...]
    volume: str
    amount_per_level: float
    response: Callable[[Values], Exponentials]
    tangents: Callable[[Values, Exponentials, Sequence[str]], Exponentials] | None = None
    absorption: bool = False
    lag: Mapping[int, str] = field(default_factory=dict)
    bioavailability: Mapping[int, str] = field(default_factory=dict)
    durations: Mapping[int, str] = field(default_factory=dict)
    bioavailability_keeps: str = "rate"
    excreted: str | None = None
    endpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = with_dose_parameters(self)
        if not isinstance(self.excreted, str | None) or self.excreted == "":
            raise InputError(f"pk.excreted is {self.excreted!r}; expected the name of a parameter, as in FE")
        own = () if self.excreted is None else (self.excreted,)
        object.__setattr__(self, "parameters", tuple(dict.fromkeys((*names, *own))))

    @property
    def states(self) -> tuple[str, ...]:
        """The names of its compartments, in the order of their numbers."""
        others = [
            name for flow, name in (("Q", "peripheral"), ("Q3", "peripheral_2")) if flow in self.parameters
        ]
        return (*(["depot"] if self.absorption else []), "central", *others)

    @property
    def central(self) -> int:
        """The observed compartment, from 0."""
        return int(self.absorption)

    @property
    def observes(self) -> int | None:
        """``central``, where no other is."""
        return None if self._several else self.central

    @property
    def dosed(self) -> int:
        """The compartment, from 0, of a dose that names none: the first."""
        return 0

    @property
    def takes_doses(self) -> int:
        """How many compartments, from the first, doses can go to."""
        return 1 + self.central

    @property
    def scales_with_dose(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_double(self) -> bool:
        """No: closed forms keep their digits; of several endpoints differences are taken."""
        return self._several

    @property
    def _several(self) -> bool:
        return any(name != "central" for name in self.endpoints)

    @property
    def outputs(self) -> tuple[str, ...]:
        """See ``medcm_cli.pk.amounts``."""
        return amounts.outputs(self)

    def observing(self, outputs: Sequence[str]) -> "LinearModel":
        """See ``PkModel``. :raises InputError: the share of what is excreted is a parameter, and nothing that
        is excreted is observed."""
        if self.excreted is not None and amounts.EXCRETED not in outputs:
            raise InputError(
                f"pk.excreted is {self.excreted}; expected an endpoint whose output is {amounts.EXCRETED}"
            )
        return replace(self, endpoints=tuple(outputs))

    @property
    def units(self) -> dict[str, str]:
        """See ``PkModel.units``."""
        known = PkModel.units.fget(self)  # type: ignore[attr-defined]
        return known if self.excreted is None else {**known, self.excreted: "-"}

    @property
    def above_zero(self) -> tuple[str, ...]:
        """See ``PkModel.above_zero``: all."""
        return self.parameters

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``."""
        return _predict(self, schedule, z)

    def sensitivities(
        self, schedule: Schedule, z: Values, wrt: Sequence[Direction]
    ) -> tuple[Tensor, list[Tensor]]:
        """See ``medcm_cli.pk.sensitivities``."""
        return _sensitivities(self, schedule, z, wrt)

    def half_life(self, z: Values) -> Tensor:
        """log 2 over the smallest eigenvalue of the rate matrix, h."""
        rate = self.response(z).rates.amin(0)
        return math.log(2) / (torch.minimum(rate, z["KA"]) if self.absorption else rate)

    def rates(self, z: Values) -> list[Tensor]:
        """The eigenvalues of minus the rate matrix, 1/h."""
        return [*self.response(z).rates.unbind(0), *([z["KA"]] if self.absorption else [])]

    def rate_matrix(self, z: Values) -> Tensor:
        """K (1/h) of dA/dt = K A, from parameters of shapes that broadcast to (...): (..., compartments,
        compartments), depot first where there is one, then central, then peripheral ones."""
        z = dict(zip(z, torch.broadcast_tensors(*z.values()), strict=True))
        exchanges = [(q, v) for q, v in (("Q", "V2"), ("Q3", "V3")) if q in self.parameters]
        central = self.central
        zero = torch.zeros_like(z[self.volume])
        size = central + 1 + len(exchanges)
        rows = [[zero] * size for _ in range(size)]
        leaving = z["CL"] / z[self.volume]
        for place, (flow, volume) in enumerate(exchanges, central + 1):
            out, back = z[flow] / z[self.volume], z[flow] / z[volume]
            leaving = leaving + out
            rows[place][central], rows[central][place], rows[place][place] = out, back, -back
        rows[central][central] = -leaving
        if self.absorption:
            rows[0][0], rows[central][0] = -z["KA"], z["KA"]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _predict(pk: LinearModel, schedule: Schedule, z: Values) -> Tensor:
    """See ``medcm_cli.pk.solve``."""
    if pk._several:
        return amounts.predict(pk, schedule, z)
    if _moves(pk, z):
        return stepwise.predict(pk, schedule, z)
    z = _ranked(z)
    if not _plain(pk, schedule):
        return superposition.predict(pk, schedule, z)
    if schedule.pieces is not None:
        return _piece_by_piece(pk, schedule.pieces, z)
    if schedule.width is not None:
        return _event_by_event(pk, schedule, z)
    response = pk.response(z)
    rates, weights = _per_dose(response.rates), _per_dose(response.weights)
    level = schedule.given / (pk.amount_per_level * z[pk.volume])
    amplitude = weights * moment(rates * schedule.infused, 0) * level
    return (amplitude * torch.exp(rates * -schedule.since_end)).sum(
        (0, 1)
    )  # (J, E, T, S, N, B) -> (T, S, N, B)


def _moves(pk: LinearModel, z: Values) -> bool:
    """Whether the response to a dose changes in time. Lag times, bioavailability and durations have one value
    for each dose, whatever they are before and after it; a volume, although an observation is divided by it,
    has part in the rates of the hours before."""
    of_doses = {*pk.lag.values(), *pk.bioavailability.values(), *pk.durations.values()}
    return any(z[name].ndim > 3 for name in z if name not in of_doses - {pk.volume, *_OF_AMOUNTS})


def _plain(pk: LinearModel, schedule: Schedule) -> bool:
    """Whether all doses go into the central compartment as the table has them."""
    of_doses = pk.absorption or pk.lag or pk.bioavailability or pk.durations
    features = (schedule.compartment, schedule.interval, schedule.modelled)
    return not of_doses and all(values is None for values in features)


def _event_by_event(pk: LinearModel, schedule: Schedule, z: Values) -> Tensor:
    """The same sum, where there are many doses and observations: each exponential decays from event to event
    and takes up what was given meanwhile, which costs E + T and not E T."""
    assert schedule.width is not None
    assert schedule.inflow is not None
    assert schedule.seen is not None
    response = pk.response(z)
    x = response.rates * schedule.width[:, None]  # (P, J, S, N, B)
    taken = moment(x, 0) * response.weights
    taken = taken * (schedule.inflow / (pk.amount_per_level * z[pk.volume]))[:, None]
    state = torch.zeros_like(taken[0])
    levels = []
    for decay, gain in zip(torch.exp(-x).unbind(0), taken.unbind(0), strict=True):
        state = state * decay + gain
        levels.append(state.sum(0))
    seen = schedule.seen.expand(-1, *levels[0].shape)
    return torch.stack(levels).gather(0, seen)


def _piece_by_piece(pk: LinearModel, pieces: Pieces, z: Values) -> Tensor:
    """The same sum again: what was given since the observation before, and what is left of what was there
    then."""
    response = pk.response(z)
    dose = pieces.inflow / (pk.amount_per_level * z[pk.volume])
    share = moment(response.rates * pieces.width[:, None], 0)
    share = share * torch.exp(response.rates * -pieces.until[:, None])
    added = dose[:, None] * share  # (P, J, S, N, B)
    gains = added.new_zeros((len(pieces.gap), *added.shape[1:]))
    gains = gains.scatter_add(0, pieces.of[:, None].expand_as(added), added) * response.weights
    state = torch.zeros_like(gains[0])
    levels = []
    decays = torch.exp(response.rates * -pieces.gap[:, None])
    for decay, gain in zip(decays.unbind(0), gains.unbind(0), strict=True):
        state = state * decay + gain
        levels.append(state.sum(0))
    return torch.stack(levels)


def _sensitivities(
    pk: LinearModel, schedule: Schedule, z: Values, wrt: Sequence[Direction]
) -> tuple[Tensor, list[Tensor]]:
    """See ``medcm_cli.pk.sensitivities``."""
    if pk._several:
        return reverse_over_reverse(lambda values: amounts.predict(pk, schedule, values), schedule, z, wrt)
    changing = any(value.ndim > 3 for value in (*z.values(), *shares_of(wrt).values()))
    states = pk.central + 1 + ("Q" in pk.parameters) + ("Q3" in pk.parameters)
    if changing and carried.can(pk, states, wrt):
        return carried.sensitivities(pk, states, schedule, z, wrt)
    if changing or pk.tangents is None or not _plain(pk, schedule) or schedule.pieces is not None:
        return reverse_over_reverse(lambda values: _predict(pk, schedule, values), schedule, z, wrt)
    z = _ranked(z)
    response = pk.response(z)
    tangents = pk.tangents(z, response, [moves(one) for one in wrt])
    rates, weights = _per_dose(response.rates), _per_dose(response.weights)
    d_rates, d_weights = _per_dose(tangents.rates), _per_dose(tangents.weights)  # (K, J, 1, 1, S, N, B)
    level = schedule.given / (pk.amount_per_level * z[pk.volume])
    x = rates * schedule.infused
    mean_decay = moment(x, 0)
    decay = level * torch.exp(rates * -schedule.since_end)  # (J, E, T, S, N, B)
    term = weights * mean_decay
    prediction = (term * decay).sum((0, 1))
    # d/dp of weight M_0(rate infused) exp(-rate since_end), with M_0' = -M_1.
    constant = d_weights * mean_decay - weights * schedule.infused * moment(x, 1) * d_rates
    slopes = ((constant - schedule.since_end * (term * d_rates)) * decay).sum((1, 2))  # (K, T, S, N, B)
    return prediction, [
        times_share(one, slope - prediction if moves(one) == pk.volume else slope)
        for one, slope in zip(wrt, slopes.unbind(0), strict=True)
    ]


def _ranked(z: Values) -> Values:
    """Every value as (S, N, B): a value per fit only comes as (B,), and what is stacked before it would pass
    for samples and subjects."""
    return {name: value[(None,) * (3 - value.ndim)] for name, value in z.items()}


def _per_dose(values: Tensor) -> Tensor:
    """(..., J, S, N, B) -> (..., J, dose 1, observation 1, S, N, B)."""
    return values[..., None, None, :, :, :]
