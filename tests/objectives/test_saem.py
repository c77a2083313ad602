"""Stochastic approximation EM against exact likelihoods and posteriors of a linear-Gaussian model."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize
from torch import Tensor

from medcm_cli.analysis.scores import score
from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Equations, Model, RandomEffects
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Saem, State, chains
from medcm_cli.objectives.modes import find_modes, laplace_covariance
from medcm_cli.study.job import Job
from medcm_cli.training.course import Course
from medcm_cli.training.layout import Layout
from medcm_cli.training.loop import train
from medcm_cli.training.trained import Trained
from tests.helpers import (
    COVARIATES,
    ERROR_MODELS,
    F64,
    SHARED,
    configuration,
    make_events,
    make_population,
    plausible,
)
from tests.objectives.linear import MOVED, STREAMS, Linear, linear_of, population_of


@pytest.fixture
def linear(model: Model) -> Linear:
    return linear_of(model)


@pytest.fixture
def population(linear: Linear) -> Population:
    return population_of(linear)


def run(
    model: Model,
    population: Population,
    objective: Saem | None = None,
    streams: Sequence[Stream] = STREAMS,
    epochs: int = 600,
    **options: object,
) -> Trained:
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    course = Course(epochs, 50, log=True, **options)  # type: ignore[arg-type]
    return train(model, objective or Saem(), population, streams, adam, course, F64)


def optimum(model: Model, population: Population) -> tuple[float, dict[str, np.ndarray]]:
    """The least -2 log L by scipy, and values there."""
    state = Fo().init(model, population, STREAMS, F64)
    names = list(state.trained)
    sizes = [value[..., 0].numel() for value in state.trained.values()]

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(x, requires_grad=True)
        values = {
            name: part.view(*state.trained[name].shape[:-1], 1).expand(*state.trained[name].shape)
            for name, part in zip(names, leaf.split(sizes), strict=True)
        }
        loss = Fo().loss(model, population, State(values), None).mean()
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0].numpy()

    begin = np.concatenate([v[..., 0].reshape(-1).numpy() for v in state.trained.values()])
    found = optimize.minimize(value, begin, jac=True, method="BFGS", options={"gtol": 1e-6})
    parts = np.split(found.x, np.cumsum(sizes)[:-1])
    return float(found.fun), dict(zip(names, parts, strict=True))


def exact(model: Model, population: Population, trained: Trained) -> Tensor:
    """-2 log L at the ends of fits."""
    assert trained.ends is not None
    values = trained.layout.unpack(trained.ends.values)
    return Fo().loss(model, population, State(values), None)


def test_it_ends_at_the_maximum_of_the_likelihood(linear: Linear, population: Population) -> None:
    least, at = optimum(linear, population)
    trained = run(linear, population, epochs=2000, stop=True)
    assert trained.ends is not None
    assert trained.failures == (None,) * 3
    assert bool(trained.ends.converged.all())
    value = exact(linear, population, trained)
    assert bool((value - least).abs().max() < 0.05), value - least
    # What it says that the likelihood is, is that.
    error = trained.ends.error
    assert bool((error > 0).all())
    assert bool((error < 0.5).all())
    assert bool(((trained.ends.objective - value).abs() < 3 * error + 0.05).all())
    values = trained.layout.unpack(trained.ends.values)
    for name in ("global.CL", "global.V1", "global.CL_weight_slope"):
        np.testing.assert_allclose(values[name].numpy(), at[name][0], rtol=0.05, atol=0.03)


def test_the_chains_have_the_posterior(linear: Linear, population: Population) -> None:
    """Values that stay as they are, and many steps of many chains: mean and covariance are the exact ones."""
    objective = Saem(chains=20)
    state = objective.init(linear, population, STREAMS, F64)
    values = {**state.trained, "omega": state.trained["omega"] + 1.5, "sigma": state.trained["sigma"] + 1}
    zero = [torch.zeros(1, 25, 3, dtype=F64)] * 2
    modes = find_modes(linear, values, population, zero, 1e-12, 20).eta
    want = laplace_covariance(linear, values, population, modes)  # exact, of this model
    at = chains.around(linear, values, population, zero, 1e-12, 20)
    g = torch.Generator().manual_seed(4)
    eta: Sequence[Tensor] = [torch.full((20, 25, 3), 5.0, dtype=F64)] * 2  # far off
    kept, fresh, log_mean = [], torch.zeros(1, 25, 3, dtype=torch.bool), []
    for number in range(220):
        noise = torch.randn(chains.numbers(2), 20, 25, 3, generator=g, dtype=F64)
        f = linear.predict(at.peak.zeta, population, eta)
        found = chains.step(linear, values, population, at, eta, fresh, f, noise.unbind(0))
        eta = found.eta
        if number >= 20:
            kept.append(torch.stack(found.eta))
            log_mean.append(found.log_mean)
    drawn = torch.cat(kept, 1)  # (K, S, N, B)
    sd = want.diagonal().permute(2, 0, 1).sqrt()
    mean = torch.cat(modes)
    # Some 2500 independent draws of each subject.
    assert bool(((drawn.mean(1) - mean).abs() < 4.5 * sd / 2500**0.5).all())
    away = drawn - mean[:, None]
    spread = (away[:, None] * away).mean(2)
    assert bool(((spread - want).abs() < 0.13 * sd[:, None] * sd).all())
    # The mean weight of proposals is the likelihood.
    of_subjects = Fo().of_subjects(linear, population, State(values))
    mean_weight = torch.logsumexp(torch.cat(log_mean), 0) - np.log(200)
    torch.testing.assert_close(-2 * mean_weight[None], of_subjects, rtol=0, atol=0.15)


def test_what_is_moved(model: Model, linear: Linear, population: Population) -> None:
    """Networks and parameters without a random effect follow the gradient."""
    assert set(Saem().init(linear, population, STREAMS, F64).moved) == set(MOVED)
    state = Saem().init(model, make_population(4, 3), STREAMS, F64)
    assert set(state.moved) == {"omega", "correlation", "sigma"}
    known = replace(model, random_effects=RandomEffects(("CL", "V1"), fixed=[[0.04, 0.0], [0.0, 0.02]]))
    assert set(Saem().init(known, make_population(4, 3), STREAMS, F64).moved) == {"sigma"}


@pytest.mark.parametrize("error", ["additive", "combined"])
def test_the_gradient_is_that_of_the_likelihood(model: Model, error: str) -> None:
    """Fisher's identity: over many draws, what follows the gradient follows that of the exact likelihood, by
    finite differences of importance sampling with the same numbers."""
    model = replace(model, error=ERROR_MODELS[error])
    population = make_population(5, 2, doses=2)
    objective = Saem(chains=400, exploration=0)
    state = objective.init(model, population, STREAMS[:2], F64)
    state = replace(state, trained=plausible(model), moved=())
    g = torch.Generator().manual_seed(3)
    names = ("global.Q", "global.V2", "weight.heads.bias", "omega")
    total = {name: torch.zeros_like(state.trained[name]) for name in names}
    for number in range(30):
        noise = torch.randn(*objective.refresh_shape(model, population), 2, generator=g, dtype=F64)
        state = objective.refresh(model, population, state, noise)
        leaves = {name: value.clone().requires_grad_() for name, value in state.trained.items()}
        loss = objective.loss(model, population, replace(state, trained=leaves), None).sum()
        gradient = torch.autograd.grad(loss, [leaves[name] for name in names])
        if number >= 5:
            for name, one in zip(names, gradient, strict=True):
                total[name] += one / 25
    for name in names:
        place = (0,) * (state.trained[name].ndim - 1)
        ofv = []
        for shift in (1e-3, -1e-3):
            moved = state.trained[name].clone()
            moved[place] += shift
            there = {**state.trained, name: moved}
            ofv.append(score(model, there, population, STREAMS[:2], "agq").total)
        want = (ofv[0] - ofv[1]) / 2e-3
        torch.testing.assert_close(total[name][place], want, rtol=0.03, atol=0.15)


@pytest.mark.slow
def test_theophylline_ends_where_quadrature_does(tmp_path: Path) -> None:
    """From where the data say, both scored by quadrature."""
    source = SHARED / "data" / "theophylline" / "theophylline.csv"
    if not source.is_file():
        pytest.skip("the data are not beside this checkout (../shared/data/theophylline)")
    table = pd.read_csv(source)
    first = table.groupby("Subject").first().reset_index()
    doses = pd.DataFrame({"id": first["Subject"], "time": 0.0, "amt": first["Dose"] * first["Wt"], "evid": 1})
    levels = pd.DataFrame({"id": table["Subject"], "time": table["Time"], "dv": table["conc"], "evid": 0})
    rows = pd.concat([doses, levels]).sort_values(["id", "evid", "time"], ascending=[True, False, True])
    rows.to_csv(tmp_path / "events.csv", index=False)
    ofv = {}
    for objective in ("saem", "agq"):
        job = Job.build(
            configuration(
                None,
                tmp_path,
                *("dataset=table", f"dataset.path={tmp_path / 'events.csv'}", "dataset.covariates={}"),
                *("dataset.name=theophylline", "dataset.units={time: h, amount: mg, level: mg/L}"),
                *("dataset.bolus_duration=0", "pk=one_compartment_oral", "network=none", "split=all"),
                *("network.global_parameters=[KA,CL,V1]", "random_effects=[KA,CL,V1]", "omega=diagonal"),
                *(f"objective={objective}", "epochs=2000", "dtype=float64", "learning_rate=0.03"),
            )
        )
        ends = job.train([(1, 1)]).ends
        assert ends is not None
        assert bool(ends.converged.all())
        population = job.problem.double([job.problem.folds[1].train])
        state = job.objective.init(job.problem.model, population, STREAMS[:1], F64)
        values = Layout.of(state.trained, last=state.per_subject).unpack(ends.values)
        ofv[objective] = float(score(job.problem.model, values, population, STREAMS[:1], "agq").total)
        if objective == "saem":
            assert float(ends.objective) == pytest.approx(ofv["saem"], abs=4 * float(ends.error) + 0.02)
    assert abs(ofv["saem"] - ofv["agq"]) < 0.1


def test_a_fit_does_not_depend_on_its_batch(model: Model) -> None:
    everyone = Population.from_events(make_events(20, ragged=True), F64)
    folds = [np.arange(12), np.arange(4, 11), np.arange(16)]
    together = run(model, everyone.select(folds), epochs=30)
    for fit, stream in enumerate(STREAMS):
        alone = run(model, everyone.select([folds[fit]]), None, [stream], epochs=30)
        torch.testing.assert_close(alone.checkpoints[..., 0], together.checkpoints[..., fit])
        torch.testing.assert_close(alone.objective[:, 0], together.objective[:, fit])


@pytest.mark.slow
def test_minibatches(linear: Linear, population: Population) -> None:
    """Steps with each minibatch end near the maximum too."""
    least, _ = optimum(linear, population)
    trained = run(linear, population, Saem(exploration=100), epochs=500, batch_subjects=9, stop=True)
    assert trained.failures == (None,) * 3
    assert bool((exact(linear, population, trained) - least < 0.3).all())


def test_its_random_effects_are_the_posteriors(linear: Linear, population: Population) -> None:
    values = linear.init(STREAMS, F64)
    values = {**values, "omega": values["omega"] + 1.5, "sigma": values["sigma"] + 1}
    mean, spread = Saem().random_effects(linear, population, State(values))
    zero = [torch.zeros(1, 25, 3, dtype=F64)] * 2
    modes = find_modes(linear, values, population, zero, 1e-12, 20).eta
    want = laplace_covariance(linear, values, population, modes)
    sd = want.diagonal().permute(2, 0, 1).sqrt()
    assert bool(((mean - torch.cat(modes)).abs() < 0.05 * sd).all())
    assert bool(((spread - want).abs() < 0.06 * sd[:, None] * sd).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"chains": 0}, "objective.chains is 0"), ({"exploration": -1}, "objective.exploration is -1")],
)
def test_what_does_not_fit_is_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Saem(**options)


def test_a_network_in_an_equation(linear: Linear, population: Population) -> None:
    """It learns how CL depends on weight, beside V1, which has no covariate and is moved: levels are likelier
    than any typical values without a covariate make them."""
    others: dict[str, dict[str, Any]] = {
        "V1": {"typical": 2.0},
        **{name: {"typical": {"fixed": 0.5}} for name in ("Q", "V2")},
    }
    constant, learned = (
        replace(linear, network=Equations.build({"CL": {"typical": 1.0, **of}, **others}, COVARIATES))
        for of in ({}, {"weight": {"network": [4]}})
    )
    trained = run(learned, population, epochs=400)
    assert trained.failures == (None,) * 3
    values = trained.layout.unpack(trained.checkpoints[-1])
    value = Fo().loss(learned, population, State(values), None)
    least, _ = optimum(constant, population)
    assert bool((value < least).all()), value - least
