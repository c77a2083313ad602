"""The command as a person runs it: alone, or forked from one that has imported torch."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import ran

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
    return ran([sys.executable, "-m", "medcm_cli", *arguments], folder, ENVIRONMENT, LIMIT)


# A command takes three seconds to import torch. This program does it once and forks for each command that it
# reads, which then runs as if it had been started alone; it prints the process's number and, when asked, its
# exit code.
PRELOADED = """
import json, os, sys, traceback
import scipy.interpolate, scipy.stats  # which some commands import when they need them
import torch._dynamo  # which torch imports with the first optimiser
from medcm_cli import cli, quantities
from medcm_cli.commands import fit
from medcm_cli.report import tables
from medcm_cli.study import job, workers

quantities.parsed("mg")  # loads pint

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


def succeeded(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines of stdout of a command that worked, and was quiet on stderr."""
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", result.stderr
    assert "\x1b" not in result.stdout
    return result.stdout.splitlines()


def statuses(folder: Path) -> dict[Path, str]:
    """Status of every run below a folder; fails where a record is not whole."""
    return {path.parent: json.loads(path.read_text())["status"] for path in sorted(folder.rglob("run.json"))}
