"""Public data with estimates by NONMEM and nlmixr: the objective there, and at the optimum, is theirs."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medcm_cli.analysis.information import optimum, separate
from medcm_cli.analysis.scores import Score, score
from medcm_cli.analysis.uncertainty import covariances
from medcm_cli.data import Population
from medcm_cli.objectives import Agq, Fo, Focei, Objective
from medcm_cli.study.problem import Problem
from tests.helpers import F64, SHARED, STREAMS, configuration

FOLDER = SHARED / "data" / "published"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the published data are not beside this checkout")


@dataclass(frozen=True)
class Case:
    """``typical`` parameters, ``omega`` and ``sigma`` as published, or near the optimum (``rough``), and the
    published ``ofv`` there; ``se``, sandwich standard errors of the first of typical parameters, then of the
    first omegas. ``near``: how close the optimum's typical parameters are, relative to those published."""

    file: str
    pk: str
    objective: Objective
    ofv: float
    typical: Mapping[str, float]
    omega: Mapping[str, float]
    sigma: float
    error: str = "proportional"
    rho: float | None = None
    rough: bool = False
    near: float = 2e-3
    se: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    units: str = "{time: h, amount: mg, level: mg/L}"
    keep: Mapping[str, int] = field(default_factory=dict)


ONE = functools.partial(Case, "phenobarbital.csv", "one_compartment")
BOLUS = functools.partial(
    Case,
    "bolus_1cpt.csv",
    "one_compartment",
    units="{time: h, amount: ug, level: ug/L}",
    keep={"SD": 1},
)
# By nlmixr and nlmixr2 (experiments/public/README.md): logarithms of typical parameters, of a few digits.
THEOPHYLLINE = functools.partial(
    Case, "theophylline.csv", "one_compartment_oral", error="additive", near=5e-3
)
CASES = {
    "theophylline, fo": THEOPHYLLINE(
        objective=Fo(),
        ofv=103.86942,
        typical={"KA": np.exp(1.064), "CL": np.exp(1.018), "V1": np.exp(3.505)},
        omega={"KA": 1.045**-2, "CL": 1.824**-2, "V1": 2.688**-2},
        sigma=0.6148,
    ),
    "theophylline, focei": THEOPHYLLINE(
        objective=Focei(),
        ofv=116.8044,
        typical={"KA": np.exp(0.464), "CL": np.exp(1.01), "V1": np.exp(3.46)},
        omega={n: np.sqrt(np.log1p(cv**2)) for n, cv in {"KA": 0.706, "CL": 0.268, "V1": 0.139}.items()},
        sigma=0.693,
    ),
    "phenobarbital, fo": ONE(
        objective=Fo(),
        ofv=742.051,
        typical={"CL": 0.0055536, "V1": 1.33638},
        omega={"CL": 0.49707, "V1": 0.37627},
        sigma=0.12812,
        se=((0.000395, 0.0799), (0.156, 0.0464)),
    ),
    "phenobarbital, focei": ONE(
        objective=Focei(),
        ofv=730.895,
        typical={"CL": 0.005818, "V1": 1.4456},
        omega={"CL": 0.333, "V1": 0.449},
        sigma=0.128,
    ),
    "phenobarbital, focei, full Omega": ONE(
        objective=Focei(),
        ofv=688.522,
        typical={"CL": 0.006803, "V1": 1.4048},
        omega={"CL": 0.4891, "V1": 0.3934},
        sigma=2.864,
        error="additive",
        rho=0.9982,
    ),
    "two compartments, focei": Case(
        "two_compartment_bolus.csv",
        "two_compartment",
        Focei(),
        196.008,
        {"V1": 9.760, "CL": 3.877, "V2": 30.82, "Q": 8.774},
        {"V1": 0.1219, "CL": 0.1413, "V2": 0.1709, "Q": 0.1523},
        0.0940,
        se=((0.243, 0.107, 1.283, 0.273), ()),
    ),
    "bolus, focei": BOLUS(
        objective=Focei(),
        ofv=20058.47,
        typical={"CL": 3.926, "V1": 67.11},
        omega={"CL": 0.269, "V1": 0.302},
        sigma=0.198,
    ),
    "bolus, fo": BOLUS(  # of which only the value is published
        objective=Fo(),
        ofv=21444.73,
        typical={"CL": 3.5, "V1": 72.0},
        omega={"CL": 0.25, "V1": 0.30},
        sigma=0.24,
        rough=True,
    ),
}


def theophylline() -> pd.DataFrame:
    """Events of a file with a dose, mg/kg, in every row."""
    table = pd.read_csv(FOLDER.parent / "theophylline" / "theophylline.csv")
    first = table.drop_duplicates("Subject")
    dose, levels = (part.rename(columns={"Subject": "id", "Time": "time"}) for part in (first, table))
    doses = dose.assign(time=0.0, amt=first["Dose"] * first["Wt"], evid=1)
    levels = levels.assign(dv=table["conc"], evid=0)
    events = pd.concat([doses, levels])[["id", "time", "amt", "dv", "evid"]]
    return events.sort_values(["id", "evid", "time"], ascending=[True, False, True], kind="stable")


