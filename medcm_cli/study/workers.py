"""Batches of fits on several processes: one core each, no shared state, results written by whoever trained
them."""

import math
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medcm_cli import processes
from medcm_cli.errors import JobError
from medcm_cli.numerics.devices import CPU
from medcm_cli.runs import Record
from medcm_cli.study.identity import Config
from medcm_cli.study.job import Job
from medcm_cli.study.processes import count, load_ahead
from medcm_cli.study.queue import PAUSE, Batch, Queue, Work

Progress = Callable[[Batch, int, int, float], None]
"""(batch, its fits, epoch, median objective)"""

_SLACK = 0.25  # of a process's fair share, by which a job may exceed it without being cut again
_UNEVEN = 0.1  # of that share, by which processes may end apart


def prepare(threads: int) -> None:
    """Settings of a process that trains.

    Without flushing, denormal numbers make exp and softplus many times slower; more threads than one lose
    time on tensors of this size, so a second core is used by a second process.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    processes.keep_freed_memory()


def batches(records: Sequence[Record], most: int | None, processes: int) -> list[list[Record]]:
    """Split a job's fits into batches of at most ``most`` fits, as even as possible, one or more for each
    process."""
    wanted = max(processes, -(-len(records) // most) if most else 1)
    parts = np.array_split(np.arange(len(records)), min(wanted, len(records)))
    return [[records[i] for i in part] for part in parts]


def process_count(option: object, fits: int, device: torch.device = CPU, cores: int | None = None) -> int:
    """From ``batch.processes``: a number, or ``auto`` for one per core where there are fits enough, and on
    another device than the CPU for one, which has it to itself.

    :param cores: that the job has; None: all that this process may use.
    """
    return 1 if option == "auto" and device != CPU else count(option, fits, cores)


def shares(efforts: Sequence[float], processes: int) -> list[int]:
    """Into how many batches to cut each of some jobs that share processes, from how long each takes: as few
    as keep every process busy, since an epoch of twice the fits takes less than twice the time.

    Efforts are roughly known. The job that takes least comes last and, cut in two, fills what the others
    leave.
    """
    fair = sum(efforts) / processes
    cuts = [max(1, math.ceil(effort / fair - _SLACK)) for effort in efforts]
    least = min(range(len(efforts)), key=lambda job: efforts[job] / cuts[job])
    if processes > 1 and len(efforts) > 1 and efforts[least] / cuts[least] > _UNEVEN * fair:
        cuts[least] += 1
    return cuts


@dataclass(frozen=True)
class Ended:
    """A job has ended, the ``number``-th from 0: records of the fits that have ``finished`` here, ``seconds``
    since the first of them began, and the ``error`` that has kept it from the others."""

    number: int
    finished: list[Record]
    seconds: float
    error: Exception | None


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection


class Workers:
    """Processes that live from job to job, so that a multirun starts them once. A context manager: leaving
    it ends them."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill them; the next job starts others."""
        for worker in self._workers:
            worker.process.kill()  # they leave nothing half done that the next run does not tidy up
        for worker in self._workers:
            worker.process.join()
        self._workers = []

    def run(self, works: Sequence[Work], processes: int, progress: Progress) -> Iterator[Ended]:
        """Train every batch of some jobs, those that take longest first, and say of each job when it ends;
        but for fits that other processes finish meanwhile. One process means this one.

        What goes wrong in a batch (a ``JobError`` where there is not memory enough, or a process was killed)
        ends its job once the batches of it that are under way have, and no other job.
        """
        with Queue(works) as queue:
            if processes == 1:
                yield from _alone(works, queue, progress)
                return
            try:
                yield from self._share(works, queue, processes, progress)
            except BaseException:
                self.end()  # what the others still have to say is not for the next job
                raise

    def _share(
        self, works: Sequence[Work], queue: Queue, processes: int, progress: Progress
    ) -> Iterator[Ended]:
        accounts = [_Account(number, work) for number, work in enumerate(works)]
        busy: dict[Connection, tuple[_Worker, Batch]] = {}
        while True:
            while len(busy) < processes and (batch := queue.take(wait=not busy)) is not None:
                worker = self._idle(busy)
                accounts[batch.job].begin()
                busy[worker.connection] = worker, batch
                with suppress(OSError):  # it has died, which is read below
                    worker.connection.send((works[batch.job].config, batch))
            yield from _over(accounts, queue, [batch for _, batch in busy.values()])
            if not busy:
                return
            for ready in wait(list(busy), PAUSE if len(busy) < processes and queue.fits else None):
                assert isinstance(ready, Connection)
                worker, batch = busy[ready]
                kind, content = _heard(worker)
                if kind == "progress":
                    queue.tell(batch, content[1])
                    progress(batch, *content)
                    continue
                del busy[ready]
                accounts[batch.job].take(kind, content, batch, queue)

    def _idle(self, busy: Mapping[Connection, object]) -> _Worker:
        """One that has nothing to do, started where there is none."""
        self._workers = [worker for worker in self._workers if worker.process.is_alive()]
        for worker in self._workers:
            if worker.connection not in busy:
                return worker
        self._workers.append(_start())
        return self._workers[-1]


