"""Curves of patients under a regimen, and the time above thresholds, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcm_cli.data import EventTable
from medcm_cli.data.edit import FALL, close_after, observed_at, of_endpoint
from medcm_cli.data.segments import in_force
from medcm_cli.data.sheet import FloatArray, IntArray
from medcm_cli.model import Values
from medcm_cli.patients.measures import middle, pooled_quantiles, quantile_columns, time_above
from medcm_cli.patients.parameters import parameter_table, posterior_table
from medcm_cli.patients.plausibility import surprises
from medcm_cli.patients.study import Study
from medcm_cli.posteriors.individual import Posterior, residual_noise


@torch.no_grad()
def tables_of(
    study: Study,
    events: EventTable,
    regimens: Mapping[str, EventTable],
    posterior: Posterior,
    grid: FloatArray,
    thresholds: Sequence[float],
    shaped: bool,
) -> dict[str, pd.DataFrame]:
    """The tables of some patients: name of the table, as of ``Prediction``, -> its rows.

    :param regimens: name -> the patients with its doses. :param grid: (T',) in the file's time.
    :param thresholds: in the reported unit. :param shaped: ``Prediction.shape`` too.
    """
    population = study.population(events)
    tables = {
        "parameters": parameter_table(study, population, events.ids, posterior),
        "posteriors": posterior_table(study, events.ids, posterior),
        "observations": _observations(study, events),
        "warnings": surprises(study.fits, population, posterior, events.ids, study.units),
    }
    several: dict[str, list[pd.DataFrame]] = {"curve": [], "shape": [], "thresholds": [], "above": []}
    noise = residual_noise(study.fits.streams, len(posterior.draws[0]), torch.float32)
    for name, table in regimens.items():
        after = close_after(table, grid) if shaped else FALL
        observed, place = observed_at(table, grid, study.corners(table), after)
        there = np.isin(np.arange(len(table.ids)), table.subject[table.is_dose])
        for number in range(max(1, len(study.units.endpoints))):
            asked = () if number else thresholds
            own = of_endpoint(observed, events, number)
            frames = _of_regimen(study, name, own, place, posterior, noise, asked, shaped)
            for kind, frame in frames.items():
                whole = np.tile(there, len(frame) // len(there))
                several[kind].append(frame[whole] if len(frame) else frame)
    return tables | {kind: pd.concat(parts, ignore_index=True) for kind, parts in several.items()}


def _of_regimen(
    study: Study,
    name: str,
    observed: EventTable,
    place: IntArray,
    posterior: Posterior,
    noise: Tensor,
    thresholds: Sequence[float],
    shaped: bool,
) -> dict[str, pd.DataFrame]:
    """The curve, the time above thresholds and the probabilities of it, patients innermost.

    :param observed: all of one endpoint.
    """
    n, number = len(observed.ids), int(observed.endpoint.max())
    factor = study.units.endpoint(number).scale / study.scale
    level, typical = (study.levels(observed, eta) * factor for eta in (posterior.draws, None))
    time = torch.from_numpy(observed.time[~observed.is_dose].reshape(n, -1).T.copy())  # (T', N)
    grid = time[:, 0].numpy()[place[:, 0]]  # the same of all patients
    index = torch.from_numpy(place)[:, None, :, None]

    def on_grid(values: Tensor) -> Tensor:
        return values.gather(0, index.expand(-1, values.shape[1], -1, values.shape[3]))

    seen = on_grid(level)  # (T, S, N, B)
    values = study.fits.model.of_subjects(study.single, [eta.to(level) for eta in posterior.draws])
    keys = {
        "patient": np.tile(np.asarray(observed.ids), len(grid)),
        "regimen": name,
        "time": np.repeat(grid, n),
    }
    shape = pd.DataFrame()
    if shaped:
        every = {"patient": np.tile(np.asarray(observed.ids), len(time)), "regimen": name}
        of_time = {"time": time.numpy().ravel()}
        shape = pd.DataFrame(every | of_time | _bounds(study, values, level, typical, noise, number))
    spans, above = list[pd.DataFrame](), list[pd.DataFrame]()
    for threshold in map(float, thresholds):
        of_patient = {"patient": observed.ids, "regimen": name}
        spans.append(pd.DataFrame(of_patient | _time_above(level, typical, time, threshold)))
        chance = (seen > threshold).float().mean((1, 3)).numpy().ravel()
        above.append(pd.DataFrame({**keys, "threshold": threshold, "probability": chance}))
    curve = pd.DataFrame(keys | _bounds(study, values, seen, on_grid(typical), noise, number))
    if study.units.endpoints:
        named = study.units.endpoints[number][0]
        curve, shape = curve.assign(endpoint=named), shape.assign(endpoint=named) if shaped else shape
    return {
        "curve": curve,
        "shape": shape,
        "thresholds": pd.concat(spans, ignore_index=True) if spans else pd.DataFrame(),
        "above": pd.concat(above, ignore_index=True) if above else pd.DataFrame(),
    }


def _bounds(
    study: Study, values: Values, level: Tensor, typical: Tensor, noise: Tensor, number: int
) -> dict[str, Any]:
    """Columns of ``Prediction.curve`` of levels (T, S, N, B), patients innermost.

    :param values: the fits', with the residual sd of patients. :param number: of the endpoint, from 0.
    """
    error = study.fits.model.error.of_endpoint(number)
    measured = error.draw(values, level, noise, study.units.endpoint(number).scale)
    measured = measured if number else measured.clamp(min=0)
    return {
        "typical": middle(typical[:, 0]).ravel(),
        **quantile_columns(pooled_quantiles(level)),
        **quantile_columns(pooled_quantiles(measured), "measured_"),
    }


def _time_above(level: Tensor, typical: Tensor, time: Tensor, threshold: float) -> dict[str, Any]:
    """Columns of ``Prediction.thresholds``, (N,) each."""
    of_draws = time_above(level, time, threshold)[None]  # (1, S, N, B)
    return {
        "threshold": threshold,
        "typical": middle(time_above(typical, time, threshold)[0]),
        **quantile_columns(pooled_quantiles(of_draws)),
    }


def _observations(study: Study, events: EventTable) -> pd.DataFrame:
    rows, units = ~events.is_dose, study.units
    scales = np.array([units.endpoint(place).scale for place in range(max(1, len(units.endpoints)))])
    number = events.endpoint[rows]
    found = pd.DataFrame(
        {
            "patient": np.asarray(events.ids)[events.subject[rows]],
            "time": events.time[rows],
            "level": events.dv[rows] * scales[number],
            "censored": events.censored[rows],
            "above": events.above[rows],
            "on_curve": in_force(events)[rows],
        }
    )
    names = np.array([name for name, _ in units.endpoints], dtype=object)
    return found.assign(endpoint=names[number]) if len(names) else found


def dose_table(regimen: str, table: EventTable) -> pd.DataFrame:
    """A row for each dose of a regimen: see ``Prediction.doses``."""
    rows = table.given
    return pd.DataFrame(
        {
            "patient": np.asarray(table.ids)[table.subject[rows]],
            "regimen": regimen,
            "time": table.time[rows],
            "amount": table.amount[rows],
            "duration": table.duration[rows],
            "on_curve": in_force(table)[rows],
        }
    )
