"""An integrated model from event to event, with the derivatives of amounts by logarithms of parameters.

Where K of these are asked for, amounts are (C, 1 + K, S, N, B), their derivatives after them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk.change import Rate, Right, leaf, rows_of
from medcm_cli.pk.derivatives import Direction, moves, shares_of
from medcm_cli.pk.dosing import Dosed, Values
from medcm_cli.pk.endless import Steady
from medcm_cli.pk.formula import Formula
from medcm_cli.pk.interval import follow as follow_interval
from medcm_cli.pk.interval import follow_with
from medcm_cli.pk.linear_part import LinearPart, linear_parts
from medcm_cli.pk.modal import carried
from medcm_cli.pk.moving import Moving, Tangents, moving, stacked
from medcm_cli.pk.passing import FEWEST, SPARSE, Passing, changes, last_of
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.stages import Call, How
from medcm_cli.pk.steps import Control, Way
from medcm_cli.pk.stretch import Stretch, moved_by, share, tensors_of, turned_parts
from medcm_cli.pk.timeline import Series, Timeline, follow, timeline


class Integrable(Dosed, Protocol):
    """A model given as dA/dt, as this module sees it (``medcm_cli.pk.ode.OdeModel``)."""

    @property
    def right_side(self) -> Rate: ...
    @property
    def formula(self) -> Formula | None: ...
    @property
    def timed(self) -> bool: ...
    @property
    def states(self) -> Sequence[str]: ...
    @property
    def seen(self) -> int | None: ...
    def begin(self, z: Values) -> Tensor | None: ...
    @property
    def steady_state_doses(self) -> int: ...
    @property
    def control(self) -> Control: ...
    @property
    def compiled(self) -> bool: ...


def amounts(
    pk: Integrable, schedule: Schedule, z: Values, weights: Values, wrt: Sequence[Direction] = ()
) -> tuple[Tensor, Values]:
    """Amounts in the observed compartment at each observation, (T, S, N, B), or (T, 1 + K, S, N, B) with K
    derivatives, by the logarithms of ``wrt``, not numbers where they cannot be found; of all compartments (T,
    C, ...) where ``pk.seen`` is None; and the parameters, and shares of directions, in force then.

    :param z: of each of the model's parameters, (S, N, B), or (P, S, N, B) where it changes in time, and
        likewise the shares of ``wrt``.
    :param weights: of learned terms, (..., 1, 1, B), with five dimensions.
    :raises InputError: nothing can be solved.
    """

    def build(values: Values) -> Timeline:
        return timeline(pk, pk.seen, len(pk.states), schedule, values)

    z = {**z, **shares_of(wrt)}
    line = build(z)
    moves = [moving(build, pk, z, one) for one in wrt]
    series = [replace(one, z={**one.z, **weights}) for one in line.series]
    line = replace(line, z={**line.z, **weights}, series=series, start=pk.begin(line.z), superposed=False)
    run = _run(pk, line, tuple(wrt), moves)
    whole = line
    if wrt:
        jump, extra = ([move.line.get(name) for move in moves] for name in ("jump", "extra"))
        whole = replace(line, jump=stacked(line.jump, jump, -4), extra=stacked(line.extra, extra, -4))
    if wrt and line.start is not None:
        turned = _turned(pk.begin, line.z, wrt)
        whole = replace(whole, start=stacked(line.start, turned, -4))
    found = follow(whole, pk.seen, run.advance, run.steady)
    if run.notes and bool(found.isnan().all()):
        raise InputError(run.notes[-1])
    return found, line.z_seen


def _run(pk: Integrable, line: Timeline, wrt: tuple[Direction, ...], moved: Sequence[Moving]) -> "_Run":
    """With a linear part of the system apart, where it has one."""
    z, own = line.z, {name: line.z[name] for name in pk.parameters}
    for part in () if pk.formula is None else linear_parts(pk.formula):
        if (named := part.at(own)) is not None:
            turned = [
                {name: turn * share(z, k) for name, turn in part.turned(moves(one), own).items()}
                for k, one in enumerate(wrt)
            ]
            return _Run(pk, replace(line, z={**z, **named}), wrt, moved, part=part, turned_part=turned)
    return _Run(pk, line, wrt, moved)


def _turned(start: Callable[[Values], Tensor | None], z: Values, wrt: Sequence[Direction]) -> list[Tensor]:
    """The derivatives of the amounts that a model begins with by logarithms of parameters."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        shape = torch.broadcast_shapes(*(value.shape for value in z.values() if value.ndim < 5))
        own = {name: leaf(z[name].expand(shape)) for name in dict.fromkeys(map(moves, wrt))}
        amounts = start({**z, **own})
        assert amounts is not None
        rows = rows_of(amounts.movedim(-4, 0), list(own.values()), create_graph=again)
    names = list(own)
    each = [
        [row[names.index(moves(one))] * own[moves(one)] * share(z, place) for row in rows]
        for place, one in enumerate(wrt)
    ]
    found = [torch.stack(of).movedim(0, -4) for of in each]
    return found if again else [turn.detach() for turn in found]


