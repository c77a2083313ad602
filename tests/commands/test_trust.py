"""Every command that reads results, on fits whose run.json would run code: none does, and each says in one
line which file it is and what the file names."""

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.commands.program import SHORT, Quick, succeeded
from tests.helpers import write_draws
from tests.study.payloads import PLACES, calls

MANY = {
    "summarize": ("summarize", "bad"),
    "plot": ("plot", "bad", "--format", "svg"),
    "report": ("report", "bad"),
    "uncertainty": ("uncertainty", "bad"),
    "score": ("score", "bad"),
    "calibrate": ("calibrate", "bad", "--sets", "2"),
    "distance": ("distance", "draws", "bad"),
}
ONE = {
    "predict": ("predict", "--patient", "patient.csv", "--draws", "50", "--run"),
    "dose": ("dose", "--patient", "patient.csv", "--target", "trough>=1 IU/dL", "--draws", "50", "--run"),
    "posterior": ("posterior", "warmup=5", "draws=4", "chains=1"),
}


def drawing(command: str) -> Any:
    """Slow where it draws figures."""
    return pytest.param(command, marks=pytest.mark.slow) if command in ("plot", "report") else command


PATIENT = "id,time,evid,amt,duration,dv,wt,vwf\nA,0,1,2000,0.1,.,70,100\nA,6,0,.,.,0.4,70,100\n"


@pytest.fixture(scope="module")
def fitted(place: Path, quick: Quick) -> Path:
    """The folder of a fit by vi, with draws of its subjects, in ``good``; of its copies, each with another
    configuration, in ``bad``; and a patient."""
    (place / "patient.csv").write_text(PATIENT)
    succeeded(quick(place, "fit", "objective=vi", "network=none", "outputs=good", *SHORT))
    write_draws(place / "draws", place / "good")
    (good,) = place.glob("good/default/*/objective=vi/*/*/*/fold=01/replicate=1")
    record = json.loads((good / "run.json").read_text())
    for number, (put, call) in enumerate(_pairs(place / "executed")):
        _copy(good, place / "bad", f"v{number}", {**record, "config": put(record["config"], call)})
    return good


def _pairs(marker: Path) -> list[tuple[Any, Any]]:
    """Every call, each in another place, and every place."""
    found = calls(marker)
    places = itertools.cycle(PLACES.values())
    return [(next(places), call) for call in [*found.values(), found["write"]]]


def _copy(good: Path, root: Path, variant: str, record: Mapping[str, Any]) -> None:
    address = {**record["address"], "variant": variant}
    parts = [part if not part.startswith("variant=") else f"variant={variant}" for part in good.parts[-8:]]
    shutil.copytree(good, root.joinpath(*parts))
    (root.joinpath(*parts) / "run.json").write_text(json.dumps({**record, "address": address}))


@pytest.mark.parametrize("command", [drawing(name) for name in MANY])
def test_a_command_on_many_fits_runs_none_of_their_code(
    fitted: Path, place: Path, quick: Quick, command: str
) -> None:
    assert fitted.is_dir()
    said = quick(place, *MANY[command])
    assert not (place / "executed").exists()
    assert "internal error" not in said.stderr
    assert "Traceback" not in said.stderr
    shown = said.stderr
    if command == "summarize":
        assert said.returncode == 0  # it reads numbers alone
        return
    if command == "report":
        shown = (place / "bad" / "report.html").read_text().replace("&#39;", "'")
        assert said.returncode == 0
    elif command == "plot":
        assert said.returncode == 0  # and draws what needs no model
    else:
        assert said.returncode == 2
    assert "variant=v0/fold=01/replicate=1/run.json: " in shown
    assert "optimizer._target_ is 'os.system', which is not medcm's own" in shown
    assert "--trust" in shown


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ONE)
def test_a_command_on_one_fit_runs_none_of_its_code(
    fitted: Path, place: Path, quick: Quick, command: str, every: int
) -> None:
    """:param every: how many of the fits are tried."""
    assert fitted.is_dir()
    runs = sorted(path.parent for path in (place / "bad").rglob("run.json"))
    assert len(runs) == len(_pairs(place / "executed"))
    for run in runs[::every]:
        where = [f"run='{run.relative_to(place)}'"] if command == "posterior" else [str(run)]
        said = quick(place, *ONE[command], *where)
        assert said.returncode == 2
        assert said.stdout == ""
        (line,) = said.stderr.splitlines()
        assert f"{run.relative_to(place)}/run.json: " in line
        assert "--trust" in line
        assert not (place / "executed").exists()


@pytest.mark.parametrize("command", [drawing(name) for name in {**MANY, **ONE} if name != "summarize"])
def test_with_trust_the_code_is_run(fitted: Path, place: Path, quick: Quick, command: str) -> None:
    """A class of somebody's own, such as an objective: here one that leaves a trace."""
    record = json.loads((fitted / "run.json").read_text())
    marker = place / f"trusted-{command}"
    call = {
        "_target_": "medcm_cli.files.write_text",
        "_args_": [{"_target_": "pathlib.Path", "_args_": [str(marker)]}, ""],
    }
    root = place / f"own-{command}"
    _copy(fitted, root, "own", {**record, "config": PLACES["network.branches"](record["config"], call)})
    if command in MANY:
        words = [str(root.name) if word == "bad" else word for word in MANY[command]] + ["--trust"]
    else:
        (run,) = (str(path.parent.relative_to(place)) for path in root.rglob("run.json"))
        words = [*ONE[command], f"run='{run}'" if command == "posterior" else run]
        words.append("trust=true" if command == "posterior" else "--trust")
    quick(place, *words)  # which then ends one way or another, for the call gives no branches
    assert marker.exists()
