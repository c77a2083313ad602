"""Observations below the limit of quantification: the M3 likelihood against scipy, subject by subject."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.objectives import Fo, Foce, Mse, Objective, State, Vi
from medcm_cli.objectives.modes import find_modes, laplace_covariance
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from tests.helpers import ERRORS, F64, STREAMS, dense_omega, make_population, with_error

LIMIT = 0.21
SUBJECTS, FITS = 7, 2


def below_the_limit(population: Population) -> Population:
    """Levels below LIMIT are known to be there, and no more."""
    below = ((population.dv < LIMIT) & (population.observed > 0)).to(population.dv.dtype)
    assert 3 <= int(below[..., 0].sum()) <= int(population.observed[..., 0].sum()) - 3
    return replace(population, dv=torch.where(below > 0, LIMIT, population.dv), censored=below)


def given(model: Model, error: str) -> tuple[Model, Population]:
    population = below_the_limit(make_population(SUBJECTS, FITS, ragged=True))
    return with_error(model, error), population


class Subject:
    """One subject of one fit, by numpy and scipy."""

    def __init__(self, model: Model, values: Values, population: Population, n: int, b: int) -> None:
        self.model, self.values, self.population, self.n, self.b = model, values, population, n, b
        self.rows = population.observed[:, 0, n, b].numpy() > 0
        self.dv = population.dv[self.rows, 0, n, b].numpy()
        assert population.censored is not None
        self.below = population.censored[self.rows, 0, n, b].numpy() > 0
        self.omega = dense_omega(dict(values), b)
        sigma = np.log1p(np.exp(values["sigma"][:, b].numpy()))
        self.sigma = dict(zip(model.error.components, sigma, strict=True))

    def f(self, eta: np.ndarray) -> np.ndarray:
        full = torch.zeros(2, 1, *self.population.shape[1:], dtype=F64)
        full[:, 0, self.n, self.b] = torch.as_tensor(eta)
        zeta = self.model.typical(self.values, self.population)
        level = self.model.predict(zeta, self.population, list(full))
        return level[self.rows, 0, self.n, self.b].numpy()

    def sd(self, f: np.ndarray) -> np.ndarray:
        return np.asarray(self.sigma.get("additive", 0.0) + self.sigma.get("proportional", 0.0) * f)

    def log_likelihood(self, eta: np.ndarray) -> float:
        """Normal constants left out."""
        f = self.f(eta)
        z = (self.dv - f) / self.sd(f)
        return float(np.where(self.below, stats.norm.logcdf(z), -np.log(self.sd(f)) - z**2 / 2).sum())

    def prior(self, eta: np.ndarray) -> float:
        return float(eta @ np.linalg.solve(self.omega, eta))

    def slopes(self, eta: np.ndarray) -> np.ndarray:
        steps = 1e-5 * np.eye(2)
        return np.stack([(self.f(eta + h) - self.f(eta - h)) / 2e-5 for h in steps], 1)

    def weights(self, eta: np.ndarray) -> np.ndarray:
        """Information of each observation on its prediction, its sd held fixed."""
        f = self.f(eta)
        z = (self.dv - f) / self.sd(f)
        rate = np.exp(stats.norm.logpdf(z) - stats.norm.logcdf(z))
        return np.asarray(np.where(self.below, rate * (rate + z), 1.0) / self.sd(f) ** 2)

    def joint(self, eta: np.ndarray) -> float:
        """Laplace's approximation with first derivatives of f, as Eq. s10 has it without censoring."""
        g = self.slopes(eta)
        information = np.eye(2) + self.omega @ g.T @ np.diag(self.weights(eta)) @ g
        return float(np.linalg.slogdet(information)[1]) - 2 * self.log_likelihood(eta) + self.prior(eta)


def everyone(model: Model, values: Values, population: Population) -> list[Subject]:
    """Fit by fit."""
    return [Subject(model, values, population, n, b) for b in range(FITS) for n in range(SUBJECTS)]


def per_fit(values: Sequence[float]) -> np.ndarray:
    return np.asarray(np.reshape(values, (FITS, SUBJECTS)).sum(1))


