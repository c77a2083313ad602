"""Where a prediction is not to be trusted: patients and regimens beyond those that a study was trained on,
and levels that do not fit the patient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import gammaincinv
from torch import Tensor

from medcm_cli import runs
from medcm_cli.data import EventTable, Population
from medcm_cli.data.sheet import FloatArray
from medcm_cli.model import Model, Values
from medcm_cli.numerics.triangular import multiply_lower, solve_lower, total
from medcm_cli.posteriors.individual import Posterior, misfit
from medcm_cli.runs import Units
from medcm_cli.study.restore import Ensemble, data_of, restore

_FACTOR = 10.0  # beyond the plausible: another unit, rather than an unusual patient
_MISFIT, _EFFECTIVE = 5.0, 0.1
_SURPRISING = 1e-4  # of a random effect so far from zero
_DRAWS, _EACH = 64, 8  # of plausible patients, at least; of each fit


@dataclass(frozen=True)
class Ranges:
    """[least, most] of the subjects that any of the fits was trained on: ``covariates``, in the file's unit;
    ``dose``, amount of each; ``doses`` and ``follow_up`` (h to the last observation) of a subject. None where
    it is not known. ``note``: where the ranges are from, if not from the training data themselves."""

    covariates: dict[str, tuple[float, float]]
    dose: tuple[float, float] | None
    doses: tuple[float, float] | None
    follow_up: tuple[float, float] | None
    note: str | None = None


def ranges_of(fits: Ensemble) -> Ranges:
    """From the training data where they still lie where they were, and else from what the fits' records say
    of the whole data set."""
    record = fits.records[0]
    source = data_of(fits.folders[0], record)
    if source.is_file() and runs.fingerprint([source]) == record.data["fingerprint"]:
        (restored,) = restore(list(zip(fits.folders, fits.records, strict=True)))
        there = restored.population.present > 0
        rows = np.unique(restored.population.subject[there].numpy())
        return _ranges(restored.problem.events, rows)
    held = record.data.get("characteristics", {})
    covariates = {name: _least_most(entry["values"]) for name, entry in held.get("covariates", {}).items()}
    return Ranges(
        {name: values for name, values in covariates.items() if values is not None},
        None,
        _least_most(held.get("doses_per_subject")),
        _least_most(held.get("follow_up")),
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
    last = pd.Series(events.clock[seen]).groupby(events.subject[seen]).max()
    count: FloatArray = np.bincount(events.subject[given], minlength=len(events.ids))[subjects] * 1.0
    amount = spread(events.amount[given]) if given.any() else None
    return Ranges(covariates, amount, spread(count), spread(last.to_numpy(dtype=np.float64)))


def outside(ranges: Ranges, events: EventTable, regimen: str | None, horizon: float) -> pd.DataFrame:
    """Where patients (``regimen`` None: their covariates) or a regimen lie outside the ranges, and whether
    what is predicted lasts longer: columns patient, kind, message; patient empty where it is all of them."""
    found: list[tuple[str, str, str]] = []
    ids = np.asarray(events.ids)

    def compare(
        values: FloatArray, subject: np.ndarray, wanted: tuple[float, float] | None, what: str
    ) -> None:
        if wanted is None:
            return
        low, high = wanted
        slack = 1e-6 * max(abs(low), abs(high))
        bad = np.flatnonzero((values < low - slack) | (values > high + slack))
        _, first = np.unique(subject[bad], return_index=True)  # one word for each patient
        found.extend(
            (
                ids[subject[i]],
                "range",
                f"{what} {values[i]:g} lies outside the {low:g} to {high:g} trained on",
            )
            for i in bad[first]
        )

    if regimen is None:
        for name, values in events.covariates.items():
            compare(values, np.arange(len(ids)), ranges.covariates.get(name), name)
        if events.regimes is not None:
            for name, values in events.regimes.covariates.items():
                compare(values, events.regimes.subject, ranges.covariates.get(name), name)
    else:
        given = events.given
        compare(events.amount[given], events.subject[given], ranges.dose, f"{regimen}: a dose of")
        count = np.bincount(events.subject[given], minlength=len(ids)).astype(float)
        if ranges.doses is not None:
            most = ranges.doses[1]
            words = f"doses are more than the {most:g} of any subject trained on"
            found.extend(
                (ids[i], "range", f"{regimen}: {count[i]:g} {words}") for i in np.flatnonzero(count > most)
            )
        if ranges.follow_up is not None and horizon > ranges.follow_up[1]:
            longest = f"{ranges.follow_up[1]:.4g} h"
            words = f"{regimen}: {horizon:g} h is longer than any follow-up trained on, {longest}"
            found.append(("", "range", words))
    return pd.DataFrame(found, columns=["patient", "kind", "message"])


@torch.no_grad()
def surprises(
    model: Model,
    values: Values,
    population: Population,
    found: Posterior,
    ids: Sequence[str],
    unit: str,
) -> pd.DataFrame:
    """Levels far from anything that the model expects of the patient, random effects far from zero, and
    posteriors that are not well known: the same columns as ``outside``.

    A level is implausible where it is ten times the largest, or a tenth of the least, of ``_DRAWS`` patients
    of the same covariates, four residual sd further away. A patient is surprising where eta' Omega^-1 eta at
    the mode, on average over fits, is what one in 10 000 has, or where a level lies ``_MISFIT`` residual sds
    from what it is there, in half of the fits. Of importance sampling, less than ``_EFFECTIVE`` of the
    proposals, likewise, is too little.
    """
    mode, notes = found.mode, list[tuple[str, str, str]]()
    size = len(mode)
    omega = model.omega_cholesky(values)
    count = max(_EACH, _DRAWS // mode[0].shape[-1])
    points = torch.quasirandom.SobolEngine(size, scramble=True, seed=1).draw(count, dtype=mode[0].dtype)
    normal = torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9)).T[:, :, None, None]
    eta = multiply_lower(omega, list(normal.unbind(0)))
    level = model.predict(model.typical(values, population), population, eta)
    high, low = (model.error.draw(values, level, far) for far in (4.0, -4.0))
    high, low = high.amax((1, 3)), low.amin((1, 3))  # (T, N)
    dv, time = population.dv[:, 0, :, 0], population.time[:, 0, :, 0]
    known = population.observed[:, 0, :, 0] > 0
    if population.censored is not None:
        known = known & (population.censored[:, 0, :, 0] == 0)
    above, below = known & (dv > _FACTOR * high), known & (dv > 0) & (dv * _FACTOR < low)
    wrong = above | below
    for number in torch.nonzero(wrong.any(0)).flatten().tolist():
        row = int(torch.nonzero(wrong[:, number])[0])
        ratio, word = (
            (dv / high, "times the highest") if bool(above[row, number]) else (dv / low, "of the lowest")
        )
        notes.append(
            (
                ids[number],
                "level",
                f"the level {float(dv[row, number]):g} at {float(time[row, number]):g} h is "
                f"{float(ratio[row, number]):.2g} {word} plausible; the file's levels are to be in {unit}, "
                "and the dose before it has to be there",
            )
        )
    white = solve_lower(omega, list(mode))
    distance = total([x * x for x in white])[0].mean(-1)
    limit = 2 * float(gammaincinv(size / 2, 1 - _SURPRISING))
    far = (distance > limit) & ~wrong.any(0)
    notes.extend(
        (
            ids[number],
            "patient",
            f"the levels ask for random effects {float(distance[number]) ** 0.5:.1f} sd from the typical "
            "patient, further than one in 10 000: check levels, doses and their times",
        )
        for number in torch.nonzero(far).flatten().tolist()
    )
    off = misfit(model, values, population, mode)[:, 0].quantile(0.5, dim=-1)  # (T, N)
    unmet = (off.amax(0) > _MISFIT) & ~wrong.any(0)
    for number in torch.nonzero(unmet).flatten().tolist():
        row = int(off[:, number].argmax())
        notes.append(
            (
                ids[number],
                "level",
                f"the level {float(dv[row, number]):g} {unit} at {float(time[row, number]):g} h is "
                f"{float(off[row, number]):.0f} residual sd from what the most likely parameters give: check "
                "levels, doses and their times",
            )
        )
    effective = found.effective.quantile(0.5, dim=-1)
    notes.extend(
        (
            ids[number],
            "posterior",
            f"only {100 * float(effective[number]):.2g} % of the draws of importance sampling count, and "
            "intervals are rough: compare another method",
        )
        for number in torch.nonzero((effective < _EFFECTIVE) & ~wrong.any(0)).flatten().tolist()
    )
    return pd.DataFrame(notes, columns=["patient", "kind", "message"])


def odd_fits(typical: Mapping[str, Tensor]) -> pd.DataFrame:
    """Fits whose typical parameters are ten times the ensemble's median, or a tenth of it: the same columns
    as ``outside``. They count like the others.

    :param typical: parameter -> (1, N, B).
    """
    found = []
    for name, values in typical.items():
        ratio = (values[0] / values[0].quantile(0.5, dim=-1, keepdim=True)).quantile(0.5, dim=0)
        number = int(((ratio > _FACTOR) | (ratio < 1 / _FACTOR)).sum())
        if number:
            words = f"{number} of {len(ratio)} fits have a {name} more than {_FACTOR:g} times off the median"
            found.append(("", "fits", f"{words} of all; they may not have converged, and widen the bands"))
    return pd.DataFrame(found, columns=["patient", "kind", "message"])


def unit_in_file(dataset: dict[str, Any]) -> str:
    """The unit of the levels of a study's event tables."""
    return Units.of(dataset).model
