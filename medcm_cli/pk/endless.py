"""What an endless series of doses leads to in an integrated model, and the derivatives of that."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from medcm_cli.numerics.square import times
from medcm_cli.pk import periodic
from medcm_cli.pk.change import Right, Where
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.moving import Tangents, along, stacked
from medcm_cli.pk.stages import Call, How
from medcm_cli.pk.steady import Followed, Period, Slope, Tolerance, nearly, searched, solution, unit_of
from medcm_cli.pk.steps import Control, Way
from medcm_cli.pk.stretch import Stretch, tensors_of
from medcm_cli.pk.timeline import Series, Timeline

_ROUGH = 1e-3  # relative tolerance of the periods that a search for a steady state begins with


class Settling(Protocol):
    """A model given as dA/dt, as this module sees it (``medcm_cli.pk.ode.OdeModel``)."""

    @property
    def states(self) -> Sequence[str]: ...
    def begin(self, z: Values) -> Tensor | None: ...
    @property
    def steady_state_doses(self) -> int: ...
    @property
    def control(self) -> Control: ...


class Run(Protocol):
    """That model along one time line, as this module sees it (``medcm_cli.pk.integrated``)."""

    @property
    def pk(self) -> Settling: ...
    @property
    def line(self) -> Timeline: ...
    @property
    def right(self) -> Right: ...
    @property
    def notes(self) -> list[str]: ...
    def alone(self) -> "Run":
        """Without derivatives beside the amounts."""

    def along(self, stretch: Stretch, state: Tensor, how: How) -> Tensor:
        """Amounts at the end of a stretch."""


class _Doses(NamedTuple):
    """What the doses of a series come to for some time: what is given ``at_once`` (C, S, N, B), and the
    ``stretches`` after it, but for their parameters. ``moved``: how parameters of doses move the first."""

    at_once: Tensor
    stretches: list[Stretch]
    moved: list[Tensor | None]


class Reached(NamedTuple):
    """``amounts`` (C, S, N, B), or (C, 1 + K, S, N, B), at the time of an event; whether (S, N, B) they are
    ``settled``, what a series leads to; ``ways`` along the stretches of a period from there, where these are
    known."""

    amounts: Tensor
    settled: Tensor
    ways: Sequence[Way] = ()


@dataclass(frozen=True)
class Steady:
    """What an endless series leads to; ``moved``: how K parameters of doses change it; ``fit``, where it is
    of some trajectories alone, as of ``March``; ``known``: the way along each stretch of the period, where it
    has been found; ``doses`` of a period, where these are fixed."""

    run: Run
    series: Series
    moved: Sequence[Tangents]
    control: Control
    fit: tuple[Tensor, int] | None = None
    known: Sequence[Way] = ()
    doses: _Doses | None = None

    def reached(self) -> Reached:
        """What the series leads to."""
        series, at_once = self.series, self._at_once()
        if at_once is not None:
            x, inverse, ways, doses = at_once
            fixed = not (any(self.moved) or series.amount.requires_grad or series.duration.requires_grad)
            here = replace(self, known=ways, doses=doses if fixed else None)
            return here._at_event(x, inverse, self._wanted(x))
        x, inverse, settled = self._searched(0)
        # Doses that add up multiply the error of one period.
        growth = inverse.abs().sum(1).amax(0)
        here = self
        if bool((series.present & ~(settled & (growth < periodic.GROWTH))).any()):
            own = self.control
            here = replace(self, control=replace(own, rtol=own.rtol / 100, atol=own.atol / 100))
            x, inverse, settled = here._searched(self.run.pk.steady_state_doses, (x, settled))
        return here._at_event(x, inverse, settled)

    def _at_event(self, x: Tensor, inverse: Tensor, settled: Tensor) -> Reached:
        """From what a period leaves as it is, found already."""
        found = self._differentiable(x, inverse)
        if not self._returns():
            return Reached(self.after(found, "latest"), settled)
        return Reached(found, settled, self.known)

    def _wanted(self, like: Tensor) -> Tensor:
        return self.series.present.expand_as(like[0])

    @torch.no_grad()
    def _at_once(self) -> tuple[Tensor, Tensor, list[Way], _Doses] | None:
        """See ``periodic.solved``; and the doses of a period, without derivatives."""
        fine = self.control
        if fine.tableau.diagonal:
            return None
        series, right = self.series, self.run.right
        nothing = self._nothing()
        wanted, count = self._wanted(nothing), len(nothing)
        dose = series.into(count) * series.amount
        width = series.interval.expand_as(nothing[0])
        whole = Stretch(torch.zeros_like(width), width, dose / width, series.z)
        at_once = (1 - series.duration / series.interval).clamp(min=0)
        where = Where.of(tensors_of(right, whole), True)
        begin = periodic.between(right, where, dose, at_once, nothing, wanted)
        if begin is None:
            return None
        doses = self._with_parts(self._doses("interval"))
        parts = [
            periodic.Part(
                Call(right, How(fine), stretch.inflow is not None, notes=self.run.notes),
                tensors_of(right, stretch),
            )
            for stretch in doses.stretches
        ]
        within = Tolerance(fine.rtol, fine.atol, fine.rtol, fine.atol)
        found = periodic.solved(parts, doses.at_once, begin, wanted, within)
        return None if found is None else (*found, doses)

    def _nothing(self) -> Tensor:
        """Amounts before the first dose, (C, S, N, B)."""
        nothing = torch.zeros_like(self.run.line.jump[0])
        start = self.run.pk.begin(self.series.z)
        return nothing if start is None else start.expand_as(nothing)

    def _searched(
        self, doses: int, known: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``steady.searched``. :param known: what was found before, and where."""
        own, fine = self.run.pk.control, self.control
        nothing = self._nothing()
        wanted = self._wanted(nothing)
        fewer = replace(self, run=self.run.alone(), moved=())
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

    def some(self, index: Tensor, shape: Sequence[int]) -> "Steady":
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
        unit = unit_of(amounts).expand(len(amounts), *amounts.shape)
        end = self.period(torch.cat([amounts[:, None], unit], 1))
        return end[:, 0], end[:, 1:]

    def after(self, state: Tensor, hours: str) -> Tensor:
        """``hours``, the name of a field of the series, after a dose begins, from what was there before."""
        doses = self._whole if hours == "interval" else self._with_parts(self._doses(hours))
        given = doses.at_once
        if state.ndim > 4:
            given = stacked(given, doses.moved or [None] * (state.shape[1] - 1), 1)
        state = state + given
        ways = self.known if self.known and hours == "interval" else [None] * len(doses.stretches)
        for stretch, way in zip(doses.stretches, ways, strict=True):
            state = self.run.along(stretch, state, How(self.control, self.fit, way))
        return state

    @cached_property
    def _whole(self) -> _Doses:
        """Those of a period, which a search follows several times."""
        return self._with_parts(self._doses("interval") if self.doses is None else self.doses)

    def _with_parts(self, doses: _Doses) -> _Doses:
        """With the parameters in force."""
        formula, z = self.run.right.formula, self.series.z
        stretches = [
            replace(of, z=z, parts=None if formula is None else formula.parts_of(z, of.width))
            for of in doses.stretches
        ]
        return doses._replace(stretches=stretches)

    def _doses(self, hours: str) -> _Doses:
        count = len(self.run.pk.states)
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
            width, rate = pieces[place : place + 2]
            moved = [
                {
                    name: by
                    for name, by in zip(("width", "inflow"), turn[place : place + 2], strict=True)
                    if by is not None
                }
                for turn in turns
            ]
            # A width of 0 may have a derivative, and a way, that is found without, goes through all of them.
            grows = width.requires_grad or self.series.duration.requires_grad
            if not (grows or any("width" in of for of in moved) or bool((width != 0).any())):
                continue
            inflow = rate if rate.requires_grad or turns or bool((rate != 0).any()) else None
            # A rate that depends on t is taken at 0: a steady state needs one that does not.
            found.append(Stretch(torch.zeros_like(width), width, inflow, {}, moved))
        return _Doses(given, found, [along(at_once, self.series, moved)[0] for moved in self.moved])

    def _differentiable(self, x: Tensor, inverse: Tensor) -> Tensor:
        """The amounts that a period leaves as they are, found already, with their derivatives."""
        moved = [(k, name, turn) for k, of in enumerate(self.moved) for name, turn in of.items()]
        inputs = [
            self.series.amount,
            self.series.duration,
            *self.series.z.values(),
            *(turn for *_, turn in moved),
        ]

        def given(tensors: Sequence[Tensor]) -> "Steady":
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
