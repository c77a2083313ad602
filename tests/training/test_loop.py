"""The training loop: a fit is the same alone and in a batch, and one that fails harms nobody."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Foce, Mse, Objective, State, Vi
from medcm_cli.runs.description import Description
from medcm_cli.training.course import Course, checkpoint_labels
from medcm_cli.training.layout import Layout
from medcm_cli.training.loop import train
from medcm_cli.training.trained import Trained
from tests.helpers import make_events, make_population

OBJECTIVES = {"mse": Mse(), "fo": Fo(), "foce": Foce(), "vi": Vi()}


def run(
    model: Model,
    objective: Objective,
    population: Population,
    streams: Sequence[Stream],
    epochs: int = 50,
    lr: float = 0.1,
) -> Trained:
    adam = functools.partial(torch.optim.Adam, lr=lr, fused=True)
    return train(model, objective, population, streams, adam, Course(epochs, 25), population.dv.dtype)


def test_checkpoints_of_the_protocol() -> None:
    labels = checkpoint_labels(2000, 25)
    assert len(labels) == 81
    assert labels[1] == 0
    assert labels[25] == 25
    assert labels[2000] == 2000
    assert list(labels.values()) == list(range(0, 2001, 25))
    assert checkpoint_labels(3, 1) == {1: 0, 2: 2, 3: 3}


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [
        (20, 25, {1: 0, 20: 20}),
        (30, 25, {1: 0, 25: 25, 30: 30}),
        (50, 25, {1: 0, 25: 25, 50: 50}),
        (2, 25, {1: 0, 2: 2}),
        (1, 25, {1: 0}),
        (1, 1, {1: 0}),
    ],
)
def test_the_last_epoch_is_a_checkpoint(
    model: Model, epochs: int, every: int, expected: dict[int, int]
) -> None:
    assert checkpoint_labels(epochs, every) == expected
    population, streams = make_population(5, 1), [Stream(0, 1, 1)]
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    arguments = (model, Mse(), population, streams, adam)
    trained = train(*arguments, Course(epochs, every), torch.float64)
    assert trained.epochs == tuple(expected.values())
    # The values after the last step, whatever the checkpoints between.
    densely = train(*arguments, Course(epochs, 1), torch.float64)
    assert torch.equal(trained.checkpoints[-1], densely.checkpoints[-1])
    assert torch.equal(trained.objective[-1], densely.objective[-1])


def test_layout_round_trip_and_gradient() -> None:
    values = {"a": torch.randn(2, 3, 4), "b": torch.randn(4), "c": torch.randn(1, 4)}
    layout = Layout.of(values)
    flat = layout.pack(values).requires_grad_()
    assert flat.shape == (8, 4)
    back = layout.unpack(flat)
    for name, value in values.items():
        torch.testing.assert_close(back[name].detach(), value)
    (gradient,) = torch.autograd.grad((back["b"] * 3).sum(), flat)
    assert gradient.sum() == 12
    assert bool((gradient[6] == 3).all())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_fit_does_not_depend_on_its_batch(model: Model, name: str) -> None:
    """Folds of different sizes, so the batch pads what the fit alone does not."""
    everyone = Population.from_events(make_events(40, ragged=True), torch.float64)
    g = np.random.default_rng(0)
    folds = [g.integers(40, size=size) for size in (12, 20, 7, 16)]
    streams = [Stream(1, fold, 1) for fold in range(1, 5)]
    lr = 0.01 if name == "foce" else 0.1
    together = run(model, OBJECTIVES[name], everyone.select(folds), streams, lr=lr)
    assert together.failures == (None,) * 4
    for b in (1, 2):  # the longest and the shortest
        alone = run(model, OBJECTIVES[name], everyone.select([folds[b]]), [streams[b]], lr=lr)
        torch.testing.assert_close(alone.objective[:, 0], together.objective[:, b], rtol=1e-6, atol=1e-9)
        for here, there in zip(alone.checkpoints, together.checkpoints, strict=True):
            mine, batch = alone.layout.unpack(here), together.layout.unpack(there)
            for key, value in mine.items():
                padded = batch[key][..., b]
                if key.startswith("q."):
                    padded = padded[..., : len(folds[b])]
                torch.testing.assert_close(value[..., 0], padded, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["mse", "fo", "vi", pytest.param("foce", marks=pytest.mark.slow)])
def test_alone_and_among_a_hundred_in_float32(model: Model, name: str) -> None:
    everyone = Population.from_events(make_events(30), torch.float32)
    rows = np.arange(30)
    lr = 0.01 if name == "foce" else 0.1
    many = [Stream(0, 1, replicate) for replicate in range(1, 101)]
    together = run(model, OBJECTIVES[name], everyone.select([rows] * 100), many, lr=lr)
    for b in (0, 57):
        alone = run(model, OBJECTIVES[name], everyone.select([rows]), [many[b]], lr=lr)
        scale = float(alone.checkpoints.abs().max())
        assert float((alone.checkpoints[..., 0] - together.checkpoints[..., b]).abs().max()) < 2e-3 * scale


def test_objective_of_a_checkpoint_belongs_to_its_values(model: Model) -> None:
    population = make_population(10, 2)
    streams = [Stream(0, 1, 1), Stream(0, 1, 2)]
    trained = run(model, Fo(), population, streams, epochs=50)
    assert trained.epochs == (0, 25, 50)
    for values, objective in zip(trained.checkpoints, trained.objective, strict=True):
        again = Fo().loss(model, population, State(trained.layout.unpack(values)), None)
        torch.testing.assert_close(again, objective)
    first = Fo().init(model, population, streams, torch.float64)
    moved = trained.checkpoints[0] - trained.layout.pack(first.trained)
    torch.testing.assert_close(
        moved.abs().amax(0), torch.full((2,), 0.1, dtype=torch.float64), rtol=1e-4, atol=0
    )


def test_training_lowers_every_objective(model: Model) -> None:
    population = make_population(20, 3)
    streams = [Stream(0, 1, replicate) for replicate in (1, 2, 3)]
    for name, objective in OBJECTIVES.items():
        trained = run(model, objective, population, streams, lr=0.02)
        assert bool((trained.objective[-1] < trained.objective[0]).all()), name


@dataclass(frozen=True)
class Poisoned(Objective):
    """An objective whose fit ``victim`` is multiplied by ``poison`` once its first trained value has moved
    ``after`` steps."""

    inner: Objective
    victim: int
    counter: list[int]
    after: int
    poison: float = float("nan")
    mixed: ClassVar[bool] = True

    def describe(self) -> Description:
        return self.inner.describe()

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        return self.inner.init(model, population, streams, dtype)

    def noise_shape(self, model: Model, population: Population) -> tuple[int, ...] | None:
        return self.inner.noise_shape(model, population)

    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        self.counter[0] += 1
        return self.inner.refresh(model, population, state, noise)

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        loss = self.inner.loss(model, population, state, noise)
        if self.counter[0] < self.after:
            return loss
        poison = torch.zeros_like(loss)
        poison[self.victim] = self.poison
        return loss * (1 + poison)

    def random_effects(
        self, model: Model, population: Population, state: State
    ) -> tuple[Tensor, Tensor] | None:
        return self.inner.random_effects(model, population, state)


class PoisonedTypical(Poisoned):
    """The same of an objective without random effects."""

    mixed: ClassVar[bool] = False


def test_a_failing_fit_is_recorded_and_leaves_the_others_untouched(model: Model) -> None:
    population = make_population(10, 3)
    streams = [Stream(0, 1, replicate) for replicate in (1, 2, 3)]
    healthy = run(model, Vi(), population, streams, epochs=100)
    broken = run(model, Poisoned(Vi(), 1, [0], after=40), population, streams, epochs=100)
    assert broken.failures[0] is None
    assert broken.failures[2] is None
    failure = broken.failures[1]
    assert failure is not None
    assert failure.epoch == 40
    assert failure.cause == "objective is not finite"
    for b in (0, 2):
        torch.testing.assert_close(broken.checkpoints[..., b], healthy.checkpoints[..., b], rtol=0, atol=0)
    assert bool(torch.isfinite(broken.checkpoints).all())
    frozen = broken.checkpoints[2:, :, 1]
    assert bool((frozen == frozen[0]).all())
    torch.testing.assert_close(broken.checkpoints[1, :, 1], healthy.checkpoints[1, :, 1], rtol=0, atol=0)


@pytest.mark.parametrize("poison", [1e22, -1e22, 1e30])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_absurd_objective_is_a_failure(model: Model, name: str, poison: float) -> None:
    """Finite, so nothing else would stop it, and far beyond what observations can be worth."""
    population = make_population(10, 2)
    streams = [Stream(0, 1, 1), Stream(0, 1, 2)]
    poisoned = Poisoned if OBJECTIVES[name].mixed else PoisonedTypical
    broken = run(model, poisoned(OBJECTIVES[name], 1, [0], 5, poison), population, streams, epochs=10)
    assert broken.failures[0] is None
    failure = broken.failures[1]
    assert failure is not None
    assert failure.epoch == 5
    assert "is beyond that of any fit" in failure.cause
    assert "e+" in failure.cause


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_data_in_any_unit_are_not_absurd(model: Model, name: str, unit: float) -> None:
    """Initial values know nothing of the unit, and a fit has to be allowed to begin far away."""
    population = make_population(10, 2)
    population = replace(population, dv=population.dv * unit)
    trained = run(model, OBJECTIVES[name], population, [Stream(0, 1, 1), Stream(0, 1, 2)], epochs=25)
    assert trained.failures == (None, None)
    assert trained.redraws.tolist() == [0, 0]


def test_all_fits_failing_ends_the_run(model: Model) -> None:
    population = make_population(5, 1)
    trained = run(model, Poisoned(Vi(), 0, [0], after=30), population, [Stream(0, 1, 1)])
    assert trained.failures[0] is not None
    assert trained.failures[0].epoch == 30
    assert trained.epochs == (0, 25)


def test_omega_that_is_not_positive_definite_is_named(model: Model) -> None:
    @dataclass(frozen=True)
    class Collapsed(Fo):
        def init(
            self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
        ) -> State:
            state = super().init(model, population, streams, dtype)
            correlation = state.trained["correlation"].clone()
            correlation[:, 0] = 1e4  # tanh rounds to 1
            return replace(state, trained={**state.trained, "correlation": correlation})

        def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
            value = super().loss(model, population, state, noise)
            return value + 0 * torch.log(model.omega_cholesky(state.trained)[1][1])

    trained = run(model, Collapsed(), make_population(5, 2), [Stream(0, 1, 1), Stream(0, 1, 2)], epochs=25)
    assert trained.failures[0] is not None
    assert trained.failures[0].cause == "Omega is not positive definite"
    assert trained.failures[1] is None


def test_same_seed_same_result_and_another_seed_another(model: Model) -> None:
    population = make_population(6, 1)
    results = [
        run(model, Vi(), population, [Stream(seed, 1, 1)], epochs=25).checkpoints for seed in (0, 0, 1)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


# -- initialisations that are drawn again ----------------------------------------------------------


@dataclass(frozen=True)
class Unlucky(Vi):
    """Replicate 2 begins with a bad sigma until it has been drawn ``bad`` times again."""

    bad: int = 0
    value: float = torch.nan

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        state = super().init(model, population, streams, dtype)
        unlucky = torch.tensor([stream.replicate == 2 and stream.attempt < self.bad for stream in streams])
        return replace(
            state, trained={**state.trained, "sigma": state.trained["sigma"].masked_fill(unlucky, self.value)}
        )


@pytest.mark.parametrize(
    ("batch_subjects", "value"),
    [(None, torch.nan), (None, -60.0), (4, torch.nan), pytest.param(4, -60.0, marks=pytest.mark.slow)],
)
def test_a_bad_initialisation_is_drawn_again(model: Model, batch_subjects: int | None, value: float) -> None:
    streams = [Stream(0, 1, replicate) for replicate in (1, 2, 3)]
    adam = functools.partial(torch.optim.Adam, lr=0.1)

    def trained(objective: Objective, streams: Sequence[Stream], redraws: int = 20) -> Trained:
        subjects = make_population(10, len(streams))
        return train(
            model,
            objective,
            subjects,
            streams,
            adam,
            Course(5, 5, batch_subjects, redraws),
            torch.float64,
        )

    healthy = trained(Vi(), streams)
    assert healthy.redraws.tolist() == [0, 0, 0]
    drawn = trained(Unlucky(bad=3, value=value), streams)
    assert drawn.redraws.tolist() == [0, 3, 0]
    assert drawn.failures == (None,) * 3
    assert torch.equal(drawn.checkpoints[..., [0, 2]], healthy.checkpoints[..., [0, 2]])
    assert not torch.isclose(drawn.checkpoints[0, :, 1], healthy.checkpoints[0, :, 1]).all()
    alone = trained(Unlucky(bad=3, value=value), streams[1:2])
    torch.testing.assert_close(alone.checkpoints[..., 0], drawn.checkpoints[..., 1])
    for limit in (2,) if batch_subjects else (0, 2):
        failed = trained(Unlucky(bad=3, value=value), streams, redraws=limit)
        assert failed.redraws.tolist() == [0, limit, 0]
        assert failed.failures[1] is not None
        assert failed.failures[1].epoch == 1
        assert (failed.failures[0], failed.failures[2]) == (None, None)
        assert torch.equal(failed.checkpoints[..., [0, 2]], healthy.checkpoints[..., [0, 2]])
