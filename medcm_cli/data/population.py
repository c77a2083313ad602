"""Subjects as padded tensors, ready for a batch of fits.

Dimensions are read from the right: fit, subject, sample, then observation or dose. A value per fit, of shape
(B,), thus broadcasts over everything by itself, and the innermost, contiguous dimension is the one that a
batch makes long.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from medcm_cli.data.covariates import Regimes
from medcm_cli.data.edit import part
from medcm_cli.data.events import EventTable
from medcm_cli.data.sheet import BoolArray, FloatArray, IntArray
from medcm_cli.pk.ragged import Ragged, groups_of
from medcm_cli.pk.schedule import Features, Schedule, alone, at, by_subject


@dataclass(frozen=True)
class Population:
    """N subjects in each of B fits, at most T observations and E doses each. Immutable; padded entries are
    masked.

    ``subject`` (N, B) row number in the event table, from 0; ``present`` (N, B) 1 for a subject, 0 for
    padding; ``time`` (T, 1, N, B) h as in the file; ``dv`` (T, 1, N, B); ``observed`` (T, 1, N, B) 1 for an
    observation, 0 for padding; ``censored`` (T, 1, N, B) 1 for an observation somewhere beyond ``dv``: below
    it, or above where ``above`` is 1; None where there is none, of either; ``blank`` (N, B): whether a
    subject has no observation that its padding could repeat, None where all have one; ``endpoint`` (T, 1, N,
    B), from 0, of each observation, None where all are of the first; ``covariates`` name -> (1, N, B), or (P,
    1, N, B) of one that changes in time, with an entry per regime of the schedule; ``occasion`` (P, 1, N, B):
    the subject's occasion in each regime, from 0, None where nothing depends on it, and ``occasions``, how
    many a subject has at most; ``ragged``: whether anything is padded at all.
    """

    subject: Tensor
    present: Tensor
    time: Tensor
    dv: Tensor
    observed: Tensor
    schedule: Schedule | Ragged
    covariates: dict[str, Tensor]
    ragged: bool
    censored: Tensor | None = None
    blank: Tensor | None = None
    above: Tensor | None = None
    endpoint: Tensor | None = None
    occasion: Tensor | None = None
    occasions: int = 1

    @classmethod
    def from_events(cls, table: EventTable, dtype: torch.dtype, groups: bool = True) -> "Population":
        """All subjects of the table once, as one fit (B = 1).

        :param groups: subjects whose numbers of doses differ much may be in groups of like length, which
            saves a model in closed form time, and costs one that is integrated some.
        """
        n = len(table.ids)

        def observations(values: npt.NDArray[Any]) -> Tensor:
            return _tensor(_pad(values, table.subject, ~table.is_dose, n))

        time = observations(table.time)
        observed = ~torch.isnan(time)
        covariates = {name: _tensor(values[None])[:, 0] for name, values in table.covariates.items()}
        if table.regimes is not None:
            rows = np.ones(len(table.regimes.subject), dtype=bool)
            for name, values in table.regimes.covariates.items():
                covariates[name] = _repeat_last(_tensor(_pad(values, table.regimes.subject, rows, n)))
        occasion, occasions = _occasions(table.regimes, n)
        whole = cls(
            subject=torch.arange(n)[:, None],
            present=torch.ones(n, 1, dtype=dtype),
            time=_repeat_last(time),
            dv=torch.nan_to_num(observations(table.dv)),
            observed=observed.to(dtype),
            schedule=_schedules(table, n, groups),
            covariates=covariates,
            ragged=not bool(observed.all()),
            censored=torch.nan_to_num(observations(table.censored)) if table.censored.any() else None,
            above=torch.nan_to_num(observations(table.above)) if table.above.any() else None,
            blank=None if bool(observed.any(0).all()) else ~observed.any(0)[0],
            endpoint=_endpoint(table, observations),
            occasion=occasion,
            occasions=occasions,
        )
        return whole._in(dtype)

    def select(self, subjects: Sequence[IntArray]) -> "Population":
        """One fit per entry of ``subjects``, which lists that fit's subjects; self must have B = 1.

        Fits with fewer subjects are padded with absent ones.
        """
        n = max(len(rows) for rows in subjects)
        present = self.present.new_zeros(n, len(subjects))
        index = torch.zeros_like(present, dtype=torch.long)
        for fit, rows in enumerate(subjects):
            index[: len(rows), fit] = torch.from_numpy(rows)
            present[: len(rows), fit] = 1
        return self._at(index)._present(present)

    def take(self, index: Tensor) -> "Population":
        """Some subjects of each fit: ``index`` (n, B) into its N."""
        return self._at(index)._present(self.present.gather(0, index))

    def alone(self, index: Tensor) -> "Population":
        """Some subjects (n,) of all N B, counted fit by fit within a subject: each the one of a fit of its
        own, (..., 1, n)."""
        fits = self.present.shape[-1]
        return self._each(lambda values: alone(values, index, fits))

    def of_fits(self, fits: Tensor) -> "Population":
        """Some fits, by their numbers (n,)."""
        return self._each(lambda values: values if values.shape[-1] == 1 else values[..., fits])

    def _at(self, index: Tensor) -> "Population":
        return self._each(lambda values: at(values, index), self.schedule.at(index))

    def _each(
        self, change: Callable[[Tensor], Tensor], schedule: Schedule | Ragged | None = None
    ) -> "Population":
        """Every tensor changed alike, but for those of a schedule that is given."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        parts |= {name: change(value) for name, value in parts.items() if isinstance(value, Tensor)}
        parts["schedule"] = self.schedule.each(change) if schedule is None else schedule
        parts["covariates"] = {name: change(values) for name, values in self.covariates.items()}
        return Population(**parts)

    def to(self, device: torch.device) -> "Population":
        """The same, on a device; on mps, which has no float64, times on the clock are float32."""
        if self.present.device == device:
            return self
        single = device.type == "mps"
        return self._each(
            lambda values: (values.float() if single and values.dtype == torch.float64 else values).to(device)
        )

    def by_subject(self) -> "Population":
        """The same, in memory so that ``take`` of few among many subjects is fast."""
        return self._each(by_subject)

    def _in(self, dtype: torch.dtype) -> "Population":
        """With every number in a type, but for times on the clock."""
        return self._each(
            lambda values: values.to(dtype) if values.is_floating_point() else values, self.schedule.to(dtype)
        )

    def _present(self, present: Tensor) -> "Population":
        observed = self.observed * present
        return replace(self, present=present, observed=observed, ragged=not bool(observed.all()))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, N, B)."""
        observations, _, subjects, fits = self.time.shape
        return observations, subjects, fits

    @property
    def side(self) -> Tensor | float:
        """On which side of its dv a censored observation lies: 1 below, -1 above, (T, 1, N, B) or of all."""
        return 1.0 if self.above is None else 1 - 2 * self.above

    @cached_property
    def observation_count(self) -> Tensor:
        """Observations of each fit, (B,)."""
        return self.observed.sum((0, 1, 2))

    @cached_property
    def there(self) -> Tensor:
        """Of each occasion whether a subject has it, 1 or 0, (O, 1, N, B)."""
        if self.occasion is None:
            return torch.ones_like(self.present).expand(self.occasions, 1, *self.present.shape)
        number = torch.arange(self.occasions, device=self.present.device).view(-1, 1, 1, 1, 1)
        return (self.occasion == number).any(1).to(self.present.dtype)

    def padded(self, prediction: Tensor) -> Tensor:
        """Predictions (T, S, N, B), with 1 for what is ``blank``: before a first dose they are 0, where an
        error that is proportional to them has no sd, and NaN times a mask is NaN."""
        return prediction if self.blank is None else torch.where(self.blank, 1.0, prediction)

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


def _occasions(regimes: Regimes | None, n: int) -> tuple[Tensor | None, int]:
    """Of each regime of N subjects, and how many there are."""
    if regimes is None or regimes.occasion is None:
        return None, 1
    rows = np.ones(len(regimes.subject), dtype=bool)
    padded = _repeat_last(_tensor(_pad(regimes.occasion.astype(np.float64), regimes.subject, rows, n)))
    return padded.long(), int(regimes.occasion.max(initial=0)) + 1


def _schedules(table: EventTable, n: int, grouped: bool) -> Schedule | Ragged:
    """In groups, where numbers of doses differ much."""
    numbers = (np.bincount(table.subject[kind], minlength=n) for kind in (table.is_dose, ~table.is_dose))
    doses, observations = numbers
    groups = groups_of(doses, observations) if grouped else []
    if len(groups) <= 1:
        return _schedule(table, n)
    schedules = [(own, _schedule(part(table, own), len(own), group=True)) for own in groups]
    return Ragged.join(schedules, int(observations.max()))


def _schedule(table: EventTable, n: int, group: bool = False) -> Schedule:
    """In float64, whatever the model computes in: hours of a late observation and a short infusion differ by
    more than float32 holds."""
    at_dose = table.is_dose

    def doses(values: npt.NDArray[Any], fill: float = 0.0) -> Tensor:
        padded = _tensor(_pad(values, table.subject, at_dose, n))
        return torch.nan_to_num(padded, nan=fill, posinf=np.inf)

    def observations(values: npt.NDArray[Any]) -> Tensor:
        return _tensor(_pad(values, table.subject, ~at_dose, n))

    # Padding repeats the last observation: no infusion of its own, no breakpoint of its own.
    time, start = _repeat_last(observations(table.clock)), doses(table.clock)
    duration, amount = doses(table.duration), doses(table.amount)
    compartment, interval = doses(table.compartment, -1), doses(table.interval, np.inf)
    modelled = doses(at_dose & np.isnan(table.duration))
    rated = doses(table.rated)
    reset = np.ones(len(table.reset_subject), dtype=bool)
    optional = {
        "compartment": compartment.long() if bool((compartment >= 0).any()) else None,
        "interval": interval if bool(torch.isfinite(interval).any()) else None,
        "modelled": modelled if bool(modelled.any()) else None,
        "rated": rated if bool(rated.any()) else None,
        "endpoint": _endpoint(table, observations),
        "over": _repeat_last(observations(table.over)) if table.over.any() else None,
        "visible": _visible(table, doses, observations, time, start, duration),
        "reset": (
            torch.nan_to_num(
                _tensor(_pad(table.reset_clock, table.reset_subject, reset, n)), nan=np.inf, posinf=np.inf
            )
            if len(reset)
            else None
        ),
    }
    features = Features(**optional)
    if table.regimes is not None:
        own = doses(table.regime, -1), _repeat_last(observations(table.regime))
        features = _with_regimes(features, table.regimes, n, (start, time), own)
    return Schedule.build(time, start, duration, amount, features=features, group=group)


def _endpoint(table: EventTable, observations: Callable[[npt.NDArray[Any]], Tensor]) -> Tensor | None:
    """(T, 1, N, 1), of padding that of the last observation; None where all are of the first."""
    if not (table.endpoint[~table.is_dose] > 0).any():
        return None
    return _repeat_last(observations(table.endpoint)).long()


def _with_regimes(
    features: Features,
    regimes: Regimes,
    n: int,
    times: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
) -> Features:
    """With those of N subjects.

    :param times: of doses (E, 1, N, 1) and observations (T, 1, N, 1), h on the clock.
    :param own: which regime each of them has, below 0 where its time decides.
    """
    ends = _tensor(_pad(regimes.end, regimes.subject, np.ones(len(regimes.end), dtype=bool), n))
    change = torch.nan_to_num(ends, nan=np.inf, posinf=np.inf)
    of_dose, of_time = (
        torch.where(regime < 0, (change[:, None] < when).sum(0), regime.to(torch.long))
        for when, regime in zip(times, own, strict=True)
    )
    return replace(features, change=change, of_dose=of_dose, of_time=of_time)


def _visible(
    table: EventTable,
    doses: Callable[[npt.NDArray[Any]], Tensor],
    observations: Callable[[npt.NDArray[Any]], Tensor],
    time: Tensor,
    start: Tensor,
    duration: Tensor,
) -> Tensor | None:
    """(E, T, 1, N, 1): 1 where a dose can reach an observation; None where the times alone tell."""
    row = np.arange(len(table.subject), dtype=np.float64)
    elapsed = time - start[:, None]
    # Padding sees what the last observation does, as it has its time: a prediction of 0 is no padding.
    seen = _repeat_last(observations(row))
    after = seen > doses(row)[:, None]
    # At the very time of an additional dose the level is that before it, a trough.
    trough = (doses(table.added)[:, None] > 0) & (elapsed == 0)
    same = _repeat_last(observations(table.segment)) == doses(table.segment)[:, None]
    visible = after & ~trough & same
    at_once = (duration == 0) | (doses(np.isfinite(table.interval)) > 0)
    matters = (elapsed > 0) | ((elapsed == 0) & at_once[:, None])
    exists = (doses(table.amount)[:, None] > 0) & ~torch.isnan(observations(row))
    return visible.to(torch.float64) if bool((~visible & matters & exists).any()) else None


def _pad(values: npt.NDArray[Any], subject: IntArray, keep: BoolArray, n: int) -> FloatArray:
    """The kept rows as (most per subject, n), NaN where a subject has fewer; a row of NaN where nobody has
    any."""
    kept, owner = values[keep], subject[keep]
    counts = np.bincount(owner, minlength=n)
    position = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.full((max(1, int(counts.max())), n), np.nan)
    padded[position, owner] = kept
    return padded


def _tensor(values: FloatArray) -> Tensor:
    """(..., N) -> (..., 1, N, 1)."""
    return torch.from_numpy(np.array(values[..., None, :, None], dtype=np.float64))


def _repeat_last(values: Tensor) -> Tensor:
    """NaN replaced by the last number before it along the first dimension, 0 where there is none."""
    filled = pd.DataFrame(values[:, 0, :, 0].numpy()).ffill().fillna(0.0)
    return _tensor(filled.to_numpy(dtype=np.float64))
