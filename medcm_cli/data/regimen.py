"""What a regimen means: additional doses and steady states written out, and a clock that never runs back.

A *segment* is what lies between two resets of a subject (EVID 3 or 4, or a dose at steady state, SS 1):
nothing given in one is seen in another. The clock is the file's time, moved later in the second and further
segments, so that every dose of a segment comes after all of the segment before, and after every time of the
file until it begins.
"""

from dataclasses import dataclass, replace

import numpy as np

from medcm_cli.data.sheet import BoolArray, FloatArray, IntArray, compact

# Of time; a constant infusion until now (SS 1, AMT 0, RATE > 0, II 0) is an endless series of such doses.
_PIECE = 1.0
MOST = 10_000  # doses that a record may stand for; each is a row of every tensor from here on
_GAP = 100.0  # units of time between segments


@dataclass(frozen=True)
class Records:
    """Rows of a file in its order, subjects together. ``amount`` in the data's unit, ``duration`` (NaN
    where the model has it), ``ii``; ``addl``, ``ii`` and ``ss`` are 0 where they say nothing. ``rated``:
    whether a dose's rate was given, and its duration not."""

    subject: IntArray
    time: FloatArray
    is_dose: BoolArray
    is_reset: BoolArray
    amount: FloatArray
    duration: FloatArray
    addl: IntArray
    ii: FloatArray
    ss: IntArray
    rated: BoolArray


@dataclass(frozen=True)
class GivenDoses:
    """One entry per dose given. ``record``: row that orders it; ``clock``; ``interval``, finite for the
    endless series of a steady state that ends with this dose; ``added``: whether it is an additional one,
    given after an observation at its very time; ``rated``: 1 where the rate was given, and 2 for a constant
    infusion, which has ended at ``clock``, 0 elsewhere."""

    record: IntArray
    clock: FloatArray
    amount: FloatArray
    duration: FloatArray
    interval: FloatArray
    added: BoolArray
    rated: IntArray


@dataclass(frozen=True)
class Regimen:
    """``segment`` and ``clock`` of every record, the doses given, and of every reset its subject, its clock
    and the record that it comes with."""

    segment: IntArray
    clock: FloatArray
    doses: GivenDoses
    reset_subject: IntArray
    reset_clock: FloatArray
    reset_record: IntArray


class TooManyError(ValueError):
    """A ``record`` that stands for more doses than there may be."""

    def __init__(self, record: int) -> None:
        super().__init__(f"record {record}: stands for too many doses")
        self.record = record


def write_out(records: Records, until: float = -np.inf, most: int = MOST) -> Regimen:
    """Every dose that a file's rows stand for (NONMEM's ADDL, II, SS and EVID 3 and 4).

    Additional doses end with the segment, in a subject's last one not before ``until``, in the file's time.
    A dose at steady state stands for itself and for an endless series before it.

    :raises TooManyError: a record stands for more than ``most``.
    """
    opens = np.r_[True, np.diff(records.subject) != 0]
    begins = records.is_reset | (records.is_dose & (records.ss == 1))
    count = np.cumsum(begins & ~opens)
    segment = compact(count - count[opens][np.cumsum(opens) - 1])
    del count
    part = np.cumsum(opens | begins) - 1  # (subject, segment), numbered through
    least = np.full(int(part[-1]) + 1, -np.inf)
    least[part[np.r_[opens[1:], True]]] = until
    doses = _doses(records, part, least, most)
    first = np.flatnonzero(opens | begins)
    resets = segment[first] > 0
    if not resets.any():
        none, no_time = np.empty(0, dtype=np.int64), np.empty(0)
        return Regimen(segment, records.time, doses, none, no_time, none)
    shift = _shifts(records, doses, part)
    return Regimen(
        segment=segment,
        clock=records.time + shift[part],
        doses=replace(doses, clock=doses.clock + shift[part[doses.record]]),
        reset_subject=records.subject[first][resets],
        reset_clock=(records.time[first] + shift)[resets],
        reset_record=first[resets],
    )


def _doses(records: Records, part: IntArray, last: FloatArray, most: int) -> GivenDoses:
    """Doses in the order of their records, still in the file's time, until the end of each part: its last
    record, or ``last`` of it where that is later."""
    row = np.flatnonzero(records.is_dose)
    ii, time, duration = records.ii[row], records.time[row], records.duration[row]
    last = last.copy()
    np.maximum.at(last, part, records.time)
    constant = (records.ss[row] > 0) & (ii == 0)
    series = records.ss[row] > 0
    spacing = np.where(ii > 0, ii, 1.0)
    left = np.maximum(np.floor((last[part[row]] - time) / spacing), 0)
    after = np.where(ii > 0, np.minimum(records.addl[row], left), 0).astype(np.int64)
    number = 1 + after
    if number.max(initial=0) > most:
        raise TooManyError(int(row[np.argmax(number)]))
    owner = np.repeat(np.arange(len(row)), number)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)  # 0: the dose itself
    interval = np.where(series, np.where(constant, _PIECE, ii), np.inf)
    return GivenDoses(
        record=row[owner],
        clock=time[owner] + place * np.where(place == 0, 0, ii[owner]),
        amount=np.where(constant, records.amount[row] * _PIECE, records.amount[row])[owner],
        duration=np.where(constant, _PIECE, duration)[owner],
        interval=np.where(place == 0, interval[owner], np.inf),
        added=place > 0,
        rated=np.where(constant, 2, records.rated[row])[owner],
    )


def _shifts(records: Records, doses: GivenDoses, part: IntArray) -> FloatArray:
    """By how much each part's times are moved to be on the clock."""
    parts = int(part[-1]) + 1
    start, end = np.full(parts, np.inf), np.full(parts, -np.inf)
    np.minimum.at(start, part, records.time)
    np.maximum.at(end, part, records.time)
    np.minimum.at(start, part[doses.record], doses.clock)
    np.maximum.at(end, part[doses.record], doses.clock + np.nan_to_num(doses.duration))
    # Until a segment begins a time of the file belongs to the one before.
    first = np.unique(part, return_index=True)[1]
    owner = records.subject[first]
    follows = np.diff(owner, append=-1) == 0
    end[follows] = np.maximum(end[follows], records.time[first[1:]][follows[:-1]])
    opens = np.r_[True, np.diff(owner) != 0]
    # A subject's first part stays where it is; each further one begins a gap after the end of the last.
    width = end - start + _GAP
    before = np.cumsum(width) - width
    return np.where(opens, 0.0, before - before[opens][owner] + start[opens][owner] - start)
