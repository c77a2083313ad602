"""An event table made from another: some of its subjects, other doses or times, a grid of observations."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd

from medcm_cli.data.covariates import Regimes
from medcm_cli.data.events import EventTable
from medcm_cli.data.occasions import anew
from medcm_cli.data.segments import Segments, last_of, segments_of
from medcm_cli.data.sheet import BoolArray, FloatArray, IntArray
from medcm_cli.quantities import hours

_AFTER = 1e-6  # how long after its end all of a dose is seen, and before it nothing, one given at once too
# Hours after that, and before, to follow levels whatever the times that they are asked for at.
FALL = (
    *(0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 16, 20, 24, 36, 48, 72, 96),
    *(144, 240, 480, 1000),
)
_RISE = (2.0, 1.0, 0.5, 0.25)
LAGGED = FALL[:12]  # h, after a lag time
# Times after a dose at which a grid follows it: of few doses, of many, and all doses of a subject together.
_MOST_AFTER, _LEAST_AFTER, _ALL_AFTER = 33, 9, 330
LOOKS = 3 + len(_RISE) + len(FALL)  # for a dose, at most
CLOSE_LOOKS = LOOKS + _MOST_AFTER  # the same of ``close_after``
# What an event table has once; everything else of it is a column with a row for each dose and observation.
_RESETS = ("reset_subject", "reset_clock", "reset_time", "reset_shift")
_ONCE = (
    *("source", "ids", *_RESETS, "covariates", "regimes", "labels", "superposed", "notes", "left_out"),
    *("time_unit", "kinds"),
)
_ROWS = [f.name for f in fields(EventTable) if f.name not in _ONCE]


def latest_covariates(events: EventTable) -> dict[str, FloatArray]:
    """Name -> one value per subject (N,), the last of a covariate that changes."""
    if events.regimes is None:
        return events.covariates
    last = np.r_[np.diff(events.regimes.subject) != 0, True]
    return events.covariates | {name: values[last] for name, values in events.regimes.covariates.items()}


def part(events: EventTable, numbers: IntArray) -> EventTable:
    """Some of the subjects, in all that the table has of them.

    :param numbers: of the subjects, from 0 in ascending order.
    """
    place = np.full(len(events.ids), -1)
    place[numbers] = np.arange(len(numbers))
    rows, resets = place[events.subject] >= 0, place[events.reset_subject] >= 0
    changed = _some(events, rows)
    changed["subject"] = place[changed["subject"]]
    regimes = events.regimes
    if regimes is not None:
        kept = place[regimes.subject] >= 0
        changing = {name: values[kept] for name, values in regimes.covariates.items()}
        occasion = None if regimes.occasion is None else regimes.occasion[kept]
        regimes = Regimes(place[regimes.subject[kept]], regimes.end[kept], changing, occasion)
    return replace(
        events,
        **changed,
        ids=tuple(events.ids[number] for number in numbers),
        **{name: getattr(events, name)[resets] for name in _RESETS if name != "reset_subject"},
        reset_subject=place[events.reset_subject[resets]],
        covariates={name: values[numbers] for name, values in events.covariates.items()},
        regimes=regimes,
    )


def with_doses(events: EventTable, doses: EventTable, added: bool) -> EventTable:
    """The subjects of ``events``, without their observations, with the doses of another table.

    Where subjects have occasions, the new doses begin another one of each.

    :param doses: of the same subjects, a table of doses alone.
    :param added: to the doses that ``events`` has, after its last reset, and not in their place. The other
        table has no reset then.
    """
    parted = events.regimes is not None and events.regimes.occasion is not None
    if not added:
        regimes = _next_occasion(events) if parted else doses.regimes
        covariates = latest_covariates(events)
        return replace(doses, source=events.source, covariates=covariates, regimes=regimes)
    last, _, shift = last_of(events)
    new = _some(doses, doses.is_dose)
    new["segment"] = last[new["subject"]]
    new["clock"] = new["clock"] + shift[new["subject"]]
    both = _joined(_some(events, events.is_dose), new)
    is_new = np.arange(len(both["subject"])) >= events.is_dose.sum()
    order = _order(both)
    whole = replace(
        events,
        **{name: values[order] for name, values in both.items()},
        superposed=events.superposed or doses.superposed,
    )
    return anew(whole, np.flatnonzero(is_new[order])) if parted else whole


def _next_occasion(events: EventTable) -> Regimes:
    """One regime of each subject, with the occasion after all that it has."""
    before = events.regimes
    assert before is not None
    assert before.occasion is not None
    last = np.zeros(len(events.ids), dtype=np.int64)
    np.maximum.at(last, before.subject, before.occasion)
    return Regimes(np.arange(len(last)), np.full(len(last), np.inf), {}, last + 1)


def with_amounts(events: EventTable, rows: BoolArray, amount: float | FloatArray) -> EventTable:
    """The table with other amounts in some of its rows (R,).

    :param amount: one, or one for each row (R,), in the data's unit.
    """
    return replace(events, amount=np.where(rows, amount, events.amount))


def at_steady_state(events: EventTable, rows: BoolArray, every: float) -> EventTable:
    """The table with an endless series of doses, ``every`` so long, that ends with each of these (R,)."""
    return replace(events, interval=np.where(rows, every, events.interval))


def moved(events: EventTable, by: FloatArray) -> EventTable:
    """Every subject's records ``by`` (N,) later."""
    regimes = events.regimes
    if regimes is not None:
        regimes = replace(regimes, end=regimes.end + by[regimes.subject])
    return replace(
        events,
        **{name: getattr(events, name) + by[events.subject] for name in ("time", "clock")},
        **{name: getattr(events, name) + by[events.reset_subject] for name in ("reset_clock", "reset_time")},
        regimes=regimes,
    )


