"""One job: from a configuration to run folders, what it refuses, and what it leaves out because it is
done."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from medcm_cli import runs
from medcm_cli.data import nested
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.study.options import axis
from medcm_cli.study.setup import Setup
from tests.helpers import SMALL, as_float, configuration


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "data"
    write_study(folder, SMALL)
    return folder


# -- axes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        (3, [3]),
        ("3", [3]),
        ([2, 1], [2, 1]),
        ((1, 2), [1, 2]),
        ("[1,2]", [1, 2]),
        ("1,2,5", [1, 2, 5]),
        ("range(1,4)", [1, 2, 3]),
        ("range(1,8,3)", [1, 4, 7]),
        ("choice(4,2)", [4, 2]),
        (["1", "2"], [1, 2]),
    ],
)
def test_axis(value: object, numbers: list[int]) -> None:
    assert axis("fold", value) == numbers


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 1.0, 1.5, True, None, [], "", "one", "0", "-2", "1.5", "01", "[]", "[0,1]", "[[1],[2]]"),
        *(
            "range(1,",
            "range(3,1)",
            "range(0,2)",
            "interval(1,3)",
            "1,1",
            [1, 1],
            "[2,2]",
            {"a": 1},
            "{a: 1}",
        ),
    ],
)
def test_axis_that_makes_no_sense(value: object) -> None:
    with pytest.raises(InputError, match="fold") as caught:
        axis("fold", value)
    assert "\n" not in str(caught.value)


# -- what is refused -------------------------------------------------------------------------------

REFUSED = [
    ("dtype=float16", "dtype"),
    ("epochs=0", "epochs"),
    ("epochs=-5", "epochs"),
    ("epochs=1.5", "epochs"),
    ("epochs=many", "epochs"),
    ("epochs=null", "epochs"),
    ("epochs=true", "epochs"),
    ("checkpoint_every=0", "checkpoint_every"),
    ("checkpoint_every=2.5", "checkpoint_every"),
    ("learning_rate=0", "learning_rate"),
    ("learning_rate=-0.1", "learning_rate"),
    ("learning_rate=nan", "learning_rate"),
    ("learning_rate=fast", "learning_rate"),
    ("learning_rate=true", "learning_rate"),
    ("learning_rate=null", "learning_rate"),
    ("seed=-1", "seed"),
    ("seed=abc", "seed"),
    ("seed=1.5", "seed"),
    ("random_effects=[]", "random_effects"),
    ("random_effects=[CL,CL]", "random_effects"),
    ("random_effects=[KA]", "random_effects"),
    ("random_effects=CL", "random_effects"),
    ("pk=one_compartment", "pk"),
    ("network=none network.global_parameters=[CL,V1,Q]", "network"),
    ("network.global_parameters=[Q,V2,CL]", "network"),
    ("network.branches=[{inputs:[height],hidden:[2],heads:[CL,V1]}]", "height"),
    ("network.branches=[{inputs:[weight],hidden:[2],heads:[CL,V1],depth:2}]", "depth"),
    ("network.branches=[{inputs:[weight],hidden:[2],heads:[CL,V1],activation:tan}]", "activation"),
    ("network.branches=[{inputs:[weight],hidden:[],heads:[CL,V1]}]", "hidden"),
    ("objective.samples=0", "samples"),
    ("objective.samples=1.5", "samples"),
    ("objective.samples=few", "objective"),
    ("objective.estimator=best", "estimator"),
    ("objective.family=gamma", "family"),
    ("objective=foce objective.formulation=other", "formulation"),
    ("objective._target_=medcm_cli.objectives.Nothing", "objective"),
    ("optimizer._target_=torch.optim.Nothing", "optimizer"),
    ("optimizer.lr=-1", "optimizer"),
    ("optimizer.lr=text", "optimizer"),
    ("pk=two_compartment_ode pk.method=nonsense", "pk.method"),
    ("pk=two_compartment_ode pk.method=scipy_solver", "pk.method"),
    ("pk=two_compartment_ode pk.rtol=0", "pk.rtol"),
    ("pk=two_compartment_ode pk.atol=text", "pk.atol"),
    ("error.components=[]", "error"),
    ("error.components=[exponential]", "error"),
    ("fixed=nothing", "fixed"),
    ("fixed={}", "fixed"),
    ("fixed={rho:1}", "fixed"),
    ("fixed={sigma:0.1}", "fixed.sigma"),
    ("fixed={omega:[[1,2],[2,1]]}", "fixed.omega"),
    ("fixed=truth dataset.truth=null", "fixed=truth"),
    ("fixed=truth random_effects=[V1,CL]", "random_effects"),
    ("fixed=truth network=truth objective=fo", "nothing to train"),
    ("network=truth dataset.covariates.vwf.unit=fraction", "vwf in IU/dL"),
    ("fold=4", "train_set_4.csv"),
    ("fold=0", "fold"),
    ("replicate=0", "replicate"),
    ("split=all fold=2", "fold"),
    ("split=bootstrap split.size=0", "size"),
    ("split=bootstrap split.size=-3", "split"),
    ("dataset.path=absent", "absent"),
    ("dataset.predose_observations=maybe", "predose_observations"),
    ("dataset.covariates.weight.column=mass", "mass"),
    ("dataset.covariates.weight.scale=heavy", "heavy"),
    ("dataset.level_scale=dL", "level_scale"),
    ("dataset.truth.omega=3", "omega"),
    ("study=a/b", "study"),
    ("variant=.x", "variant"),
    ("dataset.name=a/b", "dataset.name"),
    ("overwrite=no", "overwrite"),
    ("overwrite=1", "overwrite"),
    ("study=null", "study"),
    ("outputs=null", "outputs"),
    ("batch=null", "batch"),
    ("learning_rate=inf", "learning_rate"),
    ("pk.amount_per_level=0", "amount_per_level"),
    ("pk.amount_per_level=abc", "amount_per_level"),
    ("random_effects=null", "random_effects"),
    ("random_effects=[1]", "random_effects"),
    ("network.branches=null", "network.branches"),
    ("network.branches=[1]", "network.branches"),
    ("network.branches=[{inputs:[weight],hidden:[true],heads:[CL,V1]}]", "hidden"),
    ("network.branches=[{inputs:[weight,weight],hidden:[2],heads:[CL,V1]}]", "inputs"),
    ("network.global_parameters=[Q,V2,V2]", "global_parameters"),
    ("error.components=[additive,additive]", "error"),
    ("objective.samples=true", "samples"),
    ("objective=foce objective.mode_iterations=0", "mode_iterations"),
    ("objective=foce objective.mode_tolerance=abc", "mode_tolerance"),
    ("split=bootstrap split.size=2.5", "split.size"),
    ("split=bootstrap split.size=abc", "split.size"),
    ("split.train=3", "split.train"),
    ("dataset.covariates=null", "dataset.covariates"),
    ("dataset.covariates.weight=abc", "dataset.covariates.weight"),
    ("dataset.covariates.weight.reference=abc", "dataset.covariates.weight.reference"),
    ("dataset.truth.sigma=3", "dataset.truth.sigma"),
    ("dataset.truth.sigma.additive=-1", "dataset.truth.sigma"),
    ("outer=1", "outer=1: this split has fold"),
    ("inner=[1,2]", "inner"),
    ("split=bootstrap outer=1", "outer=1: this split has fold"),
    ("split=nested fold=2", "fold=2: split=nested has outer and inner"),
    ("split=nested fold=[1,2]", "fold"),
    ("split=nested inner=11", "inner=11"),
    ("split=nested outer=0", "outer=0"),
    ("split=nested outer=one", "outer=one"),
    ("split=nested split.inner_folds=31", "split.inner_folds"),
    ("split=nested split.inner_folds=1", "split.inner_folds"),
    ("split=nested split.inner_folds=few", "split.inner_folds"),
    ("omega=block", "omega"),
    ("omega=null", "omega"),
    ("redraws=-1", "redraws"),
    ("redraws=null", "redraws"),
    ("tail=-1", "tail"),
    ("tail=last", "tail"),
    ("dataset.batch_subjects=0", "dataset.batch_subjects"),
    ("dataset.batch_subjects=half", "dataset.batch_subjects"),
    ("dataset.columns=DV", "dataset.columns"),
    ("dataset.columns={dv:LEVEL}", "LEVEL"),
    ("dataset.columns={depth:x}", "depth"),
    ("dataset.keep=null", "dataset.keep"),
    ("dataset.keep={id:[nobody]}", "nobody"),
    ("dataset.bolus_duration=-1", "dataset.bolus_duration"),
    ("dataset.bolus_duration=short", "dataset.bolus_duration"),
    ("dataset.over_time=mean", "dataset.over_time"),
    ("dataset.over_time={weight:last}", "dataset.over_time.weight"),
    ("dataset.cohort=surgery dataset.path=null", "surgery"),
    ("dataset.preparation=full", "dataset.preparation"),
    ("dataset.preparation={columns:{}}", "dataset.preparation.columns"),
    (f"study={'s' * 300}", "study"),
    (f"variant={'v' * 300}", "variant"),
]


@pytest.mark.parametrize(("options", "word"), REFUSED, ids=[options for options, _ in REFUSED])
def test_bad_option_is_refused_before_training(data: Path, tmp_path: Path, options: str, word: str) -> None:
    given = options.split(" ")
    config = configuration(None if "dataset.path" in options else data, tmp_path, *given)
    with pytest.raises(InputError) as caught:
        Setup.build(config).plan()
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fold_that_leaves_nobody_to_test_is_refused(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "everybody"))
    (copy / "train_set_2.csv").write_text("idxs\n" + "\n".join(map(str, range(1, 31))) + "\n")
    Setup.build(configuration(copy, tmp_path, "fold=1"))
    with pytest.raises(InputError, match="fold=2"):
        Setup.build(configuration(copy, tmp_path, "fold=[1,2]"))


def one_observation_at_the_dose(path: Path) -> Path:
    """Two subjects; the second is sampled at the very time of its dose."""
    rows = ["id,time,amt,rate,duration,dv,mdv,wt,vwf"]
    for subject, first in (("early", 4), ("late", 0)):
        rows.append(f"{subject},0,2000,120000,0.0166666667,,1,70,100")
        rows += [f"{subject},{time},0,,,{level},0,70,100" for time, level in ((first, 0.5), (24, 0.2))]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_proportional_error_needs_levels_above_zero(tmp_path: Path) -> None:
    path = one_observation_at_the_dose(tmp_path / "events.csv")
    table = ("dataset=table", "split=all", "dataset.predose_observations=keep")
    with pytest.raises(InputError, match="'late'") as caught:
        Setup.build(configuration(path, tmp_path, "error=proportional", *table))
    assert str(path) in str(caught.value)
    for error in ("additive", "combined"):
        setup = Setup.build(configuration(path, tmp_path, f"error={error}", *table))
        assert "sigma_additive" in setup.model.error.names
    kept = path.read_text().replace("late,0,0,,,0.5", "late,1,0,,,0.5")
    path.write_text(kept)
    Setup.build(configuration(path, tmp_path, "error=proportional", *table))


# -- data ------------------------------------------------------------------------------------------


def test_default_data_set_is_made_on_first_use_and_only_then(tmp_path: Path) -> None:
    setup = Setup.build(configuration(None, tmp_path))
    folder = tmp_path / "data" / "simulated"
    assert len(setup.events.ids) == 500
    assert len(list(folder.glob("train_set_*.csv"))) == 20
    assert len(setup.folds[1].train) == 60
    (folder / "truth.parquet").unlink()
    again = Setup.build(configuration(None, tmp_path))
    assert not (folder / "truth.parquet").exists()
    assert again.data == setup.data


def test_folds_are_those_of_the_files(data: Path, tmp_path: Path) -> None:
    setup = Setup.build(configuration(data, tmp_path, "fold=[1,3]"))
    assert sorted(setup.folds) == [1, 3]
    for fold, subjects in setup.folds.items():
        drawn = pd.read_csv(data / f"train_set_{fold}.csv")["idxs"] - 1
        assert subjects.train.tolist() == drawn.tolist()
        assert set(subjects.test) == set(range(30)) - set(drawn)
    train, test = setup.populations([(3, 1), (1, 1)])
    assert train.subject[:, 0].tolist() == setup.folds[3].train.tolist()
    present = test.present[:, 1].bool()
    assert test.subject[present, 1].tolist() == setup.folds[1].test.tolist()


def test_published_folds(published: Path, tmp_path: Path) -> None:
    """Validation subjects, where a file names them, are in neither set."""
    setup = Setup.build(configuration(published, tmp_path, "fold=[1,20]"))
    for fold, subjects in setup.folds.items():
        held = pd.read_csv(published / f"validation_set_{fold}.csv").iloc[:, 0] - 1
        assert len(subjects.train) == 60
        assert not set(subjects.test) & (set(subjects.train) | set(held))
        assert len(set(subjects.test) | set(subjects.train) | set(held)) == len(setup.events.ids)


# -- the plan --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_once(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs with folds 1 and 2, replicates 1 and 2 of a first-order fit."""
    outputs = tmp_path_factory.mktemp("outputs")
    setup = Setup.build(configuration(data, outputs, *FOUR))
    plan = setup.plan()
    assert plan.done == ()
    assert plan.todo == ((1, 1), (1, 2), (2, 1), (2, 2))
    setup.run([plan.records[fit] for fit in plan.todo])
    return outputs


