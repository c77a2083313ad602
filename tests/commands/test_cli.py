"""The command as a person runs it: what it prints and its exit codes."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest

from tests.commands.program import ENVIRONMENT, SHORT, SMALL, Quick, linux, medcm, statuses, succeeded
from tests.commands.test_bad_input import EVENTS


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
        pytest.param("medcm fit obj", {"objective="}, marks=pytest.mark.slow),
        ("medcm summarize out", set()),
        pytest.param("medcm posterior popu", {"population="}, marks=pytest.mark.slow),
        ("medcm help d", {"data", "methods"}),
        pytest.param("medcm fit objectivev err", set(), marks=pytest.mark.slow),
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
    assert sorted(line.split(" in ")[0] for line in lines) == ["fo: 4 fits", "mse: 4 fits"]
    found = statuses(place / "outputs" / "sweep")
    assert set(found.values()) == {"complete"}
    assert {tuple(part.partition("=")[2] for part in folder.parts[-6:]) for folder in found} == {
        (objective, "additive", "0.1", "checkpoint_every-2+epochs-4", f"0{fold}", f"{replicate}")
        for objective in ("mse", "fo")
        for fold in (1, 2)
        for replicate in (1, 2)
    }


def test_a_missing_file_of_one_job(place: Path, quick: Quick) -> None:
    options = [option for option in SHORT if "path" not in option]
    rest = ("objective=fo", "study=one", *options)
    result = quick(place, "fit", "-m", "dataset.path=absent,data", "variant=${dataset.path}", *rest)
    assert result.returncode == 3
    assert result.stdout.startswith("fo: 1 fit in ")
    *_, listed, last = result.stderr.splitlines()
    assert listed.startswith("  dataset.path=absent: dataset.path=absent: has neither")
    assert last == "medcm: 1 of 2 jobs of the multirun failed"


def test_an_option_of_one_job_is_refused_before_any_is_trained(place: Path, quick: Quick) -> None:
    result = quick(place, "fit", "-m", "redraws=3,-1", "objective=fo", "study=none", *SHORT)
    assert result.returncode == 2
    assert result.stderr == "medcm: redraws is -1; expected a whole number from 0 to 1000\n"
    assert not list((place / "outputs" / "none").rglob("run.json"))


@pytest.mark.parametrize("flags", [(), ("-m",)], ids=["one job", "multirun"])
def test_only_results_are_left_behind(
    place: Path, quick: Quick, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """No logs and no records of Hydra's own in the working folder."""
    succeeded(quick(tmp_path, "fit", *flags, "objective=mse", *SHORT, f"dataset.path={place / 'data'}"))
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["default"]


@pytest.mark.slow
def test_options_without_a_folder_of_their_own_are_variants(place: Path, quick: Quick) -> None:
    """Sweeps of them do not collide; a long one is shortened; brackets are no markup."""
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
    assert "network.branches-inputs-weight,hidden-3" in shown
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
        (["fit", "--help"], ["objective: agq, fo, foce, focei, iw, laplace, mse, saem, vi", "epochs: 2000"]),
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


def test_a_cohort_has_as_many_patients_as_are_asked_for(place: Path, quick: Quick) -> None:
    """Also as many as the simulation study has by default."""
    succeeded(quick(place, "simulate", "--cohort", "prophylaxis", "--n", "500", "--out", "many"))
    assert pd.read_csv(place / "many" / "events.csv")["id"].nunique() == 500


IN_IU = ("--amount-unit", "IU", "--level-unit", "IU/mL")


def test_a_synthetic_cohort_is_written_and_nothing_else_replaced(place: Path, quick: Quick) -> None:
    arguments = ("simulate", "--cohort", "prophylaxis", "--n", "40", "--out", "cohort")
    assert "synthetic prophylaxis" in succeeded(quick(place, *arguments))[-1]
    first = (place / "cohort" / "events.csv").read_bytes()
    shown = "\n".join(succeeded(quick(place, "data", "check", "cohort/events.csv", *IN_IU)))
    assert "| subjects " in shown
    assert "missing 65.0 %" in shown  # VWF:Ag
    assert quick(place, *arguments).returncode == 2
    succeeded(quick(place, *arguments, "--overwrite", "--complete"))
    lines = succeeded(quick(place, "data", "check", "cohort/events.csv", *IN_IU, "--covariate", "vwf"))
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
    assert shown["covariate wt, -"] == "70"
    assert not any("vwf" in label for label in shown)
    assert lines[-1] == "clinic.csv: no fault found"
    assert sorted(place.iterdir()) == before


@pytest.mark.slow
def test_benchmark_measures_each_objective(place: Path, quick: Quick) -> None:
    before = sorted(place.iterdir())
    result = quick(place, "benchmark", "--epochs", "2", "--repeats", "1")
    assert (result.returncode, result.stderr) == (0, "measurement 1 of 1\n")
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    medians = {name: float(median.split()[0]) for name, median, _, _ in rows}
    assert set(medians) == {
        *(f"{objective}, 100 fits" for objective in ("mse", "fo", "foce", "vi", "iw", "focei", "laplace")),
        *(f"{objective}, 10 fits, to their ends" for objective in ("vi", "saem")),
        *("foce, implicit, combined, 100 fits", "vi, 100 fits, kept on disk"),
        *("vi, 1 fit", "vi, 1 fit, padded", "vi, 1 fit, ragged", "closed form", "torchdiffeq"),
    }
    compared = {ratio.split(" x ")[1] for _, _, ratio, _ in rows if ratio}
    for name, _, ratio, aim in rows:
        if ratio or name not in compared:
            value, base = ratio.split(" x ")
            # both medians are printed to two decimals
            rounding = 0.005 * (1 / medians[name] + 1 / medians[base])
            assert float(value) == pytest.approx(medians[name] / medians[base], rel=2 * rounding, abs=0.01)
            assert aim
    assert sorted(place.iterdir()) == before