class _Account:
    """What has become of a job's batches so far."""

    def __init__(self, number: int, work: Work) -> None:
        self._number, self._work = number, work
        self._finished: list[Record] = []
        self._begun: float | None = None
        self._fault: tuple[str, Any, Batch] | None = None
        self.told = False

    def begin(self) -> None:
        """A batch begins."""
        if self._begun is None:
            self._begun = time.perf_counter()

    def take(self, kind: str, content: Any, batch: Batch, queue: Queue) -> None:
        """A batch has ended, well ("done") or not: then no other begins."""
        queue.done(batch)
        if kind == "done":
            self._finished += content
            return
        queue.drop(batch.job)
        self._fault = self._fault or (kind, content, batch)

    def ended(self) -> Ended:
        """The account of a job of which nothing is left here."""
        self.told = True
        seconds = 0.0 if self._begun is None else time.perf_counter() - self._begun
        return Ended(self._number, self._finished, seconds, self._error())

    def _error(self) -> Exception | None:
        if self._fault is None:
            return None
        kind, content, batch = self._fault
        if kind == "error":
            assert isinstance(content, Exception)
            return content
        size, fits = len(batch.records), sum(map(len, self._work.batches))
        fewer = f", batch.fits={(size + 1) // 2} trains fewer at once" if size > 1 else ""
        return JobError(
            f"{content}; {len(self._finished)} of {fits} fits of this job are finished and kept, the same "
            f"command goes on with the others{fewer}"
        )


def _over(accounts: Sequence[_Account], queue: Queue, busy: Sequence[Batch]) -> Iterator[Ended]:
    """Jobs of which nothing is left, each once."""
    going = {batch.job for batch in busy} | queue.jobs
    for number, account in enumerate(accounts):
        if not account.told and number not in going:
            yield account.ended()


def _alone(works: Sequence[Work], queue: Queue, progress: Progress) -> Iterator[Ended]:
    """Jobs in this process."""
    accounts = [_Account(number, work) for number, work in enumerate(works)]
    while (batch := queue.take(wait=True)) is not None:
        accounts[batch.job].begin()

        def tell(size: int, epoch: int, objective: float, batch: Batch = batch) -> None:
            queue.tell(batch, epoch)
            progress(batch, size, epoch, objective)

        kind, content = _trained(works[batch.job].config, batch, tell)
        accounts[batch.job].take(kind, content, batch, queue)
        yield from _over(accounts, queue, [])
    yield from _over(accounts, queue, [])


def _trained(config: Config, batch: Batch, tell: Callable[[int, int, float], None]) -> tuple[str, Any]:
    """A batch, trained and written: how it ended, and its finished records or what is wrong."""

    def report(epoch: int, objective: Tensor) -> None:
        tell(len(batch.left), epoch, float(objective.nanmedian()))

    try:
        prepare(int(config["batch"]["threads"]))
        return "done", Job.build(config).run(batch.records, report, batch.left)
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        return ("memory", _NO_MEMORY) if _lacks_memory(error) else ("error", error)


def _heard(worker: _Worker) -> tuple[str, Any]:
    """What a process says, or that it is no more."""
    try:
        kind, content = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join(1)
        code = worker.process.exitcode
        how = "ended" if code is None or code > 0 else f"was killed by {signal.Signals(-code).name}"
        cause = ", as for lack of memory" if code == -signal.SIGKILL else ""
        return "dead", f"a training process {how}{cause}"
    return kind, content


_NO_MEMORY = "there is not memory enough"


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))
    )


def _start() -> _Worker:
    """:raises JobError: it ended at once."""
    try:
        load_ahead()
        return _Worker(*processes.begin(_serve))
    except (BrokenPipeError, EOFError, ConnectionError) as error:
        raise JobError("a training process could not be started") from error


def _serve(connection: Connection) -> None:
    """Train what comes through the connection until it closes."""
    processes.follow_parent()
    try:
        while True:
            config, batch = connection.recv()
            kind, content = _trained(config, batch, lambda *said: connection.send(("progress", said)))
            connection.send((kind, _sendable(content) if kind == "error" else content))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
