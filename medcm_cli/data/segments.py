"""To which segment of a patient, between two resets, a time of the file belongs, and when it is on the clock.

A time belongs to the last segment that has begun by then; so where a file's time begins again, to what comes
after. The clock (``medcm_cli.data.regimen``) is for computing alone: what is shown, asked for or planned is
the file's time.
"""

from dataclasses import dataclass

import numpy as np

from medcm_cli.data.events import EventTable
from medcm_cli.data.sheet import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Segments:
    """Of each segment of N subjects, (G, N): ``begin`` and ``end``, h in the file's time, between which times
    belong to it (none do where it ends before it begins), and ``shift``, h by which the clock is ahead. The
    first of a subject has begun always, the last does not end; those beyond it have no time."""

    begin: FloatArray
    end: FloatArray
    shift: FloatArray

    def on_clock(self, times: FloatArray) -> tuple[IntArray, FloatArray]:
        """The segment of each time of the file (T,), and when that is on the clock, (T, N) each."""
        segment = np.zeros((len(times), self.begin.shape[1]), dtype=np.int64)
        for end in self.end[:-1]:  # a loop over segments: T x G x N at once may not fit into memory
            segment += end <= times[:, None]
        return segment, times[:, None] + np.take_along_axis(self.shift, segment, axis=0)


def segments_of(events: EventTable) -> Segments:
    """The segments of every subject of a table."""
    n = len(events.ids)
    number = _numbers(events)
    begin = np.full((int(number.max(initial=0)) + 1, n), np.inf)
    shift = np.zeros_like(begin)
    begin[0] = -np.inf
    begin[number, events.reset_subject] = events.reset_time
    shift[number, events.reset_subject] = events.reset_shift
    least = np.minimum.accumulate(begin[::-1], axis=0)[::-1]  # of this one and all after it
    return Segments(begin, np.concatenate([least[1:], np.full((1, n), np.inf)]), shift)


def last_of(events: EventTable) -> tuple[IntArray, FloatArray, FloatArray]:
    """The number, begin and shift of each subject's last segment, (N,) each: see ``Segments``."""
    segments = segments_of(events)
    last = np.bincount(events.reset_subject, minlength=len(events.ids))
    of_last = np.arange(len(last))
    return last, segments.begin[last, of_last], segments.shift[last, of_last]


def in_force(events: EventTable) -> BoolArray:
    """Which rows of a table have a time that belongs to their own segment, or observe its very end: what a
    curve over the file's time can show."""
    end = segments_of(events).end[events.segment, events.subject]
    return np.asarray((events.time < end) | ((events.time == end) & ~events.is_dose))


def _numbers(events: EventTable) -> IntArray:
    """The number of the segment that each reset begins: 1 for a subject's first."""
    subject = events.reset_subject
    counts = np.bincount(subject, minlength=len(events.ids))
    return np.arange(len(subject)) - (np.cumsum(counts) - counts)[subject] + 1
