"""Which module may import which: the layering of the design, read off the sources."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import medcm_cli

PACKAGE = Path(medcm_cli.__file__).parent
# A unit is a module, or a package with all its modules. It imports only from the rows above its own; modules
# of one package may import each other.
LAYERS = (
    ("errors", "files", "medcm_cli", "numerics", "terminal"),
    ("pk", "runs"),
    ("data", "tables"),
    ("model",),
    ("haemophilia", "objectives"),
    ("posteriors", "training"),
    ("study",),
    ("analysis", "benchmark", "distances", "hydra_command", "patients"),
    ("dose_command", "figures", "fit_command", "posterior_command", "uncertainty"),
    ("predict_command", "provenance"),
    ("report",),
    ("cli",),
    ("__main__",),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}


def module_name(path: Path) -> str:
    parts = ("medcm_cli", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


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
    assert "medcm_cli.study.setup" in imported("medcm_cli.cli")  # inside a function
    assert "medcm_cli.pk.linear" in imported("medcm_cli.pk")  # a submodule by name
    assert "medcm_cli.errors" in imported("medcm_cli.runs.folder")
    assert "torch" in top_level("medcm_cli.training.loop")


def test_torchdiffeq_is_behind_pk() -> None:
    assert {unit(name) for name in SOURCES if "torchdiffeq" in top_level(name)} == {"pk"}


def test_hydra_is_where_configurations_are_composed() -> None:
    users = {unit(name) for name in SOURCES if top_level(name) & {"hydra", "omegaconf"}}
    assert users == {*("study", "hydra_command", "fit_command", "posterior_command", "benchmark")}


@pytest.mark.parametrize(
    "name", ["medcm_cli.training.loss", "medcm_cli.training.loop", "medcm_cli.training.results"]
)
def test_the_training_loop_names_no_objective(name: str) -> None:
    assert {other for other in ours(name) if unit(other) == "objectives"} == {"medcm_cli.objectives.base"}
    text = SOURCES[name].read_text(encoding="utf-8").lower()
    tree = ast.parse(text)
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value != ""}
    assert not words & {"mse", "fo", "foce", "vi"}


@pytest.mark.parametrize(
    "name",
    ["runs.folder", "runs.summary", "tables", "files", "terminal", "errors", "cli", "figures.plot", "report"],
)
def test_what_only_reads_files_imports_no_torch(name: str) -> None:
    assert "torch" not in top_level(f"medcm_cli.{name}")


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The outside packages that are loaded once a module is, each in an interpreter of its own."""
    program = "import sys, importlib; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", program, f"medcm_cli.{name}"], stdout=subprocess.PIPE, text=True
        )
        for name in ("runs", "tables", "cli")
    }
    return {name: set(process.communicate(timeout=120)[0].split()) for name, process in running.items()}


@pytest.mark.parametrize(("name", "needs"), [("runs", "pyarrow"), ("tables", "pandas"), ("cli", "rich")])
def test_what_only_reads_files_does_not_wait_for_torch(
    loaded: dict[str, set[str]], name: str, needs: str
) -> None:
    assert needs in loaded[name]
    assert "torch" not in loaded[name]
