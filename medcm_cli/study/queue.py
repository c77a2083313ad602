"""The batches of a job that wait to be trained, each taken by one process of all that work on the study."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.runs.claims import Claims
from medcm_cli.study.identity import Config

PAUSE = 1.0  # s between two looks at what others are training


@dataclass(frozen=True)
class Batch:
    """Fits that are trained together, which this process has claimed: ``claim``."""

    number: int
    records: list[runs.Record]
    claim: Path


class Queue:
    """Batches are taken from it, in order; what others have in training is left to them and comes last, for
    they may fall silent; what they finish meanwhile is dropped. A context manager: leaving it gives back what
    has been taken.
    """

    def __init__(self, config: Config, parts: Sequence[Sequence[runs.Record]]) -> None:
        self._root, self._epochs = Path(config["outputs"]), int(config["epochs"])
        self._again = bool(config["overwrite"])
        self._waiting = [list(part) for part in parts]
        self._claims = Claims()
        self._taken = 0

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *_: object) -> None:
        self._claims.__exit__()

    @property
    def fits(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting))

    def take(self, wait: bool) -> Batch | None:
        """The next batch; None where none is left or, unless it is to ``wait``, others have all of them."""
        while self._waiting:
            for _ in range(len(self._waiting)):
                batch = self._claimed(self._waiting.pop(0))
                if batch is not None:
                    return batch
            if not wait:
                return None
            if self._waiting:
                time.sleep(PAUSE)
        return None

    def _claimed(self, part: list[runs.Record]) -> Batch | None:
        """What of a batch nobody else has or has finished; the rest waits on."""
        folder, of = part[0].address.method_folder(self._root), {r.address.within: r for r in part}
        claim, others = self._claims.take(folder, list(of), self._epochs)
        if others:
            self._waiting.append([of[name] for name in of if name in others])
        if claim is None:
            return None
        records = [of[name] for name in of if name not in others and not self._finished(of[name])]
        if not records:
            self._claims.release(claim)
            return None
        self._taken += 1
        return Batch(self._taken - 1, records, claim)

    def _finished(self, record: runs.Record) -> bool:
        """Whether somebody else has trained it since this job began."""
        if self._again:
            return False
        try:
            found = runs.read_finished(record.address.folder(self._root), record.config_hash)
        except InputError:  # damaged, and done again
            return False
        return found is not None and found.config_hash == record.config_hash

    def tell(self, batch: Batch, epoch: int) -> None:
        """How far a batch is."""
        self._claims.tell(batch.claim, epoch)

    def done(self, batch: Batch) -> None:
        """All of a batch is finished."""
        self._claims.release(batch.claim)
