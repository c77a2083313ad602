"""A subject's events in their order, for models that are followed from event to event.

Each subject's time line is cut where something happens to it: a dose begins or ends, an observation, a
reset, a change of parameters. The p-th interval of every subject is advanced together: breakpoints are exact
although they differ between subjects, and loops run over intervals, never over subjects, samples or fits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk import dosing
from medcm_cli.pk.dosing import Dosed, Values
from medcm_cli.pk.schedule import Schedule


@dataclass(frozen=True)
class Series:
    """One endless series of doses, given every ``interval`` h (1, N, B) for ever before the event ``event``
    (S, N, B) where ``present`` (S, N, B); the last of those that had begun by then did so ``latest`` h (S,
    N, B) before it.

    ``amount``, ``duration`` (S, N, B), ``compartment`` (1, N, B); ``z``: parameters in force then. ``within``
    (S, N, B): whether few enough doses are under way or waiting to be followed. ``sees`` (T, S, N, B):
    whether an observation, at the time of the event, sees what they led to.
    """

    present: Tensor
    event: Tensor
    interval: Tensor
    latest: Tensor
    amount: Tensor
    duration: Tensor
    compartment: Tensor
    z: Values
    within: Tensor
    sees: Tensor

    def stretches(self, states: int, hours: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What runs in the first ``hours`` (S, N, B), at most an interval, after a dose begins: stretches of
        (width (S, N, B) h, inflow (C, S, N, B) amount/h), for each of the C compartments.

        Of doses longer than the interval, as many overlap as fit, and one more for what is left over.
        """
        here = self.into(states)
        if not self.duration.requires_grad and not bool((self.duration > 0).any()):
            return [(hours, torch.zeros_like(here * self.amount))]
        whole = torch.floor(self.duration.detach() / self.interval)
        over = torch.minimum((self.duration - whole * self.interval).clamp(min=0), hours)
        lasting = self.duration > 0
        rate = torch.where(lasting, self.amount / torch.where(lasting, self.duration, 1), 0)
        return [(over, here * ((whole + 1) * rate)), (hours - over, here * (whole * rate))]

    def detached(self) -> "Series":
        """The same, without gradients."""
        values = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        constant = {name: value.detach() for name, value in values.items()}
        return replace(self, **constant, z={name: value.detach() for name, value in self.z.items()})

    def at_once(self, states: int) -> Tensor:
        """The amounts (C, S, N, B) that a dose gives at once."""
        return self.into(states) * torch.where(self.duration > 0, 0, self.amount)

    def into(self, states: int) -> Tensor:
        """Which compartment a dose goes to, as 1, (C, S, N, B)."""
        return torch.stack([(self.compartment == c).to(self.amount) for c in range(states)])


