"""What a finished fit says of its own subjects: predictions, residuals, a visual predictive check, random
effects and individual curves. Numbers in data frames, for figures or for a look."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcm_cli.analysis import bins
from medcm_cli.analysis.npde import needed, npde
from medcm_cli.data import EventTable, Population
from medcm_cli.data.edit import dose_corners, of_endpoint, on_grid
from medcm_cli.data.sheet import FloatArray, IntArray
from medcm_cli.model import Model, Values
from medcm_cli.numerics.streams import Stream, per_fit
from medcm_cli.numerics.triangular import covariance, dense, multiply_lower, multiply_lower_transposed
from medcm_cli.objectives.several_modes import best_modes
from medcm_cli.runs import Units
from medcm_cli.study.restore import Restored

SIMULATIONS = 1000  # data sets of a predictive check and of npde
_AT_ONCE = 500  # of these that are predicted together, which bounds memory
DRAWS = 500  # of each subject's random effects, for its credible bands
MOST_SUBJECTS = 500  # of a fit that are looked at
PERCENTILES = (5, 50, 95)
CURVE_POINTS = 60
_PER_BIN, _MOST_BINS = 25, 8  # observations in a bin of a predictive check, at least; bins
_TOLERANCE, _ITERATIONS = 1e-5, 200


@dataclass(frozen=True)
class Diagnosis:
    """Of one fit. Levels in the reported unit, times in h. Of several endpoints, ``endpoints`` with the unit
    of each, the frames have a column ``endpoint``; ``endpoint`` and ``unit`` are those of what it is about.

    ``observations``: ``subject``, ``time``, ``dv``, ``censored`` (``above`` its limit), ``typical``,
    ``individual`` (NaN without random effects), ``residual``: CWRES, NaN where censored, or dv - typical
    without random effects; and ``npde``, NaN without random effects and of a subject with too many
    observations for it. ``curves``: ``subject``, ``segment``, ``time``, ``typical`` and, with random effects,
    ``median`` and the ends ``low_50``, ``high_50``, ``low_90``, ``high_90`` of credible bands. Both have each
    subject once, however often it was drawn; ``etas`` (``subject`` and a column per random effect) as often
    as it was drawn. ``omega``: name -> sd. ``check``: per bin of time (``from``, ``to``; ``time``, its
    median) and ``percentile``: ``observed``, and ``low``, ``median``, ``high`` of the ``simulations``.
    ``kappas`` (``subject``, ``occasion`` and a column per parameter that varies between occasions), of those
    that a subject has, and ``pi``: name -> sd; empty without occasions.
    """

    mixed: bool
    observations: pd.DataFrame
    curves: pd.DataFrame
    etas: pd.DataFrame
    omega: Mapping[str, float]
    check: pd.DataFrame
    simulations: int = SIMULATIONS
    kappas: pd.DataFrame = field(default_factory=pd.DataFrame)
    pi: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""
    endpoint: str = ""
    endpoints: tuple[tuple[str, str], ...] = ()

    @property
    def quantity(self) -> str:
        """What is observed, in a word."""
        return self.endpoint or "level"

    @property
    def of_endpoints(self) -> "list[Diagnosis]":
        """That of each endpoint; itself where there is one."""

        def part(frame: pd.DataFrame, name: str) -> pd.DataFrame:
            if "endpoint" not in frame:
                return frame
            return frame[frame["endpoint"] == name].drop(columns="endpoint").reset_index(drop=True)

        return [
            replace(
                self,
                observations=part(self.observations, name),
                curves=part(self.curves, name),
                check=part(self.check, name),
                unit=unit,
                endpoint=name,
                endpoints=(),
            )
            for name, unit in self.endpoints
        ] or [self]


@torch.no_grad()
def diagnose(restored: Restored) -> Diagnosis:
    """Of a single fit, B = 1; its first ``MOST_SUBJECTS`` subjects."""
    problem, whole = restored.problem, restored.population
    model, units = problem.model, Units.of_config(problem.config)
    rows = whole.subject[whole.present[:, 0] > 0, 0].numpy()
    subjects, first = np.unique(rows, return_index=True)
    subjects, places = subjects[:MOST_SUBJECTS], torch.from_numpy(first[:MOST_SUBJECTS])
    population = whole.take(places[:, None])
    posterior = restored.objective.random_effects(model, whole, restored.state)
    eta = None if posterior is None else [part[places][None] for part in posterior[0]]
    observations = _observations(restored, population, subjects, eta)
    named = tuple((name, units.endpoint(place).reported) for place, (name, _) in enumerate(units.endpoints))
    about: dict[str, Any] = {"unit": units.reported, "endpoints": named}
    if posterior is None:
        curves = _curves_of_each(restored, subjects, None, units)
        return Diagnosis(False, observations, curves, pd.DataFrame(), {}, pd.DataFrame(), **about)
    mean, spread = posterior
    names, ids = model.random_effects.names, np.array(problem.events.ids)
    of_subjects = {n: m[: len(rows), 0].double().numpy() for n, m in zip(names, mean, strict=False)}
    omega = dense(covariance(model.omega_cholesky(restored.estimates)))[..., 0].diagonal().sqrt()
    simulated = simulations(model, restored.estimates, population, restored.streams[0])
    seen = _seen(population)
    if needed(population) <= SIMULATIONS:
        errors = npde(simulated, population, restored.streams[0])
        observations["npde"] = errors[:, 0, :, 0].T[seen].numpy()
    flat = simulated[..., 0].permute(1, 2, 0)[:, seen].double().numpy()
    draws = _draws(mean[:, places, 0], spread[:, :, places, 0], restored.streams[0])
    return Diagnosis(
        True,
        observations,
        _curves_of_each(restored, subjects, draws, units),
        pd.DataFrame({"subject": ids[rows]} | of_subjects),
        dict(zip(names, omega.tolist(), strict=True)),
        _check(observations, np.asarray(flat), units),
        kappas=_kappas(restored, mean, ids[rows]),
        pi=_pi(restored),
        **about,
    )


def _kappas(restored: Restored, mean: Tensor, ids: np.ndarray) -> pd.DataFrame:
    """``Diagnosis.kappas``, from the mean (R, N, 1) of random effects; ``ids`` of the first subjects."""
    model, population = restored.problem.model, restored.population
    if model.occasions is None:
        return pd.DataFrame()
    kappas = model.kappas(list(mean[:, None]))
    occasion, place = (population.there[:, 0, : len(ids), 0] > 0).nonzero().T
    return pd.DataFrame(
        {"subject": ids[place.numpy()], "occasion": occasion.numpy() + 1}
        | {name: of[occasion, 0, place, 0].double().numpy() for name, of in kappas.items()}
    ).sort_values(["subject", "occasion"], ignore_index=True)


def _pi(restored: Restored) -> dict[str, float]:
    occasions = restored.problem.model.occasions
    if occasions is None:
        return {}
    sd = dense(covariance(occasions.cholesky(restored.estimates)))[..., 0].diagonal().sqrt()
    return dict(zip(occasions.names, sd.tolist(), strict=True))


def _check(observations: pd.DataFrame, simulated: FloatArray, units: Units) -> pd.DataFrame:
    """``predictive_check`` of each endpoint. :param simulated: (S, M), in the model's unit."""
    parts = []
    for place, name in enumerate([name for name, _ in units.endpoints] or [""]):
        own = (observations["endpoint"] == name).to_numpy() if name else np.ones(len(observations), bool)
        if own.any():
            time, dv, typical = (observations.loc[own, of].to_numpy() for of in ("time", "dv", "typical"))
            found = predictive_check(time, dv, typical, simulated[:, own] * units.endpoint(place).scale)
            parts.append(found.assign(endpoint=name) if name else found)
    return pd.concat(parts, ignore_index=True)


