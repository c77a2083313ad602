"""Variability between occasions: levels, sensitivities and objectives against numpy, scipy, and a model that
is solved exactly."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.objectives import Fo, Foce, Mse, State, Vi
from medcm_cli.objectives.modes import find_modes, laplace_covariance
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from tests.helpers import F64, STREAMS
from tests.objectives import occasions as known

ONE = STREAMS[:1]
NUMBERS = (1, 3, 2, 3)
CASES = {
    "CL": (("CL",), "diagonal", ("additive",)),
    "both": (("CL", "V1"), "diagonal", ("proportional",)),
    "correlated": (("CL", "V1"), "full", ("additive", "proportional")),
}


def begun(objective: Fo | Foce | Vi, model: Model, population: Population) -> State:
    """Values away from where fits begin, with sds that matter."""
    state = objective.init(model, population, ONE, F64)
    trained = dict(state.trained)
    trained["omega"] = trained["omega"] + torch.tensor([[0.8], [0.4]], dtype=F64)
    trained["pi"] = trained["pi"] + torch.linspace(0.5, 0.9, len(trained["pi"]), dtype=F64)[:, None]
    trained["sigma"] = trained["sigma"] + 1.0
    return replace(state, trained=trained)


def value_of(loss: Tensor) -> float:
    return float(loss.detach())


@pytest.mark.parametrize("case", CASES)
def test_levels_and_their_derivatives(case: str) -> None:
    """Against complex steps through a solution in numpy: what an occasion leaves for the next matters."""
    own, structure, error = CASES[case]
    rows, model = known.table(NUMBERS), known.model_of(own, structure, error)
    population = known.population_of(rows)
    values = begun(Fo(), model, population).trained
    zeta = known.typical(model, values, population)
    eta = 0.3 * np.random.default_rng(1).standard_normal((model.size(population), len(NUMBERS)))
    with torch.no_grad():
        at = model.typical(values, population)
        for given, wanted in ((None, 0 * eta), (known.as_effects(eta), eta)):
            f, columns = model.linearise(at, population, given)
            assert len(columns) == 2 + 3 * len(own)
            if given is not None:
                torch.testing.assert_close(model.predict(at, population, given), f)
            for n in range(len(NUMBERS)):
                want = known.levels(rows, n + 1, own, zeta, wanted[:, n])
                slopes = known.jacobian(rows, n + 1, own, zeta, wanted[:, n])
                np.testing.assert_allclose(f[: len(want), 0, n, 0], want, rtol=1e-9)
                got = torch.stack(columns, -1)[: len(want), 0, n, 0].numpy()
                np.testing.assert_allclose(got, slopes, rtol=1e-8, atol=1e-10)
    # Subject 1 has one occasion: nothing depends on the kappas of others.
    assert all(bool((column[:, :, 0] == 0).all()) for column in columns[2 + len(own) :])


@pytest.mark.parametrize("case", CASES)
def test_fo_equals_dense_formula(case: str) -> None:
    own, structure, error = CASES[case]
    rows, model = known.table(NUMBERS), known.model_of(own, structure, error)
    population = known.population_of(rows)
    state = begun(Fo(), model, population)
    zeta, prior = (
        known.typical(model, state.trained, population),
        known.dense_prior(model, state.trained, population),
    )
    want = 0.0
    for n in range(len(NUMBERS)):
        f, g = (of(rows, n + 1, own, zeta, np.zeros(len(prior))) for of in (known.levels, known.jacobian))
        c = g @ prior @ g.T + np.diag(known.sigma_of(model, state.trained, f) ** 2)
        r = known.observed(rows, n + 1) - f
        want += np.linalg.slogdet(c)[1] + r @ np.linalg.solve(c, r)
    np.testing.assert_allclose(value_of(Fo().loss(model, population, state, None)), want, rtol=1e-8)


def scipys_mode(
    rows: object, subject: int, own: Sequence[str], model: Model, values: Values, prior: np.ndarray
) -> np.ndarray:
    population = known.population_of(rows)  # type: ignore[arg-type]
    zeta, y = known.typical(model, values, population), known.observed(rows, subject)  # type: ignore[arg-type]
    inverse = np.linalg.inv(prior)

    def value(eta: np.ndarray) -> float:
        f = known.levels(rows, subject, own, zeta, eta)  # type: ignore[arg-type]
        sd = known.sigma_of(model, values, f)
        return float((2 * np.log(sd) + ((y - f) / sd) ** 2).sum() + eta @ inverse @ eta)

    found = optimize.minimize(value, np.zeros(len(prior)), method="BFGS", options={"gtol": 1e-7})
    return np.asarray(found.x)


@pytest.mark.parametrize("case", CASES)
def test_foce_equals_dense_formula_at_scipys_modes(case: str) -> None:
    own, structure, error = CASES[case]
    rows, model = known.table(NUMBERS), known.model_of(own, structure, error)
    population = known.population_of(rows)
    objective = Foce(mode_tolerance=1e-10)
    state = objective.refresh(model, population, begun(objective, model, population))
    assert bool(state.carried["converged"].all())
    zeta, prior = (
        known.typical(model, state.trained, population),
        known.dense_prior(model, state.trained, population),
    )
    want, want_linearised = 0.0, 0.0
    for n in range(len(NUMBERS)):
        eta = scipys_mode(rows, n + 1, own, model, state.trained, prior)
        np.testing.assert_allclose(state.carried["eta"][:, n, 0], eta, atol=2e-5)
        f, g = (of(rows, n + 1, own, zeta, eta) for of in (known.levels, known.jacobian))
        sigma = np.diag(known.sigma_of(model, state.trained, f) ** 2)
        c, r = g @ prior @ g.T + sigma, known.observed(rows, n + 1) - f
        want += np.linalg.slogdet(c)[1] + r @ np.linalg.solve(sigma, r) + eta @ np.linalg.solve(prior, eta)
        want_linearised += np.linalg.slogdet(c)[1] + (r + g @ eta) @ np.linalg.solve(c, r + g @ eta)
    np.testing.assert_allclose(value_of(objective.loss(model, population, state, None)), want, rtol=1e-6)
    linearised = replace(objective, formulation="linearised")
    got = value_of(linearised.loss(model, population, state, None))
    np.testing.assert_allclose(got, want_linearised, rtol=1e-5)


@pytest.mark.parametrize("family", ["full_rank", "mean_field", "by_occasion"])
def test_vi_equals_the_elbo_of_its_draws(family: str) -> None:
    """Densities by scipy: of kappas only those on occasions that a subject has count, in q and prior."""
    own = ("CL", "V1")
    rows, model = known.table(NUMBERS), known.model_of(own, "full")
    population = known.population_of(rows)
    objective = Vi(samples=2, family=family, estimator="standard")
    state = begun(objective, model, population)
    shape = objective.noise_shape(model, population)
    noise = torch.randn(*shape, 1, generator=torch.Generator().manual_seed(3), dtype=F64)
    got = value_of(objective.loss(model, population, state, noise))
    zeta, prior = (
        known.typical(model, state.trained, population),
        known.dense_prior(model, state.trained, population),
    )
    mean, cov = (m.detach().numpy() for m in objective.random_effects(model, population, state))
    want = 0.0
    for n, number in enumerate(NUMBERS):
        has = 2 + 2 * number
        root = np.linalg.cholesky(cov[:, :, n, 0])
        for s in range(2):
            eta = mean[:, n, 0] + root @ noise[:, s, n, 0].numpy()
            f = known.levels(rows, n + 1, own, zeta, eta)
            sd = known.sigma_of(model, state.trained, f)
            want -= stats.norm(f, sd).logpdf(known.observed(rows, n + 1)).sum() / 2
            want -= stats.multivariate_normal(cov=prior[:has, :has]).logpdf(eta[:has]) / 2
            q = stats.multivariate_normal(mean[:has, n, 0], cov[:has, :has, n, 0])
            want += q.logpdf(eta[:has]) / 2
    np.testing.assert_allclose(got, want, rtol=1e-9)


class Linear(Model):
    """y = X eta + residual with three random effects in all: one between subjects and one on each of two
    occasions, of which every other subject lacks the second."""

    def columns(self, population: Population) -> list[Tensor]:
        t, second = population.time, population.there[1]
        late = (t > 20).to(F64) * second
        return [10 + 0 * t, 10 - 10 * late, late * (10 + 0.1 * t)]

    def predict(self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None) -> Tensor:
        del zeta
        columns = self.columns(population)
        return 12 + sum(
            (c * e for c, e in zip(columns, eta, strict=True)) if eta else (), torch.zeros_like(columns[0])
        )

    def linearise(
        self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        return self.predict(zeta, population, eta), self.columns(population)


def linear() -> tuple[Linear, Population]:
    base = known.model_of(("CL",))
    random_effects = replace(base.random_effects, names=("CL",))
    model = Linear(base.network, base.pk, random_effects, base.error, occasions=base.occasions)
    population = known.population_of(known.table((1, 2, 1, 2, 2)))
    # So near that modes lie within the bounds of their search.
    return model, replace(population, dv=12 + 0.1 * (population.dv - 12))


def exact(model: Linear, values: Values, population: Population) -> float:
    """-2 log L without its constant."""
    sd = {name: np.log1p(np.exp(float(values[name][0, 0]))) for name in ("omega", "pi", "sigma")}
    total = 0.0
    for n in range(population.shape[1]):
        seen = population.observed[:, 0, n, 0].numpy() > 0
        x = np.stack([c[seen, 0, n, 0].numpy() for c in model.columns(population)], 1)
        c = x @ np.diag([sd["omega"] ** 2, sd["pi"] ** 2, sd["pi"] ** 2]) @ x.T
        c += sd["sigma"] ** 2 * np.eye(len(x))
        r = population.dv[seen, 0, n, 0].numpy() - 12
        total += np.linalg.slogdet(c)[1] + r @ np.linalg.solve(c, r)
    return total


@pytest.mark.parametrize("objective", [Fo(), Foce(), Foce(formulation="linearised")])
def test_of_a_linear_model_the_likelihood_is_exact(objective: Fo | Foce) -> None:
    model, population = linear()
    state = objective.init(model, population, ONE, F64)
    wide = {name: v + 2.0 if name in ("omega", "pi", "sigma") else v for name, v in state.trained.items()}
    state = objective.refresh(model, population, replace(state, trained=wide))
    got = value_of(objective.loss(model, population, state, None))
    np.testing.assert_allclose(got, exact(model, wide, population), rtol=1e-9)


@pytest.mark.parametrize("family", ["full_rank", "by_occasion"])
def test_of_a_linear_model_vi_with_the_exact_posterior_is_exact(family: str) -> None:
    """For any noise; nothing of an occasion is left in the next, so that q by occasion has the posterior."""
    model, population = linear()
    objective = Vi(samples=3, family=family)
    state = objective.init(model, population, ONE, F64)
    values = {name: v + 2.0 if name in ("omega", "pi", "sigma") else v for name, v in state.trained.items()}
    start = [torch.zeros(1, population.shape[1], 1, dtype=F64)] * 3
    modes = find_modes(model, values, population, start, 1e-12, 50)
    cov = laplace_covariance(model, values, population, modes.eta)[..., 0]
    values |= {"q.mean": torch.stack([m[0] for m in modes.eta])}
    sd = torch.stack([cov[k, k].sqrt() for k in range(3)])
    values["q.sd"] = (sd + torch.log(-torch.expm1(-sd)))[..., None]
    rho = [cov[i, j] / (sd[i] * sd[j]) for i, j in ((1, 0), (2, 0), (2, 1))]
    partial = (rho[2] - rho[0] * rho[1]) / torch.sqrt((1 - rho[0] ** 2) * (1 - rho[1] ** 2))
    if family == "full_rank":
        values["q.correlation"] = torch.atanh(torch.stack([rho[0], rho[1], partial]))[..., None]
    else:
        assert float(partial.abs().max()) < 1e-9  # kappas are independent given eta
        values["q.cross"] = torch.atanh(torch.stack(rho[:2]))[:, None, :, None]
    noise = torch.randn(3, 3, 5, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    got = 2 * value_of(objective.loss(model, population, replace(state, trained=values), noise))
    count = float(population.observation_count)
    np.testing.assert_allclose(got - count * np.log(2 * np.pi), exact(model, values, population), rtol=1e-9)


def test_mse_ignores_occasions() -> None:
    rows = known.table(NUMBERS)
    model, population = known.model_of(), known.population_of(rows)
    state = Mse().init(model, population, ONE, F64)
    assert not {"pi", "omega"} & set(state.trained)
    plain = known.population_of(rows, by_occasion=False)
    with_them, without = (value_of(Mse().loss(model, of, state, None)) for of in (population, plain))
    assert with_them == pytest.approx(without, rel=1e-12)


def test_moving_modes_follow_the_trained_values() -> None:
    """The gradient with mode_gradient implicit, against differences of the objective with its modes found
    anew."""
    model, population = known.model_of(("CL", "V1")), known.population_of(known.table(NUMBERS))
    objective = Foce(mode_gradient="implicit", mode_tolerance=1e-12, mode_iterations=200)
    state = begun(objective, model, population)

    def loss(pi: Tensor) -> Tensor:
        at = replace(state, trained={**state.trained, "pi": pi})
        return objective.loss(model, population, objective.refresh(model, population, at), None).sum()

    pi = state.trained["pi"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(pi), pi)
    for place in range(2):
        unit = torch.zeros_like(pi)
        unit[place] = 1e-4
        ends = [value_of(loss(pi.detach() + sign * unit)) for sign in (1, -1)]
        assert float(gradient[place]) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4)


@pytest.mark.parametrize("family", ["mixture", "flow"])
def test_families_without_occasions_are_refused(family: str) -> None:
    model, population = known.model_of(), known.population_of(known.table(NUMBERS))
    with pytest.raises(InputError, match=r"with occasions choose full_rank, mean_field or by_occasion"):
        Vi(family=family).init(model, population, ONE, F64)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("objective", [Fo(), Foce(mode_gradient="implicit"), Vi(family="by_occasion")])
def test_fits_with_occasions_are_trained(objective: Fo | Foce | Vi, batch: int | None) -> None:
    """A batch of fits is as each of them alone, in minibatches too."""
    model, everyone = known.model_of(("CL",)), known.population_of(known.table(NUMBERS))
    population = everyone.select([np.array([0, 1, 2]), np.array([3, 0])])

    def trained(of: Population, streams: Sequence[object]) -> Tensor:
        course = Course(3, 3, batch)
        made = train(model, objective, of, streams, lambda p: torch.optim.Adam(p, 0.05), course, F64)  # type: ignore[arg-type]
        assert made.failures == (None,) * len(streams)
        return made.objective

    together = trained(population, STREAMS)
    alone = trained(everyone.select([np.array([3, 0])]), STREAMS[1:])
    torch.testing.assert_close(together[:, 1:], alone, rtol=1e-9, atol=1e-9)