@dataclass(frozen=True)
class Timeline:
    """Events I + 1 and intervals I between them, in hours and amounts, shapes (S, N, B) or broadcastable.

    ``left`` and ``width`` (I, S, N, B); ``inflow`` (I, C, S, N, B), infusions in amount/h; ``jump`` (I + 1,
    C, S, N, B), doses given at once; ``reset`` (I + 1, S, N, B) or None, where amounts become 0; ``z``:
    parameters in force in each interval, (I, S, N, B) where they change. ``seen`` (T, S, N, B): the event of
    each observation, which comes before the jumps of its time, and ``extra`` (T, S, N, B), or (T, C, S, N, B)
    where all compartments are observed: what of these it can see; ``z_seen``: parameters in force then.
    ``start``: amounts (C, S, N, B) that there are at first and after a reset, (I, C, S, N, B) where they
    depend on the interval, None for none. ``superposed``: a steady state is added to what is there, and does
    not take its place.
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
    start: Tensor | None = None
    superposed: bool = True

    @cached_property
    def begun(self) -> list[dict[int, Tensor]]:
        """Of each series, before which events it stands, and whether (S, N, B) it does."""
        number = torch.arange(len(self.jump), device=self.jump.device).view(-1, 1, 1, 1)
        found = list[dict[int, Tensor]]()
        for series in self.series:
            here = series.present & (series.event == number)
            there = here.flatten(1).any(1).tolist()
            found.append({event: of for event, of in enumerate(here.unbind(0)) if there[event]})
        return found

    def z_of(self, interval: int) -> Values:
        """Parameters in force in an interval, (S, N, B)."""
        return {name: value[interval] if value.ndim == 4 else value for name, value in self.z.items()}

    def start_of(self, event: int) -> Tensor:
        """Amounts that there are where everything begins at an event."""
        if self.start is None:
            return torch.zeros_like(self.jump[0])
        several = self.start.ndim > self.jump[0].ndim
        start = self.start[min(event, len(self.start) - 1)] if several else self.start
        return start.expand_as(self.jump[0])


def timeline(pk: Dosed, observed: int | None, states: int, schedule: Schedule, z: Values) -> Timeline:
    """For a model with ``states`` compartments, of which ``observed`` (from 0) is observed; None: all are.

    :param z: each of the model's parameters, (S, N, B), or (P, S, N, B) where it changes in time.
    """
    doses = dosing.doses(pk, schedule, z)
    endless = None if schedule.interval is None else _endless(schedule, doses)
    given = _given(schedule, doses, endless)
    edges, places = _edges(schedule, given, endless, z)
    left, right = edges[:-1], edges[1:]
    once = torch.where(_arrives(schedule, given), given.once, 0)
    at_time = given.start[:, None] == schedule.time
    if schedule.visible is not None:
        at_time = at_time & (schedule.visible > 0)[given.row]

    def extra(compartment: int) -> Tensor:
        visible = at_time & (given.compartment == compartment)[:, None]
        return torch.where(visible, once[:, None], 0).sum(0)

    dtype = schedule.amount.dtype
    return Timeline(
        left=left.to(dtype),
        width=(right - left).to(dtype),
        inflow=_inflow(schedule, given, places, left, states),
        jump=_jump(given, once, places["start"], len(edges), states),
        reset=_reset(schedule, places, len(edges)),
        series=[] if endless is None else _series(schedule, doses, endless, places["series"], z),
        z=dosing.in_force(schedule, right, z),
        seen=places["time"],
        extra=torch.stack([extra(c) for c in range(states)], 1) if observed is None else extra(observed),
        z_seen=dosing.in_force(schedule, schedule.time, z, schedule.of_time),
    )


class _Endless(NamedTuple):
    """The endless series of a schedule: in which ``rows`` (R,) of its doses; ``present`` (E, 1, N, B),
    ``interval`` h, 1 elsewhere; and, (E, S, N, B), ``latest`` h as in ``Series`` and ``number`` of doses that
    begin or still run afterwards, the dose itself among them; ``within``: whether these are few enough to be
    followed."""

    rows: Tensor
    present: Tensor
    interval: Tensor
    latest: Tensor
    number: Tensor
    within: Tensor


def _endless(schedule: Schedule, doses: dosing.Doses) -> _Endless:
    assert schedule.interval is not None
    present = torch.isfinite(schedule.interval) & (schedule.amount > 0)
    interval = torch.where(present, schedule.interval, 1)
    duration = torch.where(present, doses.duration, 0)
    lag = duration.new_zeros(()) if doses.lag is None else torch.where(present, doses.lag, 0)
    with torch.no_grad():
        waiting = (torch.floor(lag / interval) + 1).clamp(min=0)
    latest = waiting * interval - lag
    with torch.no_grad():
        number = waiting + torch.ceil((duration - latest) / interval).clamp(min=0)
        within = number <= dosing.OVERLAPPING + 1
        number = torch.where(within & present, number, 0)
    rows = torch.nonzero(present.flatten(1).any(1)).flatten()
    return _Endless(rows, present, interval, latest, number, within)


class _Given(NamedTuple):
    """Single doses as the model takes them, (X, S, N, B) or broadcastable: ``start`` and ``end`` h on the
    clock; ``rate`` amount/h between them and the amount that is given ``once`` at the start; ``compartment``
    and ``table``, when the table has it begin; ``row`` (X,) of the schedule's doses."""

    start: Tensor
    end: Tensor
    rate: Tensor
    once: Tensor
    compartment: Tensor
    table: Tensor
    row: Tensor


