"""Modes of posteriors that have several, against a grid and scipy: a steep dose-response, of which a subject
has seen two doses."""

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from medcm_cli.analysis import scores
from medcm_cli.data import Population
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Foce, Laplace
from medcm_cli.objectives.base import Objective
from medcm_cli.objectives.modes import find_modes
from medcm_cli.objectives.several_modes import best_modes
from medcm_cli.pk import DirectModel
from tests.helpers import F64, table_of

SUBJECTS, K = 120, 3
TYPICAL = {"E0": 5.0, "EMAX": 30.0, "ED50": 500.0, "GAMMA": 3.0}
OMEGA = np.array([0.3, 0.7, 0.7])
SIGMA = 0.1
DOSES = [(100.0, 1000.0), (300.0, 1000.0), (100.0, 300.0)]


@pytest.fixture(scope="module")
def hill() -> Model:
    network = CovariateNetwork.build([], list(TYPICAL), {}, TYPICAL)
    effects = RandomEffects(("E0", "EMAX", "ED50"), "diagonal")
    return Model(network, DirectModel("hill"), effects, ResidualError(("proportional",)))


@pytest.fixture(scope="module")
def population() -> Population:
    generator = np.random.default_rng(7)
    rows = []
    for subject in range(SUBJECTS):
        eta = OMEGA * generator.standard_normal(K)
        for dose in DOSES[subject % len(DOSES)]:
            y = response(eta, np.array(dose)) * (1 + SIGMA * generator.standard_normal())
            rows.append((subject, dose, False, np.nan, np.nan, float(y)))
    covariates: dict[str, np.ndarray] = {}
    return Population.from_events(table_of([str(i) for i in range(SUBJECTS)], rows, covariates), F64)


@pytest.fixture(scope="module")
def values(hill: Model) -> Mapping[str, Tensor]:
    found = hill.init([Stream(1, 1, 1)], F64)
    found["omega"] = torch.log(torch.expm1(torch.from_numpy(OMEGA)))[:, None]
    found["sigma"] = torch.log(torch.expm1(torch.full((1, 1), SIGMA, dtype=F64)))
    return found


def response(eta: np.ndarray, dose: np.ndarray) -> np.ndarray:
    e0, emax, ed50 = (TYPICAL[name] * np.exp(e) for name, e in zip(("E0", "EMAX", "ED50"), eta, strict=True))
    g = TYPICAL["GAMMA"]
    found: np.ndarray = e0 + emax * dose**g / (ed50**g + dose**g)
    return found


def joint(population: Population, subject: int, eta: np.ndarray) -> np.ndarray:
    """-2 log density of a subject's data and eta (3, ...), without constants."""
    dose = population.time[:, 0, subject, 0].numpy().reshape(-1, *[1] * (eta.ndim - 1))
    dv = population.dv[:, 0, subject, 0].numpy().reshape(dose.shape)
    f = response(eta[:, None], dose)
    terms = 2 * np.log(SIGMA * f) + ((dv - f) / (SIGMA * f)) ** 2
    scaled = eta / OMEGA.reshape(-1, *[1] * (eta.ndim - 1))
    found: np.ndarray = terms.sum(0) + (scaled**2).sum(0)
    return found


def lowest(population: Population, subject: int) -> float:
    """By scipy from every point of a grid."""

    def value(eta: np.ndarray) -> float:
        return float(joint(population, subject, eta))

    starts = [OMEGA * np.array(u) for u in itertools.product((-1.5, 0.0, 1.5), repeat=K)]
    return min(float(optimize.minimize(value, start, method="BFGS").fun) for start in starts)


def test_the_best_modes_are_the_lowest_of_all(
    hill: Model, population: Population, values: Mapping[str, Tensor]
) -> None:
    zero = [torch.zeros(1, SUBJECTS, 1, dtype=F64)] * K
    alone = find_modes(hill, values, population, zero, 1e-8, 200)
    best = best_modes(hill, values, population, zero, 1e-8, 200)
    assert bool(best.converged.all())
    at = [torch.cat(modes.eta)[..., 0].numpy() for modes in (alone, best)]
    found = np.array([[joint(population, n, eta[:, n]) for n in range(SUBJECTS)] for eta in at])
    wrong = found[0] > found[1] + 0.01
    assert wrong.any()  # one start is not enough for these
    for subject in np.flatnonzero(wrong).tolist():
        assert found[1, subject] == pytest.approx(lowest(population, subject), abs=1e-6)
    assert (found[1] <= found[0] + 1e-6).all()
    kept = found[0] < found[1] + 1e-9
    assert kept.any()
    np.testing.assert_array_equal(at[1][:, kept], at[0][:, kept])


def scoring_step(population: Population, subject: int, eta: np.ndarray) -> np.ndarray:
    """Of Fisher scoring at eta (3,), by differences."""
    dose, h = population.time[:, 0, subject, 0].numpy(), 1e-6
    ends = [(eta + h * axis, eta - h * axis) for axis in np.eye(K)]
    logs = [[np.log(response(end[:, None], dose)) for end in both] for both in ends]
    slope = np.stack([(up - down) / (2 * h) for up, down in logs])  # of log f, which sd is in proportion to
    information = (1 / SIGMA**2 + 2) * slope @ slope.T + np.diag(OMEGA**-2)
    half = [
        (joint(population, subject, up) - joint(population, subject, down)) / (4 * h) for up, down in ends
    ]
    return np.asarray(np.linalg.solve(information, half))