def on_clock(events: EventTable) -> EventTable:
    """The table as if its clock were the file's time, which then runs on through resets."""
    begin = events.reset_time + events.reset_shift
    return replace(events, time=events.clock, reset_time=begin, reset_shift=np.zeros_like(begin))


def of_endpoint(observed: EventTable, events: EventTable, number: int) -> EventTable:
    """Observations at the times of a table, all of one endpoint: of what is collected, what there is so far
    of a subject's sample in ``events``, or, between these, over as long as they are in the median; of who has
    none over as long as the endpoint says, or, where each sample would say it, all so far."""
    rows = ~events.is_dose & (events.endpoint == number) & (events.over > 0)
    said = events.kinds[number].over if events.kinds else None
    over = np.full(len(observed.clock), 0.0 if said is None or isinstance(said, str) else float(said))
    over = _so_far(observed, events, rows, over) if rows.any() else over
    endpoint = np.full_like(observed.endpoint, number)
    return replace(observed, endpoint=endpoint, over=np.where(observed.is_dose, 0.0, over))


def _so_far(observed: EventTable, events: EventTable, rows: BoolArray, other: FloatArray) -> FloatArray:
    """Of each row how long the sample that ends at the next of ``rows`` has taken; ``other`` without one."""
    samples = pd.DataFrame({name: getattr(events, name)[rows] for name in ("subject", "clock", "over")})
    samples["begin"] = samples["clock"] - samples["over"]
    at = pd.DataFrame({"subject": observed.subject, "clock": observed.clock})
    ends = samples[["subject", "clock", "begin"]].sort_values("clock", kind="stable")
    order = at.sort_values("clock", kind="stable")
    found = pd.merge_asof(order, ends, on="clock", by="subject", direction="forward")
    begin = pd.Series(found["begin"].to_numpy(), order.index).reindex(at.index).to_numpy()
    passed = observed.clock - begin
    usual = at["subject"].map(samples.groupby("subject")["over"].median()).fillna(pd.Series(other)).to_numpy()
    # 0 would be what there is, collected or not.
    return np.where(passed >= 0, np.maximum(passed, 1e-9 * usual), usual)


