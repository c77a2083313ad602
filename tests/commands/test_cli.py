"""The command as a person runs it: what it prints, its exit codes, and what an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

ENVIRONMENT = {
    key: value
    for key, value in os.environ.items()
    if key not in ("FORCE_COLOR", "HYDRA_FULL_ERROR", "COLUMNS")
}
LIMIT = 120  # s, for a command that hangs
SMALL = ("--n", "30", "--folds", "3", "--fold-size", "8")
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")
SHORT = ("epochs=4", "checkpoint_every=2", "dataset.path=data")


def medcm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-m", "medcm_cli", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


# A command takes three seconds to import torch. This program does it once and forks for each command that it
# reads, which then runs as if it had been started alone; it prints the process's number and, when asked, its
# exit code.
PRELOADED = """
import json, os, sys, traceback
import torch._dynamo  # which torch imports with the first optimiser
from medcm_cli import cli
from medcm_cli.commands import fit
from medcm_cli.report import tables
from medcm_cli.study import job, workers

def run(folder, arguments, out, err):
    os.setsid()
    os.chdir(folder)
    for number, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.argv = ["medcm", *arguments]
    code = 1
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)  # an interpreter with torch in it takes a second to tidy up

for line in sys.stdin:
    request = json.loads(line)
    if isinstance(request, list):
        print(os.fork() or run(*request), flush=True)
    else:
        child, status = os.waitpid(request, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if child else None), flush=True)
"""


@dataclass
class Running:
    """A command that was started."""

    pid: int
    files: tuple[Path, Path]
    arguments: tuple[str, ...]


class Quick:
    """``medcm`` without its start-up time."""

    def __init__(self, process: subprocess.Popen[str], scratch: Path) -> None:
        self._process, self._scratch, self._number = process, scratch, 0

    def _ask(self, request: object) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer is None or isinstance(answer, int)
        return answer

    def start(self, folder: Path, *arguments: str) -> Running:
        """The leader of a session of its own, as the shell's child is of its group."""
        self._number += 1
        files = tuple(self._scratch / f"{self._number}.{name}" for name in ("out", "err"))
        pid = self._ask([str(folder), arguments, *map(str, files)])
        assert pid
        return Running(pid, (files[0], files[1]), arguments)

    def finish(self, running: Running) -> subprocess.CompletedProcess[str]:
        deadline = time.monotonic() + LIMIT
        while (code := self._ask(running.pid)) is None:
            if time.monotonic() > deadline:
                os.killpg(running.pid, signal.SIGKILL)
                pytest.fail(f"{' '.join(running.arguments)}: does not end")
            time.sleep(0.01)
        texts = (path.read_text() for path in running.files)
        return subprocess.CompletedProcess(running.arguments, code, *texts)

    def __call__(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.finish(self.start(folder, *arguments))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quick]:
    """Runs commands one after another in forks of one interpreter."""
    with subprocess.Popen(
        [sys.executable, "-c", PRELOADED],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Quick(process, tmp_path_factory.mktemp("said"))


def succeeded(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines of stdout of a command that worked, and was quiet on stderr."""
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    return result.stdout.splitlines()


def statuses(folder: Path) -> dict[Path, str]:
    """Status of every run below a folder; fails where a record is not whole."""
    return {path.parent: json.loads(path.read_text())["status"] for path in sorted(folder.rglob("run.json"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small data set and one fit of it."""
    folder = tmp_path_factory.mktemp("cli")
    assert succeeded(medcm(folder, "simulate", *SMALL, "--out", "data")) == [
        "30 patients and 3 folds -> data"
    ]
    (line,) = succeeded(medcm(folder, "fit", "objective=fo", "variant=first", *SHORT))
    assert line.startswith("fo: 1 fit in ")
    assert line.endswith(", 0 failed -> outputs/default")
    return folder


def test_from_simulation_to_table(place: Path) -> None:
    events = pd.read_csv(place / "data" / "simulation.csv")
    assert {"id", "time", "dv", "mdv", "amt", "rate", "duration", "wt", "vwf"} <= set(events.columns)
    assert events["id"].nunique() == 30
    (run,) = statuses(place / "outputs" / "default")
    assert sorted(path.name for path in run.iterdir()) == [
        "effects.parquet",
        "history.parquet",
        "parameters.parquet",
        "random_effects.parquet",
        "run.json",
    ]
    history = pyarrow.parquet.ParquetFile(run / "history.parquet").read().to_pandas()
    assert history["epoch"].tolist() == [0, 2, 4]
    lines = succeeded(medcm(place, "summarize", "outputs/default", "--out", "summary"))
    assert lines[0] == "### default, simulated"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]]
    shown = dict(zip(cells[0], cells[2], strict=True))
    assert shown["objective"] == "fo"
    assert (shown["complete"], shown["failed"]) == ("1", "0")
    tail = history[history["epoch"] >= 3]  # the last quarter
    assert float(shown["RMSE, IU/dL"]) == pytest.approx(tail["rmse"].mean(), abs=0.005)
    assert lines[-1].endswith("-> summary")
    table = pd.read_csv(place / "summary" / "table.csv")
    assert table["rmse_median"].tolist() == [pytest.approx(tail["rmse"].mean())]
    assert (place / "summary" / "table.md").read_text().rstrip().splitlines() == lines[:-3]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("medcm f", {"fit", "simulate", "help"}),
        ("medcm fit -m objective=fo,vi error=", {"error=additive", "error=combined"}),
        ("medcm fit obj", {"objective="}),
        ("medcm summarize out", set()),
        ("medcm posterior popu", {"population="}),
        ("medcm help d", {"data", "methods"}),
        ("medcm fit objectivev err", set()),
    ],
)
def test_tab_completion(tmp_path: Path, line: str, offered: set[str]) -> None:
    environment = ENVIRONMENT | {"COMP_LINE": line}
    command = [sys.executable, "-m", "medcm_cli", "-sc", "query=bash"]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert offered <= set(shown.stdout.split())
    assert bool(offered) == bool(shown.stdout.strip())
    assert not shown.stderr


