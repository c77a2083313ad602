"""The steps of stochastic approximation EM against closed forms, scipy and exact likelihoods."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor
from torch.nn import functional

from medcm_cli.data import Population
from medcm_cli.model import Model, RandomEffects, ResidualError, Values
from medcm_cli.numerics.triangular import covariance, dense
from medcm_cli.objectives import Fo, State, ascent, maximisation
from medcm_cli.objectives.modes import find_modes, laplace_covariance
from tests.helpers import (
    ERROR_MODELS,
    F64,
    make_population,
    plausible,
)
from tests.objectives import occasions
from tests.objectives.linear import MOVED, STREAMS, Linear, linear_of, population_of

WHOLE = maximisation.Gain(torch.ones(3, dtype=F64), torch.zeros(3, dtype=F64))


@pytest.fixture
def linear(model: Model) -> Linear:
    return linear_of(model)


@pytest.fixture
def population(linear: Linear) -> Population:
    return population_of(linear)


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


def test_while_it_explores_sigma_rises_no_faster_than_it_falls(model: Model) -> None:
    """A draw that predicts next to nothing has white residuals of thousands."""
    model = replace(model, error=ResidualError(("proportional",)))
    population, values = make_population(6, 3, doses=2), plausible(model)
    values = {n: torch.cat([v, v[..., :1]], -1) for n, v in values.items()}
    eta = draws_of(model, population)
    f = model.predict(model.typical(values, population), population, eta).clone()
    f[:, 0, 0] /= 1e4
    drawn = torch.ones(1, 6, 3, dtype=F64)
    slow = WHOLE._replace(least=torch.full((3,), 0.81, dtype=F64))
    before, slowly, at_once = (
        torch.nn.functional.softplus(found["sigma"])
        for found in (
            values,
            *(
                maximisation.step(model, population, values, ("sigma",), eta, f, drawn, gain)
                for gain in (slow, WHOLE)
            ),
        )
    )
    torch.testing.assert_close(slowly, before / 0.9)
    assert bool((at_once > 100 * before).all())


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


def rows_of(values: Values) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, place) for name in MOVED for place in np.ndindex(*values[name].shape[:-1])]


def plausible_linear(linear: Linear) -> dict[str, Tensor]:
    """Omega 0.6 and 0.4, sigma 0.25."""
    values = linear.init(STREAMS, F64)
    known = {"omega": [-0.2, -0.7], "correlation": [0.4], "sigma": [-1.26]}
    return values | {
        name: torch.tensor(raw, dtype=F64)[:, None].expand(-1, 3).clone() for name, raw in known.items()
    }


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
