"""The geometry of doses and observations, computed once: it does not depend on any parameter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk.pieces import Pieces, pieces_of

# What is a time on the clock, and stays in float64 whatever a model computes in: differences of two late ones
# would lose digits in float32.
CLOCK = ("time", "start", "reset", "change")

# Walking along 2 E + T events costs about as much as this many pairs of a dose and an observation for each.
PAIRS_PER_EVENT = 3


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a regimen may have beside times, durations and amounts; None where nothing needs it.

    ``compartment`` (E, 1, N, B), from 0, -1 for the model's own choice; ``interval`` (E, 1, N, B) h, finite
    where a dose stands for an endless series before it too, that of a steady state; ``modelled`` (E, 1, N,
    B), 1 where the duration is a parameter of the model and ``duration`` 0; ``rated`` (E, 1, N, B), 1 where
    a rate was given, 2 for a constant infusion (``medcm_cli.pk.dosing.doses``); ``visible`` (E, T, 1, N, B),
    1 where a dose can reach an observation; ``reset`` (R, 1, N, B), when all amounts become 0, infinite for
    padding; ``change`` (P, 1, N, B), when each regime of parameters that change ends (it holds until then,
    that time included), the last infinite. What is evaluated at a record has the regime of that record, which
    its time alone does not tell: ``of_dose`` (E, 1, N, B) and ``of_time`` (T, 1, N, B), from 0; None: that
    of its time. ``endpoint`` (T, 1, N, B): the number, from 0, of the model's output that an
    observation is of; None: the first. ``over`` (T, 1, N, B) h: an observation is of what an output has
    gained over so long until then (``medcm_cli.pk.collected``), 0 for the output itself; None: all are so.
    """

    compartment: Tensor | None = None
    interval: Tensor | None = None
    modelled: Tensor | None = None
    rated: Tensor | None = None
    visible: Tensor | None = None
    reset: Tensor | None = None
    change: Tensor | None = None
    of_dose: Tensor | None = None
    of_time: Tensor | None = None
    endpoint: Tensor | None = None
    over: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether superposition of the doses as they are is all that there is to do."""
        kinds = (self.compartment, self.interval, self.modelled, self.visible, self.reset)
        return all(values is None for values in kinds)


@dataclass(frozen=True, kw_only=True)
class Schedule(Features):
    """Observation times and doses of each subject, dimensions (dose E, observation T, sample 1, subject N,
    fit B), in hours on a clock that never runs back.

    ``time`` (T, 1, N, B); ``start``, ``duration`` (E, 1, N, B), a duration of 0 is a dose given at once;
    ``amount`` (E, 1, N, B), 0 for padding; and its ``Features``.

    ``since_end`` (E, T, 1, N, B): hours from the end of a dose to the observation, 0 before that end;
    ``infused`` (E, T, 1, N, B): hours of the infusion that lie before the observation, and ``given`` the
    amount infused in them. Where no observation falls inside an infusion or before a dose, the T of these
    two is 1 and what depends on them is computed once for all observations.

    Where there are many doses and observations, and nothing that is None by default, the same as a sequence
    of events P = 2 E + T: ``width`` (P, 1, N, B), hours since the event before; ``inflow`` (P, 1, N, B),
    amount given in them at a constant rate; ``seen`` (T, 1, N, B), which event an observation is. Of a group
    of a table whose subjects differ much in length, the same as ``pieces`` instead.
    """

    time: Tensor
    start: Tensor
    duration: Tensor
    amount: Tensor
    since_end: Tensor
    infused: Tensor
    given: Tensor
    width: Tensor | None = None
    inflow: Tensor | None = None
    seen: Tensor | None = None
    pieces: Pieces | None = None

    @classmethod
    def build(
        cls,
        time: Tensor,
        start: Tensor,
        duration: Tensor,
        amount: Tensor,
        *,
        features: Features | None = None,
        group: bool = False,
    ) -> "Schedule":
        """From observation times (T, 1, N, B), doses (E, 1, N, B) and what else a regimen has; of a
        ``group`` of the subjects of a table, whose observations are in order."""
        features = features or Features()
        since_end, infused, given = _passed(time, start, duration, amount, features)
        width = inflow = seen = pieces = None
        doses, observations = len(start), len(time)
        if features.plain and group:
            pieces = pieces_of(time, start, duration, amount)
            if doses * observations <= PAIRS_PER_EVENT * (len(pieces.width) + observations):
                pieces = None
        elif features.plain and doses * observations > PAIRS_PER_EVENT * (2 * doses + observations):
            width, inflow, seen = _events(time, start, duration, amount)
        return cls(
            time=time,
            start=start,
            duration=duration,
            amount=amount,
            since_end=since_end,
            infused=infused,
            given=given,
            **{part.name: getattr(features, part.name) for part in fields(features)},
            width=width,
            inflow=inflow,
            seen=seen,
            pieces=pieces,
        )

    @cached_property
    def known(self) -> dict[str, Any]:
        """What follows from it alone, put here by what found it."""
        return {}

    def each(self, change: Callable[[Tensor], Tensor]) -> "Schedule":
        """Every tensor changed alike."""
        parts: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        parts |= {name: change(value) for name, value in parts.items() if isinstance(value, Tensor)}
        if self.pieces is not None:
            parts["pieces"] = Pieces(*map(change, self.pieces))
        return Schedule(**parts)

    def to(self, dtype: torch.dtype) -> "Schedule":
        """With every number in a type, but for times on the clock."""
        cast = self.each(lambda values: values.to(dtype) if values.is_floating_point() else values)
        return replace(cast, **{name: getattr(self, name) for name in CLOCK})

    def at(self, index: Tensor) -> "Schedule":
        """Some subjects of each fit: ``index`` (n, B) into its N."""
        return self.each(lambda values: at(values, index))

    def apart(self, z: Mapping[str, Tensor]) -> list[tuple["Schedule", Mapping[str, Tensor]]]:
        """The groups that subjects come in, each a schedule and parameters: one."""
        return [(self, z)]

    def together(self, values: Sequence[Tensor]) -> Tensor:
        """The opposite: what was found for each group, of all subjects."""
        return values[0]


def at(values: Tensor, index: Tensor) -> Tensor:
    """(..., N, B) at ``index`` (n, B) into the subjects of each fit: (..., n, B). Where one of the two has a
    single fit, that is taken for all."""
    fits = max(values.shape[-1], index.shape[-1])
    rows = values.movedim((-2, -1), (0, 1))
    if values.ndim > 2 and rows.is_contiguous():  # see ``by_subject``
        number = index if values.shape[-1] == 1 else index * fits + torch.arange(fits, device=index.device)
        taken: Tensor = rows.flatten(0, 1).index_select(0, number.flatten()).unflatten(0, number.shape)
        back: Tensor = taken.movedim((0, 1), (-2, -1)).contiguous()
        return back
    if index.shape[-1] == 1:
        return values.index_select(-2, index[:, 0])
    index = index.expand(*values.shape[:-2], len(index), fits)
    return values.expand(*values.shape[:-1], fits).gather(-2, index)


def alone(values: Tensor, index: Tensor, fits: int) -> Tensor:
    """(..., N, B), or with 1 for one of these, at ``index`` (n,) into the flat N B of B = ``fits``: each as
    the one subject of a fit of its own, (..., 1, n)."""
    subjects, own = values.shape[-2:]
    nobody = torch.zeros_like(index)
    taken: Tensor = values[
        ..., index // fits if subjects > 1 else nobody, index % fits if own > 1 else nobody
    ]
    return taken.unsqueeze(-2)


def by_subject(values: Tensor) -> Tensor:
    """(..., N, B), the same, with all of a subject side by side in memory: where N is large and some subjects
    are taken again and again, that is where the time goes."""
    return values.movedim((-2, -1), (0, 1)).contiguous().movedim((0, 1), (-2, -1))


def _passed(
    time: Tensor, start: Tensor, duration: Tensor, amount: Tensor, features: Features
) -> tuple[Tensor, Tensor, Tensor]:
    """``since_end``, ``infused`` and ``given``."""
    elapsed = time - start[:, None]
    length = duration[:, None]
    infused = torch.minimum(elapsed.clamp(min=0), length)
    # Not elapsed - infused: the difference of two large, nearly equal numbers would lose digits in float32.
    since_end = (elapsed - length).clamp(min=0)
    # A dose given at once is there from its very start.
    tiny = torch.finfo(length.dtype).tiny
    part = torch.where(length > 0, infused / length.clamp(min=tiny), (elapsed >= 0).to(length.dtype))
    if features.interval is not None:  # of an endless series something is there from the start
        endless = torch.isfinite(features.interval)[:, None]
        part = torch.where(endless, (elapsed >= 0).to(length.dtype), part)
    given = amount[:, None] * (part if features.visible is None else part * features.visible)
    if bool((given == given[:, :1]).all()) and bool((infused == infused[:, :1]).all()):
        infused, given = infused[:, :1], given[:, :1]
    return since_end, infused, given


def _events(time: Tensor, start: Tensor, duration: Tensor, amount: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``width``, ``inflow`` and ``seen``. At equal times an observation comes last and sees what was
    given."""
    at, order = torch.sort(torch.cat([start, start + duration, time]), dim=0, stable=True)
    place = torch.argsort(order, dim=0)
    width = torch.diff(at, dim=0, prepend=at[:1])
    number = torch.arange(len(at), device=at.device).view(-1, 1, 1, 1)
    inflow = torch.zeros_like(width)
    begins, ends = place[: len(start)], place[len(start) : 2 * len(start)]
    for begin, end, length, dose in zip(begins, ends, duration, amount, strict=True):
        running = (number > begin) & (number <= end)
        share = torch.where(length > 0, width / torch.where(length > 0, length, 1), (number == end).to(width))
        inflow += torch.where(running, share * dose, 0)
    return width, inflow, place[2 * len(start) :]
