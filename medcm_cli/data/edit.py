"""An event table made from another: some of its subjects, other doses or times, a grid of observations."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medcm_cli.data.events import EventTable, Regimes
from medcm_cli.data.sheet import BoolArray, FloatArray

_AFTER = 1e-6  # h; how long after its end all of a dose is seen, one that is given at once too
# h after that, and before, to follow levels whatever the times that they are asked for at.
_FALL = (
    *(0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 16, 20, 24, 36, 48, 72, 96),
    *(144, 240, 480, 1000),
)
_RISE = (2.0, 1.0, 0.5, 0.25)
LAGGED = _FALL[:12]
LOOKS = 2 + len(_RISE) + len(_FALL)  # for a dose, at most
_ROWS = [f.name for f in fields(EventTable) if f.name not in ("source", "ids", "covariates", "regimes")]
_ROWS = [name for name in _ROWS if name not in ("reset_subject", "reset_clock", "superposed")]


def latest_covariates(events: EventTable) -> dict[str, FloatArray]:
    """One value per patient, the last of those that change."""
    if events.regimes is None:
        return events.covariates
    last = np.r_[np.diff(events.regimes.subject) != 0, True]
    return events.covariates | {name: values[last] for name, values in events.regimes.covariates.items()}


def part(events: EventTable, numbers: npt.NDArray[np.int64]) -> EventTable:
    """Some patients, by their numbers from 0 in ascending order."""
    place = np.full(len(events.ids), -1)
    place[numbers] = np.arange(len(numbers))
    rows, resets = place[events.subject] >= 0, place[events.reset_subject] >= 0
    changed = _some(events, rows)
    changed["subject"] = place[changed["subject"]]
    regimes = events.regimes
    if regimes is not None:
        own = place[regimes.subject] >= 0
        changing = {name: values[own] for name, values in regimes.covariates.items()}
        regimes = Regimes(place[regimes.subject[own]], regimes.end[own], changing)
    return replace(
        events,
        **changed,
        ids=tuple(events.ids[number] for number in numbers),
        reset_subject=place[events.reset_subject[resets]],
        reset_clock=events.reset_clock[resets],
        covariates={name: values[numbers] for name, values in events.covariates.items()},
        regimes=regimes,
    )


def with_doses(events: EventTable, doses: EventTable, added: bool) -> EventTable:
    """The patients of ``events`` with the doses of another table of the same patients and no observations.

    :param added: to the doses that ``events`` has, and not in their place. Neither table has a reset then.
    """
    if not added:
        return replace(doses, source=events.source, covariates=latest_covariates(events))
    both = _joined(_some(events, events.is_dose), _some(doses, doses.is_dose))
    return replace(events, **_in_order(both), superposed=events.superposed or doses.superposed)


def with_amounts(events: EventTable, rows: BoolArray, amount: float | FloatArray) -> EventTable:
    """The table with other amounts in some of its rows (R,).

    :param amount: one, or one for each row (R,), in the data's unit.
    """
    return replace(events, amount=np.where(rows, amount, events.amount))


def at_steady_state(events: EventTable, rows: BoolArray, every: float) -> EventTable:
    """The table with an endless series of doses, ``every`` h, that ends with each of these doses (R,)."""
    return replace(events, interval=np.where(rows, every, events.interval))


def looked_at(
    events: EventTable, times: FloatArray, corners: FloatArray, after: Sequence[float] = _FALL
) -> tuple[EventTable, npt.NDArray[np.int64]]:
    """The patients' doses, with an observation at each of ``times`` (h on the clock) and, between the first
    and the last of them, at each dose's corners and at hours ``after`` the second of them and, of a
    dose that is not seen at once, ``_RISE`` before it.

    :param corners: when each dose begins to be seen and when all of it has been given (``dose_corners``).
    :returns: the table, every patient with as many observations in it, and the place among them of each of
        ``times``, (times, N).
    """
    n = len(events.ids)
    doses = _some(events, events.is_dose)
    counts = np.bincount(doses["subject"], minlength=n)
    most = int(counts.max(initial=0))
    position = np.arange(len(doses["subject"])) - np.repeat(np.cumsum(counts) - counts, counts)
    start, end = corners
    before = _RISE if (start > doses["clock"]).any() else ()
    around = np.stack([start, end, *(end - h for h in before), *(end + h for h in after)])
    padded = np.full((len(around), most, n), times[-1])
    padded[:, position, doses["subject"]] = around.clip(times[0], times[-1])
    added = padded.reshape(-1, n)
    added = added[((added > times[0]) & (added < times[-1])).any(1)]  # those that someone has
    grid = np.broadcast_to(times[:, None], (len(times), n))
    every = np.concatenate([grid, added])
    order = np.argsort(every, axis=0, kind="stable")
    place = np.argsort(order, axis=0, kind="stable")[: len(times)]
    clock = np.take_along_axis(every, order, axis=0).T.ravel()
    subject = np.repeat(np.arange(n), len(every))
    nothing = np.full(len(clock), np.nan)
    seen = {
        **dict.fromkeys(_ROWS, nothing),
        "subject": subject,
        "time": clock,
        "clock": clock,
        "dv": np.zeros(len(clock)),
        "compartment": np.full(len(clock), -1),
        "segment": _segment(events, subject, clock),
        "occasion": np.ones(len(clock), dtype=np.int64),
        **dict.fromkeys(("is_dose", "added", "censored"), np.zeros(len(clock), dtype=bool)),
    }
    return replace(events, **_in_order(_joined(doses, seen))), place


def dose_corners(events: EventTable) -> FloatArray:
    """Where each dose begins and when all of it has been given, h on the clock: (2, doses). Without lag times
    and durations that are parameters, which ``Study.corners`` has."""
    start, duration = events.clock[events.is_dose], events.duration[events.is_dose]
    return np.stack([start, start + np.nan_to_num(duration) + _AFTER])


def _segment(events: EventTable, subject: npt.NDArray[np.int64], clock: FloatArray) -> npt.NDArray[np.int64]:
    """How many resets a patient has had by a time."""
    far = 1e9  # h; more than any clock, so that patients and their times can be searched as one number
    resets = np.sort(events.reset_subject * far + events.reset_clock)
    before = np.searchsorted(resets, np.stack([subject * far, subject * far + clock]), side="right")
    return np.asarray(before[1] - before[0], dtype=np.int64)


def _some(events: EventTable, rows: BoolArray) -> dict[str, Any]:
    return {name: getattr(events, name)[rows] for name in _ROWS}


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: np.concatenate([one[name], other[name]]) for name in _ROWS}


def _in_order(rows: dict[str, Any]) -> dict[str, Any]:
    """By patient and time; what is given at a time comes before what is seen then."""
    when = np.where(rows["is_dose"], rows["since"], rows["clock"])
    order = np.lexsort((~rows["is_dose"], when, rows["subject"]))
    return {name: values[order] for name, values in rows.items()}


def moved(events: EventTable, by: FloatArray) -> EventTable:
    """Every patient's clock so many hours later."""
    regimes = events.regimes
    if regimes is not None:
        regimes = replace(regimes, end=regimes.end + by[regimes.subject])
    return replace(
        events,
        **{name: getattr(events, name) + by[events.subject] for name in ("time", "clock", "since")},
        reset_clock=events.reset_clock + by[events.reset_subject],
        regimes=regimes,
    )


