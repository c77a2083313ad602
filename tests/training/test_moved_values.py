"""Objectives that take steps of their own, in the ordinary loop: expectation-maximisation, exact and
stochastic, of a linear-Gaussian model, whose likelihood has a closed form."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor
from torch.nn import functional

from medcm_cli.data import Population
from medcm_cli.model import Model, RandomEffects, ResidualError, Values
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import cholesky, multiply_lower, total
from medcm_cli.objectives import Fo, Objective, State, Vi
from medcm_cli.objectives.modes import find_modes, laplace_covariance
from medcm_cli.training.course import Course
from medcm_cli.training.kept import Kept
from medcm_cli.training.loop import train
from medcm_cli.training.trained import Trained
from tests.helpers import F64, LinearGaussian, make_events, make_population

STREAMS = [Stream(3, 1, replicate) for replicate in (1, 2, 3)]


def softplus_inverse(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


@dataclass(frozen=True)
class Expectation(Objective):
    """-2 log L; omega and sigma (additive error, diagonal Omega), or omega alone, move to where the expected
    log joint density is highest.

    ``stochastic``: the expectation is that over one draw of eta, averaged over the epochs after ``burn``, as
    in SAEM (Delyon, Lavielle and Moulines 1999, Ann Stat 27:94-128). Carries ``moments`` (K + 1, B) of a fit,
    ``eta`` (K, N, B) of its subjects and the ``epoch`` (B,).
    """

    stochastic: bool = False
    sigma_too: bool = True
    burn: int = 20
    mixed: ClassVar[bool] = True

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        trained = Fo().init(model, population, streams, dtype).trained
        # Of this model the network's values do not matter.
        trained = {name: trained[name] for name in ("omega", "sigma")}
        k, n, b = len(model.random_effects.names), *population.present.shape
        carried = {
            "eta": torch.zeros(k, n, b, dtype=dtype),
            "moments": torch.zeros(k + 1, b, dtype=dtype),
            "epoch": torch.zeros(b, dtype=dtype),
        }
        moved = ("omega", "sigma") if self.sigma_too else ("omega",)
        return State(trained, carried, per_subject=("eta",), moved=moved)

    def refresh_shape(self, model: Model, population: Population) -> tuple[int, ...] | None:
        return (len(model.random_effects.names), population.shape[1]) if self.stochastic else None

    @torch.no_grad()
    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        values, carried = state.trained, state.carried
        start = [part[None] for part in carried["eta"]]
        eta = find_modes(model, values, population, start, 1e-12, 10).eta  # the mean, exactly
        spread = laplace_covariance(model, values, population, eta)
        if noise is not None:
            factor = cholesky([list(row) for row in spread])
            eta = [m + s for m, s in zip(eta, multiply_lower(factor, list(noise[:, None])), strict=True)]
            spread = torch.zeros_like(spread)
        prediction, columns = model.linearise(values, population, eta)
        uncertain = total(
            [left * spread[i, j] * right for i, left in enumerate(columns) for j, right in enumerate(columns)]
        )
        sums = [population.sum_subjects(e.square() + spread[i, i]) for i, e in enumerate(eta)]
        sums.append(population.sum_all((population.dv - prediction).square() + uncertain))
        counts = [population.present.sum(0)] * len(eta) + [population.observation_count]
        found = torch.stack(sums) / torch.stack(counts)
        epoch = carried["epoch"] + 1
        step = 1 / (epoch - self.burn).clamp(min=1) if self.stochastic else torch.ones_like(epoch)
        moments = carried["moments"] + step * (found - carried["moments"])
        moved = {"omega": softplus_inverse(moments[:-1].sqrt())}
        if self.sigma_too:
            moved["sigma"] = softplus_inverse(moments[-1:].sqrt())
        kept = {"eta": torch.cat(eta), "moments": moments, "epoch": epoch}
        return replace(state, trained={**values, **moved}, carried=kept)

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        return Fo().loss(model, population, state, noise)

    def random_effects(self, model: Model, population: Population, state: State) -> tuple[Tensor, Tensor]:
        return Fo().random_effects(model, population, state)


@dataclass(frozen=True)
class Broken(Expectation):
    """From epoch 30 on, omega of the second fit is no number."""

    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        after = super().refresh(model, population, state, noise)
        second = torch.arange(len(after.carried["epoch"])) == 1
        spoiled = second & (after.carried["epoch"] >= 30)
        omega = torch.where(spoiled, torch.nan, after.trained["omega"])
        return replace(after, trained={**after.trained, "omega": omega})


@dataclass(frozen=True)
class Curious(Vi):
    """Asks for random numbers that it does not use."""

    def refresh_shape(self, model: Model, population: Population) -> tuple[int, ...]:
        del model
        return (2, population.shape[1])


class OfEffects(LinearGaussian):
    """Its predictions need no typical parameters, so omega and sigma are all that is to be estimated."""

    def typical(self, values: Values, population: Population) -> dict[str, Tensor]:
        del values, population
        return {}


@pytest.fixture
def linear(model: Model) -> OfEffects:
    effects = RandomEffects(("CL", "V1"), "diagonal")
    return OfEffects(model.network, model.pk, effects, ResidualError(("additive",)))


@pytest.fixture
def population(linear: OfEffects) -> Population:
    """Fits of the same subjects, of omega 0.6 and 0.4 and sigma 0.1."""
    subjects = make_population(15, 3, doses=2)
    g = torch.Generator().manual_seed(1)
    eta = [sd * torch.randn(1, 15, 1, generator=g, dtype=F64) for sd in (0.6, 0.4)]
    noise = 0.1 * torch.randn(subjects.dv.shape[0], 1, 15, 1, generator=g, dtype=F64)
    return replace(subjects, dv=(linear.predict({}, subjects, eta) + noise).expand_as(subjects.dv))


def run(
    model: Model,
    objective: Objective,
    population: Population,
    streams: Sequence[Stream] = STREAMS,
    epochs: int = 300,
    batch_subjects: int | None = None,
) -> Trained:
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    return train(model, objective, population, streams, adam, Course(epochs, 50, batch_subjects), F64)


def optimum(model: Model, population: Population) -> tuple[float, np.ndarray]:
    """The least -2 log L by scipy, and omega and sigma there."""

    def value(raw: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(raw, requires_grad=True)
        state = State({"omega": leaf[:-1, None], "sigma": leaf[-1:, None]})
        loss = Fo().loss(model, population, state, None).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), gradient.numpy()

    found = optimize.minimize(value, np.full(3, -2.0), jac=True, method="BFGS", options={"gtol": 1e-7})
    return float(found.fun), np.log1p(np.exp(found.x))


def estimates(trained: Trained) -> np.ndarray:
    """omega and sigma of each fit, (B, 3)."""
    raw = torch.cat([trained.state.trained["omega"], trained.state.trained["sigma"]])
    return functional.softplus(raw).numpy().T


@pytest.mark.parametrize("sigma_too", [True, False])
def test_expectation_maximisation_ends_at_the_optimum(
    linear: OfEffects, population: Population, sigma_too: bool
) -> None:
    """Alone, or with an optimiser that moves what it does not; the objective of a checkpoint is that of its
    values; alone, the likelihood never falls."""
    least, at = optimum(linear, population)
    trained = run(linear, Expectation(sigma_too=sigma_too), population)
    assert trained.failures == (None,) * 3
    np.testing.assert_allclose(trained.objective[-1], least, rtol=0, atol=1e-3)
    np.testing.assert_allclose(estimates(trained), np.tile(at, (3, 1)), rtol=0.02, atol=2e-3)
    for values, objective in zip(trained.checkpoints, trained.objective, strict=True):
        state = State(trained.layout.unpack(values))
        torch.testing.assert_close(Fo().loss(linear, population, state, None), objective)
    if sigma_too:
        assert bool((torch.diff(trained.objective, dim=0) < 1e-9).all())


@pytest.mark.slow
def test_a_stochastic_step_ends_near_the_optimum(linear: OfEffects, population: Population) -> None:
    least, _ = optimum(linear, population)
    trained, again = (run(linear, Expectation(stochastic=True), population) for _ in range(2))
    assert bool((trained.objective[-1] < least + 0.3).all())
    assert torch.equal(trained.checkpoints, again.checkpoints)
    assert trained.state.carried["moments"].shape == (3, 3)
    assert trained.state.carried["epoch"].tolist() == [301.0] * 3


def test_a_refresh_has_random_numbers_of_its_own(model: Model) -> None:
    population = make_population(15, 3)
    with_numbers, without = (run(model, one, population, epochs=10) for one in (Curious(), Vi()))
    assert torch.equal(with_numbers.checkpoints, without.checkpoints)


@pytest.mark.parametrize("batch_subjects", [None, 6])
@pytest.mark.parametrize("sigma_too", [True, False])
def test_a_batch_that_was_killed_ends_as_if_it_had_not_been(
    linear: OfEffects,
    population: Population,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sigma_too: bool,
    batch_subjects: int | None,
) -> None:
    """What the objective moves and carries, and its random numbers, beside what the optimiser moves."""
    monkeypatch.setattr("medcm_cli.training.kept._FIRST", 0.0)
    monkeypatch.setattr("medcm_cli.training.kept._SHARE", torch.inf)
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    objective = Expectation(stochastic=True, sigma_too=sigma_too, burn=5)
    arguments = (linear, objective, population, STREAMS, adam, Course(12, 3, batch_subjects), F64)
    kept = Kept(tmp_path / "kept.npz", {})

    def killed(epoch: int, _: Tensor) -> None:
        if epoch == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*arguments, killed, kept)
    whole, resumed = train(*arguments), train(*arguments, None, kept)
    assert torch.equal(whole.checkpoints, resumed.checkpoints)
    assert torch.equal(whole.objective, resumed.objective)
    for name, value in whole.state.carried.items():
        assert torch.equal(value, resumed.state.carried[name])


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_fit_does_not_depend_on_its_batch(linear: OfEffects, stochastic: bool) -> None:
    everyone = Population.from_events(make_events(20, ragged=True), F64)
    folds = [np.arange(12), np.arange(4, 11), np.arange(16)]
    objective = Expectation(stochastic=stochastic)
    together = run(linear, objective, everyone.select(folds), epochs=30)
    for fit, stream in enumerate(STREAMS):
        alone = run(linear, objective, everyone.select([folds[fit]]), [stream], epochs=30)
        torch.testing.assert_close(alone.checkpoints[..., 0], together.checkpoints[..., fit])


def test_a_step_with_each_minibatch(linear: OfEffects) -> None:
    """What is carried of a subject is that subject's, whatever minibatch it comes in; a fit that has no
    minibatch left stays as it is."""
    everyone = Population.from_events(make_events(20), F64)
    folds = [np.arange(18), np.arange(5), np.arange(11)]
    population = everyone.select(folds)
    trained = run(linear, Expectation(), population, epochs=51, batch_subjects=6)
    assert trained.failures == (None,) * 3
    evaluations = 51 + 4  # of the initial values, two checkpoints and the end
    assert trained.state.carried["epoch"].tolist() == [3 * evaluations, evaluations, 2 * evaluations]
    alone = run(linear, Expectation(), everyone.select(folds[1:2]), STREAMS[1:2], epochs=51)
    torch.testing.assert_close(alone.checkpoints[0, :, 0], trained.checkpoints[0, :, 1], rtol=0.3, atol=0.3)
    present = population.present > 0
    assert not bool(trained.state.carried["eta"][:, ~present].any())
    assert bool((trained.state.carried["eta"][:, present] != 0).all())


def test_a_fit_that_fails_keeps_its_values(linear: OfEffects, population: Population) -> None:
    trained = run(linear, Broken(), population, epochs=100)
    healthy = run(linear, Expectation(), population, epochs=100)
    assert [failure and failure.epoch for failure in trained.failures] == [None, 30, None]
    assert bool(torch.isfinite(trained.state.trained["omega"]).all())
    assert torch.equal(trained.checkpoints[..., [0, 2]], healthy.checkpoints[..., [0, 2]])