FOUR = ("objective=fo", "fold=[1,2]", "replicate=[1,2]")


@pytest.fixture
def outputs(trained_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_once, tmp_path / "outputs"))


def folder_of(outputs: Path, fold: int, replicate: int) -> Path:
    (found,) = outputs.glob(f"**/fold={fold:02d}/replicate={replicate}")
    return found


def test_what_is_done_is_not_done_again(data: Path, outputs: Path) -> None:
    plan = Setup.build(configuration(data, outputs, *FOUR)).plan()
    assert plan.done == ((1, 1), (1, 2), (2, 1), (2, 2))
    assert plan.todo == ()
    assert plan.previously_failed == 0
    wider = ("objective=fo", "fold=[3,2]", "replicate=[1,2,3]")
    plan = Setup.build(configuration(data, outputs, *wider)).plan()
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
    plan = Setup.build(configuration(data, outputs, *FOUR)).plan()
    assert plan.done == ((1, 1),)
    assert plan.previously_failed == 1
    assert plan.todo == ((1, 2), (2, 1), (2, 2))


def test_overwrite_does_everything_again(data: Path, outputs: Path) -> None:
    plan = Setup.build(configuration(data, outputs, *FOUR, "overwrite=true")).plan()
    assert plan.done == ()
    assert len(plan.todo) == 4
    other = Setup.build(configuration(data, outputs, *FOUR, "overwrite=true", "seed=3"))
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
        Setup.build(configuration(data, outputs, *FOUR, change)).plan()
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
    plan = Setup.build(configuration(data, outputs, *FOUR, change)).plan()
    assert plan.todo == ()


