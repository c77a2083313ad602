"""Occasions: the parts of a subject's record in each of which some of its parameters have a value of their
own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medcm_cli.data.covariates import Regimes
from medcm_cli.data.events import EventTable
from medcm_cli.data.segments import segments_of
from medcm_cli.data.sheet import FloatArray, IntArray, opens_of
from medcm_cli.errors import InputError

MOST = 1000  # of a subject


@dataclass(frozen=True)
class Rule:
    """When occasions begin: where a ``column`` changes (None: that of the role occ), at ``times`` of the
    file, or, after a ``gap`` without a dose or a reset, with the next dose; times in the data's unit."""

    column: str | None = None
    times: tuple[float, ...] = ()
    gap: float | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Rule":
        """What an option ``occasions`` says, which is checked (``study.occasions``)."""
        return cls(options.get("column"), tuple(options.get("times") or ()), options.get("gap"))

    @property
    def by_column(self) -> bool:
        """Whether a column says it."""
        return not self.times and self.gap is None


def with_occasions(events: EventTable, rule: Rule, patients: bool = False) -> EventTable:
    """The table with the occasions that a rule on time gives; those of a column it has already.

    :param patients: to be predicted, after their last record too.
    :raises InputError: times of a file in which time begins again.
    """
    if rule.by_column:
        return events
    if rule.gap is None:
        begun, subject, begin = _at_times(events, rule.times, patients)
    else:
        begun, subject, begin = _after(events, rule.gap)
    most = int(np.bincount(subject, minlength=1).max(initial=0)) + 1
    if most > MOST:
        raise InputError(f"{events.source}: a subject has {most} occasions; expected at most {MOST}")
    return replace(divided(events, begun, subject, begin), occasion=begun + 1)


def _at_times(
    events: EventTable, times: tuple[float, ...], patients: bool
) -> tuple[IntArray, IntArray, FloatArray]:
    """How many occasions have begun at each row since its subject's first; and who begins one when, on the
    clock. What happens at such a time belongs to the new occasion."""
    begins = np.asarray(times)
    passed = np.searchsorted(begins, events.time, side="right")
    falls = np.r_[False, (np.diff(passed) < 0) & (np.diff(events.subject) == 0)][: len(passed)]
    if falls.any():
        who = events.ids[events.subject[int(np.argmax(falls))]]
        raise InputError(
            f"{events.source}: time begins again at a reset of subject {who!r}, and occasions.times are "
            "times of the file; expected occasions.column or occasions.gap"
        )
    first = np.full(len(events.ids), len(begins))
    np.minimum.at(first, events.subject, passed)
    last = np.full(len(events.ids), len(begins) if patients else 0)
    np.maximum.at(last, events.subject, passed)
    count = np.maximum(last - first, 0)
    subject = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(subject)) - np.repeat(np.cumsum(count) - count, count)
    _, clock = segments_of(events).on_clock(begins)
    return passed - first[events.subject], subject, clock[first[subject] + within, subject]


def _after(events: EventTable, gap: float) -> tuple[IntArray, IntArray, FloatArray]:
    """The same of doses after so long without any, from the end of all before, or after a reset."""
    rows = np.flatnonzero(events.given)
    owner = events.subject[rows]
    end = events.clock[rows] + np.nan_to_num(events.duration[rows])
    # Sorted by subjects, so a running maximum of ends that are moved far apart for each is that of its own.
    apart = owner * (2 * np.abs(end).max(initial=0.0) + 1)
    latest = np.maximum.accumulate(end + apart) - apart
    same = np.r_[False, owner[1:] == owner[:-1]]
    waited = np.r_[0.0, events.clock[rows][1:] - latest[:-1]]
    anew = np.r_[False, np.diff(events.segment[rows]) != 0]
    begins = rows[same & ((waited >= gap * (1 - 1e-12)) | anew)]
    begun = _within(np.isin(np.arange(len(events.subject)), begins), events.subject)
    return begun, events.subject[begins], events.clock[begins]


def anew(events: EventTable, rows: IntArray) -> EventTable:
    """The table with one more occasion of each subject, after all that it has, from the first of some of its
    rows on."""
    subject, first = np.unique(events.subject[rows], return_index=True)
    begins = rows[first]
    start = np.full(len(events.ids), len(events.subject))
    start[subject] = begins
    begun = (np.arange(len(events.subject)) >= start[events.subject]).astype(np.int64)
    return divided(events, begun, subject, events.clock[begins])


def divided(events: EventTable, begun: IntArray, subject: IntArray, begin: FloatArray) -> EventTable:
    """The table with regimes that part where occasions begin, too.

    :param begun: of each row, how many of these of its subject have. :param subject: (M,), in order, who
        begins one at the times ``begin`` on the clock, in order.
    """
    n = len(events.ids)
    before = events.regimes or Regimes(np.arange(n), np.full(n, np.inf), {})
    owner, end = np.r_[before.subject, subject], np.r_[before.end, begin]
    is_begin = np.r_[np.zeros(len(before.subject), dtype=bool), np.ones(len(subject), dtype=bool)]
    order = np.lexsort((~is_begin, end, owner))  # where both part, the occasion does so first
    owner, end, is_begin = owner[order], end[order], is_begin[order]
    of_before = np.searchsorted(before.subject, np.arange(n))[owner] + _earlier(~is_begin, owner)
    number = _earlier(is_begin, owner)
    occasion = number
    if before.occasion is not None:
        last = np.zeros(n, dtype=np.int64)
        np.maximum.at(last, before.subject, before.occasion)
        occasion = np.where(number > 0, last[owner] + number, before.occasion[of_before])
    covariates = {name: values[of_before] for name, values in before.covariates.items()}
    # A step of the one or of the other at a time: a regime's number is the sum of both.
    regime = np.where(events.regime < 0, _passed(before, events), events.regime) + begun
    return replace(events, regimes=Regimes(owner, end, covariates, occasion), regime=regime)


def _within(marks: np.ndarray, subject: IntArray) -> IntArray:
    """How many marks there are up to each row, its own among them, of its subject."""
    count = np.cumsum(marks)
    if not len(count):
        return count
    opens = opens_of(subject)
    place = np.cumsum(np.r_[True, np.diff(subject) != 0]) - 1
    return np.asarray(count - (count - marks)[opens][place])


def _earlier(marks: np.ndarray, subject: IntArray) -> IntArray:
    """How many marks of its subject there are before each row."""
    return np.asarray(_within(marks, subject) - marks)


def _passed(regimes: Regimes, events: EventTable) -> IntArray:
    """How many regimes of its subject have ended before each row's time."""
    rows = len(events.subject)
    owner, when = np.r_[events.subject, regimes.subject], np.r_[events.clock, regimes.end]
    is_end = np.arange(len(owner)) >= rows
    order = np.lexsort((is_end, when, owner))
    count = np.empty(len(owner), dtype=np.int64)
    count[order] = np.cumsum(is_end[order])
    return count[:rows] - np.searchsorted(regimes.subject, events.subject)