def test_a_search_does_not_end_where_damping_alone_has_made_a_step_short(
    hill: Model, values: Mapping[str, Tensor], population: Population
) -> None:
    """It took steps that would have been up to 45 times the tolerance for the last."""
    generator, tolerance = np.random.default_rng(0), 0.03
    for _ in range(2):
        start = [torch.from_numpy(2 * sd * generator.standard_normal((1, SUBJECTS, 1))) for sd in OMEGA]
        modes = find_modes(hill, values, population, start, tolerance, 100)
        assert bool(modes.converged.all())
        eta = torch.cat(modes.eta)[..., 0].numpy()
        inside = np.abs(eta).max(0) < 2.9
        assert inside.sum() > 0.9 * SUBJECTS
        for subject in np.flatnonzero(inside):
            assert np.abs(scoring_step(population, int(subject), eta[:, subject])).max() < 10 * tolerance


def test_a_mode_is_that_of_the_fit_whatever_was_found_before(
    hill: Model, population: Population, values: Mapping[str, Tensor]
) -> None:
    zero = [torch.zeros(1, SUBJECTS, 1, dtype=F64)] * K
    best = torch.cat(best_modes(hill, values, population, zero, 1e-8, 200).eta)
    start = [torch.full((1, SUBJECTS, 1), 1.5, dtype=F64)] * K
    found = torch.cat(best_modes(hill, values, population, start, 1e-8, 200).eta)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", [Fo(), Foce(), Laplace()], ids=["fo", "foce", "laplace"])
def test_estimates_of_random_effects_are_the_best_modes(
    hill: Model, population: Population, values: Mapping[str, Tensor], objective: Objective
) -> None:
    """Of whatever a fit was trained by, and where its own search has another mode."""
    zero = [torch.zeros(1, SUBJECTS, 1, dtype=F64)] * K
    best = torch.cat(best_modes(hill, values, population, zero, 1e-8, 200).eta)
    begun = replace(objective.init(hill, population, [Stream(1, 1, 1)], F64), trained=dict(values))
    found = objective.random_effects(hill, population, objective.refresh(hill, population, begun))
    assert found is not None
    torch.testing.assert_close(found[0], best, rtol=0, atol=1e-3)


def test_scores_are_taken_at_the_best_modes(
    hill: Model, population: Population, values: Mapping[str, Tensor]
) -> None:
    """By Laplace's approximation: not next to 0 where that is not the best mode, and only there."""
    zero = [torch.zeros(1, SUBJECTS, 1, dtype=F64)] * K
    at = [
        torch.cat(search(hill, values, population, zero, 1e-8, 200).eta)[..., 0].numpy()
        for search in (find_modes, best_modes)
    ]
    near, best = ([joint(population, n, eta[:, n]) for n in range(SUBJECTS)] for eta in at)
    several = np.flatnonzero(np.array(near) > np.array(best) + 0.01)
    found = scores.score(hill, dict(values), population, [Stream(1, 1, 1)], "laplace")
    assert not bool(found.unfound.any())
    objective = Laplace(mode_tolerance=1e-10)
    begun = replace(objective.init(hill, population, [Stream(1, 1, 1)], F64), trained=dict(values))
    state = objective.refresh(hill, population, begun)
    of_near = objective.of_subjects(hill, population, state).detach()[0, :, 0]
    others = np.setdiff1d(np.arange(SUBJECTS), several)
    torch.testing.assert_close(found.ofv[others, 0], of_near[others], rtol=0, atol=1e-6)
    assert bool((found.ofv[several, 0] - of_near[several]).abs().max() > 0.01)


def test_scores_of_posteriors_that_reach_far_from_their_mode(
    hill: Model, values: Mapping[str, Tensor]
) -> None:
    """Of a subject whose response has just begun at the highest dose EMAX and ED50 may rise together: a bent
    ridge. By a grid of eta."""
    doses, levels = (0.0, 100.0, 300.0, 1000.0), [(3.94, 3.44, 4.81, 8.2), (4.84, 5.55, 6.58, 9.1)]
    rows = [
        (subject, dose, False, np.nan, np.nan, y)
        for subject, of in enumerate(levels)
        for dose, y in zip(doses, of, strict=True)
    ]
    covariates: dict[str, np.ndarray] = {}
    everyone = Population.from_events(table_of(["0", "1"], rows, covariates), F64)
    found = scores.score(hill, values, everyone, [Stream(1, 1, 1)], "agq")
    sides = [np.linspace(-reach * sd, reach * sd, 141) for reach, sd in zip((5, 6, 6), OMEGA, strict=True)]
    cell = np.log(np.prod([side[1] - side[0] for side in sides]))
    constant = K * np.log(2 * np.pi) + 2 * np.log(OMEGA).sum()
    for subject in range(2):
        slices = [
            -joint(everyone, subject, np.stack(np.meshgrid(e0, *sides[1:], indexing="ij"))).ravel() / 2
            for e0 in sides[0]
        ]
        want = constant - 2 * (np.logaddexp.reduce([np.logaddexp.reduce(part) for part in slices]) + cell)
        assert float(found.ofv[subject, 0]) == pytest.approx(want, abs=0.003)
