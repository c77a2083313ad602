"""A batch in training, kept on disk now and then, so that a process that ends early loses little.

One npz file a batch, which is read without pickle. Its member ``about`` holds JSON: what the batch is, and
the numbers of its ``Reached``; the others are the arrays.
"""

import json
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcm_cli.files import from_json, remove, replaced

_FIRST = 0.5  # s of training before anything is kept
_SHARE = 0.01  # of the time, at most, is spent on keeping
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)


@dataclass(frozen=True)
class Reached:
    """How far a batch is: ``numbers``, which JSON can hold, and ``arrays``."""

    numbers: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]


class Kept:
    """The file ``path`` of the batch that ``about`` describes, in values that JSON can hold."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path, self._about = path, about
        self._next = time.perf_counter() + _FIRST

    @property
    def due(self) -> bool:
        """Whether it costs little to write again."""
        return time.perf_counter() >= self._next

    @property
    def exists(self) -> bool:
        """Whether anything is kept."""
        return self._path.is_file()

    def write(self, reached: Reached) -> None:
        """Replace what was kept before."""
        started = time.perf_counter()
        about = json.dumps({"batch": self._about, "numbers": reached.numbers})
        with replaced(self._path) as partial, partial.open("wb") as file:
            arrays = {"about": np.frombuffer(about.encode(), dtype=np.uint8), **reached.arrays}
            np.savez(file, **arrays)  # type: ignore[arg-type]
        now = time.perf_counter()
        self._next = now + (now - started) / _SHARE

    def read(self) -> Reached | None:
        """What was kept, None where there is nothing, or it is damaged or of another batch."""
        found = _content(self._path, self._about)
        if found is None or found[0]["batch"] != self._about:
            return None
        return Reached(found[0]["numbers"], found[1])

    def remove(self) -> None:
        """The batch is complete."""
        remove(self._path)


def batch_of(path: Path) -> Any:
    """Which batch a file is of (``Kept``), None where it cannot be read."""
    found = _content(path)
    return None if found is None else found[0]["batch"]


def _content(path: Path, batch: Any = None) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
    """What a file is about and, where it is of ``batch``, its arrays; None where it cannot be read."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            read = from_json(file["about"].tobytes(), path)
            about = {key: read[key] for key in ("batch", "numbers")}
            return about, {name: file[name] for name in file.files} if about["batch"] == batch else {}
    except _DAMAGED:
        return None