def test_what_is_done_is_skipped(place: Path, quick: Quick) -> None:
    (run,) = statuses(place / "outputs" / "default")
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}
    (line,) = succeeded(quick(place, "fit", "objective=fo", "variant=first", *SHORT))
    assert "done already" in line
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}


def test_a_multirun_trains_each_combination(place: Path, quick: Quick) -> None:
    sweep = ("-m", "objective=mse,fo", "fold=range(1,3)", "replicate=1,2", "study=sweep")
    lines = succeeded(quick(place, "fit", *sweep, *SHORT))
    assert [line.split(" in ")[0] for line in lines] == ["mse: 4 fits", "fo: 4 fits"]
    found = statuses(place / "outputs" / "sweep")
    assert set(found.values()) == {"complete"}
    assert {tuple(part.partition("=")[2] for part in folder.parts[-6:]) for folder in found} == {
        (objective, "additive", "0.1", "checkpoint_every-2+epochs-4", f"0{fold}", f"{replicate}")
        for objective in ("mse", "fo")
        for fold in (1, 2)
        for replicate in (1, 2)
    }


@pytest.mark.parametrize("flags", [(), ("-m",)], ids=["one job", "multirun"])
def test_only_results_are_left_behind(
    place: Path, quick: Quick, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """No logs and no records of Hydra's own in the working folder."""
    succeeded(quick(tmp_path, "fit", *flags, "objective=mse", *SHORT, f"dataset.path={place / 'data'}"))
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["default"]


def test_options_without_a_folder_of_their_own_are_variants(place: Path, quick: Quick) -> None:
    """Sweeps of them do not collide; a long one is shortened; brackets are shown and are no markup."""
    branches = (
        "network.branches=[{inputs:[weight],hidden:[3],heads:[CL,V1]},{inputs:[vwf],hidden:[2],heads:[CL]}]"
    )
    options = ("objective=mse", "study=variants", *SHORT)
    succeeded(quick(place, "fit", "-m", "seed=1,2", "split=files,all", *options))
    succeeded(quick(place, "fit", branches, *options))
    succeeded(quick(place, "fit", branches.replace("3", "5"), *options))
    runs = statuses(place / "outputs" / "variants")
    assert set(runs.values()) == {"complete"}
    assert len(runs) == 6
    shown = "\n".join(succeeded(quick(place, "summarize", "outputs/variants", "--out", "s [b]")))
    assert "seed-1+split-all" in shown
    assert "{inputs:[weight],hidden:[3]" in shown
    assert "-> s [b]" in shown


@linux
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("fit", "objective=mse", "outputs=occupied", *SHORT), "occupied"),
        (("fit", "objective=mse", "outputs=/proc/nope", *SHORT), "/proc/nope"),
        (("summarize", "outputs/default", "--out", "occupied"), "occupied"),
        (("simulate", "--out", "occupied/x"), "occupied"),
        (("simulate", "--out", "/proc/x"), "/proc/"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_in_one_line(
    place: Path, quick: Quick, arguments: tuple[str, ...], word: str
) -> None:
    (place / "occupied").write_text("a file")
    result = quick(place, *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("medcm: ")
    assert word in line
    assert (place / "occupied").read_text() == "a file"


def test_simulate_replaces_patients_and_nothing_else(place: Path, quick: Quick) -> None:
    mine = place / "mine"
    mine.mkdir()
    (mine / "thesis.doc").write_text("years of work")
    result = quick(place, "simulate", *SMALL, "--out", "mine", "--overwrite")
    assert result.returncode == 2
    assert [path.name for path in mine.iterdir()] == ["thesis.doc"]
    succeeded(quick(place, "simulate", *SMALL, "--out", "again"))
    (place / "again" / "simulation.csv").unlink()
    assert succeeded(quick(place, "simulate", *SMALL, "--out", "again")) == [
        "30 patients and 3 folds -> again"
    ]
    assert (place / "again" / "simulation.csv").read_bytes() == (
        place / "data" / "simulation.csv"
    ).read_bytes()


def test_version(place: Path, quick: Quick) -> None:
    assert succeeded(quick(place, "--version")) == [f"medcm {version('medcm')}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], [f"\n  {name} " for name in ("simulate", "fit", "summarize", "benchmark")]),
        (["fit", "--help"], ["objective: fo, foce, mse, vi", "epochs: 2000"]),
        (["simulate", "--help"], ["--n ", "--seed ", "--fold-size ", "(500, or"]),
        (["summarize", "--help"], ["--tail ", "--expected "]),
        (["fit", "--cfg", "job", "objective=foce"], ["formulation: joint", "\nepochs: 2000"]),
        (["fit", "--cfg", "job", "fold=range(1,3)"], ["fold:\n- 1\n- 2\n"]),
    ],
)
def test_help(place: Path, quick: Quick, arguments: list[str], words: list[str]) -> None:
    shown = "\n".join(succeeded(quick(place, *arguments)))
    assert [word for word in words if word not in shown] == []
    assert not (place / "outputs" / "data").exists()


def test_a_synthetic_cohort_is_written_and_nothing_else_replaced(place: Path, quick: Quick) -> None:
    arguments = ("simulate", "--cohort", "prophylaxis", "--n", "40", "--out", "cohort")
    assert "synthetic prophylaxis" in succeeded(quick(place, *arguments))[-1]
    first = (place / "cohort" / "events.csv").read_bytes()
    shown = "\n".join(succeeded(quick(place, "data", "check", "cohort/events.csv")))
    assert "| subjects " in shown
    assert "missing 65.0 %" in shown  # VWF:Ag
    assert quick(place, *arguments).returncode == 2
    succeeded(quick(place, *arguments, "--overwrite", "--complete"))
    lines = succeeded(quick(place, "data", "check", "cohort/events.csv", "--covariate", "vwf"))
    assert "missing" not in "\n".join(lines)
    assert (place / "cohort" / "events.csv").read_bytes() != first


def test_a_table_is_checked_without_fitting_it(place: Path, quick: Quick) -> None:
    (place / "clinic.csv").write_text(EVENTS.replace("high", "0.4").replace("mdv", "MISSING"))
    before = sorted(place.iterdir())
    options = ("--column", "mdv=MISSING", "--level-unit", "IU/dL", "--covariate", "wt")
    lines = succeeded(quick(place, "data", "check", "clinic.csv", *options))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    shown = {row[0]: row[1] for row in cells}
    assert shown["subjects"] == "2"
    assert shown["doses per subject"] == "1"
    assert shown["observations"] == "2"
    assert shown["level, IU/dL"] == "0.45 (0.4 to 0.5)"
    assert shown["follow-up, h"] == "4"
    assert shown["covariate wt"] == "70"
    assert "covariate vwf" not in shown
    assert lines[-1] == "clinic.csv: no fault found"
    assert sorted(place.iterdir()) == before


def test_benchmark_measures_each_objective(place: Path, quick: Quick) -> None:
    before = sorted(place.iterdir())
    result = quick(place, "benchmark", "--epochs", "2", "--repeats", "1")
    assert (result.returncode, result.stderr) == (0, "measurement 1 of 1\n")
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    medians = {name: float(median.split()[0]) for name, median, _, _ in rows}
    assert set(medians) == {
        *(f"{objective}, 100 fits" for objective in ("mse", "fo", "foce", "vi")),
        *("vi, 1 fit", "closed form", "torchdiffeq"),
    }
    for name, _, ratio, aim in rows:
        if name not in ("vi, 1 fit", "closed form"):  # what the others are compared with
            value, base = ratio.split(" x ")
            # both medians are printed to two decimals
            rounding = 0.005 * (1 / medians[name] + 1 / medians[base])
            assert float(value) == pytest.approx(medians[name] / medians[base], rel=2 * rounding, abs=0.01)
            assert aim
    assert sorted(place.iterdir()) == before


# -- bad input -------------------------------------------------------------------------------------

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
    "something else to do with data": (("data", "clean", "bad.csv"), "'clean'"),
    "column without a name": (("data", "check", "bad.csv", "--column", "dv"), "--column dv: expected NAME="),
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


# -- interruption ----------------------------------------------------------------------------------


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
