"""A training job: what it leaves out because it is done, what it refuses, and what it writes."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from medcm_cli import runs
from medcm_cli.data import nested
from medcm_cli.errors import InputError
from medcm_cli.study.job import Job
from tests.helpers import as_float, configuration

# -- the plan --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_once(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs with folds 1 and 2, replicates 1 and 2 of a first-order fit."""
    outputs = tmp_path_factory.mktemp("outputs")
    job = Job.build(configuration(data, outputs, *FOUR))
    plan = job.plan()
    assert plan.done == ()
    assert plan.todo == ((1, 1), (1, 2), (2, 1), (2, 2))
    job.run([plan.records[fit] for fit in plan.todo])
    return outputs


FOUR = ("objective=fo", "fold=[1,2]", "replicate=[1,2]")


@pytest.fixture
def outputs(trained_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_once, tmp_path / "outputs"))


def folder_of(outputs: Path, fold: int, replicate: int) -> Path:
    (found,) = outputs.glob(f"**/fold={fold:02d}/replicate={replicate}")
    return found


def history(folder: Path) -> pa.Table:
    return pyarrow.parquet.ParquetFile(folder / "history.parquet").read()


def test_what_is_done_is_not_done_again(data: Path, outputs: Path) -> None:
    plan = Job.build(configuration(data, outputs, *FOUR)).plan()
    assert plan.done == ((1, 1), (1, 2), (2, 1), (2, 2))
    assert plan.todo == ()
    assert plan.previously_failed == 0
    wider = ("objective=fo", "fold=[3,2]", "replicate=[1,2,3]")
    plan = Job.build(configuration(data, outputs, *wider)).plan()
    assert plan.done == ((2, 1), (2, 2))
    assert plan.todo == ((3, 1), (3, 2), (3, 3), (2, 3))


def test_failed_is_done_and_unfinished_or_damaged_is_not(data: Path, outputs: Path) -> None:
    record = runs.read_record(folder_of(outputs, 1, 1))
    assert record is not None
    runs.write_record(outputs, replace(record, status="failed", failure={"epoch": 2, "cause": "x"}))
    running = runs.read_record(folder_of(outputs, 1, 2))
    assert running is not None
    runs.write_record(outputs, replace(running, status="running"))
    (folder_of(outputs, 2, 1) / "run.json").write_text('{"status": "comp')
    (folder_of(outputs, 2, 2) / "run.json").unlink()
    plan = Job.build(configuration(data, outputs, *FOUR)).plan()
    assert plan.done == ((1, 1),)
    assert plan.previously_failed == 1
    assert plan.todo == ((1, 2), (2, 1), (2, 2))


def test_overwrite_does_everything_again(data: Path, outputs: Path) -> None:
    plan = Job.build(configuration(data, outputs, *FOUR, "overwrite=true")).plan()
    assert plan.done == ()
    assert len(plan.todo) == 4
    other = Job.build(configuration(data, outputs, *FOUR, "overwrite=true", "seed=3"))
    assert len(other.plan().todo) == 4


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("epochs=6", "epochs"),
        ("checkpoint_every=1", "checkpoint_every"),
        ("seed=1", "seed"),
        ("dtype=float64", "dtype"),
        ("random_effects=[V1,CL]", "random_effects"),
        ("network.branches.0.hidden=[5]", "network.branches"),
        ("optimizer.fused=false", "optimizer.fused"),
        ("dataset.covariates.vwf.reference=90", "dataset.covariates.vwf.reference"),
        ("dataset.truth.sigma.additive=0.04", "dataset.truth.sigma.additive"),
        ("split.validation=null", "split.validation"),
        ("omega=diagonal", "omega"),
        ("occasions={parameters:[CL],gap:100}", "occasions"),
        ("dataset.over_time={vwf:mean}", "dataset.over_time.vwf"),
        ("redraws=0", "redraws"),
        ("dataset.batch_subjects=4", "dataset.batch_subjects"),
        ("dataset.keep={bgo:[0,1]}", "dataset.keep.bgo"),
        ("dataset.bolus_duration=0", "dataset.bolus_duration"),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused(
    data: Path, outputs: Path, change: str, name: str
) -> None:
    if change.startswith("network.branches"):
        change = "network.branches=[{inputs:[weight,vwf],hidden:[5],heads:[CL,V1]}]"
    before = (folder_of(outputs, 1, 1) / "run.json").read_bytes()
    with pytest.raises(InputError) as caught:
        Job.build(configuration(data, outputs, *FOUR, change)).plan()
    assert f"({name} is " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(folder_of(outputs, 1, 1)) in str(caught.value)
    assert (folder_of(outputs, 1, 1) / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        "batch.fits=1",
        "batch.processes=1",
        "batch.threads=2",
        "replicate=[2,1]",
        "fold=2",
        "tail=1",
        "outer=null",
    ],
)
def test_options_that_change_no_result_are_no_other_configuration(
    data: Path, outputs: Path, change: str
) -> None:
    plan = Job.build(configuration(data, outputs, *FOUR, change)).plan()
    assert plan.todo == ()


