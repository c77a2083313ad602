"""Subjects with very different numbers of doses: in groups of like length, each padded for itself.

Padding all to the longest record would make a few patients with a pump, whose rate is written down every
minute, as expensive as if everyone had one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medcm_cli.pk.schedule import PAIRS_PER_EVENT, Schedule, at

Values = Mapping[str, Tensor]
IntArray = npt.NDArray[np.int64]

# A group more costs about as much time as so many pairs of a dose and an observation, measured
# (experiments/propofol).
_OVERHEAD = 10_000
# What grouping has to leave of the cost: where lengths are nearly equal all stay in one group.
_WORTH = 0.6
_STEP = 1.15  # ratio of the numbers of doses at which groups may end


@dataclass(frozen=True)
class Ragged:
    """The schedules of N subjects, in groups.

    ``schedules`` of each group; ``order`` (M, B) which subjects they have, one group after another, a fit
    that has fewer in a group than others with some twice; ``place`` (N, B) of each subject in there;
    ``observations``: T.
    """

    schedules: tuple[Schedule, ...]
    order: Tensor
    place: Tensor
    observations: int

    @classmethod
    def join(cls, groups: Sequence[tuple[IntArray, Schedule]], observations: int) -> "Ragged":
        """From the subjects of each group, together all N, and their schedules, of one fit."""
        order = torch.from_numpy(np.concatenate([subjects for subjects, _ in groups]))
        return cls(
            tuple(schedule for _, schedule in groups),
            order[:, None],
            torch.argsort(order)[:, None],
            observations,
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> "Ragged":
        """See ``Schedule.each``."""
        schedules = tuple(schedule.each(change) for schedule in self.schedules)
        return Ragged(schedules, change(self.order), change(self.place), self.observations)

    def to(self, dtype: torch.dtype) -> "Ragged":
        """See ``Schedule.to``."""
        schedules = tuple(schedule.to(dtype) for schedule in self.schedules)
        return Ragged(schedules, self.order, self.place, self.observations)

    def at(self, index: Tensor) -> "Ragged":
        """See ``Schedule.at``."""
        spot = at(self.place, index)
        schedules, orders, place = list[Schedule](), list[Tensor](), torch.zeros_like(index)
        begin = end = room = 0
        for schedule in self.schedules:
            begin, end = end, end + schedule.time.shape[-2]
            own = (spot >= begin) & (spot < end)
            most = int(own.sum(0).max())
            if not most:
                continue
            chosen = own.to(torch.int8).argsort(dim=0, descending=True, stable=True)[:most]
            # Where a fit has fewer: its first one again, and anyone where it has none.
            chosen = torch.where(own.gather(0, chosen), chosen, chosen[:1])
            rows = torch.where(own.gather(0, chosen), spot.gather(0, chosen) - begin, 0)
            place = torch.where(own, room + own.cumsum(0) - 1, place)
            schedules.append(schedule.at(rows))
            orders.append(chosen)
            room += most
        return Ragged(tuple(schedules), torch.cat(orders), place, self.observations)

    def apart(self, z: Values) -> list[tuple[Schedule, dict[str, Tensor]]]:
        """Each group's schedule and parameters."""
        sizes = [schedule.time.shape[-2] for schedule in self.schedules]

        def split(values: Tensor) -> Sequence[Tensor]:
            if values.ndim < 2 or values.shape[-2] < len(self.place):
                return [values] * len(sizes)
            parts: Sequence[Tensor] = at(values, self.order).split(sizes, -2)
            return parts

        found = {name: split(values) for name, values in z.items()}
        return [
            (schedule, {name: values[group] for name, values in found.items()})
            for group, schedule in enumerate(self.schedules)
        ]

    def together(self, values: Sequence[Tensor]) -> Tensor:
        """Of each group (X, S, n, B), with X observations or doses: (X, S, N, B), the last of a group again
        where others have more, in a minibatch without them, too."""
        most = max(self.observations, *(len(part) for part in values))
        shapes = [(*part.shape[1:-2], part.shape[-1]) for part in values]
        *others, fits = torch.broadcast_shapes(*shapes)
        alike = []
        for part in values:
            last = part[-1:].expand(most - len(part), *part.shape[1:])
            padded = torch.cat([part, last]) if len(last) else part
            alike.append(padded.expand(most, *others, part.shape[-2], fits))
        return at(torch.cat(alike, -2), self.place)


def groups_of(doses: IntArray, observations: IntArray) -> list[IntArray]:
    """The subjects (n,) of each group, in ascending order, from the numbers (N,) of doses and observations
    that each has: the groups that cost the least, one where lengths are not very different."""
    level = np.ceil(np.log(np.maximum(doses, 1)) / np.log(_STEP)).astype(int)
    levels = np.unique(level)
    of_level = np.searchsorted(levels, level)
    number = np.bincount(of_level)
    most_doses, most_observations = np.zeros(len(levels), int), np.zeros(len(levels), int)
    np.maximum.at(most_doses, of_level, doses)
    np.maximum.at(most_observations, of_level, observations)
    # The cheapest way to have those up to a level in groups, and where the last of these begins.
    cheapest, begins = [0.0], [0]
    for end in range(1, len(levels) + 1):
        costs = [
            cheapest[begin] + _cost(number[begin:end], most_doses[end - 1], most_observations[begin:end])
            for begin in range(end)
        ]
        begins.append(int(np.argmin(costs)))
        cheapest.append(min(costs))
    if cheapest[-1] > _WORTH * _cost(number, most_doses[-1], most_observations):
        return [np.arange(len(doses))]
    found, end = list[IntArray](), len(levels)
    while end:
        begin = begins[end]
        found.append(np.flatnonzero((of_level >= begin) & (of_level < end)))
        end = begin
    return found[::-1]


def _cost(subjects: npt.NDArray[Any], doses: int, observations: npt.NDArray[Any]) -> float:
    """Of a group, in pairs of a dose and an observation."""
    seen = int(observations.max())
    pairs = min(doses * seen, PAIRS_PER_EVENT * (doses + seen))
    return float(_OVERHEAD + int(subjects.sum()) * pairs)