def problem(case: Case, folder: Path) -> Problem:
    table = theophylline() if case.file == "theophylline.csv" else pd.read_csv(FOLDER / case.file)
    for column, value in case.keep.items():
        table = table[table[column] == value]
    # SS of every row of the simulated sets is 99, and means nothing.
    table.drop(columns=["SS", "II"], errors="ignore").to_csv(folder / "events.csv", index=False)
    names = {"parameters": ",".join(case.typical), "effects": ",".join(case.omega)}
    options = ["dataset=table", "dataset.name=published", f"pk={case.pk}", "network=none", "split=all"]
    options += ["dataset.covariates=null", "network.global_parameters=[{parameters}]".format(**names)]
    options += ["random_effects=[{effects}]".format(**names), f"dataset.units={case.units}"]
    options += [f"error={case.error}", "omega=full" if case.rho else "omega=diagonal"]
    config = configuration(folder / "events.csv", folder, *options, "dtype=float64", "fold=1")
    config["dataset"]["covariates"] = {}
    return Problem.build(config)


def raw(*values: float) -> Tensor:
    """Before softplus, of one fit."""
    return torch.from_numpy(np.log(np.expm1(np.array(values))))[:, None]


def known_of(case: Case, given: Problem) -> dict[str, Tensor]:
    """Trained values of one fit that are the published estimates."""
    known = {f"global.{name}": raw(value)[0] for name, value in case.typical.items()}
    known["omega"] = raw(*case.omega.values())
    known["sigma"] = raw(case.sigma / given.model.error.unit_of(case.error))
    if case.rho:
        known["correlation"] = torch.tensor([[np.arctanh(case.rho)]])
    return known


def test_nodes_that_quadrature_needs_and_the_scores_by_all_methods(tmp_path: Path) -> None:
    """What the manual says of phenobarbital."""
    case = CASES["phenobarbital, focei"]
    given = problem(case, tmp_path)
    (population, _) = given.populations([(1, 1)])
    known = known_of(case, given)

    def by(method: str) -> Score:
        return score(given.model, known, population, STREAMS[:1], method)

    assert float(by("focei").total) == pytest.approx(730.895, abs=0.01)
    assert float(by("laplace").total) == pytest.approx(730.45, abs=0.01)
    agq, imp = by("agq"), by("imp")
    assert agq.nodes == 32
    assert float(agq.total) == pytest.approx(729.57, abs=0.01)
    assert abs(float(imp.total - agq.total)) < 3 * float(imp.error)
    # Towards the score, whose nodes are placed by the exact Hessian.
    for nodes, want in ((1, 730.45), (3, 732.01), (5, 729.98), (9, 729.60)):
        objective = Agq(nodes=nodes, mode_tolerance=1e-8)
        state = objective.init(given.model, population, STREAMS[:1], F64)
        state = objective.refresh(given.model, population, replace(state, trained=known))
        with torch.no_grad():
            got = float(objective.loss(given.model, population, state, None))
        assert got == pytest.approx(want, abs=0.01)


@pytest.mark.parametrize("name", CASES)
def test_the_objective_is_the_published_one(name: str, tmp_path: Path) -> None:
    """An estimate is published with few digits; what these are off from the optimum, a few Newton steps
    show."""
    case = CASES[name]
    given = problem(case, tmp_path)
    (population, _) = given.populations([(1, 1)])
    criterion = case.objective.criterion(len(case.omega))
    state = criterion.objective.init(given.model, population, STREAMS[:1], F64)
    known = known_of(case, given)
    known = {name: known[name].view_as(value) for name, value in state.trained.items()}
    state = criterion.objective.refresh(given.model, population, replace(state, trained=known))
    with torch.no_grad():
        there = float(criterion.objective.loss(given.model, population, state, None))
    everyone = Population.from_events(given.events, F64)
    subjects, theta, own, carried = separate(given.model, criterion, everyone, population, state)
    best = optimum(subjects, theta, own, carried, torch.ones(len(theta), dtype=torch.bool))
    assert bool(best.found.all())
    assert float(subjects.losses(best.theta, own, carried)) == pytest.approx(case.ofv, abs=0.01)
    if case.rough:
        return
    assert there == pytest.approx(case.ofv, abs=0.01)
    sizes = [value.numel() for value in known.values()]
    matrix = covariances(best.information, best.outer, torch.zeros(len(theta), dtype=torch.bool))[0]
    raw_error = matrix["sandwich"][0].diagonal().sqrt()
    natural = torch.nn.functional.softplus(best.theta[:, 0])
    error = raw_error * torch.sigmoid(best.theta[:, 0])
    parts, errors = (dict(zip(known, of.split(sizes), strict=True)) for of in (natural, error))
    for name, value in case.typical.items():
        assert float(parts[f"global.{name}"]) == pytest.approx(value, rel=case.near)
    for name, value in zip(case.typical, case.se[0], strict=False):
        assert float(errors[f"global.{name}"]) == pytest.approx(value, rel=0.005)
    if case.se[1]:
        np.testing.assert_allclose(errors["omega"].numpy(), case.se[1], rtol=0.005)