@pytest.mark.parametrize("change", ["study=other", "variant=other", "objective=mse", "learning_rate=0.2"])
def test_options_with_a_folder_of_their_own(data: Path, outputs: Path, change: str) -> None:
    assert len(Job.build(configuration(data, outputs, *FOUR, change)).plan().todo) == 4


@pytest.mark.parametrize("name", ["history", "parameters", "random_effects", "effects"])
@pytest.mark.parametrize("how", ["lost", "cut off", "a bit", "swapped"])
def test_a_fit_without_all_its_files_is_named_and_done_again(
    data: Path, outputs: Path, name: str, how: str
) -> None:
    path = folder_of(outputs, 1, 2) / f"{name}.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.unlink()
    if how == "swapped":
        path.write_bytes((folder_of(outputs, 1, 1) / f"{name}.parquet").read_bytes())
    elif how != "lost":
        path.write_bytes(content[:-100] if how == "cut off" else content)
    plan = Job.build(configuration(data, outputs, *FOUR)).plan()
    assert plan.todo == ((1, 2),)
    (line,) = plan.damaged
    assert line.startswith(f"{path}: cannot be read (")


def test_changed_data_are_refused(data: Path, outputs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "moved"))
    assert Job.build(configuration(copy, outputs, *FOUR)).plan().todo == ()  # moved is not changed
    table = pd.read_parquet(copy / "simulation.parquet")
    table.loc[5, "dv"] = as_float(table.loc[5, "dv"]) + 0.01
    table.to_parquet(copy / "simulation.parquet")
    with pytest.raises(InputError, match="data") as caught:
        Job.build(configuration(copy, outputs, *FOUR)).plan()
    assert "\n" not in str(caught.value)


