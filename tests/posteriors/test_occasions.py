"""Posteriors by NUTS where parameters vary between occasions: the density that is sampled, and tables without
draws of occasions that a subject lacks."""

import numpy as np
import pytest
import torch
from scipy import stats

from medcm_cli.model.priors import PopulationPrior
from medcm_cli.posteriors.sampling import JointPopulation, KnownPopulation, Posterior, diagnostics, tables
from tests.helpers import F64, STREAMS
from tests.objectives import occasions as known

NUMBERS = (1, 3, 2)


def test_the_density_is_that_of_levels_and_all_random_effects() -> None:
    """By scipy, those of occasions that a subject lacks too, as its draws of them are those of the prior."""
    own = ("CL", "V1")
    rows, model = known.table(NUMBERS), known.model_of(own, "full")
    population = known.population_of(rows)
    values = model.init(STREAMS[:1], F64)
    target = KnownPopulation(model, values, population, model.typical(values, population))
    assert target.size == 2 + 3 * 2
    x = 0.2 * torch.randn(3, target.size, generator=torch.Generator().manual_seed(0), dtype=F64)
    got = target.log_density(x).numpy()
    prior, zeta = known.dense_prior(model, values, population), known.typical(model, values, population)
    for n in range(3):
        f = known.levels(rows, n + 1, own, zeta, x[n].numpy())
        want = stats.norm(f, known.sigma_of(model, values, f)).logpdf(known.observed(rows, n + 1)).sum()
        want += stats.multivariate_normal(cov=prior).logpdf(x[n].numpy())
        assert got[n] == pytest.approx(want, rel=1e-9)


def test_pi_is_sampled_with_the_rest() -> None:
    model, population = known.model_of(("CL",)), known.population_of(known.table(NUMBERS))
    values = {name: v for name, v in model.init(STREAMS[:1], F64).items() if name.startswith("global.")}
    zeta = model.typical(values, population)
    target = JointPopulation(model, values, population, zeta, PopulationPrior(model))
    x = target.start(torch.randn(1, target.size, generator=torch.Generator().manual_seed(0), dtype=F64))
    assert bool(torch.isfinite(target.log_density(x)).all())
    found = target.population_of(x)
    assert set(found) == {"sigma_additive", "omega_1", "omega_2", "rho_21", "pi_CL"}
    last = PopulationPrior(model).size - 1
    assert float(found["pi_CL"]) == pytest.approx(float(x[0, last].exp()))


def test_tables_have_no_draws_of_what_a_subject_lacks() -> None:
    model, population = known.model_of(("CL",)), known.population_of(known.table(NUMBERS))
    there = model.there(population)
    assert there is not None
    generator = np.random.default_rng(0)
    drawn = Posterior(
        generator.standard_normal((4, 50, 3, 5)),
        np.zeros((4, 50, 3), dtype=bool),
        {},
        np.zeros((4, 50, 3)),
        1,
        model.effects(population),
        (there[:, 0, :, 0].T > 0).numpy(),
    )
    table = tables(drawn, np.arange(3), ["a", "b", "c"])["draws"].to_pandas()
    assert table.groupby("subject")["kappa_CL_3"].count().tolist() == [0, 200, 0]
    assert table.groupby("subject")["kappa_CL_1"].count().tolist() == [200, 200, 200]
    found = diagnostics(drawn, np.arange(3), ["a", "b", "c"])
    assert found.groupby("quantity")["id"].agg(list)["kappa_CL_2"] == ["b", "c"]
