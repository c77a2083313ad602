"""How far the posteriors of fits are from draws of NUTS: Wasserstein distances, of each subject's random
effects and of the population parameters (docs/methods.md, "Accuracy of posteriors")."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.numerics.metrics import sliced_wasserstein, squared_wasserstein
from medcm_cli.objectives import State
from medcm_cli.runs.checkpoints import is_averaged
from medcm_cli.runs.draws import Draws, read
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.restore import Restored, at_last_checkpoint, restore


def distances(posterior: Path, roots: Sequence[Path], trust: bool = False) -> pd.DataFrame:
    """A row for each fit with random effects below ``roots``, with what identifies it and

    ``eta``: squared 2-Wasserstein distance between the Gaussian fitted to NUTS's draws and q, or a mode's
    Gaussian, at the fit's estimates, averaged over subjects; ``eta_last``: the same at its last epoch, as the
    published table has it; ``eta_sliced``: by draws of q, whatever its shape (``sliced_wasserstein``), and
    ``floor`` that of as many draws of NUTS and as many others; ``sigma_additive`` and so on:
    1-Wasserstein distances of q's population parameters, where the fit has a q of them. ``attrs`` has the
    parameters of ``random_effects``, where all fits have the same, and the ``units`` of distances that have
    one.

    :param trust: as ``study.restore.restore`` has it.
    :raises InputError: no draws, no fit, or fits of other subjects than NUTS's.
    """
    draws = read(posterior)
    rows: list[dict[str, Any]] = []
    effects, levels = set(), set()
    for batch in restore([fit for fit in finished(roots) if _is_mixed(*fit)], trust):
        rows += _of_batch(draws, batch, posterior)
        effects.add(batch.problem.model.random_effects.names)
        levels.add(runs.Units.of(batch.problem.config["dataset"]).level)
    if not rows:
        raise InputError(f"{', '.join(map(str, roots))}: no complete fit with random effects here")
    found = pd.DataFrame(rows)
    found.attrs["random_effects"] = list(effects.pop()) if len(effects) == 1 else []
    found.attrs["units"] = {"sigma_additive": ", ".join(sorted(levels))}
    return found


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
    drawn = torch.tensor(draws.eta)
    mean, cov = _moments(drawn)
    state = objective.refresh(model, batch.population, batch.state)
    found = _between_subjects(batch, state)
    at_estimates = _to_each(*found, mean, cov)
    at_last = _at_last(batch, mean, cov)
    columns = {"eta": at_estimates.mean(0), "eta_last": at_last.mean(0)}
    count = min(_DRAWS, len(draws.eta) // 2)
    of_q = objective.draw(model, state, batch.streams, count)
    if of_q is not None:
        every = len(draws.eta) // (2 * count)
        nuts = drawn[: 2 * count * every : 2 * every]
        others = drawn[every : 2 * count * every : 2 * every]
        own = of_q[: draws.eta.shape[-1]].permute(1, 2, 3, 0).double()  # (S, N, B, K)
        columns["eta_sliced"] = sliced_wasserstein(own, nuts[:, :, None]).mean(0)
        columns["floor"] = sliced_wasserstein(others, nuts).mean().expand(len(batch.records))
    columns |= _population(draws, batch)
    return [
        dict(zip(runs.ALIKE, record.address.alike, strict=True))
        | {"fold": record.address.fold, "replicate": record.address.replicate}
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


def _between_subjects(batch: Restored, state: State) -> tuple[Tensor, Tensor]:
    """Mean (K, N, B) and covariance (K, K, N, B) of eta, without the kappas of occasions."""
    found = batch.objective.random_effects(batch.problem.model, batch.population, state)
    assert found is not None
    k = len(batch.problem.model.random_effects.names)
    return found[0][:k], found[1][:k, :k]


def _at_last(batch: Restored, mean: Tensor, cov: Tensor) -> Tensor:
    """Squared distances (N, B) at the last epoch: of tables of before, which are of it, from the table; of
    others at the last checkpoint, as the posterior then was."""
    state = at_last_checkpoint(batch)
    found = _between_subjects(batch, state)
    computed = _to_each(*found, mean, cov)
    of_tables = [
        _of_table(runs.read_table(folder, record, "random_effects"), mean, cov)
        for folder, record in zip(batch.folders, batch.records, strict=True)
    ]
    fits = [computed[:, fit] if of is None else of for fit, of in enumerate(of_tables)]
    return torch.stack(fits, -1)


def _of_table(table: pa.Table, mean: Tensor, cov: Tensor) -> Tensor | None:
    """Squared distances (N,) of a table that is of the last epoch; None of one that is of the estimates."""
    if is_averaged(table):
        return None
    k, held = mean.shape[-1], table.to_pandas()
    names = [f"cov_{max(i, j) + 1}{min(i, j) + 1}" for i in range(k) for j in range(k)]
    own_mean = torch.tensor(held[[f"eta_{i + 1}" for i in range(k)]].to_numpy(np.float64))
    own_cov = torch.tensor(held[names].to_numpy(np.float64)).reshape(-1, k, k)
    return squared_wasserstein(own_mean, own_cov, mean, cov)


def _population(draws: Draws, batch: Restored) -> dict[str, Tensor]:
    """name -> 1-Wasserstein distance (B,) of each population parameter that both have a posterior of."""
    q = batch.objective.population_posterior(batch.problem.model, batch.state.trained)
    if not draws.population or q is None:
        return {}
    prior, mean, cov, _ = q
    sobol = torch.quasirandom.SobolEngine(len(mean)).draw(_POINTS, dtype=torch.float64) + 0.5 / _POINTS
    factor = torch.linalg.cholesky(cov.permute(2, 0, 1).double())
    points = mean.T[:, None] + torch.special.ndtri(sobol) @ factor.mT  # (B, S, P)
    reported = prior.report(points.permute(2, 1, 0))
    return {
        name: torch.tensor([wasserstein_distance(own, draws.population[name]) for own in values.T.numpy()])
        for name, values in reported.items()
        if name in draws.population
    }