def copies(events: EventTable, number: int) -> EventTable:
    """The patients so many times over, one copy of all after another."""
    n = len(events.ids)

    def again(values: np.ndarray, counts: bool) -> np.ndarray:
        shift = n * np.repeat(np.arange(number), len(values)) if counts else 0
        return np.asarray(np.tile(values, number) + shift if counts else np.tile(values, number))

    def every(held: Any) -> dict[str, Any]:
        return {
            f.name: again(getattr(held, f.name), f.name in ("subject", "reset_subject"))
            for f in fields(held)
            if isinstance(getattr(held, f.name), np.ndarray)
        }

    def covariates(held: dict[str, FloatArray]) -> dict[str, FloatArray]:
        return {name: np.tile(values, number) for name, values in held.items()}

    regimes = events.regimes
    if regimes is not None:
        regimes = replace(regimes, **every(regimes), covariates=covariates(regimes.covariates))
    return replace(
        events,
        **every(events),
        ids=tuple(f"{name} {copy}" for copy in range(number) for name in events.ids),
        covariates=covariates(events.covariates),
        regimes=regimes,
    )


def on_grid(events: EventTable, points_of_part: int) -> tuple[EventTable, pd.DataFrame]:
    """The doses of a table with a grid in place of its observations, and that grid: ``subject`` (number),
    ``segment``, ``time`` as in the file."""
    clock = np.where(events.is_dose, events.since, events.clock)
    part = events.subject * (int(events.segment.max()) + 1) + events.segment
    seen = pd.DataFrame({"part": part, "clock": clock, "shift": events.clock - events.time})[~events.is_dose]
    ends = seen.groupby("part").agg(end=("clock", "max"), shift=("shift", "first"))
    ends["start"] = pd.Series(clock).groupby(part).min()
    share = np.linspace(0, 1, points_of_part) ** 2  # denser in the beginning, where levels change most
    regular = ends["start"].to_numpy()[:, None] + share * (ends["end"] - ends["start"]).to_numpy()[:, None]
    doses = np.flatnonzero(events.is_dose)
    begin = clock[doses]
    # Just before, at the start, and at the end: where a curve turns.
    turns = np.concatenate([begin - 1e-3, begin, begin + events.duration[doses]])
    points = pd.DataFrame(
        {
            "part": np.r_[np.repeat(ends.index.to_numpy(), points_of_part), np.tile(part[doses], 3)],
            "clock": np.r_[regular.ravel(), turns],
        }
    ).join(ends, on="part")
    inside = (points["clock"] >= points["start"]) & (points["clock"] <= points["end"])
    points = points[inside].drop_duplicates(["part", "clock"]).sort_values(["part", "clock"])
    width = int(events.segment.max()) + 1
    of = (points["part"] // width).to_numpy(dtype=np.int64)
    segment = (points["part"] % width).to_numpy(dtype=np.int64)
    count, at = len(points), points["clock"].to_numpy()
    time = at - points["shift"].to_numpy()
    nothing = np.full(count, np.nan)
    kept = events.is_dose

    def joined(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([old[kept], new.astype(old.dtype)])

    columns = {
        "subject": joined(events.subject, of),
        "time": joined(events.time, time),
        "clock": joined(events.clock, at),
        "is_dose": joined(events.is_dose, np.zeros(count)),
        "added": joined(events.added, np.zeros(count)),
        "dv": joined(events.dv, np.zeros(count)),
        "censored": joined(events.censored, np.zeros(count)),
        "compartment": joined(events.compartment, np.full(count, -1)),
        "segment": joined(events.segment, segment),
        "occasion": joined(events.occasion, np.ones(count)),
    }
    columns |= {
        name: joined(getattr(events, name), nothing) for name in ("amount", "duration", "since", "interval")
    }
    key = np.r_[clock[kept], at]
    order = np.lexsort((~columns["is_dose"], key, columns["subject"]))  # a dose before a point at its time
    written: dict[str, Any] = {name: values[order] for name, values in columns.items()}
    grid = pd.DataFrame({"subject": of, "segment": segment, "time": time})
    return replace(events, **written), grid.reset_index(drop=True)
