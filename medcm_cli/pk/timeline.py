"""A subject's events in their order, for models that are followed from event to event.

Each subject's time line is cut where something happens to it: a dose begins or ends, an observation, a
reset, a change of parameters. The p-th interval of every subject is advanced together: breakpoints are exact
although they differ between subjects, and loops run over intervals, never over subjects, samples or fits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk import dosing
from medcm_cli.pk.dosing import Dosed, Values
from medcm_cli.pk.edges import Endless, arrives, edges_of, endless_of, given_of, inflow_of, jump_of, reset_of
from medcm_cli.pk.schedule import Schedule

_KEPT = 2**27  # bytes of a time line that is kept beside its schedule


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
class Counts:
    """What numbers of Python say of events and intervals, each found once: ``width``, ``inflow``, ``jump``,
    ``reset`` and ``series`` are those of a ``Timeline``."""

    width: Tensor
    inflow: Tensor
    jump: Tensor
    reset: Tensor | None
    series: list[Series]

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

    @cached_property
    def share(self) -> list[float]:
        """Of the trajectories, in each interval, how many have a width."""
        return (self.width != 0).flatten(1).double().mean(1).tolist()

    @cached_property
    def hours(self) -> list[float]:
        """Of the trajectories that have a width, the mean of it, in each interval."""
        width = self.width.detach().flatten(1)
        return (width.sum(1) / (width != 0).sum(1).clamp(min=1)).tolist()

    @cached_property
    def runs_in(self) -> list[bool]:
        """Whether there is an inflow, in each interval."""
        return (self.inflow != 0).flatten(1).any(1).tolist()

    @cached_property
    def smooth(self) -> list[bool]:
        """Whether amounts go on at each event as they did, but for other parameters."""
        given = (self.jump.detach() != 0).flatten(1).any(1).tolist()
        runs_in = [False, *self.runs_in, False]
        other = {event for of in self.begun for event in of}
        if self.reset is not None:
            other |= {event for event, reset in enumerate(self.reset.flatten(1).any(1).tolist()) if reset}
        return [
            not any((jump, *runs_in[event : event + 2], event in other)) for event, jump in enumerate(given)
        ]


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
    seen: Tensor
    extra: Tensor
    counts: Counts
    z: Values = field(default_factory=dict)
    z_seen: Values = field(default_factory=dict)
    start: Tensor | None = None
    superposed: bool = True

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


class _Known(NamedTuple):
    """A time line without parameters, ``of`` what else than the schedule it depends on; the right ends
    (I, S, N, B) of its intervals, on the clock, and which of the schedule's doses its series are."""

    line: Timeline
    of: tuple[object, ...]
    right: Tensor
    rows: list[int]


def timeline(pk: Dosed, observed: int | None, states: int, schedule: Schedule, z: Values) -> Timeline:
    """For a model with ``states`` compartments, of which ``observed`` (from 0) is observed; None: all are.

    :param z: each of the model's parameters, (S, N, B), or (P, S, N, B) where it changes in time.
    """
    shape = torch.broadcast_shapes(*(value.shape[-3:] for value in z.values()))
    of = (observed, states, pk.dosed, shape)
    known: _Known | None = schedule.known.get("timeline") if _fixed(pk, schedule) else None
    if known is None or known.of != of:
        known = _without_parameters(of, schedule, dosing.doses(pk, schedule, z))
        tensors = [value for value in vars(known.line).values() if isinstance(value, Tensor)]
        # While a graph is captured nothing is computed yet.
        made = not (schedule.time.is_cuda and torch.cuda.is_current_stream_capturing())
        if made and _fixed(pk, schedule) and sum(value.nbytes for value in tensors) < _KEPT:
            schedule.known["timeline"] = known
    z_then = dosing.in_force(schedule, schedule.start, z, schedule.of_dose) if known.rows else {}
    series = [
        replace(one, z={name: value[e] if value.ndim > 3 else value for name, value in z_then.items()})
        for one, e in zip(known.line.series, known.rows, strict=True)
    ]
    return replace(
        known.line,
        series=series,
        z=dosing.in_force(schedule, known.right, z),
        z_seen=dosing.in_force(schedule, schedule.time, z, schedule.of_time),
    )


def _fixed(pk: Dosed, schedule: Schedule) -> bool:
    """Whether no gradient goes through a time line: a fit then has the same in every epoch."""
    if pk.lag or pk.bioavailability or schedule.modelled is not None or torch.is_inference_mode_enabled():
        return False
    parts = (schedule.time, schedule.start, schedule.duration, schedule.amount)
    return not any(part.requires_grad for part in parts)


def _without_parameters(
    of: tuple[int | None, int, int, torch.Size], schedule: Schedule, doses: dosing.Doses
) -> _Known:
    observed, states, _, shape = of
    endless = None if schedule.interval is None else endless_of(schedule, doses)
    given = given_of(schedule, doses, endless)
    edges, places = edges_of(schedule, given, endless, shape)
    left, right = edges[:-1], edges[1:]
    once = torch.where(arrives(schedule, given), given.once, 0)
    at_time = given.start[:, None] == schedule.time
    if schedule.visible is not None:
        at_time = at_time & (schedule.visible > 0)[given.row]

    def extra(compartment: int) -> Tensor:
        visible = at_time & (given.compartment == compartment)[:, None]
        return torch.where(visible, once[:, None], 0).sum(0)

    dtype = schedule.amount.dtype
    width = (right - left).to(dtype)
    inflow = inflow_of(schedule, given, places, left, states)
    jump = jump_of(given, once, places["start"], len(edges), states)
    reset = reset_of(schedule, places, len(edges))
    series = [] if endless is None else _series(schedule, doses, endless, places["series"])
    line = Timeline(
        left=left.to(dtype),
        width=width,
        inflow=inflow,
        jump=jump,
        reset=reset,
        series=series,
        seen=places["time"],
        extra=torch.stack([extra(c) for c in range(states)], 1) if observed is None else extra(observed),
        counts=Counts(width, inflow, jump, reset, series),
    )
    return _Known(line, of, right, [] if endless is None else endless.rows.tolist())


def _series(schedule: Schedule, doses: dosing.Doses, endless: Endless, places: Tensor) -> list[Series]:
    """``Timeline.series``, without parameters."""
    present = endless.present & (schedule.start <= schedule.time.amax(0))
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
            {},
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
        for (_, amounts, _), by_event in zip(states, line.counts.begun, strict=True):
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
