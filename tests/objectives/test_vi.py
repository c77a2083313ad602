"""Variational inference: gradients, batches, minibatches and options."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import State, Vi
from medcm_cli.study.identity import identity
from medcm_cli.study.options import conf_dir
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from medcm_cli.training.loss import Evaluation
from tests.helpers import STREAMS, make_events, make_population
from tests.objectives.posteriors import BEYOND, F64, known, moved, normal


def gradient(objective: Vi, model: Model, population: Population, state: State, noise: Tensor) -> Tensor:
    leaves = {name: v.clone().requires_grad_() for name, v in state.trained.items()}
    loss = objective.loss(model, population, replace(state, trained=leaves), noise).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


CASES = [
    *[(family, "point", estimator) for family in BEYOND for estimator in ("path_derivative", "standard")],
    *[("full_rank", "variational", estimator) for estimator in ("path_derivative", "standard", "entropy")],
    *[(family, "variational", "path_derivative") for family in BEYOND],
]


@pytest.mark.parametrize(("family", "of_population", "estimator"), CASES)
def test_gradient_is_that_of_the_bound(model: Model, family: str, of_population: str, estimator: str) -> None:
    """Along random directions: finite differences of the ELBO itself, within the Monte Carlo error that eight
    sets of numbers show, which for the standard estimator is none."""
    model, population = known(model, None, None), make_population(2, 1)
    objective = Vi(500, estimator, family, population=of_population)
    value = replace(objective, estimator="standard")
    state = moved(objective.init(model, population, STREAMS[:1], F64))
    g = torch.Generator().manual_seed(3)
    shapes = {name: v.shape for name, v in state.trained.items()}
    directions = [
        {name: torch.randn(shape, generator=g, dtype=F64) for name, shape in shapes.items()} for _ in range(3)
    ]
    got, want = np.zeros((8, 3)), np.zeros((8, 3))
    for number in range(8):
        noise = normal(*objective.noise_shape(model, population), 1, seed=number)
        found = gradient(objective, model, population, state, noise)
        for i, direction in enumerate(directions):
            got[number, i] = found @ torch.cat([d.flatten() for d in direction.values()])
            for h in (1e-5, -1e-5):
                ends = {name: v + h * direction[name] for name, v in state.trained.items()}
                loss = value.loss(model, population, replace(state, trained=ends), noise)
                want[number, i] += float(loss) / (2 * h)
    difference = got - want
    error = difference.std(0, ddof=1) / np.sqrt(8)
    scale = np.abs(want.mean(0))
    assert (np.abs(difference.mean(0)) < 4.5 * error + 1e-6 * scale).all()
    assert (error < 0.1 * scale.max()).all()
    if estimator == "standard":
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * scale.max())


# -- sigma and Omega with a q ----------------------------------------------------------------------


def moments_of(objective: Vi, model: Model, values: Values) -> tuple[Tensor, Tensor]:
    q = objective.population_posterior(model, values)
    assert q is not None
    return q.mean, q.covariance


# -- a fit and its batch ---------------------------------------------------------------------------


WAYS = [("mixture", "point"), ("flow", "point"), ("full_rank", "variational"), ("mixture", "variational")]


@pytest.mark.parametrize(("family", "of_population"), WAYS)
@pytest.mark.parametrize("batch_subjects", [None, pytest.param(5, marks=pytest.mark.slow)])
def test_a_fit_does_not_depend_on_its_batch(
    model: Model, family: str, of_population: str, batch_subjects: int | None
) -> None:
    everyone = Population.from_events(make_events(20, ragged=True), F64)
    folds = [np.arange(12), np.arange(4, 11), np.arange(16)]
    streams = [Stream(1, fold, 1) for fold in range(1, 4)]
    objective = Vi(samples=2, family=family, population=of_population)
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    together = train(
        model, objective, everyone.select(folds), streams, adam, Course(6, 3, batch_subjects), F64
    )
    for fit, stream in enumerate(streams):
        alone = train(
            model,
            objective,
            everyone.select([folds[fit]]),
            [stream],
            adam,
            Course(6, 3, batch_subjects),
            F64,
        )
        torch.testing.assert_close(together.objective[:, fit], alone.objective[:, 0], rtol=1e-9, atol=0)
        ends = [t.layout.unpack(t.checkpoints[-1]) for t in (together, alone)]
        for name, value in ends[1].items():
            own = ends[0][name][..., fit]
            if name in together.state.per_subject:
                own = own[..., : len(folds[fit])]
            torch.testing.assert_close(own, value[..., 0], rtol=1e-8, atol=1e-10, msg=name)
    drawn = objective.draw(model, together.state, streams, 5)
    smaller = replace(together.state, trained=cut(together.state, 1, 7))
    torch.testing.assert_close(drawn[:, :, :7, 1], objective.draw(model, smaller, streams[1:2], 5)[..., 0])


def cut(state: State, fit: int, subjects: int) -> dict[str, Tensor]:
    return {
        name: v[..., :subjects, fit : fit + 1] if name in state.per_subject else v[..., fit : fit + 1]
        for name, v in state.trained.items()
    }


@pytest.mark.parametrize(("family", "of_population"), WAYS)
def test_minibatches_count_the_population_once(model: Model, family: str, of_population: str) -> None:
    """Where every subject has the same numbers for the population parameters, minibatches add up to the
    whole."""
    everyone = Population.from_events(make_events(12, ragged=True), F64)
    population = everyone.select([np.arange(12), np.arange(7)])
    objective = Vi(samples=2, family=family, population=of_population)
    state = objective.init(model, population, STREAMS, F64)
    whole, cut = (Evaluation(model, objective, population, state, STREAMS, F64, size) for size in (None, 4))
    assert whole.noise is not None
    assert cut.noise is not None
    for work in (whole, cut):
        assert work.noise is not None
        work.noise[2:] = work.noise[2:, :, :1].clone()
    flat = whole.layout.pack(state.trained).requires_grad_()
    want = whole.total(flat, state.carried, differentiate=True)
    got = cut.total(flat, state.carried, differentiate=True)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-11, atol=0)
    torch.testing.assert_close(got.gradient, want.gradient, rtol=1e-8, atol=1e-9)
    parts = [cut.part(flat, state.carried, minibatch) for minibatch in cut.minibatches]
    counts = cut.count.to(F64)
    mean = sum(part.gradient / m.share for part, m in zip(parts, cut.minibatches, strict=True)) / counts
    equal = cut.minibatches[0].share[0] * 3 == 1  # fit 1's parts are of one size
    assert bool(equal)
    shared = int((~cut.own_rows).sum())  # which come first
    torch.testing.assert_close(mean[:shared, 0], want.gradient[:shared, 0], rtol=1e-8, atol=1e-9)


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Vi(population="bayes"),
            r"objective.population is 'bayes'; expected point or variational",
        ),
        (lambda: Vi(lkj=0), r"objective.lkj is 0; expected a number above 0"),
        (lambda: Vi(lkj=True), r"objective.lkj is True"),
        (lambda: Vi(components=0), r"objective.components is 0; expected a whole number from 1"),
        (lambda: Vi(family="mixture", estimator="entropy"), r"family=mixture has no closed form"),
        (lambda: Vi(family="flow", estimator="entropy"), r"family=flow has no closed form"),
    ],
)
def test_bad_options_are_named(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_results_of_before_there_were_these_options_stay_valid() -> None:
    objective = OmegaConf.to_container(OmegaConf.load(conf_dir() / "objective" / "vi.yaml"))
    assert isinstance(objective, dict)
    before = {k: v for k, v in objective.items() if k not in ("components", "population", "lkj")}
    assert len(before) == len(objective) - 3
    assert identity({"objective": objective}) == identity({"objective": before})
    for option, value in (("components", 3), ("population", "variational"), ("lkj", 2)):
        assert identity({"objective": {**objective, option: value}}) != identity({"objective": before})
