"""Fits of several stages: where a fit begins that another objective has led to, and what it goes on with."""

import functools
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Focei, Iw, Objective, Vi
from medcm_cli.training import stages
from medcm_cli.training.beginning import How, begun
from medcm_cli.training.course import Course
from medcm_cli.training.polish import RULE, polished
from medcm_cli.training.stages import fitted
from medcm_cli.training.steppers import MakeOptimizer
from medcm_cli.training.trained import Trained
from tests.helpers import F64
from tests.training.test_coordinates import population_without_variability
from tests.training.test_ending import make_population

STREAMS = [Stream(5, 1, replicate) for replicate in (1, 2)]
ADAM = functools.partial(torch.optim.Adam, lr=0.1, fused=True)
STILL = functools.partial(torch.optim.Adam, lr=1e-12, fused=True)
COURSE = Course(600, 25, log=True, stop=True, near=1)


def fit(
    model: Model,
    objective: Objective,
    course: Course = COURSE,
    polish: bool = True,
    optimizer: MakeOptimizer = ADAM,
) -> Trained:
    population = make_population(8, 2)
    return fitted(model, objective, population, lambda: population, STREAMS, optimizer, course, F64, polish)


def begin_of(model: Model, trained: Trained) -> torch.Tensor:
    """-2 log L by focei, (B,), of what subjects share at the first checkpoint."""
    population = make_population(8, 2)
    state = Focei().init(model, population, STREAMS, F64)
    values = trained.layout.unpack(trained.checkpoints[0])
    state = replace(state, trained={name: values[name] for name in state.trained})
    state = Focei().searched_widely(model, population, state)
    return Focei().loss(model, population, state, None)


@pytest.mark.parametrize("objective", [Iw(), Vi()], ids=["iw", "vi"])
def test_it_begins_at_the_optimum_of_focei(plain: Model, objective: Objective) -> None:
    best = fit(plain, Focei()).ends
    assert best is not None
    trained = fit(plain, objective)
    assert trained.ends is not None
    assert bool(trained.ends.converged.all())
    assert bool((begin_of(plain, trained) < best.objective + 0.1).all())
    rule = trained.ends.rules[0]
    assert RULE in rule if isinstance(objective, Vi) else "0.04 times the learning rate" in rule
    # Two starts that were drawn apart have one end.
    assert float((trained.ends.objective[0] - trained.ends.objective[1]).abs()) < 0.2


@pytest.mark.parametrize(
    ("objective", "course", "polish"),
    [
        (Iw(family="flow"), COURSE, True),  # whose q would be far from where modes say
        (Vi(initial_sd=0.1), COURSE, True),
        (Iw(), replace(COURSE, near=0), True),
        (Iw(), replace(COURSE, stop=False), True),
        (Iw(), COURSE, False),
    ],
)
def test_others_begin_where_they_are_drawn(
    plain: Model, objective: Objective, course: Course, polish: bool
) -> None:
    trained = fit(plain, objective, replace(course, epochs=2), polish, STILL)
    drawn = plain.init(STREAMS, F64)
    values = trained.layout.unpack(trained.checkpoints[0])
    for name, value in drawn.items():
        torch.testing.assert_close(values[name], value)


def test_networks_of_many_values_begin_where_they_are_drawn(model: Model) -> None:
    trained = fit(model, Iw(), replace(COURSE, epochs=2), optimizer=STILL)
    values = trained.layout.unpack(trained.checkpoints[0])
    torch.testing.assert_close(values["sigma"], model.init(STREAMS, F64)["sigma"])


def test_a_fit_that_is_given_nothing_begins_where_it_is_drawn(plain: Model) -> None:
    population = make_population(4, 2)
    given = {"sigma": torch.tensor([[0.25, np.nan]], dtype=F64)}
    how = How(None, log=True, redraws=0, near=False, given=given)
    start = begun(plain, Iw(), population, population, STREAMS, F64, how)
    drawn = plain.init(STREAMS, F64)["sigma"]
    torch.testing.assert_close(
        start.state.trained["sigma"], torch.stack([given["sigma"][0, 0], drawn[0, 1]])[None]
    )


def test_no_fit_begins_without_variability(plain: Model) -> None:
    """Where focei finds that subjects do not differ, and no gradient of another would find that they do."""
    subjects = population_without_variability(2)
    course = replace(COURSE, epochs=1)
    trained = fitted(plain, Iw(), subjects, lambda: subjects, STREAMS, STILL, course, F64, polish=True)
    drawn = torch.nn.functional.softplus(plain.init(STREAMS, F64)["omega"])
    values = trained.layout.unpack(trained.checkpoints[0])
    omega = torch.nn.functional.softplus(values["omega"])
    assert bool((omega >= 0.0999 * drawn).all())
    assert bool((omega < 0.5 * drawn).any())
    assert bool((torch.tanh(values["correlation"]).abs() < 0.9901).all())


@pytest.mark.parametrize(("polish", "seconds"), [(False, 0), (True, 200)])
def test_seconds_are_those_of_all_stages(
    plain: Model, monkeypatch: pytest.MonkeyPatch, polish: bool, seconds: float
) -> None:
    now = [0.0]

    def slowly(*arguments: Any) -> Trained:
        now[0] += 100
        return polished(*arguments)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(stages, "polished", slowly)
    # Twice: at the optimum of focei, and at its own.
    assert fit(plain, Vi(), replace(COURSE, epochs=2), polish, STILL).seconds == seconds
