"""The observed information against closed forms, brute-force differences and integration on a grid."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.nn.functional import softplus

from medcm_cli.analysis.information import Optimum, optimum, separate
from medcm_cli.data import Population, read_events
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import Settings, TrueParameters, write_study
from medcm_cli.model import Model, RandomEffects, ResidualError
from medcm_cli.numerics.normal import normal_points
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Agq, Fo, Foce, Mse, Objective, State, Vi
from medcm_cli.pk import two_compartment
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from tests.helpers import COVARIATES, LinearGaussian, make_population

F64 = torch.float64
OBJECTIVES = [Fo(), Foce(), Foce("linearised"), Vi()]
NAMES = ["fo", "foce", "foce9", "vi"]


def known(kind: type[Model] = Model) -> Model:
    """Nothing but sigma, omega and the correlation is estimated, in this order."""
    parts = TrueParameters(COVARIATES), two_compartment(), RandomEffects(("CL", "V1"))
    return kind(*parts, ResidualError(("additive",)))


def trained(
    model: Model, objective: Objective, everyone: Population, fits: list[np.ndarray]
) -> tuple[Population, State]:
    """A short fit."""
    population, streams = everyone.select(fits), [Stream(0, 1, n) for n in range(len(fits))]
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    return population, train(model, objective, population, streams, adam, Course(80, 80), F64).state


def found(model: Model, objective: Objective, everyone: Population, fits: list[np.ndarray]) -> Optimum:
    population, state = trained(model, objective, everyone, fits)
    subjects, theta, own, carried = separate(model, objective.criterion(2), everyone, population, state)
    best = optimum(subjects, theta, own, carried, torch.ones(4, dtype=torch.bool))
    assert bool(best.found.all())
    return best


# -- a model that is linear in eta -----------------------------------------------------------------


@pytest.fixture
def linear_data() -> tuple[Model, Population]:
    """Thirty subjects with one to three observations each, of the model."""
    model = known(LinearGaussian)
    assert isinstance(model, LinearGaussian)
    population = make_population(30, 1, ragged=True)
    offset, columns = model.design(population)
    generator = torch.Generator().manual_seed(4)
    eta = torch.randn(2, 1, 30, 1, generator=generator, dtype=F64) * 0.4
    noise = 0.1 * torch.randn(offset.shape, generator=generator, dtype=F64)
    return model, replace(population, dv=offset + columns[0] * eta[0] + columns[1] * eta[1] + noise)


def log_marginals(model: Model, population: Population, fit: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Of raw sigma, omega and correlation (4,), the log marginal likelihood of each subject of a fit, by the
    covariance of its observations."""
    assert isinstance(model, LinearGaussian)
    offset, columns = model.design(population)

    x = torch.stack([c[:, 0, fit, 0] for c in columns], -1).transpose(0, 1)  # (N, T, K)
    seen = population.observed[:, 0, fit, 0].T
    residual = (population.dv - offset)[:, 0, fit, 0].T * seen

    def of(raw: Tensor) -> Tensor:
        sigma, sd, rho = softplus(raw[0]), softplus(raw[1:3]), torch.tanh(raw[3])
        correlation = torch.stack([torch.ones_like(rho), rho, rho, torch.ones_like(rho)]).view(2, 2)
        c = x @ (sd[:, None] * correlation * sd) @ x.mT * seen[:, None] * seen[:, :, None]
        c = c + torch.diag_embed(sigma**2 * seen + 1 - seen)  # what is missing adds a constant
        density: Tensor = MultivariateNormal(torch.zeros_like(residual), c).log_prob(residual)
        return density

    return of


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_linear_model_has_the_information_of_its_exact_likelihood(
    linear_data: tuple[Model, Population], objective: Objective
) -> None:
    model, everyone = linear_data
    fits = [np.arange(30), np.r_[np.arange(20), 3, 3]]  # one subject three times
    best = found(model, objective, everyone, fits)
    for b, fit in enumerate(fits):
        exact, at = log_marginals(model, everyone, fit), best.theta[:, b]
        scores = torch.autograd.functional.jacobian(exact, at)
        hessian = torch.autograd.functional.hessian(lambda raw, exact=exact: -exact(raw).sum(), at)
        score = scores.sum(0)
        assert float(score @ torch.linalg.solve(hessian, score)) < 1e-6  # squared decrement
        # The search ends within DECREMENT = 1e-3 standard errors, for VI in q too.
        for got, want in ((best.information[b], hessian), (best.outer[b], scores.T @ scores)):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-3 * float(want.abs().max()))


