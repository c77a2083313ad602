"""What answers at once: a command does not import torch before it has something to compute."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medcm_cli.cli import COMMANDS

# Runs a command, and says on a last line of stdout which packages it has imported.
PROGRAM = """
import sys
from medcm_cli.cli import main
try:
    main()
finally:
    print()
    print(*{name.partition(".")[0] for name in sys.modules})
"""
COMPOSED = ("fit", "posterior")
FAULTS = [
    "epoch=3",
    "+epoch=3",
    "objective.sample=2",
    "objective=vii",
    "-m objective=fo,vii",
    "fold=0",
    "fold=[1",
    "epochs=0",
    "dtype=float16",
    "dataset=table",
    "--epochs 3",
    "-cn as_published",
    "-cd nowhere",
]


def run(folder: Path, line: str) -> tuple[int, str, set[str]]:
    """Exit code, what was said, and the outside packages that were imported."""
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *line.split()],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said, _, imported = done.stdout.rstrip("\n").rpartition("\n")
    return done.returncode, said + done.stderr, set(imported.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_what_it_shows_and_no_more(tmp_path: Path, command: str) -> None:
    code, said, imported = run(tmp_path, f"{command} --help")
    assert code == 0
    assert f"medcm {command}" in said
    assert "rich" in imported
    assert not imported & {"torch", "pandas", "scipy", "matplotlib", "pyarrow", "jax"}
    assert ("hydra" in imported) == (command in COMPOSED)


@pytest.mark.parametrize("command", COMPOSED)
def test_a_configuration_is_printed_without_torch(tmp_path: Path, command: str) -> None:
    code, said, imported = run(tmp_path, f"{command} --cfg job error=combined")
    assert code == 0
    assert "- proportional" in said
    assert "hydra" in imported
    assert "torch" not in imported


@pytest.mark.parametrize(
    "fault", [f if n % 3 == 0 else pytest.param(f, marks=pytest.mark.slow) for n, f in enumerate(FAULTS)]
)
def test_a_fault_of_the_configuration_is_found_without_torch(tmp_path: Path, fault: str) -> None:
    code, said, imported = run(tmp_path, f"fit {fault}")
    assert code == 2
    assert len(said.strip().splitlines()) == 1
    assert "hydra" in imported
    assert "torch" not in imported


@pytest.mark.parametrize(
    "fault",
    [
        "draws=2",
        "run=x pk=one_compartment",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("draw=3", "error=combine")),
    ],
)
def test_so_is_one_of_a_posterior(tmp_path: Path, fault: str) -> None:
    code, _, imported = run(tmp_path, f"posterior {fault}")
    assert code == 2
    assert not imported & {"torch", "jax"}


@pytest.mark.slow
def test_a_fit_imports_torch(tmp_path: Path) -> None:
    """A test of the tests above: what is imported is seen."""
    code, said, imported = run(tmp_path, "fit dataset.path=absent")
    assert code == 2
    assert "absent" in said
    assert "torch" in imported
