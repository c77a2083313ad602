"""The batches of jobs that wait to be trained, each taken by one process of all that work on the study."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.runs.claims import Claims
from medcm_cli.study.identity import Config
from medcm_cli.study.interrupted import kept_of

PAUSE = 1.0  # s between two looks at what others are training


@dataclass(frozen=True)
class Work:
    """What remains of a job: its options, the ``batches`` of its fits, and the ``effort`` of one fit, how
    long it takes beside those of other jobs."""

    config: Config
    batches: Sequence[Sequence[runs.Record]]
    effort: float = 1.0


@dataclass(frozen=True)
class Batch:
    """Fits of the job ``job``, from 0, that are trained together, which this process has claimed: ``claim``.
    ``number``: of those taken so far, from 0. ``left``: those of ``records`` that are not written yet."""

    job: int
    number: int
    records: list[runs.Record]
    left: list[runs.Record]
    claim: Path


class Queue:
    """Batches are taken from it, those that take longest first; what others have in training is left to them
    and comes last, for they may fall silent; what they finish meanwhile is dropped. A context manager:
    leaving it gives back what has been taken.
    """

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works
        waiting = [(job, list(part)) for job, work in enumerate(works) for part in work.batches]
        self._waiting = sorted(waiting, key=lambda task: -works[task[0]].effort * len(task[1]))
        self._claims = Claims()
        self._taken = 0

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *_: object) -> None:
        self._claims.__exit__()

    @property
    def fits(self) -> int:
        """How many wait."""
        return sum(len(part) for _, part in self._waiting)

    @property
    def jobs(self) -> set[int]:
        """Those of which some wait."""
        return {job for job, _ in self._waiting}

    def take(self, wait: bool) -> Batch | None:
        """The next batch; None where none is left or, unless it is to ``wait``, others have all of them."""
        while self._waiting:
            for _ in range(len(self._waiting)):
                batch = self._claimed(*self._waiting.pop(0))
                if batch is not None:
                    return batch
            if not wait:
                return None
            if self._waiting:
                time.sleep(PAUSE)
        return None

    def _claimed(self, job: int, part: list[runs.Record]) -> Batch | None:
        """What of a batch nobody else has or has finished; the rest waits on."""
        config = self._works[job].config
        folder = part[0].address.method_folder(Path(config["outputs"]))
        of = {record.address.within: record for record in part}
        claim, others = self._claims.take(folder, list(of), int(config["epochs"]))
        if others:
            self._waiting.append((job, [of[name] for name in of if name in others]))
        if claim is None:
            return None
        left = [of[name] for name in of if name not in others and not _finished(config, of[name])]
        if not left:
            self._claims.release(claim)
            return None
        self._taken += 1
        # What its process was writing when it ended goes on from there, with all that were trained together.
        together = not others and kept_of(Path(config["outputs"]), part).exists
        return Batch(job, self._taken - 1, part if together else left, left, claim)

    def drop(self, job: int) -> None:
        """Take no other batch of a job."""
        self._waiting = [task for task in self._waiting if task[0] != job]

    def tell(self, batch: Batch, epoch: int) -> None:
        """How far a batch is."""
        self._claims.tell(batch.claim, epoch)

    def done(self, batch: Batch) -> None:
        """A batch has ended."""
        self._claims.release(batch.claim)


def _finished(config: Config, record: runs.Record) -> bool:
    """Whether somebody else has trained a fit since its job began."""
    if config["overwrite"]:
        return False
    try:
        found = runs.read_finished(record.address.folder(Path(config["outputs"])), record.config_hash)
    except InputError:  # damaged, and done again
        return False
    return found is not None and found.config_hash == record.config_hash
