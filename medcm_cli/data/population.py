"""Subjects as padded tensors, ready for a batch of fits.

Dimensions are read from the right: fit, subject, sample, then observation or dose. A value per fit, of shape
(B,), thus broadcasts over everything by itself, and the innermost, contiguous dimension is the one that a
batch makes long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medcm_cli.data.events import BoolArray, EventTable, FloatArray, IntArray
from medcm_cli.pk.schedule import Schedule


@dataclass(frozen=True)
class Population:
    """N subjects in each of B fits, at most T observations and E doses each. Immutable; padded entries are
    masked.

    ``subject`` (N, B) row number in the event table, from 0; ``present`` (N, B) 1 for a subject, 0 for
    padding; ``time`` (h), ``dv`` (T, 1, N, B); ``observed`` (T, 1, N, B) 1 for an observation, 0 for padding;
    ``covariates`` name -> (1, N, B); ``ragged``: whether anything is padded at all.
    """

    subject: Tensor
    present: Tensor
    time: Tensor
    dv: Tensor
    observed: Tensor
    schedule: Schedule
    covariates: dict[str, Tensor]
    ragged: bool

    @classmethod
    def from_events(cls, table: EventTable, dtype: torch.dtype) -> "Population":
        """All subjects of the table once, as one fit (B = 1)."""
        n = len(table.ids)
        at_dose, at_observation = table.is_dose, ~table.is_dose
        time = _pad(table.time, table.subject, at_observation, n)
        last_time = np.fmax.accumulate(time, axis=0)  # padding repeats the last time: no infusion of its own
        doses = [
            np.nan_to_num(_pad(values, table.subject, at_dose, n))
            for values in (table.time, table.duration, table.rate)
        ]

        def tensor(values: FloatArray) -> Tensor:
            return torch.as_tensor(values[..., None], dtype=dtype).unsqueeze(-3)

        observed = ~np.isnan(time)
        schedule = Schedule.build(*(tensor(values) for values in (last_time, *doses)))
        return cls(
            subject=torch.arange(n)[:, None],
            present=torch.ones(n, 1, dtype=dtype),
            time=tensor(last_time),
            dv=tensor(np.nan_to_num(_pad(table.dv, table.subject, at_observation, n))),
            observed=tensor(observed.astype(np.float64)),
            schedule=schedule,
            covariates={name: tensor(values) for name, values in table.covariates.items()},
            ragged=not bool(observed.all()),
        )

    def select(self, subjects: Sequence[IntArray]) -> "Population":
        """One fit per entry of ``subjects``, which lists that fit's subjects; self must have B = 1.

        Fits with fewer subjects are padded with absent ones.
        """
        n = max(len(rows) for rows in subjects)
        index = torch.zeros(n, len(subjects), dtype=torch.long)
        present = torch.zeros(n, len(subjects), dtype=self.present.dtype)
        for fit, rows in enumerate(subjects):
            index[: len(rows), fit] = torch.as_tensor(rows)
            present[: len(rows), fit] = 1

        def gather(values: Tensor) -> Tensor:
            return values[..., 0][..., index].contiguous()

        observed = gather(self.observed) * present
        schedule = replace(
            self.schedule, **{f.name: gather(getattr(self.schedule, f.name)) for f in fields(Schedule)}
        )
        return replace(
            self,
            subject=index,
            present=present,
            time=gather(self.time),
            dv=gather(self.dv),
            observed=observed,
            schedule=schedule,
            covariates={name: gather(values) for name, values in self.covariates.items()},
            ragged=not bool(observed.all()),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, N, B)."""
        observations, _, subjects, fits = self.time.shape
        return observations, subjects, fits

    @cached_property
    def observation_count(self) -> Tensor:
        """Observations of each fit, (B,)."""
        return self.observed.sum((0, 1, 2))

    def sum_observations(self, values: Tensor) -> Tensor:
        """Sum (T, S, N, B) over the observations that exist, to (S, N, B)."""
        return (values * self.observed).sum(0) if self.ragged else values.sum(0)

    def sum_all(self, values: Tensor) -> Tensor:
        """Sum (T, S, N, B) over everything that exists but fits, to (B,)."""
        return (values * self.observed if self.ragged else values).sum((0, 1, 2))

    def sum_subjects(self, values: Tensor) -> Tensor:
        """Sum (S, N, B) or (N, B) over everything but fits, leaving out padded subjects, to (B,)."""
        kept = values * self.present if self.ragged else values
        return kept.sum(tuple(range(kept.ndim - 1)))


def _pad(values: FloatArray, subject: IntArray, keep: BoolArray, n: int) -> FloatArray:
    """The kept rows as (most per subject, n), NaN where a subject has fewer."""
    kept, owner = values[keep], subject[keep]
    counts = np.bincount(owner, minlength=n)
    position = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.full((int(counts.max()), n), np.nan)
    padded[position, owner] = kept
    return padded
