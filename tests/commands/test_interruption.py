"""What an interruption leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from tests.commands.program import ENVIRONMENT, LIMIT, SHORT, Quick, linux, statuses, succeeded
from tests.helpers import ran


def wait_for(ready: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    deadline = time.monotonic() + limit
    while True:
        with suppress(FileNotFoundError):  # a folder that was just moved into its place
            if ready():
                return
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
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_in_the_middle(place: Path, quick: Quick, processes: int) -> None:
    """SIGKILL lets nobody tidy up; two processes share each job, or one has all."""
    study = place / "outputs" / f"killed{processes}"
    command = (
        *("fit", "-m", "objective=mse,fo", "fold=1,2", "replicate=1,2", f"study={study.name}"),
        *("epochs=100", "checkpoint_every=10", "dataset.path=data", f"batch.processes={processes}"),
    )
    running = quick.start(place, *command)

    def between() -> bool:
        found = [json.loads(path.read_text())["status"] for path in study.rglob("run.json")]
        return found.count("complete") >= 4 and "running" in found

    wait_for(between, "no second job began")
    assert len(in_session(running.pid)) >= (1 if processes == 1 else 1 + processes)
    os.kill(running.pid, signal.SIGKILL)
    assert quick.finish(running).returncode == -signal.SIGKILL
    # The training processes notice at their next word to the parent.
    wait_for(lambda: not in_session(running.pid), "a training process outlives its parent")
    whole(study)
    done = {
        folder: (folder / "run.json").read_bytes()
        for folder, status in statuses(study).items()
        if status == "complete" and not folder.name.startswith(".partial-")  # not in its place yet
    }
    assert 0 < len(done) < 8
    lines = succeeded(quick(place, *command, "batch.processes=1"))
    counted = [int(line.split(" fit")[0].split()[-1]) for line in lines if "done already" not in line]
    assert sum(counted) == 8 - len(done)
    found = statuses(study)
    assert len(found) == 8
    assert set(found.values()) == {"complete"}
    assert all((folder / "run.json").read_bytes() == content for folder, content in done.items())
    assert not list(study.rglob(".partial-*"))
    for folder in found:
        epochs = pyarrow.parquet.ParquetFile(folder / "history.parquet").read()["epoch"].to_numpy()
        np.testing.assert_array_equal(epochs, np.arange(0, 101, 10))


ENDLESS = ("epochs=1000000", "checkpoint_every=1000000", "objective=fo", "fold=1,2", "dataset.path=data")


@pytest.mark.slow
@linux
def test_training_processes_end_with_their_parent(place: Path, quick: Quick) -> None:
    """At once: none of them would have a word for the parent before the millionth epoch."""
    study = place / "outputs" / "orphans"
    running = quick.start(place, "fit", *ENDLESS, "study=orphans", "batch.processes=2")
    wait_for(lambda: len(statuses(study)) == 2, "training did not begin")
    os.kill(running.pid, signal.SIGKILL)
    quick.finish(running)
    wait_for(lambda: not in_session(running.pid), "a training process outlives its parent", 20)


@pytest.mark.slow
@linux
def test_killed_training_processes_cost_their_job_alone(place: Path, quick: Quick) -> None:
    study = place / "outputs" / "culled"
    options = ("epochs=1000000,4", "checkpoint_every=2", "objective=fo", "fold=1,2", "replicate=1,2")
    running = quick.start(
        place, "fit", "-m", *options, "study=culled", "dataset.path=data", "batch.processes=2"
    )
    wait_for(lambda: len(statuses(study)) == 4, "training did not begin")
    servers = [pid for pid in in_session(running.pid) if b"forkserver" in command_of(pid)]
    children = [pid for pid in servers if parent_of(pid) in servers]  # forked from one that loads for them
    assert len(children) == 2
    for child in children:  # the other job, which takes less, waits until they are free
        os.kill(child, signal.SIGKILL)
    result = quick.finish(running)
    assert result.returncode == 3
    first, *_, last = result.stderr.splitlines()
    assert "epochs=1000000: a training process was killed by SIGKILL" in first
    assert "0 of 4 fits of this job are finished and kept" in first
    assert "batch.fits=1 " in first
    assert last == "medcm: 1 of 2 jobs of the multirun failed"
    (line,) = result.stdout.splitlines()
    assert ": 4 fits in " in line
    assert sorted(statuses(study).values()) == ["complete"] * 4 + ["running"] * 4


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def command_of(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@linux
@pytest.mark.parametrize(
    ("number", "code", "word", "to_all"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, "interrupted", True, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, "terminated", False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, "terminated", True, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_fit_in_one_line(
    place: Path, quick: Quick, number: int, code: int, word: str, to_all: bool
) -> None:
    name = f"signal{number}{to_all}"
    running = quick.start(place, "fit", *ENDLESS, f"study={name}", "batch.processes=2")
    wait_for(lambda: len(statuses(place / "outputs" / name)) == 2, "training did not begin")
    (os.killpg if to_all else os.kill)(running.pid, number)
    result = quick.finish(running)
    assert result.returncode == code
    assert result.stderr == f"medcm: {word}; what is finished is kept\n"
    wait_for(lambda: not in_session(running.pid), "a process stays behind", 20)


@linux
@pytest.mark.parametrize(
    "pause", [0.2, *(pytest.param(p, marks=pytest.mark.slow) for p in (0.0, 0.05, 0.5, 1.0, 2.0, 4.0))]
)
def test_an_interruption_while_a_command_starts_is_told_in_one_line(place: Path, pause: float) -> None:
    """Wherever it comes once medcm's own code has begun, processes that train among it."""
    program = "import sys, medcm_cli.cli; print('begun', flush=True); medcm_cli.cli.main()"
    options = ("fit", *ENDLESS, f"study=starting{pause}", "batch.processes=2")
    with subprocess.Popen(
        [sys.executable, "-c", program, *options],
        cwd=place,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, said = process.communicate(timeout=LIMIT)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert said == "medcm: interrupted; what is finished is kept\n"
    assert process.returncode == 130


@pytest.mark.slow
@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_compiled_code_drops_arrives_all_the_same(
    tmp_path: Path, number: int, code: int
) -> None:
    program = """
import os, sys, time
from medcm_cli import cli

def command(arguments):
    try:
        os.kill(os.getpid(), int(arguments[0]))
        time.sleep(60)
    except KeyboardInterrupt:
        print("dropped", flush=True)
    time.sleep(60)

cli._AGAIN = 0.05
cli._command = lambda name: command
sys.argv = ["medcm", "fit", sys.argv[1]]
cli.main()
"""
    done = ran([sys.executable, "-c", program, str(int(number))], tmp_path, ENVIRONMENT, 30)
    assert done.stdout == "dropped\n"
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.endswith("; what is finished is kept")


@pytest.mark.slow
@linux
def test_a_multirun_goes_on_where_nobody_reads_what_it_says(place: Path) -> None:
    line = f"{sys.executable} -m medcm_cli fit -m objective=fo,mse study=unread {' '.join(SHORT)} | true"
    done = ran(["bash", "-o", "pipefail", "-c", line], place, ENVIRONMENT, LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(statuses(place / "outputs" / "unread").values()) == ["complete", "complete"]


@pytest.mark.slow
@linux
def test_interrupted_by_the_keyboard(place: Path, quick: Quick) -> None:
    """Ctrl-C reaches every process of the terminal's group."""
    study = place / "outputs" / "interrupted"
    options = ("checkpoint_every=2", "objective=fo", "fold=1,2", "study=interrupted", "dataset.path=data")
    succeeded(quick(place, "fit", "-m", "epochs=2", *options))
    running = quick.start(place, "fit", "-m", "epochs=2,1000000", *options, "batch.processes=2")

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


def same_fits(one: Path, other: Path, exactly: bool = False) -> None:
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
            rtol, atol = (0, 0) if exactly else (1e-3, 1e-5)
            pd.testing.assert_frame_equal(a, b, check_exact=exactly, rtol=rtol, atol=atol)


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


@linux
@pytest.mark.slow
@pytest.mark.parametrize("points", [3, 60], ids=["a few", "many"])
def test_a_sweep_that_is_killed_anywhere_ends_as_if_it_had_not_been(
    place: Path, quick: Quick, points: int
) -> None:
    """Each attempt goes on inside the batches of the one before, which was killed at a random point."""
    command = (
        *("fit", "-m", "objective=fo,vi", "fold=1,2", "replicate=1,2", "epochs=600", "dataset.path=data"),
        *("batch.processes=1", "checkpoint_every=50"),
    )
    started = time.monotonic()
    succeeded(quick(place, *command, "outputs=uncut"))
    long = time.monotonic() - started
    generator = np.random.default_rng(points)
    kills, resumed = 0, 0
    for sweep in range(points):
        outputs = place / f"cut{sweep}"
        while kills < points:
            running = quick.start(place, *command, f"outputs={outputs.name}")
            time.sleep(long * generator.uniform(0.1, 0.9))
            os.kill(running.pid, signal.SIGKILL)
            kills += 1
            if quick.finish(running).returncode == 0:
                break  # the sweep was done before
            resumed += len(list(outputs.rglob(".training-*.npz")))
        succeeded(quick(place, *command, f"outputs={outputs.name}"))
        same_fits(place / "uncut" / "default", outputs / "default", exactly=True)
        assert not list(outputs.rglob(".training-*"))
        shutil.rmtree(outputs)
        if kills >= points:
            break
    assert resumed