def test_a_mean_field_q_claims_more_information(linear_data: tuple[Model, Population]) -> None:
    """Its ELBO is below the likelihood, and more so the wider the random effects: it is another function."""
    model, everyone = linear_data
    full, mean_field = (
        found(model, Vi(family=f), everyone, [np.arange(30)]) for f in ("full_rank", "mean_field")
    )
    assert float((full.theta - mean_field.theta).abs().max()) > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_a_fit_alone_has_what_it_has_in_a_batch(
    linear_data: tuple[Model, Population], objective: Objective
) -> None:
    model, everyone = linear_data
    fits = [np.arange(12, 30), np.arange(25)]
    together, alone = (
        found(model, objective, everyone, fits),
        found(model, objective, everyone, fits[:1]),
    )
    torch.testing.assert_close(alone.theta[:, 0], together.theta[:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alone.information[0], together.information[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alone.decrement[0], together.decrement[0], rtol=1e-4, atol=1e-8)


# -- the compartment model -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("formulation", ["joint", "linearised"])
def test_foce_information_is_that_of_its_profile(formulation: str) -> None:
    """By second differences of the loss itself, with modes found anew at every point."""
    model, everyone = known(), make_population(5, 1)
    objective = Foce(formulation)
    population, state = trained(model, objective, everyone, [np.arange(5)])
    subjects, theta, own, carried = separate(model, objective.criterion(2), everyone, population, state)
    got, _ = subjects.curvature(theta, own, carried, torch.ones(4, dtype=torch.bool))
    exact = replace(objective, mode_tolerance=1e-11, mode_iterations=300)
    values = {"sigma": theta[:1], "omega": theta[1:3], "correlation": theta[3:]}

    def half_loss(raw: np.ndarray) -> float:
        moved = {
            name: torch.from_numpy(raw[rows])[:, None]
            for name, rows in (("sigma", [0]), ("omega", [1, 2]), ("correlation", [3]))
        }
        state = exact.init(model, everyone, [Stream(0, 1, 1)], F64)
        state = exact.refresh(model, everyone, State(moved, state.carried))
        return float(exact.loss(model, everyone, state, None)) / 2

    here, h = theta[:, 0].numpy(), 2e-3
    want = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            ends = [(a, b) for a in (1, -1) for b in (1, -1)]
            want[i, j] = sum(
                a * b * half_loss(here + h * (a * np.eye(4)[i] + b * np.eye(4)[j])) for a, b in ends
            )
    assert list(values) == list(subjects.layout.names)
    np.testing.assert_allclose(got.information[0].numpy(), want / (4 * h * h), rtol=2e-3, atol=2e-2)


def test_estimates_and_information_beside_integration_on_a_grid(tmp_path: Path) -> None:
    """Forty simulated subjects; the likelihood by summing over a dense grid of eta in numpy."""
    write_study(tmp_path / "data", Settings(n=40, seed=3, folds=0))
    columns = {name: str(entry["column"]) for name, entry in COVARIATES.items()}
    everyone = Population.from_events(read_events(tmp_path / "data" / "simulation.parquet", columns), F64)
    model, step = known(), 0.04
    axis = np.arange(-0.9, 0.9 + step / 2, step)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    with torch.no_grad():
        eta = [torch.from_numpy(part)[:, None, None] for part in grid.T]
        prediction = model.predict(model.typical({}, everyone), everyone, eta)[..., 0].numpy()
    squared = ((everyone.dv[..., 0].numpy() - prediction) ** 2).sum(0)  # (S, N)

    def minus_log_likelihood(raw: np.ndarray) -> float:
        sigma, *sd = np.log1p(np.exp(raw[:3]))
        off = np.tanh(raw[3]) * sd[0] * sd[1]
        omega = np.array([[sd[0] ** 2, off], [off, sd[1] ** 2]])
        prior = -0.5 * np.einsum("si,ij,sj->s", grid, np.linalg.inv(omega), grid)
        log_prior = prior - 0.5 * np.linalg.slogdet(2 * np.pi * omega)[1] + 2 * np.log(step)
        inside = log_prior[:, None] - 0.5 * squared / sigma**2 - 3 * np.log(sigma)
        return float(-np.logaddexp.reduce(inside, 0).sum())

    start = [-3.5, -1.5, -1.9, 0.5]
    best = optimize.minimize(minus_log_likelihood, start, method="BFGS", options={"gtol": 1e-4})
    # The likelihood of the coverage experiment is this one too.
    sizes = ("sigma", 1), ("omega", 2), ("correlation", 1)
    parts = torch.from_numpy(best.x)[:, None].split([size for _, size in sizes])
    values = {name: part for (name, _), part in zip(sizes, parts, strict=True)}
    agq = Agq(nodes=9)
    placed = replace(agq.init(model, everyone, [Stream(0, 1, 1)], F64), trained=values)
    placed = agq.refresh(model, everyone, placed)
    loss = agq.loss(model, everyone, placed, None).detach()
    assert float(loss) == pytest.approx(2 * best.fun, abs=2e-3)
    h, unit = 1e-2, np.eye(4)
    hessian = np.array(
        [
            [
                sum(
                    a * b * minus_log_likelihood(best.x + h * (a * unit[i] + b * unit[j]))
                    for a in (1, -1)
                    for b in (1, -1)
                )
                / (4 * h * h)
                for j in range(4)
            ]
            for i in range(4)
        ]
    )
    se = np.sqrt(np.diag(np.linalg.inv(hessian)))
    # FO linearises at eta = 0 and is the least exact.
    for objective, shift, ratio in ((Vi(), 0.05, 0.02), (Foce(), 0.15, 0.02), (Fo(), 0.6, 0.1)):
        got = found(model, objective, everyone, [np.arange(40)])
        own = torch.linalg.inv(got.information[0]).diagonal().sqrt().numpy()
        assert np.abs((got.theta[:, 0].numpy() - best.x) / se).max() < shift
        np.testing.assert_allclose(own, se, rtol=ratio)


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimensions", "count"), [(1, 16), (2, 64), (3, 64)])
def test_normal_points_have_the_moments_of_a_normal(dimensions: int, count: int) -> None:
    points = normal_points(dimensions, count).numpy()
    assert points.shape == (dimensions, count)
    np.testing.assert_allclose(points @ points.T / count, np.eye(dimensions), atol=1e-12)
    np.testing.assert_allclose((points**3).mean(1), 0, atol=1e-12)
    np.testing.assert_allclose((points**4).mean(1), 3, rtol=0.3)
    np.testing.assert_allclose(np.exp(0.3 * points).mean(1), np.exp(0.045), rtol=1e-3)


@pytest.mark.parametrize(("objective", "why"), [(Mse(), "no likelihood"), (Vi(family="flow"), "family=flow")])
def test_what_has_no_information_is_refused(objective: Objective, why: str) -> None:
    with pytest.raises(InputError, match=why):
        objective.criterion(2)