@pytest.mark.parametrize("change", ["study=other", "variant=other", "objective=mse", "learning_rate=0.2"])
def test_options_with_a_folder_of_their_own(data: Path, outputs: Path, change: str) -> None:
    assert len(Setup.build(configuration(data, outputs, *FOUR, change)).plan().todo) == 4


@pytest.mark.parametrize("name", ["history", "parameters", "random_effects", "effects"])
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "cut off"])
def test_a_fit_without_all_its_files_is_done_again(data: Path, outputs: Path, name: str, lost: bool) -> None:
    path = folder_of(outputs, 1, 2) / f"{name}.parquet"
    content = path.read_bytes()
    path.unlink()
    if not lost:
        path.write_bytes(content[:-100])
    assert Setup.build(configuration(data, outputs, *FOUR)).plan().todo == ((1, 2),)


def test_changed_data_are_refused(data: Path, outputs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "moved"))
    assert Setup.build(configuration(copy, outputs, *FOUR)).plan().todo == ()  # moved is not changed
    table = pd.read_parquet(copy / "simulation.parquet")
    table.loc[5, "dv"] = as_float(table.loc[5, "dv"]) + 0.01
    table.to_parquet(copy / "simulation.parquet")
    with pytest.raises(InputError, match="data") as caught:
        Setup.build(configuration(copy, outputs, *FOUR)).plan()
    assert "\n" not in str(caught.value)


