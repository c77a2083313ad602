"""Families of q: densities, moments, draws, and posteriors that are no Gaussian."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats

from medcm_cli.model import Model
from medcm_cli.objectives import Fo, Iw, State, Vi, families
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from tests.helpers import STREAMS, LinearGaussian, make_population
from tests.objectives.linear import STREAMS as THREE
from tests.objectives.linear import linear_of, population_of
from tests.objectives.posteriors import BEYOND, F64, INITIAL, grid, known, moved, normal, q_of
from tests.objectives.test_vi_population import INITIAL_ZETA, Constant


@pytest.mark.parametrize("family", families.FAMILIES)
def test_density_moments_and_draws_belong_together(family: str) -> None:
    """The density integrates to 1; its mean and covariance are the moments, and those of draws."""
    q = q_of(family, scale=0.8)
    eta, area = grid(6, 601)
    mass = (q.log_density(eta).exp() * area)[:, 0, 0].numpy()
    # A spline's density has kinks, at which the sum over a grid is less exact.
    assert mass.sum() == pytest.approx(1, abs=1e-3 if family == "flow" else 1e-6)
    flat = np.stack([e[:, 0, 0].numpy() for e in eta])
    mean = flat @ mass
    cov = (flat - mean[:, None]) * mass @ (flat - mean[:, None]).T
    got = [m[..., 0, 0].numpy() for m in q.moments()]
    np.testing.assert_allclose(got[0], mean, atol=0.03 if family == "flow" else 1e-4)
    np.testing.assert_allclose(got[1], cov, atol=0.03 if family == "flow" else 1e-3)
    drawn = torch.stack(q.draw(normal(q.numbers, 40_000, 1, 1).unbind(0)))[..., 0, 0].numpy()
    error = np.sqrt(np.diag(cov) / 40_000)
    assert (np.abs(drawn.mean(1) - mean) < 4 * error).all()
    np.testing.assert_allclose(np.cov(drawn), cov, rtol=0.05, atol=0.02 * np.trace(cov))


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_density_at_a_draw_is_the_density_there(family: str, k: int) -> None:
    q = q_of(family, n=3, k=k, scale=0.8)
    eps = normal(k, 6, 3, 1).unbind(0)
    eta = q.points(eps)
    torch.testing.assert_close(q.log_density_at(eps, eta), q.log_density(eta), rtol=1e-9, atol=1e-9)


def test_mixture_against_scipy() -> None:
    values = moved(State(families.init("mixture", 3, STREAMS[:1], (2, 1), F64)), 0.6).trained
    q = families.posterior("mixture", values)
    eta = normal(2, 5, 1, 1)
    weight = special.softmax(values["q.weight"][:, 0, 0].numpy())
    want = np.zeros(5)
    for c in range(3):
        sd = np.log1p(np.exp(values["q.sd"][:, c, 0, 0].numpy()))
        rho = np.tanh(float(values["q.correlation"][0, c, 0, 0]))
        cov = np.array([[sd[0] ** 2, rho * sd[0] * sd[1]], [rho * sd[0] * sd[1], sd[1] ** 2]])
        component = stats.multivariate_normal(values["q.mean"][:, c, 0, 0].numpy(), cov)
        want += weight[c] * component.pdf(eta[:, :, 0, 0].T.numpy())
    np.testing.assert_allclose(q.log_density(eta.unbind(0))[:, 0, 0].exp().numpy(), want, rtol=1e-9)
    weights = q.weights(6)
    assert weights is not None
    np.testing.assert_allclose(weights[:, 0, 0].numpy(), np.repeat(weight / 2, 2))


def test_components_begin_apart() -> None:
    values = families.init("mixture", 3, STREAMS, (2, 4), F64)
    distance = (values["q.mean"][:, :, None] - values["q.mean"][:, None]).norm(dim=0)
    assert bool((distance[torch.triu_indices(3, 3, 1).unbind()] > 1e-3).all())
    shorter = families.init("mixture", 3, STREAMS[1:], (2, 3), F64)
    for name, value in shorter.items():
        assert torch.equal(values[name][..., :3, 1:], value), name


@pytest.mark.parametrize("family", BEYOND)
@pytest.mark.parametrize("estimator", ["path_derivative", "standard"])
def test_equal_components_and_the_identity_are_the_gaussian(
    model: Model, family: str, estimator: str
) -> None:
    population = make_population(4, 2, ragged=True)
    gaussian = Vi(samples=2, estimator=estimator)
    start = moved(gaussian.init(model, population, STREAMS, F64))
    noise = normal(2, 2, 4, 2)
    want = gaussian.loss(model, population, start, noise)
    objective = Vi(samples=2, estimator=estimator, family=family)
    state = objective.init(model, population, STREAMS, F64)
    trained = {**state.trained, **start.trained}
    if family == "mixture":
        for name in ("q.mean", "q.sd", "q.correlation"):
            trained[name] = trained[name][:, None].expand(-1, 2, -1, -1)
        trained["q.weight"] = normal(2, 4, 2)
        noise = torch.cat([noise, noise], 1)
    got = objective.loss(model, population, replace(state, trained=trained), noise)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", BEYOND)
def test_exact_posterior_gives_the_log_marginal_likelihood(model: Model, family: str) -> None:
    """With a linear model; q as good as exact, whatever the noise."""
    linear = LinearGaussian(model.network, model.pk, model.random_effects, model.error)
    population = make_population(3, 1)
    offset, columns = linear.design(population)
    objective = Vi(samples=2, family=family)
    state = objective.init(linear, population, STREAMS[:1], F64)
    lower = linear.omega_cholesky(state.trained)
    omega = np.array([[float(lower[max(i, j)][min(i, j)]) * (j <= i) for j in range(2)] for i in range(2)])
    omega = omega @ omega.T
    sd = float(linear.error.sigmas(state.trained)["additive"])
    want, mean, scale, raw = 0.0, np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3)
    for n in range(3):
        x = np.stack([c[:, 0, n, 0].numpy() for c in columns], 1)
        r = (population.dv - offset)[:, 0, n, 0].numpy()
        want += stats.multivariate_normal(np.zeros(len(r)), x @ omega @ x.T + sd**2 * np.eye(len(r))).logpdf(
            r
        )
        cov = np.linalg.inv(np.linalg.inv(omega) + x.T @ x / sd**2)
        mean[:, n], scale[:, n] = cov @ x.T @ r / sd**2, np.sqrt(np.diag(cov))
        raw[n] = np.arctanh(cov[0, 1] / scale[:, n].prod())
    several = (2,) if family == "mixture" else ()
    trained = dict(state.trained)
    for name, value in (("mean", mean), ("sd", np.log(np.expm1(scale))), ("correlation", raw[None])):
        values = torch.from_numpy(value)[..., None]
        trained[f"q.{name}"] = values[:, None].expand(-1, *several, -1, -1) if several else values
    noise = normal(*objective.noise_shape(linear, population), 1)
    got = objective.loss(linear, population, replace(state, trained=trained), noise)
    assert float(got) == pytest.approx(-want, rel=1e-9)


# -- a posterior that is no Gaussian ---------------------------------------------------------------


@pytest.mark.slow
def test_families_on_a_curved_posterior(model: Model) -> None:
    """One observation a subject and a wide Omega: the ELBO grows with the family and stays below the evidence
    (dense grid); a flow's mean is nearer to the posterior's than a Gaussian's."""
    model = replace(known(model, 0.03, [[1, 0.3], [0.3, 1]]), network=Constant(INITIAL))
    one = make_population(4, 1, seed=3)
    observed = torch.zeros_like(one.observed)
    observed[1] = 1
    population = replace(one, observed=observed, ragged=True)
    eta, area = grid(6, 501)
    wide = [e.expand(-1, 4, 1) for e in eta]
    f = model.predict(INITIAL_ZETA, population, wide)[1]
    likelihood = stats.norm(f.numpy(), 0.03).logpdf(population.dv[1].numpy())
    at = np.stack([e[:, 0, 0].numpy() for e in eta], 1)
    prior = stats.multivariate_normal(np.zeros(2), [[1, 0.3], [0.3, 1]]).logpdf(at)
    joint = likelihood[:, :, 0] + prior[:, None]
    evidence = special.logsumexp(joint, 0) + np.log(area)
    bounds, errors = {}, {}
    mean = np.einsum("sn,sk->kn", np.exp(joint - special.logsumexp(joint, 0)), at)
    for family in ("full_rank", "mixture", "flow"):
        objective = Vi(samples=5, family=family)
        adam = functools.partial(torch.optim.Adam, lr=0.02)
        trained = train(model, objective, population, STREAMS[:1], adam, Course(500, 20), F64)
        tail = trained.layout.unpack(trained.checkpoints[-10:].mean(0))
        value = replace(objective, samples=4000, estimator="standard")
        noise = normal(*value.noise_shape(model, population), 1)
        state = replace(trained.state, trained=tail)
        bounds[family] = -float(value.loss(model, population, state, noise))
        got = objective.random_effects(model, population, state)[0][..., 0].numpy()
        errors[family] = np.abs(got - mean).mean()
    assert bounds["full_rank"] + 0.3 < bounds["mixture"]
    assert bounds["full_rank"] + 0.3 < bounds["flow"]
    assert max(bounds.values()) < evidence.sum() + 0.05
    assert errors["flow"] < errors["full_rank"]


