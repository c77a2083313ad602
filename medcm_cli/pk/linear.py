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
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.numerics.devices import everywhere, nowhere
from medcm_cli.pk import carried, dosing, stepwise
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.derivatives import Direction, moves, reverse_over_reverse, shares_of, times_share
from medcm_cli.pk.dosing import Values, with_dose_parameters
from medcm_cli.pk.moments import moment, moment_difference
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
    """A linear compartment model with observations in the central compartment.

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
    longer or shorter, or the ``duration``.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", with_dose_parameters(self))

    @property
    def central(self) -> int:
        """The observed compartment, from 0."""
        return int(self.absorption)

    @property
    def observes(self) -> int:
        """``central``."""
        return self.central

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
        """No: closed forms keep their digits."""
        return False

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
    if _moves(pk, z):
        return stepwise.predict(pk, schedule, z)
    z = _ranked(z)
    if not _plain(pk, schedule):
        return _any_regimen(pk, schedule, z)
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


def _any_regimen(pk: LinearModel, schedule: Schedule, z: Values) -> Tensor:
    """Doses into either compartment, with lag times, modelled durations and endless series."""
    doses = dosing.doses(pk, schedule, z)
    # Hours from the start of a dose to the observation; those before it matter only where they are negative.
    elapsed = schedule.since_end + schedule.infused
    reached = (elapsed > 0) | (schedule.given != 0)
    if doses.lag is not None:
        elapsed = elapsed - doses.lag[:, None]
    if schedule.visible is not None:
        reached = reached & (schedule.visible > 0)
    since = _Since(
        elapsed,
        doses.duration[:, None],
        torch.where(reached, doses.amount[:, None], 0),
        (doses.compartment == pk.central)[:, None],
    )
    interval = None
    if schedule.interval is not None:
        since, interval = _with_series(since, schedule.interval[:, None])
    since = since._replace(amount=torch.where(since.elapsed >= 0, since.amount, 0))
    # Of all that depends on it at the very end of an infusion, the derivatives of one and the same side.
    running = since.elapsed < since.length
    infused = torch.where(running, since.elapsed.clamp(min=0), since.length)
    lasting = since.length > 0
    part = torch.where(lasting, infused / torch.where(lasting, since.length, 1), 1)
    ended = torch.where(running, 0, since.elapsed - since.length)
    passed = _Passed(ended, None if nowhere(lasting) else infused, interval)
    response = pk.response(z)
    depot = pk.absorption and not everywhere(since.direct)
    direct = not nowhere(since.direct)
    share: Tensor | float = 0.0
    for rate, weight in zip(response.rates.unbind(0), response.weights.unbind(0), strict=True):
        if not depot:
            share = share + weight * passed.decay(rate)
            continue
        absorbed = weight * z["KA"] * passed.difference(rate, z["KA"])
        if direct:
            absorbed = torch.where(since.direct, weight * passed.decay(rate), absorbed)
        share = share + absorbed
    return (share * (since.amount * part)).sum(0) / (pk.amount_per_level * z[pk.volume])


class _Since(NamedTuple):
    """Doses as an observation sees them, (E, T, S, N, B) or broadcastable: ``elapsed`` h since each began,
    below 0 before that, ``length`` h, ``amount`` in all, and whether ``direct`` into the central
    compartment."""

    elapsed: Tensor
    length: Tensor
    amount: Tensor
    direct: Tensor


def _with_series(since: _Since, interval: Tensor) -> tuple[_Since, Tensor]:
    """The same, with each endless series, at ``interval`` (E, 1, 1, N, B) h, as that part of it which is over
    at the observation and, one by one, its doses that are under way then, where lag times and durations let
    any be; and ``interval`` of all these."""
    endless = torch.isfinite(interval)
    rows = torch.nonzero(endless.flatten(1).any(1)).flatten()
    every = torch.where(endless, interval, 1)[rows]
    of = _Since(*(values.expand(len(endless), *values.shape[1:])[rows] for values in since))
    with torch.no_grad():
        # Doses that have not begun; the one before those began ``latest`` h ago, others earlier.
        waiting = torch.ceil(-of.elapsed / every).clamp(min=0)
    latest = of.elapsed + waiting * every
    series = torch.where(endless[rows], of.amount, 0)
    with torch.no_grad():
        under_way = torch.where(series != 0, torch.ceil((of.length - latest) / every).clamp(min=0), 0)
        absurd = ~(under_way <= dosing.OVERLAPPING)
        under_way = torch.where(absurd, 0, under_way)
        number = torch.arange(int(under_way.max()), device=every.device).view(-1, 1, 1, 1, 1, 1)
    # No number of doses is right for durations without bound, such as a fit that fails may come to.
    series = torch.where(absurd & (series != 0), torch.nan, series)
    over = of._replace(elapsed=latest + under_way * every, amount=series)
    running = of._replace(
        elapsed=(latest + number * every).flatten(0, 1),
        length=of.length.repeat(len(number), *[1] * (of.length.ndim - 1)),
        amount=torch.where(number < under_way, series, 0).flatten(0, 1),
        direct=of.direct.repeat(len(number), *[1] * (of.direct.ndim - 1)),
    )
    single = since._replace(amount=torch.where(endless, 0, since.amount))
    parts = [single, over, running] if len(number) else [single, over]
    joined = _Since(*(_stacked(values) for values in zip(*parts, strict=True)))
    once = torch.full_like(interval, torch.inf)
    lone = once[:1].expand(len(joined.elapsed) - len(endless) - len(rows), *once.shape[1:])
    return joined, torch.cat([once, torch.where(endless, interval, torch.inf)[rows], lone])


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """One after another along the first dimension, whatever the others that they broadcast to."""
    shape = torch.broadcast_shapes(*(values.shape[1:] for values in parts))
    return torch.cat([values.expand(len(values), *shape) for values in parts])


class _Passed:
    """What has passed since a dose, all (E, T, S, N, B) or broadcastable, h: ``since`` its end, ``infused``
    while it was given (None: all were given at once), ``interval`` of the endless series (None: none is)."""

    def __init__(self, since: Tensor, infused: Tensor | None, interval: Tensor | None) -> None:
        self.since, self.infused = since, infused
        self.endless = None if interval is None else torch.isfinite(interval)
        self.interval = interval if interval is None else torch.where(torch.isfinite(interval), interval, 1)

    def decay(self, rate: Tensor) -> Tensor:
        """g(rate); see the module."""
        result = torch.exp(rate * -self.since)
        if self.infused is not None:
            result = result * moment(rate * self.infused, 0)
        return result if self.interval is None else result * self._series(rate)

    def difference(self, one: Tensor, other: Tensor) -> Tensor:
        """(g(one) - g(other)) / (other - one), by the product rule of divided differences, (f h)[a, b] =
        f[a, b] h(b) + f(a) h[a, b]: of three decreasing factors all terms have one sign.

        It and its derivatives are exact where the rates are equal.
        """
        swap = (one > other).detach()
        low, high = torch.where(swap, other, one), torch.where(swap, one, other)
        gap = high - low
        value, slope = torch.exp(low * -self.since), None
        slope = self.since * value * moment(gap * self.since, 0)
        if self.infused is not None:
            x = low * self.infused
            change = self.infused * moment_difference(x, gap * self.infused)
            slope = slope * moment(high * self.infused, 0) + value * change
            value = value * moment(x, 0)
        if self.interval is not None:
            assert self.endless is not None
            before, after = self._series(low), self._series(high)
            ended = self.interval * torch.exp(low * -self.interval) * moment(gap * self.interval, 0)
            change = torch.where(self.endless, before * after * ended, 0)
            slope = slope * after + value * change
        return slope

    def _series(self, rate: Tensor) -> Tensor:
        """sum_k exp(-rate k I) over k from 0, 1 where there is no series."""
        assert self.interval is not None
        assert self.endless is not None
        return torch.where(self.endless, -1 / torch.expm1(rate * -self.interval), 1)


def _sensitivities(
    pk: LinearModel, schedule: Schedule, z: Values, wrt: Sequence[Direction]
) -> tuple[Tensor, list[Tensor]]:
    """See ``medcm_cli.pk.sensitivities``."""
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
