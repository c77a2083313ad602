"""Minibatches of subjects add up to the whole, train to the same optimum, and depend on their own fit
alone."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.data import Population
from medcm_cli.model import CovariateNetwork, Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Foce, Iw, Laplace, Mse, Objective, State, Vi
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from medcm_cli.training.loss import Evaluation
from medcm_cli.training.trained import Trained
from tests.helpers import make_events, make_population, schedule_of

F64 = torch.float64
STREAMS = [Stream(0, 1, 1), Stream(0, 1, 2)]
OBJECTIVES = {
    "mse": Mse(),
    "fo": Fo(),
    "foce": Foce(mode_tolerance=1e-9),
    "implicit": Foce(mode_tolerance=1e-9, mode_gradient="implicit"),
    "laplace": Laplace(mode_tolerance=1e-9),
    "iw": Iw(),
    "vi": Vi(),
}


def run(
    model: Model,
    objective: Objective,
    population: Population,
    streams: list[Stream],
    batch_subjects: int | None,
    epochs: int = 50,
    lr: float = 0.05,
    every: int = 25,
) -> Trained:
    adam = functools.partial(torch.optim.Adam, lr=lr)
    return train(model, objective, population, streams, adam, Course(epochs, every, batch_subjects), F64)


def evaluation(
    model: Model, objective: Objective, population: Population, batch_subjects: int | None
) -> tuple[Evaluation, Tensor, State]:
    state = objective.init(model, population, STREAMS, F64)
    work = Evaluation(model, objective, population, state, STREAMS, F64, batch_subjects)
    return work, work.layout.pack(state.trained).requires_grad_(), state


def test_every_subject_is_in_one_minibatch_of_an_epoch(model: Model) -> None:
    everyone = Population.from_events(make_events(23), F64)
    population = everyone.select([np.arange(23), np.arange(9)])
    work, _, _ = evaluation(model, Fo(), population, 5)
    assert work.count.tolist() == [5, 2]
    orders = []
    for _ in range(4):
        for fit, size in enumerate((23, 9)):
            members = [m.index[:, fit][m.index[:, fit] < 23].tolist() for m in work.minibatches]
            assert sorted(sum(members, [])) == list(range(size))  # noqa: RUF017
            sizes = [len(m) for m in members[: int(work.count[fit])]]
            assert max(sizes) <= 5
            assert max(sizes) - min(sizes) <= 1
            shares = [float(m.share[fit]) for m in work.minibatches][: len(sizes)]
            np.testing.assert_allclose(shares, np.array(sizes) / size)
            if fit == 0:
                orders.append(tuple(sum(members, [])))  # noqa: RUF017
        work.draw()
    assert len(set(orders)) == 4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_minibatches_add_up_to_the_whole(model: Model, name: str) -> None:
    """The mean of a partition's gradients is that of the whole, and so is the sum of what they add to the
    loss; subjects have as many observations as they like."""
    population = make_population(12, 2, ragged=True)
    whole, flat, state = evaluation(model, OBJECTIVES[name], population, None)
    cut, _, _ = evaluation(model, OBJECTIVES[name], population, 4)
    want = whole.total(flat, state.carried, differentiate=True)
    got = cut.total(flat, state.carried, differentiate=True)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.gradient, want.gradient, rtol=1e-8, atol=1e-9)
    for label, value in want.carried.items():
        torch.testing.assert_close(got.carried[label], value)
    parts = [cut.part(flat, state.carried, minibatch) for minibatch in cut.minibatches]
    assert len(parts) == 3
    steps = torch.stack([p.gradient / m.share for p, m in zip(parts, cut.minibatches, strict=True)])
    shared = int((~cut.own_rows).sum())  # which come first
    torch.testing.assert_close(steps.mean(0)[:shared], want.gradient[:shared], rtol=1e-8, atol=1e-9)
    assert bool((steps[0][:shared] != steps[1][:shared]).any())
    assert bool(cut.own_rows.any()) == (name in ("vi", "iw"))


@pytest.mark.parametrize("folds", [[[4, 1, 7]], [[4, 1, 7, 0], [2, 3, 8, 6]]])
def test_subjects_side_by_side_in_memory_are_the_same_subjects(folds: list[list[int]]) -> None:
    population = Population.from_events(make_events(9, ragged=True), F64).select(list(map(np.array, folds)))
    index = torch.tensor([[2, 0], [0, 1]])[:, : len(folds)]
    plain, moved = population.take(index), population.by_subject().take(index)
    for of in ("subject", "present", "time", "dv", "observed"):
        assert torch.equal(getattr(plain, of), getattr(moved, of)), of
    here, there = schedule_of(plain), schedule_of(moved)
    for of in ("time", "start", "duration", "amount", "since_end", "infused", "given"):
        assert torch.equal(getattr(here, of), getattr(there, of)), of
        assert getattr(there, of).is_contiguous()
    for name, values in plain.covariates.items():
        assert torch.equal(values, moved.covariates[name]), name


@pytest.mark.parametrize("name", ["vi", "foce"])
def test_a_minibatch_leaves_other_subjects_alone(model: Model, name: str) -> None:
    population = make_population(10, 2)
    cut, flat, state = evaluation(model, OBJECTIVES[name], population, 4)
    minibatch = cut.minibatches[0]
    part = cut.part(flat, state.carried, minibatch)
    inside = torch.zeros(11, 2, dtype=torch.bool).scatter(0, minibatch.index, True)[:10]
    assert int(inside.sum()) in (6, 7, 8)
    gradients = torch.zeros_like(flat)
    cut.add(gradients, part.gradient, minibatch)
    for label, gradient in cut.layout.unpack(gradients).items():
        if label in state.per_subject:
            moved = (gradient != 0).all(0)
            assert torch.equal(moved, inside), label
            assert not bool((gradient != 0).any(0)[~inside].any()), label
    if name == "foce":
        assert bool((part.carried["eta"][0] != 0)[inside].all())
        assert not bool(part.carried["eta"][:, ~inside].any())
        assert torch.equal(part.carried["converged"][0], inside)


@pytest.mark.parametrize("name", ["vi", "fo"])
@pytest.mark.parametrize("size", [12, 100])
def test_one_minibatch_is_a_full_batch(model: Model, name: str, size: int) -> None:
    population = make_population(12, 2, ragged=True)
    whole = run(model, OBJECTIVES[name], population, STREAMS, None, epochs=6)
    same = run(model, OBJECTIVES[name], population, STREAMS, size, epochs=6)
    assert torch.equal(whole.checkpoints, same.checkpoints)
    assert torch.equal(whole.objective, same.objective)
    other = run(model, OBJECTIVES[name], population, STREAMS, 6, epochs=6)
    assert not torch.allclose(whole.checkpoints, other.checkpoints)


@pytest.mark.parametrize(
    "name", ["mse", "fo", "vi", *(pytest.param(n, marks=pytest.mark.slow) for n in ("foce", "implicit"))]
)
def test_a_fit_does_not_depend_on_its_batch(model: Model, name: str) -> None:
    """Folds that make four, one, two and three minibatches."""
    everyone = Population.from_events(make_events(40, ragged=True), F64)
    g = np.random.default_rng(0)
    folds = [g.integers(40, size=size) for size in (16, 4, 7, 11)]
    streams = [Stream(1, fold, 1) for fold in range(1, 5)]
    lr = 0.01 if name in ("foce", "implicit") else 0.05
    together = run(model, OBJECTIVES[name], everyone.select(folds), streams, 5, 10, lr, 5)
    assert together.failures == (None,) * 4
    for b in range(4):
        alone = run(model, OBJECTIVES[name], everyone.select([folds[b]]), [streams[b]], 5, 10, lr, 5)
        torch.testing.assert_close(alone.objective[:, 0], together.objective[:, b], rtol=1e-6, atol=1e-9)
        for here, there in zip(alone.checkpoints, together.checkpoints, strict=True):
            mine, batch = alone.layout.unpack(here), together.layout.unpack(there)
            for key, value in mine.items():
                padded = batch[key][..., b]
                if key in alone.state.per_subject:
                    padded = padded[..., : len(folds[b])]
                torch.testing.assert_close(value[..., 0], padded, rtol=1e-5, atol=1e-7)


def test_a_checkpoints_objective_is_that_of_everybody(model: Model) -> None:
    population = make_population(12, 2)
    trained = run(model, Fo(), population, STREAMS, 5, epochs=10, every=5)
    assert trained.epochs == (0, 5, 10)
    for values, objective in zip(trained.checkpoints, trained.objective, strict=True):
        again = Fo().loss(model, population, State(trained.layout.unpack(values)), None)
        torch.testing.assert_close(again, objective)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs", "near"), [("fo", 250, 0.5), ("vi", 500, 3.0)])
def test_training_reaches_the_optimum_of_the_full_batch(
    model: Model, name: str, epochs: int, near: float
) -> None:
    """Without a network, whose valley is long. The objective falls by some hundreds on the way."""
    initial = {"CL": 0.15, "V1": 2.0, "Q": 0.2, "V2": 0.8}
    model = replace(model, network=CovariateNetwork.build([], list(initial), {}, initial))
    population = make_population(24, 1)
    whole = run(model, OBJECTIVES[name], population, STREAMS[:1], None, epochs)
    cut = run(model, OBJECTIVES[name], population, STREAMS[:1], 8, epochs, 0.03)
    levels = [trained.objective[-4:].mean().item() for trained in (whole, cut)]
    assert whole.objective[0].item() - levels[0] > 100
    assert levels[1] == pytest.approx(levels[0], abs=near)
    for label in ("omega", "sigma"):
        ends = [
            functional.softplus(trained.layout.unpack(trained.checkpoints[-4:].mean(0))[label])
            for trained in (whole, cut)
        ]
        torch.testing.assert_close(ends[1], ends[0], rtol=0.2, atol=0)
