"""Stochastic approximation EM against exact likelihoods and posteriors of a linear-Gaussian model, and its
steps against closed forms and scipy."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize
from torch import Tensor
from torch.nn import functional

from medcm_cli.analysis.scores import score
from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Equations, Model, RandomEffects, ResidualError, Values
from medcm_cli.model.distributions import Additive
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import covariance, dense
from medcm_cli.objectives import Fo, Saem, State, ascent, chains, maximisation
from medcm_cli.objectives.modes import find_modes, laplace_covariance
from medcm_cli.study.job import Job
from medcm_cli.training.loop import Course, train
from medcm_cli.training.loss import Layout
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
from tests.objectives import occasions

STREAMS = [Stream(3, 1, replicate) for replicate in (1, 2, 3)]
WHOLE = maximisation.Gain(torch.ones(3, dtype=F64), torch.zeros(3, dtype=F64))


@dataclass(frozen=True)
class Linear(Model):
    """y = x1 z1 + x2 z2 + residual, z = zeta + eta: the likelihood of ``fo`` is exact."""

    def design(self, population: Population) -> list[Tensor]:
        t = population.time
        return [torch.cos(t / 9), torch.sin(t / 7) + 0.5]

    def predict(self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None) -> Tensor:
        z = [zeta["CL"], zeta["V1"]]
        if eta is not None:
            z = [typical + effect for typical, effect in zip(z, eta, strict=True)]
        left, right = self.design(population)
        return left * z[0] + right * z[1]

    def linearise(
        self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        f = self.predict(zeta, population, eta)
        return f, [column.expand_as(f) for column in self.design(population)]


def linear_of(like: Model, structure: str = "full") -> Linear:
    """With typical parameters of which one depends on weight."""
    written = {
        "CL": {"typical": 1.0, "weight": {"linear": {"initial": 0.0}}},
        "V1": {"typical": 2.0},
        "Q": {"typical": {"fixed": 0.1}},
        "V2": {"typical": {"fixed": 0.5}},
    }
    effects = RandomEffects(("CL", "V1"), structure, distributions={n: Additive() for n in ("CL", "V1")})
    return Linear(Equations.build(written, COVARIATES), like.pk, effects, ResidualError(("additive",)))


@pytest.fixture
def linear(model: Model) -> Linear:
    return linear_of(model)


@pytest.fixture
def population(linear: Linear) -> Population:
    """Fits of the same subjects, of omega 0.6 and 0.4 with a correlation of 0.5, and sigma 0.2."""
    subjects = make_population(25, 3, doses=2)
    g = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 1, 25, 1, generator=g, dtype=F64)
    eta = [0.6 * first, 0.4 * (0.5 * first + 0.75**0.5 * second)]
    noise = 0.2 * torch.randn(subjects.dv.shape[0], 1, 25, 1, generator=g, dtype=F64)
    weight = subjects.covariates["weight"][..., :1]
    zeta = {"CL": 1 + 0.01 * (weight - 70), "V1": torch.full((1,), 2.0, dtype=F64)}
    dv = (linear.predict(zeta, subjects, eta) + noise)[..., :1]
    return replace(subjects, dv=dv.expand_as(subjects.dv).contiguous())


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
    eta = torch.cat(kept, 1)  # (K, S, N, B)
    sd = want.diagonal().permute(2, 0, 1).sqrt()
    mean = torch.cat(modes)
    # Some 2500 independent draws of each subject.
    assert bool(((eta.mean(1) - mean).abs() < 4.5 * sd / 2500**0.5).all())
    away = eta - mean[:, None]
    spread = (away[:, None] * away).mean(2)
    assert bool(((spread - want).abs() < 0.13 * sd[:, None] * sd).all())
    # The mean weight of proposals is the likelihood.
    of_subjects = Fo().of_subjects(linear, population, State(values))
    mean_weight = torch.logsumexp(torch.cat(log_mean), 0) - np.log(200)
    torch.testing.assert_close(-2 * mean_weight[None], of_subjects, rtol=0, atol=0.15)


def draws_of(model: Model, population: Population, sd: float = 0.2) -> list[Tensor]:
    g = torch.Generator().manual_seed(8)
    size = model.size(population)
    drawn = sd * torch.randn(size, 4, *population.present.shape, generator=g, dtype=F64)
    return list((drawn + torch.linspace(-0.1, 0.2, size, dtype=F64).view(-1, 1, 1, 1)).unbind(0))


def test_a_step_of_omega_is_the_covariance_of_draws(model: Model) -> None:
    """Of subjects that have draws, in blocks; and a variance falls no faster than is said."""
    model = replace(model, random_effects=RandomEffects(("CL", "V1", "Q"), [["CL", "Q"]]))
    population, values = make_population(7, 3), model.init(STREAMS, F64)
    eta = draws_of(model, population)
    drawn = torch.ones(1, 7, 3, dtype=F64)
    drawn[:, 5:, 1] = 0
    f = model.predict(model.typical(values, population), population, eta)
    moved = "omega", "correlation"
    new = maximisation.step(model, population, values, moved, eta, f, drawn, WHOLE)
    got = dense(covariance(model.omega_cholesky(new)))
    for fit, count in enumerate((7, 5, 7)):
        rows = torch.stack(eta)[:, :, :count, fit].flatten(1)
        want = rows @ rows.T / rows.shape[1]
        want[1, [0, 2]] = want[[0, 2], 1] = 0
        torch.testing.assert_close(got[..., fit], want, rtol=1e-5, atol=1e-7)
    wide = {**values, "omega": values["omega"] + 10}
    slow = WHOLE._replace(least=torch.full((3,), 0.81, dtype=F64))
    new = maximisation.step(model, population, wide, moved, eta, f, drawn, slow)
    before, after = (functional.softplus(v["omega"]) for v in (wide, new))
    torch.testing.assert_close(after, 0.9 * before)


def test_a_step_of_pi_is_of_occasions_that_subjects_have() -> None:
    numbers = (1, 3, 2, 3)
    rows, model = occasions.table(numbers), occasions.model_of(("CL", "V1"), "full", ("additive",))
    population = occasions.population_of(rows)
    values, drawn = model.init(STREAMS[:1], F64), torch.ones(1, 4, 1, dtype=F64)
    eta = draws_of(model, population)
    f = model.predict(model.typical(values, population), population, eta)
    gain = maximisation.Gain(torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64))
    new = maximisation.step(model, population, values, ("pi", "pi_correlation"), eta, f, drawn, gain)
    assert model.occasions is not None
    kappa = torch.stack(list(model.kappas(eta).values()))[..., 0]  # (L, O, S, N)
    have = torch.cat([kappa[:, :number, :, n].flatten(1) for n, number in enumerate(numbers)], 1)
    got = dense(covariance(model.occasions.cholesky(new)))[..., 0]
    torch.testing.assert_close(got, have @ have.T / have.shape[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ERROR_MODELS)
def test_a_step_of_sigma_is_the_most_likely_one(model: Model, name: str) -> None:
    """By scipy, at the draws; of one component the root mean square of white residuals."""
    error = ERROR_MODELS[name]
    model = replace(model, error=error)
    population, values = make_population(6, 3, doses=2), plausible(model)
    values = {n: torch.cat([v, v[..., :1]], -1) for n, v in values.items()}
    eta = draws_of(model, population)
    drawn = torch.ones(1, 6, 3, dtype=F64)
    for _ in range(6):  # from far away, a step has to be cut short
        f = model.predict(model.typical(values, population), population, eta)
        values = maximisation.step(model, population, values, ("sigma",), eta, f, drawn, WHOLE)

    def value(x: np.ndarray) -> float:
        known = {**values, "sigma": torch.tensor(np.log(np.expm1(np.exp(x))))[:, None].expand(-1, 3)}
        return -float(error.log_likelihood(known, f, population)[0])

    start = np.log(np.log1p(np.exp(values["sigma"][:, 0].numpy())))
    found = optimize.minimize(
        value, start + 0.3, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9}
    )
    assert value(start) <= found.fun + 1e-4
    if name == "log-normal":
        white = error.white(values, f, population.dv)
        torch.testing.assert_close(white.square().mean((0, 1, 2)), torch.ones(3, dtype=F64))


def test_a_step_of_typical_parameters_is_a_regression(linear: Linear, population: Population) -> None:
    """Generalised least squares of individual parameters, which stay where they are."""
    moved = ("global.CL", "global.V1", "global.CL_weight_slope")
    values = linear.init(STREAMS, F64)
    eta, drawn = draws_of(linear, population), torch.ones(1, 25, 3, dtype=F64)
    old = linear.typical(values, population)
    f = linear.predict(old, population, eta)
    new = maximisation.step(linear, population, values, moved, eta, f, drawn, WHOLE)
    after = maximisation.recentred(linear, population, values, new, eta)
    found = linear.typical(new, population)
    torch.testing.assert_close(f, linear.predict(found, population, after))
    z = [(old[name] + effect).mean(0) for name, effect in zip(("CL", "V1"), eta, strict=True)]
    away = population.covariates["weight"][0] - 70
    for fit in range(3):
        factor = torch.stack([torch.ones(25, dtype=F64), away[:, fit]], 1)
        design = torch.zeros(25, 2, 3, dtype=F64)
        design[:, 0, :2], design[:, 1, 2] = factor, 1
        root = torch.linalg.inv(dense(linear.omega_cholesky(values))[..., fit])
        y = torch.stack([part[:, fit] for part in z], 1)
        x = (root @ design).reshape(-1, 3)
        beta = torch.linalg.lstsq(x, (root @ y[..., None]).reshape(-1, 1)).solution[:, 0]
        # The model multiplies by 1 + slope, of which one step has no more than the straight part.
        got = torch.stack([found["CL"][0, :, fit], found["V1"][fit].expand(25)], 1)
        torch.testing.assert_close(got, design @ beta, rtol=0.02, atol=0.02)


def test_nothing_moves_without_draws(linear: Linear, population: Population) -> None:
    values = linear.init(STREAMS, F64)
    moved = ("global.CL", "global.V1", "omega", "correlation", "sigma")
    nobody = torch.zeros(1, 25, 3, dtype=F64)
    eta = draws_of(linear, population)
    f = linear.predict(linear.typical(values, population), population, eta)
    new = maximisation.step(linear, population, values, moved, eta, f, nobody, WHOLE)
    for name, value in values.items():
        torch.testing.assert_close(new[name], value, rtol=1e-5, atol=1e-5)


MOVED = ("omega", "correlation", "sigma", "global.CL", "global.V1", "global.CL_weight_slope")


def rows_of(values: Values) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, place) for name in MOVED for place in np.ndindex(*values[name].shape[:-1])]


def test_scores_are_the_gradient_of_each_subjects_likelihood(linear: Linear, population: Population) -> None:
    """Their mean over exact draws of the posterior, by finite differences of the exact likelihood."""
    values = plausible_linear(linear)
    zero = [torch.zeros(1, 25, 3, dtype=F64)] * 2
    modes = find_modes(linear, values, population, zero, 1e-12, 20).eta
    factor = torch.linalg.cholesky(
        laplace_covariance(linear, values, population, modes).permute(2, 3, 0, 1)
    ).permute(2, 3, 0, 1)
    z = torch.randn(2, 8000, 25, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    eta = list((torch.cat(modes)[:, None] + torch.einsum("ijnb,jsnb->isnb", factor, z)).unbind(0))
    f = linear.predict(linear.typical(values, population), population, eta)
    found = ascent.scores(linear, population, values, MOVED, eta, f)
    assert found.shape == (7, 8000, 25, 3)
    error = found.std(1) / 8000**0.5
    for row, (name, place) in enumerate(rows_of(values)):
        each = []
        for shift in (1e-5, -1e-5):
            moved = values[name].clone()
            moved[place] += shift
            each.append(Fo().of_subjects(linear, population, State({**values, name: moved}))[0])
        want = -(each[0] - each[1]) / 4e-5
        assert bool(((found[row].mean(0) - want).abs() < 4.5 * error[row] + 1e-6).all())


def plausible_linear(linear: Linear) -> dict[str, Tensor]:
    """Omega 0.6 and 0.4, sigma 0.25."""
    values = linear.init(STREAMS, F64)
    known = {"omega": [-0.2, -0.7], "correlation": [0.4], "sigma": [-1.26]}
    return values | {
        name: torch.tensor(raw, dtype=F64)[:, None].expand(-1, 3).clone() for name, raw in known.items()
    }


def test_a_step_by_information_solves_for_it(linear: Linear) -> None:
    """The gradient of draws over the sum of outer products of scores; and no step is longer than is said."""
    values, g = plausible_linear(linear), torch.Generator().manual_seed(7)
    scores = 0.01 * torch.randn(7, 1, 40, 3, generator=g, dtype=F64)
    scores[:, :, 30:, 1] = 100.0  # of subjects without draws
    drawn = torch.ones(1, 40, 3, dtype=F64)
    drawn[:, 30:, 1] = 0
    nothing = ascent.Known(torch.zeros(7, 40, 3, dtype=F64), torch.zeros(7, 7, 3, dtype=F64))
    one = torch.ones(3, dtype=F64)
    known = ascent.learned(nothing, scores, drawn, one, one)
    move = torch.tensor([0.01, 0.01, 1.0], dtype=F64)
    for factor in (1.0, 1e6):
        new = ascent.step(values, MOVED, known, factor * scores, drawn, one, move)
        for fit, count in enumerate((40, 30, 40)):
            rows = scores[:, 0, :count, fit].numpy()
            want = np.linalg.solve(rows @ rows.T, factor * rows.sum(1))
            for row, (name, place) in enumerate(rows_of(values)):
                got = float((new[name][place] - values[name][place])[fit] / move[fit])
                least = max(1.0, abs(float(values[name][place][fit])))
                assert got == pytest.approx(np.clip(want[row], -0.5 * least, 0.5 * least), rel=0.01, abs=1e-3)


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
    with pytest.raises(InputError, match="objective=saem is no function without noise"):
        Saem().criterion(2)
