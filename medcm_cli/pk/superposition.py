"""Superposition of doses into either compartment of a linear model, with lag times, modelled durations and
endless series: the sums of ``medcm_cli.pk.linear``."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from medcm_cli.numerics.devices import everywhere, nowhere
from medcm_cli.pk import dosing
from medcm_cli.pk.dosing import Dosed, Values
from medcm_cli.pk.moments import moment, moment_difference
from medcm_cli.pk.schedule import Schedule


class Response(Protocol):
    """A unit impulse response (``medcm_cli.pk.linear.Exponentials``)."""

    @property
    def rates(self) -> Tensor: ...
    @property
    def weights(self) -> Tensor: ...


class Responding(Dosed, Protocol):
    """A linear model, as this module sees it (``medcm_cli.pk.linear.LinearModel``)."""

    @property
    def central(self) -> int: ...
    @property
    def volume(self) -> str: ...
    @property
    def amount_per_level(self) -> float: ...
    @property
    def absorption(self) -> bool: ...
    @property
    def response(self) -> Callable[[Values], Response]: ...


def predict(pk: Responding, schedule: Schedule, z: Values) -> Tensor:
    """See ``medcm_cli.pk.solve``; z (S, N, B) each."""
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