def _seen(population: Population) -> Tensor:
    """Where there are observations, (N, T): in the order of subjects."""
    return (population.observed[:, 0, :, 0] > 0).T


def _flat(of: Tensor, seen: Tensor) -> FloatArray:
    """Values (T, 1, N, 1) of what is ``seen`` (N, T), in the order of subjects."""
    return np.asarray(of[:, 0, :, 0].T[seen].double().numpy(), dtype=np.float64)


def _observations(
    restored: Restored, population: Population, subjects: IntArray, eta: list[Tensor] | None
) -> pd.DataFrame:
    """``Diagnosis.observations`` of ``subjects`` (N,), with their random effects (1, N, 1) each, if any."""
    setup, values = restored.problem, restored.estimates
    model, units = setup.model, Units.of_config(setup.config)
    seen = _seen(population)
    scale: FloatArray | float = units.scale
    number = torch.zeros_like(population.dv) if population.endpoint is None else population.endpoint
    if units.endpoints:
        scales = [units.endpoint(place).scale for place in range(len(units.endpoints))]
        scale = np.asarray(scales)[_flat(number, seen).astype(np.int64)]

    def flat(of: Tensor) -> FloatArray:
        return _flat(of, seen)

    zeta = model.typical(values, population)
    nobody = torch.zeros_like(population.dv)
    censored, above = (nobody if of is None else of for of in (population.censored, population.above))
    found = pd.DataFrame(
        {
            "subject": np.array(setup.events.ids)[np.repeat(subjects, seen.sum(1).numpy())],
            "time": flat(population.time),
            "dv": flat(population.dv) * scale,
            "censored": flat(censored) > 0,
            "above": flat(above) > 0,
            "typical": flat(model.predict(zeta, population)) * scale,
        }
    )
    found["npde"] = np.nan
    if units.endpoints:
        names = np.array([name for name, _ in units.endpoints], dtype=object)
        found = found.assign(endpoint=names[flat(number).astype(np.int64)])
    if eta is None:
        return found.assign(individual=np.nan, residual=found["dv"] - found["typical"])
    individual = flat(model.predict(zeta, population, eta)) * scale
    residual = np.where(found["censored"], np.nan, flat(cwres(model, values, population)))
    return found.assign(individual=individual, residual=residual)


