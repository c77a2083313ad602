"""How far the posteriors of fits are from draws of NUTS: Wasserstein distances, of each subject's random
effects and of the population parameters (METHODS, "Protocol: accuracy of the posteriors")."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.model.priors import PopulationPrior
from medcm_cli.numerics.metrics import sliced_wasserstein, squared_wasserstein
from medcm_cli.objectives import Vi
from medcm_cli.report.section import Section
from medcm_cli.runs.summary import GROUP
from medcm_cli.study.restore import Restored, finished, restore


@dataclass(frozen=True)
class Draws:
    """Draws of NUTS: ``eta`` (S, N, K) of ``subjects`` (N), the numbers of those sampled, from 1;
    ``population`` its population parameters' draws by name, (S,) each, none where they were known."""

    eta: Tensor
    subjects: np.ndarray
    population: dict[str, np.ndarray]
    fingerprint: str


def read_draws(folder: Path) -> Draws:
    """What `medcm posterior` wrote. :raises InputError: not a folder of draws, or a damaged one."""
    try:
        record = json.loads((folder / "posterior.json").read_text(encoding="utf-8"))
        table = pd.read_parquet(folder / "draws.parquet")
        joint = folder / "population.parquet"
        population = pd.read_parquet(joint) if joint.is_file() else pd.DataFrame()
        fingerprint = str(record["data"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: holds no draws of `medcm posterior` ({error})") from error
    names = sorted(name for name in table.columns if name.startswith("eta_"))
    place = ["chain", "draw"]
    size = len(table) // len(table[place].drop_duplicates())
    ordered = table.sort_values([*place, "position"])
    eta = torch.tensor(ordered[names].to_numpy(np.float64).reshape(-1, size, len(names)))
    kept = [name for name in population.columns if name.startswith(("sigma_", "omega_", "rho_"))]
    return Draws(
        eta,
        ordered["subject"].to_numpy()[:size],
        {name: population[name].to_numpy(np.float64) for name in kept},
        fingerprint,
    )


def distances(posterior: Path, roots: Sequence[Path]) -> pd.DataFrame:
    """A row for each fit with random effects below ``roots``, with what identifies it and

    ``eta``: squared 2-Wasserstein distance between the Gaussian fitted to NUTS's draws and q, or a mode's
    Gaussian, at the fit's estimates, averaged over subjects; ``eta_last``: the same at its last epoch, as the
    published table has it; ``eta_sliced``: by draws of q, whatever its shape (``sliced_wasserstein``), and
    ``floor`` that of as many draws of NUTS and as many others; ``sigma_additive`` and so on:
    1-Wasserstein distances of q's population parameters, where the fit has a q of them.

    :raises InputError: no draws, no fit, or fits of other subjects than NUTS's.
    """
    draws = read_draws(posterior)
    rows: list[dict[str, Any]] = []
    for batch in restore([fit for fit in finished(roots) if _is_mixed(*fit)]):
        rows += _of_batch(draws, batch, posterior)
    if not rows:
        raise InputError(f"{', '.join(map(str, roots))}: no complete fit with random effects here")
    return pd.DataFrame(rows)


def _is_mixed(folder: Path, record: runs.Record) -> bool:
    return "random_effects" in record.tables and (folder / "random_effects.parquet").is_file()


_DRAWS = 1000  # of each, for sliced distances
_POINTS = 2000  # of q's population parameters


@torch.no_grad()
def _of_batch(draws: Draws, batch: Restored, posterior: Path) -> list[dict[str, Any]]:
    objective, model = batch.objective, batch.problem.model
    subjects = batch.population.subject + 1  # (N, B)
    same = len(subjects) == len(draws.subjects) and bool((subjects.T.numpy() == draws.subjects).all())
    if not same or batch.problem.data["fingerprint"] != draws.fingerprint:
        raise InputError(f"{batch.folders[0]}: was trained on other subjects than {posterior} has draws of")
    if draws.eta.shape[-1] != len(model.random_effects.names):
        raise InputError(f"{batch.folders[0]}: has other random effects than {posterior} has draws of")
    mean, cov = _moments(draws.eta)
    state = objective.refresh(model, batch.population, batch.state)
    found = objective.random_effects(model, batch.population, state)
    assert found is not None
    at_estimates = _to_each(*found, mean, cov)
    at_last = torch.stack([_last(folder, mean, cov) for folder in batch.folders], -1)
    columns = {"eta": at_estimates.mean(0), "eta_last": at_last.mean(0)}
    if isinstance(objective, Vi):
        count = min(_DRAWS, len(draws.eta) // 2)
        every = len(draws.eta) // (2 * count)
        nuts, others = (
            draws.eta[: 2 * count * every : 2 * every],
            draws.eta[every : 2 * count * every : 2 * every],
        )
        own = objective.draw(state, batch.streams, count).permute(1, 2, 3, 0).double()  # (S, N, B, K)
        columns["eta_sliced"] = sliced_wasserstein(own, nuts[:, :, None]).mean(0)
        columns["floor"] = sliced_wasserstein(others, nuts).mean().expand(len(batch.records))
    columns |= _population(draws, batch)
    return [
        {name: getattr(record.address, name) for name in (*GROUP, "fold", "replicate")}
        | {name: float(values[fit]) for name, values in columns.items()}
        for fit, record in enumerate(batch.records)
    ]


def _moments(eta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, K) and covariance (N, K, K) of draws."""
    mean = eta.mean(0)
    deviation = eta - mean
    return mean, torch.einsum("sni,snj->nij", deviation, deviation) / (len(eta) - 1)


def _to_each(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> Tensor:
    """Squared distances (N, B) of Gaussians (K, N, B), (K, K, N, B) to one of each subject."""
    own = mean.permute(1, 2, 0).double(), cov.permute(2, 3, 0, 1).double()
    return squared_wasserstein(*own, other_mean[:, None], other_cov[:, None])


def _last(folder: Path, mean: Tensor, cov: Tensor) -> Tensor:
    """Squared distances (N,) of what a fit's folder holds of its last epoch."""
    table = pd.read_parquet(folder / "random_effects.parquet")
    k = mean.shape[-1]
    names = [f"cov_{max(i, j) + 1}{min(i, j) + 1}" for i in range(k) for j in range(k)]
    own_mean = torch.tensor(table[[f"eta_{i + 1}" for i in range(k)]].to_numpy(np.float64))
    own_cov = torch.tensor(table[names].to_numpy(np.float64)).reshape(-1, k, k)
    return squared_wasserstein(own_mean, own_cov, mean, cov)


def _population(draws: Draws, batch: Restored) -> dict[str, Tensor]:
    """name -> 1-Wasserstein distance (B,) of each population parameter that both have a posterior of."""
    objective = batch.objective
    if not draws.population or not isinstance(objective, Vi) or objective.population == "point":
        return {}
    prior = PopulationPrior(batch.problem.model, objective.lkj)
    mean, cov = objective.population_moments(batch.state.trained)
    sobol = torch.quasirandom.SobolEngine(len(mean)).draw(_POINTS, dtype=torch.float64) + 0.5 / _POINTS
    factor = torch.linalg.cholesky(cov.permute(2, 0, 1).double())
    points = mean.T[:, None] + torch.special.ndtri(sobol) @ factor.mT  # (B, S, P)
    reported = prior.report(points.permute(2, 1, 0))
    return {
        name: torch.tensor([wasserstein_distance(own, draws.population[name]) for own in values.T.numpy()])
        for name, values in reported.items()
        if name in draws.population
    }


HEADERS = {
    "eta": "eta, squared 2-W",
    "eta_last": "eta at the last epoch",
    "eta_sliced": "eta, sliced",
}


def section(found: pd.DataFrame) -> Section:
    """Mean (sd over fits) of each distance, times 1000, a row for each method."""
    places = [*GROUP, "fold", "replicate", "floor"]
    measures = [name for name in found.columns if name not in places]
    told_apart = [name for name in GROUP if len(found[name].unique()) > 1] or ["objective"]
    cells = []
    for key, fits in found.groupby(GROUP, sort=True):
        of_group = dict(zip(GROUP, key, strict=True))
        spread = fits[measures].std(ddof=1)
        row = [str(of_group[name]) for name in told_apart] + [str(len(fits))]
        for name, mean in fits[measures].mean().items():
            row.append("" if np.isnan(mean) else f"{1000 * mean:.3g} ({1000 * spread[str(name)]:.2g})")
        cells.append(row)
    names = [HEADERS.get(name, f"{name}, 1-W") for name in measures]
    return Section("Distance to NUTS, times 1000", [*told_apart, "fits", *names], cells)
