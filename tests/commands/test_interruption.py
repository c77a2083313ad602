"""What an interruption leaves."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from tests.commands.program import LIMIT, Quick, linux, statuses, succeeded


def wait_for(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def in_session(leader: int) -> list[int]:
    """Processes of a session that are not yet gone; zombies are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def whole(folder: Path) -> None:
    """Every file that bears a final name can be read to its end."""
    tables = [path for path in folder.rglob("*.parquet") if not path.name.startswith(".")]
    assert tables
    for path in tables:
        assert pyarrow.parquet.ParquetFile(path).read().num_columns > 0
    assert statuses(folder)


@linux
def test_killed_in_the_middle(place: Path, quick: Quick) -> None:
    """Two processes share each job; SIGKILL lets nobody tidy up."""
    study = place / "outputs" / "killed"
    command = (
        *("fit", "-m", "objective=mse,fo", "fold=range(1,4)", "replicate=1,2", "study=killed"),
        *("epochs=150", "checkpoint_every=10", "dataset.path=data", "batch.processes=2"),
    )
    running = quick.start(place, *command)

    def between() -> bool:
        found = [json.loads(path.read_text())["status"] for path in study.rglob("run.json")]
        return "complete" in found and "running" in found

    wait_for(between, "no second job began")
    assert len(in_session(running.pid)) >= 3
    os.kill(running.pid, signal.SIGKILL)
    assert quick.finish(running).returncode == -signal.SIGKILL
    # The training processes notice at their next word to the parent.
    wait_for(lambda: not in_session(running.pid), "a training process outlives its parent")
    whole(study)
    done = {
        folder: (folder / "run.json").read_bytes() for folder, s in statuses(study).items() if s == "complete"
    }
    assert 0 < len(done) < 12
    lines = succeeded(quick(place, *command, "batch.processes=1"))
    counted = [int(line.split(" fit")[0].split()[-1]) for line in lines if "done already" not in line]
    assert sum(counted) == 12 - len(done)
    found = statuses(study)
    assert len(found) == 12
    assert set(found.values()) == {"complete"}
    assert all((folder / "run.json").read_bytes() == content for folder, content in done.items())
    assert not list(study.rglob(".partial-*"))
    for folder in found:
        epochs = pyarrow.parquet.ParquetFile(folder / "history.parquet").read()["epoch"].to_numpy()
        np.testing.assert_array_equal(epochs, np.arange(0, 151, 10))


@linux
def test_interrupted_by_the_keyboard(place: Path, quick: Quick) -> None:
    """Ctrl-C reaches every process of the terminal's group."""
    study = place / "outputs" / "interrupted"
    running = quick.start(
        place,
        *("fit", "-m", "epochs=2,1000000", "checkpoint_every=2", "objective=fo", "fold=1,2"),
        *("study=interrupted", "dataset.path=data", "batch.processes=2"),
    )

    def second_job() -> bool:
        found = [json.loads(path.read_text())["status"] for path in study.rglob("run.json")]
        return sorted(found) == ["complete", "complete", "running", "running"]

    wait_for(second_job, "no second job began")
    os.killpg(running.pid, signal.SIGINT)
    result = quick.finish(running)
    assert result.returncode == 130
    (line,) = result.stderr.splitlines()
    assert line.startswith("medcm: ")
    wait_for(lambda: in_session(running.pid) == [], "a process stays behind")
    whole(study)
    kept = {folder: status for folder, status in statuses(study).items() if "epochs-2" in str(folder)}
    assert set(kept.values()) == {"complete"}
    assert len(kept) == 2
    assert sorted(statuses(study).values()) == ["complete", "complete", "running", "running"]
    shown = succeeded(quick(place, "summarize", "outputs/interrupted", "--out", "summary"))
    header = [cell.strip() for cell in shown[2].strip("|").split("|")]
    assert "unfinished" in header


def copies(place: Path, quick: Quick, outputs: str, count: int) -> list[list[str]]:
    """The same command so many times at once, where nothing is there yet: the lines that each wrote."""
    options = ("objective=fo", "replicate=1,2", "epochs=25", f"outputs={outputs}", "batch.processes=1")
    started = [quick.start(place, "fit", *options) for _ in range(count)]
    return [succeeded(quick.finish(running)) for running in started]


def same_fits(one: Path, other: Path) -> None:
    """But for rounding: who starts late finds one of two fits done and trains the other alone."""
    found = [
        {path.relative_to(root): status for path, status in statuses(root).items()} for root in (one, other)
    ]
    assert found[0] == found[1]
    assert set(found[0].values()) == {"complete"}
    for folder in found[0]:
        for name in ("history", "parameters", "random_effects", "effects"):
            a, b = (
                pd.read_parquet(root / folder / f"{name}.parquet", partitioning=None) for root in (one, other)
            )
            pd.testing.assert_frame_equal(a, b, rtol=1e-3, atol=1e-5)


@linux
@pytest.mark.parametrize(
    ("count", "times"), [(4, 1), pytest.param(16, 50, marks=pytest.mark.slow)], ids=["a few", "many"]
)
def test_copies_of_one_command_do_not_get_in_each_others_way(
    place: Path, quick: Quick, count: int, times: int
) -> None:
    copies(place, quick, "alone", 1)
    for number in range(times):
        copies(place, quick, f"copies{number}", count)
        same_fits(place / "alone" / "default", place / f"copies{number}" / "default")
        assert not list((place / f"copies{number}").rglob(".*"))
        shutil.rmtree(place / f"copies{number}")