class _Known(NamedTuple):
    """How long the step after an event may be, h, ``pace``; the way along a whole ``period`` from there, and
    how long that is, h."""

    pace: float
    period: tuple[Way, Tensor] | None = None


@dataclass(frozen=True)
class _Run:
    """A model along one time line; ``wrt`` and how each of these moves it; ``notes`` of the solver's;
    ``known``: of what follows an event, where what came before tells; ``passed``: amounts at the end of an
    interval, found with one before it; ``part``, if it is followed apart, and the derivatives of what is
    named of it along ``wrt``."""

    pk: Integrable
    line: Timeline
    wrt: tuple[Direction, ...]
    moves: Sequence[Moving]
    notes: list[str] = field(default_factory=list)
    known: dict[int, _Known] = field(default_factory=dict)
    passed: dict[int, Tensor] = field(default_factory=dict)
    part: LinearPart | None = None
    turned_part: Sequence[Values] = ()

    @cached_property
    def right(self) -> Right:
        shares = shares_of(self.wrt)
        names = tuple(name for name in self.line.z if name not in shares)
        return Right(self.pk.right_side, names, timed=self.pk.timed, formula=self.pk.formula)

    @cached_property
    def parts(self) -> list[Sequence[Tensor]]:
        """Of the rate's formula, in each interval."""
        if self.right.formula is None:
            return []
        found = self.right.formula.parts_of(self.line.z, self.line.width)
        return [of.unbind(0) if of.ndim > 3 else [of] * len(self.line.width) for of in found]

    @cached_property
    def turned(self) -> list[dict[int, Sequence[Tensor]]]:
        """Derivatives of parts by the parameters that move, in each interval."""
        line, count = self.line, len(self.line.width)
        return [
            {place: of.unbind(0) if of.ndim > 3 else [of] * count for place, of in found.items()}
            for found in turned_parts(self.right, line.z, line.width, self.wrt)
        ]

    def advance(self, interval: int, state: Tensor) -> Tensor:
        """Along an interval of the time line."""
        if interval in self.passed:
            return self.passed.pop(interval)
        line, counts = self.line, self.line.counts
        fixed = not line.width.requires_grad and not any("width" in move.line for move in self.moves)
        known = self.known.pop(interval, None)
        if fixed and not counts.share[interval]:
            if known is not None:
                self.known[interval + 1] = known
            return state
        sparse = fixed and counts.share[interval] < SPARSE
        last = interval + 1 if sparse else last_of(line, interval, fixed)
        events = [e for e in range(interval + 1, last + 1) if not fixed or counts.share[e - 1]]
        period = self._period(known, interval, events, state) if fixed and not sparse else None
        if period is not None or len(events) >= FEWEST:
            return self._pass(interval, events, state, known, period)
        moved: list[Tangents] = [move.at(interval) for move in self.moves]
        for k, turned in enumerate(self.turned_part):
            moved[k] = {**moved[k], **{n: of[interval] if of.ndim > 3 else of for n, of in turned.items()}}
        ready = self.part is None and self.right.formula is not None
        stretch = Stretch(
            line.left[interval],
            line.width[interval],
            line.inflow[interval] if counts.runs_in[interval] else None,
            line.z_of(interval),
            moved,
            [of[interval] for of in self.parts] if ready else None,
            [{place: of[interval] for place, of in found.items()} for found in self.turned]
            if ready
            else None,
        )
        how = self._paced(known, interval, interval + 1)
        end = _some(self, stretch, state, how) if sparse else self.along(stretch, state, how)
        self._keep_pace(how, interval, interval + 1)
        return end

    def _paced(self, known: _Known | None, first: int, last: int) -> How:
        """How to go from an event to another, with a step that is known to be good."""
        hours = sum(self.line.counts.hours[first:last])
        tried = None if known is None or not hours else known.pace / hours
        return How(self.pk.control, first=tried, ahead=[])

    def _keep_pace(self, how: How, first: int, last: int) -> None:
        """For what follows, the step that would have followed."""
        if how.ahead and self.line.counts.smooth[last]:
            self.known[last] = _Known(how.ahead[0] * sum(self.line.counts.hours[first:last]))

    def _period(
        self, known: _Known | None, interval: int, events: list[int], state: Tensor
    ) -> tuple[Way, Tensor] | None:
        """The period that begins with an interval, where it is known and what is there is what it begins
        with. Events after it are taken off ``events``."""
        if known is None or known.period is None:
            return None
        if self.pk.timed or changes(self.line) or self.line.counts.runs_in[interval]:
            return None
        (_, path), hours = known.period
        begin, there = path.stages[0][0], state if state.ndim == 4 else state[:, 0]
        control = self.pk.control
        if not bool(((there - begin).abs() <= control.rtol * begin.abs() + control.atol).all()):
            return None
        gone = self.line.width[interval : events[-1]].cumsum(0)
        within = (gone <= hours).flatten(1).all(1).tolist()
        events[:] = [event for event in events if within[event - interval - 1]]
        return known.period if events else None

    def _pass(
        self,
        first: int,
        events: Sequence[int],
        state: Tensor,
        known: _Known | None,
        period: tuple[Way, Tensor] | None,
    ) -> Tensor:
        """Along all intervals up to the last of some events, which change nothing: to the first of these."""
        last = events[-1]
        run = self if period is None else replace(self, part=None, turned_part=())
        passing = Passing(self.line, first, last, self.moves, run.turned_part)
        whole, places = passing.whole(), list[float]()
        if period is None:
            how = self._paced(known, first, last)._replace(places=places)
        else:
            whole = replace(whole, width=period[1].expand(state.shape[-3:]))
            how = How(self.pk.control, known=period[0], places=places)
        after = run.along(whole, state, how)
        inner = events if period is not None else events[:-1]
        found = dict[int, Tensor]() if period is not None else {last: after[-1]}
        step = How(self.pk.control, first=1.0)
        begins = torch.cat([state[None], after[:-1]])
        for numbers, stretch, begin in passing.steps(inner, whole, places, begins):
            ends = run.along(stretch, begin, step).unflatten(-3, (len(numbers), -1)).unbind(-4)
            found |= dict(zip(numbers, ends, strict=True))
        for event in range(first + 1, last + 1):
            state = found.get(event, state)
            self.passed[event - 1] = state
        self._keep_pace(how, first, last)
        return self.passed.pop(first)

    def alone(self) -> "_Run":
        """Without derivatives beside the amounts."""
        return replace(self, wrt=(), moves=())

    def along(self, stretch: Stretch, state: Tensor, how: How) -> Tensor:
        """Amounts at the end of a stretch, or after each step, as ``how`` asks."""
        if self.part is None:
            return self._followed(self.right, stretch, state, how)
        part, order = self.part, [*self.part.inside, *self.part.outside]
        inside, outside = (stretch.some(places) for places in (part.inside, part.outside))
        own = carried(part, stretch.z, state[[*part.inside]], stretch.width, inside.inflow, inside.moved)
        fed = inside.inflow is not None or part.forms
        moved = [{**by, **more} for by, more in zip(outside.moved, own.moved, strict=True)]
        rest = replace(outside, z={**stretch.z, **own.values}, moved=moved)
        right = Right(self.pk.right_side, (), formula=part.fed if fed else part.alone)
        end, there = self._followed(right, rest, state[[*part.outside]], how), own.end
        if how.places is not None:
            at = stretch.width.new_tensor([*how.places[1:], 1.0]).view(-1, 1, 1, 1)
            moved = [{n: at * by if n == "width" else by for n, by in of.items()} for of in inside.moved]
            begin = state[[*part.inside]].unsqueeze(-4)
            own = carried(part, stretch.z, begin, at * stretch.width, inside.inflow, moved)
            there = own.end.movedim(-4, 1)
            end = end.transpose(0, 1)
        found = torch.cat([there, end])[[order.index(c) for c in range(len(order))]]
        return found if how.places is None else found.transpose(0, 1)

    def _followed(self, right: Right, stretch: Stretch, state: Tensor, how: How) -> Tensor:
        """The same, by steps."""
        tensors, pairs, moved = tensors_of(right, stretch), list[tuple[int, int]](), list[Tensor]()
        plain = state.ndim == 4
        for k, own in enumerate(() if plain else moved_by(right, stretch, self.wrt)):
            pairs += [(k, place) for place in own]
            moved += own.values()
        call = Call(
            right,
            how,
            inflow=stretch.inflow is not None,
            moves=tuple(pairs),
            notes=self.notes,
            compiled=self.pk.compiled and plain and how.known is None,
        )
        if plain:
            return follow_interval(call, state, tensors)
        end, tangents = follow_with(call, state[:, 0], state[:, 1:], tensors, moved)
        return torch.cat([end.unsqueeze(-4), tangents], -4)

    def steady(self, series: Series) -> tuple[Tensor, Tensor]:
        """Amounts that a series has led to, and whether (S, N, B) it has."""
        number = next(i for i, other in enumerate(self.line.series) if other is series)
        moved = [move.of_series(number) for move in self.moves]
        whole = replace(self, part=None, turned_part=())
        found = Steady(whole, series, moved, self.pk.control).reached()
        begun = self.line.counts.begun[number]
        if found.ways and len(begun) == 1 and bool(all(of.all() for of in begun.values())):
            way, *others = found.ways
            march, path = way
            pace = path.steps[0][1] * float(march.where.width.mean())
            single = not others and march.where.inflow is None
            self.known[next(iter(begun))] = _Known(pace, (way, series.interval) if single else None)
        return found.amounts, found.settled


