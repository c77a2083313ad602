"""An integrated model from event to event, with the derivatives of amounts by logarithms of parameters.

Where K of these are asked for, amounts are (C, 1 + K, S, N, B), their derivatives after them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.numerics.square import times
from medcm_cli.pk.change import Rate, Right, leaf, rows_of
from medcm_cli.pk.derivatives import Direction, moves, shares_of
from medcm_cli.pk.dosing import Dosed, Values
from medcm_cli.pk.formula import Formula
from medcm_cli.pk.interval import follow as follow_interval
from medcm_cli.pk.interval import follow_with
from medcm_cli.pk.moving import Moving, Tangents, along, moving, stacked
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.stages import Call
from medcm_cli.pk.steady import Followed, Period, Slope, Tolerance, nearly, searched, solution
from medcm_cli.pk.steps import Control
from medcm_cli.pk.stretch import Stretch, moved_by, share, tensors_of, turned_parts
from medcm_cli.pk.timeline import Series, Timeline, follow, timeline

# Where fewer trajectories than this share of all have a width, the others are left out.
_SPARSE = 0.8
# Doses that add up multiply the error of one period, by more than this where a steady state is solved for to
# a hundredth of the tolerances.
_GROWTH = 10.0
_ROUGH = 1e-3  # relative tolerance of the periods that a search for a steady state begins with


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
    run = _Run(pk, line, tuple(wrt), moves)
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


@dataclass(frozen=True)
class _Run:
    """A model along one time line; ``wrt`` and how each of these moves it; ``notes`` of the solver's."""

    pk: Integrable
    line: Timeline
    wrt: tuple[Direction, ...]
    moves: Sequence[Moving]
    notes: list[str] = field(default_factory=list)

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

    @cached_property
    def share(self) -> list[float]:
        """Of the trajectories, in each interval, how many have a width."""
        return (self.line.width != 0).flatten(1).double().mean(1).tolist()

    @cached_property
    def runs_in(self) -> list[bool]:
        """Whether there is an inflow, in each interval."""
        return (self.line.inflow != 0).flatten(1).any(1).tolist()

    def advance(self, interval: int, state: Tensor) -> Tensor:
        """Along an interval of the time line."""
        line = self.line
        stretch = Stretch(
            line.left[interval],
            line.width[interval],
            line.inflow[interval] if self.runs_in[interval] else None,
            line.z_of(interval),
            [move.at(interval) for move in self.moves],
            [of[interval] for of in self.parts] if self.right.formula else None,
            [{place: of[interval] for place, of in found.items()} for found in self.turned]
            if self.right.formula
            else None,
        )
        fixed = not line.width.requires_grad and not any("width" in move.line for move in self.moves)
        if fixed and not self.share[interval]:
            return state
        if fixed and self.share[interval] < _SPARSE:
            return _some(self, stretch, state)
        return self.along(stretch, state, self.pk.control)

    def along(
        self, stretch: Stretch, state: Tensor, control: Control, fit: tuple[Tensor, int] | None = None
    ) -> Tensor:
        """Amounts at the end of a stretch."""
        # A width of 0 may have a derivative.
        fixed = not stretch.width.requires_grad and not any("width" in moved for moved in stretch.moved)
        if fixed and not bool((stretch.width != 0).any()):
            return state
        tensors, runs_in = tensors_of(self.right, stretch), stretch.inflow is not None
        if state.ndim == 4:
            call = Call(self.right, control, runs_in, fit, notes=self.notes, compiled=self.pk.compiled)
            return follow_interval(call, state, tensors)
        pairs, moved = list[tuple[int, int]](), list[Tensor]()
        for k, own in enumerate(moved_by(self.right, stretch, self.wrt)):
            pairs += [(k, place) for place in own]
            moved += own.values()
        call = Call(self.right, control, runs_in, fit, tuple(pairs), self.notes)
        end, tangents = follow_with(call, state[:, 0], state[:, 1:], tensors, moved)
        return torch.cat([end[:, None], tangents], 1)

    def steady(self, series: Series) -> tuple[Tensor, Tensor]:
        """Amounts that a series has led to, and whether (S, N, B) it has."""
        number = next(i for i, other in enumerate(self.line.series) if other is series)
        moved = [move.of_series(number) for move in self.moves]
        return _Steady(self, series, moved, self.pk.control).amounts()


