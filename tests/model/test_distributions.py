"""Individual parameters around typical ones: exponential, additive, between bounds, Box-Cox."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import CovariateNetwork, Equations, Model, RandomEffects, Rescaled, ResidualError, Values
from medcm_cli.model.distributions import EXPONENTIAL, Additive, Logit, bounds_of, distributions, in_odds
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Foce, Vi
from medcm_cli.objectives.families import posterior
from medcm_cli.objectives.modes import find_modes
from medcm_cli.pk import PkModel, one_compartment, two_compartment, with_given
from tests.helpers import COVARIATES, make_population

F64 = torch.float64
STREAMS = [Stream(3, 1, 1), Stream(3, 1, 2)]
SUBJECTS, FITS = 5, 2
NAMES = ("CL", "V1", "F")
SHAPED = {"CL": {"boxcox": {"initial": 0.4}}, "V1": "additive", "F": {"logit": [0.2, 0.9]}}


def of(given: object, names: tuple[str, ...] = NAMES, **sizes: float) -> RandomEffects:
    return RandomEffects(names, distributions=distributions(given, names, sizes, ("CL", "V1")))


def of_one(given: object, zeta: float, eta: np.ndarray, shape: float | None = None) -> np.ndarray:
    effects = of({} if given is None else {"CL": given}, ("CL",))
    known = {"CL": torch.tensor([zeta], dtype=F64)} | (
        {} if shape is None else {"CL_boxcox": torch.tensor([shape], dtype=F64)}
    )
    found = effects.individual(known, [torch.from_numpy(eta)[:, None, None]])
    assert set(found) == {"CL"}
    return np.asarray(found["CL"][:, 0, 0])


def test_individual_parameters_are_those_of_their_distributions() -> None:
    eta = np.linspace(-2, 2, 41)
    np.testing.assert_allclose(of_one(None, 3.0, eta), 3 * np.exp(eta), rtol=1e-14)
    np.testing.assert_allclose(of_one("exponential", 3.0, eta), 3 * np.exp(eta), rtol=1e-14)
    np.testing.assert_allclose(of_one("additive", 3.0, eta), 3 + eta, rtol=1e-14)
    logit = special.expit(special.logit(0.7) + eta)
    np.testing.assert_allclose(of_one({"logit": [0, 1]}, 0.7, eta), logit, rtol=1e-13)
    inside = 0.2 + 0.6 * special.expit(special.logit((0.7 - 0.2) / 0.6) + eta)
    np.testing.assert_allclose(of_one({"logit": [0.2, 0.8]}, 0.7, eta), inside, rtol=1e-13)
    for shape in (-0.8, 1e-9, 0.3, 1.0):
        transformed = special.boxcox(np.exp(eta), shape)
        np.testing.assert_allclose(of_one({"boxcox": shape}, 3.0, eta), 3 * np.exp(transformed), rtol=1e-9)
        estimated = of_one({"boxcox": {"initial": 0.5}}, 3.0, eta, shape)
        np.testing.assert_allclose(estimated, 3 * np.exp(transformed), rtol=1e-9)


def test_a_shape_of_0_is_log_normal_and_has_a_slope_there() -> None:
    eta = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(of_one({"boxcox": 0}, 3.0, eta), 3 * np.exp(eta), rtol=1e-14)
    shape = torch.zeros(1, dtype=F64, requires_grad=True)
    effects = of({"CL": {"boxcox": {"initial": 0.5}}}, ("CL",))
    zeta = {"CL": torch.ones(1, dtype=F64), "CL_boxcox": shape}
    (slope,) = torch.autograd.grad(effects.individual(zeta, [torch.ones(1, 1, 1, dtype=F64)])["CL"], shape)
    assert float(slope) == pytest.approx(math.e / 2)  # of exp(eta + shape eta^2 / 2)


def test_a_clearance_that_is_additive_stays_above_0() -> None:
    found = of_one("additive", 3.0, np.array([-1.0, -2.999, -3.0, -40.0]))
    np.testing.assert_allclose(found, [2, 0.003, 0.003, 0.003])
    below = Additive(above_zero=False).individual(torch.tensor(3.0), torch.tensor(-5.0), 1.0)
    assert float(below) == -2


def model_of(given: Mapping[str, Any], pk: PkModel | None = None, **through: str) -> Model:
    made = with_given(pk or one_compartment(bioavailability={1: "F"}), through)
    spread = distributions(given, NAMES, {"V1": 2.5}, made.above_zero)
    names = [name for name in made.parameters if name != "CL"]
    options = {
        "branches": [{"inputs": ["weight"], "hidden": [3], "heads": ["CL"]}],
        "global_parameters": names,
        "initial": {"V1": 2.5, "F": 0.6},
    }
    bounds = bounds_of(spread)
    network = CovariateNetwork.build(covariates=COVARIATES, **in_odds(options, bounds))
    effects = RandomEffects(NAMES, distributions=spread)
    return Model(Rescaled(network, {}, bounds), made, effects, ResidualError(("additive",)))


MODELS = {
    "closed form": model_of(SHAPED),
    "two compartments": model_of(SHAPED, two_compartment(bioavailability={1: "F"})),
}


def started(model: Model, population: Population) -> tuple[dict[str, Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    values = Fo().init(model, population, STREAMS, F64).trained
    values = {n: v + 0.2 * torch.randn(v.shape, generator=generator, dtype=F64) for n, v in values.items()}
    eta = [
        0.4 * torch.randn((1, SUBJECTS, FITS), generator=generator, dtype=F64)
        for _ in model.random_effects.names
    ]
    return values, eta


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("typical", [True, False])
def test_slopes_are_those_of_the_prediction(name: str, typical: bool) -> None:
    model, population = MODELS[name], make_population(SUBJECTS, FITS)
    values, eta = started(model, population)
    eta = [torch.zeros_like(effect) for effect in eta] if typical else eta
    zeta = model.typical(values, population)
    prediction, columns = model.linearise(zeta, population, None if typical else eta)
    torch.testing.assert_close(prediction, model.predict(zeta, population, eta))
    for place, column in enumerate(columns):
        up, down = (
            model.predict(zeta, population, [e + h * (k == place) for k, e in enumerate(eta)])
            for h in (1e-6, -1e-6)
        )
        torch.testing.assert_close(column, (up - down) / 2e-6, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("objective", [Fo(), Foce(mode_gradient="implicit", mode_tolerance=1e-10)])
def test_gradients_are_those_of_the_objective(objective: Fo | Foce) -> None:
    """With respect to everything that is trained, a shape among it."""
    model, population = model_of(SHAPED), make_population(SUBJECTS, FITS)
    state = objective.init(model, population, STREAMS, F64)
    leaves = {name: value.clone().requires_grad_() for name, value in state.trained.items()}
    assert "global.CL_boxcox" in leaves

    def loss(values: dict[str, Tensor]) -> Tensor:
        now = objective.refresh(model, population, replace(state, trained=values))
        return objective.loss(model, population, now, None).sum()

    found = torch.autograd.grad(loss(leaves), list(leaves.values()))
    generator = torch.Generator().manual_seed(2)
    for name, gradient in zip(leaves, found, strict=True):
        direction = torch.randn(gradient.shape, generator=generator, dtype=F64)
        with torch.no_grad():
            up, down = (
                loss({**state.trained, name: state.trained[name] + h * direction}).item()
                for h in (1e-5, -1e-5)
            )
        got = float((gradient * direction).sum())
        assert got == pytest.approx((up - down) / 2e-5, rel=2e-5, abs=1e-6), name


def test_a_linear_model_is_exact() -> None:
    """Levels are proportional to F, which is normal: FO and FOCE are the normal density of scipy."""
    pk = one_compartment(bioavailability={1: "F"})
    network = CovariateNetwork.build([], ["CL", "V1", "F"], COVARIATES, {"CL": 0.2, "V1": 3, "F": 0.6})
    effects = RandomEffects(("F",), fixed=[[0.04]], distributions={"F": Additive(0.6, above_zero=False)})
    model = Model(network, pk, effects, ResidualError(("additive",), fixed={"additive": 0.05}))
    population = make_population(SUBJECTS, FITS)
    for objective in (Fo(), Foce(), Foce(formulation="linearised")):
        state = objective.init(model, population, STREAMS, F64)
        state = objective.refresh(model, population, state)
        found = objective.loss(model, population, state, None)
        zeta = model.typical(state.trained, population)
        unit = (model.predict(zeta, population) / 0.6).numpy()
        want = np.zeros(FITS)
        for fit in range(FITS):
            for subject in range(SUBJECTS):
                x, y = unit[:, 0, subject, fit], population.dv[:, 0, subject, fit].numpy()
                cov = 0.04 * np.outer(x, x) + 0.05**2 * np.eye(len(x))
                density = stats.multivariate_normal.logpdf(y, 0.6 * x, cov)
                want[fit] += -2 * density - len(x) * math.log(2 * math.pi)
        np.testing.assert_allclose(found.detach().numpy(), want, rtol=1e-8)


def test_an_additive_effect_counts_in_the_unit_of_its_parameter() -> None:
    """A parameter 100 times as large, of another unit: its omega and its q are so, and begin so."""
    small, large = (RandomEffects(("E0",), distributions={"E0": Additive(s, False)}) for s in (1.0, 100.0))
    values = small.init(STREAMS, F64)
    assert torch.equal(large.cholesky(values)[0][0], 100 * small.cholesky(values)[0][0])
    q = {"q.mean": torch.tensor([[[0.3, 0.4]]]), "q.sd": torch.tensor([[[0.1, -0.2]]])}
    mean, cov = posterior("full_rank", q, large.sizes).moments()
    torch.testing.assert_close(mean, 100 * posterior("full_rank", q, None).moments()[0])
    torch.testing.assert_close(cov, 1e4 * posterior("full_rank", q, None).moments()[1])
    at = [torch.tensor([[[31.0, 38.0]]])]
    sd = np.sqrt(cov[0, 0, 0].numpy())
    want = stats.norm.logpdf(np.array([31.0, 38.0]), mean[0, 0].numpy(), sd)
    np.testing.assert_allclose(posterior("full_rank", q, large.sizes).log_density(at)[0, 0], want, rtol=1e-5)
    assert small.sizes is None


@pytest.mark.parametrize("family", ["full_rank", "mean_field", "mixture", "flow"])
def test_the_bound_of_a_linear_model_is_that_of_any_size(family: str) -> None:
    """ELBO(q) is no larger than log p(y), whatever eta is counted in; at a narrow q it has the same value."""
    population, found = make_population(SUBJECTS, FITS), []
    for size, raw in ((1.0, -1.0), (0.5, math.log(math.expm1(2 * math.log1p(math.exp(-1.0)))))):
        effects = RandomEffects(("F",), fixed=[[0.04]], distributions={"F": Additive(size, False)})
        network = CovariateNetwork.build([], ["CL", "V1", "F"], COVARIATES, {"CL": 0.2, "V1": 3, "F": 0.6})
        pk = one_compartment(bioavailability={1: "F"})
        model = Model(network, pk, effects, ResidualError(("additive",), fixed={"additive": 0.05}))
        objective = Vi(family=family, components=1)
        state = objective.init(model, population, STREAMS, F64)
        state.trained["q.sd"] = torch.full_like(state.trained["q.sd"], raw)
        state.trained["q.mean"] = torch.zeros_like(state.trained["q.mean"])
        shape = objective.noise_shape(model, population)
        noise = torch.randn((*shape, FITS), generator=torch.Generator().manual_seed(3), dtype=F64)
        found.append(objective.loss(model, population, state, noise))
    torch.testing.assert_close(*found, rtol=1e-10, atol=0)


def test_typical_values_lie_between_the_bounds() -> None:
    """Of equations a factor multiplies the odds: on the logit scale it is added."""
    bounds = {"F": Logit(0.2, 0.9)}
    weight = np.array([20.0, 70.0, 200.0])
    covariates = {"weight": torch.from_numpy(weight)[None, :, None].expand(-1, -1, FITS)}
    options: dict[str, Any] = {"equations": {"F": {"typical": {"initial": 0.6}, "weight": {"power": 3.0}}}}
    built = Equations.build(in_odds(options, bounds)["equations"], COVARIATES)
    network = Rescaled(built, {}, bounds)
    values = network.init(STREAMS, F64)
    want = 0.2 + 0.7 * special.expit(special.logit((0.6 - 0.2) / 0.7) + 3 * np.log(weight / 70))
    np.testing.assert_allclose(network.typical(values, covariates)["F"][0, :, 1], want, rtol=1e-12)
    moved = {name: value + 0.5 for name, value in values.items()}
    want = 0.2 + 0.7 * special.expit(special.logit((0.6 - 0.2) / 0.7) + 3 * np.log(weight / 70) + 0.5)
    np.testing.assert_allclose(network.typical(moved, covariates)["F"][0, :, 1], want, rtol=1e-12)
    for branches, free in (([], ["F"]), ([{"inputs": ["weight"], "hidden": [3], "heads": ["F"]}], [])):
        options = in_odds({"initial": {"F": 0.85}}, bounds)
        learned = CovariateNetwork.build(branches, free, COVARIATES, **options)
        start = learned.init(STREAMS, F64)
        for shift in (-20.0, 0.0, 20.0):
            zeta = Rescaled(learned, {}, bounds).typical({n: v + shift for n, v in start.items()}, covariates)
            assert bool(((zeta["F"] > 0.2 - 1e-12) & (zeta["F"] < 0.9 + 1e-12)).all())
    exact = Rescaled(CovariateNetwork.build([], ["F"], COVARIATES, **options), {}, bounds)
    np.testing.assert_allclose(exact.typical(exact.init(STREAMS, F64), {})["F"], 0.85, rtol=1e-12)


def test_modes_of_an_additive_effect_are_found_wherever_they_lie() -> None:
    """An effect in the unit of its parameter may be of any size."""
    network = CovariateNetwork.build([], ["CL", "V1", "F"], COVARIATES, {"CL": 20.0, "V1": 300, "F": 60})
    pk = one_compartment(bioavailability={1: "F"})
    effects = RandomEffects(("F",), fixed=[[900.0]], distributions={"F": Additive(60, False)})
    model = Model(network, pk, effects, ResidualError(("additive",), fixed={"additive": 0.05}))
    population = make_population(SUBJECTS, FITS)
    values: Values = model.init(STREAMS, F64)
    start = [torch.zeros(1, SUBJECTS, FITS, dtype=F64)]
    modes = find_modes(model, values, population, start, 1e-8, 50)
    assert bool(modes.converged.all())
    assert float(modes.eta[0].abs().amax()) > 3
    unit = (model.predict(model.typical(values, population), population) / 60)[:, 0]
    left = population.dv[:, 0] - 60 * unit
    want = (unit * left).sum(0) / ((unit * unit).sum(0) + 0.05**2 / 900)
    torch.testing.assert_close(modes.eta[0][0], want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("additive", "distributions is 'additive'; expected parameters"),
        ({"CL": "normal"}, "distributions.CL is 'normal'; expected exponential, additive"),
        ({"CL": {"logit": [0, 1], "boxcox": 1}}, "distributions.CL is .*; expected exponential"),
        ({"CL": {"logit": 1}}, "distributions.CL.logit is 1; expected two bounds"),
        ({"CL": {"logit": [1, 0]}}, "expected the lower bound before the upper one"),
        ({"CL": {"logit": [-1, 1]}}, "distributions.CL.logit is -1; expected"),
        ({"CL": {"boxcox": "x"}}, "distributions.CL.boxcox.* is 'x'"),
        ({"KA": "additive"}, "distributions.KA: has no random effect; they are those of CL, V1, F"),
    ],
)
def test_what_is_refused(given: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        distributions(given, NAMES, {}, ())


def test_a_typical_value_beyond_the_bounds_is_refused() -> None:
    with pytest.raises(InputError, match=r"network.initial.F is 1.5; expected a value between 0 and 1"):
        in_odds({"initial": {"F": 1.5}}, {"F": Logit()})
    with pytest.raises(InputError, match=r"equations.F.typical.upper is 2; expected a value between 0 and 1"):
        in_odds({"equations": {"F": {"typical": {"initial": 0.5, "upper": 2}}}}, {"F": Logit()})
    assert distributions({"F": {"logit": [0, 1]}}, ("CL",), {}, ()) == {"F": Logit()}
    assert distributions({"CL": "exponential"}, ("CL",), {}, ()) == {}
    assert EXPONENTIAL.size == 1