def test_changed_folds_are_refused(data: Path, outputs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "moved"))
    lines = (copy / "train_set_2.csv").read_text().splitlines()
    lines[1] = "1" if lines[1] != "1" else "2"
    (copy / "train_set_2.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="fold=02"):
        Setup.build(configuration(copy, outputs, *FOUR)).plan()
    assert Setup.build(configuration(copy, outputs, *FOUR, "fold=1")).plan().todo == ()


LATER = ("outer", "inner", "omega", "fixed", "redraws", "tail")
LATER_OF_DATASET = ("columns", "keep", "bolus_duration", "over_time", "preparation", "batch_subjects")


def test_results_of_before_there_were_these_options_stay_valid(data: Path, outputs: Path) -> None:
    """A configuration without an option is one in which it has the value that it now has by default."""
    config = configuration(data, outputs, *FOUR)
    for option in LATER:
        del config[option]
    config["dataset"] = {k: v for k, v in config["dataset"].items() if k not in LATER_OF_DATASET}
    for group, later in (("network", {"initial"}), ("pk", {"lag", "bioavailability", "durations"})):
        assert later <= set(config[group])
        config[group] = {k: v for k, v in config[group].items() if k not in later}
    assert Setup.build(config).plan().todo == ()
    digest = runs.config_hash(
        identity_before(config),
        {
            "fingerprint": runs.fingerprint([data / "simulation.parquet"]),
            "subjects": 30,
            "train": Setup.build(config).folds[1].train.tolist(),
            "test": Setup.build(config).folds[1].test.tolist(),
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
    setup = Setup.build(configuration(data, outputs, *NESTED))
    setup.run(list(setup.plan().records.values()))
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
    plan = Setup.build(configuration(data, crossed, *NESTED[:2], *wider, "objective=fo")).plan()
    assert plan.done == ((1, 1), (3, 1))
    assert plan.todo == ((1, 2), (2, 1), (2, 2), (3, 2))
    with pytest.raises(InputError, match=r"split\.seed is 0 there and 1 here"):
        Setup.build(configuration(data, crossed, *NESTED, "split.seed=1")).plan()


def test_one_nested_fold_without_a_word_about_which(data: Path, tmp_path: Path) -> None:
    setup = Setup.build(configuration(data, tmp_path, "split=nested"))
    ((_, record),) = setup.plan().records.items()
    assert (record.address.outer, record.address.inner, record.address.fold) == (1, 1, 1)
    assert len(setup.folds[1].train) == 27


def test_random_numbers_of_a_nested_fit_are_those_of_its_number(
    data: Path, crossed: Path, tmp_path: Path
) -> None:
    """Fit (outer 2, inner 1) of three inner folds starts where fold 4 of any split starts."""
    four = configuration(data, tmp_path, "split=bootstrap", "fold=4", "objective=fo")
    plain = Setup.build(four).train([(4, 1)])
    start = plain.layout.unpack(plain.checkpoints[0])
    (folder,) = crossed.glob("**/outer=02/inner=01/replicate=1")
    frame = pyarrow.parquet.ParquetFile(folder / "parameters.parquet").read().to_pandas()
    first = frame[frame["epoch"] == 0].astype({"name": str})
    # After one step of Adam each value has moved by the learning rate at most.
    for name in ("global.Q", "omega", "weight.hidden_1.weight"):
        found = first[first["name"] == name]["value"].to_numpy()
        np.testing.assert_allclose(found, start[name][..., 0].flatten(), atol=0.2001)
    again = Setup.build(configuration(data, tmp_path, *NESTED))
    same = again.train([(4, 1)])
    np.testing.assert_allclose(
        frame["value"], same.checkpoints[:, :, 0].flatten().numpy(), rtol=1e-4, atol=1e-6
    )


# -- cohorts and their preparation -----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "subjects"), [("prophylaxis", 69), ("perioperative", 66)])
def test_without_a_path_a_cohort_is_a_synthetic_one_and_says_so(
    tmp_path: Path, kind: str, subjects: int
) -> None:
    choices = (f"dataset={kind}", "network=real_data", "split=nested", "objective=fo", "error=combined")
    setup = Setup.build(configuration(None, tmp_path, *choices))
    setup.run(list(setup.plan().records.values()))
    (folder,) = runs.find(tmp_path)
    assert f"dataset=synthetic_{kind}" in folder.parts
    record = runs.read_record(folder)
    assert record is not None
    assert record.truth is not None
    assert set(record.truth["sigma"]) == {"additive", "proportional"}
    assert record.data["subjects"] == record.data["characteristics"]["subjects"] == subjects
    assert record.data["characteristics"]["covariates"]["vwf"]["missing"] > 0.1
    path = tmp_path / "default" / f"dataset=synthetic_{kind}" / "preparation.parquet"
    prepared = pyarrow.parquet.ParquetFile(path).read().to_pandas()
    assert prepared["id"].tolist() == list(setup.events.ids)
    np.testing.assert_allclose(prepared["ffm"], setup.events.covariates["ffm"])
    assert set(prepared["ffm_origin"]) == {"derived"}
    again = Setup.build(setup.config)  # as in another process
    assert again.plan().todo == ()


def cohort_file(path: Path) -> Path:
    """Four subjects: one complete; one without weight; one without VWF:Ag; one with a historic one."""
    rows = ["id,time,evid,amt,duration,dv,age,ht,wt,bgo,vwf,vwf_hist,baseline"]
    for name, covariates in (
        ("whole", "30,180,80,0,120,,0.01"),
        ("light", "30,180,,0,120,,0.02"),
        ("plain", "30,180,80,1,NA,.,0"),
        ("known", "30,180,80,1,,90,0"),
    ):
        rows.append(f"{name},0,1,2000,0.1,,{covariates}")
        rows += [f"{name},{time},0,,,{level},{covariates}" for time, level in ((4, 0.5), (24, 0.2))]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_cohort_of_ones_own_is_prepared(tmp_path: Path) -> None:
    path = cohort_file(tmp_path / "mine.csv")
    choices = ("dataset=prophylaxis", "network=real_data", "split=all")
    setup = Setup.build(configuration(path, tmp_path, *choices))
    assert setup.config["dataset"]["name"] == "prophylaxis"
    assert setup.truth is None
    ffm, vwf = setup.events.covariates["ffm"], setup.events.covariates["vwf"]
    weight, bmi = 80.0, 80 / 1.8**2
    expected = (0.88 + 0.12 / (1 + (30 / 13.4) ** -12.7)) * 9270 * weight / (6680 + 216 * bmi)
    np.testing.assert_allclose(ffm[[0, 2, 3]], expected)
    assert ffm[1] != ffm[0]
    np.testing.assert_allclose(vwf[:2], 120)
    assert vwf[3] == pytest.approx((90 + vwf[2]) / 2)
    levels = setup.events.dv[~setup.events.is_dose]
    np.testing.assert_allclose(levels, [0.49, 0.19, 0.48, 0.18, 0.5, 0.2, 0.5, 0.2])
    held = setup.data["characteristics"]["covariates"]
    assert {name: held[name]["missing"] for name in ("weight", "vwf", "vwf_historic")} == {
        "weight": 0.25,
        "vwf": 0.5,
        "vwf_historic": 0.75,
    }
    assert setup.preparation is not None
    assert setup.preparation["vwf_origin"].to_pylist() == ["measured", "measured", "imputed", "averaged"]
    assert setup.preparation["weight_origin"].to_pylist()[1] == "imputed"
    assert setup.preparation["baseline_subtracted"].to_pylist() == [0.01, 0.02, 0, 0]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("dataset.covariates.ffm.column=fat", "fat"),
        ("dataset.preparation.impute=[height,weight]", "vwf_historic"),
        ("dataset.preparation.impute=[height,vwf]", "'light' has no ffm"),
        ("dataset.preparation.baseline=ground", "ground"),
        ("dataset.over_time={age:record}", "dataset.over_time.age=record"),
        ("dataset.path=null dataset.cohort=null dataset.events=null", "dataset.path"),
    ],
)
def test_a_preparation_that_cannot_be_done_is_refused(tmp_path: Path, options: str, word: str) -> None:
    path = cohort_file(tmp_path / "mine.csv")
    choices = ("dataset=prophylaxis", "network=real_data", "split=all")
    given = None if "dataset.path" in options else path
    config = configuration(given, tmp_path, *choices, *options.split(" "))
    with pytest.raises(InputError) as caught:
        Setup.build(config)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_covariate_that_is_not_prepared_comes_from_the_file(tmp_path: Path) -> None:
    path = cohort_file(tmp_path / "mine.csv")
    path.write_text(path.read_text().replace("baseline\n", "baseline,dim\n").replace(",0.01\n", ",0.01,7\n"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line if line.count(",") == 13 else f"{line},5" for line in lines) + "\n")
    choices = ("dataset=prophylaxis", "network=real_data", "split=all", "dataset.covariates.vwf.column=dim")
    setup = Setup.build(configuration(path, tmp_path, *choices))
    assert setup.events.covariates["vwf"].tolist() == [7, 5, 5, 5]


# -- running ---------------------------------------------------------------------------------------


def test_run_writes_what_train_gives(data: Path, outputs: Path) -> None:
    setup = Setup.build(configuration(data, outputs, *FOUR))
    fits = [(1, 1), (1, 2), (2, 1), (2, 2)]
    trained = setup.train(fits)
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
    again = Setup.build(configuration(data, tmp_path / "again", *FOUR))
    again.run([again.plan().records[fit] for fit in ((2, 1), (1, 2))])
    read = {fit: runs.read_history(folder_of(outputs, *fit)) for fit in ((1, 1), (1, 2), (2, 1))}
    first = [table["objective_value"][0].as_py() for table in read.values()]
    assert len(set(first)) == 3
    for fit in ((2, 1), (1, 2)):
        repeated = runs.read_history(folder_of(tmp_path / "again", *fit)).to_pandas()
        pd.testing.assert_frame_equal(repeated, read[fit].to_pandas(), rtol=1e-4)


def test_a_fit_that_fails_is_kept_with_its_cause(data: Path, tmp_path: Path) -> None:
    options = ("objective=fo", "learning_rate=1e30", "replicate=[1,2]")
    setup = Setup.build(configuration(data, tmp_path, *options))
    finished = setup.run(list(setup.plan().records.values()))
    assert [record.status for record in finished] == ["failed", "failed"]
    record = runs.read_record(folder_of(tmp_path, 1, 2))
    assert record == finished[1]
    assert record is not None
    assert record.failure is not None
    assert 1 <= record.failure["epoch"] <= 4
    assert record.failure["cause"]
    plan = Setup.build(configuration(data, tmp_path, *options)).plan()
    assert plan.todo == ()
    assert plan.previously_failed == 2


@pytest.mark.parametrize("names", [["V1", "CL"], ["CL"], ["CL", "V1", "Q"]])
def test_kl_compares_the_same_random_effects(data: Path, tmp_path: Path, names: list[str]) -> None:
    """The truth is that of (CL, V1). With other random effects, or in another order, KL is of those that
    both have in the order of the truth, or absent, or the choice is refused."""
    config = configuration(data, tmp_path, "objective=fo", f"random_effects=[{','.join(names)}]")
    with contextlib.suppress(InputError):
        setup = Setup.build(config)
        setup.run(list(setup.plan().records.values()))
    finished = [folder for folder in runs.find(tmp_path) if (folder / "history.parquet").exists()]
    for folder in finished:
        last = runs.read_history(folder).to_pandas().iloc[-1]
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
