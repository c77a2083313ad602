"""How far a study is, by what is on disk."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.runs.claims import PREFIX, SILENT, Claim
from medcm_cli.runs.planned import FOLDER, plan, planned
from medcm_cli.runs.progress import Watch

FIRST = runs.Address("default", "simulated", "vi", "additive", 0.1, "default", 1, 1)
NESTED = replace(FIRST, objective="fo", fold=1, outer=1, inner=1)


def wrote(root: Path, status: str, fold: int, replicate: int, of: runs.Address = FIRST) -> Path:
    address = replace(of, fold=fold, replicate=replicate)
    runs.write_record(root, runs.Record(status, address, "x", {}, {}, None, 0, {}))
    return address.folder(root)


def claimed(root: Path, *fits: str, age: float = 0.0, rate: float | None = 20.0) -> Path:
    path = FIRST.method_folder(root) / f"{PREFIX}a-{len(fits)}-1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(Claim(fits, 100, "a", 1, "node2", "7_3", 60, rate))))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_planned_job_is_every_combination(tmp_path: Path) -> None:
    path = plan(tmp_path, FIRST, {"fold": [3, 1], "replicate": [1, 2]})
    assert path is not None
    assert path.parent == tmp_path / "default" / FOLDER
    method = "dataset=simulated/objective=vi/error=additive/lr=0.1/variant=default"
    fits = [f"fold={fold}/replicate={replicate}" for fold in ("03", "01") for replicate in (1, 2)]
    assert list(planned(path)) == [(method, fit) for fit in fits]
    assert plan(tmp_path, FIRST, {"fold": [3, 1], "replicate": [1, 2]}) is None
    nested = plan(tmp_path, NESTED, {"outer": [1], "inner": [2, 3], "replicate": [1]})
    assert nested is not None
    assert [fit for _, fit in planned(nested)] == [f"outer=01/inner=0{n}/replicate=1" for n in (2, 3)]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"axes": 3, "method": {}}', '{"axes": {"fold": ["a"]}}'])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json: is damaged"):
        list(planned(tmp_path / "x.json"))
    assert list(planned(tmp_path / "gone.json")) == []


def test_each_fit_is_counted_once_where_it_is(tmp_path: Path) -> None:
    plan(tmp_path, FIRST, {"fold": [1, 2, 3], "replicate": [1, 2]})
    plan(tmp_path, FIRST, {"fold": [3, 4], "replicate": [1]})
    wrote(tmp_path, "complete", 1, 1)
    wrote(tmp_path, "failed", 1, 2)
    wrote(tmp_path, "running", 2, 1)  # in training
    wrote(tmp_path, "running", 2, 2)  # begun, by a process that is no more
    wrote(tmp_path, "running", 9, 9)  # and this planned by nobody
    claimed(tmp_path, "fold=01/replicate=1", "fold=02/replicate=1", age=10)
    claimed(tmp_path, "fold=02/replicate=2", "fold=03/replicate=1", "x", age=SILENT + 5)
    (method,) = Watch([tmp_path]).look().methods
    assert method.folder == FIRST.method_folder(tmp_path)
    assert method.complete == {"fold=01/replicate=1"}
    assert method.failed == {"fold=01/replicate=2"}
    assert method.training == {"fold=02/replicate=1"}
    assert method.left == {
        *("fold=02/replicate=2", "fold=03/replicate=1", "fold=03/replicate=2"),
        *("fold=04/replicate=1", "fold=09/replicate=9"),
    }
    alive, dead = method.running
    assert (alive.silent, dead.silent) == (False, True)
    assert alive.left == pytest.approx(40 / 20)
    assert alive.since == pytest.approx(10, abs=2)


@pytest.mark.parametrize("below", ["", "default", "default/dataset=simulated/objective=vi"])
def test_any_folder_above_fits_will_do(tmp_path: Path, below: str) -> None:
    wrote(tmp_path, "complete", 1, 1)
    wrote(tmp_path, "complete", 1, 1, replace(NESTED, objective="vi"))
    (method,) = Watch([tmp_path / below, tmp_path]).look().methods
    assert method.complete == {"fold=01/replicate=1", "outer=01/inner=01/replicate=1"}


def test_what_has_changed_is_read_again(tmp_path: Path) -> None:
    folder = wrote(tmp_path, "running", 1, 1)
    watch = Watch([tmp_path])
    assert watch.look().methods[0].left == {"fold=01/replicate=1"}
    wrote(tmp_path, "complete", 1, 1)
    assert watch.look().methods[0].complete == {"fold=01/replicate=1"}
    (folder / "run.json").write_text("{")
    os.utime(folder / "run.json", (0, 0))
    seen = watch.look()
    assert seen.methods[0].left == {"fold=01/replicate=1"}
    assert len(seen.unread) == 1


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Watch([tmp_path / "absent"])


@pytest.mark.parametrize("text", ["{", "[]", '{"method": {}, "axes": {"fold": [1]}}', "\x00"])
def test_a_damaged_plan_is_named(tmp_path: Path, text: str) -> None:
    path = plan(tmp_path, FIRST, {"fold": [1, 2], "replicate": [1]})
    assert path is not None
    (path.parent / "other.json").write_text(text)
    found = Watch([tmp_path]).look()
    assert [len(method.wanted) for method in found.methods] == [2]
    (line,) = found.unread
    assert line.startswith(f"{path.parent / 'other.json'}: is damaged")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(InputError, match=r"a\.csv: is a file; expected a folder"):
        Watch([tmp_path / "a.csv"])