def copies(events: EventTable, number: int) -> EventTable:
    """The subjects ``number`` times over, one copy of all N after another: ``number`` N subjects."""
    n = len(events.ids)

    def again(values: np.ndarray, counts: bool) -> np.ndarray:
        shift = n * np.repeat(np.arange(number), len(values)) if counts else 0
        return np.asarray(np.tile(values, number) + shift if counts else np.tile(values, number))

    def arrays(of: EventTable | Regimes) -> dict[str, Any]:
        return {
            f.name: again(getattr(of, f.name), f.name in ("subject", "reset_subject"))
            for f in fields(of)
            if isinstance(getattr(of, f.name), np.ndarray)
        }

    def covariates(of: EventTable | Regimes) -> dict[str, FloatArray]:
        return {name: np.tile(values, number) for name, values in of.covariates.items()}

    regimes = events.regimes
    if regimes is not None:
        regimes = replace(regimes, **arrays(regimes), covariates=covariates(regimes))
    return replace(
        events,
        **arrays(events),
        ids=tuple(f"{name} {copy}" for copy in range(number) for name in events.ids),
        covariates=covariates(events),
        regimes=regimes,
    )


def dose_corners(events: EventTable, modelled: FloatArray | None = None) -> FloatArray:
    """When each dose begins to arrive and when all of it is sure to be seen, on the clock: (2, doses).

    :param modelled: when each begins and ends by a model with lag times, bioavailability or durations, (2,
        E, N); by default as the table has it.
    """
    if modelled is None:
        spans = _spans(events)
    else:
        owner = events.subject[events.is_dose]
        spans = modelled[:, _positions(owner, len(events.ids)), owner]
    corners: FloatArray = spans + np.array([[0.0], [_AFTER]])
    return corners


def _spans(events: EventTable) -> FloatArray:
    """When each dose begins and ends by the table, (2, doses); a duration that a model has is 0."""
    start, duration = events.clock[events.is_dose], events.duration[events.is_dose]
    return np.stack([start, start + np.nan_to_num(duration)])


def _positions(owner: IntArray, n: int) -> IntArray:
    """The place of each row among those of its subject, of N, who own them in order."""
    counts = np.bincount(owner, minlength=n)
    return np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def observed_at(
    events: EventTable, times: FloatArray, corners: FloatArray, after: Sequence[float] = FALL
) -> tuple[EventTable, IntArray]:
    """The subjects' doses, with an observation at each of the times, just before and at each reset and around
    each dose: just before it, at both its corners, at hours ``after`` the second of them and, of a dose that
    is not seen at once, ``_RISE`` before it; all between the first and the last of the times.

    :param times: (T',) in the file's time, in order; see ``data.segments`` for where it begins again.
    :param corners: (2, doses), when each dose begins to be seen and when all of it has been given, on the
        clock (``dose_corners``).
    :returns: the table, every subject with as many observations in it, and the place among them of each of
        ``times``, (T', N).
    """
    n, segments = len(events.ids), segments_of(events)
    segment, clock = segments.on_clock(times)
    added, of_added = _around(events, segments, times, corners, after)
    inside = (added > times[0]) & ((added < times[-1]) | ((added == times[-1]) & (of_added != segment[-1])))
    keep = inside.any(1)  # those that someone has; for others the last of the times again
    of_added = np.where(inside, of_added, segment[-1])[keep]
    added = np.where(inside, added, times[-1])[keep]
    file = np.concatenate([np.broadcast_to(times[:, None], (len(times), n)), added])
    segment = np.concatenate([segment, of_added])
    clock = np.concatenate([clock, added + np.take_along_axis(segments.shift, of_added, axis=0)])
    order = np.argsort(clock, axis=0, kind="stable")
    place = np.argsort(order, axis=0, kind="stable")[: len(times)]
    subject = np.repeat(np.arange(n), len(clock))
    segment, clock, file = (np.take_along_axis(of, order, axis=0).T.ravel() for of in (segment, clock, file))
    return _observed(events, subject, segment, clock, file), place


