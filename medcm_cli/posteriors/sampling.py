"""Posteriors by the No-U-Turn sampler: of each subject's random effects where the population is known, or of
all of them jointly with sigma and Omega (docs/methods.md, "Accuracy of posteriors").

The density and its gradient are the model's own, for all chains, the fits of a Population, and all subjects
in one call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import Model, Values
from medcm_cli.model.priors import PopulationPrior
from medcm_cli.numerics.triangular import multiply_lower
from medcm_cli.posteriors.nuts import Sampler, nuts

R_HAT, ESS = 1.01, 400
"""The most and the least that Vehtari et al. (2021) ask for, of four chains."""


class Target(Protocol):
    """What is sampled: independent densities, *lanes*, of ``size`` numbers each."""

    @property
    def lanes(self) -> npt.NDArray[np.int64]:
        """(lanes, depth) what each is: its chain, or its chain and subject, from 0."""

    @property
    def size(self) -> int:
        """Numbers of a lane."""

    def start(self, noise: Tensor) -> Tensor:
        """Where the lanes begin, (lanes, size), from as many standard normal numbers."""

    def log_density(self, x: Tensor) -> Tensor:
        """(lanes, size) -> (lanes,), differentiable."""

    def eta(self, x: Tensor) -> Tensor:
        """(..., lanes, size) -> (..., chains, N, R)."""

    def population_of(self, x: Tensor) -> dict[str, Tensor]:
        """(..., lanes, size) -> sigma_*, omega_*, rho_* as far as they are sampled, (..., chains)."""


@dataclass(frozen=True)
class KnownPopulation:
    """log N(y_i; f(eta_i), Sigma) + log N(eta_i; 0, Omega): a lane is one subject of one chain, with a step
    size and mass matrix of its own.

    ``values`` are the model's, (..., 1); ``zeta`` the typical parameters that follow from them;
    ``population`` has a fit for each chain, all of the same subjects.
    """

    model: Model
    values: Values
    population: Population
    zeta: Values

    @property
    def lanes(self) -> npt.NDArray[np.int64]:
        """See ``Target``; chains outermost."""
        _, n, chains = self.population.shape
        return np.stack(np.meshgrid(np.arange(chains), np.arange(n), indexing="ij"), -1).reshape(-1, 2)

    @property
    def size(self) -> int:
        """R, of ``Model``."""
        return self.model.size(self.population)

    def start(self, noise: Tensor) -> Tensor:
        """Draws from N(0, Omega)."""
        u = self._by_effect(noise)
        lower = self.model.prior_cholesky({**self.values, "eta": u}, self.population)
        return torch.stack(multiply_lower(lower, list(u))).permute(2, 1, 0).reshape(-1, self.size)

    def log_density(self, x: Tensor) -> Tensor:
        """See ``Target``."""
        eta = self._by_effect(x)
        return _of_subjects(self.model, self.values, self.population, self.zeta, eta).T.reshape(-1)

    def eta(self, x: Tensor) -> Tensor:
        """See ``Target``."""
        _, n, chains = self.population.shape
        return x.reshape(*x.shape[:-2], chains, n, self.size)

    def population_of(self, x: Tensor) -> dict[str, Tensor]:
        """Nothing."""
        del x
        return {}

    def _by_effect(self, x: Tensor) -> Tensor:
        return self.eta(x).permute(2, 1, 0)  # (K, N, B)


@dataclass(frozen=True)
class JointPopulation:
    """sum_i [log N(y_i; f(eta_i), Sigma) + log N(eta_i; 0, Omega)] + log prior of sigma and Omega: a lane is
    one chain, the prior's P coordinates and then eta of subject 1, 2 ...

    eta is centred. On train_set_1 (60 subjects, three observations each; 4 chains, 400 draws after 400 of
    warm-up) eta itself took 15 700 gradient calls for a smallest bulk ESS of 568 over sigma, omega and rho; u
    with eta = L u took 26 100 for 361.
    """

    model: Model
    values: Values
    population: Population
    zeta: Values
    prior: PopulationPrior

    @property
    def lanes(self) -> npt.NDArray[np.int64]:
        """See ``Target``."""
        return np.arange(self.population.shape[2])[:, None]

    @property
    def size(self) -> int:
        """P + N R."""
        return self.prior.size + self.population.shape[1] * self.model.size(self.population)

    def start(self, noise: Tensor) -> Tensor:
        """sigma and Omega half a prior sd around the prior medians, eta from N(0, Omega) there."""
        first = noise.new_tensor(self.prior.location) + 0.5 * noise[:, : self.prior.size]
        values = {**self.values, **self.prior.values(first.T)}
        lower = self.model.prior_cholesky(values, self.population)
        eta = torch.stack(multiply_lower(lower, list(self._by_effect(noise))))
        return torch.cat([first, eta.permute(2, 1, 0).reshape(len(noise), -1)], 1)

    def log_density(self, x: Tensor) -> Tensor:
        """See ``Target``."""
        coordinates = x[:, : self.prior.size].T
        values = {**self.values, **self.prior.values(coordinates)}
        of_subjects = _of_subjects(self.model, values, self.population, self.zeta, self._by_effect(x))
        return of_subjects.sum(0) + self.prior.log_density(coordinates)

    def eta(self, x: Tensor) -> Tensor:
        """See ``Target``."""
        size = self.model.size(self.population)
        return x[..., self.prior.size :].reshape(*x.shape[:-1], -1, size)

    def population_of(self, x: Tensor) -> dict[str, Tensor]:
        """See ``Target``."""
        return self.prior.report(x[..., : self.prior.size].movedim(-1, 0))

    def _by_effect(self, x: Tensor) -> Tensor:
        return self.eta(x).permute(2, 1, 0)  # (K, N, B)


def _of_subjects(model: Model, values: Values, population: Population, zeta: Values, eta: Tensor) -> Tensor:
    """``Model.log_joint``: (N, B) from (K, N, B)."""
    values = {**values, "eta": eta}  # tells how many fits there are, where all else is fixed
    return model.log_joint(values, zeta, population, list(eta[:, None]))[0]


@dataclass(frozen=True)
class Posterior:
    """``eta`` (chains, draws, N, K); ``diverging`` and ``log_density`` (chains, draws, N), or (chains, draws,
    1) where all subjects are sampled at once; ``population``: sigma_*, omega_*, rho_* as far as they were
    sampled, (chains, draws) each; ``calls`` of the gradient. ``names`` of the K, eta_1 and so on where None,
    and ``there`` (N, K) which of them a subject has, None: all."""

    eta: npt.NDArray[np.float64]
    diverging: npt.NDArray[np.bool_]
    population: dict[str, npt.NDArray[np.float64]]
    log_density: npt.NDArray[np.float64]
    calls: int
    names: Sequence[str] | None = None
    there: npt.NDArray[np.bool_] | None = None

    @property
    def effects(self) -> list[tuple[str, npt.NDArray[np.float64], npt.NDArray[np.bool_]]]:
        """Of each of the K its name, (chains, draws, N) and (N,)."""
        size, n = self.eta.shape[-1], self.eta.shape[-2]
        names = [f"eta_{k + 1}" for k in range(size)] if self.names is None else self.names
        there = np.ones((n, size), dtype=bool) if self.there is None else self.there
        return list(zip(names, np.moveaxis(self.eta, -1, 0), there.T, strict=True))


def sample(
    target: Target,
    seed: tuple[int, ...],
    warmup: int,
    draws: int,
    target_accept: float,
    progress: Callable[[int, int], None] | None = None,
) -> Posterior:
    """Draw from a target; ``progress`` is told of finished transitions and of divergences after the warm-up.

    :raises InputError: NumPyro is not installed.
    """
    drawn = nuts(
        target.log_density,
        target.start,
        target.lanes,
        target.size,
        # Dense is K x K; of a joint target it would be P + N K large.
        Sampler(warmup, draws, seed, target_accept, dense=isinstance(target, KnownPopulation)),
        progress,
    )
    x = torch.from_numpy(drawn.x)
    eta = target.eta(x).numpy().swapaxes(0, 1)
    chains = len(eta)
    return Posterior(
        eta,
        drawn.diverging.reshape(draws, chains, -1).swapaxes(0, 1),
        {name: values.numpy().T for name, values in target.population_of(x).items()},
        drawn.log_density.reshape(draws, chains, -1).swapaxes(0, 1),
        drawn.calls,
    )


# -- tables ----------------------------------------------------------------------------------------


def tables(posterior: Posterior, rows: npt.NDArray[np.int64], ids: Sequence[str]) -> dict[str, pa.Table]:
    """draws, diagnostics and, where sampled, population, as the folder of a posterior has them.

    :param rows: (N,) of each subject in the event table, from 0. :param ids: (N,) what it is called there.
    """
    chains, draws, n, _ = posterior.eta.shape
    chain, draw, place = np.indices((chains, draws, n), dtype=np.int32).reshape(3, -1)
    columns: dict[str, Any] = {"chain": chain, "draw": draw, "position": place + 1}
    columns["subject"] = rows[place] + 1
    for name, eta, there in posterior.effects:
        lacks = None if there.all() else ~there[place]
        columns[name] = pa.array(eta.reshape(-1), mask=lacks)
    columns["diverging"] = np.broadcast_to(posterior.diverging, (chains, draws, n)).reshape(-1)
    result = {"draws": pa.table(columns)}
    if posterior.population:
        chain, draw = np.indices((chains, draws), dtype=np.int32).reshape(2, -1)
        columns = {"chain": chain, "draw": draw}
        columns |= {name: values.reshape(-1) for name, values in posterior.population.items()}
        columns |= {"lp": posterior.log_density.reshape(-1), "diverging": posterior.diverging.reshape(-1)}
        result["population"] = pa.table(columns)
    found = diagnostics(posterior, rows, ids)
    result["diagnostics"] = pa.Table.from_pandas(found, preserve_index=False)
    return result


def diagnostics(posterior: Posterior, rows: npt.NDArray[np.int64], ids: Sequence[str]) -> pd.DataFrame:
    """A row per quantity: mean, sd, rank-normalised split R-hat, bulk and tail ESS (Vehtari et al. 2021) and
    divergences; of eta also its subject, as in the draws, and the subject's id."""
    divergences = posterior.diverging.sum((0, 1))
    parts = [
        _statistics(name, values[None], divergences.sum(keepdims=True))
        for name, values in posterior.population.items()
    ]
    of_subject: dict[str, Any] = {
        "position": np.arange(1, len(rows) + 1),
        "subject": rows + 1,
        "id": list(ids),
    }
    for name, eta, there in posterior.effects:
        values = np.moveaxis(eta, -1, 0)[there]
        if len(values):
            part = _statistics(name, values, np.broadcast_to(divergences, len(rows))[there])
            parts.append(part.assign(**{n: np.asarray(v)[there] for n, v in of_subject.items()}))
    table = pd.concat(parts, ignore_index=True).astype({"position": "Int64", "subject": "Int64"})
    first = ["quantity", *of_subject]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _statistics(
    name: str, values: npt.NDArray[np.float64], divergences: npt.NDArray[np.int64]
) -> pd.DataFrame:
    """Rows from (rows, chains, draws)."""
    from arviz_stats.base.array import array_stats  # of the extra that sampling needs

    with np.errstate(invalid="ignore", divide="ignore"):  # chains that do not move have no R-hat
        r_hat = array_stats.rhat(values)
    return pd.DataFrame(
        {
            "quantity": name,
            "mean": values.mean((1, 2)),
            "sd": values.std((1, 2), ddof=1),
            "r_hat": r_hat,
            "ess_bulk": array_stats.ess(values, method="bulk"),
            "ess_tail": array_stats.ess(values, method="tail", prob=(0.05, 0.95)),
            "divergences": divergences,
        }
    )


