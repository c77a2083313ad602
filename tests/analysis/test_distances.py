"""Distances of fits from draws of NUTS, with draws made so that the distances are known."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wasserstein_distance

from medcm_cli.analysis.distances import distances
from medcm_cli.commands.distance import section
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.job import Job
from medcm_cli.study.restore import restore
from tests.helpers import SHIFT, SMALL, configuration, write_draws


def test_a_shifted_gaussian_is_as_far_as_the_shift(mixed_fits: Path, tmp_path: Path) -> None:
    write_draws(tmp_path / "draws", mixed_fits)
    found = distances(tmp_path / "draws", [mixed_fits]).set_index(["objective", "replicate"])
    assert sorted(found.index) == [("foce", 1), ("foce", 2), ("vi", 1), ("vi", 2)]  # mse has no eta
    assert found.loc[("vi", 1), "eta"] == pytest.approx((SHIFT**2).sum(), rel=1e-4)
    assert found.loc[("vi", 2), "eta"] != pytest.approx((SHIFT**2).sum(), rel=1e-4)
    assert found["eta_sliced"].isna().tolist() == [name != "vi" for name, _ in found.index]
    table = section(found.reset_index())
    assert [row[:1] for row in table.cells] == [["foce"], ["vi"]]
    assert {"sigma additive, 1-W, IU/mL", "omega CL, 1-W"} <= set(table.headers)


def of_last_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """The columns of a table of random effects by VI, from what the fit trained, as versions before wrote
    it."""
    values = pd.read_parquet(folder / "parameters.parquet")
    values = values[values["epoch"] == values["epoch"].max()].set_index("name")["value"]
    mean = values["q.mean"].to_numpy(np.float64).reshape(2, -1)
    sd = np.log1p(np.exp(values["q.sd"].to_numpy(np.float64))).reshape(2, -1)
    cov = np.tanh(values["q.correlation"].to_numpy(np.float64)) * sd[0] * sd[1]
    return {"eta_1": mean[0], "eta_2": mean[1], "cov_11": sd[0] ** 2, "cov_21": cov, "cov_22": sd[1] ** 2}


def test_the_last_epoch_is_that_of_tables_of_before_and_else_the_last_checkpoint(
    mixed_fits: Path, tmp_path: Path
) -> None:
    """Both are the same number where the last epoch has a checkpoint; what an old table holds counts."""
    write_draws(tmp_path / "draws", mixed_fits)
    vi = [fit for fit in finished([mixed_fits]) if fit[1].address.objective == "vi"]
    ((run, record),) = (fit for fit in vi if fit[1].address.replicate == 2)
    old, same = (record.address.folder(tmp_path / name) for name in ("old", "same"))
    content = json.loads((run / "run.json").read_text())
    content["config"]["tail"] = 4  # all of its checkpoints
    for folder, left_out in ((old, "hashes"), (same, "")):
        shutil.copytree(run, folder)
        kept = {key: value for key, value in content.items() if key != left_out}
        (folder / "run.json").write_text(json.dumps(kept))
    new = distances(tmp_path / "draws", [same]).iloc[0]
    subject = pd.read_parquet(old / "random_effects.parquet")["subject"]
    columns = of_last_checkpoint(run)
    pd.DataFrame({"subject": subject, **columns}).to_parquet(old / "random_effects.parquet")
    before = distances(tmp_path / "draws", [old]).iloc[0]
    assert before["eta_last"] == pytest.approx(new["eta_last"], rel=1e-4)
    assert before["eta"] == pytest.approx(new["eta"], rel=1e-6)
    assert new["eta_last"] != pytest.approx(new["eta"], rel=1e-4)
    columns["eta_1"] = columns["eta_1"] + 1.0
    pd.DataFrame({"subject": subject, **columns}).to_parquet(old / "random_effects.parquet")
    assert distances(tmp_path / "draws", [old]).iloc[0]["eta_last"] > new["eta_last"] + 0.1


def test_population_parameters_by_draws_of_q(mixed_fits: Path, tmp_path: Path) -> None:
    nuts = write_draws(tmp_path / "draws", mixed_fits)
    found = distances(tmp_path / "draws", [mixed_fits])
    row = found[(found["objective"] == "vi") & (found["replicate"] == 2)].iloc[0]
    (batch,) = restore([f for f in finished([mixed_fits]) if f[1].address.objective == "vi"])
    mean = batch.state.trained["population.mean"][:, 1].double().numpy()
    sd = torch.nn.functional.softplus(batch.state.trained["population.sd"][:, 1].double()).numpy()
    generator = np.random.default_rng(3)
    for place, name in enumerate(("sigma_additive", "omega_1")):
        own = np.exp(mean[place] + sd[place] * generator.standard_normal(200_000))
        assert row[name] == pytest.approx(wasserstein_distance(own, nuts[name]), rel=0.03)
    assert "rho_21" not in found  # the draws have none


def test_other_subjects_are_refused(data: Path, mixed_fits: Path, tmp_path: Path) -> None:
    write_draws(tmp_path / "draws", mixed_fits)
    job = Job.build(configuration(data, tmp_path / "other", "objective=fo", "network=none", "fold=2"))
    job.run(list(job.plan().records.values()))
    with pytest.raises(InputError, match="other subjects"):
        distances(tmp_path / "draws", [tmp_path / "other"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no complete fit"):
        distances(tmp_path / "draws", [tmp_path / "empty"])
    with pytest.raises(InputError, match="holds no draws"):
        distances(tmp_path / "empty", [mixed_fits])
    mse = [folder for folder, record in finished([mixed_fits]) if record.address.objective == "mse"]
    with pytest.raises(InputError, match="no complete fit with random effects"):
        distances(tmp_path / "draws", mse)


def test_fits_of_other_data_are_refused(mixed_fits: Path, tmp_path: Path) -> None:
    write_draws(tmp_path / "draws", mixed_fits)
    other = tmp_path / "data"
    write_study(other, replace(SMALL, seed=SMALL.seed + 1))
    job = Job.build(configuration(other, tmp_path / "outputs", "objective=fo", "network=none"))
    job.run(list(job.plan().records.values()))
    with pytest.raises(InputError, match="other subjects"):
        distances(tmp_path / "draws", [tmp_path / "outputs"])
