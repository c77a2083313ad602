"""Variational inference with a q of sigma and Omega."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.objectives import Vi, families
from medcm_cli.runs import Units
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from medcm_cli.training.results import Reported, tables
from tests.helpers import STREAMS, make_population
from tests.objectives.posteriors import F64, INITIAL, OMEGA, known, moved, normal
from tests.objectives.test_vi import moments_of


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


@pytest.mark.slow
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
    written = tables(
        model,
        objective,
        population,
        population,
        trained,
        {},
        None,
        Reported(Units("IU/dL", 100.0, "IU/mL", "IU")),
    )
    history = written[1]["history"].to_pandas()
    at = trained.layout.unpack(trained.checkpoints[-1])["population.mean"][:, 1].numpy()
    last = history.iloc[-1]
    assert last.sigma_additive == pytest.approx(np.exp(at[0]))
    assert [last.omega_1, last.omega_2] == pytest.approx(np.exp(at[1:3]))
    assert last.rho_21 == pytest.approx(np.tanh(at[3]))
    assert "population.mean" in set(written[1]["parameters"]["name"].to_pandas())
