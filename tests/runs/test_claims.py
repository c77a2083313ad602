"""A fit is one process's at a time; what a process that is no more had claimed is free again."""

import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from medcm_cli.files import PLACE
from medcm_cli.runs import claims
from medcm_cli.runs.claims import PREFIX, SILENT, Claim, Claims, read_claims

FITS = ("fold=01/replicate=1", "fold=01/replicate=2", "fold=02/replicate=1")


@pytest.fixture
def ours() -> Iterator[Claims]:
    with Claims() as held:
        yield held


def other(folder: Path, *fits: str, place: str = "elsewhere", process: int = 1, age: float = 0.0) -> Path:
    """What a process of another machine has written."""
    path = folder / f"{PREFIX}{place}-{process}-1.json"
    path.write_text(json.dumps(asdict(Claim(fits, 100, place, process, "node2", "7_3", 25, 2.5))))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_nobody_has_is_taken_and_given_back(tmp_path: Path, ours: Claims) -> None:
    path, others = ours.take(tmp_path, FITS, 100)
    assert path is not None
    assert others == set()
    ((found, claim, _),) = read_claims(tmp_path)
    assert (found, claim.fits, claim.process) == (path, FITS, os.getpid())
    assert not claim.silent(0)
    ours.release(path)
    assert list(tmp_path.iterdir()) == []


def test_what_others_have_is_left_to_them(tmp_path: Path, ours: Claims) -> None:
    theirs = other(tmp_path, FITS[1], "fold=09/replicate=9")
    path, others = ours.take(tmp_path, FITS, 100)
    assert others == {FITS[1]}
    assert path is not None
    (mine,) = (claim for found, claim, _ in read_claims(tmp_path) if found == path)
    assert mine.fits == (FITS[0], FITS[2])
    assert ours.take(tmp_path, FITS[1:2], 100) == (None, {FITS[1]})
    theirs.unlink()
    assert ours.take(tmp_path, FITS[1:2], 100)[0] is not None


@pytest.mark.parametrize("age", [0.0, SILENT - 5])
def test_a_process_elsewhere_may_pause_between_words(tmp_path: Path, ours: Claims, age: float) -> None:
    other(tmp_path, *FITS, age=age)
    assert ours.take(tmp_path, FITS, 100) == (None, set(FITS))


def test_one_that_has_fallen_silent_has_nothing(tmp_path: Path, ours: Claims) -> None:
    theirs = other(tmp_path, *FITS, age=SILENT + 1)
    path, others = ours.take(tmp_path, FITS, 100)
    assert path is not None
    assert others == set()
    assert not theirs.exists()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_one_that_was_killed_here_is_known_to_be_no_more_at_once(tmp_path: Path, ours: Claims) -> None:
    path = other(tmp_path, *FITS, place=PLACE, process=_killed())
    assert ours.take(tmp_path, FITS, 100)[1] == set()
    assert not path.exists()


def _killed() -> int:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.kill()
    process.join()
    assert process.pid is not None
    return process.pid


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fits": 3}', '{"fits": ["a"], "unknown": 1}'])
def test_what_cannot_be_read_claims_nothing(tmp_path: Path, ours: Claims, text: str) -> None:
    (tmp_path / f"{PREFIX}elsewhere-1-1.json").write_text(text)
    assert ours.take(tmp_path, FITS, 100)[1] == set()


def test_words_are_repeated_and_say_how_far_a_batch_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_BEAT", 0.005)
    with Claims() as ours:
        path, _ = ours.take(tmp_path, FITS, 100)
        assert path is not None
        os.utime(path, (0, 0))
        ours.tell(path, 25)
        time.sleep(0.01)
        ours.tell(path, 50)
        deadline = time.monotonic() + 20
        while True:
            ((_, claim, written),) = read_claims(tmp_path)
            if claim.epoch == 50 and written > 0:
                break
            assert time.monotonic() < deadline
        assert claim.rate is not None
        assert 0 < claim.rate <= 25 / 0.01
    assert list(tmp_path.iterdir()) == []


def _grab(folder: Path, out: "SimpleQueue[list[str]]", together: Barrier) -> None:
    with Claims() as ours:
        together.wait()
        got = []
        for fit in FITS * 5:
            path, _ = ours.take(folder, [fit], 100)
            if path is not None:
                got.append(fit)
        out.put(got)
        together.wait()  # until all have asked


@pytest.mark.filterwarnings("ignore:.*fork")
def test_of_several_that_ask_at_once_one_gets_it(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    out: SimpleQueue[list[str]] = fork.SimpleQueue()
    together = fork.Barrier(8)
    started = [fork.Process(target=_grab, args=(tmp_path, out, together)) for _ in range(8)]
    for process in started:
        process.start()
    got = [out.get() for _ in started]
    for process in started:
        process.join()
    assert sorted(itertools.chain.from_iterable(got)) == sorted(FITS)
    assert not list(tmp_path.iterdir())
