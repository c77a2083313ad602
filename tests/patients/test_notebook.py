"""What the manual shows for notebooks runs as it is printed, quietly; frames of patients are read as files
are, and what is wrong with them is said in one line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from medcm_cli import load_study, predict
from medcm_cli.errors import InputError
from medcm_cli.patients.study import Study
from medcm_cli.study.job import Job
from tests.helpers import ROOT, configuration

DOCS = ROOT / "medcm_cli" / "docs"


def section(page: str, heading: str) -> str:
    """The text below a heading of the manual, to the next one."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where somebody has followed the manual."""
    folder = tmp_path_factory.mktemp("notebook")
    for objective in ("vi", "mse"):
        options = (f"objective={objective}", "fold=[1,2]", "epochs=3", "checkpoint_every=1")
        job = Job.build(configuration(data, folder / "outputs", *options))
        job.run(list(job.plan().records.values()))
    (folder / "patient.csv").write_text(blocks(section("patients", "What you need"), "csv")[0])
    (folder / "plan.yaml").write_text(blocks(section("patients", "A regimen"), "yaml")[0])
    return folder


@pytest.fixture(scope="module")
def study(place: Path) -> Study:
    return load_study(place / "outputs" / "default", "vi")


@pytest.mark.parametrize(
    ("page", "heading"), [("patients", "In Python"), ("results", "In a notebook")], ids=["predict", "frames"]
)
def test_what_the_manual_shows(
    page: str,
    heading: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mpl.use("agg")
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    printed = blocks(section(page, heading), "python")
    assert printed
    for block in printed:
        exec(block, names)
    if page == "results":
        history = names["study"].history
        assert history.index.names == ["objective", "fold", "replicate", "epoch"]
        assert set(history.index.get_level_values("objective")) == {"vi", "mse"}
        assert history.attrs["units"]["rmse"] == "IU/dL"
        assert len(names["last"]) == 2 * 2 * 40
        assert names["last"].attrs["units"]["value"].startswith("L/h (CL)")
        assert "2 configurations" in repr(names["study"])
    else:
        assert names["found"].curve.attrs["units"]["median"] == "IU/dL"
        assert names["answer"].doses.attrs["units"]["dose"] == "IU"
    assert tuple(capsys.readouterr()) == ("", "")


def test_files_are_read_once_and_when_they_are_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_study(place / "outputs" / "default")
    calls: list[object] = []

    def read(fits: object) -> pd.DataFrame:
        calls.append(fits)
        return pd.DataFrame()

    monkeypatch.setattr("medcm_cli.runs.frames.history", read)
    assert not calls
    assert found.history is found.history
    assert len(calls) == 1


PATIENT = {
    "id": 1,
    "time": [0, 4, 24],
    "amt": [2000, None, None],
    "dv": [None, 0.9, 0.25],
    "wt": 75,
    "vwf": 110,
}


def curve(study: Study, frame: pd.DataFrame | Path) -> pd.DataFrame:
    return predict(study, frame, times=[0, 24], draws=20).curve


def test_a_frame_is_read_as_its_file_is(study: Study, tmp_path: Path) -> None:
    frame = pd.DataFrame(PATIENT)
    frame.to_csv(tmp_path / "p.csv", index=False)
    expected = curve(study, tmp_path / "p.csv")
    forms = [
        frame,
        frame[frame.columns[::-1]],
        frame.set_index("id"),
        frame.set_index(["id", "time"]),
        frame.set_axis(["a", "b", "c"]),
        frame.convert_dtypes(),
        frame.astype({"dv": object, "amt": object}),
    ]
    for form in forms:
        before = form.copy()
        pd.testing.assert_frame_equal(curve(study, form), expected)
        pd.testing.assert_frame_equal(form, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.assign(dv=[None, 0.9, "high"]), "table, row 3, column 'dv': 'high' is not a number"),
        (
            lambda f: f.assign(dv=[None, 0.9, "high"]).set_axis(["a", "b", "c"]),
            "table, row 3 (index 'c'), column 'dv': 'high' is not a number",
        ),
        (
            lambda f: pd.concat([f.assign(id=9, wt=np.nan), f]).iloc[3:].assign(time=[0, -4, 24]),
            "table, row 2, column 'time'",
        ),
        (lambda f: f.iloc[1:].assign(time=[-1.0, 2.0]), "table, row 1 (index 1), column 'time'"),
        (lambda f: f.assign(dv=[None, [0.9, 1], 2]), "table, row 2, column 'dv': expected single values"),
        (lambda f: f.drop(columns="wt"), "table: column 'wt' is missing"),
        (lambda f: f.iloc[:0], "table: has no rows"),
        (dict, "patients: is a dict; expected a file or a data frame"),
        (list, "patients: is a list; expected a file or a data frame"),
    ],
)
def test_what_is_wrong_with_a_frame(study: Study, change: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        curve(study, change(pd.DataFrame(PATIENT)))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"times": "daily"}, "times is 'daily'; expected a list of numbers"),
        ({"times": 24}, "times is 24; expected a list of numbers"),
        ({"thresholds": "low"}, "thresholds is 'low'; expected a list of numbers"),
        ({"thresholds": [None]}, "threshold"),
        ({"method": "guess"}, "guess"),
        ({"draws": "many"}, "draws is 'many'"),
        ({"regimen": {"doses": 3}}, "regimen"),
    ],
)
def test_options_of_another_kind_are_refused(study: Study, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        predict(study, pd.DataFrame(PATIENT), **options)
    assert said in str(refused.value)


def test_a_study_is_a_folder(place: Path) -> None:
    with pytest.raises(InputError, match="run: is a DataFrame; expected the folder of a study"):
        load_study(pd.DataFrame())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="absent: no such folder"):
        load_study(place / "absent")


def as_text(frame: pd.DataFrame, mark: str = ",") -> pd.DataFrame:
    return frame.astype(object).map(lambda cell: None if pd.isna(cell) else str(cell).replace(".", mark))


def test_a_frame_of_text_is_read_as_a_file_is(study: Study) -> None:
    numbers = pd.DataFrame(
        {
            "id": ["a"] * 4,
            "time": [0, 4.5, 24, 72],
            "amt": [2000, None, None, None],
            "dv": [None, 0.9, 0.25, 0.01],
            "wt": 75.5,
            "vwf": 110,
        }
    )
    expected = study.read(numbers)
    for mark, assumed in ((".", False), (",", True)):
        read = study.read(as_text(numbers, mark))
        for name in ("time", "amount", "dv"):
            np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
        assert read.covariates["weight"] == pytest.approx([75.5])
        assert any("decimal commas" in note for note in read.notes) == assumed
    dates = as_text(numbers).assign(
        time=["01/02/2021 00:00", "01/02/2021 04:30", "02/02/2021 00:00", "04/02/2021 00:00"],
        dv=["", "0,9", "0,25", "<0,01"],
    )
    with pytest.raises(InputError, match=r"'\+dataset\.dialect=\{dates: dmy\}'"):
        predict(study, dates, draws=20)
    found = predict(study, dates, draws=20, dialect={"dates": "dmy"})
    assert found.observations["time"].tolist() == [4.5, 24, 72]
    assert found.observations["censored"].tolist() == [False, False, True]
    with pytest.raises(InputError, match=r"dataset\.dialect\.date: no such option"):
        predict(study, dates, dialect={"date": "dmy"})
