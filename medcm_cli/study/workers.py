"""Batches of fits on several processes: one core each, no shared state, results written by whoever trained
them."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from torch import Tensor

from medcm_cli.checks import whole
from medcm_cli.errors import JobError
from medcm_cli.numerics.devices import CPU
from medcm_cli.runs import Record
from medcm_cli.study.identity import Config
from medcm_cli.study.job import Job
from medcm_cli.study.queue import PAUSE, Batch, Queue

Progress = Callable[[int, int, int, float], None]
"""(batch, its fits, epoch, median objective)"""

_FITS_PER_PROCESS = 8  # a process of its own costs about three seconds of imports: not worth it for fewer


def prepare(threads: int) -> None:
    """Settings of a process that trains.

    Without flushing, denormal numbers make exp and softplus many times slower; more threads than one lose
    time on tensors of this size, so a second core is used by a second process.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)


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
    if option == "auto":
        if device != CPU:
            return 1
        return max(1, min(cores or _cores(), fits // _FITS_PER_PROCESS))
    return whole("batch.processes", option, 1, other="auto")


def _cores() -> int:
    """Those that this process may use: a cluster's scheduler lends a job some of the machine's."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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

    def run(
        self, job: Job, parts: Sequence[Sequence[Record]], processes: int, progress: Progress
    ) -> list[Record]:
        """Train every batch of ``parts``, but for fits that other processes finish meanwhile; returns the
        finished records. One process means this one.

        :raises JobError: there is not memory enough, or a process was killed.
        """
        with Queue(job.config, parts) as queue:
            if processes == 1:
                prepare(int(job.config["batch"]["threads"]))
                return _alone(job, queue, progress)
            try:
                while len(self._workers) < processes:
                    self._workers.append(_start())
                return self._share(job.config, queue, self._workers[:processes], progress)
            except BaseException:
                self.end()  # what the others still have to say is not for the next job
                raise

    def _share(
        self, config: Config, queue: Queue, workers: list[_Worker], progress: Progress
    ) -> list[Record]:
        finished: list[Record] = []
        fits = queue.fits
        idle = list(workers)
        busy: dict[Connection, tuple[_Worker, Batch]] = {}
        while True:
            while idle and (taken := queue.take(wait=not busy)) is not None:
                worker = idle.pop()
                busy[worker.connection] = worker, taken
                with _living(worker, taken, len(finished), fits):
                    worker.connection.send((config, taken))
            if not busy:
                return finished
            for ready in wait(list(busy), PAUSE if idle and queue.fits else None):
                assert isinstance(ready, Connection)
                worker, batch = busy[ready]
                with _living(worker, batch, len(finished), fits):
                    kind, content = ready.recv()
                if kind == "progress":
                    _telling(queue, batch, progress)(*content)
                    continue
                del busy[ready]
                idle.append(worker)
                if kind == "memory":
                    raise _failed("there is not memory enough", batch, len(finished), fits)
                if kind == "error":
                    raise content
                finished += content
                queue.done(batch)


def _alone(job: Job, queue: Queue, progress: Progress) -> list[Record]:
    """Train every batch in this process."""
    finished: list[Record] = []
    fits = queue.fits
    while (batch := queue.take(wait=True)) is not None:
        try:
            finished += job.run(batch.records, _reporter(_telling(queue, batch, progress), batch))
        except Exception as error:
            if not _lacks_memory(error):
                raise
            raise _failed("there is not memory enough", batch, len(finished), fits) from error
        queue.done(batch)
    return finished


def _telling(queue: Queue, batch: Batch, progress: Progress) -> Progress:
    """Progress that others hear of, too."""

    def tell(number: int, fits: int, epoch: int, objective: float) -> None:
        queue.tell(batch, epoch)
        progress(number, fits, epoch, objective)

    return tell


@contextmanager
def _living(worker: _Worker, batch: Batch, finished: int, fits: int) -> Iterator[None]:
    """A word with a process. :raises JobError: it is no more."""
    try:
        yield
    except (EOFError, OSError) as error:
        worker.process.join(1)
        code = worker.process.exitcode
        how = "ended" if code is None or code > 0 else f"was killed by {signal.Signals(-code).name}"
        cause = ", as for lack of memory" if code == -signal.SIGKILL else ""
        raise _failed(f"a training process {how}{cause}", batch, finished, fits) from error


def _failed(what: str, batch: Batch, finished: int, fits: int) -> JobError:
    size = len(batch.records)
    fewer = f", batch.fits={(size + 1) // 2} trains fewer at once" if size > 1 else ""
    return JobError(
        f"{what}; {finished} of {fits} fits of this job are finished and kept, the same command goes on with "
        f"the others{fewer}"
    )


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))
    )


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait; a process that is started meanwhile never sees them."""
    if not hasattr(signal, "pthread_sigmask"):  # not on every system
        yield
        return
    resource_tracker.ensure_running()  # which would end the blocking where it is started with the process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> _Worker:
    """:raises JobError: it ended at once."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    try:
        with _signals_blocked():
            process.start()
    except BrokenPipeError as error:
        raise JobError("a training process could not be started") from error
    finally:
        theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection) -> None:
    """Train what comes through the connection until it closes. Ctrl-C, SIGTERM and the like are the parent's
    business; without a parent the process ends at once."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):  # the latter are of schedulers
        if hasattr(signal, name):  # not on every system
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            config, batch = connection.recv()
            prepare(int(config["batch"]["threads"]))

            def report(*content: object) -> None:
                connection.send(("progress", content))

            try:
                finished = Job.build(config).run(batch.records, _reporter(report, batch))
            except (EOFError, BrokenPipeError):
                raise
            except Exception as error:
                connection.send(("memory", None) if _lacks_memory(error) else ("error", _sendable(error)))
            else:
                connection.send(("done", finished))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _reporter(progress: Progress, batch: Batch) -> Callable[[int, Tensor], None]:
    def report(epoch: int, objective: Tensor) -> None:
        progress(batch.number, len(batch.records), epoch, float(objective.nanmedian()))

    return report
