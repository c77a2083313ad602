"""What a study was trained on, and what lies beyond that: patients' covariates, doses and times."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from medcm_cli import runs
from medcm_cli.data import EventTable
from medcm_cli.data.sheet import FloatArray, IntArray
from medcm_cli.patients.notes import Note, note_table
from medcm_cli.study.restore import Ensemble, data_of, restore


@dataclass(frozen=True)
class Ranges:
    """[least, most] of the subjects that any of the fits was trained on: ``covariates``, in the file's unit;
    ``dose``, amount of each; ``doses`` and ``follow_up`` to the last observation of a subject. None where
    it is not known. ``note``: where the ranges are from, if not from the training data themselves; ``units``
    of covariates, of ``dose`` and of ``follow_up``."""

    covariates: dict[str, tuple[float, float]]
    dose: tuple[float, float] | None
    doses: tuple[float, float] | None
    follow_up: tuple[float, float] | None
    note: str | None = None
    units: dict[str, str] = field(default_factory=dict)


def ranges_of(fits: Ensemble) -> Ranges:
    """From the training data where they still lie where they were, and else from what the fits' records say
    of the whole data set."""
    dataset = fits.config["dataset"]
    of_data = runs.Units.of(dataset)
    units = {name: str(entry.get("unit") or "-") for name, entry in dataset["covariates"].items()}
    return replace(_known(fits), units=units | {"dose": of_data.amount, "follow_up": of_data.time})


def _known(fits: Ensemble) -> Ranges:
    record = fits.records[0]
    source = data_of(fits.folders[0], record)
    if source.is_file() and runs.fingerprint([source]) == record.data["fingerprint"]:
        (restored,) = restore(list(zip(fits.folders, fits.records, strict=True)), fits.trust)
        there = restored.population.present > 0
        rows = np.unique(restored.population.subject[there].numpy())
        return _ranges(restored.problem.events, rows)
    known = record.data.get("characteristics", {})
    covariates = {name: _least_most(entry["values"]) for name, entry in known.get("covariates", {}).items()}
    return Ranges(
        {name: values for name, values in covariates.items() if values is not None},
        None,
        _least_most(known.get("doses_per_subject")),
        _least_most(known.get("follow_up")),
        f"the training data, {source}, are not there as they were: ranges are those of the whole data set, "
        "and doses are not compared",
    )


def _least_most(values: list[float] | None) -> tuple[float, float] | None:
    """Of [median, least, most]."""
    return None if values is None else (float(values[1]), float(values[2]))


def _ranges(events: EventTable, subjects: np.ndarray) -> Ranges:
    def spread(values: np.ndarray) -> tuple[float, float]:
        return float(values.min()), float(values.max())

    covariates = {name: spread(values[subjects]) for name, values in events.covariates.items()}
    if events.regimes is not None:
        rows = np.isin(events.regimes.subject, subjects)
        covariates |= {name: spread(values[rows]) for name, values in events.regimes.covariates.items()}
    given = events.given & np.isin(events.subject, subjects)
    seen = ~events.is_dose & np.isin(events.subject, subjects)
    last = pd.Series(events.time[seen]).groupby(events.subject[seen]).max()
    count: FloatArray = np.bincount(events.subject[given], minlength=len(events.ids))[subjects] * 1.0
    amount = spread(events.amount[given]) if given.any() else None
    return Ranges(covariates, amount, spread(count), spread(last.to_numpy(dtype=np.float64)))


def outside(
    ranges: Ranges, events: EventTable, regimen: str | None, horizon: float | FloatArray
) -> pd.DataFrame:
    """Where patients (``regimen`` None: their covariates) or a regimen lie outside the ranges, and whether
    what is predicted lasts longer.

    :param regimen: its name. :param horizon: how long it is predicted for, one or of each patient (N,).
    :returns: a table of notes (``medcm_cli.patients.notes``).
    """
    return note_table(
        _of_covariates(ranges, events) if regimen is None else _of_doses(ranges, events, regimen, horizon)
    )


def _of_covariates(ranges: Ranges, events: EventTable) -> list[Note]:
    everyone = np.arange(len(events.ids))
    notes: list[Note] = []
    for name, values in events.covariates.items():
        unit = ranges.units.get(name, "-")
        notes += _beyond(events, values, everyone, ranges.covariates.get(name), name, unit)
    if events.regimes is not None:
        for name, values in events.regimes.covariates.items():
            limits, unit = ranges.covariates.get(name), ranges.units.get(name, "-")
            notes += _beyond(events, values, events.regimes.subject, limits, name, unit)
    return notes


def _of_doses(ranges: Ranges, events: EventTable, regimen: str, horizon: float | FloatArray) -> list[Note]:
    given = events.given
    amount, subject = events.amount[given], events.subject[given]
    unit = ranges.units.get("dose", "-")
    notes = _beyond(events, amount, subject, ranges.dose, f"{regimen}: a dose of", unit)
    count = np.bincount(subject, minlength=len(events.ids)).astype(float)
    if ranges.doses is not None:
        most = ranges.doses[1]
        words = f"doses are more than the {most:g} of any subject trained on"
        several = np.flatnonzero(count > most)
        notes += [(events.ids[i], "range", f"{regimen}: {count[i]:g} {words}") for i in several]
    if ranges.follow_up is not None:
        notes += _too_long(events, regimen, horizon, ranges.follow_up[1])
    return notes


def _too_long(events: EventTable, regimen: str, horizon: float | FloatArray, most: float) -> list[Note]:
    """Where a regimen is predicted for longer than any follow-up: one note where that is so of all patients
    alike."""
    unit = events.time_unit
    until = np.broadcast_to(horizon, len(events.ids))
    far = np.flatnonzero(until > most)
    notes = [
        (
            events.ids[i],
            "range",
            f"{regimen}: {until[i]:g} {unit} is longer than any follow-up trained on, {most:.4g} {unit}",
        )
        for i in far
    ]
    alike = len(far) == len(until) and (until == until[0]).all()
    return [("", *notes[0][1:])] if alike and notes else notes


def _beyond(
    events: EventTable,
    values: FloatArray,
    subject: IntArray,
    limits: tuple[float, float] | None,
    what: str,
    unit: str,
) -> list[Note]:
    """A note for each patient with a value (R,), of the patients ``subject`` (R,), beyond the limits."""
    if limits is None:
        return []
    low, high = limits
    of_unit = "" if unit == "-" else f" {unit}"
    span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    slack = 1e-6 * max(abs(low), abs(high))
    bad = np.flatnonzero((values < low - slack) | (values > high + slack))
    _, first = np.unique(subject[bad], return_index=True)  # one note for each patient
    return [
        (
            events.ids[subject[i]],
            "range",
            f"{what} {values[i]:g}{of_unit} lies outside the {span}{of_unit} trained on",
        )
        for i in bad[first]
    ]
