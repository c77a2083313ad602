"""Covariates that subjects of a study lack, and what a patient who is predicted later gets."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli.errors import InputError
from medcm_cli.study.dataset import read_dataset
from medcm_cli.study.identity import identity
from medcm_cli.study.options import complete_problem
from medcm_cli.study.problem import Problem
from tests.helpers import configuration

MEDIAN = "+dataset.covariates.weight.missing=median"


def table(path: Path, weights: list[float], sex: str = "MFMF") -> Path:
    ids = list("abcd"[: len(weights)])
    frame = pd.DataFrame({"id": [name for name in ids for _ in range(2)], "time": [0.0, 5.0] * len(ids)})
    frame["amt"] = [1000.0, np.nan] * len(ids)
    frame["dv"] = [np.nan, 0.3] * len(ids)
    frame["wt"] = np.repeat(weights, 2)
    frame["sex"] = np.repeat(list(sex[: len(ids)]), 2)
    frame.assign(vwf=100.0).to_csv(path, sep=";", decimal=",", index=False)
    return path


def built(path: Path, *choices: str) -> Problem:
    return Problem.build(configuration(path, path.parent, "dataset=table", "split=all", *choices))


def test_the_value_of_the_study_is_recorded_and_that_of_a_patient(tmp_path: Path) -> None:
    problem = built(
        table(tmp_path / "study.csv", [60.5, 80, 90, np.nan]), MEDIAN, "+dataset.covariates.weight.by=sex"
    )
    assert problem.events.covariates["weight"].tolist() == [60.5, 80, 90, 80]
    assert problem.preparation is not None
    assert problem.preparation["weight_origin"].to_pylist() == [*["measured"] * 3, "median of sex F"]
    held = problem.data["characteristics"]
    assert held["covariates"]["weight"]["missing"] == 0.25
    patient = table(tmp_path / "patient.csv", [np.nan, 50])
    events, _, _ = read_dataset(
        patient, problem.config["dataset"], problem.model.network.inputs, patients=True, known=held
    )
    assert events.covariates["weight"].tolist() == [75.25, 50]


def test_without_a_rule_a_missing_covariate_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "study.csv", [60.5, np.nan])
    with pytest.raises(InputError, match=r"line 4, column 'wt': is missing; .*covariates.weight={missing"):
        built(path)
    assert built(path, MEDIAN).events.covariates["weight"].tolist() == [60.5, 60.5]


def test_texts_stand_for_the_numbers_that_are_said(tmp_path: Path) -> None:
    path = table(tmp_path / "study.csv", [60.5, 80])
    male = "+dataset.covariates.male={column: sex, scale: 1, reference: 0, unit: '-', values: {M: 1, F: 0}}"
    branch = "network.branches=[{inputs: [male], hidden: [4], heads: [CL, V1]}]"
    assert built(path, male, branch).events.covariates["male"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("missing=guess", "weight.missing is 'guess'; expected one of error, mean"),
        ("by=sex", "weight.by: has no effect without"),
        ("values={M: tall}", "weight.values.M is 'tall'; expected a number"),
        ("values={m: 1, M: 0}", "weight.values: two texts differ in case"),
        ("fill=3", "expected column, scale, reference and unit"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, choice: str, words: str) -> None:
    path = table(tmp_path / "study.csv", [60.5, 80])
    with pytest.raises(InputError, match=words):
        built(path, f"+dataset.covariates.weight.{choice}")


def test_a_preparation_has_its_own_rules(tmp_path: Path) -> None:
    config = configuration(None, tmp_path, "dataset=prophylaxis", "+dataset.covariates.vwf.missing=mean")
    with pytest.raises(InputError, match=r"dataset\.preparation says what is done"):
        complete_problem(config)


def test_options_that_say_nothing_are_no_part_of_an_identity(tmp_path: Path) -> None:
    path = table(tmp_path / "study.csv", [60.5, 80])
    config = configuration(path, tmp_path, "dataset=table", "split=all")
    before = {**config, "dataset": {k: v for k, v in config["dataset"].items() if k != "dialect"}}
    assert identity(config) == identity(before)
    assert identity(configuration(path, tmp_path, "dataset=table", "split=all", MEDIAN)) != identity(config)
