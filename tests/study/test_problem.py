"""A problem: its data and folds, the stand-in for data that are not public, and what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.study.job import Job
from medcm_cli.study.options import PROBLEM
from medcm_cli.study.problem import Problem
from tests.helpers import configuration


def test_a_problem_does_not_ask_how_it_is_trained(data: Path, tmp_path: Path) -> None:
    config = configuration(data, tmp_path)
    problem = Problem.build({option: config[option] for option in PROBLEM})
    job = Job.build(config)
    assert set(problem.config) == set(PROBLEM)
    assert problem.config == job.problem.config
    assert problem.data == job.problem.data
    assert problem.model.pk == job.problem.model.pk
    with pytest.raises(InputError, match="objective is None; expected a group of options"):
        Job.build({**config, "objective": None})


def test_a_fold_that_leaves_nobody_to_test_is_refused(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "everybody"))
    (copy / "train_set_2.csv").write_text("idxs\n" + "\n".join(map(str, range(1, 31))) + "\n")
    Problem.build(configuration(copy, tmp_path, "fold=1"))
    with pytest.raises(InputError, match="fold=2"):
        Problem.build(configuration(copy, tmp_path, "fold=[1,2]"))


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
        Problem.build(configuration(path, tmp_path, "error=proportional", *table))
    assert str(path) in str(caught.value)
    for error in ("additive", "combined"):
        problem = Problem.build(configuration(path, tmp_path, f"error={error}", *table))
        assert "sigma_additive" in problem.model.error.names
    kept = path.read_text().replace("late,0,0,,,0.5", "late,1,0,,,0.5")
    path.write_text(kept)
    Problem.build(configuration(path, tmp_path, "error=proportional", *table))


# -- data ------------------------------------------------------------------------------------------


def test_default_data_set_is_made_on_first_use_and_only_then(tmp_path: Path) -> None:
    problem = Problem.build(configuration(None, tmp_path))
    folder = tmp_path / "data" / "simulated"
    assert len(problem.events.ids) == 500
    assert len(list(folder.glob("train_set_*.csv"))) == 20
    assert len(problem.folds[1].train) == 60
    (folder / "truth.parquet").unlink()
    again = Problem.build(configuration(None, tmp_path))
    assert not (folder / "truth.parquet").exists()
    assert again.data == problem.data


def test_folds_are_those_of_the_files(data: Path, tmp_path: Path) -> None:
    problem = Problem.build(configuration(data, tmp_path, "fold=[1,3]"))
    assert sorted(problem.folds) == [1, 3]
    for fold, subjects in problem.folds.items():
        drawn = pd.read_csv(data / f"train_set_{fold}.csv")["idxs"] - 1
        assert subjects.train.tolist() == drawn.tolist()
        assert set(subjects.test) == set(range(30)) - set(drawn)
    train, test = problem.populations([(3, 1), (1, 1)])
    assert train.subject[:, 0].tolist() == problem.folds[3].train.tolist()
    present = test.present[:, 1].bool()
    assert test.subject[present, 1].tolist() == problem.folds[1].test.tolist()


def test_published_folds(published: Path, tmp_path: Path) -> None:
    """Validation subjects, where a file names them, are in neither set."""
    problem = Problem.build(configuration(published, tmp_path, "fold=[1,20]"))
    for fold, subjects in problem.folds.items():
        held = pd.read_csv(published / f"validation_set_{fold}.csv").iloc[:, 0] - 1
        assert len(subjects.train) == 60
        assert not set(subjects.test) & (set(subjects.train) | set(held))
        assert len(set(subjects.test) | set(subjects.train) | set(held)) == len(problem.events.ids)


# -- cohorts and their preparation -----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "subjects"), [("prophylaxis", 69), ("perioperative", 66)])
def test_without_a_path_a_cohort_is_a_synthetic_one_and_says_so(
    tmp_path: Path, kind: str, subjects: int
) -> None:
    choices = (f"dataset={kind}", "network=real_data", "split=nested", "objective=fo", "error=combined")
    job = Job.build(configuration(None, tmp_path, *choices))
    job.run(list(job.plan().records.values()))
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
    assert prepared["id"].tolist() == list(job.problem.events.ids)
    np.testing.assert_allclose(prepared["ffm"], job.problem.events.covariates["ffm"])
    assert set(prepared["ffm_origin"]) == {"derived"}
    again = Job.build(job.config)  # as in another process
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
    problem = Problem.build(configuration(path, tmp_path, *choices))
    assert problem.config["dataset"]["name"] == "prophylaxis"
    assert problem.truth is None
    ffm, vwf = problem.events.covariates["ffm"], problem.events.covariates["vwf"]
    weight, bmi = 80.0, 80 / 1.8**2
    expected = (0.88 + 0.12 / (1 + (30 / 13.4) ** -12.7)) * 9270 * weight / (6680 + 216 * bmi)
    np.testing.assert_allclose(ffm[[0, 2, 3]], expected)
    assert ffm[1] != ffm[0]
    np.testing.assert_allclose(vwf[:2], 120)
    assert vwf[3] == pytest.approx((90 + vwf[2]) / 2)
    levels = problem.events.dv[~problem.events.is_dose]
    np.testing.assert_allclose(levels, [0.49, 0.19, 0.48, 0.18, 0.5, 0.2, 0.5, 0.2])
    held = problem.data["characteristics"]["covariates"]
    assert {name: held[name]["missing"] for name in ("weight", "vwf", "vwf_historic")} == {
        "weight": 0.25,
        "vwf": 0.5,
        "vwf_historic": 0.75,
    }
    assert problem.preparation is not None
    assert problem.preparation["vwf_origin"].to_pylist() == [
        "measured",
        "measured",
        "imputed",
        "averaged",
    ]
    assert problem.preparation["weight_origin"].to_pylist()[1] == "imputed"
    assert problem.preparation["baseline_subtracted"].to_pylist() == [0.01, 0.02, 0, 0]


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
        Problem.build(config)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_covariate_that_is_not_prepared_comes_from_the_file(tmp_path: Path) -> None:
    path = cohort_file(tmp_path / "mine.csv")
    path.write_text(path.read_text().replace("baseline\n", "baseline,dim\n").replace(",0.01\n", ",0.01,7\n"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line if line.count(",") == 13 else f"{line},5" for line in lines) + "\n")
    choices = ("dataset=prophylaxis", "network=real_data", "split=all", "dataset.covariates.vwf.column=dim")
    problem = Problem.build(configuration(path, tmp_path, *choices))
    assert problem.events.covariates["vwf"].tolist() == [7, 5, 5, 5]


def table_of_two(path: Path, **columns: object) -> Path:
    """Subjects a and b with a dose and two levels each; what is given replaces columns or comes beside."""
    rows = {"id": ["a"] * 3 + ["b"] * 3, "time": [0.0, 4, 24] * 2, "evid": [1, 0, 0] * 2}
    rows |= {"amt": [1000.0, 0, 0] * 2, "dv": [np.nan, 0.5, 0.2] * 2, "wt": 70.0, "vwf": 100.0}
    frame = pd.DataFrame(rows | columns)
    frame.to_csv(path, index=False)
    return path


def built(path: Path, *choices: str) -> Problem:
    return Problem.build(configuration(path, path.parent, "dataset=table", "split=all", *choices))


def test_a_subject_without_an_observation_is_left_out_and_told(tmp_path: Path) -> None:
    """As NONMEM does; but not where subjects are known by their number in the file."""
    path = table_of_two(tmp_path / "events.csv", evid=[1, 2, 2, 1, 0, 0])
    problem = built(path)
    assert problem.events.ids == ("b",)
    assert f"{path}: without an observation, and left out: subject 'a'" in problem.events.notes
    assert problem.everyone.time.flatten().tolist() == [4, 24]
    with pytest.raises(InputError, match="'a' has no observation, and split=files counts the file's"):
        Problem.build(configuration(path, tmp_path, "dataset=table", "split=files"))
    with pytest.raises(InputError, match="subject 'a' has no observation"):
        built(table_of_two(tmp_path / "none.csv", evid=[1, 2, 2, 1, 2, 2]))


@pytest.mark.parametrize(
    ("factor", "choices", "words"),
    [
        (1.0, (), None),
        (
            0.01,
            (),
            "V1 begins near 1 L, from where a fit may end somewhere else; '+network.initial={V1: 200}'",
        ),
        (0.05, ("+network.initial={V1: 40}",), None),
        (0.002, (), "the additive error begins near 0.1 IU/mL, which may take very long; +error.size=0.0007"),
        (0.002, ("+error.size=0.0007", "+network.initial={V1: 1000}"), None),
        (0.002, ("error=proportional", "+network.initial={V1: 1000}"), None),
    ],
)
def test_a_fit_that_begins_far_from_its_data_says_so(
    tmp_path: Path, factor: float, choices: tuple[str, ...], words: str | None
) -> None:
    levels = np.array([np.nan, 0.5, 0.2] * 2) * factor
    problem = built(
        table_of_two(tmp_path / "events.csv", dv=levels), "network.global_parameters=[Q,V2]", *choices
    )
    told = [line for line in problem.events.notes if "begins near" in line]
    assert bool(told) == (words is not None)
    assert words is None or any(words in line for line in told)
    assert not any("\n" in line for line in told)


def test_covariates_that_no_network_reads_need_not_be_there(tmp_path: Path) -> None:
    """Absent, missing, changing or no numbers; one that is read still has to be there."""
    whole = built(table_of_two(tmp_path / "whole.csv"), "network=none")
    assert set(whole.events.covariates) == {"weight", "vwf"}
    cases: tuple[dict[str, object], ...] = (
        {"wt": np.nan, "vwf": [90.0, 100, 110] * 2},
        {"wt": "heavy", "vwf": -5.0},
    )
    for number, columns in enumerate(cases):
        problem = built(table_of_two(tmp_path / f"{number}.csv", **columns), "network=none")
        np.testing.assert_array_equal(problem.events.dv, whole.events.dv)
    path = tmp_path / "without.csv"
    pd.read_csv(tmp_path / "whole.csv").drop(columns=["wt", "vwf"]).to_csv(path, index=False)
    assert built(path, "network=none").events.covariates == {}
    with pytest.raises(InputError, match="columns 'wt' and 'vwf' are missing"):
        built(path)


def test_a_data_set_can_have_no_covariates_at_all(tmp_path: Path) -> None:
    """`~dataset.covariates` takes the option away; what a data set cannot be without is named."""
    path = table_of_two(tmp_path / "events.csv")
    for option in ("covariates", "truth", "level_unit"):
        config = configuration(path, tmp_path, "dataset=table", "split=all", "network=none")
        del config["dataset"][option]
        assert Problem.build(config).events.covariates.keys() <= {"weight", "vwf"}
    del config["dataset"]["name"]
    with pytest.raises(InputError, match=r"dataset\.name: is missing"):
        Problem.build(config)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"wt": -70.0}, "line 2, column 'wt': is -70; expected 0 to 1.5e\\+08"),
        ({"wt": 1e30}, "line 2, column 'wt': is .*; expected 0 to"),
        ({"wt": "inf"}, "column 'wt': .* is not finite"),
        ({"dv": [np.nan, "true", 0.2] * 2}, "line 3, column 'dv': 'true' is not a number"),
        ({"dv": "true"}, "line 2, column 'dv': .* is not a number"),
    ],
)
def test_values_that_nothing_can_have_are_refused(
    columns: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        built(table_of_two(tmp_path / "events.csv", **columns))


def test_a_covariate_relative_to_zero_can_be_negative(tmp_path: Path) -> None:
    path = table_of_two(tmp_path / "events.csv", wt=-1.5)
    assert (
        built(path, "dataset.covariates.weight.reference=0").events.covariates["weight"].tolist()
        == [-1.5] * 2
    )


@pytest.mark.parametrize(("option", "value"), [("reference", "nan"), ("scale", "-1"), ("scale", "inf")])
def test_the_description_of_a_covariate_is_checked(option: str, value: str, tmp_path: Path) -> None:
    path = table_of_two(tmp_path / "events.csv")
    with pytest.raises(InputError, match=f"dataset.covariates.weight.{option} is {value}"):
        built(path, f"dataset.covariates.weight.{option}={value}")