def _draws(mean: Tensor, spread: Tensor, stream: Stream) -> list[Tensor]:
    """Draws (S, N, 1) of each random effect from normals of ``mean`` (K, N) and covariance (K, K, N)."""
    # A root by eigenvalues, since rounding can make a covariance near zero indefinite.
    eigenvalue, vector = torch.linalg.eigh(spread.permute(2, 0, 1).double())
    factor = vector * eigenvalue.clamp(min=0).sqrt()[:, None]  # (N, K, K)
    shape = DRAWS, mean.shape[1], len(mean)
    normal = per_fit([stream], lambda g: g.standard_normal(shape), "curves", torch.float64)
    shift = torch.einsum("nkl,snl->ksn", factor, normal[..., 0])
    return [(m + s.to(m.dtype))[..., None] for m, s in zip(mean, shift, strict=True)]


def cwres(model: Model, values: Values, population: Population) -> Tensor:
    """Conditional weighted residuals (Hooker, Staatz and Karlsson 2007, Pharm Res 24:2187-2197): C^-1/2 (y -
    f(eta_hat) + G eta_hat), with C = G Omega G' + Sigma, all at the empirical Bayes estimate eta_hat.

    Of a right model they have mean 0 and variance 1, as far as linearising at eta_hat holds; the root is the
    symmetric one. They need no simulation, and mean the same for every objective.

    :returns: (T, 1, N, B), 0 where there is no observation; a censored one has no part in the others'.
    """
    start = [torch.zeros_like(population.present)[None]] * model.size(population)
    eta = best_modes(model, values, population, start, _TOLERANCE, _ITERATIONS).eta
    prediction, columns = model.linearise(model.typical(values, population), population, eta)
    seen = model.error.as_normal(model.of_subjects(values, eta), prediction, population)
    kept = (
        population.observed
        if population.censored is None
        else population.observed * (1 - population.censored)
    )
    columns = [column * kept for column in columns]
    deviation = seen.deviation * kept
    for column, effect in zip(columns, eta, strict=True):
        deviation = deviation + column * effect
    lower = model.prior_cholesky(values, population)
    loadings = torch.stack(multiply_lower_transposed(lower, columns))[:, :, 0].permute(2, 3, 1, 0).double()
    variance = (
        torch.where(kept > 0, seen.sd.expand_as(prediction).square(), 1.0)[:, 0].permute(1, 2, 0).double()
    )
    matrix = loadings @ loadings.mT + torch.diag_embed(variance)  # (N, B, T, T)
    eigenvalue, vector = torch.linalg.eigh(matrix)
    rotated = vector.mT @ deviation[:, 0].permute(1, 2, 0).double()[..., None]
    white = vector @ (rotated / eigenvalue.sqrt()[..., None])
    result: Tensor = white[..., 0].permute(2, 0, 1)[:, None].to(prediction.dtype)
    return result


def simulations(
    model: Model, values: Values, population: Population, stream: Stream, count: int = SIMULATIONS
) -> Tensor:
    """``count`` data sets S that the model draws for the same subjects and times: (T, S, N, 1)."""
    return simulated(model, values, population, stream, count)[1]


def simulated(
    model: Model, values: Values, population: Population, stream: Stream, count: int
) -> tuple[list[Tensor], Tensor]:
    """``simulations``, and the random effects behind them, (S, N, 1) each, first."""
    t, n, _ = population.shape
    k = model.size(population)
    dtype = population.dv.dtype
    normal = per_fit([stream], lambda g: g.standard_normal((k, count, n)), "check.eta", dtype)
    eta = multiply_lower(model.prior_cholesky(values, population), normal.unbind(0))
    zeta = model.typical(values, population)
    parts = zip(*(effect.split(_AT_ONCE) for effect in eta), strict=True)
    prediction = torch.cat([model.predict(zeta, population, part) for part in parts], 1)
    noise = per_fit([stream], lambda g: g.standard_normal((t, count, n)), "check.error", dtype)
    error = model.error.of_endpoint(population.endpoint)
    return eta, error.draw(model.of_subjects(values, eta), prediction, noise)