def test_changed_folds_are_refused(data: Path, outputs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "moved"))
    lines = (copy / "train_set_2.csv").read_text().splitlines()
    lines[1] = "1" if lines[1] != "1" else "2"
    (copy / "train_set_2.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="fold=02"):
        Job.build(configuration(copy, outputs, *FOUR)).plan()
    assert Job.build(configuration(copy, outputs, *FOUR, "fold=1")).plan().todo == ()


LATER = (
    *("outer", "inner", "omega", "occasions", "given", "endpoints", "distributions", "priors", "fixed"),
    *("redraws", "tail", "device", "initial", "training"),
)
LATER_OF_DATASET = (
    "logged",
    "blq",
    "columns",
    "keep",
    "bolus_duration",
    "over_time",
    "preparation",
    "cohort",
    "batch_subjects",
    "dialect",
    "thresholds",
    "protocol",
)


def test_results_of_before_there_were_these_options_stay_valid(data: Path, outputs: Path) -> None:
    """A configuration without an option is one in which it has the value that it now has by default."""
    config = configuration(data, outputs, *FOUR)
    for option in LATER:
        del config[option]
    config["dataset"] = {k: v for k, v in config["dataset"].items() if k not in LATER_OF_DATASET}
    del config["dataset"]["units"]  # then said by these numbers
    config["dataset"] |= {"level_unit": "IU/dL", "level_scale": 100}
    config["pk"] = {**config["pk"], "amount_per_level": 1000}
    of_doses = {"lag", "bioavailability", "durations", "bioavailability_keeps"}
    for group, later in (("network", {"initial"}), ("pk", of_doses)):
        assert later <= set(config[group])
        config[group] = {k: v for k, v in config[group].items() if k not in later}
    config["network"]["_target_"] = "medcm_cli.networks.CovariateNetwork.build"  # as it was named then
    config["error"]["_target_"] = "medcm_cli.variability.ResidualError"
    assert Job.build(config).plan().todo == ()
    digest = runs.config_hash(
        identity_before(config),
        {
            "fingerprint": runs.fingerprint([data / "simulation.parquet"]),
            "subjects": 30,
            "train": Job.build(config).problem.folds[1].train.tolist(),
            "test": Job.build(config).problem.folds[1].test.tolist(),
        },
    )
    record = runs.read_record(folder_of(outputs, 1, 1))
    assert record is not None
    assert record.config_hash == digest


def identity_before(config: dict[str, Any]) -> dict[str, Any]:
    """What a result was identified by before there were options to leave out."""
    own = ("study", "outputs", "fold", "replicate", "variant", "overwrite", "batch", "labels")
    dataset = {k: v for k, v in config["dataset"].items() if k != "path"}
    return {k: v for k, v in config.items() if k not in own} | {"dataset": dataset}


# -- nested cross-validation -----------------------------------------------------------------------

NESTED = ("split=nested", "split.inner_folds=3", "outer=[1,2]", "inner=[1,3]", "objective=fo")


@pytest.fixture(scope="module")
def crossed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("crossed")
    job = Job.build(configuration(data, outputs, *NESTED))
    job.run(list(job.plan().records.values()))
    return outputs


def test_outer_and_inner_are_one_batch_with_folders_of_their_own(crossed: Path) -> None:
    found = [folder.parts[-4:] for folder in runs.find(crossed)]
    assert found == [
        ("variant=default", f"outer=0{outer}", f"inner=0{inner}", "replicate=1")
        for outer in (1, 2)
        for inner in (1, 3)
    ]
    for folder in runs.find(crossed):
        record = runs.read_record(folder)
        assert record is not None
        assert record.status == "complete"
        assert record.batch["fits"] == 4
        outer, inner = record.address.outer, record.address.inner
        assert outer is not None
        assert inner is not None
        assert record.address.fold == 3 * (outer - 1) + inner
        trained_on = (
            pyarrow.parquet.ParquetFile(folder / "random_effects.parquet").read()["subject"].to_pylist()
        )
        fold = nested(outer, inner, 30, 3, 0)
        assert trained_on == (fold.train + 1).tolist()
        assert not set(trained_on) & set(fold.test + 1)


def test_a_nested_study_goes_on_where_it_was(data: Path, crossed: Path) -> None:
    wider = ("inner=[1,2,3]", "replicate=[1,2]", "outer=1")
    plan = Job.build(configuration(data, crossed, *NESTED[:2], *wider, "objective=fo")).plan()
    assert plan.done == ((1, 1), (3, 1))
    assert plan.todo == ((1, 2), (2, 1), (2, 2), (3, 2))
    with pytest.raises(InputError, match=r"split\.seed is 0 there and 1 here"):
        Job.build(configuration(data, crossed, *NESTED, "split.seed=1")).plan()


def test_one_nested_fold_without_a_word_about_which(data: Path, tmp_path: Path) -> None:
    job = Job.build(configuration(data, tmp_path, "split=nested"))
    ((_, record),) = job.plan().records.items()
    assert (record.address.outer, record.address.inner, record.address.fold) == (1, 1, 1)
    assert len(job.problem.folds[1].train) == 27


def test_random_numbers_of_a_nested_fit_are_those_of_its_number(
    data: Path, crossed: Path, tmp_path: Path
) -> None:
    """Fit (outer 2, inner 1) of three inner folds starts where fold 4 of any split starts."""
    four = configuration(data, tmp_path, "split=bootstrap", "fold=4", "objective=fo")
    plain = Job.build(four).train([(4, 1)])
    start = plain.layout.unpack(plain.checkpoints[0])
    (folder,) = crossed.glob("**/outer=02/inner=01/replicate=1")
    frame = pyarrow.parquet.ParquetFile(folder / "parameters.parquet").read().to_pandas()
    first = frame[frame["epoch"] == 0].astype({"name": str})
    # After one step of Adam each value has moved by the learning rate at most.
    for name in ("global.Q", "omega", "weight.hidden_1.weight"):
        found = first[first["name"] == name]["value"].to_numpy()
        np.testing.assert_allclose(found, start[name][..., 0].flatten(), atol=0.2001)
    again = Job.build(configuration(data, tmp_path, *NESTED))
    same = again.train([(4, 1)])
    np.testing.assert_allclose(
        frame["value"], same.checkpoints[:, :, 0].flatten().numpy(), rtol=1e-4, atol=1e-6
    )


# -- running ---------------------------------------------------------------------------------------


def test_run_writes_what_train_gives(data: Path, outputs: Path) -> None:
    job = Job.build(configuration(data, outputs, *FOUR))
    fits = [(1, 1), (1, 2), (2, 1), (2, 2)]
    trained = job.train(fits)
    assert trained.epochs == (0, 2, 4)
    for number, (fold, replicate) in enumerate(fits):
        folder = folder_of(outputs, fold, replicate)
        history = pyarrow.parquet.ParquetFile(folder / "history.parquet").read().to_pandas()
        np.testing.assert_allclose(history["objective_value"], trained.objective[:, number], rtol=1e-5)
        frame = pyarrow.parquet.ParquetFile(folder / "parameters.parquet").read().to_pandas()
        frame = frame.astype({"name": str}).set_index(["epoch", "name", "index"])["value"].sort_index()
        for epoch, flat in zip(trained.epochs, trained.checkpoints, strict=True):
            for name, values in trained.layout.unpack(flat).items():
                expected = values[..., number].flatten().numpy()
                np.testing.assert_allclose(frame.loc[epoch, name], expected, rtol=1e-5, atol=1e-7)


def test_record_of_a_finished_fit(data: Path, outputs: Path) -> None:
    record = runs.read_record(folder_of(outputs, 2, 1))
    assert record is not None
    assert record.status == "complete"
    assert record.failure is None
    assert record.address.fold == 2
    assert record.config["epochs"] == 4
    assert record.config["objective"]["_target_"] == "medcm_cli.objectives.Fo"
    assert record.truth == {"omega": [[0.037, 0.0113], [0.0113, 0.017]], "sigma": {"additive": 0.03}}
    assert record.data["subjects"] == 30
    assert Path(record.data["source"]).parent == data
    assert record.versions["torch"] == torch.__version__
    assert record.batch["fits"] == 4
    assert record.seconds == pytest.approx(record.batch["seconds"] / 4)


def test_replicates_and_folds_differ_and_a_seed_repeats(data: Path, outputs: Path, tmp_path: Path) -> None:
    again = Job.build(configuration(data, tmp_path / "again", *FOUR))
    again.run([again.plan().records[fit] for fit in ((2, 1), (1, 2))])
    read = {fit: history(folder_of(outputs, *fit)) for fit in ((1, 1), (1, 2), (2, 1))}
    first = [table["objective_value"][0].as_py() for table in read.values()]
    assert len(set(first)) == 3
    for fit in ((2, 1), (1, 2)):
        repeated = history(folder_of(tmp_path / "again", *fit)).to_pandas()
        pd.testing.assert_frame_equal(repeated, read[fit].to_pandas(), rtol=1e-4)


def test_a_fit_that_fails_is_kept_with_its_cause(data: Path, tmp_path: Path) -> None:
    options = ("objective=fo", "learning_rate=1000", "replicate=[1,2]")
    job = Job.build(configuration(data, tmp_path, *options))
    finished = job.run(list(job.plan().records.values()))
    assert [record.status for record in finished] == ["failed", "failed"]
    record = runs.read_record(folder_of(tmp_path, 1, 2))
    assert record == finished[1]
    assert record is not None
    assert record.failure is not None
    assert 1 <= record.failure["epoch"] <= 4
    assert record.failure["cause"]
    plan = Job.build(configuration(data, tmp_path, *options)).plan()
    assert plan.todo == ()
    assert plan.previously_failed == 2


@pytest.mark.parametrize("names", [["V1", "CL"], ["CL"], ["CL", "V1", "Q"]])
def test_kl_compares_the_same_random_effects(data: Path, tmp_path: Path, names: list[str]) -> None:
    """The truth is that of (CL, V1). With other random effects, or in another order, KL is of those that
    both have in the order of the truth, or absent, or the choice is refused."""
    config = configuration(data, tmp_path, "objective=fo", f"random_effects=[{','.join(names)}]")
    with contextlib.suppress(InputError):
        job = Job.build(config)
        job.run(list(job.plan().records.values()))
    finished = [folder for folder in runs.find(tmp_path) if (folder / "history.parquet").exists()]
    for folder in finished:
        last = history(folder).to_pandas().iloc[-1]
        if "kl" in last:
            assert names == ["V1", "CL"]
            sd, rho = last[["omega_2", "omega_1"]].to_numpy(), last["rho_21"]
            estimated = np.array([[sd[0] ** 2, rho * sd[0] * sd[1]], [rho * sd[0] * sd[1], sd[1] ** 2]])
            zero = torch.zeros(2, dtype=torch.float64)
            true = torch.tensor(config["dataset"]["truth"]["omega"], dtype=torch.float64)
            expected = kl_divergence(
                MultivariateNormal(zero, true), MultivariateNormal(zero, torch.from_numpy(estimated))
            )
            assert last["kl"] == pytest.approx(float(expected), rel=1e-3)


def test_compiled_steps_are_those_of_plain_ones(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that is integrated; a closed form has none."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(InputError, match=r"batch\.compile=true is of models that are integrated"):
        Job.build(configuration(data, tmp_path, "batch.compile=true"))
    found = []
    for compiled in ("false", "true"):
        options = ("pk=two_compartment_ode", "epochs=2", f"batch.compile={compiled}", "dtype=float64")
        found.append(Job.build(configuration(data, tmp_path, *options)).train([(1, 1)]).objective)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=0)
