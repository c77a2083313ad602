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


def process_count(option: object, fits: int, device: torch.device = CPU) -> int:
    """From ``batch.processes``: a number, or ``auto`` for one per core where there are fits enough, and on
    another device than the CPU for one, which has it to itself."""
    if option == "auto":
        if device != CPU:
            return 1
        return max(1, min(_cores(), fits // _FITS_PER_PROCESS))
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
        """Train every batch of ``parts``; returns their finished records. One process means this one.

        :raises JobError: there is not memory enough, or a process was killed.
        """
        finished: list[Record] = []
        fits = sum(map(len, parts))
        if processes == 1:
            prepare(int(job.config["batch"]["threads"]))
            for number, part in enumerate(parts):
                try:
                    finished += job.run(part, _reporter(progress, number, len(part)))
                except Exception as error:
                    if not _lacks_memory(error):
                        raise
                    raise _failed("there is not memory enough", part, len(finished), fits) from error
            return finished
        try:
            while len(self._workers) < processes:
                self._workers.append(_start())
            waiting = list(enumerate(parts))
            return self._share(job.config, waiting, self._workers[:processes], progress, fits)
        except BaseException:
            self.end()  # what the others still have to say is not for the next job
            raise

    def _share(
        self,
        config: Config,
        waiting: list[tuple[int, Sequence[Record]]],
        workers: list[_Worker],
        progress: Progress,
        fits: int,
    ) -> list[Record]:
        finished: list[Record] = []
        idle = list(workers)
        busy: dict[Connection, tuple[_Worker, Sequence[Record]]] = {}
        while waiting or busy:
            while waiting and idle:
                worker, (number, part) = idle.pop(), waiting.pop(0)
                busy[worker.connection] = worker, part
                with _living(worker, part, len(finished), fits):
                    worker.connection.send((config, number, part))
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                worker, part = busy[ready]
                with _living(worker, part, len(finished), fits):
                    kind, content = ready.recv()
                if kind == "progress":
                    progress(*content)
                    continue
                del busy[ready]
                idle.append(worker)
                if kind == "memory":
                    raise _failed("there is not memory enough", part, len(finished), fits)
                if kind == "error":
                    raise content
                finished += content
        return finished


@contextmanager
def _living(worker: _Worker, part: Sequence[Record], finished: int, fits: int) -> Iterator[None]:
    """A word with a process. :raises JobError: it is no more."""
    try:
        yield
    except (EOFError, OSError) as error:
        worker.process.join(1)
        code = worker.process.exitcode
        how = "ended" if code is None or code > 0 else f"was killed by {signal.Signals(-code).name}"
        cause = ", as for lack of memory" if code == -signal.SIGKILL else ""
        raise _failed(f"a training process {how}{cause}", part, finished, fits) from error


def _failed(what: str, part: Sequence[Record], finished: int, fits: int) -> JobError:
    fewer = f", batch.fits={(len(part) + 1) // 2} trains fewer at once" if len(part) > 1 else ""
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
    """Train what comes through the connection until it closes. Ctrl-C and SIGTERM are the parent's business;
    without a parent the process ends at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            config, number, part = connection.recv()
            prepare(int(config["batch"]["threads"]))

            def report(*content: object) -> None:
                connection.send(("progress", content))

            try:
                finished = Job.build(config).run(part, _reporter(report, number, len(part)))
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


def _reporter(progress: Progress, number: int, fits: int) -> Callable[[int, Tensor], None]:
    def report(epoch: int, objective: Tensor) -> None:
        progress(number, fits, epoch, float(objective.nanmedian()))

    return report
