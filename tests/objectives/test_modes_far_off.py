"""Modes where observations are tiny beside what is predicted at first, with an error in proportion to the
prediction: one compartment, two observations of each subject, against scipy and a grid of these."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from medcm_cli.analysis import scores
from medcm_cli.data import Population
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.families import at_modes
from medcm_cli.objectives.modes import find_modes
from medcm_cli.objectives.several_modes import OnLogs, best_modes, mode_on_logs
from medcm_cli.objectives.vi import Vi
from medcm_cli.pk import one_compartment
from tests.helpers import F64, table_of

DOSE, TYPICAL, OMEGA, SIGMA = 100.0, np.array([5.0, 50.0]), np.array([0.9, 0.7]), 0.15
TIMES = np.array([6.0, 36.0])  # h
ETAS = np.array([[0.1, 0.2], [1.2, -0.3], [1.6, -0.9], [2.0, 0.3], [1.5, -1.0]])
OFF = np.array([[1.1, 0.9], [0.8, 1.2], [1.0, 1.3], [1.2, 1.0], [0.9, 0.75]])
K, N = 2, len(ETAS)


def logs(eta: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Of the prediction, for eta (2, ...)."""
    cl, v = (typical * np.exp(e) for typical, e in zip(TYPICAL, eta, strict=True))
    found: np.ndarray = np.log(DOSE / v) - cl / v * time
    return found


LOG_Y = np.stack([logs(eta, TIMES) for eta in ETAS]) + np.log(OFF)


def joint(subject: int, eta: np.ndarray) -> np.ndarray:
    """-2 log density of a subject's data and eta (2, ...), without n log 2 pi."""
    found = (eta**2 / OMEGA.reshape(-1, *[1] * (eta.ndim - 1)) ** 2).sum(0) + 2 * np.log(OMEGA).sum()
    for log_y, time in zip(LOG_Y[subject], TIMES, strict=True):
        log_f = logs(eta, time)
        found = found + 2 * (np.log(SIGMA) + log_f) + (np.expm1(log_y - log_f) / SIGMA) ** 2
    return np.asarray(found)


@pytest.fixture(scope="module")
def model() -> Model:
    typical = dict(zip(("CL", "V1"), TYPICAL.tolist(), strict=True))
    network = CovariateNetwork.build([], list(typical), {}, typical)
    effects = RandomEffects(("CL", "V1"), "diagonal")
    return Model(network, one_compartment(1.0), effects, ResidualError(("proportional",)))


@pytest.fixture(scope="module")
def population() -> Population:
    brief = 1e-9  # h, of a dose
    rows = [
        row
        for subject in range(N)
        for row in (
            (subject, 0.0, True, DOSE / brief, brief, np.nan),
            *(
                (subject, t, False, np.nan, np.nan, y)
                for t, y in zip(TIMES, np.exp(LOG_Y[subject]), strict=True)
            ),
        )
    ]
    return Population.from_events(table_of([str(i) for i in range(N)], rows, {}), F64)


@pytest.fixture(scope="module")
def values(model: Model) -> Mapping[str, Tensor]:
    found = model.init([Stream(1, 1, 1)], F64)
    found["omega"] = torch.log(torch.expm1(torch.from_numpy(OMEGA)))[:, None]
    found["sigma"] = torch.log(torch.expm1(torch.full((1, 1), SIGMA, dtype=F64)))
    return found


ZERO = [torch.zeros(1, N, 1, dtype=F64)] * K


def mode(subject: int) -> np.ndarray:
    """By scipy, from where both observations are met."""
    k = (LOG_Y[subject, 0] - LOG_Y[subject, 1]) / (TIMES[1] - TIMES[0])
    v = DOSE / np.exp(LOG_Y[subject, 0] + k * TIMES[0])
    begin = np.log(np.array([k * v, v]) / TYPICAL)

    def value(eta: np.ndarray) -> float:
        return float(joint(subject, eta))

    tight: Any = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 4000}
    found = optimize.minimize(value, begin, method="Nelder-Mead", options=tight)
    return np.asarray(found.x)


MODES = np.stack([mode(subject) for subject in range(N)])


def test_observations_reach_from_near_the_typical_prediction_to_nothing_beside_it() -> None:
    below = (logs(np.zeros(2), TIMES) - LOG_Y).max(1)
    assert below[0] < 1
    assert below.max() > 30