def _given(schedule: Schedule, doses: dosing.Doses, endless: _Endless | None) -> _Given:
    """Doses that are followed one by one; of an endless series those that begin or still run afterwards."""
    device = schedule.start.device
    row = torch.arange(len(schedule.start), device=device)
    number = torch.zeros(len(row), 1, 1, 1, device=device)
    if endless is not None:
        many = [max(1, int(most)) for most in endless.number.flatten(1).amax(1)]
        row = torch.repeat_interleave(row, torch.tensor(many, device=device))
        number = torch.cat([torch.arange(most, device=device) for most in many]).view(-1, 1, 1, 1)
    amount, duration, start = (
        _rows(values, row) for values in (doses.amount, doses.duration, schedule.start)
    )
    table, begins = start, start
    if doses.lag is not None:
        start = start + _rows(doses.lag, row)
    if endless is not None:
        start = start - number * _rows(endless.interval, row)
        present = _rows(endless.present, row)
        exists = torch.where(present, number < _rows(endless.number, row), number == 0)
        amount = torch.where(exists, amount, 0)
        begins = torch.where(present, torch.maximum(start, table), start)
    else:
        begins = start
    end = start + duration
    # From the times as they are rounded, so that the whole amount of a short infusion arrives.
    length = (end - start).to(amount.dtype)
    lasting = length > 0
    return _Given(
        start=begins,
        end=end,
        rate=torch.where(lasting, amount / torch.where(lasting, length, 1), 0),
        once=torch.where(lasting, 0, amount),
        compartment=doses.compartment[row],
        table=table,
        row=row,
    )


def _rows(values: Tensor, row: Tensor) -> Tensor:
    """Those of doses (X,), from values for each dose or one for all."""
    return values[row] if values.ndim > 3 and len(values) > 1 else values


def _edges(
    schedule: Schedule, given: _Given, endless: _Endless | None, z: Values
) -> tuple[Tensor, dict[str, Tensor]]:
    """Times at which something happens, in their order, (I + 1, S, N, B); and of each kind of event which of
    them these are."""
    shapes = (value.shape[-3:] for value in z.values())
    shape = torch.broadcast_shapes(given.start.shape[1:], given.end.shape[1:], *shapes)
    kinds = {
        "reset": schedule.reset,
        "change": schedule.change,
        "end": given.end,
        "time": schedule.time,
        "series": None if endless is None else schedule.start[endless.rows],
        "start": given.start,
    }
    there = {name: values for name, values in kinds.items() if values is not None}
    # What happens after the last observation does not matter, and a far time would be a wide interval.
    last = schedule.time.amax(0)
    times = torch.cat([torch.minimum(values, last).expand(-1, *shape) for values in there.values()])
    edges, order = torch.sort(times, dim=0, stable=True)
    places = torch.argsort(order, dim=0).split([len(values) for values in there.values()])
    return edges, dict(zip(there, places, strict=True))


def _inflow(
    schedule: Schedule, given: _Given, places: dict[str, Tensor], left: Tensor, states: int
) -> Tensor:
    """``Timeline.inflow``, by the order of events: where two have one time the interval between them has no
    width, but its width has a derivative.

    What begins and ends at each event, summed up along them; in float64, where what is left of rates that
    were added and taken off again is nothing, and none at all where nothing runs.
    """
    begin, end, shape = places["start"], places["end"], places["start"].shape
    if not given.rate.requires_grad and not bool((given.rate != 0).any()):
        return given.rate.new_zeros(()).expand(len(left), states, *shape[1:])
    if schedule.reset is not None:
        number = _segment(schedule, left)
        borders = torch.stack([(number < segment).sum(0) for segment in range(len(schedule.reset) + 2)])
        own = _segment(schedule, given.table).expand(shape)
        begin = torch.maximum(begin, borders.gather(0, own))
        end = torch.maximum(torch.minimum(end, borders.gather(0, own + 1)), begin)
    events = len(left) + 1
    first = (given.compartment * events).expand(shape)
    rate = given.rate.double().expand(shape)

    def along(changes: Tensor) -> Tensor:
        room = changes.new_zeros((states * events, *shape[1:]))
        at_events = room.scatter_add(0, first + begin, changes).scatter_add(0, first + end, -changes)
        return at_events.view(states, events, *shape[1:])[:, :-1].cumsum(1).transpose(0, 1)

    running = along((rate != 0).long())
    return torch.where(running > 0, along(rate), 0).to(given.rate.dtype)