@pytest.mark.parametrize("error", ERRORS)
def test_foce_at_its_modes(model: Model, error: str) -> None:
    model, population = given(model, error)
    objective = Foce(mode_tolerance=1e-9)
    state = objective.refresh(model, population, objective.init(model, population, STREAMS, F64))
    eta = state.carried["eta"].numpy()
    got = objective.loss(model, population, state, None).detach().numpy()
    want = [s.joint(eta[:, s.n, s.b]) for s in everyone(model, state.trained, population)]
    np.testing.assert_allclose(got, per_fit(want), rtol=1e-6)


@pytest.mark.parametrize("error", ERRORS)
def test_modes_equal_scipys(model: Model, error: str) -> None:
    model, population = given(model, error)
    state = Foce().init(model, population, STREAMS, F64)
    start = [torch.zeros(1, SUBJECTS, FITS, dtype=F64)] * 2
    modes = find_modes(model, state.trained, population, start, 1e-10, 200)
    assert bool(modes.converged.all())
    eta = torch.cat(modes.eta).numpy()
    for subject in everyone(model, state.trained, population):

        def value(e: np.ndarray, subject: Subject = subject) -> float:
            return subject.prior(e) - 2 * subject.log_likelihood(e)

        found = optimize.minimize(
            value,
            np.zeros(2),
            method="L-BFGS-B",
            bounds=[(-3, 3)] * 2,
            options={"ftol": 1e-15, "gtol": 1e-9},
        )
        got = eta[:, subject.n, subject.b]
        np.testing.assert_allclose(got, found.x, atol=3e-5)
        assert value(got) <= found.fun + 1e-8 * abs(found.fun)


