"""``medcm new``: a configuration that ``medcm fit`` runs as it stands, for a table of any drug."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from medcm_cli.data import Format
from medcm_cli.runs import Units
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
    assert found["dataset"]["keep"] == {"DVID": [1]}
    assert found["dataset"]["blq"] == "M3"
    assert any(
        "DVID tells endpoints apart, 1 (72 rows), 2 (12 rows); DVID 1 is kept" in n for n in made.notes
    )
    assert "assumed" not in made.text
    assert "predose_observations" not in found["dataset"]
    early = table(tmp_path / "e.csv", oral=True, TIME=lambda frame: frame["TIME"] + 0.25)
    frame = pd.read_csv(early)
    first = frame[frame["AMT"] > 0].assign(TIME=0.0, AMT=np.nan, DV=0.01)
    pd.concat([first, frame]).sort_values(["ID", "TIME"], kind="stable").to_csv(early, index=False)
    assert written(early)["dataset"]["predose_observations"] == "keep"
