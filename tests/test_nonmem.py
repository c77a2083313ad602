"""The table of NONMEM's constructions in the manual: each row's options are composed, and a fit with them
takes a step."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medcm_cli.study.job import Job
from tests.helpers import ROOT, configuration

PAGE = ROOT / "medcm_cli" / "docs" / "nonmem.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = [
    (cell, options)
    for cell, options in re.findall(r"^\| (.+?) \| `(.+)` \|$", TEXT, re.MULTILINE)
    if not options.startswith("medcm ")
]
PLAIN = "network.equations={CL: {typical: 4}, V1: {typical: 50}}"
COVARIATES = (
    "dataset.covariates={weight: {column: WT, scale: 150, reference: 70, unit: kg}, "
    "icl: {column: ICL, scale: 10, reference: 1, unit: L/h}, "
    "age: {column: AGE, scale: 80, reference: 40, unit: a}, "
    "sex: {column: SEX, scale: 1, reference: 0, unit: -, values: {M: 0, F: 1}}}"
)


def write_table(path: Path, logged: bool, until_parameter: bool) -> None:
    """Eight patients, an infusion or dose each and four levels, in the columns that the rows name."""
    generator = np.random.default_rng(1)
    rows = []
    for patient in range(1, 9):
        of: dict[str, object] = {
            "ID": patient,
            "WT": 55 + 5 * patient,
            "AGE": 12 + 6 * patient,
            "SEX": "MF"[patient % 2],
        }
        given: dict[str, object] = {"AMT": 100.0, "EVID": 1, "RATE": -2.0 * until_parameter, "DVID": 1}
        rows.append({**of, "TIME": 0.0, "OCC": 1, **given})
        for time in (0.5, 2.0, 6.0, 24.0):
            level = 2 * np.exp(-0.08 * time + 0.1 * generator.standard_normal())
            dv = np.log(level) if logged else level
            rows.append({**of, "TIME": time, "DV": dv, "EVID": 0, "DVID": 1, "OCC": 1 + (time > 4)})
    table = pd.DataFrame(rows)
    table["ICL"], table["DOSE"], table["NSIM"] = 4 + table["ID"], 24 - table["TIME"], 1
    table["CONC"], table["FLAG"] = table["DV"], 1 + table["ID"] % 2
    table.to_csv(path, index=False)


def test_the_page_has_the_constructions() -> None:
    assert len(ROWS) >= 35
    assert "network=equations" in TEXT


# As a user has it, a fit begins by the data and is polished, which takes seconds.
PROTOCOLS = ("paper", pytest.param("field", marks=pytest.mark.slow))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("nonmem", "options"), ROWS, ids=[cell for cell, _ in ROWS])
def test_a_construction_is_fitted(nonmem: str, options: str, protocol: str, tmp_path: Path) -> None:
    words = [word.removeprefix("+") for word in shlex.split(options)]
    path = tmp_path / "events.csv"
    write_table(path, "dataset.logged=true" in words, nonmem.startswith("D1"))
    base = ["dataset=table", "dataset.name=mine", "network=equations", "pk=one_compartment", "objective=fo"]
    base += ["dataset.units={time: h, amount: mg, level: mg/L}", "split=all", COVARIATES, "epochs=2"]
    base.append(f"training.protocol={protocol}")
    if not any(word.startswith("network.equations={") for word in words):
        base.append(PLAIN)
    if not any(word.startswith("random_effects=") for word in words):
        base.append("random_effects=[CL]")
    chosen = {word.partition("=")[0] for word in words}
    config = configuration(path, tmp_path, *[b for b in base if b.partition("=")[0] not in chosen], *words)
    job = Job.build(config)
    trained = job.train([(1, 1)])
    (failure,) = trained.failures
    # Levels that are made up may have an optimum that explains less than their mean does, which is said.
    assert failure is None or (protocol == "field" and "objective is absurd" in failure.cause)
    assert bool(torch.isfinite(trained.objective).all())