def _arrives(schedule: Schedule, given: _Given) -> Tensor:
    """Whether a dose begins in time, (X, S, N, B)."""
    own = _segment(schedule, given.table) == _segment(schedule, given.start)
    return (given.start <= schedule.time.amax(0)) & own


def _jump(given: _Given, once: Tensor, of_start: Tensor, edges: int, states: int) -> Tensor:
    """``Timeline.jump``."""
    shape = of_start.shape[1:]
    place = given.compartment * edges + of_start
    jump = once.new_zeros((states * edges, *shape)).scatter_add(0, place, once.expand(-1, *shape))
    return jump.view(states, edges, *shape).transpose(0, 1)


def _reset(schedule: Schedule, places: dict[str, Tensor], edges: int) -> Tensor | None:
    """``Timeline.reset``."""
    if schedule.reset is None:
        return None
    happens = schedule.reset <= schedule.time.amax(0)
    return torch.stack([((places["reset"] == edge) & happens).any(0) for edge in range(edges)])


def _segment(schedule: Schedule, when: Tensor) -> Tensor:
    """How many resets there have been at each time."""
    if schedule.reset is None:
        return torch.zeros((), dtype=torch.long, device=when.device)
    return (schedule.reset.view(-1, *[1] * (when.ndim - 3), *schedule.reset.shape[1:]) <= when).sum(0)


def _series(
    schedule: Schedule, doses: dosing.Doses, endless: _Endless, places: Tensor, z: Values
) -> list[Series]:
    """``Timeline.series``."""
    present = endless.present & (schedule.start <= schedule.time.amax(0))
    z_then = dosing.in_force(schedule, schedule.start, z, schedule.of_dose)
    here = (schedule.start[:, None] == schedule.time) & present[:, None]
    sees = here if schedule.visible is None else here & (schedule.visible > 0)

    def of(values: Tensor, dose: int) -> Tensor:
        return values[dose] if values.ndim > 3 and len(values) > 1 else values.reshape(values.shape[-3:])

    return [
        Series(
            present[e],
            places[place],
            endless.interval[e],
            of(endless.latest, e),
            torch.where(present[e], of(doses.amount, e), 0),
            torch.where(present[e], of(doses.duration, e), 0),
            doses.compartment[e],
            {name: value[e] if value.ndim > 3 else value for name, value in z_then.items()},
            of(endless.within, e),
            sees[e],
        )
        for place, e in enumerate(endless.rows.tolist())
    ]


def follow(
    line: Timeline,
    observed: int | None,
    advance: Callable[[int, Tensor], Tensor],
    steady: Callable[[Series], tuple[Tensor, Tensor]],
) -> Tensor:
    """Amount in the observed compartment at each observation, (T, S, N, B), or in all, (T, C, S, N, B); not a
    number after a steady state that there is not. Amounts may be (C, ..., S, N, B), as ``line.jump``,
    ``line.extra`` and ``line.start`` then are, too.

    :param advance: (interval, amounts (C, S, N, B) at its left end) -> amounts at its right end.
    :param steady: a series -> amounts (C, S, N, B) that it has led to, and whether (S, N, B) it has.
    """
    place = slice(None) if observed is None else observed
    state = line.start_of(0)
    states = [(series, *steady(series)) for series in line.series]
    at_events = []
    for event, jump in enumerate(line.jump):
        if event:
            state = advance(event - 1, state)
        if line.reset is not None:
            state = torch.where(line.reset[event], 0 if line.start is None else line.start_of(event), state)
        at_events.append(state[place])
        state = state + jump
        for (_, amounts, _), by_event in zip(states, line.begun, strict=True):
            if (here := by_event.get(event)) is not None:
                state = torch.where(here, state + amounts if line.superposed else amounts, state)
    more = at_events[0].ndim - 3
    seen = line.seen.view(len(line.seen), *[1] * more, *line.seen.shape[1:]).expand(-1, *at_events[0].shape)
    found = torch.stack(at_events).gather(0, seen) + line.extra
    for series, amounts, settled in states:
        sees = series.sees.view(len(series.sees), *[1] * more, *series.sees.shape[1:])
        found = torch.where(sees, (found if line.superposed else line.extra) + amounts[place], found)
        wrong = series.present & ~(settled & series.within)
        found = torch.where(wrong & (sees | (seen > series.event)), torch.nan, found)
    return found
