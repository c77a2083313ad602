"""A study written before modules moved into rooms (``tests/study/before``): the names in its records still
say what they said, so that its fits are found, restored and used."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli import runs
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.job import Job
from medcm_cli.study.restore import restore
from tests.helpers import configuration

HERE = Path(__file__).resolve().parent / "before"
CHOICES = {
    "objective=vi/error=combined": ("objective=vi", "error=combined", "fold=[1,2]"),
    "objective=mse/error=combined": ("objective=mse", "error=combined"),
    "objective=vi/error=additive": ("objective=vi", "network=truth", "fixed=truth"),
}
FOLDERS = [folder.relative_to(HERE) for folder in runs.find(HERE)]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, seen from the folder in which it was made."""
    shutil.copytree(HERE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path()


def test_there_are_studies_from_before() -> None:
    assert len(FOLDERS) == 4
    records = [runs.read_record(HERE / folder) for folder in FOLDERS]
    groups = [part for record in records if record for part in record.config.values()]
    targets = {part["_target_"] for part in groups if isinstance(part, dict) and "_target_" in part}
    assert {"medcm_cli.variability.ResidualError", "medcm_cli.networks.CovariateNetwork.build"} < targets


@pytest.mark.parametrize("place", CHOICES)
def test_a_fit_from_before_is_the_same_fit(study: Path, place: str) -> None:
    """Its hash is that of today's configuration: nothing is left to train."""
    variant = "variant=truth" if "network=truth" in CHOICES[place] else "variant=epochs-50"
    choices = (*CHOICES[place], "study=before", variant, "epochs=50", "checkpoint_every=25")
    plan = Job.build(configuration(study / "patients", Path("outputs"), *choices)).plan()
    assert plan.todo == ()
    assert {place in str(record.address.folder(study)) for record in plan.records.values()} == {True}
    other = Job.build(configuration(study / "patients", Path("outputs"), *choices, "study=other")).plan()
    assert other.done == ()
    assert {r.config_hash for r in other.records.values()} == {r.config_hash for r in plan.records.values()}


def test_fits_from_before_are_restored(study: Path) -> None:
    batches = restore(finished([study / "outputs"]))
    assert sorted(len(batch.records) for batch in batches) == [1, 1, 2]
    for batch in batches:
        for fit, folder in enumerate(batch.folders):
            table = pd.read_parquet(folder / "parameters.parquet")
            last = table[table["epoch"] == 50].groupby("name", observed=True)["value"]
            for name, values in batch.state.trained.items():
                held = last.get_group(name).to_numpy()
                found = values[..., fit].flatten().numpy()[: len(held)]
                np.testing.assert_allclose(found, held, rtol=1e-6, err_msg=name)
