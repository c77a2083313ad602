"""The profile of the bound of vi: against its definition, an exact likelihood, and gradients of the bound."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import Model
from medcm_cli.objectives import State, Vi
from medcm_cli.objectives.base import Criterion, Objective
from medcm_cli.objectives.profiled import INVERSE
from tests.helpers import F64, STREAMS, LinearGaussian, dense_omega, make_population, with_error

SUBJECTS, FITS = 4, 2


def begun(objective: Vi, model: Model, population: Population) -> tuple[State, State, Objective]:
    """Drawn values, q a little away from where it begins, and the profile that begins there."""
    state = objective.init(model, population, STREAMS, F64)
    g = torch.Generator().manual_seed(5)
    moved = {
        name: value + 0.2 * torch.randn(value.shape, generator=g, dtype=F64) * name.startswith("q.")
        for name, value in state.trained.items()
    }
    state = replace(state, trained=moved)
    profile = objective.profile(model, population)
    assert profile is not None
    shared = {name: value for name, value in state.trained.items() if not name.startswith("q.")}
    own = objective.profiled(model, population, state)
    return state, State(shared, own, tuple(own)), profile.objective


def noise_of(criterion: Criterion) -> Tensor:
    assert criterion.noise is not None
    return criterion.noise[..., None, None].expand(-1, -1, SUBJECTS, FITS)


@pytest.mark.parametrize("family", ["full_rank", "mean_field"])
def test_where_it_begins_it_is_the_bound_of_the_values_there(model: Model, family: str) -> None:
    model = with_error(model, "combined")
    objective = Vi(family=family)
    population = make_population(SUBJECTS, FITS, ragged=True)
    state, begin, profile = begun(objective, model, population)
    criterion = objective.criterion(2)
    want = criterion.objective.loss(model, population, state, noise_of(criterion))
    got = profile.loss(model, population, begin, None)
    torch.testing.assert_close(got, want)
    back = objective.restored(model, population, begin)
    for name, value in back.items():
        torch.testing.assert_close(value, state.trained[name])


@pytest.mark.parametrize("family", ["full_rank", "mean_field"])
def test_q_is_found_where_the_bound_has_no_gradient_in_it(model: Model, family: str) -> None:
    objective, population = Vi(family=family), make_population(SUBJECTS, FITS, ragged=True)
    state, begin, profile = begun(objective, model, population)
    for find in (profile.refresh, profile.searched_widely):
        found = find(model, population, begin)
        values = {**state.trained, **objective.restored(model, population, found)}
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        criterion = objective.criterion(2)
        loss = criterion.objective.loss(model, population, State(leaves), noise_of(criterion))
        gradients = dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values())), strict=True))
        for name, value in gradients.items():
            if name.startswith("q."):
                assert float(value.abs().max()) < 1e-5, name
        unconverged = profile.unconverged(population, found)
        assert unconverged is not None
        assert not bool(unconverged.any())
        # The shared gradient is the whole derivative of the profile: what q does about it is of second order.
        name = "omega"
        ends = []
        for sign in (1, -1):
            step = torch.zeros_like(found.trained[name])
            step[1] = sign * 1e-4
            there = replace(found, trained={**found.trained, name: found.trained[name] + step})
            there = profile.refresh(model, population, there)
            ends.append(profile.loss(model, population, there, None))
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-4, gradients[name][1], rtol=1e-5, atol=1e-6)


def test_of_a_linear_model_it_is_the_exact_likelihood(model: Model) -> None:
    linear = LinearGaussian(model.network, model.pk, model.random_effects, model.error)
    population, objective = make_population(SUBJECTS, FITS), Vi()
    state, begin, profile = begun(objective, linear, population)
    found = profile.refresh(linear, population, begin)
    got = profile.loss(linear, population, found, None)
    offset, columns = linear.design(population)
    for b in range(FITS):
        exact = 0.0
        for n in range(SUBJECTS):
            x = np.stack([column.expand_as(offset)[:, 0, n, b].numpy() for column in columns], 1)
            sigma = np.log1p(np.exp(float(state.trained["sigma"][0, b])))
            c = x @ dense_omega(state.trained, b) @ x.T + sigma**2 * np.eye(len(x))
            y = (population.dv - offset)[:, 0, n, b].numpy()
            exact -= float(stats.multivariate_normal(np.zeros(len(x)), c).logpdf(y))
        assert float(got[b]) == pytest.approx(exact, abs=1e-8)
    mean, covariance = profile.random_effects(linear, population, found) or (None, None)
    assert mean is not None
    assert covariance is not None
    # Its posterior, by scipy for one subject.
    x = np.stack([column.expand_as(offset)[:, 0, 1, 0].numpy() for column in columns], 1)
    sigma = np.log1p(np.exp(float(state.trained["sigma"][0, 0])))
    precision = np.linalg.inv(dense_omega(state.trained, 0)) + x.T @ x / sigma**2
    np.testing.assert_allclose(covariance[:, :, 1, 0].numpy(), np.linalg.inv(precision), rtol=1e-6)


def test_a_nearly_singular_omega_does_no_harm(model: Model) -> None:
    """Of a correlation of 1 - 1e-9, where q is as narrow."""
    population, objective = make_population(SUBJECTS, FITS), Vi()
    _, begin, profile = begun(objective, model, population)
    raw = torch.atanh(torch.tensor(1 - 1e-9, dtype=F64))
    narrow = replace(begin, trained={**begin.trained})
    narrow.trained["correlation"] = torch.full_like(narrow.trained["correlation"], float(raw))
    found = profile.refresh(model, population, narrow)
    unconverged = profile.unconverged(population, found)
    assert unconverged is not None
    assert not bool(unconverged.any())
    # Nothing is far from the case of one random effect less, whose bound scipy finds for one subject.
    loss = profile.loss(model, population, found, None)
    values = {**narrow.trained, **objective.restored(model, population, found)}
    criterion = objective.criterion(2)
    same = criterion.objective.loss(model, population, State(values), noise_of(criterion))
    torch.testing.assert_close(loss, same, rtol=1e-6, atol=1e-5)


def test_each_subject_is_found_as_if_it_were_alone(model: Model) -> None:
    population, objective = make_population(SUBJECTS, FITS, ragged=True), Vi()
    _, begin, profile = begun(objective, model, population)
    whole = profile.refresh(model, population, begin)
    index = torch.tensor([[2, 0], [1, 3]])
    some = {
        name: value.gather(-2, index.expand(*value.shape[:-2], 2, 2)) for name, value in begin.carried.items()
    }
    alone = profile.refresh(model, population.take(index), replace(begin, carried=some))
    for name, value in whole.carried.items():
        if name != INVERSE:
            there = value.gather(-2, index.expand(*value.shape[:-2], 2, 2))
            torch.testing.assert_close(alone.carried[name], there, rtol=1e-6, atol=1e-6)


def test_what_has_no_such_profile(model: Model) -> None:
    population = make_population(SUBJECTS, FITS)
    for objective in (Vi(family="mixture"), Vi(family="flow"), Vi(population="variational")):
        assert objective.profile(model, population) is None
