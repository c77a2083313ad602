"""A subject's events in their order, for models that are followed from event to event.

Each subject's time line is cut where something happens to it: a dose begins or ends, an observation, a
reset, a change of parameters. The p-th interval of every subject is advanced together: breakpoints are exact
although they differ between subjects, and loops run over intervals, never over subjects, samples or fits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk import dosing
from medcm_cli.pk.dosing import Dosed, Values
from medcm_cli.pk.schedule import Schedule


@dataclass(frozen=True)
class Series:
    """One endless series of doses, which have been given every ``interval`` h (1, N, B) for ever where
    ``present`` (S, N, B) and have led to a steady state where the event ``event`` (S, N, B), the end of the
    last of them, is.

    ``amount``, ``duration`` (S, N, B), ``compartment`` (1, N, B); ``z``: parameters in force then.
    """

    present: Tensor
    event: Tensor
    interval: Tensor
    amount: Tensor
    duration: Tensor
    compartment: Tensor
    z: Values


@dataclass(frozen=True)
class Timeline:
    """Events I + 1 and intervals I between them, in hours and amounts, shapes (S, N, B) or broadcastable.

    ``left`` and ``width`` (I, S, N, B); ``inflow`` (I, C, S, N, B), infusions in amount/h; ``jump`` (I + 1,
    C, S, N, B), doses given at once; ``reset`` (I + 1, S, N, B) or None, where amounts become 0; ``z``:
    parameters in force in each interval, (I, S, N, B) where they change. ``seen`` (T, S, N, B): the event of
    each observation, which comes before the jumps of its time, and ``extra`` (T, S, N, B): what of these it
    can see; ``z_seen``: parameters in force then.
    """

    left: Tensor
    width: Tensor
    inflow: Tensor
    jump: Tensor
    reset: Tensor | None
    series: list[Series]
    z: Values
    seen: Tensor
    extra: Tensor
    z_seen: Values

    def z_of(self, interval: int) -> Values:
        """Parameters in force in an interval, (S, N, B)."""
        return {name: value[interval] if value.ndim > 3 else value for name, value in self.z.items()}


def timeline(pk: Dosed, observed: int, states: int, schedule: Schedule, z: Values) -> Timeline:
    """For a model with ``states`` compartments, of which ``observed`` (from 0) is observed.

    :param z: each of the model's parameters, (S, N, B), or (P, S, N, B) where it changes in time.
    """
    doses = dosing.doses(pk, schedule, z)
    start = schedule.start if doses.lag is None else schedule.start + doses.lag
    given = _Given(start, start + doses.duration, doses.amount, doses.compartment, states)
    edges, places = _edges(schedule, given, z)
    amount = given.amount.expand(-1, *edges.shape[1:])
    if schedule.interval is not None:
        amount = torch.where(torch.isfinite(schedule.interval), 0, amount)
    given = given._replace(amount=amount)
    left, right = edges[:-1], edges[1:]
    at_once = _at_once(schedule, given)
    visible = (start[:, None] == schedule.time) & (doses.compartment == observed)[:, None]
    if schedule.visible is not None:
        visible = visible & (schedule.visible > 0)
    return Timeline(
        left=left,
        width=right - left,
        inflow=_inflow(schedule, given, left, right),
        jump=_jump(given, at_once, places["start"], len(edges)),
        reset=_reset(schedule, places, len(edges)),
        series=_series(schedule, doses, given.end, places["end"], z),
        z=dosing.in_force(schedule, right, z),
        seen=places["time"],
        extra=torch.where(visible, at_once[:, None], 0).sum(0),
        z_seen=dosing.in_force(schedule, schedule.time, z),
    )


class _Given(NamedTuple):
    """Doses as the model takes them: ``start`` and ``end`` h, ``amount``, (E, S, N, B) or broadcastable, and
    ``compartment`` (E, 1, N, B), one of ``states``."""

    start: Tensor
    end: Tensor
    amount: Tensor
    compartment: Tensor
    states: int


def _edges(schedule: Schedule, given: _Given, z: Values) -> tuple[Tensor, dict[str, Tensor]]:
    """Times at which something happens, in their order, (I + 1, S, N, B); and of each kind of event which of
    them these are."""
    shapes = (value.shape[-3:] for value in z.values())
    shape = torch.broadcast_shapes(given.start.shape[1:], given.end.shape[1:], *shapes)
    kinds = {
        "reset": schedule.reset,
        "change": schedule.change,
        "end": given.end,
        "time": schedule.time,
        "start": given.start,
    }
    there = {name: values for name, values in kinds.items() if values is not None}
    # What happens after the last observation does not matter, and a far time would be a wide interval.
    last = schedule.time.amax(0)
    times = torch.cat([torch.minimum(values, last).expand(-1, *shape) for values in there.values()])
    edges, order = torch.sort(times, dim=0, stable=True)
    places = torch.argsort(order, dim=0).split([len(values) for values in there.values()])
    return edges, dict(zip(there, places, strict=True))


def _inflow(schedule: Schedule, given: _Given, left: Tensor, right: Tensor) -> Tensor:
    """``Timeline.inflow``."""
    # From the times as they are rounded, so that the whole amount of a short infusion arrives.
    length = given.end - given.start
    at_once = length <= 0
    rate = torch.where(at_once, 0, given.amount / torch.where(at_once, 1, length))
    segment = _segment(schedule, schedule.start)
    inflow = []
    for begin, middle in zip(left, (left + right) / 2, strict=True):
        running = (given.start <= middle) & (middle < given.end) & (segment == _segment(schedule, begin))
        flows = torch.where(running, rate, 0)
        into = [torch.where(given.compartment == c, flows, 0).sum(0) for c in range(given.states)]
        inflow.append(torch.stack(into))
    return torch.stack(inflow)


def _at_once(schedule: Schedule, given: _Given) -> Tensor:
    """The amounts that doses give at once, (E, S, N, B)."""
    last = schedule.time.amax(0)
    own = _segment(schedule, schedule.start) == _segment(schedule, given.start)
    here = (given.end - given.start <= 0) & (given.start <= last) & own
    return torch.where(here, given.amount, 0)


def _jump(given: _Given, at_once: Tensor, of_start: Tensor, edges: int) -> Tensor:
    """``Timeline.jump``."""
    shape = of_start.shape[1:]
    place = given.compartment * edges + of_start
    jump = at_once.new_zeros((given.states * edges, *shape)).scatter_add(0, place, at_once.expand(-1, *shape))
    return jump.view(given.states, edges, *shape).transpose(0, 1)


def _reset(schedule: Schedule, places: dict[str, Tensor], edges: int) -> Tensor | None:
    """``Timeline.reset``."""
    if schedule.reset is None:
        return None
    happens = schedule.reset <= schedule.time.amax(0)
    return torch.stack([((places["reset"] == edge) & happens).any(0) for edge in range(edges)])


def _segment(schedule: Schedule, when: Tensor) -> Tensor:
    """How many resets there have been at each time."""
    if schedule.reset is None:
        return torch.zeros((), dtype=torch.long)
    return (schedule.reset.view(-1, *[1] * (when.ndim - 3), *schedule.reset.shape[1:]) <= when).sum(0)


def _series(schedule: Schedule, doses: dosing.Doses, end: Tensor, of_end: Tensor, z: Values) -> list[Series]:
    if schedule.interval is None:
        return []
    present = torch.isfinite(schedule.interval) & (schedule.amount > 0) & (end <= schedule.time.amax(0))
    z_end = dosing.in_force(schedule, end, z)
    interval = torch.where(present, schedule.interval, 1)
    duration = torch.where(present, doses.duration, 0)
    amount = torch.where(present, doses.amount, 0)
    return [
        Series(
            present[e],
            of_end[e],
            interval[e],
            amount[e],
            duration[e],
            doses.compartment[e],
            {name: value[e] if value.ndim > 3 else value for name, value in z_end.items()},
        )
        for e in range(len(present))
        if bool(present[e].any())
    ]


def follow(
    line: Timeline,
    observed: int,
    advance: Callable[[int, Tensor], Tensor],
    steady: Callable[[Series], Tensor],
) -> Tensor:
    """Amount in the observed compartment at each observation, (T, S, N, B).

    :param advance: (interval, amounts (C, S, N, B) at its left end) -> amounts at its right end.
    :param steady: a series -> amounts just after the last of its doses.
    """
    state = torch.zeros_like(line.jump[0])
    states = [(series, steady(series)) for series in line.series]
    at_events = []
    for event, jump in enumerate(line.jump):
        if event:
            state = advance(event - 1, state)
        if line.reset is not None:
            state = torch.where(line.reset[event], 0, state)
        for series, amounts in states:
            state = torch.where(series.present & (series.event == event), amounts, state)
        at_events.append(state[observed])
        state = state + jump
    seen = line.seen.expand(-1, *at_events[0].shape)
    return torch.stack(at_events).gather(0, seen) + line.extra


def phases(series: Series, states: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """One period of a series, from the end of a dose to the end of the next: stretches of (width (S, N, B) h,
    inflow (C, S, N, B) amount/h), and the amounts (C, S, N, B) that are given at once at its end.

    Of doses longer than the interval, as many overlap as fit, and one more for what is left over.
    """
    whole = torch.floor(series.duration.detach() / series.interval)
    over = (series.duration - whole * series.interval).clamp(min=0)
    lasting = series.duration > 0
    rate = torch.where(lasting, series.amount / torch.where(lasting, series.duration, 1), 0)
    here = torch.stack([(series.compartment == c).to(rate) for c in range(states)])
    stretches = [
        (series.interval - over, here * (whole * rate)),
        (over, here * ((whole + 1) * rate)),
    ]
    return stretches, here * torch.where(lasting, 0, series.amount)