def close_after(events: EventTable, times: FloatArray) -> tuple[float, ...]:
    """Hours after doses to look at for a curve that is drawn, ``FALL`` among them: ever wider apart until the
    next dose, in the median, so that a peak of absorption is round; of very many doses none.

    :param times: (T',) that the curve is to be drawn over.
    """
    rows = events.is_dose
    gaps = np.diff(events.clock[rows])[np.diff(events.subject[rows]) == 0]
    gaps = gaps[gaps > 0]
    until = min(float(np.median(gaps)) if len(gaps) else np.inf, float(times[-1] - times[0]))
    most = int(np.bincount(events.subject[rows], minlength=1).max())
    count = min(_MOST_AFTER, _ALL_AFTER // max(most, 1))
    close = until * hours(events.time_unit) * np.linspace(0, 1, count + 1)[1:] ** 3
    return tuple(sorted({*FALL, *close.tolist()}))


def _around(
    events: EventTable, segments: Segments, times: FloatArray, corners: FloatArray, after: Sequence[float]
) -> tuple[FloatArray, IntArray]:
    """Times at which a subject's levels turn, in the file's time, and their segments, (P, N) each; NaN
    where a subject has fewer."""
    n = len(events.ids)
    doses = _some(events, events.is_dose)
    position = _positions(doses["subject"], n)
    start, end = corners
    hour = 1 / hours(events.time_unit)
    before = _RISE if (start > doses["clock"]).any() else ()
    around = np.stack(
        [start - _AFTER, start, end, *(end - hour * h for h in before), *(end + hour * h for h in after)]
    )
    owner = doses["segment"], doses["subject"]
    # What lies outside its segment, or the times, is looked at where that begins and ends.
    first, last = np.maximum(segments.begin, times[0]), np.minimum(segments.end, times[-1])
    around = (around - segments.shift[owner]).clip(first[owner], last[owner])
    around = np.where((first < last)[owner], around, np.nan)
    padded = np.full((len(around), int(position.max(initial=-1)) + 1, n), np.nan)
    padded[:, position, doses["subject"]] = around
    of_doses = np.zeros(padded.shape, dtype=np.int64)
    of_doses[:, position, doses["subject"]] = doses["segment"]
    # Levels jump at a reset: at its very time there is one before it and one after.
    turns = np.stack([np.where(first < last, of, np.nan) for of in (first, last)])
    of_turns = np.broadcast_to(np.arange(len(first))[:, None], turns.shape)
    both = zip((padded, of_doses), (turns, of_turns), strict=True)
    added, of_added = (np.concatenate([a.reshape(-1, n), b.reshape(-1, n)]) for a, b in both)
    return added, of_added


def on_grid(
    events: EventTable, points: int, corners: FloatArray | None = None
) -> tuple[EventTable, pd.DataFrame]:
    """The doses of a table with a grid in place of its observations: in each segment of a subject ``points``
    times from its first record to its last observation, and around each dose, closest where levels turn.

    :param corners: (2, doses), ``dose_corners`` of a model; by default the times of the table.
    :returns: the table, and its grid: ``subject`` (number from 0), ``segment``, ``time`` (as in the file).
    """
    clock = events.clock
    segments = int(events.segment.max()) + 1
    stretch = events.subject * segments + events.segment
    seen = pd.DataFrame({"stretch": stretch, "clock": clock, "shift": events.clock - events.time})
    ends = seen[~events.is_dose].groupby("stretch").agg(end=("clock", "max"), shift=("shift", "first"))
    ends["start"] = pd.Series(clock).groupby(stretch).min()
    share = np.linspace(0, 1, points) ** 2  # denser in the beginning, where levels change most
    regular = ends["start"].to_numpy()[:, None] + share * (ends["end"] - ends["start"]).to_numpy()[:, None]
    owner = stretch[events.is_dose]
    last = ends["end"].reindex(owner, fill_value=-np.inf).to_numpy()
    turns = _turns(clock[events.is_dose], owner, last, _spans(events) if corners is None else corners)
    every = pd.DataFrame(
        {
            "stretch": np.r_[np.repeat(ends.index.to_numpy(), points), np.tile(owner, len(turns))],
            "clock": np.r_[regular.ravel(), turns.ravel()],
        }
    ).join(ends, on="stretch")
    inside = (every["clock"] >= every["start"]) & (every["clock"] <= every["end"])
    every = every[inside].drop_duplicates(["stretch", "clock"]).sort_values(["stretch", "clock"])
    subject, segment = (of.to_numpy(dtype=np.int64) for of in divmod(every["stretch"], segments))
    times = every["clock"].to_numpy()
    in_file = times - every["shift"].to_numpy()
    table = _observed(events, subject, segment, times, in_file)
    return table, pd.DataFrame({"subject": subject, "segment": segment, "time": in_file})


def _turns(given: FloatArray, owner: IntArray, last: FloatArray, corners: FloatArray) -> FloatArray:
    """Times around each of D doses at which a curve must be looked at to be smooth, on the clock, (P, D).

    Just before it arrives and when it does; on the way there and while it arrives, evenly; after that ever
    wider apart, until the subject's next dose or ``last`` (D,): a peak of absorption lies anywhere there.
    Of very many doses each has fewer.

    :param given: (D,), when they are given. :param owner: (D,), whose they are.
    """
    begin, end = corners
    order = np.lexsort((begin, owner))
    following = np.full(len(begin), np.inf)
    same = owner[order][1:] == owner[order][:-1]
    following[order[:-1]] = np.where(same, begin[order][1:], np.inf)
    until = np.maximum(np.minimum(following, last), end)
    most = int(np.unique(owner, return_counts=True)[1].max(initial=1))
    after = np.linspace(0, 1, min(_MOST_AFTER, max(_LEAST_AFTER, _ALL_AFTER // most)))[1:, None] ** 3
    evenly = np.linspace(0, 1, 5)[1:-1, None]
    parts = [begin[None] - 1e-3, begin[None], end[None], end + after * (until - end)]
    parts += [begin + evenly * (end - begin)] if (end - begin > 2 * _AFTER).any() else []
    parts += [given + evenly * (begin - given)] if (begin > given).any() else []
    return np.concatenate(parts)


def _observed(
    events: EventTable, subject: IntArray, segment: IntArray, clock: FloatArray, time: FloatArray
) -> EventTable:
    """The doses of a table with observations, whose values are not known, in place of those it has."""
    nothing, none = np.full(len(clock), np.nan), np.zeros(len(clock), dtype=bool)
    seen = {
        **dict.fromkeys(_ROWS, nothing),
        "subject": subject,
        "time": time,
        "clock": clock,
        **dict.fromkeys(("dv", "over"), np.zeros(len(clock))),
        **dict.fromkeys(("compartment", "regime"), np.full(len(clock), -1)),
        "rated": np.zeros(len(clock), dtype=np.int64),
        "segment": segment,
        **dict.fromkeys(("endpoint",), np.zeros(len(clock), dtype=np.int64)),
        "occasion": np.ones(len(clock), dtype=np.int64),
        **dict.fromkeys(("is_dose", "added", "censored", "above"), none),
    }
    return replace(events, **_in_order(_joined(_some(events, events.is_dose), seen)))


def _some(events: EventTable, rows: BoolArray) -> dict[str, Any]:
    return {name: getattr(events, name)[rows] for name in _ROWS}


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: np.concatenate([one[name], other[name]]) for name in _ROWS}


def _in_order(rows: dict[str, Any]) -> dict[str, Any]:
    order = _order(rows)
    return {name: values[order] for name, values in rows.items()}


def _order(rows: dict[str, Any]) -> IntArray:
    """By patient and time; what is given at a time comes before what is seen then."""
    return np.asarray(np.lexsort((~rows["is_dose"], rows["clock"], rows["subject"])))
