"""What is said of how far a study is."""

import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from medcm_cli import runs
from medcm_cli.commands import status
from medcm_cli.errors import InputError
from medcm_cli.runs import Address
from medcm_cli.runs.claims import PREFIX, SILENT, Claim
from medcm_cli.runs.planned import plan

FIRST = Address("default", "simulated", "vi", "additive", 0.1, "default", 1, 1)
OTHER = Address("default", "simulated", "vi", "additive", 0.05, "default", 1, 1)


def in_training(root: Path, fits: int, rate: float | None, age: float, job: str = "7_3") -> Path:
    path = FIRST.method_folder(root) / f"{PREFIX}x-{fits}-1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = tuple(f"fold=01/replicate={fits}{n}" for n in range(fits))
    path.write_text(json.dumps(asdict(Claim(names, 1000, "x", 12, "node2", job, 250, rate))))
    os.utime(path, (time.time() - age,) * 2)
    return path


def rows(said: str, title: str) -> list[list[str]]:
    """The cells of a table."""
    _, _, below = said.partition(f"### {title}\n\n")
    lines = below.partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_all_machines_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first in (FIRST, OTHER):
        plan(tmp_path, first, {"fold": [1, 2], "replicate": [1, 2, 3]})
    in_training(tmp_path, 2, 25.0, 3)
    in_training(tmp_path, 3, 5.0, SILENT + 240, job="")
    status.command([str(tmp_path)])
    said = capsys.readouterr().out
    header, _, *methods = rows(said, "Fits")
    assert header == ["objective", "learning rate", "complete", "failed", "in training", "left"]
    assert methods == [["vi", "0.05", "0", "0", "0", "6"], ["vi", "0.1", "0", "0", "2", "6"]]
    header, _, *batches = rows(said, "In training")
    assert header[2:] == ["fits", "machine", "job", "epoch", "epochs/s", "done in", "last word"]
    assert batches[0][2:8] == ["2", "node2", "7_3", "250 of 1000", "25", "30 s"]
    assert re.fullmatch(r"[345] s ago", batches[0][8])
    assert batches[1][2:] == ["3", "node2", "process 12", "250 of 1000", "", "", "5 min ago, is no more"]
    # 2 fits have 750 epochs to go, 12 have 1000, and 2 x 25 of them are done in a second.
    last = "14 fits: 0 complete, 0 failed, 2 in training, 12 left; about 4 min at this rate"
    assert said.splitlines()[-1] == last


def test_watching_ends_when_all_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(tmp_path, FIRST, {"fold": [1], "replicate": [1]})
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            runs.write_record(tmp_path, runs.Record("complete", FIRST, "x", {}, {}, None, 0, {}))

    monkeypatch.setattr("time.sleep", sleep)
    status.command([str(tmp_path), "--watch", "5"])
    assert looks == [5.0, 5.0]


def test_nothing_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no run folder"):
        status.command([str(tmp_path)])
    with pytest.raises(InputError, match="no such folder"):
        status.command([str(tmp_path / "absent")])
    assert capsys.readouterr().out == ""


def test_files_that_were_copied_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"epoch": [0, 100], "objective_value": [1.0, 0.0], "rmse": [1.0, 1.0]})
    record = runs.Record("complete", FIRST, "x", {}, {}, None, 0, {}, tables=["history"])
    runs.finish(tmp_path, record, {"history": table})
    status.command([str(tmp_path), "--verify"])
    assert capsys.readouterr().out.splitlines()[-1] == "every file of finished fits is as it was written"
    path = FIRST.folder(tmp_path) / "history.parquet"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="1 fits are damaged"):
        status.command([str(tmp_path), "--verify"])
    assert "history.parquet" in capsys.readouterr().err


def test_of_fits_that_are_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.write_record(tmp_path, runs.Record("complete", FIRST, "x", {}, {}, None, 0, {}))
    status.command([str(tmp_path / "default"), str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1] == "1 fit: 1 complete, 0 failed, 0 in training, 0 left"
