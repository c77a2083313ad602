"""A batch whose process ended goes on where it was, to the same result bit by bit."""

import functools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Noise, Stream
from medcm_cli.objectives import Fo, Foce, Mse, Objective, Vi
from medcm_cli.training import kept as kept_module
from medcm_cli.training.course import Course
from medcm_cli.training.kept import Kept, Reached, batch_of
from medcm_cli.training.loop import train
from medcm_cli.training.steppers import MakeOptimizer
from medcm_cli.training.trained import Failure, Trained
from tests.helpers import make_events, make_population
from tests.training.test_loop import Poisoned

OBJECTIVES: dict[str, Objective] = {"mse": Mse(), "fo": Fo(), "foce": Foce(), "vi": Vi()}
STREAMS = [Stream(0, 1, replicate) for replicate in (1, 2, 3)]
ABOUT = {"fits": ["a", "b", "c"]}


@pytest.fixture(autouse=True)
def _always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "_FIRST", 0.0)
    monkeypatch.setattr(kept_module, "_SHARE", torch.inf)


class Killed(BaseException):
    """As a signal comes."""


def same(a: Trained, b: Trained) -> None:
    """To the last bit, but for the time that it took."""
    assert a.epochs == b.epochs
    assert a.failures == b.failures
    assert a.layout == b.layout
    for name in ("checkpoints", "objective", "unconverged", "redraws"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for one, other in ((a.state.trained, b.state.trained), (a.state.carried, b.state.carried)):
        assert set(one) == set(other)
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True)


def killed_after(epoch: int) -> Callable[[int, Tensor], None]:
    def progress(now: int, _: Tensor) -> None:
        if now >= epoch:
            raise Killed

    return progress


