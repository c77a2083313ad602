"""Priors of the population: their densities against scipy and torch, and what they add to objectives."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.model import Equations, Model
from medcm_cli.model.penalty import Prior, Priors, lkj_constant, priors_of, wishart_log_density
from medcm_cli.model.priors import PopulationPrior
from medcm_cli.numerics.triangular import cholesky
from medcm_cli.objectives import Fo, Foce, Focei, Mse, Objective, Vi
from medcm_cli.objectives.penalised import SHARE, Penalised
from tests.helpers import F64, STREAMS, make_population
from tests.objectives import occasions

REFERENCES = {"weight": 70.0, "vwf": 100.0}
GIVEN: dict[str, Any] = {
    "CL": {"log_normal": [0.2, 0.3]},
    "Q": {"normal": [0.1, 0.05]},
    "omega_CL": {"half_normal": 0.4},
    "sigma_additive": {"log_normal": [0.05, 0.5]},
    "rho": {"lkj": 2},
}


def test_numbers_have_the_densities_of_scipy() -> None:
    x = torch.linspace(0.1, 2.0, 9, dtype=F64)
    found = Prior("normal", 1.0, 0.5).log_density(x)
    np.testing.assert_allclose(found, stats.norm(1, 0.5).logpdf(x), rtol=1e-12)
    found = Prior("half_normal", 0.0, 0.5).log_density(x)
    np.testing.assert_allclose(found, stats.halfnorm(scale=0.5).logpdf(x), rtol=1e-12)
    found = Prior("log_normal", 0.8, 0.3).log_density(x)
    np.testing.assert_allclose(found, stats.norm(math.log(0.8), 0.3).logpdf(np.log(x.numpy())), rtol=1e-12)


def lower_of(matrix: np.ndarray) -> list[list[Tensor]]:
    return cholesky([[torch.tensor([entry], dtype=F64) for entry in row] for row in matrix])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_omega_has_that_of_the_inverse_wishart(size: int) -> None:
    generator = np.random.default_rng(size)
    prior, omega = (np.cov(generator.standard_normal((size, 9))).reshape(size, size) for _ in range(2))
    found = wishart_log_density(lower_of(omega), prior.tolist(), 7.0)
    assert float(found) == pytest.approx(stats.invwishart(7, 7 * prior).logpdf(omega), rel=1e-10)


def test_correlations_have_that_of_torchs_lkj() -> None:
    """Torch's is of the Cholesky factor of C, whose Jacobian is that of K = 3."""
    for shape in (0.7, 1.0, 2.5):
        total, _ = integrate.quad(lambda r, s=shape: (1 - r * r) ** (s - 1), -1, 1)
        assert lkj_constant(2, shape) == pytest.approx(math.log(total), rel=1e-6)
        law = torch.distributions.LKJCholesky(3, torch.tensor(shape, dtype=F64))
        torch.manual_seed(1)
        factor = law.sample()
        diagonal = factor.diagonal().log()
        of_matrix = float(law.log_prob(factor) - diagonal[1])
        found = (shape - 1) * 2 * float(diagonal.sum()) - lkj_constant(3, shape)
        assert found == pytest.approx(of_matrix, rel=1e-8)


def penalised(objective: Objective, **given: Any) -> Penalised:
    priors = priors_of(given or GIVEN, REFERENCES)
    assert priors is not None
    return Penalised(objective, priors)


@pytest.mark.parametrize("objective", [Fo(), Foce(), Focei(), Vi()])
def test_a_penalty_is_added_once_on_the_objectives_scale(model: Model, objective: Objective) -> None:
    population = make_population(6, 2)
    both = penalised(objective)
    state = both.init(model, population, STREAMS, F64)
    state = both.refresh(model, population, state)
    shape = both.noise_shape(model, population)
    noise = None if shape is None else torch.randn(*shape, 2, dtype=F64)
    plain = objective.loss(model, population, state, noise)
    found = both.loss(model, population, state, noise)
    scale = objective.describe().scale
    assert scale == (1 if isinstance(objective, Vi) else 2)
    values = state.trained
    zeta = model.network.typical(
        values, {n: torch.full((1, 1, 2), x, dtype=F64) for n, x in REFERENCES.items()}
    )
    omega = model.omega_cholesky(values)
    rho = omega[1][0] / (omega[1][0].square() + omega[1][1].square()).sqrt()
    want = (
        stats.norm(math.log(0.2), 0.3).logpdf(zeta["CL"][0, 0].detach().log())
        + stats.norm(0.1, 0.05).logpdf(zeta["Q"].detach())
        + stats.halfnorm(scale=0.4).logpdf(omega[0][0].detach())
        + stats.norm(math.log(0.05), 0.5).logpdf(model.error.sigmas(values)["additive"].detach().log())
        + np.log(0.75 * (1 - rho.detach().numpy() ** 2))
    )
    np.testing.assert_allclose((found - plain).detach(), -scale * want, rtol=1e-9)


