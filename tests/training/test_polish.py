"""Where the end of an objective with noise is: at the optimum of its profile."""

from dataclasses import replace

import pytest
import torch

from medcm_cli.model import Model
from medcm_cli.numerics.normal import normal_points
from medcm_cli.objectives import Vi
from medcm_cli.training.loop import train
from medcm_cli.training.polish import RULE, polish_of, polished
from tests.helpers import F64
from tests.training.test_ending import ADAM, COURSE, STREAMS, ends_of, make_population


def test_vi_ends_where_the_bound_over_points_has_no_gradient(plain: Model) -> None:
    """From three drawn starts the same optimum, below where random draws had led, q and all."""
    objective, population = Vi(), make_population(8, 3)
    polish = polish_of(plain, objective, population)
    assert polish is not None
    course = replace(COURSE, brief=True, near=1)
    trained = train(plain, objective, population, STREAMS, ADAM, course, F64)
    ends = ends_of(polished(plain, polish, population, STREAMS, trained, log=True))
    assert bool(ends.converged.all())
    assert set(ends.rules) == {f"{RULE}, whose expectation is that over 64 points"}
    assert bool((ends.objective < ends_of(trained).objective + 3 * ends_of(trained).error).all())
    assert float(ends.error.max()) > 0  # of the value, which is that of random draws
    assert float((ends.values - ends.values[:, :1]).abs().max()) < 1e-3
    criterion = objective.criterion(2)
    assert criterion.noise is not None
    values = ends.values.clone().requires_grad_()
    state = replace(trained.state, trained=trained.layout.unpack(values))
    noise = criterion.noise[..., None, None].expand(-1, -1, 8, 3)
    (gradient,) = torch.autograd.grad(criterion.objective.loss(plain, population, state, noise).sum(), values)
    assert float(gradient.abs().max()) < 0.02


def test_an_end_that_new_draws_find_worse_is_none(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over points too far apart for standard normal ones, of which q makes up for by being narrower."""
    monkeypatch.setattr("medcm_cli.objectives.vi._points", lambda effects: 1.5 * normal_points(effects, 8))
    objective, population = Vi(), make_population(8, 3)
    polish = polish_of(plain, objective, population)
    assert polish is not None
    trained = train(plain, objective, population, STREAMS, ADAM, COURSE, F64)
    ends = ends_of(polished(plain, polish, population, STREAMS, trained, log=True))
    assert not bool(ends.converged.any())
    assert torch.equal(ends.values, ends_of(trained).values)
    assert torch.equal(ends.objective, ends_of(trained).objective)
