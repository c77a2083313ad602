"""Events that amounts pass without a change, as observations are: intervals between them are followed as one,
and what is there at each is found by one more step, from where the last step begins before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medcm_cli.pk.moving import Moving, Tangents
from medcm_cli.pk.stretch import Stretch
from medcm_cli.pk.timeline import Timeline

SPARSE = 0.8
"""Where fewer trajectories than this share of all have a width, the others are left out."""

FEWEST = 4
"""Events that are worth it: of fewer, no more steps are saved than taken."""

_AT_ONCE = 100_000  # about, amounts that a step is taken of together


def last_of(line: Timeline, interval: int, fixed: bool) -> int:
    """The event that ends those intervals which are followed as one with this one.

    :param fixed: whether widths do not depend on parameters.
    """
    counts, last = line.counts, interval + 1
    if changes(line):
        return last
    while last < len(counts.share) and counts.smooth[last]:
        if fixed and 0 < counts.share[last] < SPARSE:
            break
        last += 1
    return last


def changes(line: Timeline) -> bool:
    """Whether parameters differ between intervals."""
    return any(value.ndim == 4 for value in line.z.values())


@dataclass(frozen=True)
class Passing:
    """Intervals of a time line, from the event ``first`` to the event ``last``; ``moves``: how parameters
    move events, and ``turned`` what else changes along each."""

    line: Timeline
    first: int
    last: int
    moves: Sequence[Moving]
    turned: Sequence[Mapping[str, Tensor]]

    def whole(self) -> Stretch:
        """All of them."""
        moved = list[Tangents]()
        for number, move in enumerate(self.moves):
            turns = dict(self.turned[number]) if self.turned else {}
            if "left" in move.line:
                turns["left"] = move.line["left"][self.first]
            if "width" in move.line:
                turns["width"] = self._until(move.line["width"], [self.last])[0]
            moved.append(turns)
        width = self._until(self.line.width, [self.last])[0]
        return Stretch(self.line.left[self.first], width, None, self.line.z_of(self.first), moved)

    def steps(
        self, events: Sequence[int], whole: Stretch, places: Sequence[float], begins: Tensor
    ) -> list[tuple[Sequence[int], Stretch, Tensor]]:
        """The last step to some events: E of these at once, a stretch of (E S, N, B), and amounts (C, ...,
        E S, N, B) that it begins with.

        :param whole: a stretch that begins as they do. :param places: in [0, 1], where its n steps begin.
        :param begins: (n, C, ..., S, N, B), amounts there.
        """
        count = max(1, _AT_ONCE // begins[0].numel())
        parts = [events[at : at + count] for at in range(0, len(events), count)]
        return [(part, *self._steps(part, whole, places, begins)) for part in parts]

    def _steps(
        self, events: Sequence[int], whole: Stretch, places: Sequence[float], begins: Tensor
    ) -> tuple[Stretch, Tensor]:
        shape = begins.shape[-3:]
        until = self._until(self.line.width, events).expand(-1, *shape)
        known = until.new_tensor(places)
        with torch.no_grad():
            share = torch.nan_to_num(until / whole.width)  # of those without a width
            number = (torch.searchsorted(known, share, right=True) - 1).clamp(min=0)
        place = known[number]
        index = number.view(len(events), *[1] * (begins.ndim - 4), *shape).expand(-1, *begins.shape[1:])
        begin = begins.gather(0, index).movedim(0, -4).flatten(-4, -3)

        def spread(value: Tensor) -> Tensor:
            if value.ndim > 4:  # which subjects share
                return value
            return value.expand(len(events), *shape).flatten(0, 1)

        def moved(k: int, of: Tangents) -> dict[str, Tensor]:
            turns = {name: spread(turn) for name, turn in of.items() if name != "width"}
            if "width" in of:
                later = place * of["width"]
                turns["width"] = (self._until(self.moves[k].line["width"], events) - later).flatten(0, 1)
                turns["left"] = turns.get("left", 0) + later.flatten(0, 1)
            return turns

        gone = place * whole.width
        return Stretch(
            (whole.left + gone).flatten(0, 1),
            (until - gone).flatten(0, 1),
            None,
            {name: spread(value) for name, value in whole.z.items()},
            [moved(k, of) for k, of in enumerate(whole.moved)],
        ), begin

    def _until(self, widths: Tensor, events: Sequence[int]) -> Tensor:
        """From the first event to some others, (E, S, N, B), by the widths of intervals."""
        sums = widths[self.first : self.last].cumsum(0)
        return torch.stack([sums[event - self.first - 1] for event in events])
