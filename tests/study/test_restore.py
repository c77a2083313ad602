"""Finished fits brought back: the same model, the same subjects, the same estimates."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute
import pyarrow.parquet
import pytest
import torch

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.patients.study import load_study
from medcm_cli.runs.bands import effects
from medcm_cli.runs.summary import summarize
from medcm_cli.runs.sweeps import Method, collect, finished
from medcm_cli.runs.walk import Fit, walk
from medcm_cli.study.job import Job, Plan
from medcm_cli.study.restore import at_last_checkpoint, restore
from tests.helpers import SMALL, as_float, configuration

CHOICES = ("epochs=8", "tail=4", "fold=[1,2]", "replicate=[1,2]")


@pytest.fixture(scope="module")
def fitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("restored") / "outputs"
    for objective in ("vi", "fo"):
        job = Job.build(configuration(data, outputs, *CHOICES, f"objective={objective}"))
        job.run(list(job.plan().records.values()))
    return outputs


def test_estimates_are_the_means_over_the_tail(fitted: Path) -> None:
    batches = restore(finished([fitted]))
    assert [len(batch.records) for batch in batches] == [4, 4]
    for batch in batches:
        for fit, folder in enumerate(batch.folders):
            table = pd.read_parquet(folder / "parameters.parquet")
            mean = table[table["epoch"] >= 4].groupby(["name", "index"], observed=True)["value"].mean()
            for name, values in batch.state.trained.items():
                np.testing.assert_allclose(
                    values[..., fit].flatten().numpy(), mean[name].to_numpy(), rtol=1e-5, err_msg=name
                )


def test_random_effects_are_those_at_the_estimates(fitted: Path) -> None:
    """Of the means over the tail, with the Omega of the same means: q's own, or the modes there."""
    for batch in restore(finished([fitted])):
        found = batch.objective.random_effects(batch.problem.model, batch.population, batch.state)
        assert found is not None
        mean, cov = (part.double().numpy() for part in found)
        for fit, folder in enumerate(batch.folders):
            table = pyarrow.parquet.ParquetFile(folder / "random_effects.parquet").read()
            assert table.schema.metadata[b"epochs"] == b"tail"
            held = table.to_pandas()
            for k in (0, 1):
                np.testing.assert_allclose(held[f"eta_{k + 1}"], mean[k, :, fit], atol=1e-4)
                np.testing.assert_allclose(held[f"cov_{k + 1}1"], cov[k, 0, :, fit], rtol=1e-3, atol=1e-6)


def test_objective_at_the_last_checkpoint_is_the_recorded_one(data: Path, tmp_path: Path) -> None:
    """The same model, subjects and values give the number that the fit wrote."""
    job = Job.build(configuration(data, tmp_path, "objective=fo", "fold=[1,3]", "tail=0"))
    job.run(list(job.plan().records.values()))
    (batch,) = restore(finished([tmp_path]))
    loss = batch.objective.loss(batch.problem.model, batch.population, batch.state, None)
    recorded = [pd.read_parquet(f / "history.parquet")["objective_value"].iloc[-1] for f in batch.folders]
    np.testing.assert_allclose(loss.numpy(), recorded, rtol=1e-5)


def test_a_fit_alone_is_as_in_its_batch(fitted: Path) -> None:
    fits = [f for f in finished([fitted]) if f[1].address.objective == "vi"]
    (together,) = restore(fits)
    (alone,) = restore(fits[2:3])
    assert alone.records == together.records[2:3]
    assert torch.equal(alone.population.dv[..., 0], together.population.dv[..., 2])
    for name, values in alone.state.trained.items():
        assert torch.equal(values[..., 0], together.state.trained[name][..., 2])


def test_fits_of_a_nested_split(tmp_path: Path) -> None:
    choices = ("dataset=prophylaxis", "network=real_data", "error=combined", "split=nested")
    config = configuration(None, tmp_path, *choices, "outer=[2]", "inner=[1,3]", "objective=fo")
    job = Job.build(config)
    job.run(list(job.plan().records.values()))
    (batch,) = restore(finished([tmp_path]))
    expected, _ = job.problem.populations([(record.address.fold, 1) for record in batch.records])
    assert [(r.address.outer, r.address.inner) for r in batch.records] == [(2, 1), (2, 3)]
    assert torch.equal(batch.population.dv, expected.dv)


