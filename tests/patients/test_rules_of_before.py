"""A run that recorded neither what bioavailability keeps nor how long a bolus takes is used by its old rules:
F scales the rate of an infusion, and a dose with an amount alone takes a minute."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from medcm_cli.patients.study import Study, load_study
from medcm_cli.study.job import Job
from tests.helpers import configuration

ROWS = """id,time,amt,rate,evid,dv
1,0,1000,100,1,.
1,6,.,.,0,0.4
1,24,500,0,1,.
1,24.5,.,.,0,0.6
1,40,.,.,0,0.1
2,0,1000,100,1,.
2,8,.,.,0,0.5
2,30,.,.,0,0.1
"""
TIMES = np.array([6, 24.01, 24.5, 40])  # h; the second within a minute
ASKED = ROWS.replace("1,24.5,", "1,24.01,.,.,0,0.6\n1,24.5,")
MINUTE = 1 / 60


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Outputs of today, and the same as earlier versions would have recorded them."""
    root = tmp_path_factory.mktemp("rules")
    (root / "events.csv").write_text(ROWS)
    found = {name: root / name for name in ("now", "before")}
    job = Job.build(
        configuration(
            root / "events.csv",
            found["now"],
            *("dataset=table", "pk=one_compartment", "pk.bioavailability={1: F}", "split=all"),
            *("network=none", "network.global_parameters=[CL,V1,F]", "objective=fo", "epochs=2"),
            "training.protocol=paper",
        )
    )
    job.run(list(job.plan().records.values()))
    shutil.copytree(found["now"], found["before"])
    (path,) = found["before"].rglob("run.json")
    record = json.loads(path.read_text())
    del record["config"]["pk"]["bioavailability_keeps"]
    del record["config"]["dataset"]["bolus_duration"]
    path.write_text(json.dumps(record))
    return found


def infused(t: np.ndarray, start: float, length: float, amount: float, z: Mapping[str, float]) -> np.ndarray:
    """The level of a one-compartment model by its closed form."""
    k, since = z["CL"] / z["V1"], np.maximum(t - start, 0)
    inside = np.minimum(since, length)
    return np.asarray(amount / length / z["CL"] * (np.exp(-k * (since - inside)) - np.exp(-k * since)))


@pytest.mark.parametrize("version", ["now", "before"])
def test_a_run_is_predicted_by_the_rules_that_it_was_trained_with(
    runs: Mapping[str, Path], version: str, tmp_path: Path
) -> None:
    (tmp_path / "asked.csv").write_text(ASKED)
    study: Study = load_study(runs[version])
    events = study.read(tmp_path / "asked.csv")
    typical = study.fits.model.typical(study.fits.estimates, study.population(events))
    z = {name: float(value.flatten()[0]) for name, value in typical.items()}
    f = z["F"]
    if version == "before":
        wanted = infused(TIMES, 0, 10, 1000 * f, z) + infused(TIMES, 24, MINUTE, 500 * f, z)
    else:
        decay = np.where(TIMES >= 24, np.exp(-z["CL"] / z["V1"] * (TIMES - 24)), 0)
        wanted = infused(TIMES, 0, 10 * f, 1000 * f, z) + 500 * f / z["V1"] * decay
    got = study.levels(events, None)[: len(TIMES), 0, 0, 0]
    scale = study.scale / study.fits.config["pk"]["amount_per_level"]
    np.testing.assert_allclose(got.numpy(), wanted * scale, rtol=2e-5)
    assert abs(f - 1) > 0.01
