"""The geometry of doses and observations, computed once: it does not depend on any parameter."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Observation times and infusions of each subject, dimensions (dose E, observation T, sample 1, subject
    N, fit B).

    ``time`` (T, 1, N, B) h; ``start``, ``duration`` (E, 1, N, B) h; ``rate`` (E, 1, N, B) amount/h, 0 for
    padding; ``since_end`` (E, T, 1, N, B): hours from the infusion's end to the observation, 0 before that
    end; ``infused`` (E, T, 1, N, B): hours of the infusion that lie before the observation, and ``given``
    the amount infused in them. Where no observation falls inside an infusion or before a dose, the T of
    these two is 1 and what depends on them is computed once for all observations.
    """

    time: Tensor
    start: Tensor
    duration: Tensor
    rate: Tensor
    since_end: Tensor
    infused: Tensor
    given: Tensor

    @classmethod
    def build(cls, time: Tensor, start: Tensor, duration: Tensor, rate: Tensor) -> "Schedule":
        """From observation times (T, 1, N, B) and doses (E, 1, N, B)."""
        elapsed = time - start[:, None]
        infused = torch.minimum(elapsed.clamp(min=0), duration[:, None])
        # Not elapsed - infused: the difference of two large, nearly equal numbers would lose digits in
        # float32.
        since_end = (elapsed - duration[:, None]).clamp(min=0)
        if bool((infused == infused[:, :1]).all()):
            infused = infused[:, :1]
        return cls(time, start, duration, rate, since_end, infused, rate[:, None] * infused)
