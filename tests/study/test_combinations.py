"""Every residual error with every objective and every kind of observation and random effect: a fit that
begins with a finite objective and takes a step by a finite gradient, or one line that says why not."""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medcm_cli.errors import InputError
from medcm_cli.study.job import Job
from medcm_cli.study.options import conf_dir
from medcm_cli.study.problem import Problem
from tests.helpers import configuration

ERRORS = sorted(path.stem for path in (conf_dir() / "error").glob("*.yaml"))
# Choice -> options of it.
OBJECTIVES = {
    **{path.stem: ("", "") for path in sorted((conf_dir() / "objective").glob("*.yaml"))},
    "foce linearised": ("formulation", "linearised"),
    "foce nonmem": ("formulation", "nonmem"),
}
TWO: dict[str, dict[str, object]] = {
    "cp": {"dvid": 1, "error": "combined_variances", "size": 2.0},
    "other": {"dvid": 2, "error": "proportional", "size": 2.0},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "M1": {"blq": "M1"},
    "M3": {"blq": "M3"},
    "M4": {"blq": "M4"},
    "above": {},
    "occasions": {"occasions": {"parameters": ["CL"], "column": "OCC"}},
    "sigma": {"random_effects": ["CL", "V1", "sigma"]},
}


def table(path: Path, kind: str) -> Path:
    """Four subjects with a dose at once on each of two occasions; of some kinds levels beyond a limit."""
    generator, rows = np.random.default_rng(2), []
    for subject in range(1, 5):
        cl, v = 2 * np.exp(0.3 * generator.standard_normal()), 20 * np.exp(0.2 * generator.standard_normal())
        for occasion in (1, 2):
            begin = 24.0 * (occasion - 1)
            of = {"ID": subject, "OCC": occasion, "DVID": 1, "CENS": 0}
            rows.append({**of, "TIME": begin, "AMT": 100.0})
            for number, time in enumerate((1.0, 5.0, 12.0)):
                level = 100 / v * np.exp(-cl / v * time) * np.exp(0.1 * generator.standard_normal())
                cens = int(kind in ("M1", "M3", "M4") and level < 1.5) - int(kind == "above" and level > 4)
                seen = (level, 1.5, 4.0)[cens]
                row = {**of, "TIME": begin + time, "DV": seen, "CENS": cens}
                rows.append({**row, "DVID": 1 + number % 2})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@functools.cache
def group(name: str, choice: str) -> dict[str, Any]:
    """The options of a choice, as a configuration has them."""
    found: dict[str, Any] = configuration(None, Path("outputs"), f"{name}={choice}")[name]
    return found


@functools.cache
def basis() -> dict[str, Any]:
    return configuration(
        Path("events.csv"),
        Path("outputs"),
        *("dataset=table", "dataset.name=all", "dataset.units={time: h, amount: mg, level: mg/L}"),
        *("dataset.covariates={}", "split=all", "pk=one_compartment", "network=equations", "dtype=float64"),
        "+network.equations={CL: {typical: 2}, V1: {typical: 20}}",
        *("training.protocol=paper", "redraws=0", "epochs=2", "checkpoint_every=1"),
    )


def config_of(path: Path, outputs: Path, error: str, objective: str, kind: str) -> dict[str, Any]:
    choice, *_ = objective.split()
    own = dict(KINDS[kind])
    data = {"path": str(path), "blq": own.pop("blq", "M3"), "keep": {"DVID": [1, 2]}}
    (option, value), options = OBJECTIVES[objective], dict(group("objective", choice))
    if option:
        options |= {option: value}
    if value == "nonmem":
        options |= {"mode_gradient": "implicit"}
    whole = copy.deepcopy(basis())
    return {
        **whole,
        **own,
        "outputs": str(outputs),
        "dataset": {**whole["dataset"], **data},
        "error": copy.deepcopy(group("error", error)),
        "endpoints": copy.deepcopy(TWO) if error == "endpoints" else None,
        "objective": options,
    }


def expected(error: str, kind: str) -> set[str]:
    """Objectives that cannot take it: what linearises predictions sees no limit, nor a random effect of
    sigma, and Student's t has no M4."""
    if kind == "M4" and error == "student_t":
        return set(OBJECTIVES)
    if kind in ("M3", "M4", "above"):
        return {"fo", "foce linearised"}
    return {"fo", "foce linearised", "foce nonmem"} if kind == "sigma" else set()


@pytest.mark.parametrize(
    ("error", "kind"),
    [  # by M1 rows are left out, whatever the error
        pytest.param(error, kind, marks=[pytest.mark.slow] * (kind == "M1" and error != "additive"))
        for error in ERRORS
        for kind in KINDS
    ],
)
def test_it_is_fitted_or_refused_in_a_line(
    tmp_path: Path, error: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "events.csv", kind)
    refused = dict[str, str]()
    build = Problem.build
    # All objectives have the same: what a problem is made of is no part of an objective's options.
    problem = functools.cache(lambda: build(config_of(path, tmp_path, error, next(iter(OBJECTIVES)), kind)))
    monkeypatch.setattr(Problem, "build", lambda _: problem())
    for objective in OBJECTIVES:
        try:
            job = Job.build(config_of(path, tmp_path, error, objective, kind))
            found = job.train([(1, 1)])
        except InputError as caught:
            refused[objective] = str(caught)
            continue
        assert found.failures == (None,), (objective, found.failures)
        assert torch.isfinite(found.objective).all(), objective
        assert torch.isfinite(found.checkpoints).all(), objective
        before, after = found.checkpoints[0], found.checkpoints[-1]
        assert not torch.equal(before, after), objective
    assert set(refused) == expected(error, kind)
    for words in refused.values():
        assert "\n" not in words
        assert re.search(r"(choose|expected) ", words), words  # and what to do
