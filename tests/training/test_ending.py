"""Fits end where they have converged, each as if it were alone, and one that has not says so."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Foce, Iw, Mse, Objective, Saem, State, Vi
from medcm_cli.objectives.base import Criterion
from medcm_cli.pk import one_compartment
from medcm_cli.runs.description import Description
from medcm_cli.training.absurd import ofv_of_one_normal, with_absurd_failed
from medcm_cli.training.course import Course
from medcm_cli.training.ending import Moments, Rule, Watch
from medcm_cli.training.kept import Kept
from medcm_cli.training.layout import Layout
from medcm_cli.training.loop import train
from medcm_cli.training.newton import LEAST
from medcm_cli.training.polish import RULE_HELD, polish_of, polished
from medcm_cli.training.trained import Ends, Trained
from tests.helpers import F64, table_of

ADAM = functools.partial(torch.optim.Adam, lr=0.1, fused=True)
STREAMS = [Stream(5, 1, replicate) for replicate in (1, 2, 3)]
COURSE = Course(2000, 100, log=True, stop=True)


def make_population(subjects: int, fits: int) -> Population:
    """Subjects who differ in CL and V1, eight levels after one dose each."""
    generator = np.random.default_rng(4)
    rows: list[tuple[float, ...]] = []
    times = np.array([0.5, 1, 2, 4, 8, 12, 18, 24])
    for subject in range(subjects):
        clearance, volume = np.array([0.2, 2.0]) * np.exp([0.3, 0.2] * generator.standard_normal(2))
        rows.append((subject, 0.0, True, 2000.0 / 0.01, 0.01, np.nan))
        level = np.exp(-clearance / volume * times) / volume + 0.02 * generator.standard_normal(8)
        rows += [(subject, time, False, np.nan, np.nan, one) for time, one in zip(times, level, strict=True)]
    covariates = {"weight": generator.uniform(50, 100, subjects), "vwf": generator.uniform(50, 150, subjects)}
    everyone = Population.from_events(table_of([str(i) for i in range(subjects)], rows, covariates), F64)
    return everyone.select([np.arange(subjects)] * fits)


def ends_of(trained: Trained) -> Ends:
    assert trained.ends is not None
    return trained.ends


def polished_fits(
    model: Model, objective: Objective, streams: list[Stream], course: Course = COURSE
) -> Trained:
    population = make_population(8, len(streams))
    polish = polish_of(model, objective, population)
    assert polish is not None
    brief = replace(course, brief=not polish.fixed)
    trained = train(model, objective, population, streams, ADAM, brief, F64)
    return polished(model, polish, population, streams, trained, log=True)


# -- the optimum -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [Fo(), Foce(mode_gradient="implicit", mode_tolerance=1e-9), Mse()], ids=["fo", "foce", "mse"]
)
def test_a_polished_fit_is_where_every_gradient_is_zero(plain: Model, objective: Objective) -> None:
    trained = polished_fits(plain, objective, STREAMS)
    ends = ends_of(trained)
    assert bool(ends.converged.all())
    # From three drawn starts the same optimum, by gradients of the objective itself in the model's values.
    assert float(ends.objective.max() - ends.objective.min()) < 0.01
    values = ends.values.clone().requires_grad_()
    state = replace(trained.state, trained=trained.layout.unpack(values))
    population = make_population(8, 3)
    state = objective.refresh(plain, population, state)
    loss = objective.loss(plain, population, state, None)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert torch.allclose(loss, ends.objective, atol=1e-6)
    assert float(gradient.abs().max()) < 0.05


def test_the_optimum_is_that_of_scipy(plain: Model) -> None:
    from scipy.optimize import minimize

    trained = polished_fits(plain, Fo(), STREAMS[:1])
    population = make_population(8, 1)

    def loss(x: np.ndarray) -> float:
        values = trained.layout.unpack(torch.from_numpy(x)[:, None])
        return float(Fo().loss(plain, population, replace(trained.state, trained=values), None))

    begin = ends_of(trained).values[:, 0].numpy() + 0.05
    found = minimize(loss, begin, method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-7})
    assert float(ends_of(trained).objective) == pytest.approx(found.fun, abs=0.01)


@dataclass(frozen=True)
class Stairs(Objective):
    """50 (x - ``BOTTOM``)^2 and a step up wherever a search leads elsewhere as x, CL as it is trained,
    rises. ``searches``: whether it is searched at each x."""

    searches: bool = True
    mixed: ClassVar[bool] = False

    def describe(self) -> Description:
        return Description("-2 log L", likelihood="stairs", scale=2.0)

    def criterion(self, effects: int) -> Criterion:
        del effects
        return Criterion(self, 2.0)

    def held(self) -> Objective | None:
        return Stairs(searches=False) if self.searches else None

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        del population
        trained = model.init(streams, dtype, typical_only=True)
        return State(trained, {"step": torch.zeros_like(trained["global.CL"])})

    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        del noise
        return self.searched_widely(model, population, state) if self.searches else state

    def searched_widely(self, model: Model, population: Population, state: State) -> State:
        del model, population
        step = torch.floor(40 * state.trained["global.CL"].detach()) / 40
        return replace(state, carried={"step": step})

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        del model, population, noise
        away = state.trained["global.CL"] - BOTTOM
        other = state.trained["global.V1"] - 1
        return 50 * away**2 + other**2 + 30 * state.carried["step"]

    def random_effects(self, model: Model, population: Population, state: State) -> None:
        del model, population, state


BOTTOM = -0.31


@pytest.mark.parametrize("held", [True, False])
def test_a_fit_that_stops_at_a_step_goes_on_with_what_is_searched_held(plain: Model, held: bool) -> None:
    """Each gradient is 0 at the bottom alone, from where a search ends at the step below it."""
    objective: Objective = Stairs()
    if not held:
        objective = Steps()
    population = make_population(2, 3)
    polish = polish_of(plain, objective, population)
    assert polish is not None
    state = objective.init(plain, population, STREAMS, F64)
    layout = Layout.of(state.trained)
    start = {**state.trained, "global.CL": torch.tensor([-0.5, -0.45, -0.1], dtype=F64)}
    nothing = torch.zeros(3, dtype=F64)
    ends = Ends(layout.pack(start), nothing, nothing, nothing.long(), nothing > 0, ("none",) * 3)
    begun = Trained((), layout, nothing, nothing, (None,) * 3, state, nothing, nothing, 0.0, ends=ends)
    trained = polished(plain, polish, population, STREAMS, begun, log=False)
    converged = ends_of(trained).converged
    x = trained.layout.unpack(ends_of(trained).values)["global.CL"]
    if held:
        assert bool(converged.all())
        assert RULE_HELD in ends_of(trained).rules
        torch.testing.assert_close(x, torch.full_like(x, BOTTOM), rtol=0, atol=1e-3)
    else:
        assert not bool(converged[:2].any())


class Steps(Stairs):
    """That cannot be held."""

    def held(self) -> None:
        return None


def test_values_of_a_large_network_stay_and_the_others_are_polished(model: Model) -> None:
    polish = polish_of(model, Fo(), make_population(8, 1))
    assert polish is not None
    assert {"weight.hidden_1.weight"} <= set(polish.fixed)
    assert not {"omega", "sigma", "correlation", "global.Q"} & set(polish.fixed)
    few = CovariateNetwork.build(
        [{"inputs": ["weight"], "hidden": [2], "heads": ["CL"]}],
        ["V1"],
        {"weight": {"scale": 150, "reference": 70}},
    )
    small = Model(few, one_compartment(), RandomEffects(("CL", "V1")), ResidualError(("additive",)))
    of_few = polish_of(small, Fo(), make_population(8, 1))
    assert of_few is not None
    assert of_few.fixed == ()
    for noisy in (Vi(family="flow"), Iw()):  # without a profile
        assert polish_of(model, noisy, make_population(8, 1)) is None
    of_vi = polish_of(small, Vi(), make_population(8, 1))
    assert of_vi is not None
    assert (of_vi.profiled, of_vi.fixed) == (True, ())
    assert polish_of(small, Vi(), make_population(8, 1), minibatches=True) is None
    # A large network has noise of its own, beside which the others have no optimum.
    assert polish_of(model, Vi(), make_population(8, 1)) is None
    # Asked with one stream, of any number of fits: saem looks at what its values move.
    assert polish_of(model, Saem(), make_population(8, 3)) is None


# -- the rule --------------------------------------------------------------------------------------


def watched(rule: Rule, losses: Tensor, gradient: float = 1.0) -> Watch:
    """Losses (E, B) of epochs, with gradients that stay as they are."""
    values = torch.zeros(1, losses.shape[1], dtype=F64)
    watch = Watch(rule, values)
    slope = torch.full_like(values, gradient)
    for epoch, loss in enumerate(losses, 1):
        if watch.see(loss, slope, values):
            watch.judge(epoch, [], torch.ones(1, dtype=torch.bool))
    return watch


def test_a_fit_converges_once_its_objective_no_longer_falls() -> None:
    epochs = torch.arange(1500, dtype=F64)[:, None]
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (1500, 1)))
    flat, falling = 100 + 0 * epochs, 500 - 0.1 * epochs
    still = watched(Rule(noise=False, scale=2.0, brief=False), torch.cat([flat, falling], 1))
    assert still.done.tolist() == [True, False]
    noisy = watched(Rule(noise=True, scale=1.0, brief=False), torch.cat([flat, falling], 1) + noise)
    assert noisy.done.tolist() == [True, False]
    assert float(noisy.rate[1]) == 1.0


def test_what_an_objective_moves_is_averaged_for_longer() -> None:
    """Since steps were first shortened, but no longer than since the objective fell; beside it, since they
    were last."""
    noise = np.random.default_rng(1).normal(0, 1e-3, (1500, 2))
    losses = torch.from_numpy(100 + noise)
    losses[:500, 1] += 50  # of the second fit
    values = torch.zeros(2, 2, dtype=F64)
    watch = Watch(Rule(noise=True, scale=1.0, brief=False), values, torch.tensor([True, False]))
    began: list[int] = []
    for epoch, loss in enumerate(losses, 1):
        rate = watch.rate.clone()
        if watch.see(loss, torch.ones_like(values), torch.full_like(values, epoch)):
            watch.judge(epoch, [], torch.ones(2, dtype=torch.bool))
            began += [epoch] * bool(watch.rate[0] < rate[0])
        if bool(watch.done.all()):
            break
    first, second = watch.ended.tolist()
    assert watch.mean[0, 0] == (began[0] + 1 + first) / 2
    assert watch.mean[1, 0] == (began[-1] + 50 + 1 + first) / 2  # a first window has nothing to fall from
    assert watch.mean[0, 1] == (550 + 1 + second) / 2


def test_a_draw_that_goes_astray_says_nothing_of_convergence() -> None:
    losses = torch.full((1500, 1), 100.0, dtype=F64)
    losses[::7] = 1e20
    assert bool(watched(Rule(noise=True, scale=1.0, brief=False), losses).done.all())


def test_huge_first_gradients_are_forgotten() -> None:
    """Adam on a quadratic whose first gradient was 1e10 as long: the mean square that it remembers lets it
    not move for hundreds of epochs."""
    flat = torch.tensor([[5.0]], dtype=F64, requires_grad=True)
    adam = torch.optim.Adam([flat], lr=0.1)
    watch = Watch(Rule(noise=False, scale=1.0, brief=False), flat)
    for epoch in range(1, 301):
        gradient = flat.detach().clone() * (1e10 if epoch == 1 else 1)
        flat.grad = gradient
        adam.step()
        if watch.see(0.5 * flat.detach()[0] ** 2, gradient, flat.detach()):
            place = torch.arange(1)
            memory = adam.state[flat]
            share = 1 - 0.999**epoch
            moments = [Moments(memory["exp_avg"], memory["exp_avg_sq"], place, place, share)]
            watch.judge(epoch, moments, torch.ones(1, dtype=torch.bool))
    assert abs(float(flat.detach())) < 0.5


@pytest.mark.parametrize(
    "objective", [pytest.param(Vi(samples=1), marks=pytest.mark.slow), Fo()], ids=["vi", "fo"]
)
def test_a_fit_ends_as_if_it_were_alone(plain: Model, objective: Objective) -> None:
    course = Course(1200, 100, log=True, stop=True)
    together = train(plain, objective, make_population(6, 3), STREAMS, ADAM, course, F64)
    alone = train(plain, objective, make_population(6, 1), STREAMS[1:2], ADAM, course, F64)
    one, other = ends_of(together), ends_of(alone)
    assert one.epoch[1] == other.epoch[0]
    assert bool(one.converged[1]) == bool(other.converged[0])
    assert len({int(epoch) for epoch in one.epoch}) > 1
    assert torch.allclose(one.values[:, 1], other.values[:, 0], rtol=1e-6, atol=1e-8)
    assert torch.allclose(one.objective[1], other.objective[0], rtol=1e-8)


def test_a_fit_that_goes_on_ends_as_one_that_was_never_stopped(plain: Model, tmp_path: Path) -> None:
    """With everything that the rule remembers."""
    population, course = make_population(4, 2), Course(260, 100, log=True, stop=True)

    class Often(Kept):
        @property
        def due(self) -> bool:
            return True

    kept = Often(tmp_path / "kept.npz", {})
    vi = Vi(samples=1)
    whole = ends_of(train(plain, vi, population, STREAMS[:2], ADAM, course, F64))
    train(plain, vi, population, STREAMS[:2], ADAM, replace(course, epochs=133), F64, kept=kept)
    again = ends_of(train(plain, vi, population, STREAMS[:2], ADAM, course, F64, kept=kept))
    assert torch.equal(whole.values, again.values)
    assert torch.equal(whole.epoch, again.epoch)
    assert torch.equal(whole.converged, again.converged)


def test_who_has_had_too_few_epochs_has_not_converged(plain: Model) -> None:
    course = Course(60, 20, log=True, stop=True)
    trained = train(plain, Vi(), make_population(6, 3), STREAMS, ADAM, course, F64)
    assert not bool(ends_of(trained).converged.any())
    found = trained.convergence(0)
    assert found is not None
    assert found["converged"] is False
    assert found["epoch"] == 60
    epochs, places = trained.kept(0)
    assert epochs == [0, 20, 40, 60]
    assert places == [0, 1, 2, len(trained.epochs)]


def test_the_paper_ends_after_all_epochs(plain: Model) -> None:
    trained = train(plain, Fo(), make_population(6, 3), STREAMS, ADAM, Course(60, 20), F64)
    assert trained.ends is None
    assert trained.convergence(0) is None
    assert trained.kept(1) == ([0, 20, 40, 60], [0, 1, 2, 3])


# -- absurd fits -----------------------------------------------------------------------------------


def test_a_fit_worse_than_one_normal_has_failed(plain: Model) -> None:
    population = make_population(6, 3)
    trained = polished_fits(plain, Fo(), STREAMS)
    ends = ends_of(trained)
    dv = population.dv[:, 0, :, 0].numpy()
    expected = dv.size * (np.log(dv.var()) + 1)
    assert ofv_of_one_normal(population).numpy() == pytest.approx(expected)
    assert with_absurd_failed(Fo(), population, trained).failures == (None, None, None)
    worse = replace(ends, objective=torch.tensor([expected - 1, expected + 1, 1e200], dtype=F64))
    first, second, third = with_absurd_failed(Fo(), population, replace(trained, ends=worse)).failures
    assert first is None
    assert second is not None
    assert third is not None
    assert third.cause.startswith("objective is absurd: an OFV of 1e+200 is above that of one normal")


def test_a_bound_is_compared_on_the_scale_of_a_likelihood(plain: Model) -> None:
    """-ELBO has log(2 pi) of each observation, and is a half of -2 log L."""
    population = make_population(6, 3)
    most = ofv_of_one_normal(population) + population.observation_count * np.log(2 * np.pi)
    course = Course(120, 20, log=True, stop=True)
    trained = train(plain, Vi(), population, STREAMS, ADAM, course, F64)
    shifted = replace(ends_of(trained), objective=most / 2 + torch.tensor([-1.0, 1.0, -1.0], dtype=F64))
    failures = with_absurd_failed(Vi(), population, replace(trained, ends=shifted)).failures
    assert [failure is None for failure in failures] == [True, False, True]
    assert LEAST > 0
