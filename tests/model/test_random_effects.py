"""One to six random effects, with and without correlations, and modes that follow the trained values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError, Values
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import covariance, dense
from medcm_cli.objectives import Agq, Fo, Foce, Focei, Laplace, Objective, State, Vi
from medcm_cli.objectives.modes import find_modes, moving_modes
from medcm_cli.pk import one_compartment
from tests.helpers import make_population

F64 = torch.float64
STREAMS = [Stream(3, 1, 1), Stream(3, 1, 2)]
SUBJECTS, FITS = 5, 2


@dataclass(frozen=True)
class Linear(Model):
    """y = X eta + residual, with any number of columns: everything is exact."""

    def predict(self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None) -> Tensor:
        del zeta
        columns = self.columns(population)
        level = 0.3 + 0 * population.time
        return level if eta is None else level + sum(c * e for c, e in zip(columns, eta, strict=True))

    def linearise(
        self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        return self.predict(zeta, population, eta), self.columns(population)

    def columns(self, population: Population) -> list[Tensor]:
        t, w = population.time, population.covariates["weight"]
        return [torch.cos(t / (5 + 3 * k)) + k * w / 500 for k in range(len(self.random_effects.names))]


def linear(k: int, structure: str) -> Linear:
    names = tuple("abcdef"[:k])
    network = CovariateNetwork.build([], list(names), {})
    pk = replace(one_compartment(), parameters=names)
    return Linear(network, pk, RandomEffects(names, structure), ResidualError(("additive",)))


def omega_of(values: Values, fit: int) -> np.ndarray:
    """By numpy, from canonical partial correlations: Omega's Cholesky factor row by row."""
    sd = np.log1p(np.exp(values["omega"][:, fit].numpy()))
    k = len(sd)
    lower = np.eye(k)
    partial = iter(np.tanh(values["correlation"][:, fit].numpy()) if "correlation" in values else ())
    for i in range(k):
        for j in range(i):
            value = next(partial, 0.0)
            lower[i, j] = value * np.sqrt(1 - (lower[i, :j] ** 2).sum())
        lower[i, i] = np.sqrt(1 - (lower[i, :i] ** 2).sum())
    lower = sd[:, None] * lower
    return np.asarray(lower @ lower.T)


def spread_out(model: Linear, population: Population, generator: torch.Generator) -> dict[str, Tensor]:
    """Trained values away from their start."""
    start = Fo().init(model, population, STREAMS, F64)
    return {
        name: value + 0.5 * torch.randn(value.shape, generator=generator, dtype=F64)
        for name, value in start.trained.items()
    }


