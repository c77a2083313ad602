"""Which module may import which: the layering of the design, read off the sources."""

import ast
import functools
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import medcm_cli

PACKAGE = Path(medcm_cli.__file__).parent
# The rooms from the bottom to the top. A room imports only from the rows above its own, and its own modules
# freely.
LAYERS = (
    ("medcm_cli", "errors"),  # medcm_cli: the package itself, its version
    ("files", "checks", "processes", "quantities", "numerics"),
    ("pk", "runs"),
    ("data",),
    ("model",),
    ("objectives", "haemophilia"),
    ("training", "posteriors"),
    ("study",),
    ("analysis", "patients"),
    ("report",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}


def module_name(path: Path) -> str:
    parts = ("medcm_cli", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imported(name: str) -> set[str]:
    """Every module that a module imports, inside functions too; names of submodules are resolved."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            base = str(node.module)
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner & set(SOURCES)
            if not inner <= set(SOURCES):
                found.add(base)
    return found


def unit(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def ours(name: str) -> set[str]:
    return {other for other in imported(name) if other.split(".")[0] == "medcm_cli"}


def top_level(name: str) -> set[str]:
    return {other.split(".")[0] for other in imported(name)}


def test_every_module_has_a_layer() -> None:
    assert len(SOURCES) > 20
    assert {unit(name) for name in SOURCES} == set(RANK)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_to_lower_layers(name: str) -> None:
    assert ours(name) <= set(SOURCES)
    wrong = {
        other for other in ours(name) if unit(other) != unit(name) and RANK[unit(other)] >= RANK[unit(name)]
    }
    assert not wrong


def test_no_cycles() -> None:
    graph = {name: ours(name) - {name} for name in SOURCES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle
    assert set(order) == set(SOURCES)


def test_the_reader_of_imports_sees_what_is_there() -> None:
    """A test of the tests above: known imports of each kind are found."""
    assert "medcm_cli.study.job" in imported("medcm_cli.commands.fit")  # inside a function
    assert "medcm_cli.pk.linear" in imported("medcm_cli.pk")  # a submodule by name
    assert "medcm_cli.errors" in imported("medcm_cli.runs.folder")
    assert "torch" in top_level("medcm_cli.training.loop")


@pytest.mark.parametrize("name", [name for name in SOURCES if unit(name) != "haemophilia"])
def test_no_other_room_knows_a_disease(name: str) -> None:
    text = SOURCES[name].read_text(encoding="utf-8")
    assert not re.search(r"\bIU\b|\bVWF|\bvwf|factor VIII", text)


# Each outside package stands behind one door.
DOORS = {
    "torchdiffeq": ("pk",),
    "pint": ("quantities",),
    "hydra": ("study", "commands"),
    "omegaconf": ("study", "commands"),
    "matplotlib": ("report.figures",),
    "argparse": ("cli", "commands"),
    "rich": ("cli", "commands"),
}


@pytest.mark.parametrize("package", DOORS)
def test_an_outside_package_stands_behind_one_door(package: str) -> None:
    users = {name.removeprefix("medcm_cli.") for name in SOURCES if package in top_level(name)}
    assert users
    doors = tuple(f"{door}." for door in DOORS[package])
    assert not {name for name in users if not f"{name}.".startswith(doors)}


@pytest.mark.parametrize(
    "name", ["medcm_cli.training.loss", "medcm_cli.training.loop", "medcm_cli.training.results"]
)
def test_the_training_loop_names_no_objective(name: str) -> None:
    assert {other for other in ours(name) if unit(other) == "objectives"} == {"medcm_cli.objectives.base"}
    text = SOURCES[name].read_text(encoding="utf-8").lower()
    tree = ast.parse(text)
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    words |= {value for value in constants if isinstance(value, str)}
    assert not words & {"mse", "fo", "foce", "vi"}


NEEDS = (
    ("runs.summary", "pyarrow"),
    ("runs.progress", "pyarrow"),
    ("report.tables", "pandas"),
    ("report.page", "matplotlib"),
    ("study.options", "hydra"),
    ("study.plan", "hydra"),
    ("study.mixture", "pyarrow"),
    ("commands.terminal", "rich"),
)


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The outside packages that are loaded once a module and those before it are."""
    program = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'medcm_cli.{name}')\n"
        "    print(*sys.modules)"
    )
    command = [sys.executable, "-c", program, *(name for name, _ in NEEDS)]
    lines = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    ).stdout.splitlines()
    return {name: set(line.split()) for (name, _), line in zip(NEEDS, lines, strict=True)}


@pytest.mark.parametrize(("name", "needs"), NEEDS)
def test_what_only_reads_files_does_not_wait_for_torch(
    loaded: dict[str, set[str]], name: str, needs: str
) -> None:
    assert needs in loaded[name]
    assert "torch" not in loaded[name]
