"""NONMEM's objectives at the modes, and quadrature around them, against numpy, subject by subject."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import (
    CovariateNetwork,
    ErrorModel,
    LogNormalError,
    Model,
    RandomEffects,
    ResidualError,
    StudentError,
    Values,
)
from medcm_cli.objectives import Agq, Foce, Focei, Laplace, State
from medcm_cli.objectives.conditional import Conditional
from medcm_cli.objectives.modes import find_modes
from medcm_cli.pk import OdeModel, two_compartment_rate
from medcm_cli.study.identity import identity
from tests.helpers import (
    ERRORS,
    F64,
    STREAMS,
    at_eta,
    dense_omega,
    make_population,
    plausible,
    sd_of,
    slopes,
    with_error,
)
from tests.pk.test_models import named

FITS, SUBJECTS = 2, 5
TIGHT: dict[str, Any] = {"mode_tolerance": 1e-10, "mode_iterations": 500}


def found(objective: Conditional, model: Model, population: Population) -> State:
    """At plausible values, with the modes there."""
    state = objective.init(model, population, STREAMS, F64)
    state = replace(state, trained=plausible(model))
    return objective.refresh(model, population, state)


class Subject:
    """One subject of one fit: its joint density of data and eta, by numpy; with the sds of eta = 0 where
    ``frozen``."""

    def __init__(
        self,
        model: Model,
        values: Values,
        population: Population,
        place: tuple[int, int],
        frozen: bool = False,
    ) -> None:
        self.model, self.values, self.population = model, values, population
        self.n, self.b = place
        self.seen = population.observed[:, 0, self.n, self.b].numpy() > 0
        self.dv = population.dv[self.seen, 0, self.n, self.b].numpy()
        self.omega = dense_omega(dict(values), self.b)
        self.typical = self.f(np.zeros(2)) if frozen else None

    def _put(self, eta: np.ndarray) -> np.ndarray:
        whole = np.zeros((2, *self.population.shape[1:]))
        whole[:, self.n, self.b] = eta
        return whole

    def f(self, eta: np.ndarray) -> np.ndarray:
        whole = at_eta(self.model, self.values, self.population, self._put(eta))
        return np.asarray(whole[self.seen, self.n, self.b])

    def g(self, eta: np.ndarray) -> np.ndarray:
        return slopes(self.model, self.values, self.population, self._put(eta))[:, self.seen, self.n, self.b]

    def sd(self, f: np.ndarray) -> np.ndarray:
        return sd_of(self.model, self.values, f if self.typical is None else self.typical, self.b)

    def joint(self, eta: np.ndarray) -> float:
        """l(eta)."""
        f = self.f(eta)
        sd = self.sd(f)
        return float(
            (2 * np.log(sd) + ((self.dv - f) / sd) ** 2).sum() + eta @ np.linalg.solve(self.omega, eta)
        )

    def slope(self, eta: np.ndarray) -> np.ndarray:
        """Half that of l."""
        return np.array([self.joint(eta + h) - self.joint(eta - h) for h in 1e-4 * np.eye(2)]) / 4e-4

    def information(self, eta: np.ndarray) -> np.ndarray:
        """With interaction: sum_j a a' / R + c c' / 2."""
        f, g = self.f(eta), self.g(eta)
        variance = self.sd(f) ** 2
        h = 1e-6
        c = g * (self.sd(f + h) ** 2 - self.sd(f - h) ** 2) / (2 * h) / variance
        return np.asarray(np.linalg.inv(self.omega) + (g / variance) @ g.T + c @ c.T / 2)

    def hessian(self, eta: np.ndarray) -> np.ndarray:
        """Half that of l, by central differences of two steps (Richardson)."""

        def by(a: np.ndarray, b: np.ndarray) -> float:
            ends = [s * t * self.joint(eta + s * a + t * b) for s in (1, -1) for t in (1, -1)]
            return sum(ends) / 4

        unit = np.eye(2)
        each = [np.array([[by(h * a, h * b) for a in unit] for b in unit]) / h**2 for h in (1e-3, 2e-3)]
        return np.asarray((4 * each[0] - each[1]) / 6)

    def approximation(self, eta: np.ndarray, curvature: np.ndarray) -> float:
        return float(self.joint(eta) + np.linalg.slogdet(self.omega)[1] + np.linalg.slogdet(curvature)[1])


def each(state: State, model: Model, population: Population, frozen: bool = False) -> list[Subject]:
    return [
        Subject(model, state.trained, population, (n, b), frozen)
        for b in range(FITS)
        for n in range(population.shape[1])
    ]


def summed(values: list[float]) -> np.ndarray:
    return np.asarray(np.reshape(values, (FITS, -1)).sum(1))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("case", ["nonmem", "focei", "laplace"])
def test_they_are_the_textbooks_at_their_modes(model: Model, error: str, case: str) -> None:
    model = with_error(model, error)
    population = make_population(3, FITS, ragged=True)
    objectives: dict[str, Conditional] = {
        "nonmem": Foce("nonmem", **TIGHT),
        "focei": Focei(**TIGHT),
        "laplace": Laplace(**TIGHT),
    }
    state = found(objectives[case], model, population)
    eta = state.carried["eta"].numpy()
    want = []
    for subject in each(state, model, population, frozen=case == "nonmem"):
        at = eta[:, subject.n, subject.b]
        curvature = subject.hessian(at) if case == "laplace" else subject.information(at)
        np.testing.assert_allclose(np.linalg.solve(curvature, subject.slope(at)), 0, atol=1e-6)  # a step
        want.append(subject.approximation(at, curvature))
    with torch.no_grad():
        got = objectives[case].loss(model, population, state, None).numpy()
    np.testing.assert_allclose(got, summed(want), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("error", ["additive", "combined"])
def test_quadrature_of_one_node_is_laplaces_and_of_many_the_integral(model: Model, error: str) -> None:
    model = with_error(model, error)
    population = make_population(3, FITS, ragged=True)
    laplace = Laplace(**TIGHT)
    state = found(laplace, model, population)
    with torch.no_grad():
        one, few, many = (
            Agq(nodes=m, **TIGHT).of_subjects(model, population, state)[0].numpy() for m in (1, 5, 30)
        )
        np.testing.assert_allclose(one, laplace.of_subjects(model, population, state)[0].numpy(), rtol=1e-12)
    subject = Subject(model, state.trained, population, (1, 0))
    mode = state.carried["eta"][:, 1, 0].numpy()
    sd = np.sqrt(np.diag(np.linalg.inv(subject.hessian(mode))))
    node, weight = np.polynomial.legendre.leggauss(40)
    grid = [mode[k] + 7 * sd[k] * node for k in range(2)]
    best = subject.joint(mode)
    inside = [[np.exp((best - subject.joint(np.array([x, y]))) / 2) for y in grid[1]] for x in grid[0]]
    integral = 49 * sd[0] * sd[1] * (weight @ np.array(inside) @ weight)
    want = best + np.linalg.slogdet(subject.omega)[1] - 2 * np.log(integral / (2 * np.pi))
    assert many[1, 0] == pytest.approx(want, abs=1e-6)
    assert abs(few[1, 0] - want) < abs(one[1, 0] - want)


def test_quadrature_around_another_place_than_the_mode_is_the_same_integral(model: Model) -> None:
    """Of many nodes; and held there, with the gradient of what is then minimised."""
    model = with_error(model, "combined")
    population = make_population(3, FITS)
    agq = Agq(nodes=24, **TIGHT)
    held = agq.held()
    assert held is not None
    assert Agq(nodes=1).held() is None
    state = found(agq, model, population)
    eta = state.carried["eta"]
    aside = replace(state, carried={**state.carried, "eta": eta + 0.1})
    assert torch.equal(held.refresh(model, population, aside).carried["eta"], eta + 0.1)
    with torch.no_grad():
        want = agq.loss(model, population, state, None)
        torch.testing.assert_close(held.loss(model, population, aside, None), want, rtol=0, atol=1e-5)
    few = Agq(nodes=3, **TIGHT).held()
    assert few is not None
    leaves = {key: value.clone().requires_grad_() for key, value in aside.trained.items()}
    loss = few.loss(model, population, replace(aside, trained=leaves), None)
    gradient = torch.autograd.grad(loss.sum(), list(leaves.values()))
    for name, slope in zip(leaves, gradient, strict=True):
        moved = [{**aside.trained, name: aside.trained[name] + h} for h in (1e-5, -1e-5)]
        with torch.no_grad():
            high, low = (
                few.loss(model, population, replace(aside, trained=there), None).sum().item()
                for there in moved
            )
        assert slope.sum().item() == pytest.approx((high - low) / 2e-5, rel=1e-5, abs=1e-5)


def total(objective: Conditional, model: Model, population: Population, trained: Values) -> torch.Tensor:
    """The objective as a function of the trained values alone: the modes are found for each anew."""
    state = objective.init(model, population, STREAMS, F64)
    state = objective.refresh(model, population, replace(state, trained=dict(trained)))
    return objective.loss(model, population, state, None).sum()


CASES: dict[str, Conditional] = {
    "nonmem": Foce("nonmem", **TIGHT),
    "focei": Focei(**TIGHT),
    "laplace": Laplace(**TIGHT),
    "agq": Agq(nodes=3, **TIGHT),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("error", ["additive", "combined", "student", "log", "censored"])
def test_the_gradient_is_that_of_what_is_minimised(model: Model, name: str, error: str) -> None:
    """By default the modes follow."""
    others: dict[str, ErrorModel] = {
        "student": StudentError(("additive", "proportional")),
        "log": LogNormalError(),
    }
    model = replace(model, error=others[error]) if error in others else with_error(model, "combined")
    population = make_population(SUBJECTS, FITS)
    if error == "censored":
        below = (population.dv < 0.21).to(F64)
        population = replace(population, dv=population.dv.clamp(min=0.21), censored=below)
    objective = CASES[name]
    trained = plausible(model)
    leaves = {key: value.clone().requires_grad_() for key, value in trained.items()}
    gradient = torch.autograd.grad(total(objective, model, population, leaves), list(leaves.values()))
    g = torch.Generator().manual_seed(1)
    direction = [torch.randn(v.shape, generator=g, dtype=F64) for v in leaves.values()]
    got = sum((a * b).sum().item() for a, b in zip(gradient, direction, strict=True))
    ends = [
        total(
            objective,
            model,
            population,
            {k: v.detach() + h * d for (k, v), d in zip(leaves.items(), direction, strict=True)},
        ).item()
        for h in (1e-5, -1e-5)
    ]
    assert got == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_modes_may_be_constants_of_the_gradient(model: Model, name: str) -> None:
    model = with_error(model, "combined")
    population = make_population(SUBJECTS, FITS)
    objective = replace(CASES[name], mode_gradient="fixed")
    state = found(objective, model, population)
    leaves = {key: value.clone().requires_grad_() for key, value in state.trained.items()}

    def loss(trained: Values) -> torch.Tensor:
        return objective.loss(model, population, replace(state, trained=dict(trained)), None).sum()

    gradient = torch.autograd.grad(loss(leaves), list(leaves.values()))
    g = torch.Generator().manual_seed(1)
    direction = [torch.randn(v.shape, generator=g, dtype=F64) for v in leaves.values()]
    got = sum((a * b).sum().item() for a, b in zip(gradient, direction, strict=True))
    up, down = (
        loss({k: v.detach() + h * d for (k, v), d in zip(leaves.items(), direction, strict=True)}).item()
        for h in (1e-5, -1e-5)
    )
    assert got == pytest.approx((up - down) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("name", ["focei", pytest.param("laplace", marks=pytest.mark.slow)])
def test_an_integrated_model_gives_what_the_closed_form_does(model: Model, name: str) -> None:
    ode = OdeModel(two_compartment_rate, model.pk.parameters, 2, method="tsit5", rtol=1e-7, atol=1e-6)
    population = make_population(1, FITS)
    objective = replace(CASES[name], mode_tolerance=1e-6)
    losses, gradients = [], []
    for pk in (model.pk, ode):
        given = replace(model, pk=pk)
        leaves = {key: v.clone().requires_grad_() for key, v in plausible(given).items()}
        loss = total(objective, given, population, leaves)
        losses.append(loss.item())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("learned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_who_has_arrived_is_not_integrated_with_the_others(
    learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of ten subjects begin far from their modes: these are the same as if all were followed to the end,
    also where each fit has learned terms of its own."""
    names = ("CL", "V1") if learned else ("CL", "V1", "Q", "V2")
    pk = named("neural_ode" if learned else "two_compartment_ode", rtol=1e-7, atol=1e-5)
    begin = {"CL": 0.14, "V1": 2.0, "Q": 0.15, "V2": 0.75}
    network = CovariateNetwork.build([], list(names), {}, {name: begin[name] for name in names})
    model = Model(network, pk, RandomEffects(("CL", "V1")), ResidualError(("additive", "proportional")))
    values = model.init(STREAMS, F64)
    g = torch.Generator().manual_seed(3)
    values |= {
        name: 0.3 * torch.randn(weight.shape, generator=g, dtype=F64)
        for name, weight in pk.weights(values).items()
    }
    population = make_population(SUBJECTS, FITS)
    eta = [0.3 * torch.randn(1, SUBJECTS, FITS, generator=g, dtype=F64) for _ in range(2)]
    with torch.no_grad():
        level = model.predict(model.typical(values, population), population, eta)
    noise = torch.randn(level.shape, generator=g, dtype=F64)
    population = replace(population, dv=level * (1 + 0.1 * noise))
    followed, whole = [], OdeModel.sensitivities

    def counted(pk: OdeModel, schedule: Any, *given: Any) -> Any:
        followed.append(schedule.start[0].numel())
        return whole(pk, schedule, *given)

    monkeypatch.setattr(OdeModel, "sensitivities", counted)
    monkeypatch.setattr("medcm_cli.objectives.modes._FEW", 0.0)
    modes = find_modes(model, values, population, eta, 1e-4, 200)
    assert bool(modes.converged.all())
    assert set(followed) == {SUBJECTS * FITS}
    start = [eta.clone() for eta in modes.eta]
    for n, b in ((1, 0), (4, 1)):
        start[0][0, n, b] += 0.8
    monkeypatch.setattr("medcm_cli.objectives.modes._FEW", 0.6)
    followed.clear()
    found = find_modes(model, values, population, start, 1e-4, 200)
    assert bool(found.converged.all())
    assert (followed[0], max(followed[1:])) == (SUBJECTS * FITS, 2)
    # From several places a subject is followed until the last of its searches has arrived.
    several = [torch.cat([good, bad]) for good, bad in zip(modes.eta, start, strict=True)]
    best = find_modes(model, values, population, several, 1e-4, 200)
    for eta in (found.eta, best.eta):
        for got, want in zip(eta, modes.eta, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_where_the_hessian_is_not_positive_the_expected_one_stands_in(model: Model) -> None:
    """Levels a million times too high push eta against its bounds, where nothing says what curvature is."""
    model = with_error(model, "combined")
    population = make_population(3, FITS)
    high = population.dv.clone()
    high[:, :, 0] *= 1e6
    population = replace(population, dv=high)
    trained = {key: v.clone().requires_grad_() for key, v in plausible(model).items()}
    loss = total(Laplace(), model, population, trained)
    assert bool(torch.isfinite(loss))
    for part in torch.autograd.grad(loss, list(trained.values())):
        assert bool(torch.isfinite(part).all())


def test_without_interaction_an_error_without_a_spread_is_refused(model: Model) -> None:
    class Spreadless(LogNormalError):  # noqa: N818 (no exception)
        without_interaction = ErrorModel.without_interaction

    odd = replace(model, error=Spreadless())
    with pytest.raises(InputError, match=r"objective.formulation=nonmem needs an error with an sd"):
        Foce("nonmem").init(odd, make_population(2, FITS), STREAMS, F64)


def test_more_nodes_than_anybody_can_wait_for_are_refused(model: Model) -> None:
    with pytest.raises(InputError, match=r"objective.nodes=50: of 2 random effects these are 2500 nodes"):
        Agq(nodes=50).init(model, make_population(2, FITS), STREAMS, F64)
    with pytest.raises(InputError, match=r"objective.nodes is 0"):
        Agq(nodes=0)


def test_what_the_gradient_does_is_part_of_what_a_fit_is_by_what_it_is_by_default() -> None:
    """Of fits of before there was a choice it is fixed."""
    foce = {"_target_": "medcm_cli.objectives.Foce", "formulation": "joint"}
    before = identity({"objective": foce})
    for name, same in ((None, True), ("fixed", True), ("implicit", False)):
        assert (identity({"objective": {**foce, "mode_gradient": name}}) == before) == same
    nonmem = {**foce, "formulation": "nonmem"}
    given = [identity({"objective": {**nonmem, "mode_gradient": n}}) for n in (None, "implicit", "fixed")]
    assert given[0] == given[1] != given[2]
    for formulation, follows in (("joint", False), ("linearised", False), ("nonmem", True)):
        assert Foce(formulation).follows == follows
