"""OFV by every method: the exact one of a linear model, each other's of any, and what it costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.analysis import scores
from medcm_cli.analysis.criteria import Counts, aic, bicc, count, likelihood_ratio
from medcm_cli.analysis.scores import METHODS, score
from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import LogNormalError, Model, RandomEffects
from medcm_cli.objectives import Fo, State, Vi
from tests.helpers import F64, STREAMS, LinearGaussian, dense_omega, make_population, plausible, with_error

FITS = 2


def exact(model: LinearGaussian, values: dict[str, Tensor], population: Population) -> np.ndarray:
    """OFV of each subject, (N, B), by matrices of its observations."""
    offset, columns = model.design(population)
    _, subjects, fits = population.shape
    ofv = np.zeros((subjects, fits))
    for n, b in np.ndindex(subjects, fits):
        rows = population.observed[:, 0, n, b].numpy() > 0
        x = np.stack([column[:, 0].numpy()[rows, n, b] for column in columns], 1)
        r = (population.dv - offset)[:, 0, n, b].numpy()[rows]
        sigma = np.log1p(np.exp(float(values["sigma"][0, b])))
        c = x @ dense_omega(values, b) @ x.T + sigma**2 * np.eye(len(r))
        normal = stats.multivariate_normal(np.zeros(len(r)), c)
        ofv[n, b] = -2 * normal.logpdf(r) - len(r) * np.log(2 * np.pi)
    return ofv


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_model_has_its_exact_marginal_likelihood(model: Model, method: str) -> None:
    linear = LinearGaussian(model.network, model.pk, model.random_effects, model.error)
    population = make_population(6, FITS, ragged=True)
    values = Fo().init(linear, population, STREAMS, F64).trained
    found = score(linear, values, population, STREAMS, method)
    want = exact(linear, values, population)
    assert found.unfound.tolist() == [0, 0]
    if method != "imp":
        assert found.error.tolist() == [0.0, 0.0]
        np.testing.assert_allclose(found.ofv.numpy(), want, rtol=1e-8)
        return
    off = found.total.numpy() - want.sum(0)
    assert bool((np.abs(off) < 3 * found.error.numpy()).all())
    assert bool((found.error < 0.5).all())
    assert found.tail is not None
    assert bool((found.tail < 0.5).all())


def test_quadrature_and_importance_sampling_agree(model: Model) -> None:
    """And a fit alone has the numbers that it has in a batch, whoever else is there."""
    model = with_error(model, "combined")
    everyone = make_population(4, 1, ragged=True)
    population = everyone.select([np.arange(4), np.arange(3)])
    values = plausible(model)
    agq, imp = (score(model, values, population, STREAMS, method) for method in ("agq", "imp"))
    assert agq.moved is not None
    assert float(agq.moved.max()) < scores.MOVED
    assert bool(((agq.total - imp.total).abs() < 3 * imp.error).all())
    assert agq.ofv[3:, 1].tolist() == [0.0]
    alone = score(
        model,
        {name: value[..., 1:] for name, value in values.items()},
        everyone.select([np.arange(3)]),
        STREAMS[1:],
        "imp",
    )
    torch.testing.assert_close(alone.total, imp.total[1:])
    torch.testing.assert_close(alone.error, imp.error[1:])


def test_quadrature_says_where_it_has_not_settled(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_error(model, "proportional")
    population = make_population(3, FITS, ragged=True)
    values = plausible(model)
    wide = {**values, "omega": torch.full_like(values["omega"], 1.0)}
    monkeypatch.setattr(scores, "_NODES", (2, 3))
    found = score(model, wide, population, STREAMS, "agq")
    assert found.moved is not None
    assert float(found.moved.max()) > scores.MOVED
    assert found.nodes == 3


def test_parts_that_fit_into_memory_are_the_whole(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    population = make_population(3, FITS)
    values = plausible(model)
    whole = [score(model, values, population, STREAMS, method).ofv for method in ("agq", "imp")]
    monkeypatch.setattr(scores, "_ELEMENTS", 100)
    for method, want in zip(("agq", "imp"), whole, strict=True):
        torch.testing.assert_close(score(model, values, population, STREAMS, method).ofv, want)


@pytest.mark.parametrize("error", ["additive", "combined"])
def test_the_elbo_is_a_bound_for_every_subject(model: Model, error: str) -> None:
    """Each subject as a fit of its own, with an arbitrary q."""
    model = with_error(model, error)
    subjects, draws = 5, 1000
    everyone = make_population(subjects, 1)
    each = everyone.select([np.array([n]) for n in range(subjects)])
    values = plausible(model)
    one, streams = {n: v[..., :1] for n, v in values.items()}, STREAMS[:1]
    of_each = {n: v.expand(*v.shape[:-1], subjects) for n, v in one.items()}
    want = score(model, of_each, each, streams * subjects, "agq").total
    vi = Vi(samples=1)
    q = {n: v - 0.5 * (n == "q.sd") for n, v in vi.init(model, everyone, streams, F64).trained.items()}
    # A fit for each draw and subject, at once.
    many = everyone.select([np.array([n]) for n in range(subjects)] * draws)
    trained = {n: v.expand(*v.shape[:-1], subjects * draws) for n, v in one.items()}
    trained |= {
        n: v.transpose(-1, -2).repeat(*[1] * (v.ndim - 1), draws) for n, v in q.items() if n.startswith("q.")
    }
    noise = torch.randn(2, 1, 1, subjects * draws, generator=torch.Generator().manual_seed(0), dtype=F64)
    with torch.no_grad():
        bound = 2 * vi.loss(model, many, State(trained), noise).view(draws, subjects)
    bound = bound - each.observation_count * np.log(2 * np.pi)
    assert bool((bound.mean(0) + 3 * bound.std(0) / draws**0.5 >= want).all())


def test_methods_that_do_not_fit_are_refused(model: Model) -> None:
    population = make_population(2, FITS)
    six = replace(model, random_effects=RandomEffects(("CL", "V1", "Q", "V2")))
    values = plausible(model)
    with pytest.raises(InputError, match=r"--by is .*magic"):
        score(model, values, population, STREAMS, "magic")
    with pytest.raises(InputError, match="--draws is 5"):
        score(model, values, population, STREAMS, "imp", draws=5)
    assert scores.method_for(len(six.random_effects.names)) == "imp"


def test_log_normal_errors_are_of_levels_and_say_by_how_much(model: Model) -> None:
    population = make_population(3, FITS, ragged=True)
    levels = replace(model, error=LogNormalError())
    values = plausible(levels)
    logged = replace(model, error=LogNormalError(logged=True))
    ofv = [score(one, values, population, STREAMS, "focei").total for one in (levels, logged)]
    known = population.sum_subjects(levels.error.transformation(population))
    torch.testing.assert_close(ofv[0] - ofv[1], known)
    want = sum(2 * np.log(population.dv.numpy()[population.observed.numpy() > 0])) / FITS
    assert float(known[0]) == pytest.approx(want)
    assert logged.error.transformation(population).abs().max() == 0


# -- what it costs ---------------------------------------------------------------------------------


def test_parameters_are_counted_by_what_they_move(model: Model) -> None:
    """Both branches lead to CL, and V1 has a random effect too; Q and V2 have none."""
    population = make_population(3, FITS)
    values = plausible(model)
    weights = sum(v[..., 0].numel() for name, v in values.items() if "." in name and "global" not in name)
    assert count(model, values, population) == Counts(weights + 3, 3, weights, 2)
    of_q = replace(model, random_effects=RandomEffects(("Q",)))
    alone = {**values, "omega": values["omega"][:1]}
    del alone["correlation"]
    assert count(of_q, alone, population) == Counts(2, weights + 2, weights, 1)


def test_sigma_is_of_random_effects_where_it_has_one(model: Model) -> None:
    population = make_population(3, FITS)
    both = replace(model, random_effects=RandomEffects(("CL", "sigma")))
    without, counted = (count(of, of.init(STREAMS, F64), population) for of in (model, both))
    assert counted.all == without.all
    # V1 alone moves with the second head of the first branch: 12 weights and a bias.
    assert counted.random == without.random - 13 + 1


def test_criteria_are_their_definitions() -> None:
    population, counts = make_population(5, FITS, ragged=True), Counts(3, 2, 0, 1)
    ofv = torch.tensor([10.0, 20.0], dtype=F64)
    observations = float(population.observation_count[0])
    torch.testing.assert_close(aic(ofv, counts), ofv + 10)
    torch.testing.assert_close(bicc(ofv, counts, population), ofv + 3 * np.log(5) + 2 * np.log(observations))


@pytest.mark.parametrize(
    ("difference", "more", "variances", "p"),
    [
        (3.841459, 1, 0, 0.05),
        (2.705543, 1, 1, 0.05),  # half chi-squared of 1, half a point at 0
        (5.138, 2, 1, 0.05),  # with its covariance (Stram and Lee 1994)
        (0.0, 1, 1, 1.0),
        (-1.0, 2, 0, 1.0),
        (4.231, 2, 2, 0.05),  # a quarter at 0, a half of 1 and a quarter of 2
    ],
)
def test_likelihood_ratios_of_a_variance_are_at_its_boundary(
    difference: float, more: int, variances: int, p: float
) -> None:
    assert likelihood_ratio(difference, more, variances) == pytest.approx(p, abs=2e-4)