def test_minibatches_share_it(model: Model) -> None:
    population, both = make_population(6, 2), penalised(Fo())
    state = both.init(model, population, STREAMS, F64)
    whole = both.loss(model, population, state, None)
    parts = []
    for rows in ([0, 1, 2, 3], [4, 5]):
        index = torch.tensor(rows)[:, None].expand(-1, 2)
        carried = {SHARE: state.carried[SHARE].gather(0, index)}
        some = replace(state, carried=carried)
        parts.append(both.loss(model, population.take(index), some, None))
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_a_strong_prior_decides(model: Model) -> None:
    """Where the prior's sd is next to nothing, its gradient is all there is."""
    both = penalised(Fo(), Q={"normal": [0.1, 1e-6]})
    population = make_population(6, 2)
    values = both.init(model, population, STREAMS, F64).trained
    leaf = values["global.Q"].clone().requires_grad_()
    loss = both.of_priors(model, {**values, "global.Q": leaf}).sum()
    (slope,) = torch.autograd.grad(loss, leaf)
    away = torch.nn.functional.softplus(values["global.Q"]) - 0.1
    assert torch.equal(slope > 0, away > 0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "priors is \\[\\]; expected names"),
        ({"CL": 4}, "priors.CL is 4; expected {normal"),
        ({"CL": {"uniform": [0, 1]}}, "priors.CL.uniform: no such prior"),
        ({"CL": {"normal": [0, 0]}}, "priors.CL.normal is 0; expected"),
        ({"CL": {"log_normal": [0, 1]}}, "priors.CL.log_normal is 0; expected"),
        ({"CL": {"normal": 1}}, "expected two numbers"),
        ({"omega": {"lkj": 1}}, "priors.omega is .*; expected {inverse_wishart"),
        ({"omega": {"inverse_wishart": {"omega": [[1, 2], [2, 1]], "df": 5}}}, "positive definite"),
        (
            {"omega": {"inverse_wishart": {"omega": [[1]], "df": 5}}, "omega_CL": {"half_normal": 1}},
            "priors.omega_CL: priors.omega has one of it already",
        ),
    ],
)
def test_what_is_refused(given: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        priors_of(given, {})


def test_what_an_objective_or_a_model_cannot_have_is_refused(model: Model) -> None:
    priors = Priors({"CL": Prior("normal", 1, 1)}, references=REFERENCES)
    with pytest.raises(InputError, match="objective=mse is no likelihood"):
        Penalised(Mse(), priors)
    with pytest.raises(InputError, match="population=variational has its own"):
        Penalised(Vi(population="variational"), priors)
    with pytest.raises(
        InputError, match=r"priors.KA: nothing of this name is estimated; expected some of CL"
    ):
        penalised(Fo(), KA={"normal": [1, 1]}).init(model, make_population(3, 2), STREAMS, F64)
    with pytest.raises(InputError, match="more than 1 degrees of freedom"):
        penalised(Fo(), omega={"inverse_wishart": {"omega": [[1, 0], [0, 1]], "df": 1}}).init(
            model, make_population(3, 2), STREAMS, F64
        )


def test_pi_has_one_and_what_is_known_has_none() -> None:
    """Beside Omega, and by its name; a typical value that an equation has as known is no part of a fit."""
    own = occasions.model_of(("CL",))
    values = own.init(STREAMS, F64)
    covariates = dict.fromkeys(own.network.inputs, 1.0)
    found = Priors({"pi_CL": Prior("half_normal", 0.0, 0.5)}, references=covariates).penalty(own, values)
    pi = torch.nn.functional.softplus(values["pi"][0])
    np.testing.assert_allclose(found, -stats.halfnorm(scale=0.5).logpdf(pi), rtol=1e-10)
    written: dict[str, Any] = {"CL": {"typical": {"fixed": 0.2}}, "V1": {"typical": 2.0}}
    model = replace(own, network=Equations.build(written, {}), occasions=None)
    prior = Priors({"CL": Prior("normal", 0.2, 0.1)})
    with pytest.raises(InputError, match=r"priors\.CL: nothing of this name is estimated; .* V1, omega_CL"):
        prior.penalty(model, model.init(STREAMS, F64))


def test_samples_of_the_population_have_them_too(model: Model) -> None:
    """On the log scale: the density of the number times the number."""
    given = {
        "sigma_additive": {"half_normal": 0.3},
        "omega_V1": {"log_normal": [0.2, 0.4]},
        "rho": {"lkj": 2},
    }
    prior = PopulationPrior(model, 1.0, priors_of(given, {}))
    x = torch.tensor([[-2.0], [-1.2], [-1.4], [0.3]], dtype=F64)
    sigma, rho = np.exp(-2.0), np.tanh(0.3)
    want = stats.halfnorm(scale=0.3).logpdf(sigma) - 2.0
    want += stats.norm(-1.5, 1).logpdf(-1.2) + stats.norm(math.log(0.2), 0.4).logpdf(-1.4)
    want += np.log(0.75 * (1 - rho**2)) + np.log(1 - rho**2)
    assert float(prior.log_density(x)) == pytest.approx(want, rel=1e-10)
    assert prior.lkj == 2
    wishart = priors_of({"omega": {"inverse_wishart": {"omega": [[1, 0], [0, 1]], "df": 5}}}, {})
    with pytest.raises(InputError, match="inverse_wishart is of fits"):
        PopulationPrior(model, 1.0, wishart)
