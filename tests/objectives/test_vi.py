"""Variational inference beyond a Gaussian q and point estimates: densities that integrate to one, bounds that
numerical integration confirms, gradients of what is minimised, and fits that depend on their own data
alone."""

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy import integrate, special, stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError, Values
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import State, Vi, families
from medcm_cli.runs import Units
from medcm_cli.study.identity import identity
from medcm_cli.study.options import conf_dir
from medcm_cli.training.loop import Course, train
from medcm_cli.training.loss import Evaluation
from medcm_cli.training.results import tables
from tests.helpers import STREAMS, LinearGaussian, make_events, make_population

F64 = torch.float64
OMEGA = [[0.3, 0.1], [0.1, 0.2]]
BEYOND = ("mixture", "flow")
INITIAL = {"CL": 0.15, "V1": 2.0, "Q": 0.2, "V2": 0.8}


def known(model: Model, sigma: float | None = 0.03, omega: object = OMEGA) -> Model:
    """Without a network; Omega and sigma as given, estimated where None."""
    return replace(
        model,
        network=CovariateNetwork.build([], list(INITIAL), {}, INITIAL),
        random_effects=RandomEffects(("CL", "V1"), fixed=omega),  # type: ignore[arg-type]
        error=ResidualError(("additive",), {} if sigma is None else {"additive": sigma}),
    )


def moved(state: State, scale: float = 0.3, seed: int = 5) -> State:
    """q away from where it begins."""
    g = torch.Generator().manual_seed(seed)
    trained = {
        name: v + scale * torch.randn(v.shape, generator=g, dtype=F64)
        if name.startswith(("q.", "population."))
        else v
        for name, v in state.trained.items()
    }
    return replace(state, trained=trained)