@pytest.mark.parametrize(
    ("name", "batch_subjects"),
    [
        *((name, None) for name in OBJECTIVES),
        ("mse", 4),
        *(pytest.param(name, 4, marks=pytest.mark.slow) for name in ("fo", "foce", "vi")),
    ],
)
def test_a_batch_that_was_killed_ends_as_if_it_had_not_been(
    model: Model, tmp_path: Path, name: str, batch_subjects: int | None
) -> None:
    """In the second of two blocks of random numbers, with folds of different sizes."""
    dtype = torch.float64 if batch_subjects else torch.float32
    everyone = Population.from_events(make_events(12, ragged=True), dtype)
    folds = [np.arange(12), np.arange(3, 10), np.arange(5)]
    adam = functools.partial(torch.optim.Adam, lr=0.02, fused=True)

    def run(progress: Callable[[int, Tensor], None] | None, kept: Kept | None) -> Trained:
        arguments = (model, OBJECTIVES[name], everyone.select(folds), STREAMS, adam)
        return train(*arguments, Course(32, 5, batch_subjects), dtype, progress, kept)

    whole = run(None, None)
    path = tmp_path / "kept.npz"
    for epoch in (10, 30):
        with pytest.raises(Killed):
            run(killed_after(epoch), Kept(path, ABOUT))
        found = Kept(path, ABOUT).read()
        assert found is not None
        assert found.numbers["epoch"] == epoch  # progress is told before the step that follows
    same(run(None, Kept(path, ABOUT)), whole)
    same(run(None, Kept(path, ABOUT)), whole)  # and once more, from the last epoch


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=0.01, centered=True, momentum=0.1),
    "nadam": functools.partial(torch.optim.NAdam, lr=0.01),
    "asgd": functools.partial(torch.optim.ASGD, lr=0.01),
    "rprop": functools.partial(torch.optim.Rprop, lr=0.01),
    "amsgrad": functools.partial(torch.optim.Adam, lr=0.01, amsgrad=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimiser_remembers_is_kept(model: Model, tmp_path: Path, name: str) -> None:
    arguments = (model, Fo(), make_population(6, 3), STREAMS, OPTIMIZERS[name])
    course = Course(20, 5)
    whole = train(*arguments, course, torch.float64)
    path = tmp_path / "kept.npz"
    with pytest.raises(Killed):
        train(*arguments, course, torch.float64, killed_after(10), Kept(path, ABOUT))
    assert path.exists()
    same(train(*arguments, course, torch.float64, None, Kept(path, ABOUT)), whole)


def test_a_fit_that_had_failed_stays_failed(model: Model, tmp_path: Path) -> None:
    """Its values stay those at which it failed."""
    population, counter = make_population(6, 3), [0]
    poisoned = Poisoned(Vi(), 1, counter, after=8)
    adam = functools.partial(torch.optim.Adam, lr=0.1)

    def run(progress: Callable[[int, Tensor], None] | None, kept: Kept | None) -> Trained:
        return train(model, poisoned, population, STREAMS, adam, Course(20, 5), torch.float64, progress, kept)

    whole = run(None, None)
    counter[0] = 0
    path = tmp_path / "kept.npz"
    with pytest.raises(Killed):
        run(killed_after(15), Kept(path, ABOUT))
    counter[0] = 0  # from here on nothing fails by itself
    again = run(None, Kept(path, ABOUT))
    assert again.failures == (None, Failure(8, "objective is not finite"), None)
    assert torch.equal(again.checkpoints, whole.checkpoints)
    assert torch.equal(again.objective[:, [0, 2]], whole.objective[:, [0, 2]])


REACHED = Reached({"epoch": 3}, {"flat": np.ones((2, 3), dtype=np.float32), "alive": np.array([True])})


def stored(path: Path, save: Callable[..., None], *arrays: Any, **named: Any) -> None:
    with path.open("wb") as file:
        save(file, *arrays, **named)


def changed(path: Path, about: dict[str, Any]) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "about"}
    np.savez(path, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"not an archive, though long enough"),
        lambda path: stored(path, np.save, np.ones(3)),
        lambda path: stored(path, np.save, np.array([{}], dtype=object)),  # a pickle
        lambda path: stored(path, np.savez, flat=np.ones(3)),
        lambda path: changed(path, {"batch": {"fits": ["a", "b"]}, "numbers": {}}),
        lambda path: changed(path, {"batch": ABOUT}),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=[
        "absent",
        "empty",
        "cut",
        "text",
        "array",
        "pickle",
        "other members",
        "other batch",
        "half",
        "folder",
    ],
)
def test_what_is_no_file_of_this_batch_is_ignored(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    path = tmp_path / "kept.npz"
    Kept(path, ABOUT).write(REACHED)
    assert batch_of(path) == ABOUT
    spoil(path)
    assert Kept(path, ABOUT).read() is None
    batch_of(path)


def test_every_flipped_bit_of_what_is_kept_is_noticed(tmp_path: Path) -> None:
    """Or makes no difference: what is read is what was written, or nothing."""
    path = tmp_path / "kept.npz"
    Kept(path, ABOUT).write(REACHED)
    whole = path.read_bytes()
    kept = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        found = Kept(path, ABOUT).read()
        if found is None:
            continue
        kept += 1
        assert found.numbers == REACHED.numbers
        for name, value in REACHED.arrays.items():
            if name in found.arrays:
                np.testing.assert_array_equal(found.arrays[name], value)
    assert kept < len(whole) / 2


def test_keeping_takes_two_percent_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of 10 ms, and a disk that takes 300 ms."""
    monkeypatch.undo()
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    save = np.savez

    def slow(*arguments: Any, **arrays: Any) -> None:
        now[0] += 0.3
        save(*arguments, **arrays)

    monkeypatch.setattr(np, "savez", slow)
    kept, written = Kept(tmp_path / "kept.npz", ABOUT), 0
    for _ in range(10_000):
        now[0] += 0.01
        if kept.due:
            kept.write(REACHED)
            written += 1
    assert written > 3
    assert 0.3 * (written - 1) <= 0.02 * now[0]


def test_it_is_an_archive_of_plain_arrays(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.npz", ABOUT)
    kept.write(REACHED)
    with zipfile.ZipFile(tmp_path / "kept.npz") as archive:
        assert sorted(archive.namelist()) == ["about.npy", "alive.npy", "flat.npy"]
    kept.remove()
    kept.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [0, 1, 24, 25, 26, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_random_numbers_go_on_where_they_were(before: int, dtype: torch.dtype) -> None:
    def noise() -> Noise:
        return Noise(STREAMS, (2, 5), [5, 3, 4], dtype)

    one, other = noise(), noise()
    for _ in range(before):
        one.draw()
    other.move_to(one.position())
    for _ in range(60):
        assert torch.equal(one.draw(), other.draw())
