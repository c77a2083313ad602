"""Batches are taken by one process of all that work on a study."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest

from medcm_cli import runs
from medcm_cli.runs.claims import PREFIX, Claim
from medcm_cli.study.queue import Batch, Queue, Work

FIRST = runs.Address("default", "simulated", "vi", "additive", 0.1, "default", 1, 1)
RECORDS = [
    runs.Record("running", replace(FIRST, replicate=number), f"hash{number}", {}, {}, None, 0, {})
    for number in range(1, 7)
]


def made(root: Path, *parts: Sequence[int], overwrite: bool = False) -> Queue:
    config = {"outputs": str(root), "epochs": 100, "overwrite": overwrite}
    return Queue([Work(config, [[RECORDS[number - 1] for number in part] for part in parts])])


def replicates(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [record.address.replicate for record in batch.records]


def theirs(root: Path, *numbers: int) -> Path:
    """What a process of another machine has in training."""
    path = FIRST.method_folder(root) / f"{PREFIX}elsewhere-{numbers[0]}-1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    fits = tuple(f"fold=01/replicate={number}" for number in numbers)
    path.write_text(json.dumps(asdict(Claim(fits, 100, "elsewhere", 1, "node2"))))
    return path


def finished(root: Path, number: int) -> None:
    table = pa.table({"epoch": [0, 100], "objective_value": [1.0, 0.0], "rmse": [1.0, 1.0]})
    record = replace(RECORDS[number - 1], status="complete", tables=["history"])
    runs.finish(root, record, {"history": table})


def test_batches_come_once_and_the_largest_first(tmp_path: Path) -> None:
    with made(tmp_path, [1], [2, 3], [4, 5, 6]) as ours, made(tmp_path, [5, 6]) as others:
        assert ours.fits == 6
        batches = [ours.take(wait=False) for _ in range(3)]
        assert [replicates(batch) for batch in batches] == [[4, 5, 6], [2, 3], [1]]
        assert [batch.number for batch in batches if batch] == [0, 1, 2]
        assert ours.take(wait=True) is None
        assert others.take(wait=False) is None
        assert others.fits == 2
    with others:
        assert replicates(others.take(wait=False)) == [5, 6]
    assert not list(tmp_path.rglob(".*"))


def test_what_others_have_comes_last(tmp_path: Path) -> None:
    them = theirs(tmp_path, 1, 4)
    with made(tmp_path, [1, 2], [3, 4], [5, 6]) as ours:
        assert [replicates(ours.take(wait=False)) for _ in range(3)] == [[2], [3], [5, 6]]
        assert ours.take(wait=False) is None
        assert ours.fits == 2
        them.unlink()
        assert [replicates(ours.take(wait=False)) for _ in range(2)] == [[1], [4]]


def test_who_has_nothing_else_to_do_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    them = theirs(tmp_path, 1)
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            them.unlink()

    monkeypatch.setattr("time.sleep", sleep)
    with made(tmp_path, [1]) as ours:
        assert replicates(ours.take(wait=True)) == [1]
    assert len(pauses) == 3


def test_what_others_finish_meanwhile_is_not_trained_again(tmp_path: Path) -> None:
    them = theirs(tmp_path, 1, 2)
    with made(tmp_path, [1, 2], [3]) as ours:
        assert replicates(ours.take(wait=False)) == [3]
        finished(tmp_path, 1)
        them.unlink()
        assert replicates(ours.take(wait=False)) == [2]
    with made(tmp_path, [1]) as ours:
        assert ours.take(wait=True) is None
    with made(tmp_path, [1], overwrite=True) as ours:
        assert replicates(ours.take(wait=False)) == [1]


def test_a_fit_of_another_configuration_or_damaged_is_none_that_is_finished(tmp_path: Path) -> None:
    finished(tmp_path, 1)
    finished(tmp_path, 2)
    (RECORDS[1].address.folder(tmp_path) / "history.parquet").write_bytes(b"damaged")
    with made(tmp_path, [1, 2]) as ours:
        ours._waiting[0][1][0] = replace(RECORDS[0], config_hash="another")
        assert replicates(ours.take(wait=False)) == [1, 2]
