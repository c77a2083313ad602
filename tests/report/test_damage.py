"""Damaged run folders are named, and the rest counted."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from medcm_cli.errors import InputError
from medcm_cli.report.tables import write
from medcm_cli.runs.summary import summarize
from tests.report.fits import invent, only, write_fit


def _truncated(folder: Path) -> None:
    path = folder / "history.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def _edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(content | changes))

    return edit


def _history(table: dict[str, object]) -> Callable[[Path], None]:
    return lambda folder: pa.parquet.write_table(pa.table(table), folder / "history.parquet")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "history cut off": _truncated,
    "history empty": lambda folder: (folder / "history.parquet").write_bytes(b""),
    "history absent": lambda folder: (folder / "history.parquet").unlink(),
    "history without rows": _history({"epoch": [], "objective_value": [], "rmse": []}),
    "history without rmse": _history({"epoch": [0, 2], "objective_value": [1.0, 2.0]}),
    "history of words": _history({"epoch": ["a", "b"], "objective_value": ["a", "b"], "rmse": ["a", "b"]}),
    "record of garbage": lambda folder: (folder / "run.json").write_text("garbage"),
    "record empty": lambda folder: (folder / "run.json").write_text(""),
    "record of another program": lambda folder: (folder / "run.json").write_text('{"name": "x"}'),
    "record without dataset": _edited(config={}),
    "record with a list for configuration": _edited(config=[1]),
    "record with a wrong truth": _edited(truth={"omega": [[1, 2, 3]], "sigma": {}}),
    "record with words for seconds": _edited(seconds="soon"),
    "record with a number for sigma": _edited(truth={"omega": None, "sigma": 3}),
    "record with nonsense for a scale": _edited(config={"dataset": {"level_unit": "x", "level_scale": [1]}}),
    "history with an epoch that is no number": _history(
        {"epoch": [0.0, float("nan")], "objective_value": [1.0, 2.0], "rmse": [1.0, 2.0]}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder_is_named_and_the_rest_counted(tmp_path: Path, damage: str) -> None:
    write_fit(tmp_path, invent(1), replicate=1)
    folder = write_fit(tmp_path, invent(2), replicate=2)
    write_fit(tmp_path, invent(3), replicate=3)
    DAMAGE[damage](folder)
    summary = summarize([tmp_path])
    assert only(summary.table)["complete"] == 2
    (reason,) = summary.skipped
    assert str(folder) in reason
    assert "\n" not in reason


def test_nothing_below_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        summarize([tmp_path])
    with pytest.raises(InputError, match="no such folder"):
        summarize([tmp_path / "absent"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        summarize([tmp_path / "file"])


def test_only_damaged_folders_are_no_internal_fault(tmp_path: Path) -> None:
    """Either nothing is written, or tables without rows."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("garbage")
    with contextlib.suppress(InputError):
        summary = summarize([tmp_path])
        assert len(summary.skipped) == 2
        assert summary.table.empty
        write(summary, tmp_path / "out")
