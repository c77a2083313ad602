"""Doses as a model takes them, one by one, and when something happens to a subject, in order."""

from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk import dosing
from medcm_cli.pk.schedule import Schedule


class Endless(NamedTuple):
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


def endless_of(schedule: Schedule, doses: dosing.Doses) -> Endless:
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
    return Endless(rows, present, interval, latest, number, within)


class Given(NamedTuple):
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


def given_of(schedule: Schedule, doses: dosing.Doses, endless: Endless | None) -> Given:
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
    return Given(
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


def edges_of(
    schedule: Schedule, given: Given, endless: Endless | None, shape: torch.Size
) -> tuple[Tensor, dict[str, Tensor]]:
    """Times at which something happens, in their order, (I + 1, S, N, B); and of each kind of event which of
    them these are.

    :param shape: of parameters, (S, N, B) or broadcastable.
    """
    shape = torch.broadcast_shapes(given.start.shape[1:], given.end.shape[1:], shape)
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


def inflow_of(
    schedule: Schedule, given: Given, places: dict[str, Tensor], left: Tensor, states: int
) -> Tensor:
    """``inflow`` of ``medcm_cli.pk.timeline.Timeline``, by the order of events: where two have one time the
    interval between them has no width, but its width has a derivative.

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


def arrives(schedule: Schedule, given: Given) -> Tensor:
    """Whether a dose begins in time, (X, S, N, B)."""
    own = _segment(schedule, given.table) == _segment(schedule, given.start)
    return (given.start <= schedule.time.amax(0)) & own


def jump_of(given: Given, once: Tensor, of_start: Tensor, edges: int, states: int) -> Tensor:
    """Likewise ``jump``."""
    shape = of_start.shape[1:]
    place = given.compartment * edges + of_start
    jump = once.new_zeros((states * edges, *shape)).scatter_add(0, place, once.expand(-1, *shape))
    return jump.view(states, edges, *shape).transpose(0, 1)


def reset_of(schedule: Schedule, places: dict[str, Tensor], edges: int) -> Tensor | None:
    """Likewise ``reset``."""
    if schedule.reset is None:
        return None
    happens = schedule.reset <= schedule.time.amax(0)
    return torch.stack([((places["reset"] == edge) & happens).any(0) for edge in range(edges)])


def _segment(schedule: Schedule, when: Tensor) -> Tensor:
    """How many resets there have been at each time."""
    if schedule.reset is None:
        return torch.zeros((), dtype=torch.long, device=when.device)
    return (schedule.reset.view(-1, *[1] * (when.ndim - 3), *schedule.reset.shape[1:]) <= when).sum(0)
