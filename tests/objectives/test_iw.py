"""The importance-weighted bound against its definition, ``Vi``, and exact likelihoods."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model
from medcm_cli.objectives import Iw, State, Vi
from tests.helpers import (
    F64,
    STREAMS,
    LinearGaussian,
    at_eta,
    dense_omega,
    make_population,
    sd_of,
    with_error,
)

SUBJECTS, FITS = 4, 2


def begun(objective: Iw | Vi, model: Model, population: Population) -> State:
    """Initial values with q moved away from its symmetric start."""
    state = objective.init(model, population, STREAMS, F64)
    g = torch.Generator().manual_seed(5)
    moved = {
        name: value + 0.3 * torch.randn(value.shape, generator=g, dtype=F64) * name.startswith("q.")
        for name, value in state.trained.items()
    }
    return replace(state, trained=moved)


def drawn(samples: int) -> Tensor:
    return torch.randn(2, samples, SUBJECTS, FITS, generator=torch.Generator().manual_seed(2), dtype=F64)


def gradient(
    objective: Iw | Vi, model: Model, population: Population, state: State, noise: Tensor
) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in state.trained.items()}
    loss = objective.loss(model, population, replace(state, trained=leaves), noise).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("family", ["full_rank", "mean_field"])
def test_it_is_its_definition(model: Model, family: str) -> None:
    model = with_error(model, "combined")
    population = make_population(SUBJECTS, FITS, ragged=True)
    objective = Iw(samples=3, family=family)
    state, noise = begun(objective, model, population), drawn(3)
    want = np.zeros(FITS)
    dv, seen = population.dv[:, 0].numpy(), population.observed[:, 0].numpy() > 0
    values = state.trained
    for b in range(FITS):
        prior = stats.multivariate_normal(np.zeros(2), dense_omega(values, b))
        for n in range(SUBJECTS):
            sd = np.log1p(np.exp(values["q.sd"][:, n, b].numpy()))
            rho = np.tanh(float(values["q.correlation"][0, n, b])) if family == "full_rank" else 0.0
            lower = np.array([[sd[0], 0], [rho * sd[1], np.sqrt(1 - rho**2) * sd[1]]])
            q = stats.multivariate_normal(values["q.mean"][:, n, b].numpy(), lower @ lower.T)
            terms = []
            for s in range(3):
                eta = np.zeros((2, SUBJECTS, FITS))
                eta[:, n, b] = q.mean + lower @ noise[:, s, n, b].numpy()
                f = at_eta(model, values, population, eta)[seen[:, n, b], n, b]
                levels = stats.norm(f, sd_of(model, values, f, b)).logpdf(dv[seen[:, n, b], n, b]).sum()
                terms.append(levels + prior.logpdf(eta[:, n, b]) - q.logpdf(eta[:, n, b]))
            want[b] -= special.logsumexp(terms) - np.log(3)
    for estimator in ("doubly_reparametrised", "standard"):
        got = replace(objective, estimator=estimator).loss(model, population, state, noise)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-9)


def test_of_one_sample_it_is_vi(model: Model) -> None:
    """Value and gradient, by the path derivative and by the standard estimator."""
    population, noise = make_population(SUBJECTS, FITS, ragged=True), drawn(1)
    for iw, vi in (
        (Iw(samples=1), Vi(samples=1)),
        (Iw(samples=1, estimator="standard"), Vi(samples=1, estimator="standard")),
    ):
        state = begun(vi, model, population)
        torch.testing.assert_close(
            iw.loss(model, population, state, noise), vi.loss(model, population, state, noise)
        )
        torch.testing.assert_close(
            gradient(iw, model, population, state, noise), gradient(vi, model, population, state, noise)
        )


def test_both_gradients_are_the_same_in_expectation_and_the_models_always(model: Model) -> None:
    """That of q by the mean of 20 000 epochs, as fits; doubly reparametrised it is far less noisy."""
    one = make_population(1, 1)
    state = begun(Iw(), model, make_population(1, FITS))
    count = 20_000
    population = one.select([np.array([0])] * count)
    trained = {n: v[..., :1].expand(*v.shape[:-1], count) for n, v in state.trained.items()}
    noise = torch.randn(2, 8, 1, count, generator=torch.Generator().manual_seed(3), dtype=F64)
    found = {
        estimator: gradient(Iw(estimator=estimator), model, population, State(trained), noise)
        for estimator in ("doubly_reparametrised", "standard")
    }
    doubly, standard = found.values()
    for name, value in doubly.items():
        if not name.startswith("q."):
            torch.testing.assert_close(value, standard[name])
            continue
        a, b = (of[name].reshape(-1, count) for of in (doubly, standard))
        error = ((a.var(1) + b.var(1)) / count).sqrt()
        assert bool(((a.mean(1) - b.mean(1)).abs() < 4 * error).all()), name
        assert bool((a.var(1) < b.var(1)).all()), name


def test_it_tightens_and_stays_a_bound_of_the_exact_likelihood(model: Model) -> None:
    """A linear model, an arbitrary q, and 2 000 epochs, as fits."""
    linear = LinearGaussian(model.network, model.pk, model.random_effects, model.error)
    count = 2000
    one = make_population(1, 1)
    state = begun(Iw(), linear, make_population(1, FITS))
    offset, columns = linear.design(one)
    x = np.stack([column[:, 0, 0, 0].numpy() for column in columns], 1)
    sigma = np.log1p(np.exp(float(state.trained["sigma"][0, 0])))
    c = x @ dense_omega(state.trained, 0) @ x.T + sigma**2 * np.eye(len(x))
    exact = -stats.multivariate_normal(np.zeros(len(x)), c).logpdf((one.dv - offset)[:, 0, 0, 0].numpy())
    trained = {n: v[..., :1].expand(*v.shape[:-1], count) for n, v in state.trained.items()}
    population = one.select([np.array([0])] * count)
    means = []
    for samples in (1, 8, 64):
        noise = torch.randn(2, samples, 1, count, generator=torch.Generator().manual_seed(4), dtype=F64)
        bound = Iw(samples=samples).loss(linear, population, State(trained), noise)
        assert float(bound.mean() + 3 * bound.std() / count**0.5) >= exact
        means.append(float(bound.mean()))
    assert Iw().describe().per_observation == pytest.approx(np.log(2 * np.pi) / 2)
    assert means[0] > means[1] > means[2]
    assert means[2] - exact < 0.1 * (means[0] - exact)


def test_its_random_effects_are_the_posteriors_and_not_qs(model: Model) -> None:
    """q half as wide again as the posterior, and off by a third of its sd."""
    linear = LinearGaussian(model.network, model.pk, model.random_effects, model.error)
    population = make_population(SUBJECTS, FITS, ragged=True)
    values = dict(begun(Iw(), linear, population).trained)
    offset, columns = linear.design(population)
    want_mean, want = np.zeros((2, SUBJECTS, FITS)), np.zeros((2, 2, SUBJECTS, FITS))
    for n, b in np.ndindex(SUBJECTS, FITS):
        rows = population.observed[:, 0, n, b].numpy() > 0
        x = np.stack([column[:, 0].numpy()[rows, n, b] for column in columns], 1)
        r = (population.dv - offset)[:, 0, n, b].numpy()[rows]
        sigma = np.log1p(np.exp(float(values["sigma"][0, b])))
        cov = np.linalg.inv(np.linalg.inv(dense_omega(values, b)) + x.T @ x / sigma**2)
        want_mean[:, n, b], want[..., n, b] = cov @ x.T @ r / sigma**2, cov
    sd = np.sqrt(np.diagonal(want).transpose(2, 0, 1))
    values["q.mean"] = torch.from_numpy(want_mean + sd / 3)
    values["q.sd"] = torch.from_numpy(np.log(np.expm1(1.5 * sd)))
    values["q.correlation"] = torch.from_numpy(np.arctanh(want[1, 0] / (sd[0] * sd[1])))[None]
    mean, spread = Iw().random_effects(linear, population, State(values))
    assert bool((np.abs(mean.numpy() - want_mean) < 0.05 * sd).all())
    assert bool((np.abs(spread.numpy() - want) < 0.05 * sd[:, None] * sd).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "objective.samples is 0"),
        ({"family": "mixture"}, "objective.family"),
        ({"estimator": "entropy"}, "objective.estimator"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Iw(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="objective=iw is no function without noise"):
        Iw().criterion(2)