def test_laplace_covariance(model: Model) -> None:
    model, population = given(model, "additive")
    objective = Foce(mode_tolerance=1e-9)
    state = objective.refresh(model, population, objective.init(model, population, STREAMS, F64))
    eta = state.carried["eta"]
    got = laplace_covariance(model, state.trained, population, eta.split(1)).numpy()
    for subject in everyone(model, state.trained, population):
        at = eta[:, subject.n, subject.b].numpy()
        g = subject.slopes(at)
        information = np.linalg.inv(subject.omega) + g.T @ np.diag(subject.weights(at)) @ g
        want = np.linalg.inv(information)
        np.testing.assert_allclose(got[:, :, subject.n, subject.b], want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("error", ERRORS)
def test_vi_equals_its_definition(model: Model, error: str) -> None:
    model, population = given(model, error)
    objective = Vi(samples=2)
    state = objective.init(model, population, STREAMS, F64)
    noise = torch.randn(2, 2, SUBJECTS, FITS, generator=torch.Generator().manual_seed(2), dtype=F64)
    got = objective.loss(model, population, state, noise).numpy(force=True)
    rho = np.tanh(state.trained["q.correlation"].numpy()[0])
    sd = np.log1p(np.exp(-1.0))
    want = []
    for s in everyone(model, state.trained, population):
        r = rho[s.n, s.b]
        lower = sd * np.array([[1, 0], [r, np.sqrt(1 - r**2)]])
        q = stats.multivariate_normal(np.zeros(2), lower @ lower.T)
        prior = stats.multivariate_normal(np.zeros(2), s.omega)
        etas = [lower @ noise[:, sample, s.n, s.b].numpy() for sample in range(2)]
        constants = -0.5 * np.log(2 * np.pi) * (~s.below).sum()
        elbos = [s.log_likelihood(eta) + constants + prior.logpdf(eta) - q.logpdf(eta) for eta in etas]
        want.append(-np.mean(elbos))
    np.testing.assert_allclose(got, per_fit(want), rtol=1e-9)


def test_mse_leaves_them_out(model: Model) -> None:
    model, population = given(model, "additive")
    state = Mse().init(model, population, STREAMS, F64)
    f = model.predict(model.typical(state.trained, population), population)[:, 0].numpy()
    assert population.censored is not None
    counts = ((population.observed > 0) & (population.censored == 0))[:, 0].numpy()
    squared = np.where(counts, (f - population.dv[:, 0].numpy()) ** 2, 0)
    got = Mse().loss(model, population, state, None).numpy()
    np.testing.assert_allclose(got, squared.sum((0, 1)) / counts.sum((0, 1)), rtol=1e-12)


@pytest.mark.parametrize("objective", [Fo(), Foce("linearised")], ids=["fo", "foce9"])
def test_what_needs_a_normal_density_refuses_them(model: Model, objective: Objective) -> None:
    model, population = given(model, "additive")
    with pytest.raises(InputError, match=r"choose objective=foce \(joint\) or vi"):
        objective.init(model, population, STREAMS, F64)
    seen = replace(population, censored=None)
    assert bool(torch.isfinite(objective.init(model, seen, STREAMS, F64).trained["omega"]).all())


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("objective", [Foce(), Vi(estimator="standard"), Mse()], ids=["foce", "vi", "mse"])
def test_gradient_equals_finite_difference(model: Model, error: str, objective: Objective) -> None:
    model, population = given(model, error)
    state = objective.refresh(model, population, objective.init(model, population, STREAMS, F64))
    noise = torch.randn(2, 3, SUBJECTS, FITS, generator=torch.Generator().manual_seed(2), dtype=F64)
    leaves = {name: value.clone().requires_grad_() for name, value in state.trained.items()}

    def loss(trained: Values) -> torch.Tensor:
        return objective.loss(model, population, replace(state, trained=dict(trained)), noise).sum()

    gradient = torch.autograd.grad(loss(leaves), list(leaves.values()))
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = [torch.randn(v.shape, generator=g, dtype=F64) for v in leaves.values()]
        want = float(sum((a * b).sum() for a, b in zip(gradient, direction, strict=True)))
        ends = [
            loss(
                {k: v.detach() + sign * 1e-6 * d for (k, v), d in zip(leaves.items(), direction, strict=True)}
            )
            for sign in (1, -1)
        ]
        assert float(ends[0] - ends[1]) / 2e-6 == pytest.approx(want, rel=2e-5)


@pytest.mark.parametrize("objective", [Foce(), Vi()], ids=["foce", "vi"])
def test_float32_far_above_the_limit(model: Model, objective: Objective) -> None:
    """Typical levels a thousand sds and more above the limit, as an initialisation may have them."""
    population = below_the_limit(make_population(SUBJECTS, 1, dtype=torch.float32))
    assert population.censored is not None
    far = replace(population, dv=torch.where(population.censored > 0, 1e-5, population.dv))
    start = objective.init(model, far, STREAMS[:1], torch.float32)
    raw = torch.full_like(start.trained["sigma"], -9.0)  # sigma 1.2e-4
    leaves = {**start.trained, "sigma": raw}
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    state = objective.refresh(model, far, replace(start, trained=leaves))
    noise = torch.zeros(2, 3, SUBJECTS, 1)
    loss = objective.loss(model, far, state, noise)
    wide = below_the_limit(make_population(SUBJECTS, 1))
    wide = replace(wide, dv=far.dv.double())
    doubles = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
    carried = {name: value.double() for name, value in state.carried.items()}
    exact = objective.loss(model, wide, State(doubles, carried), noise.double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)
    for rounded, value in zip(
        torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True),
        torch.autograd.grad(exact.sum(), list(doubles.values()), allow_unused=True),
        strict=True,
    ):
        if rounded is not None and value is not None:
            scale = float(value.abs().max())
            torch.testing.assert_close(rounded.double(), value, rtol=1e-2, atol=2e-3 * scale)


def test_censoring_moves_estimates_less_than_pretending(model: Model) -> None:
    """Fitted to data of which everything below the limit is set to it, the level there is too high; with M3
    it is nearly that of the complete data."""
    complete = make_population(20, 1)
    censored = below_the_limit(complete)
    pretended = replace(censored, censored=None)
    adam = functools.partial(torch.optim.Adam, lr=0.05)

    def low(population: Population) -> float:
        trained = train(model, Vi(), population, STREAMS[:1], adam, Course(150, 150), F64)
        prediction = model.predict(model.typical(trained.state.trained, complete), complete)
        return float(prediction[2].mean())  # the last observation, 48 h after the dose

    levels: Sequence[float] = [low(population) for population in (complete, censored, pretended)]
    assert abs(levels[1] - levels[0]) < 0.5 * abs(levels[2] - levels[0])
