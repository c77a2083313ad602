"""One study in mg, min and ug/mL, and the same in IU, h and IU/mL with an IU for each ug: everything that is
written or printed names its unit, none is of the other study, and numbers are equal after conversion."""

import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from medcm_cli import runs
from medcm_cli.commands.dose import command as dose
from medcm_cli.commands.predict import command as predict
from medcm_cli.report import pictures
from medcm_cli.report.figures import style
from medcm_cli.report.tables import write
from medcm_cli.runs.summary import summarize
from medcm_cli.runs.walk import Fit
from medcm_cli.study.job import Job
from tests.helpers import configuration
from tests.report.pages import Page

TIMES, AMOUNTS = ("time", "duration"), ("amt", "rate")
MINUTES = (
    "dataset.units={time: min, amount: mg, level: ug/mL}",
    "dataset.bolus_duration=1",
    "dataset.truth=null",
)
HOURS = ("dataset.level_unit=IU/mL", "dataset.bolus_duration=0.016666666666666666", "dataset.truth=null")
FITTED = ("dtype=float64", "epochs=6", "checkpoint_every=3", "learning_rate=0.02", "replicate=[1,2]")
# What no unit of the study in minutes can be.
WRONG = re.compile(r"\bIU\b|\bh\b|\bhours?\b|/mL(?<!ug/mL)|/dL")


