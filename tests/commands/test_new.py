"""``medcm new``: a configuration that ``medcm fit`` runs as it stands, for a table of any drug."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

from medcm_cli.data import Format
from medcm_cli.runs import Units
from medcm_cli.study.job import Job
from medcm_cli.study.options import as_config, conf_dir
from medcm_cli.study.starting import starting
from tests.commands.program import Quick

MG = Units("mg/L", 1.0, "mg/L", "mg", "h")


def table(path: Path, oral: bool, patients: int = 12, **columns: Any) -> Path:
    generator, rows = np.random.default_rng(1), []
    for patient in range(1, patients + 1):
        of = {"ID": patient, "WT": 50.0 + 3 * patient, "SEX": "MF"[patient % 2], "SITE": 1}
        cl, v, ka = np.array([4, 50, 1.2]) * np.exp(0.2 * generator.standard_normal(3))
        rows.append({**of, "TIME": 0.0, "AMT": 320.0})
        for time in (0.5, 1, 2, 4, 8, 12, 24):
            by_mouth = ka / (ka - cl / v) * (np.exp(-cl / v * time) - np.exp(-ka * time))
            level = 320 / v * (by_mouth if oral else np.exp(-cl / v * time))
            rows.append({**of, "TIME": time, "DV": level * np.exp(0.1 * generator.standard_normal())})
    frame = pd.DataFrame(rows)
    for name, value in columns.items():
        frame[name] = value(frame) if callable(value) else value
    frame.to_csv(path, index=False)
    return path


def written(path: Path, how: Format | None = None, units: Units = MG) -> dict[str, Any]:
    found = yaml.safe_load(starting(path, how or Format(predose_observations="keep"), units, {}, "mine").text)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(("oral", "model"), [(True, "one_compartment_oral"), (False, "one_compartment")])
def test_a_fit_runs_as_it_stands(tmp_path: Path, quick: Quick, oral: bool, model: str) -> None:
    table(tmp_path / "my drug.csv", oral)
    made = quick(tmp_path, "new", "my drug.csv")
    assert made.returncode == 0, made.stderr
    assert made.stdout == "my_drug.yaml: written; medcm fit -cd . -cn my_drug\n"
    text = (tmp_path / "my_drug.yaml").read_text()
    assert f"override /pk: {model}\n" in text
    assert len([line for line in text.splitlines() if not line.strip().startswith("#")]) <= 22
    done = quick(tmp_path, "fit", "-cd", ".", "-cn", "my_drug", "epochs=3", "checkpoint_every=1")
    assert done.returncode == 0, done.stderr
    assert "vwf" not in next(tmp_path.glob("outputs/my_drug/**/run.json")).read_text()
    again = quick(tmp_path, "new", "my drug.csv")
    assert again.returncode == 2
    assert again.stderr == "medcm: my_drug.yaml: exists already; give another name with -o, or remove it\n"
    assert (tmp_path / "my_drug.yaml").read_text() == text


def test_values_are_those_of_the_table(tmp_path: Path) -> None:
    found = written(table(tmp_path / "t.csv", oral=True))
    equations = found["network"]["equations"]
    assert found["random_effects"] == ["CL", "V1", "KA"]
    assert 2 < equations["CL"]["typical"] < 8
    assert 25 < equations["V1"]["typical"] < 100
    assert found["dataset"]["covariates"] == {
        "wt": {"column": "WT", "scale": 90, "reference": 70, "unit": "kg"},
        "sex": {"column": "SEX", "scale": 1, "reference": 0, "unit": "-", "values": {"F": 0, "M": 1}},
    }


def test_a_day_is_a_unit_too(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", oral=True, TIME=lambda frame: frame["TIME"] / 24)
    equations = written(path, Format(time_unit="d"), MG._replace(time="d"))["network"]["equations"]
    assert equations["KA"]["typical"] == 24
    assert 48 < equations["CL"]["typical"] < 190


def test_infusions_and_compartments_say_the_route(tmp_path: Path) -> None:
    rated = table(tmp_path / "a.csv", oral=True, RATE=lambda frame: frame["AMT"] / 2)
    assert "override /pk" in starting(rated, Format(), MG, {}, "a").text
    assert written(rated)["defaults"][1] == {"override /pk": "one_compartment"}
    by_cmt = table(tmp_path / "b.csv", oral=False, CMT=lambda frame: np.where(frame["AMT"] > 0, 1, 2))
    assert written(by_cmt)["defaults"][1] == {"override /pk": "one_compartment_oral"}


def test_endpoints_limits_and_early_levels_are_told(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.csv",
        oral=True,
        DVID=lambda frame: np.where(frame["TIME"] == 4, 2, 1),
        CENS=lambda frame: (frame["DV"] < 1).astype(int),
    )
    made = starting(path, Format(predose_observations="keep"), MG, {"time", "amount", "level"}, "mine")
    found = yaml.safe_load(made.text)
    assert "keep" not in found["dataset"]
    assert [(one["dvid"], one["output"]) for one in found["endpoints"].values()] == [
        (1, "central"),
        (2, "response"),
    ]
    assert found["dataset"]["blq"] == "M3"
    assert any("DVID 2 begins near" in note for note in made.notes)
    assert "assumed" not in made.text
    assert "predose_observations" not in found["dataset"]
    early = table(tmp_path / "e.csv", oral=True, TIME=lambda frame: frame["TIME"] + 0.25)
    frame = pd.read_csv(early)
    first = frame[frame["AMT"] > 0].assign(TIME=0.0, AMT=np.nan, DV=0.01)
    pd.concat([first, frame]).sort_values(["ID", "TIME"], kind="stable").to_csv(early, index=False)
    assert written(early)["dataset"]["predose_observations"] == "keep"


def job_of(folder: Path, name: str, *options: str) -> Job:
    """Of a file that was written, with few epochs."""
    given = [f"hydra.searchpath=[file://{conf_dir()}]", f"outputs={folder}", "epochs=4", "checkpoint_every=2"]
    with initialize_config_dir(str(folder), version_base="1.3"):
        composed = compose(name, [*given, *options])
    labels = {"objective": "focei", "error": "combined_variances", "variant": ""}
    return Job.build(as_config(composed) | {"labels": labels})


def with_second(path: Path, second: Callable[[np.ndarray], np.ndarray], at_first: bool) -> Path:
    """A table of levels by mouth with a second kind of observation, DVID 2, a function of time."""
    frame = pd.read_csv(table(path, oral=True))
    own = frame[frame["AMT"].isna() | at_first].assign(AMT=np.nan)
    own = own.assign(DV=second(own["TIME"].to_numpy()), DVID=2)
    both = pd.concat([frame.assign(DVID=1), own]).sort_values(["ID", "TIME"], kind="stable")
    both.to_csv(path, index=False)
    return path


def falling(time: np.ndarray) -> np.ndarray:
    return 100 - 60 * time / 12 * np.exp(1 - time / 12)


def rising(time: np.ndarray) -> np.ndarray:
    return 40 + 30 * time / 12 * np.exp(1 - time / 12)


def metabolite(time: np.ndarray) -> np.ndarray:
    return 1.5 * time / 6 * np.exp(1 - time / 6)


SECONDS = {
    "response_inhibited_formation": (falling, True, ["CL", "V1", "KA", "BASE", "KOUT", "IC50"]),
    "response_stimulated_formation": (rising, True, ["CL", "V1", "KA", "BASE", "KOUT", "EMAX", "EC50"]),
    "metabolite": (metabolite, False, ["CL", "V1", "KA", "CLF", "CLM", "V1M"]),
}


SLOW = ("response_stimulated_formation", "metabolite")


@pytest.mark.parametrize(
    "choice", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SECONDS]
)
def test_a_second_endpoint_has_a_model_that_fits_as_it_stands(tmp_path: Path, choice: str) -> None:
    second, at_first, parameters = SECONDS[choice]
    path = with_second(tmp_path / "t.csv", second, at_first)
    found = starting(path, Format(predose_observations="keep"), MG, {}, "mine")
    (tmp_path / "mine.yaml").write_text(found.text)
    assert f"override /pk: {choice}\n" in found.text
    options = yaml.safe_load(found.text)
    assert options["pk"]["parameters"] == parameters == list(options["network"]["equations"])
    assert set(options["random_effects"]) < set(parameters)
    assert [one["dvid"] for one in options["endpoints"].values()] == [1, 2]
    job = job_of(tmp_path, "mine", "training.polish=false")
    outcome = job.train([(1, 1)])
    assert torch.isfinite(outcome.objective).all()
    assert outcome.failures[0] is None


def test_a_third_kind_is_left_out(tmp_path: Path) -> None:
    path = with_second(tmp_path / "t.csv", falling, True)
    frame = pd.read_csv(path)
    third = frame[(frame["DVID"] == 2) & (frame["TIME"] > 0)].assign(DVID=3)
    pd.concat([frame, third]).sort_values(["ID", "TIME"], kind="stable").to_csv(path, index=False)
    found = written(path)
    assert found["dataset"]["keep"] == {"DVID": [1, 2]}
    assert list(found["endpoints"]) == ["dvid_1", "dvid_2"]


def test_occasions_are_those_of_the_table(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", oral=False, OCC=lambda frame: 1 + (frame["TIME"] > 6))
    found = starting(path, Format(predose_observations="keep"), MG, {}, "mine")
    (tmp_path / "mine.yaml").write_text(found.text)
    assert yaml.safe_load(found.text)["occasions"] == {"parameters": ["CL"], "column": "OCC"}
    job = job_of(tmp_path, "mine", "training.polish=false")
    outcome = job.train([(1, 1)])
    assert outcome.failures[0] is None
    assert job.problem.everyone.occasions == 2
    assert "occasions" not in written(table(tmp_path / "u.csv", oral=False, OCC=1))