def normal(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def q_of(family: str, n: int = 1, k: int = 2, scale: float = 0.3, components: int = 3) -> families.Posterior:
    values = families.init(family, components, STREAMS[:1], (k, n), F64)
    return families.posterior(family, moved(State(values), scale).trained)


def grid(half: float, points: int) -> tuple[list[Tensor], float]:
    """Points of the square [-half, half]^2, (points^2, 1, 1) each, and the area of one."""
    x = torch.linspace(-half, half, points, dtype=F64)
    return [e.reshape(-1, 1, 1) for e in torch.meshgrid(x, x, indexing="ij")], (2 * half / (points - 1)) ** 2


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """More lose time on tensors of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- families of q ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families.FAMILIES)
def test_density_moments_and_draws_belong_together(family: str) -> None:
    """The density integrates to 1; its mean and covariance are the moments, and those of draws."""
    q = q_of(family, scale=0.8)
    eta, area = grid(6, 601)
    mass = (q.log_density(eta).exp() * area)[:, 0, 0].numpy()
    # A spline's density has kinks, at which the sum over a grid is less exact.
    assert mass.sum() == pytest.approx(1, abs=1e-3 if family == "flow" else 1e-6)
    flat = np.stack([e[:, 0, 0].numpy() for e in eta])
    mean = flat @ mass
    cov = (flat - mean[:, None]) * mass @ (flat - mean[:, None]).T
    got = [m[..., 0, 0].numpy() for m in q.moments()]
    np.testing.assert_allclose(got[0], mean, atol=0.03 if family == "flow" else 1e-4)
    np.testing.assert_allclose(got[1], cov, atol=0.03 if family == "flow" else 1e-3)
    drawn = torch.stack(q.draw(normal(q.numbers, 40_000, 1, 1).unbind(0)))[..., 0, 0].numpy()
    error = np.sqrt(np.diag(cov) / 40_000)
    assert (np.abs(drawn.mean(1) - mean) < 4 * error).all()
    np.testing.assert_allclose(np.cov(drawn), cov, rtol=0.05, atol=0.02 * np.trace(cov))


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_density_at_a_draw_is_the_density_there(family: str, k: int) -> None:
    q = q_of(family, n=3, k=k, scale=0.8)
    eps = normal(k, 6, 3, 1).unbind(0)
    eta = q.points(eps)
    torch.testing.assert_close(q.log_density_at(eps, eta), q.log_density(eta), rtol=1e-9, atol=1e-9)


def test_mixture_against_scipy() -> None:
    values = moved(State(families.init("mixture", 3, STREAMS[:1], (2, 1), F64)), 0.6).trained
    q = families.posterior("mixture", values)
    eta = normal(2, 5, 1, 1)
    weight = special.softmax(values["q.weight"][:, 0, 0].numpy())
    want = np.zeros(5)
    for c in range(3):
        sd = np.log1p(np.exp(values["q.sd"][:, c, 0, 0].numpy()))
        rho = np.tanh(float(values["q.correlation"][0, c, 0, 0]))
        cov = np.array([[sd[0] ** 2, rho * sd[0] * sd[1]], [rho * sd[0] * sd[1], sd[1] ** 2]])
        component = stats.multivariate_normal(values["q.mean"][:, c, 0, 0].numpy(), cov)
        want += weight[c] * component.pdf(eta[:, :, 0, 0].T.numpy())
    np.testing.assert_allclose(q.log_density(eta.unbind(0))[:, 0, 0].exp().numpy(), want, rtol=1e-9)
    weights = q.weights(6)
    assert weights is not None
    np.testing.assert_allclose(weights[:, 0, 0].numpy(), np.repeat(weight / 2, 2))


def test_components_begin_apart() -> None:
    values = families.init("mixture", 3, STREAMS, (2, 4), F64)
    distance = (values["q.mean"][:, :, None] - values["q.mean"][:, None]).norm(dim=0)
    assert bool((distance[torch.triu_indices(3, 3, 1).unbind()] > 1e-3).all())
    shorter = families.init("mixture", 3, STREAMS[1:], (2, 3), F64)
    for name, value in shorter.items():
        assert torch.equal(values[name][..., :3, 1:], value), name


@pytest.mark.parametrize("family", BEYOND)
@pytest.mark.parametrize("estimator", ["path_derivative", "standard"])
def test_equal_components_and_the_identity_are_the_gaussian(
    model: Model, family: str, estimator: str
) -> None:
    population = make_population(4, 2, ragged=True)
    gaussian = Vi(samples=2, estimator=estimator)
    start = moved(gaussian.init(model, population, STREAMS, F64))
    noise = normal(2, 2, 4, 2)
    want = gaussian.loss(model, population, start, noise)
    objective = Vi(samples=2, estimator=estimator, family=family)
    state = objective.init(model, population, STREAMS, F64)
    trained = {**state.trained, **start.trained}
    if family == "mixture":
        for name in ("q.mean", "q.sd", "q.correlation"):
            trained[name] = trained[name][:, None].expand(-1, 2, -1, -1)
        trained["q.weight"] = normal(2, 4, 2)
        noise = torch.cat([noise, noise], 1)
    got = objective.loss(model, population, replace(state, trained=trained), noise)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", BEYOND)
def test_exact_posterior_gives_the_log_marginal_likelihood(model: Model, family: str) -> None:
    """With a linear model; q as good as exact, whatever the noise."""
    linear = LinearGaussian(model.network, model.pk, model.random_effects, model.error)
    population = make_population(3, 1)
    offset, columns = linear.design(population)
    objective = Vi(samples=2, family=family)
    state = objective.init(linear, population, STREAMS[:1], F64)
    lower = linear.omega_cholesky(state.trained)
    omega = np.array([[float(lower[max(i, j)][min(i, j)]) * (j <= i) for j in range(2)] for i in range(2)])
    omega = omega @ omega.T
    sd = float(linear.error.sigmas(state.trained)["additive"])
    want, mean, scale, raw = 0.0, np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3)
    for n in range(3):
        x = np.stack([c[:, 0, n, 0].numpy() for c in columns], 1)
        r = (population.dv - offset)[:, 0, n, 0].numpy()
        want += stats.multivariate_normal(np.zeros(len(r)), x @ omega @ x.T + sd**2 * np.eye(len(r))).logpdf(
            r
        )
        cov = np.linalg.inv(np.linalg.inv(omega) + x.T @ x / sd**2)
        mean[:, n], scale[:, n] = cov @ x.T @ r / sd**2, np.sqrt(np.diag(cov))
        raw[n] = np.arctanh(cov[0, 1] / scale[:, n].prod())
    several = (2,) if family == "mixture" else ()
    trained = dict(state.trained)
    for name, value in (("mean", mean), ("sd", np.log(np.expm1(scale))), ("correlation", raw[None])):
        values = torch.from_numpy(value)[..., None]
        trained[f"q.{name}"] = values[:, None].expand(-1, *several, -1, -1) if several else values
    noise = normal(*objective.noise_shape(linear, population), 1)
    got = objective.loss(linear, population, replace(state, trained=trained), noise)
    assert float(got) == pytest.approx(-want, rel=1e-9)


# -- gradients -------------------------------------------------------------------------------------


def gradient(objective: Vi, model: Model, population: Population, state: State, noise: Tensor) -> Tensor:
    leaves = {name: v.clone().requires_grad_() for name, v in state.trained.items()}
    loss = objective.loss(model, population, replace(state, trained=leaves), noise).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


CASES = [
    *[(family, "point", estimator) for family in BEYOND for estimator in ("path_derivative", "standard")],
    *[("full_rank", "variational", estimator) for estimator in ("path_derivative", "standard", "entropy")],
    *[(family, "variational", "path_derivative") for family in BEYOND],
]


@pytest.mark.parametrize(("family", "of_population", "estimator"), CASES)
def test_gradient_is_that_of_the_bound(model: Model, family: str, of_population: str, estimator: str) -> None:
    """Along random directions: finite differences of the ELBO itself, within the Monte Carlo error that eight
    sets of numbers show, which for the standard estimator is none."""
    model, population = known(model, None, None), make_population(2, 1)
    objective = Vi(500, estimator, family, population=of_population)
    value = replace(objective, estimator="standard")
    state = moved(objective.init(model, population, STREAMS[:1], F64))
    g = torch.Generator().manual_seed(3)
    shapes = {name: v.shape for name, v in state.trained.items()}
    directions = [
        {name: torch.randn(shape, generator=g, dtype=F64) for name, shape in shapes.items()} for _ in range(3)
    ]
    got, want = np.zeros((8, 3)), np.zeros((8, 3))
    for number in range(8):
        noise = normal(*objective.noise_shape(model, population), 1, seed=number)
        found = gradient(objective, model, population, state, noise)
        for i, direction in enumerate(directions):
            got[number, i] = found @ torch.cat([d.flatten() for d in direction.values()])
            for h in (1e-5, -1e-5):
                ends = {name: v + h * direction[name] for name, v in state.trained.items()}
                loss = value.loss(model, population, replace(state, trained=ends), noise)
                want[number, i] += float(loss) / (2 * h)
    difference = got - want
    error = difference.std(0, ddof=1) / np.sqrt(8)
    scale = np.abs(want.mean(0))
    assert (np.abs(difference.mean(0)) < 4.5 * error + 1e-6 * scale).all()
    assert (error < 0.1 * scale.max()).all()
    if estimator == "standard":
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * scale.max())


# -- sigma and Omega with a q ----------------------------------------------------------------------


def moments_of(objective: Vi, model: Model, values: Values) -> tuple[Tensor, Tensor]:
    q = objective.population_posterior(model, values)
    assert q is not None
    return q.mean, q.covariance


@pytest.mark.parametrize("error", ["additive", "combined"])
@pytest.mark.parametrize("lkj", [1, 2])
def test_elbo_equals_its_definition(model: Model, error: str, lkj: float) -> None:
    """Sample by sample, with scipy's densities."""
    components = ("additive", "proportional")[: 1 if error == "additive" else 2]
    model, population = replace(model, error=ResidualError(components)), make_population(3, 1, ragged=True)
    objective = Vi(samples=2, estimator="standard", population="variational", lkj=lkj)
    state = moved(objective.init(model, population, STREAMS[:1], F64))
    values, sigmas = state.trained, len(components)
    noise = normal(*objective.noise_shape(model, population), 1)
    mean, cov = (m[..., 0].numpy() for m in moments_of(objective, model, values))
    lower = np.linalg.cholesky(cov)
    q, want = stats.multivariate_normal(mean, cov), 0.0
    eta_mean, eta_cov = (m[..., 0].numpy() for m in objective.random_effects(model, population, state))
    for s in range(2):
        theta = mean + lower @ noise[2:, s, 0, 0].numpy()
        sigma, omega, rho = np.exp(theta[:sigmas]), np.exp(theta[sigmas : sigmas + 2]), np.tanh(theta[-1])
        log_prior = stats.lognorm(1, scale=np.exp(-3)).logpdf(sigma).sum() + theta[:-1].sum()
        log_prior += stats.lognorm(1, scale=np.exp(-1.5)).logpdf(omega).sum()
        log_prior += stats.beta(lkj, lkj, -1, 2).logpdf(rho) + np.log(1 - rho**2)
        want += (q.logpdf(theta) - log_prior) / 2
        matrix = np.array([[1, rho], [rho, 1]]) * np.outer(omega, omega)
        factors = [np.linalg.cholesky(eta_cov[..., n]) for n in range(3)]
        eta = np.stack([eta_mean[:, n] + factors[n] @ noise[:2, s, n, 0].numpy() for n in range(3)], 1)
        at = [torch.from_numpy(e)[None, :, None] for e in eta]
        f = model.predict(model.typical(values, population), population, at)
        for n in range(3):
            rows = population.observed[:, 0, n, 0].numpy() > 0
            prediction, dv = f[rows, 0, n, 0].numpy(), population.dv[rows, 0, n, 0].numpy()
            sd = sigma[0] + (sigma[1] * prediction if sigmas == 2 else 0)
            want += stats.multivariate_normal(eta_mean[:, n], eta_cov[..., n]).logpdf(eta[:, n]) / 2
            want -= stats.multivariate_normal(np.zeros(2), matrix).logpdf(eta[:, n]) / 2
            want -= stats.norm(prediction, sd).logpdf(dv).sum() / 2
    assert float(objective.loss(model, population, state, noise)) == pytest.approx(want, rel=1e-9)


def test_bound_is_below_the_evidence_and_close(model: Model) -> None:
    """sigma alone unknown, one random effect, one subject: the evidence is a double integral."""
    model = replace(known(model, None), random_effects=RandomEffects(("CL",), fixed=[[0.2]]))
    model = replace(model, network=Constant(INITIAL))
    population = make_population(1, 1)
    dv = population.dv[:, 0, 0, 0].numpy()
    eta = np.linspace(-3, 3, 1201)
    f = model.predict(INITIAL_ZETA, population, [torch.from_numpy(eta)[:, None, None]])[:, :, 0, 0].numpy()
    log_sigma = np.linspace(-8, 2, 1001)
    likelihood = stats.norm(f[:, :, None], np.exp(log_sigma)).logpdf(dv[:, None, None]).sum(0)
    joint = np.exp(
        likelihood + stats.norm(0, np.sqrt(0.2)).logpdf(eta)[:, None] + stats.norm(-3, 1).logpdf(log_sigma)
    )
    evidence = np.log(integrate.simpson(integrate.simpson(joint, x=log_sigma), x=eta))
    objective = Vi(samples=20, population="variational")
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    trained = train(model, objective, population, STREAMS[:1], adam, Course(500, 100), F64)
    value = replace(objective, samples=20_000, estimator="standard")
    size, _, n = value.noise_shape(model, population)
    bound = -float(value.loss(model, population, trained.state, normal(size, 20_000, n, 1)))
    assert bound < evidence + 0.02  # Monte Carlo error
    assert bound > evidence - 0.3
    # As good as exact in each direction, q is near the marginal posteriors.
    posterior = joint.sum(0) / joint.sum()
    center = (posterior * log_sigma).sum()
    mean, cov = moments_of(objective, model, trained.state.trained)
    assert float(mean) == pytest.approx(center, abs=0.15)
    assert float(cov) == pytest.approx((posterior * (log_sigma - center) ** 2).sum(), rel=0.5)


class Constant(CovariateNetwork):
    """Typical parameters that are known."""

    def __init__(self, zeta: dict[str, float]) -> None:
        super().__init__((), tuple(zeta), {}, {})
        object.__setattr__(self, "zeta", {k: torch.tensor([v], dtype=F64) for k, v in zeta.items()})

    def init(self, streams: object, dtype: object) -> dict[str, Tensor]:
        del streams, dtype
        return {}

    def typical(self, values: object, covariates: object) -> dict[str, Tensor]:
        del values, covariates
        return dict(self.zeta)  # type: ignore[attr-defined]


INITIAL_ZETA = {name: torch.tensor([value], dtype=F64) for name, value in INITIAL.items()}


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("sigma", [None, 0.03])
@pytest.mark.parametrize("omega", [None, OMEGA])
def test_what_is_fixed_has_no_q(model: Model, structure: str, sigma: float | None, omega: object) -> None:
    model = known(model, sigma, omega)
    model = replace(model, random_effects=replace(model.random_effects, structure=structure))
    population, objective = make_population(3, 2), Vi(population="variational")
    if sigma is not None and omega is not None:
        with pytest.raises(InputError, match=r"objective.population=variational: sigma and Omega are fixed"):
            objective.init(model, population, STREAMS, F64)
        return
    state = objective.init(model, population, STREAMS, F64)
    size = (sigma is None) + (0 if omega is not None else 2 + (structure == "full"))
    assert state.trained["population.mean"].shape == (size, 2)
    assert not {"sigma", "omega", "correlation"} & set(state.trained)
    # q begins where point estimates do.
    begun = model.init(STREAMS, F64)
    estimates = objective.estimates(model, state.trained)
    for name in {"sigma", "omega", "correlation"} & set(begun):
        torch.testing.assert_close(estimates[name], begun[name])
    noise = normal(*objective.noise_shape(model, population), 2)
    assert bool(objective.loss(model, population, state, noise).isfinite().all())


def test_three_random_effects_and_censored_observations(model: Model) -> None:
    population = make_population(4, 2)
    population = replace(population, censored=(population.dv < 0.1).to(F64))
    model = replace(model, random_effects=RandomEffects(("CL", "V1", "Q")))
    for family in families.FAMILIES:
        objective = Vi(samples=2, family=family, population="variational")
        adam = functools.partial(torch.optim.Adam, lr=0.05)
        trained = train(model, objective, population, STREAMS, adam, Course(50, 25), F64)
        assert trained.failures == (None, None), family
        assert bool((trained.objective[-1] < trained.objective[0]).all()), family
        mean, cov = objective.random_effects(model, population, trained.state)
        assert mean.shape == (3, 4, 2)
        assert bool((torch.linalg.eigvalsh(cov.permute(2, 3, 0, 1)) > 0).all())


def test_reports_are_medians_under_q(model: Model) -> None:
    population, objective = make_population(4, 2), Vi(population="variational")
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    model = known(model, None, None)
    trained = train(model, objective, population, STREAMS, adam, Course(20, 10), F64)
    written = tables(model, objective, population, population, trained, {}, None, Units("IU/dL", 100.0))
    history = written[1]["history"].to_pandas()
    at = trained.layout.unpack(trained.checkpoints[-1])["population.mean"][:, 1].numpy()
    last = history.iloc[-1]
    assert last.sigma_additive == pytest.approx(np.exp(at[0]))
    assert [last.omega_1, last.omega_2] == pytest.approx(np.exp(at[1:3]))
    assert last.rho_21 == pytest.approx(np.tanh(at[3]))
    assert "population.mean" in set(written[1]["parameters"]["name"].to_pandas())


# -- a fit and its batch ---------------------------------------------------------------------------

WAYS = [("mixture", "point"), ("flow", "point"), ("full_rank", "variational"), ("mixture", "variational")]


@pytest.mark.parametrize(("family", "of_population"), WAYS)
@pytest.mark.parametrize("batch_subjects", [None, 5])
def test_a_fit_does_not_depend_on_its_batch(
    model: Model, family: str, of_population: str, batch_subjects: int | None
) -> None:
    everyone = Population.from_events(make_events(20, ragged=True), F64)
    folds = [np.arange(12), np.arange(4, 11), np.arange(16)]
    streams = [Stream(1, fold, 1) for fold in range(1, 4)]
    objective = Vi(samples=2, family=family, population=of_population)
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    together = train(
        model, objective, everyone.select(folds), streams, adam, Course(6, 3, batch_subjects), F64
    )
    for fit, stream in enumerate(streams):
        alone = train(
            model,
            objective,
            everyone.select([folds[fit]]),
            [stream],
            adam,
            Course(6, 3, batch_subjects),
            F64,
        )
        torch.testing.assert_close(together.objective[:, fit], alone.objective[:, 0], rtol=1e-9, atol=0)
        ends = [t.layout.unpack(t.checkpoints[-1]) for t in (together, alone)]
        for name, value in ends[1].items():
            own = ends[0][name][..., fit]
            if name in together.state.per_subject:
                own = own[..., : len(folds[fit])]
            torch.testing.assert_close(own, value[..., 0], rtol=1e-8, atol=1e-10, msg=name)
    drawn = objective.draw(together.state, streams, 5)
    smaller = replace(together.state, trained=cut(together.state, 1, 7))
    torch.testing.assert_close(drawn[:, :, :7, 1], objective.draw(smaller, streams[1:2], 5)[..., 0])


def cut(state: State, fit: int, subjects: int) -> dict[str, Tensor]:
    return {
        name: v[..., :subjects, fit : fit + 1] if name in state.per_subject else v[..., fit : fit + 1]
        for name, v in state.trained.items()
    }


@pytest.mark.parametrize(("family", "of_population"), WAYS)
def test_minibatches_count_the_population_once(model: Model, family: str, of_population: str) -> None:
    """Where every subject has the same numbers for the population parameters, minibatches add up to the
    whole."""
    everyone = Population.from_events(make_events(12, ragged=True), F64)
    population = everyone.select([np.arange(12), np.arange(7)])
    objective = Vi(samples=2, family=family, population=of_population)
    state = objective.init(model, population, STREAMS, F64)
    whole, cut = (Evaluation(model, objective, population, state, STREAMS, F64, size) for size in (None, 4))
    assert whole.noise is not None
    assert cut.noise is not None
    for work in (whole, cut):
        assert work.noise is not None
        work.noise[2:] = work.noise[2:, :, :1].clone()
    flat = whole.layout.pack(state.trained).requires_grad_()
    want = whole.total(flat, state.carried, differentiate=True)
    got = cut.total(flat, state.carried, differentiate=True)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-11, atol=0)
    torch.testing.assert_close(got.gradient, want.gradient, rtol=1e-8, atol=1e-9)
    parts = [cut.part(flat, state.carried, minibatch) for minibatch in cut.minibatches]
    counts = cut.count.to(F64)
    mean = sum(part.gradient / m.share for part, m in zip(parts, cut.minibatches, strict=True)) / counts
    equal = cut.minibatches[0].share[0] * 3 == 1  # fit 1's parts are of one size
    assert bool(equal)
    shared = ~cut.own_rows
    torch.testing.assert_close(mean[shared, 0], want.gradient[shared, 0], rtol=1e-8, atol=1e-9)


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Vi(population="bayes"),
            r"objective.population is 'bayes'; expected point or variational",
        ),
        (lambda: Vi(lkj=0), r"objective.lkj is 0; expected a number above 0"),
        (lambda: Vi(lkj=True), r"objective.lkj is True"),
        (lambda: Vi(components=0), r"objective.components is 0; expected a whole number from 1"),
        (lambda: Vi(family="mixture", estimator="entropy"), r"family=mixture has no closed form"),
        (lambda: Vi(family="flow", estimator="entropy"), r"family=flow has no closed form"),
    ],
)
def test_bad_options_are_named(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_results_of_before_there_were_these_options_stay_valid() -> None:
    objective = OmegaConf.to_container(OmegaConf.load(conf_dir() / "objective" / "vi.yaml"))
    assert isinstance(objective, dict)
    before = {k: v for k, v in objective.items() if k not in ("components", "population", "lkj")}
    assert len(before) == len(objective) - 3
    assert identity({"objective": objective}) == identity({"objective": before})
    for option, value in (("components", 3), ("population", "variational"), ("lkj", 2)):
        assert identity({"objective": {**objective, option: value}}) != identity({"objective": before})


# -- a posterior that is no Gaussian ---------------------------------------------------------------


def test_families_on_a_curved_posterior(model: Model) -> None:
    """One observation a subject and a wide Omega: the ELBO grows with the family and stays below the evidence
    (dense grid); a flow's mean is nearer to the posterior's than a Gaussian's."""
    model = replace(known(model, 0.03, [[1, 0.3], [0.3, 1]]), network=Constant(INITIAL))
    one = make_population(4, 1, seed=3)
    observed = torch.zeros_like(one.observed)
    observed[1] = 1
    population = replace(one, observed=observed, ragged=True)
    eta, area = grid(6, 501)
    wide = [e.expand(-1, 4, 1) for e in eta]
    f = model.predict(INITIAL_ZETA, population, wide)[1]
    likelihood = stats.norm(f.numpy(), 0.03).logpdf(population.dv[1].numpy())
    at = np.stack([e[:, 0, 0].numpy() for e in eta], 1)
    prior = stats.multivariate_normal(np.zeros(2), [[1, 0.3], [0.3, 1]]).logpdf(at)
    joint = likelihood[:, :, 0] + prior[:, None]
    evidence = special.logsumexp(joint, 0) + np.log(area)
    bounds, errors = {}, {}
    mean = np.einsum("sn,sk->kn", np.exp(joint - special.logsumexp(joint, 0)), at)
    for family in ("full_rank", "mixture", "flow"):
        objective = Vi(samples=5, family=family)
        adam = functools.partial(torch.optim.Adam, lr=0.02)
        trained = train(model, objective, population, STREAMS[:1], adam, Course(500, 20), F64)
        tail = trained.layout.unpack(trained.checkpoints[-10:].mean(0))
        value = replace(objective, samples=4000, estimator="standard")
        noise = normal(*value.noise_shape(model, population), 1)
        state = replace(trained.state, trained=tail)
        bounds[family] = -float(value.loss(model, population, state, noise))
        got = objective.random_effects(model, population, state)[0][..., 0].numpy()
        errors[family] = np.abs(got - mean).mean()
    assert bounds["full_rank"] + 0.3 < bounds["mixture"]
    assert bounds["full_rank"] + 0.3 < bounds["flow"]
    assert max(bounds.values()) < evidence.sum() + 0.05
    assert errors["flow"] < errors["full_rank"]
