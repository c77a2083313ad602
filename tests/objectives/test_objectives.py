"""Objectives against dense textbook formulas, scipy's optimiser, finite differences and an exactly solvable
model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.model.rows import raw_of
from medcm_cli.objectives import Fo, Foce, Mse, State, Vi
from medcm_cli.objectives.modes import find_modes
from tests.helpers import (
    ERRORS,
    F64,
    STREAMS,
    LinearGaussian,
    at_eta,
    dense_omega,
    make_population,
    sd_of,
    slopes,
    with_error,
)


def dense_terms(
    model: Model, values: Values, population: Population, eta: np.ndarray, linearised: bool
) -> list[dict[str, float]]:
    """Per fit: sums over subjects of log|C|, r'C^-1 r, r'Sigma^-1 r and eta'Omega^-1 eta, with n x n
    matrices."""
    f, g = at_eta(model, values, population, eta), slopes(model, values, population, eta)
    dv, seen = population.dv[:, 0].numpy(), population.observed[:, 0].numpy() > 0
    result = []
    for b in range(f.shape[2]):
        omega = dense_omega(dict(values), b)
        total = dict.fromkeys(("log_det", "quadratic", "residual", "prior"), 0.0)
        for n in range(f.shape[1]):
            rows = seen[:, n, b]
            fi, gi, e = f[rows, n, b], g[:, rows, n, b].T, eta[:, n, b]
            sigma = np.diag(sd_of(model, values, fi, b) ** 2)
            c = gi @ omega @ gi.T + sigma
            r = dv[rows, n, b] - fi + (gi @ e if linearised else 0)
            total["log_det"] += np.linalg.slogdet(c)[1]
            total["quadratic"] += r @ np.linalg.solve(c, r)
            total["residual"] += r @ np.linalg.solve(sigma, r)
            total["prior"] += float(e @ np.linalg.solve(omega, e))
        result.append(total)
    return result


def test_mse_is_the_mean_over_all_observations(model: Model) -> None:
    population = make_population(7, 2, ragged=True)
    state = Mse().init(model, population, STREAMS, F64)
    f = at_eta(model, state.trained, population, np.zeros((2, 7, 2)))
    seen = population.observed[:, 0].numpy() > 0
    squared = np.where(seen, (f - population.dv[:, 0].numpy()) ** 2, 0)
    got = Mse().loss(model, population, state, None).detach().numpy()
    np.testing.assert_allclose(got, squared.sum((0, 1)) / seen.sum((0, 1)), rtol=1e-12)
    assert "omega" not in state.trained
    assert "sigma" not in state.trained


@pytest.mark.parametrize("error", ERRORS)
def test_fo_equals_dense_formula(model: Model, error: str) -> None:
    model = with_error(model, error)
    population = make_population(7, 2, ragged=True)
    state = Fo().init(model, population, STREAMS, F64)
    want = [
        t["log_det"] + t["quadratic"]
        for t in dense_terms(model, state.trained, population, np.zeros((2, 7, 2)), False)
    ]
    np.testing.assert_allclose(Fo().loss(model, population, state, None).detach().numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("error", ERRORS)
def test_foce_equals_dense_formula_at_its_modes(model: Model, error: str) -> None:
    model = with_error(model, error)
    population = make_population(7, 2, ragged=True)
    for formulation in ("joint", "linearised"):
        objective = Foce(formulation, mode_tolerance=1e-9)
        state = objective.refresh(model, population, objective.init(model, population, STREAMS, F64))
        eta = state.carried["eta"].numpy()
        terms = dense_terms(model, state.trained, population, eta, formulation == "linearised")
        keys = ("log_det", "residual", "prior") if formulation == "joint" else ("log_det", "quadratic")
        want = [sum(t[key] for key in keys) for t in terms]
        got = objective.loss(model, population, state, None).detach().numpy()
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("error", ERRORS)
def test_modes_equal_scipys(model: Model, error: str) -> None:
    model = with_error(model, error)
    population = make_population(6, 2, doses=2)
    state = Fo().init(model, population, STREAMS, F64)
    start = [torch.zeros(1, 6, 2, dtype=F64)] * 2
    modes = find_modes(model, state.trained, population, start, 1e-10, 200)
    assert bool(modes.converged.all())
    dv = population.dv[:, 0].numpy()
    for b in range(2):
        inverse = np.linalg.inv(dense_omega(state.trained, b))
        for n in range(6):

            def value(e: np.ndarray, n: int = n, b: int = b, inverse: np.ndarray = inverse) -> float:
                eta = np.zeros((2, 6, 2))
                eta[:, n, b] = e
                f = at_eta(model, state.trained, population, eta)[:, n, b]
                sd = sd_of(model, state.trained, f, b)
                return float((2 * np.log(sd) + ((dv[:, n, b] - f) / sd) ** 2).sum() + e @ inverse @ e)

            # From zero a proportional error sends an unbounded search to infinity.
            found = optimize.minimize(
                value,
                np.zeros(2),
                method="L-BFGS-B",
                bounds=[(-3, 3)] * 2,
                options={"ftol": 1e-15, "gtol": 1e-9},
            )
            got = np.array([float(part[0, n, b]) for part in modes.eta])
            np.testing.assert_allclose(got, found.x, atol=2e-5)
            assert value(got) <= found.fun + 1e-8 * abs(found.fun)


@pytest.mark.parametrize(("omega", "reach"), [(0.3, 3.0), (1.0, 5.0), (1e3, 10.0)])
def test_modes_stay_within_bounds(model: Model, omega: float, reach: float) -> None:
    """Levels a million times too high push eta against -3 and 3, or five sds, and no further than 10."""
    population = make_population(4, 2)
    far = replace(population, dv=population.dv * 1e6)
    state = Fo().init(model, far, STREAMS, F64)
    wide = {**state.trained, "omega": torch.full((2, 2), raw_of(omega), dtype=F64)}
    modes = find_modes(model, wide, far, [torch.zeros(1, 4, 2, dtype=F64)] * 2, 1e-8, 200)
    eta = torch.cat(modes.eta)
    assert float(eta.abs().max()) <= reach + 1e-9
    assert float(eta.abs().max()) > reach - 0.01


def test_modes_with_nearly_singular_omega_in_float32(model: Model) -> None:
    population = make_population(8, 2, dtype=torch.float32)
    state = Fo().init(model, population, STREAMS, torch.float32)
    tight = {**state.trained, "correlation": torch.full((1, 2), 5.0), "omega": torch.full((2, 2), -2.0)}
    modes = find_modes(model, tight, population, [torch.zeros(1, 8, 2)] * 2, 1e-4, 100)
    assert bool(modes.converged.all())
    double = {name: value.double() for name, value in tight.items()}
    wide = make_population(8, 2)
    exact = find_modes(model, double, wide, [torch.zeros(1, 8, 2, dtype=F64)] * 2, 1e-10, 200)
    for rounded, value in zip(modes.eta, exact.eta, strict=True):
        torch.testing.assert_close(rounded.double(), value, rtol=0, atol=2e-3)


@pytest.mark.parametrize("error", ["additive", "combined"])
@pytest.mark.parametrize(
    "objective", [Fo(), Foce(), Foce("linearised"), Mse()], ids=["fo", "foce", "foce9", "mse"]
)
def test_gradient_equals_finite_difference(model: Model, error: str, objective: Fo | Foce | Mse) -> None:
    """Through G as well: along random directions in all trained values, the modes held fixed."""
    model = with_error(model, error)
    population = make_population(5, 2)
    state = objective.refresh(model, population, objective.init(model, population, STREAMS, F64))
    leaves = {name: value.clone().requires_grad_() for name, value in state.trained.items()}
    loss = objective.loss(model, population, replace(state, trained=leaves), None)
    gradient = torch.autograd.grad(loss.sum(), list(leaves.values()))
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = [torch.randn(v.shape, generator=g, dtype=F64) for v in leaves.values()]
        want = float(sum((a * b).sum() for a, b in zip(gradient, direction, strict=True)))
        values = []
        for sign in (1, -1):
            moved = {
                name: value.detach() + sign * 1e-6 * d
                for (name, value), d in zip(leaves.items(), direction, strict=True)
            }
            values.append(objective.loss(model, population, replace(state, trained=moved), None).sum())
        assert float(values[0] - values[1]) / 2e-6 == pytest.approx(want, rel=2e-5)


# -- variational inference -------------------------------------------------------------------------


def vi_state(objective: Vi, model: Model, population: Population) -> State:
    """Initial values with q moved away from its symmetric start."""
    state = objective.init(model, population, STREAMS, F64)
    g = torch.Generator().manual_seed(5)
    moved = {
        name: value + 0.3 * torch.randn(value.shape, generator=g, dtype=F64)
        if name.startswith("q.")
        else value
        for name, value in state.trained.items()
    }
    return replace(state, trained=moved)


def posterior(values: Values, n: int, b: int, full_rank: bool) -> tuple[np.ndarray, np.ndarray]:
    mean = values["q.mean"][:, n, b].detach().numpy()
    sd = np.log1p(np.exp(values["q.sd"][:, n, b].detach().numpy()))
    rho = np.tanh(float(values["q.correlation"][0, n, b])) if full_rank else 0.0
    return mean, np.array([[sd[0], 0], [rho * sd[1], np.sqrt(1 - rho**2) * sd[1]]])


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("family", ["full_rank", "mean_field"])
@pytest.mark.parametrize("estimator", ["path_derivative", "standard", "entropy"])
def test_vi_equals_its_definition(model: Model, error: str, family: str, estimator: str) -> None:
    model = with_error(model, error)
    population = make_population(4, 2, ragged=True)
    objective = Vi(samples=3, estimator=estimator, family=family)
    state = vi_state(objective, model, population)
    shape = objective.noise_shape(model, population)
    noise = torch.randn(*shape, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    got = objective.loss(model, population, state, noise).detach().numpy()
    dv, seen = population.dv[:, 0].numpy(), population.observed[:, 0].numpy() > 0
    want = np.zeros(2)
    for b in range(2):
        prior = stats.multivariate_normal(np.zeros(2), dense_omega(state.trained, b))
        for s in range(3):
            eta = np.zeros((2, 4, 2))
            for n in range(4):
                mean, lower = posterior(state.trained, n, b, family == "full_rank")
                eta[:, n, b] = mean + lower @ noise[:, s, n, b].numpy()
            f = at_eta(model, state.trained, population, eta)
            for n in range(4):
                mean, lower = posterior(state.trained, n, b, family == "full_rank")
                q = stats.multivariate_normal(mean, lower @ lower.T)
                rows = seen[:, n, b]
                sd = sd_of(model, state.trained, f[rows, n, b], b)
                elbo = stats.norm(f[rows, n, b], sd).logpdf(dv[rows, n, b]).sum() + prior.logpdf(eta[:, n, b])
                elbo += q.entropy() if estimator == "entropy" else -q.logpdf(eta[:, n, b])
                want[b] -= elbo / 3
    np.testing.assert_allclose(got, want, rtol=1e-9)


def q_gradient(
    objective: Vi, model: Model, population: Population, state: State, noise: Tensor
) -> list[Tensor]:
    leaves = {name: v.clone().requires_grad_() for name, v in state.trained.items()}
    loss = objective.loss(model, population, replace(state, trained=leaves), noise).sum()
    wanted = [leaves[name] for name in ("q.mean", "q.sd", "q.correlation")]
    return list(torch.autograd.grad(loss, wanted))


def test_vi_standard_gradient_is_that_of_the_value(model: Model) -> None:
    population = make_population(3, 2)
    objective = Vi(samples=2, estimator="standard")
    state = vi_state(objective, model, population)
    noise = torch.randn(2, 2, 3, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    gradient = q_gradient(objective, model, population, state, noise)
    for name, part in zip(("q.mean", "q.sd", "q.correlation"), gradient, strict=True):
        for index in np.ndindex(*part.shape):
            ends = []
            for sign in (1, -1):
                moved = state.trained[name].clone()
                moved[index] += sign * 1e-6
                trained = {**state.trained, name: moved}
                ends.append(objective.loss(model, population, replace(state, trained=trained), noise).sum())
            assert float(ends[0] - ends[1]) / 2e-6 == pytest.approx(float(part[index]), rel=1e-4, abs=1e-6)


def test_vi_estimators_agree_in_expectation(model: Model) -> None:
    population = make_population(3, 2)
    noise = torch.randn(2, 40_000, 3, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    gradients = []
    for estimator in ("path_derivative", "standard", "entropy"):
        objective = Vi(samples=40_000, estimator=estimator)
        state = vi_state(objective, model, population)
        gradients.append(
            torch.cat([g.flatten() for g in q_gradient(objective, model, population, state, noise)])
        )
    scale = float(gradients[0].abs().max())
    assert float((gradients[0] - gradients[1]).abs().max()) < 0.02 * scale
    assert float((gradients[0] - gradients[2]).abs().max()) < 0.02 * scale
    assert float((gradients[0] - gradients[1]).abs().max()) > 0


# -- a model that is linear in eta: everything is exact --------------------------------------------


def test_linear_gaussian_fo_foce_and_best_elbo_equal_the_exact_marginal(model: Model) -> None:
    linear = LinearGaussian(model.network, model.pk, model.random_effects, model.error)
    population = make_population(6, 2, ragged=True)
    state = Fo().init(linear, population, STREAMS, F64)
    offset, columns = linear.design(population)
    dv, seen = population.dv[:, 0].numpy(), population.observed[:, 0].numpy() > 0
    log_marginal = np.zeros(2)
    q_mean, q_lower = np.zeros((2, 6, 2)), np.zeros((2, 2, 6, 2))
    for b in range(2):
        omega = dense_omega(state.trained, b)
        sd = np.log1p(np.exp(float(state.trained["sigma"][0, b])))
        for n in range(6):
            rows = seen[:, n, b]
            x = np.stack([c[:, 0].numpy()[rows, n, b] for c in columns], 1)
            r = dv[rows, n, b] - offset[:, 0].numpy()[rows, n, b]
            c = x @ omega @ x.T + sd**2 * np.eye(rows.sum())
            log_marginal[b] += stats.multivariate_normal(np.zeros(len(r)), c).logpdf(r)
            cov = np.linalg.inv(np.linalg.inv(omega) + x.T @ x / sd**2)
            q_mean[:, n, b] = cov @ x.T @ r / sd**2
            q_lower[:, :, n, b] = np.linalg.cholesky(cov)
    observations = seen.sum((0, 1))
    without_constant = -2 * log_marginal - observations * np.log(2 * np.pi)
    for objective in (Fo(), Foce(mode_tolerance=1e-11), Foce("linearised", mode_tolerance=1e-11)):
        at = objective.init(linear, population, STREAMS, F64)
        at = objective.refresh(linear, population, replace(at, trained=state.trained))
        got = objective.loss(linear, population, at, None).detach().numpy()
        np.testing.assert_allclose(got, without_constant, rtol=1e-9)

    # The exact posterior as q: the ELBO is then the log marginal likelihood, whatever the noise, and the path
    # derivative of q vanishes sample by sample.
    vi = Vi(samples=2)
    sd = np.sqrt((q_lower**2).sum(1))
    rho = q_lower[1, 0] / sd[1]
    trained = {
        **state.trained,
        "q.mean": torch.as_tensor(q_mean),
        "q.sd": torch.as_tensor(np.log(np.expm1(sd))),
        "q.correlation": torch.as_tensor(np.arctanh(rho))[None],
    }
    noise = torch.randn(2, 2, 6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    got = vi.loss(linear, population, State(trained), noise).detach().numpy()
    np.testing.assert_allclose(got, -log_marginal, rtol=1e-9)
    for part in q_gradient(vi, linear, population, State(trained), noise):
        assert float(part.abs().max()) < 1e-7
    worse = {**trained, "q.mean": trained["q.mean"] + 0.05}
    many = torch.randn(2, 4000, 6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    assert bool(
        (Vi(samples=4000).loss(linear, population, State(worse), many) > torch.as_tensor(-log_marginal)).all()
    )

    # The reported random effects of FO and FOCE are that posterior too.
    mode, spread = Fo(mode_tolerance=1e-11).random_effects(linear, population, state)
    np.testing.assert_allclose(mode.numpy(), q_mean, atol=1e-8)
    np.testing.assert_allclose(spread.numpy(), np.einsum("ijnb,kjnb->iknb", q_lower, q_lower), atol=1e-10)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Vi(samples=0), "samples"),
        (lambda: Vi(estimator="magic"), "estimator"),
        (lambda: Vi(family="cauchy"), "family"),
        (lambda: Foce("s10"), "formulation"),
    ],
)
def test_bad_options_are_named(make: object, what: str) -> None:
    with pytest.raises(InputError, match=f"objective.{what}"):
        make()  # type: ignore[operator]
