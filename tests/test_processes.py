"""Processes beside this one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT

PROGRAM = """
import multiprocessing, os, time
from medcm_cli.processes import follow_parent

def child():
    follow_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    started = multiprocessing.get_context("spawn").Process(target=child)
    started.start()
    started.join()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")
def test_a_process_ends_with_its_parent_which_nothing_warns(tmp_path: Path) -> None:
    """Ctrl-C, which reaches every process of a terminal, is the parent's business alone."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, signal.SIGINT)
        time.sleep(0.2)
        assert running(child)
        parent.kill()
    deadline = time.monotonic() + 20
    while running(child):
        assert time.monotonic() < deadline, "it outlives its parent"
        time.sleep(0.01)


def running(process: int) -> bool:
    """Not gone, and no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


FREED = """
import resource, sys
import torch
from medcm_cli.processes import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):  # until it has come to rest
    torch.ones(2**24)  # 64 MiB
before = faults()
for _ in range(10):
    torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="how memory is given back is asked of Linux alone")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, check=True).stdout)
        for how in ("kept", "as it is")
    }
    if faults["as it is"] < 10:
        pytest.skip("this C library keeps large blocks by itself")
    assert faults["kept"] < faults["as it is"] / 5
