"""Individual predictions from a fitted study, as an ensemble over all its fits: parameters, curves of
concentration, and the time above thresholds. For research use only, not for treatment decisions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from medcm_cli.data import EventTable, Population
from medcm_cli.data.edit import LOOKS, observed_at, part
from medcm_cli.data.sheet import FloatArray
from medcm_cli.errors import InputError
from medcm_cli.patients.plans import Plan, read_plan, with_plan
from medcm_cli.patients.plausibility import odd_fits, outside, surprises, unit_in_file
from medcm_cli.patients.study import Patients, Study, studied
from medcm_cli.posteriors.individual import Posterior, proposals, residual_noise

DISCLAIMER = "For research use only, not for treatment decisions."
GIVEN = "given"  # the name of the regimen in the patients' own file
PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)
BOUNDS = ("lower_90", "lower_50", "median", "upper_50", "upper_90")
HALF_LIFE = "half-life"
# Draws and default times of so many patients, and of a file of more.
FEW = 100
DRAWS, POINTS = (1000, 200), (97, 25)
MOST_TIMES = 10_000
_ELEMENTS = 4_000_000  # levels in memory at once, of a chunk of patients

Regimen = Path | str | pd.DataFrame | Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Prediction:
    """What is predicted, as tables with a row for each

    - ``parameters``: patient and parameter; ``unit``, ``typical`` and the bounds;
    - ``curve``: patient, regimen and time (h); ``typical`` and the bounds of the level, and
      ``measured_lower_90`` and so on, those of a level as it would be measured, with residual error;
    - ``thresholds``: patient, regimen and threshold; hours above it within the times, ``typical`` and bounds;
    - ``above``: patient, regimen, threshold and time; ``probability`` of a level above;
    - ``posteriors``: patient and fit; mode and covariance of eta, ``converged``, and ``effective``, the
      effective size of the weighted sample as a fraction;
    - ``doses``: patient, regimen and dose; its time, ``amount`` and ``duration`` (h);
    - ``observations``: patient and time of the levels in the file;
    - ``warnings``: patient (empty: all), kind and message.

    Bounds are ``lower_90``, ``lower_50``, ``median``, ``upper_50`` and ``upper_90``. Levels and thresholds
    are in ``unit``. ``label`` names the study, ``disclaimer`` what predictions are for.
    """

    label: str
    unit: str
    times: FloatArray
    parameters: pd.DataFrame
    curve: pd.DataFrame
    thresholds: pd.DataFrame
    above: pd.DataFrame
    posteriors: pd.DataFrame
    doses: pd.DataFrame
    observations: pd.DataFrame
    warnings: pd.DataFrame
    disclaimer: str = DISCLAIMER

    def __repr__(self) -> str:
        return contents(self)


def contents(found: Any) -> str:
    """What a result holds, for a person in a notebook: its study, and the rows of each of its tables."""
    tables = {f.name: getattr(found, f.name) for f in fields(found)}
    rows = [f"  .{name}: {len(t)} rows" for name, t in tables.items() if isinstance(t, pd.DataFrame)]
    return "\n".join([f"{found.label}. {found.disclaimer}", *rows])


def predict(
    study: Study | Path | str,
    patients: Patients | EventTable,
    regimen: Regimen | Sequence[Regimen] | None = None,
    times: Sequence[float] | FloatArray | None = None,
    thresholds: Sequence[float] = (1.0, 5.0, 50.0),
    method: str = "importance",
    draws: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Prediction:
    """Predict patients that the study has not seen, given the levels that their file has, if any.

    :param study: from ``load_study``, or its folder.
    :param patients: an event table, .csv or .parquet or a frame, with the columns of the study's data.
    :param regimen: one or more to try (``plans.read_plan``) beside the doses in the file.
    :param times: h to predict levels at; by default to a day after the last event, at least three days.
    :param thresholds: levels in the study's unit. :param method: of ``individual.METHODS``.
    :param draws: of a patient's posterior, over all fits together; 1000 by default, 200 where there are more
        than 100 patients, of whom there are fewer default times too.
    :param progress: told how many patients are done.
    :raises InputError: a fault in the file, a regimen or an option.
    """
    study = studied(study)
    events = patients if isinstance(patients, EventTable) else study.read(patients)
    draws = draws_of(draws, len(events.ids))
    thresholds = list(dict.fromkeys(thresholds))
    plans = [read_plan(one, study.dataset) for one in _several_regimens(regimen)]
    _check(plans, thresholds)
    regimens = regimens_of(study, events, plans)
    tried = [table for table in regimens.values() if table is not events]
    grid = _times(times, study, [events, *tried], POINTS[len(events.ids) > FEW])
    tables: dict[str, list[pd.DataFrame]] = {}
    each = -(-draws // len(study.fits.records))
    most = max(int(_per_patient(table.is_dose, table).max(initial=0)) for table in regimens.values())
    seen = int(_per_patient(~events.is_dose, events).max(initial=0))
    # Levels at the times, and, in double precision, those that a posterior is weighted by.
    width = max((len(grid) + LOOKS * most) * each, 2 * seen * proposals(each))
    chunk = max(1, _ELEMENTS // (width * len(study.fits.records)))
    for start in range(0, len(events.ids), chunk):
        numbers = np.arange(start, min(start + chunk, len(events.ids)))
        some = part(events, numbers)
        others = {name: part(table, numbers) for name, table in regimens.items()}
        found = study.posterior(some, method, draws)
        for name, frame in _chunk(study, some, others, found, grid, thresholds).items():
            tables.setdefault(name, []).append(frame)
        if progress:
            progress(int(numbers[-1]) + 1)
    frames = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    warnings = frames.pop("warnings")
    first = study.population(part(events, np.arange(min(FEW, len(events.ids)))))
    notes = [odd_fits(individual_parameters(study, first, None)), outside(study.ranges, events, None, 0.0)]
    for name, table in regimens.items():
        # What is shown by default goes a day further than what happened.
        last = float(table.clock.max(initial=0.0)) if times is None else float(grid[-1])
        notes.append(outside(study.ranges, table, name, last))
    notes += [_into_the_past(plan, events) for plan in plans]
    notes = [note for note in (warnings, study.notes, *notes) if len(note)]
    return Prediction(
        label=study.label,
        unit=study.unit,
        times=grid,
        warnings=pd.concat(notes, ignore_index=True) if notes else warnings,
        parameters=frames["parameters"],
        curve=frames["curve"],
        thresholds=frames["thresholds"],
        above=frames["above"],
        posteriors=frames["posteriors"],
        doses=pd.concat([_doses(name, table) for name, table in regimens.items()], ignore_index=True),
        observations=frames["observations"],
    )


def _into_the_past(plan: Plan, events: EventTable) -> pd.DataFrame:
    """Whether a plan continues with a dose before a level that is in the file and does not know of it."""
    first, last = float(plan.doses["time"].min()), float(events.clock[~events.is_dose].max(initial=-np.inf))
    words = f"{plan.name}: continues with a dose at {first:g} h, before a level measured at {last:g} h"
    rows = [("", "regimen", words)] if plan.continues and first < last else []
    return pd.DataFrame(rows, columns=["patient", "kind", "message"])


def _several_regimens(regimen: Regimen | Sequence[Regimen] | None) -> Sequence[Regimen]:
    if regimen is None:
        return ()
    return [regimen] if isinstance(regimen, str | Path | pd.DataFrame | Mapping) else list(regimen)


def _check(plans: Sequence[Plan], thresholds: Sequence[float]) -> None:
    names = [GIVEN, *(plan.name for plan in plans)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"regimen {name}: there are two of this name; give each its own")
    for threshold in thresholds:
        if not 0 < threshold < np.inf:
            raise InputError(f"threshold is {threshold:g}: expected levels above 0")


def draws_of(draws: int | None, patients: int) -> int:
    """How many draws of a posterior, by default as many as the number of patients lets.

    :raises InputError: too few.
    """
    if draws is not None and draws < 20:
        raise InputError(f"draws is {draws}: expected at least 20")
    return DRAWS[patients > FEW] if draws is None else draws


def regimens_of(study: Study, events: EventTable, plans: Sequence[Plan]) -> dict[str, EventTable]:
    """Name -> the patients with the doses of a regimen: that of their file, where anyone has one, and each
    plan's. :raises InputError: there is none at all, or doses that the model cannot take."""
    tables = {GIVEN: events} if events.is_dose.any() else {}
    for plan in plans:
        tables[plan.name] = with_plan(events, plan)
        study.check(tables[plan.name], f"regimen {plan.name}")
    if not tables:
        raise InputError(f"{events.source}: has no dose; give the doses there or as a regimen")
    return tables


