"""Observations of what an output has gained over a time, such as urine that is collected from 8 to 12 h: the
output at its end less the output at its beginning, of any model."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from medcm_cli.pk.schedule import Features, Schedule


def both_ends(schedule: Schedule) -> Schedule:
    """The same with twice as many observations (2 T): those that there are, and where each of them begins to
    collect, not before a reset that it comes after, nor before the subject's first record."""
    assert schedule.over is not None
    features = Features(**{part.name: getattr(schedule, part.name) for part in fields(Features)})
    begin = torch.maximum(schedule.time - schedule.over, _earliest(schedule))
    twice = {
        name: None if values is None else torch.cat([values, values])
        for name, values in (("of_time", features.of_time), ("endpoint", features.endpoint))
    }
    visible = None if features.visible is None else torch.cat([features.visible, features.visible], 1)
    return Schedule.build(
        torch.cat([schedule.time, begin]),
        schedule.start,
        schedule.duration,
        schedule.amount,
        features=replace(features, **twice, visible=visible, over=None),
    )


def _earliest(schedule: Schedule) -> Tensor:
    """Per observation (T, 1, N, B), h on the clock."""
    given = torch.where(schedule.amount > 0, schedule.start, torch.inf)
    first = torch.minimum(given.amin(0), schedule.time.amin(0)).expand_as(schedule.time)
    if schedule.reset is None:
        return first
    before = torch.where(schedule.reset[:, None] <= schedule.time, schedule.reset[:, None], -torch.inf)
    return torch.maximum(first, before.amax(0))


def gained(values: Tensor, schedule: Schedule) -> Tensor:
    """Of the outputs (2 T, S, N, B) of ``both_ends`` those that are observed, (T, S, N, B)."""
    assert schedule.over is not None
    end, begin = values.split(len(schedule.time))
    found: Tensor = end - torch.where(schedule.over > 0, begin, 0)
    return found