def exact(
    model: Linear, population: Population, values: dict[str, Tensor]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log marginal likelihood (B,), mean (K, N, B) and covariance (K, K, N, B) of eta given the data, a
    subject at a time."""
    k = len(model.random_effects.names)
    columns = [c[:, 0].numpy() for c in model.columns(population)]
    log_marginal, mean, cov = np.zeros(FITS), np.zeros((k, SUBJECTS, FITS)), np.zeros((k, k, SUBJECTS, FITS))
    for b in range(FITS):
        omega = omega_of(values, b)
        np.testing.assert_allclose(
            dense(covariance(model.omega_cholesky(values)))[..., b].numpy(), omega, rtol=1e-10, atol=1e-14
        )
        sd = np.log1p(np.exp(float(values["sigma"][0, b])))
        for n in range(SUBJECTS):
            rows = population.observed[:, 0, n, b].numpy() > 0
            x = np.stack([c[rows, n, b] for c in columns], 1)
            r = population.dv[:, 0, n, b].numpy()[rows] - 0.3
            c = x @ omega @ x.T + sd**2 * np.eye(len(r))
            log_marginal[b] += stats.multivariate_normal(np.zeros(len(r)), c).logpdf(r)
            cov[:, :, n, b] = np.linalg.inv(np.linalg.inv(omega) + x.T @ x / sd**2)
            mean[:, n, b] = cov[:, :, n, b] @ x.T @ r / sd**2
    return log_marginal, mean, cov


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_fo_and_foce_equal_the_exact_marginal(k: int, structure: str) -> None:
    model = linear(k, structure)
    population = make_population(SUBJECTS, FITS, ragged=True)
    spread = spread_out(model, population, torch.Generator().manual_seed(0))
    assert ("correlation" in spread) == (structure == "full" and k > 1)
    log_marginal, mean, cov = exact(model, population, spread)
    without_constant = -2 * log_marginal - population.observation_count.numpy() * np.log(2 * np.pi)
    objectives: list[Objective] = [Fo(mode_tolerance=1e-11)]
    for g in ("fixed", "implicit"):
        at: dict[str, Any] = {"mode_tolerance": 1e-11, "mode_gradient": g}
        objectives += [Foce(formulation, **at) for formulation in ("joint", "linearised", "nonmem")]
        objectives += [Focei(**at), Laplace(**at), Agq(nodes=3 if k < 6 else 2, **at)]
    for objective in objectives:
        state = objective.init(model, population, STREAMS, F64)
        leaves = {name: value.clone().requires_grad_() for name, value in spread.items()}
        state = objective.refresh(model, population, replace(state, trained=leaves))
        loss = objective.loss(model, population, state, None)
        np.testing.assert_allclose(loss.numpy(force=True), without_constant, rtol=1e-9)
        assert all(
            bool(torch.isfinite(part).all())
            for part in torch.autograd.grad(loss.sum(), [leaves["omega"], leaves["sigma"]])
        )
        got = objective.random_effects(model, population, replace(state, trained=spread))
        assert got is not None
        np.testing.assert_allclose(got[0].numpy(), mean, atol=1e-8)
        np.testing.assert_allclose(got[1].numpy(), cov, atol=1e-10)


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_elbo_equals_the_exact_marginal_at_the_posterior(k: int, structure: str) -> None:
    model = linear(k, structure)
    population = make_population(SUBJECTS, FITS, ragged=True)
    g = torch.Generator().manual_seed(0)
    spread = spread_out(model, population, g)
    log_marginal, mean, cov = exact(model, population, spread)
    vi = Vi(samples=2)
    lower = np.linalg.cholesky(cov.transpose(2, 3, 0, 1))
    scale = np.sqrt((lower**2).sum(-1))
    trained = {
        **spread,
        "q.mean": torch.as_tensor(mean),
        "q.sd": torch.as_tensor(np.log(np.expm1(scale)).transpose(2, 0, 1)),
    }
    if k > 1:  # q is correlated whatever Omega is
        trained["q.correlation"] = torch.as_tensor(np.stack(raw_correlations(lower / scale[..., None])))
    assert {n: v.shape for n, v in vi.init(model, population, STREAMS, F64).trained.items()} == {
        n: v.shape for n, v in trained.items()
    }
    noise = torch.randn(k, 2, SUBJECTS, FITS, generator=g, dtype=F64)
    elbo = -vi.loss(model, population, State(trained), noise).numpy()
    np.testing.assert_allclose(elbo, log_marginal, rtol=1e-9)


def raw_correlations(lower: np.ndarray) -> list[np.ndarray]:
    """Raw canonical partial correlations of factors (..., K, K) with rows of length 1, row by row."""
    raw = []
    for i in range(lower.shape[-1]):
        left = np.ones(lower.shape[:-2])
        for j in range(i):
            raw.append(np.arctanh(lower[..., i, j] / np.sqrt(left)))
            left = left - lower[..., i, j] ** 2
    return raw


# -- the gradient through the modes ----------------------------------------------------------------


def total(objective: Foce, model: Model, population: Population, trained: dict[str, Tensor]) -> Tensor:
    """The objective as a function of the trained values alone: the modes are found for each anew."""
    state = objective.init(model, population, STREAMS, F64)
    state = objective.refresh(model, population, replace(state, trained=trained))
    return objective.loss(model, population, state, None).sum()


@pytest.mark.parametrize(
    ("case", "error"),
    [
        pytest.param(case, error, marks=[pytest.mark.slow] * (case != "joint" and len(error) == 1))
        for case in ("joint", "linearised", "censored", "diagonal")
        for error in (("additive",), ("proportional",), ("additive", "proportional"))
    ],
)
def test_implicit_gradient_is_that_of_the_whole_objective(
    model: Model, error: tuple[str, ...], case: str
) -> None:
    structure = "diagonal" if case == "diagonal" else "full"
    effects = RandomEffects(("CL", "V1", "V2") if case == "diagonal" else ("CL", "V1"), structure)
    model = replace(model, error=ResidualError(error), random_effects=effects)
    population = make_population(SUBJECTS, FITS)
    if case == "censored":
        below = (population.dv < 0.21).to(F64)
        population = replace(population, dv=population.dv.clamp(min=0.21), censored=below)
    formulation = "linearised" if case == "linearised" else "joint"
    objective = Foce(formulation, mode_tolerance=1e-10, mode_iterations=500, mode_gradient="implicit")
    trained = objective.init(model, population, STREAMS, F64).trained
    # Plausible values: CL about 0.14 L/h, V1 2 L, Q 0.15 L/h, V2 0.75 L, omega 0.2, sigma 0.04.
    raw = {"weight.heads.bias": [-1.5, 1.9], "vwf.heads.bias": [0.0], "global.Q": -1.8, "global.V2": 0.1}
    for name, value in trained.items():
        plausible = torch.tensor(raw.get(name, 0.0), dtype=F64)[..., None].expand_as(value)
        shift = {"omega": 0.7, "sigma": -1.0}.get(name, 0.0)
        small = 0.2 if name.endswith("weight") else 1.0
        trained[name] = plausible.clone() if name in raw else small * value + shift
    leaves = {name: value.clone().requires_grad_() for name, value in trained.items()}
    gradient = torch.autograd.grad(total(objective, model, population, leaves), list(leaves.values()))
    fixed = replace(objective, mode_gradient="fixed")
    held = torch.autograd.grad(total(fixed, model, population, leaves), list(leaves.values()))
    g = torch.Generator().manual_seed(1)
    wrong = 0.0
    for _ in range(3):
        direction = [torch.randn(v.shape, generator=g, dtype=F64) for v in leaves.values()]
        got, other = (
            sum((a * b).sum().item() for a, b in zip(parts, direction, strict=True))
            for parts in (gradient, held)
        )
        up, down = (
            total(
                objective,
                model,
                population,
                {k: v.detach() + h * d for (k, v), d in zip(leaves.items(), direction, strict=True)},
            ).item()
            for h in (1e-5, -1e-5)
        )
        want = (up - down) / 2e-5
        assert got == pytest.approx(want, rel=1e-5)
        wrong = max(wrong, abs(other - want) / abs(want))
    assert wrong > 1e-3  # the difference that following the modes makes


def test_moving_modes_stay_where_they_are_and_do_not_move_at_a_bound(model: Model) -> None:
    population = make_population(SUBJECTS, FITS)
    high = population.dv.clone()
    high[:, :, 0] *= 1e6  # the first subject's eta goes to the bound
    population = replace(population, dv=high)
    trained = Fo().init(model, population, STREAMS, F64).trained
    trained = {**trained, "omega": torch.full((2, FITS), 1.0, dtype=F64)}
    start = [torch.zeros(1, SUBJECTS, FITS, dtype=F64)] * 2
    modes = find_modes(model, trained, population, start, 1e-10, 500)
    assert float(torch.cat(modes.eta)[:, 0].abs().amax()) > 3 - 1e-6
    leaves = {name: value.clone().requires_grad_() for name, value in trained.items()}
    moving = torch.cat(moving_modes(model, leaves, population, modes.eta))
    torch.testing.assert_close(moving, torch.cat(modes.eta), rtol=0, atol=1e-12)
    (still,) = torch.autograd.grad(moving[:, 0].sum(), leaves["omega"], retain_graph=True, allow_unused=True)
    assert still is None or float(still.abs().max()) == 0
    (moved,) = torch.autograd.grad(moving[:, 1:].sum(), leaves["omega"])
    assert float(moved.abs().min()) > 0