def _times(
    times: Sequence[float] | FloatArray | None, study: Study, tables: Sequence[EventTable], points: int
) -> FloatArray:
    if times is None:
        last = max(float(table.clock.max(initial=0.0)) for table in tables)
        even = np.linspace(0.0, 24.0 * max(3.0, np.ceil(last / 24.0 + 1.0)), points)
        # With doses at few times a curve has its peaks and troughs too.
        some = np.unique(np.concatenate([study.corners(table).ravel() for table in tables]))
        some = some[(some > even[0]) & (some < even[-1])]
        return np.union1d(even, some) if len(some) <= points else even
    if len(times) > MOST_TIMES:
        raise InputError(f"times: {len(times)} are more than {MOST_TIMES}")
    grid = np.unique(np.asarray(times, dtype=np.float64))
    if len(grid) < 2 or not np.isfinite(grid).all() or grid[0] < 0:
        raise InputError("times: expected two or more times from 0 h")
    return grid


def _per_patient(rows: npt.NDArray[np.bool_], table: EventTable) -> npt.NDArray[np.int64]:
    return np.bincount(table.subject[rows], minlength=len(table.ids))


@torch.no_grad()
def _chunk(
    study: Study,
    events: EventTable,
    regimens: Mapping[str, EventTable],
    found: Posterior,
    grid: FloatArray,
    thresholds: Sequence[float],
) -> dict[str, pd.DataFrame]:
    """The tables of some patients."""
    model, values = study.fits.model, study.fits.estimates
    population = study.population(events)
    tables = {
        "parameters": _parameters(study, population, events.ids, found),
        "posteriors": _posteriors(study, events.ids, found),
        "observations": pd.DataFrame(
            {
                "patient": np.asarray(events.ids)[events.subject[~events.is_dose]],
                "time": events.clock[~events.is_dose],
                "level": events.dv[~events.is_dose] * study.scale,
                "censored": events.censored[~events.is_dose],
            }
        ),
        "warnings": surprises(model, values, population, found, events.ids, unit_in_file(study.dataset)),
    }
    several: dict[str, list[pd.DataFrame]] = {"curve": [], "thresholds": [], "above": []}
    noise = residual_noise(study.fits.streams, len(found.draws[0]), torch.float32)
    for name, table in regimens.items():
        at, place = observed_at(table, grid, study.corners(table))
        there = _per_patient(table.is_dose, table) > 0
        for kind, frame in _of_regimen(study, name, at, place, found, noise, grid, thresholds).items():
            several[kind].append(frame[np.tile(there, len(frame) // len(there))] if len(frame) else frame)
    return tables | {kind: pd.concat(frames, ignore_index=True) for kind, frames in several.items()}


def _of_regimen(
    study: Study,
    name: str,
    at: EventTable,
    place: npt.NDArray[np.int64],
    found: Posterior,
    noise: Tensor,
    grid: FloatArray,
    thresholds: Sequence[float],
) -> dict[str, pd.DataFrame]:
    """The curve, the hours above thresholds and the probabilities of it, patients innermost."""
    n = len(at.ids)
    level, typical = study.levels(at, found.draws), study.levels(at, None)
    clock = torch.from_numpy(at.clock[~at.is_dose].reshape(n, -1).T.copy()).float()  # (T', N)
    index = torch.from_numpy(place)[:, None, :, None]

    def on_grid(values: Tensor) -> Tensor:
        return values.gather(0, index.expand(-1, values.shape[1], -1, values.shape[3]))

    seen = on_grid(level)  # (T, S, N, B)
    measured = study.fits.model.error.draw(study.single, seen, noise, study.scale).clamp(min=0)
    keys = {
        "patient": np.tile(np.asarray(at.ids), len(grid)),
        "regimen": name,
        "time": np.repeat(grid, n),
    }
    curve = pd.DataFrame(
        {
            **keys,
            "typical": middle(on_grid(typical)[:, 0]).ravel(),
            **_named(pooled_quantiles(seen)),
            **_named(pooled_quantiles(measured), "measured_"),
        }
    )
    hours, above = [], []
    for threshold in thresholds:
        of_typical = middle(time_above(typical, clock, threshold)[0])
        of_draws = time_above(level, clock, threshold)[None]  # (1, S, N, B)
        entry = {"patient": at.ids, "regimen": name, "threshold": float(threshold), "typical": of_typical}
        hours.append(pd.DataFrame({**entry, **_named(pooled_quantiles(of_draws))}))
        probability = (seen > threshold).float().mean((1, 3))
        above.append(
            pd.DataFrame({**keys, "threshold": float(threshold), "probability": probability.numpy().ravel()})
        )
    nothing = pd.DataFrame()
    return {
        "curve": curve,
        "thresholds": pd.concat(hours, ignore_index=True) if hours else nothing,
        "above": pd.concat(above, ignore_index=True) if above else nothing,
    }


def time_above(level: Tensor, clock: Tensor, threshold: float) -> Tensor:
    """Hours above a threshold between the first and the last time. Between two of them the level is taken as
    linear where it rises, and its logarithm where it falls.

    :param level: (T, S, N, B). :param clock: (T, N), h. :returns: (S, N, B).
    """
    one, other = level[:-1], level[1:]
    falls = other < one
    tiny = torch.finfo(level.dtype).tiny
    high = torch.where(falls, torch.log(one.clamp(min=tiny)), other)
    low = torch.where(falls, torch.log(other.clamp(min=tiny)), one)
    wanted = torch.where(falls, float(np.log(threshold)), threshold)
    # Where two are equal, the quotient is far below 0 or above 1.
    share = ((high - wanted) / (high - low).clamp(min=tiny)).clamp(0, 1)
    return (share * torch.diff(clock, dim=0)[:, None, :, None]).sum(0)


def pooled_quantiles(values: Tensor, keep: Tensor | None = None) -> Tensor:
    """Quantiles ``PROBABILITIES`` over draws and fits, (X, S, N, B) -> (5, X, N).

    :param keep: (N, B), whether a fit counts for a patient; all do by default.
    """
    if keep is not None:
        values = torch.where(keep, values, torch.inf)
    pooled = values.permute(0, 2, 1, 3).flatten(2).sort(-1)[0]  # (X, N, S B)
    size = pooled.shape[-1]
    count = torch.full((1, pooled.shape[1]), size) if keep is None else keep.sum(-1)[None] * values.shape[1]
    found = []
    for probability in PROBABILITIES:
        position = (probability * count.double() - 0.5).clamp(min=0)
        low = position.floor()
        index = torch.stack([low, torch.minimum(low + 1, count - 1)]).long().expand(2, *pooled.shape[:2])
        below, beyond = pooled.gather(-1, index.permute(1, 2, 0)).unbind(-1)
        found.append(below + (position - low).to(pooled.dtype) * (beyond - below))
    return torch.stack(found)


def middle(values: Tensor) -> FloatArray:
    """The median over fits: (..., B) -> (...)."""
    return np.asarray(values.quantile(0.5, dim=-1).numpy())


def _doses(regimen: str, table: EventTable) -> pd.DataFrame:
    rows = table.given
    return pd.DataFrame(
        {
            "patient": np.asarray(table.ids)[table.subject[rows]],
            "regimen": regimen,
            "time": table.clock[rows],
            "amount": table.amount[rows],
            "duration": table.duration[rows],
        }
    )


def _named(bounds: Tensor, prefix: str = "") -> dict[str, np.ndarray]:
    """Columns of quantiles (5, X, N)."""
    return {prefix + name: values.numpy().ravel() for name, values in zip(BOUNDS, bounds, strict=True)}


def individual_parameters(
    study: Study, population: Population, eta: Sequence[Tensor] | None
) -> dict[str, Tensor]:
    """Parameters, at the patient's last covariates where they change, and the half-life where there is one:
    name -> (S, N, B)."""
    zeta = study.fits.model.typical(study.fits.estimates, population)
    zeta = {name: value[-1] if value.ndim > 3 else value for name, value in zeta.items()}
    z = zeta if eta is None else study.fits.model.individual(zeta, eta)
    last = study.fits.model.pk.half_life(z)
    shape = (1 if eta is None else len(eta[0]), *population.present.shape[:1], len(study.fits.records))
    every = z if last is None else {**z, HALF_LIFE: last}
    return {name: value.expand(shape) for name, value in every.items()}


def _parameters(study: Study, population: Population, ids: Sequence[str], found: Posterior) -> pd.DataFrame:
    individual = individual_parameters(study, population, found.draws)
    typical = individual_parameters(study, population, None)
    units = study.fits.model.pk.units | {HALF_LIFE: "h"}
    frames = [
        pd.DataFrame(
            {
                "patient": ids,
                "parameter": name,
                "unit": units.get(name, ""),
                "typical": middle(typical[name][0]),
                **_named(pooled_quantiles(values[None])),
            }
        )
        for name, values in individual.items()
    ]
    return pd.concat(frames).sort_index(kind="stable")


def _posteriors(study: Study, ids: Sequence[str], found: Posterior) -> pd.DataFrame:
    fits = len(study.fits.records)
    where = pd.DataFrame([record.address.where for record in study.fits.records])
    columns: dict[str, Any] = {"patient": np.repeat(np.asarray(ids), fits)}
    columns |= {str(name): np.tile(where[name].to_numpy(), len(ids)) for name in where}
    names = study.fits.model.random_effects.names
    columns |= {f"eta_{name}": m.numpy().ravel() for name, m in zip(names, found.mode, strict=True)}
    for i, row in enumerate(found.covariance.unbind(0)):
        columns |= {f"cov_{i + 1}{j + 1}": row[j].numpy().ravel() for j in range(i + 1)}
    columns |= {"converged": found.converged.numpy().ravel(), "effective": found.effective.numpy().ravel()}
    return pd.DataFrame(columns)
