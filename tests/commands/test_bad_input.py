"""Bad input is one line on stderr and exit code 2."""

from pathlib import Path

import pytest

from tests.commands.program import SHORT, Quick, statuses

EVENTS = """id,time,amt,rate,duration,dv,mdv,wt,vwf
a,0,2000,120000,0.0166666667,,1,70,100
a,4,0,,,0.5,0,70,100
b,0,2000,120000,0.0166666667,,1,70,100
b,4,0,,,high,0,70,100
"""
TABLE = ("fit", "dataset=table", "split=all", "epochs=2")
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown command": (("train",), "train"),
    "no command": ((), "command"),
    "benchmark of no epoch": (("benchmark", "--epochs", "0"), "--epochs"),
    "unknown choice of a group": (("fit", "objective=em", *SHORT), "em"),
    "unknown choice in a sweep": (("fit", "-m", "objective=fo,em", *SHORT), "em"),
    "unknown option": (("fit", "epoch=3"), "epoch"),
    "unknown option that is added": (("fit", "+epoch=3", *SHORT), "epoch"),
    "unknown option that has the name of something else": (("fit", "+labels=3", *SHORT), "labels"),
    "group that is taken away": (("fit", "~optimizer", *SHORT), "optimizer"),
    "unknown flag of fit": (("fit", "--epochs", "3"), "--epochs"),
    "flags that exclude each other": (("fit", "--cfg", "job", "-m"), "--multirun"),
    "bad value": (("fit", "epochs=0", "dataset.path=data"), "epochs"),
    "bad syntax": (("fit", "network.branches=[1"), "[1"),
    "option without a name": (("fit", "=3"), "=3"),
    "bad fold": (("fit", "fold=0", *SHORT), "fold"),
    "fold without a file": (("fit", "fold=9", *SHORT), "train_set_9.csv"),
    "bad range": (("fit", "-m", "fold=range(1,", *SHORT), "fold"),
    "absent data": (("fit", "dataset.path=absent"), "absent"),
    "data not given": (("fit", "dataset=table"), "dataset.path"),
    "bad cell": ((*TABLE, "dataset.path=bad.csv"), "bad.csv, line 5, column 'dv'"),
    "bad cell of a table to check": (("data", "check", "bad.csv"), "bad.csv, line 5, column 'dv'"),
    "table to check absent": (("data", "check", "absent.csv"), "absent.csv: no such file"),
    "bad cell as a fit reads it": (("data", "check", "bad.csv", "dataset=table", "seed=1"), "bad.csv"),
    "flag beside options": (
        ("data", "check", "bad.csv", "seed=1", "--keep", "id=a"),
        "--keep: has no effect",
    ),
    "option of a fit that is none": (("data", "check", "bad.csv", "sed=1"), "sed"),
    "dialect that is none": (("data", "check", "bad.csv", "--dialect", "mark=x"), "dataset.dialect.mark"),
    "something else to do with data": (("data", "clean", "bad.csv"), "'clean'"),
    "column without a name": (
        ("data", "check", "bad.csv", "--column", "dv"),
        "--column is 'dv'; expected NAME=",
    ),
    "column for no role": (("data", "check", "bad.csv", "--column", "level=dv"), "'level'; expected some of"),
    "covariate that is absent": (("data", "check", "bad.csv", "--covariate", "age"), "'age' is missing"),
    "rows to keep that are not there": (("data", "check", "bad.csv", "--keep", "id=c"), "['c']"),
    "cohort that there is not": (("simulate", "--cohort", "children", "--out", "none"), "'children'"),
    "missing values of no cohort": (("simulate", "--complete", "--out", "none"), "--cohort KIND"),
    "something else where a cohort is to be": (
        ("simulate", "--cohort", "prophylaxis", "--out", "outputs", "--overwrite"),
        "outputs: holds other files",
    ),
    "other configuration": (
        ("fit", "objective=fo", "variant=first", *SHORT, "epochs=5"),
        "epochs",
    ),
    "summary of nothing": (("summarize", "absent"), "absent"),
    "summary without a folder": (("summarize",), "folders"),
    "summary of damaged runs": (("summarize", "damaged"), "damaged"),
    "bad tail": (("summarize", "outputs", "--tail", "-1"), "--tail"),
    "bad expected values": (("summarize", "outputs", "--expected", "bad_values.csv"), "bad_values.csv"),
    "no expected values": (("summarize", "outputs", "--expected", "absent.csv"), "absent.csv"),
    "no patients": (("simulate", "--n", "0", "--out", "none"), "n is 0"),
    "patients that are no number": (("simulate", "--n", "many", "--out", "none"), "--n"),
    "other patients there": (("simulate", "--n", "31", "--out", "data"), "data"),
    "something else there": (("simulate", "--n", "5", "--out", "outputs"), "outputs"),
}


@pytest.fixture(scope="module")
def crowded(place: Path) -> Path:
    """The working folder with some bad input in it."""
    (place / "bad.csv").write_text(EVENTS)
    (place / "bad_values.csv").write_text(
        "objective,measure,statistic,value,tolerance,source\nfo,rmse,median,eight,1,x\n"
    )
    (place / "damaged").mkdir()
    (place / "damaged" / "run.json").write_text("garbage")
    return place


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(crowded: Path, quick: Quick, name: str) -> None:
    arguments, word = BAD[name]
    result = quick(crowded, *arguments)
    lines = result.stderr.splitlines()
    assert "Traceback" not in result.stderr
    assert result.returncode == 2
    assert len(lines) == 1
    assert word in lines[0]
    assert lines[0].startswith("medcm")
    assert "\x1b" not in result.stderr
    assert not (crowded / "none").exists()
    assert "running" not in statuses(crowded / "outputs").values()
