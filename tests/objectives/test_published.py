"""Wang 2007 (J Pharmacokinet Pharmacodyn 34:575): ten subjects, a bolus of 10, V 1, CL 0.5, every parameter
known. Objectives with each residual error against numpy and scipy, and what NONMEM gives."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize

from medcm_cli.model import Model
from medcm_cli.objectives import Fo, Foce, Focei, Objective, State
from medcm_cli.study.problem import Problem
from tests.helpers import SHARED, STREAMS, configuration

FILE = SHARED / "data" / "published" / "wang2007.csv"
OMEGA, VARIANCE = 0.04, 0.1
SD = float(np.sqrt(VARIANCE))
needs_data = pytest.mark.skipif(not FILE.exists(), reason="the published data are not beside this checkout")


class Case(NamedTuple):
    """``options`` of a fit, and the referee's: sd (f) of ``of`` (y), which is y or its logarithm;
    ``constant``: what the likelihood of levels has besides."""

    options: list[str]
    sd: Callable[[np.ndarray], np.ndarray]
    of: Callable[[np.ndarray], np.ndarray] = np.asarray
    constant: Callable[[np.ndarray], float] = lambda _: 0.0
    nonmem: float | None = None


def sigma(**components: float) -> str:
    known = ", ".join(f"{name}: {value!r}" for name, value in components.items())
    return f"fixed={{omega: [[{OMEGA!r}]], sigma: {{{known}}}}}"


CASES = {
    "additive": Case(["error=additive", sigma(additive=SD)], lambda f: np.full_like(f, SD), nonmem=0.026),
    "proportional": Case(["error=proportional", sigma(proportional=SD)], lambda f: SD * f, nonmem=39.213),
    "combined": Case(
        ["error=combined", sigma(additive=SD, proportional=SD)], lambda f: SD + SD * f, nonmem=43.398
    ),
    "combined_variances": Case(
        ["error=combined_variances", sigma(additive=SD, proportional=0.2)],
        lambda f: np.sqrt(VARIANCE + (0.2 * f) ** 2),
    ),
    "power": Case(["error=power", sigma(power=0.3, exponent=0.7)], lambda f: 0.3 * f**0.7),
    "log_normal": Case(
        ["error=log_normal", sigma(log=0.3)],
        lambda f: np.full_like(f, 0.3),
        np.log,
        lambda y: float(2 * np.log(y).sum()),
    ),
    "logged": Case(
        ["error=log_normal", "dataset.logged=true", sigma(log=0.3)], lambda f: np.full_like(f, 0.3), np.log
    ),
}


def given(case: Case, folder: Path) -> tuple[Model, Any, State]:
    """The model, its subjects, and the known values of one fit."""
    table = pd.read_csv(FILE)
    if "dataset.logged=true" in case.options:
        table.loc[table["EVID"] == 0, "DV"] = np.log(table.loc[table["EVID"] == 0, "DV"])
    table.to_csv(folder / "wang.csv", index=False)
    options = ["dataset=table", "dataset.name=wang", "pk=one_compartment", "network=none", "split=all"]
    options += ["dataset.covariates=null", "network.global_parameters=[CL,V1]", "random_effects=[CL]"]
    options += ["dataset.units={time: h, amount: mg, level: mg/L}", "dtype=float64", "fold=1"]
    config = configuration(folder / "wang.csv", folder, *options, *case.options)
    config["dataset"]["covariates"] = {}
    problem = Problem.build(config)
    (population, _) = problem.populations([(1, 1)])
    values = {
        "global.CL": torch.log(torch.expm1(torch.tensor([0.5], dtype=torch.float64))),
        "global.V1": torch.log(torch.expm1(torch.tensor([1.0], dtype=torch.float64))),
    }
    return problem.model, population, State(values)


def of_subjects() -> list[tuple[np.ndarray, np.ndarray]]:
    seen = pd.read_csv(FILE).query("EVID == 0")
    return [(of["TIME"].to_numpy(), of["DV"].to_numpy()) for _, of in seen.groupby("ID")]


def referee(case: Case, method: str) -> float:
    """By matrices of all observations of a subject, with derivatives by complex steps."""
    value = 0.0
    for time, level in of_subjects():

        def f(eta: float, time: np.ndarray = time) -> np.ndarray:
            return np.asarray(10 * np.exp(-0.5 * np.exp(eta) * time))

        def joint(eta: float, level: np.ndarray = level, f: Callable[[float], np.ndarray] = f) -> float:
            sd = case.sd(f(eta))
            white = (case.of(level) - case.of(f(eta))) / sd
            return float((white**2 + 2 * np.log(sd)).sum() + eta**2 / OMEGA)

        eta = 0.0
        if method != "fo":
            found = optimize.minimize_scalar(
                joint, bounds=(-3, 3), method="bounded", options={"xatol": 1e-11}
            )
            eta = float(found.x)
        g = np.imag(case.of(10 * np.exp(-0.5 * np.exp(eta + 1e-30j) * time))) / 1e-30
        sigma = np.diag(case.sd(f(eta)) ** 2)
        c = OMEGA * np.outer(g, g) + sigma
        r = case.of(level) - case.of(f(eta)) + (g * eta if method == "linearised" else 0)
        value += float(np.linalg.slogdet(c)[1]) + case.constant(level)
        if method == "joint":
            value += float(r @ np.linalg.solve(sigma, r)) + eta**2 / OMEGA
        else:
            value += float(r @ np.linalg.solve(c, r))
    return value


@needs_data
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("method", "objective"),
    [
        ("fo", Fo()),
        ("joint", Foce("joint", mode_tolerance=1e-10)),
        ("linearised", Foce("linearised", mode_tolerance=1e-10)),
    ],
)
def test_objectives_are_the_referees(name: str, method: str, objective: Objective, tmp_path: Path) -> None:
    case = CASES[name]
    model, population, known = given(case, tmp_path)
    state = objective.init(model, population, STREAMS[:1], torch.float64)
    state = replace(state, trained={**state.trained, **known.trained})
    state = objective.refresh(model, population, state)
    got = float(objective.loss(model, population, state, None))
    assert got == pytest.approx(referee(case, method), abs=1e-6)
    if method == "fo" and case.nonmem is not None:
        assert got == pytest.approx(case.nonmem, abs=0.001)


# OFV by NONMEM: FO, FOCE, FOCE with INTERACTION.
NONMEM = {
    "additive": (0.026, -2.059, -2.059),
    "proportional": (39.213, 39.207, 39.458),
    "combined": (43.398, 43.394, 43.554),
}


@needs_data
@pytest.mark.parametrize("name", NONMEM)
def test_each_method_is_nonmems(name: str, tmp_path: Path) -> None:
    model, population, known = given(CASES[name], tmp_path)
    methods = (Fo(), Foce("nonmem", mode_tolerance=1e-10), Focei(mode_tolerance=1e-10))
    for objective, want in zip(methods, NONMEM[name], strict=True):
        state = objective.init(model, population, STREAMS[:1], torch.float64)
        state = replace(state, trained={**state.trained, **known.trained})
        state = objective.refresh(model, population, state)
        with torch.no_grad():
            got = float(objective.loss(model, population, state, None))
        assert got == pytest.approx(want, abs=0.001), objective
