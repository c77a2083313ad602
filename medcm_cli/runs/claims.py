"""Which fits are in training, by whom, and how far they are: of each batch a small file beside the folders of
its fits, written anew every few seconds by the process that answers for it.

Whoever wants to train a fit that somebody else has claimed waits until that one has let go of it, or has
fallen silent: so no fit is trained twice, and none is lost with a machine. Results do not depend on it: a fit
that two train all the same, as where files cannot be locked, is written whole by each.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medcm_cli.files import PLACE, alive, from_json, locked, remove, write_text

SILENT = 60.0  # s without a word, after which a process counts as gone
PREFIX = ".running-"
_BEAT = 5.0  # s from word to word
_LOCK = ".claiming"


@dataclass(frozen=True)
class Claim:
    """A batch in training. ``fits``: their folders below that of the method, as in fold=01/replicate=1."""

    fits: tuple[str, ...]
    epochs: int  # of the whole
    place: str = PLACE  # ``files.PLACE`` and the process there
    process: int = 0
    host: str = ""
    job: str = ""  # what a scheduler calls it
    epoch: int = 0  # reached
    rate: float | None = None  # epochs/s, since it began here

    def silent(self, since: float) -> bool:
        """Whether its process is no more. :param since: s since its last word."""
        return since > SILENT or (self.place == PLACE and not alive(self.process))


def read_claims(folder: Path) -> Iterator[tuple[Path, Claim, float]]:
    """The claims in the folder of a method: file, contents and when it was written, s since 1970 by the clock
    of the file system. What cannot be read is passed over."""
    for path in sorted(folder.glob(f"{PREFIX}*.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            content = from_json(path.read_text(encoding="utf-8"), path)
            yield path, Claim(**{**content, "fits": tuple(map(str, content["fits"]))}), path.stat().st_mtime


class Claims:
    """Those of this process. A context manager: leaving it gives all of them back."""

    def __init__(self) -> None:
        self._held: dict[Path, Claim] = {}
        self._began: dict[Path, tuple[int, float]] = {}  # first epoch that was told, and when
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._count = 0

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for path in list(self._held):
            self.release(path)

    def take(self, folder: Path, wanted: Sequence[str], epochs: int) -> tuple[Path | None, set[str]]:
        """Claim of the fits ``wanted`` those that nobody has.

        :returns: what to ``release``, None where there are none, and those that somebody has.
        """
        with locked(folder / _LOCK) as now:
            others: set[str] = set()
            for path, claim, written in read_claims(folder):
                common = set(claim.fits) & set(wanted)
                if common and claim.silent(now - written):
                    remove(path)
                else:
                    others |= common
            free = tuple(fit for fit in wanted if fit not in others)
            if not free:
                return None, others
            self._count += 1
            path = folder / f"{PREFIX}{PLACE}-{os.getpid()}-{self._count}.json"
            claim = Claim(free, epochs, PLACE, os.getpid(), platform.node(), _scheduled(os.environ))
            _write(path, claim)
        with self._guard:
            self._held[path] = claim
        if self._count == 1:
            threading.Thread(target=self._speak, daemon=True).start()
        return path, others

    def tell(self, path: Path, epoch: int) -> None:
        """How far a batch is."""
        now = time.monotonic()
        first, began = self._began.setdefault(path, (epoch, now))
        rate = (epoch - first) / (now - began) if epoch > first and now > began else None
        with self._guard:
            self._held[path] = replace(self._held[path], epoch=epoch, rate=rate)

    def release(self, path: Path) -> None:
        """A batch is done, or nobody's any more."""
        with self._guard:
            del self._held[path]
            remove(path)

    def _speak(self) -> None:
        while not self._over.wait(_BEAT):
            with self._guard:
                for path, claim in self._held.items():
                    with suppress(OSError):  # as on a full disk; training says so, where it matters
                        _write(path, claim)


def _write(path: Path, claim: Claim) -> None:
    write_text(path, json.dumps(asdict(claim)) + "\n")


def _scheduled(environment: Mapping[str, str]) -> str:
    """What Slurm calls the job that runs here; nothing where there is none."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    return environment.get("SLURM_JOB_ID", "")