def _some(run: _Run, stretch: Stretch, state: Tensor, how: How) -> Tensor:
    """Those trajectories alone that have a width."""
    index, fits = (stretch.width != 0).flatten().nonzero().flatten(), state.shape[-1]

    def chosen(values: Tensor) -> Tensor:
        whole = values.expand(*values.shape[:-3], *state.shape[-3:])
        return whole.flatten(-3).index_select(-1, index)[..., None, None, :]

    def of_fit(values: Tensor) -> Tensor:
        return values.expand(*values.shape[:-1], fits)[..., index % fits]

    part = Stretch(
        chosen(stretch.left),
        chosen(stretch.width),
        None if stretch.inflow is None else chosen(stretch.inflow),
        {
            name: chosen(value) if value.ndim < 5 else of_fit(value)  # which subjects share
            for name, value in stretch.z.items()
        },
        [{name: chosen(turn) for name, turn in of.items()} for of in stretch.moved],
        None if stretch.parts is None else [chosen(value) for value in stretch.parts],
        stretch.turned and [{place: chosen(turn) for place, turn in of.items()} for of in stretch.turned],
    )
    end = run.along(part, chosen(state), how._replace(fit=(index % fits, fits)))
    return state.flatten(-3).index_copy(-1, index, end.flatten(-3)).view_as(state)