@pytest.mark.parametrize("objective", [Vi(estimator="standard"), Iw()])
def test_near_the_data_q_begins_as_the_posterior(model: Model, objective: Vi | Iw) -> None:
    """Where that is Gaussian the bound is then the likelihood, whatever is drawn."""
    linear = linear_of(model)
    population = population_of(linear)
    state = objective.init(linear, population, THREE, F64)
    trained = {**state.trained, "omega": state.trained["omega"] + 1.5, "sigma": state.trained["sigma"] + 1}
    state = replace(state, trained=trained)
    shape = objective.noise_shape(linear, population)
    noise = torch.randn(*shape, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    exact = Fo().loss(linear, population, State(trained), None) / 2
    exact = exact + population.observation_count * math.log(2 * math.pi) / 2
    began = objective.near(linear, population, state)
    torch.testing.assert_close(objective.loss(linear, population, began, noise), exact, rtol=0, atol=1e-4)
    assert bool((objective.loss(linear, population, state, noise) > exact + 1).all())


def test_an_initial_sd_is_kept_near_the_data(model: Model) -> None:
    linear = linear_of(model)
    population = population_of(linear)
    objective = Vi(initial_sd=0.1)
    state = objective.init(linear, population, THREE, F64)
    assert objective.near(linear, population, state) is state