@pytest.fixture(scope="module")
def studies(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in which the two studies were fitted, each with ``patients.csv``."""
    root = tmp_path_factory.mktemp("units")
    frame = pd.read_parquet(data / "simulation.parquet")
    frame = frame[["id", "time", "dv", "mdv", "amt", "rate", "duration", "wt", "vwf"]]
    frame = frame[frame["id"].isin(frame["id"].unique()[:12])]
    minutes = frame.copy()
    minutes["time"] *= 60
    minutes["duration"] *= 60
    minutes["amt"] /= 1000
    minutes["rate"] /= 60_000
    for name, table, options in (("h", frame, HOURS), ("min", minutes, MINUTES)):
        (root / name).mkdir()
        table.to_csv(root / name / "events.csv", index=False)
        table[table["id"].isin(frame["id"].unique()[:2])].to_csv(root / name / "patients.csv", index=False)
        given = [f"dataset.path={root / name / 'events.csv'}", "dataset=table", "split=all", *options]
        for objective in ("vi", "mse"):
            chosen = (f"objective={objective}", *given, *FITTED)
            job = Job.build(configuration(None, root / name / "outputs", *chosen))
            job.run(list(job.plan().records.values()))
        write(summarize([root / name / "outputs"]), root / name / "outputs" / "summary")
    return {name: root / name for name in ("h", "min")}


def train_without_network(folder: Path) -> None:
    """A fit that ends at its optimum, which standard errors ask for."""
    given = [f"dataset.path={folder / 'events.csv'}", "dataset=table", "split=all", "study=plain", *MINUTES]
    chosen = (
        "network=none",
        "random_effects=[CL]",
        "objective=fo",
        "dtype=float64",
        "epochs=400",
        "learning_rate=0.05",
    )
    job = Job.build(configuration(None, folder / "more", *given, *chosen))
    job.run(list(job.plan().records.values()))


def of_study(folder: Path) -> list[str]:
    return ["--run", str(folder / "outputs"), "--objective", "vi", "--patient", str(folder / "patients.csv")]


@pytest.fixture(scope="module")
def tables(studies: dict[str, Path]) -> dict[str, dict[str, pd.DataFrame]]:
    """What predict and dose wrote of each study."""
    found = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(style, "write", lambda *_: None)
        for name, times, every, level in (
            ("h", "0:48:4", "24,48", "IU/mL"),
            ("min", "0:2880:240", "1440,2880", "mg/L"),
        ):
            folder = studies[name]
            predict([*of_study(folder), "--times", times, "--threshold", "0.05", "--draws", "40"])
            vial = "250" if name == "h" else "0.25"
            target = ["--target", f"trough>=0.01 {level}", "--target", f"time_above(0.05 {level})>=20 h"]
            dose([*of_study(folder), *target, "--every", every, "--vial", vial, "--draws", "40"])
            paths = [*folder.rglob("predictions/*/*.parquet"), *folder.rglob("doses/*/*.parquet")]
            found[name] = {path.stem: pd.read_parquet(path) for path in paths if path.stem != "warnings"}
    return found


def labels_of(drawn: style.Drawn) -> list[str]:
    """The words of a figure that is not written: that takes seconds."""
    axes = drawn.figure.axes
    return [drawn.alt, *(label for axis in axes for label in (axis.get_xlabel(), axis.get_ylabel()) if label)]


def fits(folder: Path) -> Iterator[Fit]:
    for run in runs.find(folder / "outputs"):
        record = runs.read_record(run)
        assert record is not None
        yield Fit(run, record)


def test_a_fit_does_not_depend_on_the_units(studies: dict[str, Path]) -> None:
    for one, other in zip(fits(studies["h"]), fits(studies["min"]), strict=True):
        assert one.record.address.where == other.record.address.where
        factors = [1 / 60 if name in ("typical_CL", "typical_Q") else 1.0 for name in one.history]
        pd.testing.assert_frame_equal(one.history * factors, other.history, rtol=1e-6, check_dtype=False)
        rows = [runs.read_table(fit.folder, fit.record, "effects").to_pandas() for fit in (one, other)]
        per_minute = np.where(rows[0]["parameter"] == "CL", 1 / 60, 1.0)
        np.testing.assert_allclose(rows[0]["value"] * per_minute, rows[1]["value"], rtol=1e-6)
        np.testing.assert_allclose(rows[0]["relative"], rows[1]["relative"], rtol=1e-6)


def test_predictions_and_doses_are_the_same_after_conversion(
    tables: dict[str, dict[str, pd.DataFrame]],
) -> None:
    one, other = tables["h"], tables["min"]
    assert set(one) == set(other) >= {"curve", "thresholds", "parameters", "candidates"}
    minutes = dict.fromkeys(("time", "duration", "every"), 60.0)
    milligrams = dict.fromkeys(("amount", "dose", "best_dose", "per_kg", "weekly"), 0.001)
    bounds = ("typical", "lower_90", "lower_50", "median", "upper_50", "upper_90")
    for name, table in one.items():
        factors = minutes | milligrams | (dict.fromkeys(bounds, 60.0) if name == "thresholds" else {})
        factors |= {column: 60.0 for column in map(str, table) if column.startswith(("auc_", "above_"))}
        for column in table.select_dtypes("number"):
            factor: object = factors.get(str(column), 1.0)
            if name == "parameters":
                factor = table["unit"].map({"L": 1.0, "L/h": 1 / 60, "h": 60.0}).to_numpy()
            expected = table[column].to_numpy() * factor
            np.testing.assert_allclose(
                expected, other[name][column], rtol=2e-3, atol=1e-4, err_msg=f"{name}: {column}"
            )
    assert set(other["parameters"]["unit"]) == {"L", "L/min", "min"}


def test_every_column_that_is_written_names_a_unit_of_the_study(
    studies: dict[str, Path], tables: dict[str, dict[str, pd.DataFrame]]
) -> None:
    del tables  # written by now
    walked = set()
    for path in studies["min"].rglob("*.parquet"):
        walked.add(path.stem)
        for field in pyarrow.parquet.read_schema(path):
            unit = runs.unit_of(field)
            assert unit, f"{path.name}: {field.name}"
            assert not WRONG.search(unit.replace("IU/dL (vwf)", "")), f"{path.name}: {field.name} in {unit}"
    assert walked >= {"history", "effects", "parameters", "fits", "table", "curve", "doses", "candidates"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("data", "predict", "check", "dose", "summarize"), {"time, min", "level, ug/mL"}),
        pytest.param(
            ("uncertainty", "plot", "report"),
            {"weight, kg", "time, min"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_table_and_figure_is_in_units_of_the_study(
    studies: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    names: Sequence[str],
    expected: set[str],
) -> None:
    folder = studies["min"]
    outputs, patients = str(folder / "outputs"), str(folder / "patients.csv")
    units = ["--time-unit", "min", "--amount-unit", "mg", "--level-unit", "ug/mL"]
    commands = {
        "data": ["data", "check", patients, *units],
        "predict": ["predict", *of_study(folder), "--draws", "40"],
        "check": ["predict", *of_study(folder), "--check", "--draws", "40"],
        "dose": [
            "dose",
            *of_study(folder),
            "--target",
            "trough>=0.01 ug/mL",
            "--vial",
            "0.25",
            "--draws",
            "40",
        ],
        "summarize": ["summarize", outputs],
        "uncertainty": ["uncertainty", str(folder / "more")],
        "plot": ["plot", outputs],
        "report": ["report", outputs, "--out", str(folder / "report.html"), "--question", "Which is best?"],
    }
    monkeypatch.setenv("COLUMNS", "200")
    labels: list[str] = []
    monkeypatch.setattr(style, "write", lambda drawn, *_: labels.extend(labels_of(drawn)))

    def noted(drawn: style.Drawn, *_: Path, **__: bool) -> str:
        labels.extend(labels_of(drawn))
        return ""

    monkeypatch.setattr(pictures, "source", noted)
    if "uncertainty" in names:
        train_without_network(folder)
    for name in names:
        words = commands[name]
        capsys.readouterr()
        import_module(f"medcm_cli.commands.{words[0]}").command(words[1:])
        said = "\n".join(capsys.readouterr())
        if name == "report":
            texts = [text for _, text in Page(folder / "report.html").texts]
            assert texts.count("IU/dL") == 2  # of vwf, in the table of covariates and in the configuration
            said += "\n".join(text for text in texts if text != "IU/dL")
        for line in said.splitlines():
            # The covariate VWF:Ag is in IU/dL, and an infusion is long after an hour whatever the unit.
            plain = re.sub(r"vwf,? (100 )?IU/dL|more than 1 h|24,36,48,72 h", "", line)
            assert not WRONG.search(plain), f"{name}: {line}"
        assert {"summarize": "ug/mL", "plot": "numbers"}.get(name, "min") in said
    assert expected <= set(labels), sorted(set(labels))
    assert not [label for label in labels if WRONG.search(label.replace("vwf, IU/dL", ""))]
