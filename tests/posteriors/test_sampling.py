"""NUTS against integration, its densities against scipy, and what is said of poor draws."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from arviz_stats.base.array import array_stats
from scipy.special import logsumexp
from scipy.stats import lognorm, multivariate_normal, norm

from medcm_cli.data import Population
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.model.priors import PopulationPrior
from medcm_cli.pk import two_compartment
from medcm_cli.posteriors.sampling import (
    JointPopulation,
    KnownPopulation,
    Posterior,
    complaints,
    diagnostics,
    sample,
    tables,
)
from tests.helpers import make_population

OMEGA = [[0.2, 0.05], [0.05, 0.1]]
SIGMA = 0.04


def model_with(
    omega: list[list[float]] | None = None,
    sigma: dict[str, float] | None = None,
    components: tuple[str, ...] = ("additive",),
) -> Model:
    """Typical parameters at which the subjects made by hand are plausible."""
    network = CovariateNetwork.build([], ["CL", "V1", "Q", "V2"], {})
    effects = RandomEffects(("CL", "V1"), "full", omega)
    return Model(network, two_compartment(), effects, ResidualError(components, sigma or {}))


def network_values(fits: int) -> dict[str, torch.Tensor]:
    typical = {"CL": 0.12, "V1": 2.2, "Q": 0.15, "V2": 0.75}
    return {
        f"global.{name}": torch.full((fits,), math.log(math.expm1(value)), dtype=torch.float64)
        for name, value in typical.items()
    }


def known(population: Population, sigma: dict[str, float] | None = None, **options: Any) -> KnownPopulation:
    sigma = {"additive": SIGMA} if sigma is None else sigma
    model = model_with(OMEGA, sigma, tuple(sigma))
    values = network_values(population.shape[2])
    return KnownPopulation(model, values, population, model.typical(values, population), **options)


def joint(population: Population, lkj: float = 1.0) -> JointPopulation:
    model, values = model_with(), network_values(population.shape[2])
    zeta = model.typical(values, population)
    return JointPopulation(model, values, population, zeta, PopulationPrior(model, lkj))


def with_censored(population: Population) -> Population:
    """The last observation of every subject is below a limit of 0.1 IU/mL."""
    censored, dv = torch.zeros_like(population.dv), population.dv.clone()
    censored[-1], dv[-1] = 1.0, 0.1
    return replace(population, censored=censored, dv=dv)


def predictions(model: Model, population: Population, eta: np.ndarray) -> np.ndarray:
    """(T, N, B) at eta (N, B, 2)."""
    effects = [torch.from_numpy(eta[None, ..., k].copy()) for k in range(2)]
    zeta = model.typical(network_values(population.shape[2]), population)
    return model.predict(zeta, population, effects)[:, 0].numpy()


# -- densities -------------------------------------------------------------------------------------


@pytest.mark.parametrize("censored", [False, True])
@pytest.mark.parametrize("sigma", [{"additive": 0.04}, {"additive": 0.02, "proportional": 0.15}])
def test_density_with_the_population_known(sigma: dict[str, float], censored: bool) -> None:
    population = make_population(4, 2, ragged=True)
    population = with_censored(population) if censored else population
    target = known(population, sigma)
    x = np.random.default_rng(0).normal(0, 0.3, (8, 2))
    found = target.log_density(torch.from_numpy(x)).numpy()
    eta = x.reshape(2, 4, 2).swapaxes(0, 1)  # chains outermost -> (N, B, 2)
    f = predictions(target.model, population, eta)
    sd = sigma["additive"] + sigma.get("proportional", 0.0) * f
    dv, there = population.dv[:, 0].numpy(), population.observed[:, 0].numpy()
    terms = norm.logpdf(dv, f, sd)
    if censored:
        below = population.censored[:, 0].numpy() > 0  # type: ignore[index]
        terms = np.where(below, norm.logcdf(dv, f, sd), terms)
    expected = (terms * there).sum(0) + multivariate_normal([0, 0], OMEGA).logpdf(eta)
    np.testing.assert_allclose(found, expected.T.reshape(-1), rtol=1e-9)


@pytest.mark.parametrize("lkj", [1.0, 2.0])
def test_joint_density_with_its_jacobians(lkj: float) -> None:
    population = make_population(5, 3)
    target = joint(population, lkj)
    x = np.random.default_rng(1).normal(0, 0.3, (3, target.size))
    x[:, :4] += [-3, -1.5, -1, 0]
    found = target.log_density(torch.from_numpy(x)).numpy()
    eta = x[:, 4:].reshape(3, 5, 2).swapaxes(0, 1)
    f = predictions(target.model, population, eta)
    for chain in range(3):
        log_sigma, log_omega_1, log_omega_2, raw = x[chain, :4]
        sigma, w1, w2, rho = math.exp(log_sigma), math.exp(log_omega_1), math.exp(log_omega_2), math.tanh(raw)
        omega = [[w1 * w1, rho * w1 * w2], [rho * w1 * w2, w2 * w2]]
        expected = np.sum(norm.logpdf(population.dv[:, 0, :, chain].numpy(), f[..., chain], sigma))
        expected += multivariate_normal([0, 0], omega).logpdf(eta[:, chain]).sum()
        expected += lognorm(1, scale=math.exp(-3)).logpdf(sigma) + log_sigma
        expected += lognorm(1, scale=math.exp(-1.5)).logpdf([w1, w2]).sum() + log_omega_1 + log_omega_2
        expected += math.log(0.5 if lkj == 1 else 0.75 * (1 - rho**2)) + math.log(1 - rho**2)
        assert found[chain] == pytest.approx(expected, rel=1e-9)


def test_chains_begin_where_the_prior_is() -> None:
    """Known: covariance of the starting points is Omega; joint: each chain's etas are of its own Omega."""
    target = known(make_population(30, 200))
    noise = torch.randn(6000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(np.cov(target.start(noise).numpy().T), OMEGA, rtol=0.08)
    both = joint(make_population(3000, 2))
    noise = torch.randn(2, both.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = both.start(noise)
    report, eta = both.population_of(start), both.eta(start)
    for chain in range(2):
        sd = np.array([float(report[f"omega_{k}"][chain]) for k in (1, 2)])
        np.testing.assert_allclose(eta[chain].std(0).numpy(), sd, rtol=0.08)


# -- sampling --------------------------------------------------------------------------------------


def on_grid(
    model: Model, population: Population, sigmas: np.ndarray, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points (G, 2) of eta, five prior sds each way, and log N(y; f, sigma) + log N(eta; 0, Omega) there of
    each sigma and subject, (sigmas, G, N)."""
    axes = [np.linspace(-half, half, points) for half in 5 * np.sqrt(np.diag(OMEGA))]
    eta = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    one = population._each(lambda values: values[..., :1])
    effects = [torch.from_numpy(eta[:, k].copy())[:, None, None] for k in range(2)]
    f = model.predict(model.typical(network_values(1), one), one, effects)[..., 0].numpy()
    dv = one.dv[..., 0].numpy()
    sd = sigmas[:, None, None, None]
    log_p = np.asarray(norm.logpdf(dv, f, sd))
    if one.censored is not None:
        log_p = np.where(one.censored[..., 0].numpy() > 0, norm.logcdf(dv, f, sd), log_p)
    return eta, log_p.sum(1) + multivariate_normal([0, 0], OMEGA).logpdf(eta)[:, None]


def standard_error(value: np.ndarray) -> float:
    """Of the mean of draws (chains, draws)."""
    return float(value.std() / math.sqrt(float(array_stats.ess(value, method="mean"))))


@pytest.mark.slow
def test_draws_agree_with_integration() -> None:
    """Within Monte Carlo error, mean and covariance, of subjects with a censored observation."""
    population = with_censored(make_population(3, 4))
    target = known(population)
    drawn = sample(target, (0, 1, 1), warmup=100, draws=200, target_accept=0.8)
    assert drawn.eta.shape == (4, 200, 3, 2)
    assert not drawn.diverging.any()
    eta, log_p = on_grid(target.model, population, np.array([SIGMA]), 301)
    for subject in range(3):
        weight = np.exp(log_p[0, :, subject] - log_p[0, :, subject].max())
        weight /= weight.sum()
        mean = weight @ eta
        cov = (weight[:, None] * (eta - mean)).T @ (eta - mean)
        deviation = drawn.eta[:, :, subject] - mean
        for value, exact in (
            *((deviation[..., k], 0.0) for k in range(2)),
            *((deviation[..., i] * deviation[..., j], cov[i, j]) for i, j in ((0, 0), (1, 0), (1, 1))),
        ):
            assert abs(value.mean() - exact) < 4 * standard_error(value)


@pytest.mark.slow
def test_joint_draws_agree_with_integration() -> None:
    """Mean and sd of log sigma, Omega known: by sums over sigma and, for each, over every subject's eta."""
    population = make_population(2, 4)
    model, values = model_with(OMEGA), network_values(4)
    zeta = model.typical(values, population)
    target = JointPopulation(model, values, population, zeta, PopulationPrior(model))
    drawn = sample(target, (0, 1, 1), warmup=100, draws=200, target_accept=0.9)
    assert list(drawn.population) == ["sigma_additive"]
    log_sigma = np.linspace(-7, 0, 71)
    _, log_p = on_grid(model, population, np.exp(log_sigma), 201)
    of_sigma = logsumexp(log_p, axis=1).sum(1) + norm(-3, 1).logpdf(log_sigma)
    weight = np.exp(of_sigma - logsumexp(of_sigma))
    mean = weight @ log_sigma
    deviation = np.log(drawn.population["sigma_additive"]) - mean
    assert abs(deviation.mean()) < 4 * standard_error(deviation)
    assert abs((deviation**2).mean() - weight @ (log_sigma - mean) ** 2) < 4 * standard_error(deviation**2)


@pytest.mark.slow
def test_a_subject_s_draws_follow_from_the_seed_whoever_else_is_sampled() -> None:
    def drawn(subjects: int, seed: int) -> np.ndarray:
        target = known(make_population(subjects, 2))
        return sample(target, (seed, 1, 1), warmup=10, draws=5, target_accept=0.8).eta

    three = drawn(3, seed=0)
    np.testing.assert_allclose(drawn(2, seed=0), three[:, :, :2], rtol=1e-6)
    assert not np.allclose(three, drawn(3, seed=1))
    assert len(np.unique(three[:, -1, 0, 0])) == 2  # each chain has its own


# -- what is reported ------------------------------------------------------------------------------


def made_up(change: Callable[[np.ndarray, np.ndarray], None] | None = None) -> Posterior:
    """Independent draws, 4 chains of 500, of three subjects."""
    generator = np.random.default_rng(0)
    eta, diverging = generator.normal(0, 1, (4, 500, 3, 2)), np.zeros((4, 500, 3), dtype=bool)
    if change is not None:
        change(eta, diverging)
    return Posterior(eta, diverging, {}, np.zeros((4, 500, 3)), 0)


ROWS, IDS = np.array([4, 2, 4]), ["five", "three", "five"]


def test_good_draws_have_no_complaint() -> None:
    table = diagnostics(made_up(), ROWS, IDS)
    assert complaints(table) == []
    assert table["quantity"].tolist() == ["eta_1"] * 3 + ["eta_2"] * 3
    assert table["subject"].tolist() == [5, 3, 5] * 2
    assert table["position"].tolist() == [1, 2, 3] * 2
    assert table["ess_bulk"].between(1400, 2700).all()


def shifted(eta: np.ndarray, _: np.ndarray) -> None:
    eta[0, :, 1] += 1


def sticky(eta: np.ndarray, _: np.ndarray) -> None:
    eta[:, :, 1, 0] = np.repeat(eta[:, ::25, 1, 0], 25, axis=1)


def diverged(_: np.ndarray, diverging: np.ndarray) -> None:
    diverging[2, 7, 1] = True


def constant(eta: np.ndarray, _: np.ndarray) -> None:
    eta[:, :, 1] = 0.0


@pytest.mark.parametrize(
    ("change", "what"),
    [(shifted, "R-hat"), (sticky, "effective"), (diverged, "divergent"), (constant, "R-hat")],
)
def test_poor_draws_are_named(change: Callable[[np.ndarray, np.ndarray], None], what: str) -> None:
    found = complaints(diagnostics(made_up(change), ROWS, IDS))
    (line,) = [text for text in found if what in text]
    assert "subject three" in line
    assert "five" not in line


def test_poor_population_parameters_are_named() -> None:
    generator = np.random.default_rng(0)
    eta = generator.normal(0, 1, (4, 500, 3, 2))
    population = {"sigma_additive": generator.normal(0, 1, (4, 500)), "rho_21": np.zeros((4, 500))}
    population["rho_21"] += np.arange(4)[:, None] + 0.1 * generator.normal(0, 1, (4, 500))
    joined = Posterior(eta, np.zeros((4, 500, 1), dtype=bool), population, np.zeros((4, 500, 1)), 0)
    found = complaints(diagnostics(joined, ROWS, IDS))
    assert found
    assert all("rho_21" in line and "sigma" not in line and "subject" not in line for line in found)


def test_tables_hold_the_draws_in_order() -> None:
    posterior = made_up()
    made = tables(posterior, ROWS, IDS)
    assert set(made) == {"draws", "diagnostics"}
    frame: pd.DataFrame = made["draws"].to_pandas().set_index(["chain", "draw", "position"])
    assert frame.index.is_unique
    assert frame.loc[(2, 17, 3), "eta_2"] == posterior.eta[2, 17, 2, 1]
    assert frame.loc[(2, 17, 3), "subject"] == 5