def test_relative_data_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From that which the fits were made in, they are recorded as they were given."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    write_study(Path("data"), SMALL)
    job = Job.build(configuration(Path("data"), Path("outputs")))
    job.run(list(job.plan().records.values()))
    (here,) = restore(finished([Path("outputs")]))
    monkeypatch.chdir(elsewhere)
    (there,) = restore(finished([Path("../home/outputs")]))
    assert torch.equal(here.population.dv, there.population.dv)


def test_data_that_changed_or_went_are_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "data"
    write_study(copy, SMALL)
    job = Job.build(configuration(copy, tmp_path / "outputs"))
    job.run(list(job.plan().records.values()))
    events = copy / "simulation.parquet"
    table = pd.read_parquet(events)
    table.loc[3, "dv"] = as_float(table.loc[3, "dv"]) + 0.1
    table.to_parquet(events)
    with pytest.raises(InputError, match="have changed"):
        restore(finished([tmp_path / "outputs"]))
    events.unlink()
    with pytest.raises(InputError, match="not there any more"):
        restore(finished([tmp_path / "outputs"]))


def test_nothing_to_restore(tmp_path: Path, fitted: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        finished([tmp_path / "absent"])
    with pytest.raises(InputError, match="no complete fit"):
        finished([tmp_path])
    folder = next(runs.find(fitted))
    (path, record) = finished([folder])[0]
    assert path == folder
    content = (folder / "parameters.parquet").read_bytes()
    try:
        (folder / "parameters.parquet").write_bytes(content[:-50])
        with pytest.raises(InputError, match="cannot be read"):
            restore([(path, record)])
    finally:
        (folder / "parameters.parquet").write_bytes(content)


def test_options_whose_keys_are_numbers(data: Path, tmp_path: Path) -> None:
    """A run folder's JSON has text for them."""
    lag = ("+pk.lag={1: LAG}", "network.global_parameters=[Q,V2,LAG]")
    job = Job.build(configuration(data, tmp_path, "objective=fo", *lag))
    job.run(list(job.plan().records.values()))
    (batch,) = restore(finished([tmp_path]))
    assert batch.problem.model.pk == job.problem.model.pk


@pytest.fixture(scope="module")
def untrained(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fits as earlier versions left those of fewer epochs than there are between checkpoints: complete, with
    the checkpoint before training alone, and no hashes."""
    root = tmp_path_factory.mktemp("before") / "outputs"
    shutil.copytree(fitted / "default", root / "default", ignore=shutil.ignore_patterns("objective=vi"))
    for path in root.rglob("run.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in record.items() if key != "hashes"}))
        for name in ("history", "parameters", "effects"):
            table = pyarrow.parquet.ParquetFile(path.with_name(f"{name}.parquet")).read()
            first = table.filter(pyarrow.compute.equal(table["epoch"], 0))
            pyarrow.parquet.write_table(first, path.with_name(f"{name}.parquet"))
    return root


def drawn(root: Path) -> None:
    """What figures and pages begin with."""
    found = collect([root])
    assert not found.sweeps
    raise InputError(found.missing[0])


def learned(root: Path) -> None:
    effects(Method("FO", "fo", tuple(fit for fit in walk([root]) if isinstance(fit, Fit))))


@pytest.mark.parametrize(
    "read",
    [
        lambda root: restore(finished([root])),
        lambda root: [at_last_checkpoint(one) for one in restore(finished([root]))],
        load_study,
        lambda root: summarize([root]),
        drawn,
        learned,
    ],
    ids=["restored", "at its last checkpoint", "predicted from", "summarized", "drawn", "effects"],
)
def test_weights_of_before_training_are_no_estimates(untrained: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match=r"has one checkpoint, of epoch 0, and so no estimates"):
        read(untrained)


def test_a_fit_without_estimates_is_trained_again(untrained: Path, fitted: Path, data: Path) -> None:
    def plan(outputs: Path) -> Plan:
        return Job.build(configuration(data, outputs, *CHOICES, "objective=fo")).plan()

    assert len(plan(fitted).done) == 4
    again = plan(untrained)
    assert again.done == ()
    assert len(again.damaged) == 4
    assert "of epoch 0" in again.damaged[0]


def test_a_fit_of_one_epoch_has_estimates(data: Path, tmp_path: Path) -> None:
    job = Job.build(configuration(data, tmp_path, "objective=fo", "epochs=1"))
    job.run(list(job.plan().records.values()))
    (batch,) = restore(finished([tmp_path]))
    assert all(torch.isfinite(value).all() for value in batch.state.trained.values())
    assert len(job.plan().done) == 1