def complaints(found: pd.DataFrame) -> list[str]:
    """What of the diagnostics forbids to trust the draws, in words, naming subjects and parameters; empty
    where nothing does. A statistic that is not a number, as of chains that do not move, counts as poor."""
    poor = {
        f"R-hat above {R_HAT}": ~(found["r_hat"] <= R_HAT),
        f"effective sample size below {ESS}": ~(
            found[["ess_bulk", "ess_tail"]].min(axis=1, skipna=False) >= ESS
        ),
        "divergent transitions": found["divergences"] > 0,
    }
    return [f"{what}: {_names(found[rows])}" for what, rows in poor.items() if rows.any()]


def _names(rows: pd.DataFrame, most: int = 10) -> str:
    """Of population parameters their names; of the rest the subjects' ids."""
    own = rows["position"].isna()
    parameters = rows.loc[own, "quantity"].unique().tolist()
    subjects = rows[~own].drop_duplicates("position").sort_values("position")["id"].drop_duplicates().tolist()
    more = f" and {len(subjects) - most} more" if len(subjects) > most else ""
    noun = "subject" if len(subjects) == 1 else "subjects"
    listed = [f"{noun} {', '.join(subjects[:most])}{more}"] if subjects else []
    return "; ".join([*([", ".join(parameters)] if parameters else []), *listed])
