"""A program that forks for each command, and a place with simulated patients and a fit."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.program import ENVIRONMENT, PRELOADED, SHORT, SMALL, Quick, succeeded


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="module")
def place(quick: Quick, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small data set and one fit of it."""
    folder = tmp_path_factory.mktemp("cli")
    assert succeeded(quick(folder, "simulate", *SMALL, "--out", "data")) == [
        "30 patients and 3 folds -> data"
    ]
    (line,) = succeeded(quick(folder, "fit", "objective=fo", "variant=first", *SHORT))
    assert line.startswith("fo: 1 fit in ")
    assert line.endswith(", 0 failed -> outputs/default")
    return folder
