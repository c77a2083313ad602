"""Posteriors of single patients against numpy, scipy and a dense grid."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk import OdeModel, michaelis_menten_rate, one_compartment, two_compartment
from medcm_cli.posteriors.individual import METHODS, log_joint, posterior, residual_noise
from tests.helpers import COVARIATES, MULTI_BRANCH, dense_omega, make_events

FloatArray = npt.NDArray[np.float64]
STREAMS = [Stream(0, 1, 1), Stream(0, 2, 1)]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def two_fits(error: str = "additive", sd: float = 0.3) -> tuple[Model, dict[str, torch.Tensor]]:
    """A model and the values of two fits of it, plausible ones."""
    network = CovariateNetwork.build(MULTI_BRANCH, ["Q", "V2"], COVARIATES)
    model = Model(network, two_compartment(), RandomEffects(("CL", "V1")), ResidualError((error,)))
    values = model.init(STREAMS, torch.float64)
    values["weight.heads.bias"] = torch.tensor([[0.5, 0.4], [2.0, 2.1]], dtype=torch.float64)
    values["vwf.heads.bias"] = torch.full((1, 2), -2.0, dtype=torch.float64)
    values["omega"] = torch.full((2, 2), float(np.log(np.expm1(sd))), dtype=torch.float64)
    values["correlation"] = torch.full((1, 2), 0.4, dtype=torch.float64)
    raw = 0.05 if error == "additive" else 0.15
    values["sigma"] = torch.full((1, 2), float(np.log(np.expm1(raw))), dtype=torch.float64)
    return model, values


def population_of(subjects: int, fits: int = 2, **options: Any) -> Population:
    everyone = Population.from_events(make_events(subjects, **options), torch.float64)
    spread = {name: v.expand(*v.shape[:-1], fits) for name, v in everyone.covariates.items()}
    return replace(everyone, covariates=spread)


def levels(z: dict[str, float], doses: int, times: FloatArray) -> FloatArray:
    """By the eigenvectors of the rate matrix: 4000 IU/h over half an hour, every 12 h."""
    k10, k12, k21 = z["CL"] / z["V1"], z["Q"] / z["V1"], z["Q"] / z["V2"]
    rates, vectors = np.linalg.eig(np.array([[-k10 - k12, k21], [k12, -k21]]))
    weights = vectors[0] * np.linalg.solve(vectors, [4000.0, 0.0])
    amount = np.zeros(len(times))
    for dose in range(doses):
        since_end = (times - 12.0 * dose - 0.5)[:, None]
        amount += (weights * np.expm1(rates * 0.5) / rates * np.exp(rates * since_end)).sum(1)
    return np.asarray(amount / z["V1"] / 1000)


def by_numpy(
    model: Model,
    values: dict[str, torch.Tensor],
    population: Population,
    subject: int,
    fit: int,
    doses: int = 1,
) -> Callable[[FloatArray], float]:
    """log p(y, eta) of one subject under one fit."""
    zeta = model.typical(values, population)
    own = {name: float(v.expand(1, population.shape[1], 2)[0, subject, fit]) for name, v in zeta.items()}
    there = population.observed[:, 0, subject, 0] > 0
    time, y = (v[there, 0, subject, 0].numpy() for v in (population.time, population.dv))
    omega = dense_omega(values, fit)
    sigma = np.log1p(np.exp(float(values["sigma"][0, fit])))
    proportional = "proportional" in model.error.components

    def log_density(eta: FloatArray) -> float:
        f = levels({**own, "CL": own["CL"] * np.exp(eta[0]), "V1": own["V1"] * np.exp(eta[1])}, doses, time)
        sd = sigma * f if proportional else sigma
        below = np.zeros(len(time), dtype=bool)
        if population.censored is not None:
            below = population.censored[there, 0, subject, 0].numpy() > 0
        terms = np.where(below, norm.logcdf(y, f, sd), norm.logpdf(y, f, sd))
        return float(terms.sum() + multivariate_normal.logpdf(eta, [0.0, 0.0], omega))

    return log_density


@pytest.mark.parametrize("error", ["additive", "proportional"])
def test_log_joint_is_that_of_scipy(error: str) -> None:
    model, values = two_fits(error)
    population = population_of(3, ragged=True, doses=2)
    first = torch.zeros_like(population.dv)
    first[0] = 1
    eta = torch.tensor([[0.2, -0.3], [0.1, 0.25]], dtype=torch.float64)  # K, S
    draws = list(eta[:, :, None, None].expand(-1, -1, 3, 2))
    for censored in (None, first):
        of_kind = replace(population, censored=censored)
        found = log_joint(model, values, of_kind, draws)
        for sample, subject, fit in ((0, 0, 0), (1, 2, 1)):
            expected = by_numpy(model, values, of_kind, subject, fit, doses=2)(eta[:, sample].numpy())
            assert float(found[sample, subject, fit]) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("error", ["additive", "proportional"])
def test_mode_is_that_of_an_independent_optimiser(error: str) -> None:
    model, values = two_fits(error)
    population = population_of(4, ragged=True)
    found = posterior(model, values, population, STREAMS, "laplace", 4)
    assert bool(found.converged.all())
    for subject, fit in ((0, 0), (1, 1), (2, 0), (3, 1)):
        log_density = by_numpy(model, values, population, subject, fit)

        def misfit(eta: np.ndarray, log_density: Callable[[FloatArray], float] = log_density) -> float:
            return -log_density(eta)

        best = minimize(
            misfit,
            np.zeros(2),
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-13},
        )
        mode = [float(m[0, subject, fit]) for m in found.mode]
        np.testing.assert_allclose(mode, best.x, atol=1e-5)


def test_the_highest_of_several_modes_is_found() -> None:
    """A level at ten days that nobody typical has: there the posterior is flat, and its mode is elsewhere."""
    model, values = two_fits()
    events = make_events(3)
    row = np.flatnonzero((events.subject == 1) & ~events.is_dose)[-1]
    when, level = events.clock.copy(), events.dv.copy()
    when[row], level[row] = 240.0, 0.6
    events = replace(events, time=when, clock=when, dv=level)
    everyone = Population.from_events(events, torch.float64)
    spread = {name: v.expand(*v.shape[:-1], 2) for name, v in everyone.covariates.items()}
    late = torch.arange(3).view(3, 1, 1, 1) == 2
    others = torch.arange(3).view(1, 1, 3, 1) != 1
    population = replace(
        everyone, covariates=spread, observed=everyone.observed * (late | others), ragged=True
    )
    found = posterior(model, values, population, STREAMS, "importance", 200)
    axis = np.linspace(-3, 3, 61)
    for fit in range(2):
        log_density = by_numpy(model, values, population, 1, fit)
        mode = np.array([float(m[0, 1, fit]) for m in found.mode])
        highest = max(log_density(np.array([one, other])) for one in axis for other in axis)
        assert log_density(mode) > highest - 1e-6 > log_density(np.zeros(2)) + 10
        assert abs(float(found.draws[0][:, 1, fit].median()) - mode[0]) < 0.2
    alone = posterior(model, values, population_of(3), STREAMS, "importance", 200)
    for m, other in zip(found.mode, alone.mode, strict=True):
        torch.testing.assert_close(m[:, 0], other[:, 0], rtol=0, atol=1e-9)


def on_grid(model: Model, values: dict[str, torch.Tensor], population: Population, fit: int) -> FloatArray:
    """Quantiles of each random effect of the first subject, (K, quantiles), from the density on a grid that
    reaches six prior sds to each side."""
    sd = np.sqrt(np.diag(dense_omega(values, fit)))
    axes = [np.linspace(-6 * s, 6 * s, 481) for s in sd]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(2, -1, 1, 1)
    draws = [torch.from_numpy(part).expand(-1, population.shape[1], 2) for part in grid]
    log_density = log_joint(model, values, population, draws)[:, 0, fit].numpy().reshape(481, 481)
    density = np.exp(log_density - log_density.max())
    found = []
    for k in range(2):
        marginal = density.sum(1 - k)
        below = (np.cumsum(marginal) - 0.5 * marginal) / marginal.sum()
        found.append(np.interp(QUANTILES, below, axes[k]))
    return np.array(found)


# Of a 5 % quantile of 1000 independent draws, in posterior sd.
STANDARD_ERROR = float(np.sqrt(0.05 * 0.95 / 1000) / norm.pdf(norm.ppf(0.05)))


# Largest difference of a quantile in posterior sd. With three levels the posterior is nearly normal; with one
# late level and twice the variability it is skewed, which the Gaussians cannot be.
@pytest.mark.parametrize(
    ("method", "sd", "kept", "tolerance"),
    [
        ("importance", 0.3, 3, 2 * STANDARD_ERROR),
        ("laplace", 0.3, 3, 0.25),
        ("variational", 0.3, 3, 0.15),
        ("importance", 0.6, 1, 2 * STANDARD_ERROR),
        ("importance", 0.3, 0, 2 * STANDARD_ERROR),
    ],
)
def test_quantiles_are_those_of_a_dense_grid(method: str, sd: float, kept: int, tolerance: float) -> None:
    model, values = two_fits(sd=sd)
    population = population_of(2)
    late = torch.arange(3).view(3, 1, 1, 1) >= 3 - kept
    population = replace(population, observed=population.observed * late, ragged=True)
    found = posterior(model, values, population, STREAMS, method, 1000)
    for fit in range(2):
        exact = on_grid(model, values, population, fit)
        drawn = np.stack([np.quantile(d[:, 0, fit].numpy(), QUANTILES) for d in found.draws])
        spread = (exact[:, 4] - exact[:, 0]) / (2 * norm.ppf(0.95))
        assert (np.abs(drawn - exact) / spread[:, None]).max() < tolerance


@pytest.mark.parametrize("error", ["additive", "proportional"])
@pytest.mark.parametrize("method", METHODS)
def test_without_levels_it_is_the_prior(method: str, error: str) -> None:
    """Also beside a patient who has some, and before a first dose, where a proportional error has no sd."""
    model, values = two_fits(error)
    events = make_events(2)
    nobody = ~events.is_dose & (events.subject == 0)
    rows = {f.name: getattr(events, f.name) for f in fields(events)}
    kept = {name: of[~nobody] for name, of in rows.items() if np.shape(of) == nobody.shape}
    everyone = Population.from_events(replace(events, **kept), torch.float64)
    spread = {name: v.expand(*v.shape[:-1], 2) for name, v in everyone.covariates.items()}
    nothing = replace(everyone, covariates=spread)
    found = posterior(model, values, nothing, STREAMS, method, 2000)
    assert found.converged.all()
    for fit in range(2):
        omega = dense_omega(values, fit)
        np.testing.assert_allclose(found.covariance[:, :, 0, fit], omega, rtol=1e-2)
        drawn = np.stack([d[:, 0, fit].numpy() for d in found.draws])
        np.testing.assert_allclose(np.cov(drawn), omega, rtol=0.05)
        assert max(float(m[0, 0, fit].abs()) for m in found.mode) < 1e-8


def test_equations_of_the_most_extreme_proposals_need_no_solution() -> None:
    """Among some thousands of a t distribution there are parameters that overflow."""
    pk = OdeModel(michaelis_menten_rate, ("VM", "KM", "V1"), 1)
    network = CovariateNetwork.build([], ["VM", "KM", "V1"], {})
    model = Model(network, pk, RandomEffects(("VM", "V1")), ResidualError(("additive",)))
    values = model.init(STREAMS[:1], torch.float64)
    for name, typical in (("VM", 300.0), ("KM", 1000.0), ("V1", 5.0)):
        values[f"global.{name}"] = torch.full_like(values[f"global.{name}"], typical)
    values["omega"] = torch.full((2, 1), 0.6, dtype=torch.float64)
    values["correlation"] = torch.zeros((1, 1), dtype=torch.float64)
    population = population_of(1, 1)
    nothing = replace(population, observed=torch.zeros_like(population.observed), ragged=True)
    found = posterior(model, values, nothing, STREAMS[:1], "importance", 1000)
    sd = np.log1p(np.exp(0.6))
    for drawn in found.draws:
        quantiles = np.quantile(drawn[:, 0, 0].numpy(), QUANTILES)
        np.testing.assert_allclose(quantiles, sd * norm.ppf(QUANTILES), atol=0.05 * sd)


@pytest.mark.parametrize("method", METHODS)
def test_neither_other_patients_nor_other_fits_matter(method: str) -> None:
    model, values = two_fits()
    population = population_of(3)
    together = posterior(model, values, population, STREAMS, method, 20)
    patient = population.take(torch.tensor([[1]]))
    patient = replace(patient, covariates={n: v[:, 1:2] for n, v in population.covariates.items()})
    alone = posterior(model, values, patient, STREAMS, method, 20)
    second = {name: value[..., 1:] for name, value in values.items()}
    one = replace(population, covariates={n: v[..., 1:] for n, v in population.covariates.items()})
    of_one = posterior(model, second, one, STREAMS[1:], method, 20)
    for whole, of_patient, of_fit in zip(together.draws, alone.draws, of_one.draws, strict=True):
        torch.testing.assert_close(whole[:, 1:2], of_patient, rtol=0, atol=1e-7)
        torch.testing.assert_close(whole[..., 1:], of_fit, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_many_fits_with_few_draws_of_each_are_as_wide_as_one(method: str) -> None:
    """Pooled, as an ensemble is; of independent draws a quantile has a standard error of 0.11 to 0.18 sd."""
    model, values = two_fits()
    fits = 100
    values = {name: value[..., :1].expand(*value.shape[:-1], fits) for name, value in values.items()}
    population = population_of(1, fits)
    nothing = replace(population, observed=torch.zeros_like(population.observed), ragged=True)
    streams = [Stream(0, fold, 1) for fold in range(1, fits + 1)]
    found = posterior(model, values, nothing, streams, method, 2)
    for drawn in found.draws:
        quantiles = np.quantile(drawn.numpy(), QUANTILES, method="hazen")
        np.testing.assert_allclose(quantiles, 0.3 * norm.ppf(QUANTILES), atol=0.3 * 0.3)


def test_one_random_effect_and_three() -> None:
    for names in (("V1",), ("CL", "V1", "Q")):
        two = len(names) == 1
        pk = one_compartment() if two else two_compartment()
        model = Model(
            CovariateNetwork.build([], list(pk.parameters), {}),
            pk,
            RandomEffects(names),
            ResidualError(("additive",)),
        )
        values = model.init(STREAMS, torch.float64)
        population = population_of(2)
        for method in METHODS:
            found = posterior(model, values, population, STREAMS, method, 50)
            assert [tuple(d.shape) for d in found.draws] == [(50, 2, 2)] * len(names)
            assert all(bool(torch.isfinite(d).all()) for d in found.draws)
            # Around the mode, within what the prior allows.
            sd = found.covariance.diagonal().permute(2, 0, 1).sqrt()
            for d, m, s in zip(found.draws, found.mode, sd, strict=True):
                assert float(((d.mean(0) - m[0]) / s).abs().max()) < 0.5


def test_noise_is_standard_normal_beside_any_stretch_of_draws() -> None:
    noise = residual_noise(STREAMS, 512, torch.float64)[:, 0].numpy()
    for part in (noise, noise[:64], noise[200:264]):
        assert np.abs(part.mean(0)).max() < 0.1
        assert np.abs(part.std(0) - 1).max() < 0.1


def test_another_method_is_refused() -> None:
    model, values = two_fits()
    with pytest.raises(InputError, match="expected one of importance, laplace, variational"):
        posterior(model, values, population_of(1), STREAMS, "exact", 4)