def _some(run: _Run, stretch: Stretch, state: Tensor) -> Tensor:
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
    end = run.along(part, chosen(state), run.pk.control, (index % fits, fits))
    return state.flatten(-3).index_copy(-1, index, end.flatten(-3)).view_as(state)


@dataclass(frozen=True)
class _Steady:
    """What an endless series leads to; ``moved``: how K parameters of doses change it; ``fit``, where it is
    of some trajectories alone, as of ``March``."""

    run: _Run
    series: Series
    moved: Sequence[Tangents]
    control: Control
    fit: tuple[Tensor, int] | None = None

    def amounts(self) -> tuple[Tensor, Tensor]:
        """Those at the time of the event, (C, S, N, B) or (C, 1 + K, S, N, B), and whether (S, N, B) they
        are what the series leads to."""
        x, inverse, settled = self._searched(0)
        growth = inverse.abs().sum(1).amax(0)
        here = self
        if bool((self.series.present & ~(settled & (growth < _GROWTH))).any()):
            own = self.control
            here = replace(self, control=replace(own, rtol=own.rtol / 100, atol=own.atol / 100))
            x, inverse, settled = here._searched(self.run.pk.steady_state_doses, (x, settled))
        found = here._differentiable(x, inverse)
        return (found if here._returns() else here.after(found, "latest")), settled

    def _searched(
        self, doses: int, known: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``steady.searched``. :param known: what was found before, and where."""
        own, fine = self.run.pk.control, self.control
        nothing = torch.zeros_like(self.run.line.jump[0])
        start = self.run.pk.begin(self.series.z)
        nothing = nothing if start is None else start.expand_as(nothing)
        wanted = self.series.present.expand_as(nothing[0])
        fewer = replace(self, run=replace(self.run, wrt=(), moves=()), moved=())
        some = functools.partial(fewer._both, nothing.shape[1:])
        way = Followed(fewer.period, fewer.slope, Tolerance(fine.rtol, fine.atol, own.rtol, own.atol), some)
        if known is None:
            rtol = max(fine.rtol, _ROUGH)
            rough = replace(fewer, control=replace(fine, rtol=rtol, atol=fine.atol * (rtol / fine.rtol)))
            begin = nearly(way, rough.slope, nothing, wanted)
        else:
            begin = torch.where(known[1], known[0].detach(), nothing)
        return searched(way, nothing, wanted, doses, begin)

    def _both(self, shape: Sequence[int], index: Tensor) -> tuple[Period, Slope]:
        """The ways of some trajectories alone."""
        part = self.some(index, shape)
        return part.period, part.slope

    def some(self, index: Tensor, shape: Sequence[int]) -> "_Steady":
        """That of some trajectories (n,) alone, of all (S, N, B)."""

        def chosen(values: Tensor) -> Tensor:
            if values.ndim > 4:  # which subjects share
                return values.expand(*values.shape[:-1], shape[-1])[..., index % shape[-1]]
            flat = values.expand(*values.shape[:-3], *shape).flatten(-3)
            return flat.index_select(-1, index)[..., None, None, :]

        own = {name: chosen(value) for name, value in vars(self.series).items() if isinstance(value, Tensor)}
        z = {name: chosen(value) for name, value in self.series.z.items()}
        return replace(self, series=replace(self.series, **own, z=z), fit=(index % shape[-1], shape[-1]))

    def _returns(self) -> bool:
        """Whether the last dose began a whole period ago, which leaves amounts as they are."""
        latest, moved = self.series.latest, any("latest" in of for of in self.moved)
        return not (latest.requires_grad or moved) and bool((latest == self.series.interval).all())

    def period(self, amounts: Tensor) -> Tensor:
        """From just before a dose to just before the next."""
        return self.after(amounts, "interval")

    def slope(self, amounts: Tensor) -> tuple[Tensor, Tensor]:
        """The same with its derivatives, (C, C, S, N, B)."""
        size = len(amounts)
        unit = torch.eye(size, dtype=amounts.dtype, device=amounts.device).view(size, size, 1, 1, 1)
        end = self.period(torch.cat([amounts[:, None], unit.expand(size, *amounts.shape)], 1))
        return end[:, 0], end[:, 1:]

    def after(self, state: Tensor, hours: str) -> Tensor:
        """``hours``, the name of a field of the series, after a dose begins, from what was there before."""
        given, turns, stretches = self._whole if hours == "interval" else self._pieces(hours)
        if state.ndim > 4:
            given = stacked(given, turns or [None] * (state.shape[1] - 1), 1)
        state = state + given
        for stretch in stretches:
            state = self.run.along(stretch, state, self.control, self.fit)
        return state

    @cached_property
    def _whole(self) -> tuple[Tensor, list[Tensor | None], list[Stretch]]:
        """``_pieces`` of a period, which a search follows several times."""
        return self._pieces("interval")

    def _pieces(self, hours: str) -> tuple[Tensor, list[Tensor | None], list[Stretch]]:
        """What is given at once, how parameters of doses move that, and the stretches after it."""
        count, right = len(self.run.pk.states), self.run.right
        shape = self.run.line.jump.shape[-3:] if self.fit is None else (1, 1, len(self.fit[0]))

        def at_once(series: Series) -> list[Tensor]:
            return [series.at_once(count)]

        def stretches(series: Series) -> list[Tensor]:
            length = getattr(series, hours).expand(shape)
            return [part for stretch in series.stretches(count, length) for part in stretch]

        (given,), pieces = at_once(self.series), stretches(self.series)
        turns = [along(stretches, self.series, moved) for moved in self.moved]
        found = list[Stretch]()
        for place in range(0, len(pieces), 2):
            width, inflow = pieces[place : place + 2]
            # A rate that depends on t is taken at 0: a steady state needs one that does not.
            begin = torch.zeros_like(width)
            moved = [
                {
                    name: by
                    for name, by in zip(("width", "inflow"), turn[place : place + 2], strict=True)
                    if by is not None
                }
                for turn in turns
            ]
            parts = None if right.formula is None else right.formula.parts_of(self.series.z, width)
            found.append(Stretch(begin, width, inflow, self.series.z, moved, parts))
        return given, [along(at_once, self.series, moved)[0] for moved in self.moved], found

    def _differentiable(self, x: Tensor, inverse: Tensor) -> Tensor:
        """The amounts that a period leaves as they are, found already, with their derivatives."""
        moved = [(k, name, turn) for k, of in enumerate(self.moved) for name, turn in of.items()]
        inputs = [
            self.series.amount,
            self.series.duration,
            *self.series.z.values(),
            *(turn for *_, turn in moved),
        ]

        def given(tensors: Sequence[Tensor]) -> "_Steady":
            amount, duration, *rest = tensors
            z = dict(zip(self.series.z, rest, strict=False))
            turns = [dict(of) for of in self.moved]
            for (k, name, _), turn in zip(moved, rest[len(z) :], strict=True):
                turns[k][name] = turn
            series = replace(self.series, amount=amount, duration=duration, z=z)
            return replace(self, series=series, moved=turns)

        def refine(found: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
            here, x = given(tensors), found[0]
            x = x + times(inverse, here.period(x) - x)
            if len(found) == 1:
                return [x]
            end = here.period(torch.cat([x[:, None], found[1]], 1))[:, 1:]
            return [x, found[1] + times(inverse[:, :, None], end - found[1])]

        if not self.moved:
            return solution(refine, [x], inputs)[0]
        with torch.no_grad():
            none = x.new_zeros(len(x), len(self.moved), *x.shape[1:])
            turn = times(inverse[:, :, None], self.period(torch.cat([x[:, None], none], 1))[:, 1:])
        x, turn = solution(refine, [x, turn], inputs)
        return torch.cat([x[:, None], turn], 1)
