"""Fits with priors: what their tables say, their optimum and its standard errors, and samples with them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from medcm_cli.analysis.uncertainty import estimate
from medcm_cli.runs.sweeps import finished
from medcm_cli.runs.units import named_in
from medcm_cli.study.job import Job
from medcm_cli.study.restore import restore
from tests.helpers import configuration


def write_table(path: Path) -> Path:
    generator, rows = np.random.default_rng(5), []
    for patient in range(1, 11):
        rows.append({"ID": patient, "TIME": 0.0, "AMT": 100.0, "EVID": 1})
        scale = np.exp(0.2 * generator.standard_normal())
        for time in (0.5, 6.0, 24.0):
            dv = 2 * scale * np.exp(-0.08 * time) + 0.05 * generator.standard_normal()
            rows.append({"ID": patient, "TIME": time, "DV": dv, "EVID": 0})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


OPTIONS = (
    *("dataset=events", "dataset.name=mine", "split=all", "network=equations", "pk=one_compartment"),
    *("dataset.units={time: h, amount: mg, level: mg/L}", "error=additive", "dtype=float64"),
    *("network.equations={CL: {typical: 4}, V1: {typical: 50}}", "random_effects=[V1]", "objective=fo"),
    *("learning_rate=0.05", "epochs=150", "checkpoint_every=50"),
)
PRIOR = "priors={V1: {log_normal: [30, 0.05]}, sigma_additive: {half_normal: 1}}"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("priors")
    table = write_table(folder / "events.csv")
    for name, more in (("plain", ()), ("prior", (PRIOR,)), ("parts", (PRIOR, "dataset.batch_subjects=4"))):
        job = Job.build(configuration(table, folder / "outputs", *OPTIONS, *more, f"variant={name}"))
        (record,) = job.run(list(job.plan().records.values()))
        assert record.status == "complete"
    return folder / "outputs"


def history(outputs: Path, variant: str) -> pd.DataFrame:
    (path,) = outputs.glob(f"**/variant={variant}/**/history.parquet")
    return pd.read_parquet(path)


def test_the_penalty_is_a_column_of_its_own(outputs: Path) -> None:
    plain, prior = history(outputs, "plain"), history(outputs, "prior")
    assert "penalty" not in plain
    volume, sigma = prior["typical_V1"], prior["sigma_additive"]
    white = np.log(volume / 30) / 0.05
    log_density = -0.5 * (white**2 + np.log(2 * np.pi)) - np.log(0.05)
    log_density += np.log(2) - 0.5 * (sigma**2 + np.log(2 * np.pi))
    np.testing.assert_allclose(prior["penalty"], -2 * log_density, rtol=1e-6)
    # The value that is shown is the likelihood's, at its first values that of the fit without priors.
    assert prior["objective_value"].iloc[-1] > plain["objective_value"].iloc[-1]
    (path,) = outputs.glob("**/variant=prior/**/history.parquet")
    units = named_in(pyarrow.parquet.read_schema(path))
    assert units["penalty"] == units["objective_value"]
    assert 30 < prior["typical_V1"].iloc[-1] < plain["typical_V1"].iloc[-1] - 2


def test_minibatches_end_at_the_same_mode(outputs: Path) -> None:
    whole, parts = (history(outputs, name).iloc[-1] for name in ("prior", "parts"))
    assert parts["typical_V1"] == pytest.approx(whole["typical_V1"], rel=0.05)


def test_standard_errors_are_those_of_the_mode(outputs: Path) -> None:
    """The prior's information is added: 1 / sd^2 of log V1 at least, and the optimum is that of the sum."""
    found = {}
    for name in ("plain", "prior"):
        (batch,) = restore([fit for fit in finished([outputs]) if fit[1].address.variant == name])
        made = estimate(batch)
        assert made.faults == [""]
        place = made.quantities.names.index("V1")
        slope, matrix = made.quantities.slope[place, :, 0], made.covariance["hessian"][0]
        found[name] = float(made.quantities.value[place, 0]), float((slope @ matrix @ slope).sqrt())
    (free, wide), (held, narrow) = found["plain"], found["prior"]
    assert narrow < 0.05
    assert narrow < wide
    assert np.log(30) < held < free
