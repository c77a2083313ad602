"""NUTS where random effects are of occasions, of sigma, or of another distribution than the exponential:
means are those of draws from the prior that the likelihood weights, by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from arviz_stats.base.array import array_stats
from scipy.special import expit, logit
from scipy.stats import norm

from medcm_cli.posteriors.sampling import KnownPopulation, sample, tables
from medcm_cli.study.problem import Problem
from tests.helpers import F64, STREAMS, configuration

SUBJECTS, TIMES, SIGMA = 4, (1.0, 4.0, 9.0, 16.0), 0.2
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray | float, np.ndarray | float]


class Case(NamedTuple):
    """Options; the sd of each random effect; and from draws (K, S) and an occasion, from 0, what a subject
    then has: CL, V1, F and sigma."""

    options: tuple[str, ...]
    sds: tuple[float, ...]
    of: Callable[[np.ndarray, int], Drawn]
    names: tuple[str, ...]


CASES = {
    "occasions": Case(
        (
            "random_effects=[CL,V1]",
            "occasions={parameters: [CL]}",
            "fixed={omega: [[0.09, 0], [0, 0.04]], pi: [[0.0625]], sigma: {proportional: 0.2}}",
        ),
        (0.3, 0.2, 0.25, 0.25),
        lambda e, o: (2 * np.exp(e[0] + e[2 + o]), 20 * np.exp(e[1]), 1.0, SIGMA),
        ("eta_1", "eta_2", "kappa_CL_1", "kappa_CL_2"),
    ),
    "sigma": Case(
        (
            "random_effects=[CL,V1,sigma]",
            "fixed={omega: [[0.09, 0, 0], [0, 0.04, 0], [0, 0, 0.16]], sigma: {proportional: 0.2}}",
        ),
        (0.3, 0.2, 0.4),
        lambda e, _: (2 * np.exp(e[0]), 20 * np.exp(e[1]), 1.0, SIGMA * np.exp(e[2])),
        ("eta_1", "eta_2", "eta_3"),
    ),
    "additive and Box-Cox": Case(
        (
            "random_effects=[CL,V1]",
            "+distributions={CL: additive, V1: {boxcox: 0.5}}",
            "fixed={omega: [[0.16, 0], [0, 0.04]], sigma: {proportional: 0.2}}",
        ),
        (0.4, 0.2),
        lambda e, _: (2 + e[0], 20 * np.exp((np.exp(0.5 * e[1]) - 1) / 0.5), 1.0, SIGMA),
        ("eta_1", "eta_2"),
    ),
    "logit": Case(
        (
            "random_effects=[CL,F]",
            "+pk.bioavailability={1: F}",
            "+distributions={F: {logit: [0, 1]}}",
            "+network.equations.F={typical: {fixed: 0.8}}",
            "fixed={omega: [[0.09, 0], [0, 0.36]], sigma: {proportional: 0.2}}",
        ),
        (0.3, 0.6),
        lambda e, _: (2 * np.exp(e[0]), np.full_like(e[0], 20.0), expit(logit(0.8) + e[1]), SIGMA),
        ("eta_1", "eta_2"),
    ),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dose on each of two occasions, the second after a washout."""
    generator, rows = np.random.default_rng(7), []
    for patient in range(1, SUBJECTS + 1):
        cl, v = 2 * np.exp(0.3 * generator.standard_normal()), 20 * np.exp(0.2 * generator.standard_normal())
        for occasion in (1, 2):
            begin, of = 48.0 * (occasion - 1), {"ID": patient, "OCC": occasion}
            rows.append({**of, "TIME": begin, "AMT": 100.0, "EVID": 4 if begin else 1})
            for time in TIMES:
                level = 100 / v * np.exp(-cl / v * time) * np.exp(SIGMA * generator.standard_normal())
                rows.append({**of, "TIME": begin + time, "DV": level, "EVID": 0})
    path = tmp_path_factory.mktemp("kinds") / "kinds.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def weighted(case: Case, levels: pd.DataFrame, draws: int = 400_000) -> tuple[np.ndarray, np.ndarray]:
    """The posterior mean of each random effect of one subject, and its Monte Carlo error, (K,) each."""
    sds = np.array(case.sds)[:, None]
    eta = sds * np.random.default_rng(0).standard_normal((len(sds), draws))
    log_weight = np.zeros(draws)
    for time, occasion, dv in levels[["TIME", "OCC", "DV"]].to_numpy():
        cl, v, share, sigma = case.of(eta, int(occasion) - 1)
        level = share * 100 / v * np.exp(-cl / v * (time % 48))
        log_weight += norm.logpdf(dv, level, sigma * level)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = eta @ weight
    return mean, np.sqrt(((weight * (eta - mean[:, None])) ** 2).sum(1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_means_are_those_of_a_weighted_prior(table: Path, tmp_path: Path, kind: str) -> None:
    case = CASES[kind]
    options = [
        *("dataset=table", "dataset.name=kinds", "dataset.units={time: h, amount: mg, level: mg/L}"),
        *("dataset.covariates={}", "+dataset.bolus_duration=0", "split=all", "pk=one_compartment"),
        *("error=proportional", "network=equations", "dtype=float64"),
        "+network.equations={CL: {typical: {fixed: 2}}, V1: {typical: {fixed: 20}}}",
    ]
    problem = Problem.build(configuration(table, tmp_path, *options, *case.options))
    model, values = problem.model, problem.model.init(STREAMS[:1], F64)
    population = problem.everyone.select([np.arange(SUBJECTS)] * 2)
    zeta = {name: torch.full((1,), of, dtype=F64) for name, of in (("CL", 2.0), ("V1", 20.0), ("F", 0.8))}
    zeta = {name: zeta[name] for name in model.pk.parameters}
    target = KnownPopulation(model, values, population, zeta)
    drawn = sample(target, (0, 1, 1), warmup=50, draws=100, target_accept=0.9)
    drawn = replace(drawn, names=model.effects(population))
    assert tuple(drawn.names or ()) == case.names
    ids = [str(n) for n in range(1, SUBJECTS + 1)]
    assert set(case.names) <= set(tables(drawn, np.arange(SUBJECTS), ids)["draws"].column_names)
    levels = pd.read_csv(table).query("EVID == 0")
    for subject in range(SUBJECTS):
        mean, error = weighted(case, levels[levels["ID"] == subject + 1])
        for place in range(len(case.sds)):
            own = drawn.eta[:, :, subject, place]
            of_chains = own.std() / np.sqrt(float(array_stats.ess(own, method="mean")))
            assert abs(own.mean() - mean[place]) < 4 * np.hypot(of_chains, error[place])