def test_the_best_modes_are_found(model: Model, population: Population, values: Mapping[str, Tensor]) -> None:
    plain = best_modes(model, values, population, ZERO, 1e-8, 200)
    assert not bool(plain.converged.all())  # its steps are too short to get there
    best = best_modes(model, values, population, ZERO, 1e-8, 200, stretched=True)
    assert bool(best.converged.all())
    np.testing.assert_allclose(torch.cat(best.eta)[..., 0].T.numpy(), MODES, rtol=0, atol=1e-6)


def test_a_search_with_longer_steps_is_over_sooner(
    model: Model, population: Population, values: Mapping[str, Tensor]
) -> None:
    """From a CL that is 40 % too low, which leaves predictions that are many times the observations."""
    start = [torch.from_numpy(MODES[:, i] - (0.5 if i == 0 else 0.0))[None, :, None] for i in range(K)]
    plain = find_modes(model, values, population, start, 1e-8, 100)
    found = find_modes(model, values, population, start, 1e-8, 100, stretched=True)
    assert int(found.converged.sum()) > int(plain.converged.sum())
    ended = found.converged[0, :, 0].numpy()
    eta = torch.cat(found.eta)[..., 0].T.numpy()
    np.testing.assert_allclose(eta[ended], MODES[ended], rtol=0, atol=1e-6)


def test_vi_begins_at_the_modes(model: Model, population: Population, values: Mapping[str, Tensor]) -> None:
    begun = Vi(family="mean_field").init(model, population, [Stream(1, 1, 1)], F64).trained
    known = {**begun, **values}
    found = at_modes("mean_field", model, population, known, known)["q.mean"]
    sizes = torch.tensor(model.sizes(K) or [1.0] * K, dtype=F64)
    np.testing.assert_allclose((found[..., 0] * sizes[:, None]).T.numpy(), MODES, rtol=0, atol=1e-3)


def test_scores_by_quadrature_equal_a_grid(
    model: Model, population: Population, values: Mapping[str, Tensor]
) -> None:
    """Of the logarithms of both predictions, in which each observation has a narrow peak and a long tail: CL
    and V1 follow from them, with d log CL d log V1 = d log f_1 d log f_2 / (k (t_2 - t_1))."""
    found = scores.score(model, dict(values), population, [Stream(1, 1, 1)], "agq")
    assert not bool(found.unfound.any())
    edges = np.concatenate([np.linspace(-2, 2, 241)[:-1], np.linspace(2, 90, 400)])
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    for subject in range(N):
        one, other = np.meshgrid(LOG_Y[subject, 0] + middle, LOG_Y[subject, 1] + middle, indexing="ij")
        hours = TIMES[1] - TIMES[0]
        k = (one - other) / hours
        there = k > 0
        k = np.where(there, k, 1.0)
        log_v = np.log(DOSE) - one - k * TIMES[0]
        eta = np.stack([np.log(k) + log_v - np.log(TYPICAL[0]), log_v - np.log(TYPICAL[1])])
        terms = -joint(subject, eta) / 2 - np.log(k * hours) + np.log(width[:, None] * width)
        want = K * np.log(2 * np.pi) - 2 * np.logaddexp.reduce(terms[there])
        assert float(found.ofv[subject, 0]) == pytest.approx(want, abs=0.01)


def test_on_logs_equals_its_own_density() -> None:
    """The value that is searched, and its slope by differences; the observation that is not known is left
    out."""
    precision = torch.tensor([4.0, 0.0], dtype=F64).view(2, 1, 1, 1)
    error, dv = OnLogs(precision), torch.tensor([2.0, -1.0], dtype=F64).view(2, 1, 1, 1)
    f = torch.tensor([3.0, 3.0], dtype=F64).view(2, 1, 1, 1)

    class Seen:
        pass

    seen = Seen()
    seen.dv = dv  # type: ignore[attr-defined]
    at = error.deviance({}, f, seen)  # type: ignore[arg-type]
    assert at.value.flatten().tolist() == pytest.approx([(4 * np.log(2 / 3)) ** 2, 0.0])
    h = 1e-6
    up, down = (error.deviance({}, f + side * h, seen).value for side in (1, -1))  # type: ignore[arg-type]
    torch.testing.assert_close(2 * at.pull / at.sd, (up - down) / (2 * h), rtol=0, atol=1e-6)


def test_there_is_none_where_an_observation_may_have_any_prediction(
    model: Model, population: Population, values: Mapping[str, Tensor]
) -> None:
    other = Model(model.network, model.pk, model.random_effects, ResidualError(("additive", "proportional")))
    assert mode_on_logs(other, values, population, ZERO) is None
