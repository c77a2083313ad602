"""Which NUTS: four libraries on the posteriors of eta of scenario 1, against a dense grid.

The 60 subjects of train_set_1 of the published simulated study, true typical parameters, Omega and sigma
known. All are given the same function, the log density of medcm and its gradient, by torch. Run as

    python experiments/posteriors/samplers.py DATA --library numpyro --library nutpie --draws 2500

in a separate environment: ``pip install -e '.[posterior]' pyro-ppl blackjax nutpie``. Prints a Markdown
table. ``numpyro`` is what `medcm posterior` does; the last two columns compare it, and the others, with the
grid: the largest deviation over all 60 subjects, in Monte Carlo standard errors. Of 120 means and of 180
covariances the largest is expected to be near 2.7 and 2.9, and above 3.5 once in 20 times or so.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")

import numpy as np
import pandas as pd
import torch
from arviz_stats.base.array import array_stats
from tabulate import tabulate
from torch import Tensor

from medcm_cli.data import Population, read_events
from medcm_cli.data.folds import from_files
from medcm_cli.haemophilia.virtual import TrueParameters, Truth
from medcm_cli.model import Model, RandomEffects, ResidualError
from medcm_cli.pk import two_compartment
from medcm_cli.posteriors.sampling import KnownPopulation, sample

CHAINS = 4
COVARIATES = {"weight": {"unit": "kg"}, "vwf": {"unit": "IU/dL"}}


class Problem:
    """Scenario 1 for any number of chains, and how often its gradient was asked for."""

    def __init__(self, folder: Path) -> None:
        events = read_events(folder / "simulation.csv", {"weight": "wt", "vwf": "vwf"})
        self._drawn = from_files(1, len(events.ids), folder, "train_set_{fold}.csv").train
        self._everyone = Population.from_events(events, torch.float64)
        truth = Truth()
        self._model = Model(
            TrueParameters(COVARIATES),
            two_compartment(),
            RandomEffects(("CL", "V1"), "full", truth.omega),
            ResidualError(("additive",), {"additive": truth.sigma}),
        )
        self.prior_sd = np.sqrt(np.diag(truth.omega))
        self.subjects = len(self._drawn)
        self.calls = 0
        self._targets = {chains: self.target(chains) for chains in (1, CHAINS)}

    def target(self, chains: int) -> KnownPopulation:
        population = self._everyone.select([self._drawn] * chains)
        return KnownPopulation(self._model, {}, population, self._model.typical({}, population))

    def log_density(self, eta: Tensor) -> Tensor:
        """(chains, N, 2) -> (chains, N)."""
        chains = len(eta)
        return self._targets[chains].log_density(eta.reshape(-1, 2)).reshape(chains, -1)

    def value_and_gradient(self, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(chains, N, 2) -> (chains, N) and (chains, N, 2)."""
        self.calls += 1
        x = torch.from_numpy(np.array(eta)).requires_grad_()
        value = self.log_density(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach().numpy(), gradient.numpy()

    @torch.no_grad()
    def grid(self, points: int = 101, width: float = 7.0) -> tuple[np.ndarray, np.ndarray]:
        """Mean (N, 2) and covariance (N, 2, 2) by summation over a box of ``width`` sds around the mean,
        which, as the sds, comes from a box of as many prior sds and then two smaller ones."""
        target = self.target(points * points)  # a chain for each point
        center, half = np.zeros((self.subjects, 2)), np.tile(width * self.prior_sd, (self.subjects, 1))
        axes = np.meshgrid(*[np.linspace(-1, 1, points)] * 2, indexing="ij")
        unit = np.stack(axes, -1).reshape(-1, 1, 2)
        for _ in range(3):
            eta = center + half * unit  # (points, N, 2)
            log_p = target.log_density(torch.from_numpy(eta.reshape(-1, 2))).numpy().reshape(len(unit), -1)
            weight = np.exp(log_p - log_p.max(0))
            weight /= weight.sum(0)
            center = np.einsum("sn,snk->nk", weight, eta)
            cov = np.einsum("sn,snk,snl->nkl", weight, eta - center, eta - center)
            half = width * np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
        return center, cov


# -- the libraries: (draws (chains, draws, N, 2), divergences) ---------------------------------------


Result = tuple[np.ndarray, int]


def nutpie(problem: Problem, draws: int, warmup: int, seed: int, low_rank: bool = False) -> Result:
    import nutpie as library
    from nutpie.compiled_pyfunc import from_pyfunc

    n = problem.subjects

    def make_logp() -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        def logp(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = problem.value_and_gradient(x.reshape(1, n, 2))
            return float(value.sum()), gradient.reshape(-1)

        return logp

    compiled = from_pyfunc(
        2 * n,
        make_logp,
        lambda *_: lambda x: {"eta": x.reshape(n, 2)},
        [np.dtype(np.float64)],
        [(n, 2)],
        ["eta"],
        make_initial_point_fn=lambda of_chain: np.random.default_rng(of_chain).normal(0, 0.1, 2 * n),
    )
    options = {"low_rank_modified_mass_matrix": True} if low_rank else {}
    trace = library.sample(
        compiled, draws=draws, tune=warmup, chains=CHAINS, cores=1, seed=seed, progress_bar=False, **options
    )
    return trace.posterior["eta"].to_numpy(), int(trace.sample_stats["diverging"].sum())


def pyro(problem: Problem, draws: int, warmup: int, seed: int) -> Result:
    import pyro as library
    from pyro.infer import MCMC, NUTS

    library.set_rng_seed(seed)

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        problem.calls += 1
        return -problem.log_density(parameters["eta"].reshape(1, -1, 2)).sum()

    all_draws, divergences = [], 0
    for _ in range(CHAINS):  # num_chains starts processes, which torch's threads do not survive everywhere
        mcmc = MCMC(
            NUTS(potential_fn=potential),
            num_samples=draws,
            warmup_steps=warmup,
            initial_params={"eta": 0.1 * torch.randn(2 * problem.subjects, dtype=torch.float64)},
            disable_progbar=True,
        )
        mcmc.run()
        all_draws.append(mcmc.get_samples()["eta"].reshape(draws, -1, 2).numpy())
        divergences += sum(len(steps) for steps in mcmc.diagnostics()["divergences"].values())
    return np.stack(all_draws), divergences


def lanes(problem: Problem, joint: bool) -> Callable[[Any], Any]:
    """The log density as a JAX function of one lane, a subject of a chain (2,) or a whole chain (2 N,). Under
    vmap over all lanes, chains first, torch is called once for all of them."""
    import jax

    n = problem.subjects

    def host(x: Any) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(x)
        value, gradient = problem.value_and_gradient(x.reshape(-1, n, 2))
        return (value.sum(1) if joint else value.reshape(-1)).reshape(x.shape[:-1]), gradient.reshape(x.shape)

    def both(x: Any) -> Any:
        shapes = jax.ShapeDtypeStruct((), x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(host, shapes, x, vmap_method="broadcast_all")

    @jax.custom_vjp
    def log_density(x: Any) -> Any:
        return both(x)[0]

    log_density.defvjp(both, lambda gradient, upstream: (upstream * gradient,))
    return log_density


def blackjax(problem: Problem, draws: int, warmup: int, seed: int, joint: bool = False) -> Result:
    import blackjax as library
    import jax

    log_density = lanes(problem, joint)
    count = CHAINS if joint else CHAINS * problem.subjects
    size = 2 * problem.subjects if joint else 2
    key, first, second = jax.random.split(jax.random.key(seed), 3)
    start = 0.1 * jax.random.normal(first, (count, size))
    adaptation = library.window_adaptation(library.nuts, log_density, is_mass_matrix_diagonal=joint)
    (states, parameters), _ = jax.jit(jax.vmap(lambda k, x: adaptation.run(k, x, num_steps=warmup)))(
        jax.random.split(second, count), start
    )

    def one(k: Any, state: Any, tuned: Any) -> Any:
        return library.nuts(log_density, **tuned).step(k, state)

    def step(states: Any, k: Any) -> Any:
        states, info = jax.vmap(one)(jax.random.split(k, count), states, parameters)
        return states, (states.position, info.is_divergent)

    run = jax.jit(lambda states, keys: jax.lax.scan(step, states, keys))
    _, (positions, divergent) = run(states, jax.random.split(key, draws))
    eta = np.asarray(positions).reshape(draws, CHAINS, problem.subjects, 2)
    return eta.swapaxes(0, 1), int(divergent.sum())


def numpyro(problem: Problem, draws: int, warmup: int, seed: int) -> Result:
    drawn = sample(problem.target(CHAINS), (seed, 1, 1), warmup, draws, target_accept=0.8)
    problem.calls = drawn.calls
    return drawn.eta, int(drawn.diverging.sum())


def numpyro_joint(problem: Problem, draws: int, warmup: int, seed: int) -> Result:
    import jax
    from numpyro.infer import MCMC, NUTS

    log_density = lanes(problem, joint=True)
    first, second = jax.random.split(jax.random.PRNGKey(seed))
    mcmc = MCMC(
        NUTS(potential_fn=lambda x: -log_density(x)),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = 0.1 * jax.random.normal(first, (CHAINS, 2 * problem.subjects))
    mcmc.run(second, init_params=start, extra_fields=("diverging",))
    eta = np.asarray(mcmc.get_samples(group_by_chain=True)).reshape(CHAINS, draws, problem.subjects, 2)
    return eta, int(mcmc.get_extra_fields()["diverging"].sum())


WAYS: dict[str, tuple[str, Callable[[Problem, int, int, int], Result]]] = {
    "nutpie": ("joint, diagonal mass", nutpie),
    "nutpie-low-rank": ("joint, low-rank mass", lambda *given: nutpie(*given, low_rank=True)),
    "pyro": ("joint, diagonal mass", pyro),
    "blackjax": ("per subject", blackjax),
    "blackjax-joint": ("joint, diagonal mass", lambda *given: blackjax(*given, joint=True)),
    "numpyro": ("per subject", numpyro),
    "numpyro-joint": ("joint, diagonal mass", numpyro_joint),
}


def agreement(draws: np.ndarray, grid: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Largest deviation from the grid in Monte Carlo standard errors, of the means and of the covariances."""
    mean, cov = grid
    deviation = draws - mean
    pairs = ((0, 0), (1, 0), (1, 1))
    products = np.stack([deviation[..., i] * deviation[..., j] for i, j in pairs], -1)
    exact = np.stack([cov[:, i, j] for i, j in pairs], -1)
    worst = []
    for values, expected in ((deviation, np.zeros_like(mean)), (products, exact)):
        error = array_stats.mcse(np.moveaxis(values, (0, 1), (-2, -1)), method="mean")
        worst.append(float(np.abs((values.mean((0, 1)) - expected) / error).max()))
    return worst[0], worst[1]


def row(name: str, problem: Problem, draws: int, warmup: int, seed: int, grid: Any) -> dict[str, object]:
    """One library's measurements."""
    how, sample = WAYS[name]
    problem.calls = 0
    begun = time.perf_counter()
    eta, divergences = sample(problem, draws, warmup, seed)
    seconds = time.perf_counter() - begun
    stacked = np.moveaxis(eta, (0, 1), (-2, -1))
    ess = float(array_stats.ess(stacked, method="bulk").min())
    mean, cov = agreement(eta, grid)
    return {
        "library": name,
        "target": how,
        "s": seconds,
        "gradient calls": problem.calls,
        "min bulk ESS": ess,
        "ESS/s": ess / seconds,
        "min tail ESS": float(array_stats.ess(stacked, method="tail", prob=(0.05, 0.95)).min()),
        "max R-hat": float(array_stats.rhat(stacked).max()),
        "divergences": divergences,
        "max z, mean": mean,
        "max z, covariance": cov,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the published simulated study")
    parser.add_argument(
        "--library", dest="chosen", action="append", choices=list(WAYS), help="(all if not given)"
    )
    parser.add_argument(
        "--check-grid", type=Path, metavar="FOLDER", help="of `medcm posterior`: only compare its draws so"
    )
    parser.add_argument("--draws", type=int, default=2500, help="of each of 4 chains")
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    posed = Problem(options.data)
    exact = posed.grid()
    if options.check_grid is not None:
        frame = pd.read_parquet(options.check_grid / "draws.parquet")
        shape = (frame["chain"].nunique(), frame["draw"].nunique(), posed.subjects, 2)
        z_mean, z_cov = agreement(frame[["eta_1", "eta_2"]].to_numpy().reshape(shape), exact)
        print(f"largest z over {posed.subjects} subjects: means {z_mean:.2f}, covariances {z_cov:.2f}")
        raise SystemExit
    rows = [
        row(name, posed, options.draws, options.warmup, options.seed, exact)
        for name in options.chosen or WAYS
    ]
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g"))