def predictive_check(
    time: FloatArray, dv: FloatArray, typical: FloatArray, simulated: FloatArray
) -> pd.DataFrame:
    """Prediction-corrected visual predictive check (Bergstrand, Hooker, Wallin and Karlsson 2011, AAPS J
    13:143-151): each level, observed or simulated, times the median typical prediction of its bin over its
    own.

    Planned times are a bin each; else bins hold equally many observations, about 25 or more, but are parted
    at the widest gaps nearby (``bins.numbers``). A censored observation counts at its limit.

    :param time: (M,) h, likewise ``dv`` and ``typical``. :param simulated: (S, M).
    :returns: see ``Diagnosis.check``.
    """
    number = bins.numbers(time, _PER_BIN, _MOST_BINS)
    frames = []
    grouped = pd.DataFrame({"bin": number, "time": time, "typical": typical}).groupby("bin")
    middle = grouped["typical"].transform("median").to_numpy()
    factor = np.divide(middle, typical, out=np.ones_like(middle), where=typical > 0)
    corrected = np.vstack([dv[None], simulated]) * factor  # observed first
    for _, part in grouped:
        percentiles = np.percentile(corrected[:, part.index.to_numpy()], PERCENTILES, axis=1)  # (3, 1 + S)
        low, median, high = np.percentile(percentiles[:, 1:], (5, 50, 95), axis=1)
        frames.append(
            pd.DataFrame(
                {
                    "from": part["time"].min(),
                    "to": part["time"].max(),
                    "time": part["time"].median(),
                    "observations": len(part),
                    "percentile": PERCENTILES,
                    "observed": percentiles[:, 0],
                    "low": low,
                    "median": median,
                    "high": high,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _curves(
    restored: Restored, subjects: IntArray, draws: list[Tensor] | None, scale: float, endpoint: int = 0
) -> pd.DataFrame:
    """Levels, or values of another ``endpoint``, on a fine grid of each subject, from its first record to its
    last observation, and where doses begin and end."""
    problem = restored.problem
    spans = problem.model.spans(restored.estimates, problem.everyone)
    turns = None if spans is None else dose_corners(problem.events, spans.numpy())
    table, grid = on_grid(problem.events, CURVE_POINTS, turns)
    table = of_endpoint(table, problem.events, endpoint)
    grid = grid[np.isin(grid["subject"], subjects)]
    ids = np.array(problem.events.ids)
    columns = _curve(restored, table, subjects, draws, scale)
    return grid.assign(subject=ids[grid["subject"].to_numpy()], **columns)


def _curves_of_each(
    restored: Restored, subjects: IntArray, draws: list[Tensor] | None, units: Units
) -> pd.DataFrame:
    """``Diagnosis.curves``."""
    if not units.endpoints:
        return _curves(restored, subjects, draws, units.scale)
    parts = [
        _curves(restored, subjects, draws, units.endpoint(place).scale, place).assign(endpoint=name)
        for place, (name, _) in enumerate(units.endpoints)
    ]
    return pd.concat(parts, ignore_index=True)


def _curve(
    restored: Restored, table: EventTable, subjects: IntArray, draws: list[Tensor] | None, scale: float
) -> dict[str, FloatArray]:
    """Columns of ``Diagnosis.curves`` at the observations of a table."""
    problem = restored.problem
    population = Population.from_events(table, problem.dtype, not problem.model.pk.needs_double).select(
        [subjects]
    )
    zeta = problem.model.typical(restored.estimates, population)
    columns = {"typical": problem.model.predict(zeta, population)[:, 0, :, 0]}
    if draws is not None:
        levels = problem.model.predict(zeta, population, draws)[..., 0]  # (T, S, N)
        at = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=levels.dtype)
        names = ("low_90", "low_50", "median", "high_50", "high_90")
        ordered = torch.sort(levels, 1)[0]
        place = (at * (levels.shape[1] - 1)).round().long()
        columns |= dict(zip(names, ordered[:, place].unbind(1), strict=True))
    exists = (population.observed[:, 0, :, 0] > 0).T
    return {name: of.T[exists].double().numpy() * scale for name, of in columns.items()}
