"""Epochs that are replayed: the same as those that are not, whoever fails and wherever a checkpoint falls."""

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import Model
from medcm_cli.objectives import Fo, Foce, Mse, Objective, State, Vi
from medcm_cli.pk import OdeModel, two_compartment_rate
from medcm_cli.training import replay
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from medcm_cli.training.steppers import Stepper
from medcm_cli.training.trained import Trained
from tests.helpers import STREAMS, make_population

CUDA = torch.device("cuda")
EPOCHS = 12


def trained(model: Model, objective: Objective, **options: bool) -> Trained:
    adam = functools.partial(torch.optim.Adam, lr=0.1, fused=True)
    course = Course(EPOCHS, 4, **options)
    return train(model, objective, make_population(5, 2), STREAMS, adam, course, torch.float64)


@pytest.fixture
def as_if_captured(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Epochs, captured by nothing but their being remembered."""
    found: list[Callable[[], None]] = []

    def captured(epoch: Callable[[], None]) -> Callable[[], None]:
        found.append(epoch)
        return epoch

    monkeypatch.setattr(replay, "repeats", lambda *_: True)
    monkeypatch.setattr(replay, "captured", captured)
    monkeypatch.setattr(Stepper, "repeats", True)
    return found


class Failing(Vi):
    """The second fit's loss is no number once its sigma has grown."""

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        loss = super().loss(model, population, state, noise)
        grown = state.trained["sigma"][0].detach() > -2
        second = torch.arange(2, device=loss.device) == 1
        return torch.where(grown & second, torch.nan, loss)


@pytest.mark.parametrize("objective", [Mse(), Fo(), Vi(), Vi(population="variational"), Failing()])
def test_replayed_epochs_are_those_that_are_not(
    objective: Objective, model: Model, as_if_captured: list[Callable[[], None]]
) -> None:
    plain = trained(model, objective, graph=False)
    assert plain.replayed == len(as_if_captured) == 0
    again = trained(model, objective)
    assert again.replayed == EPOCHS - replay.WARM - 1
    assert len(as_if_captured) == 1
    assert again.failures == plain.failures
    if isinstance(objective, Failing):
        (first, second), expected = plain.failures, range(replay.WARM + 2, EPOCHS + 1)
        assert first is None
        assert second is not None
        assert second.epoch in expected
    for name in ("checkpoints", "objective", "unconverged"):
        assert torch.equal(getattr(again, name).nan_to_num(), getattr(plain, name).nan_to_num()), name
    for name, value in plain.state.trained.items():
        assert torch.equal(again.state.trained[name], value)


def test_what_cannot_be_captured_is_run(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained(model, Vi())
    monkeypatch.setattr(replay, "repeats", lambda *_: True)
    monkeypatch.setattr(Stepper, "repeats", True)
    monkeypatch.setattr(replay, "captured", lambda _: None)
    tried = trained(model, Vi())
    assert tried.replayed == 0
    assert torch.equal(tried.checkpoints, plain.checkpoints)


def test_searches_are_not_tried(model: Model) -> None:
    assert replay.repeats(model, Vi(), CUDA)
    assert not replay.repeats(model, Vi(), torch.device("cpu"))
    assert not replay.repeats(model, Foce(), CUDA)
    ode = replace(model, pk=OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), 2))
    assert not replay.repeats(ode, Vi(), CUDA)
