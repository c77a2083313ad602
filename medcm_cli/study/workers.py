"""Batches of fits on several processes: one core each, no shared state, results written by whoever trained
them."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from torch import Tensor

from medcm_cli.checks import whole
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


def process_count(option: object, fits: int) -> int:
    """From ``batch.processes``: a number, or ``auto`` for one per core where there are fits enough."""
    if option == "auto":
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
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
        self._workers = []

    def run(
        self, job: Job, parts: Sequence[Sequence[Record]], processes: int, progress: Progress
    ) -> list[Record]:
        """Train every batch of ``parts``; returns their finished records. One process means this one."""
        if processes == 1:
            finished: list[Record] = []
            prepare(int(job.config["batch"]["threads"]))
            for number, part in enumerate(parts):
                finished += job.run(part, _reporter(progress, number, len(part)))
            return finished
        while len(self._workers) < processes:
            self._workers.append(_start())
        try:
            return self._share(job.config, list(enumerate(parts)), self._workers[:processes], progress)
        except BaseException:
            self.__exit__()  # what the others still have to say is not for the next job
            raise

    def _share(
        self,
        config: Config,
        waiting: list[tuple[int, Sequence[Record]]],
        workers: list[_Worker],
        progress: Progress,
    ) -> list[Record]:
        finished: list[Record] = []
        idle = list(workers)
        busy: dict[Connection, _Worker] = {}
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                worker.connection.send((config, *waiting.pop(0)))
                busy[worker.connection] = worker
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                try:
                    kind, content = ready.recv()
                except EOFError as error:
                    raise RuntimeError("a training process ended unexpectedly (out of memory?)") from error
                if kind == "progress":
                    progress(*content)
                    continue
                idle.append(busy.pop(ready))
                if kind == "error":
                    raise content
                finished += content
        return finished


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection) -> None:
    """Train what comes through the connection until it closes. Ctrl-C is the parent's business; when the
    parent is gone, the next message fails and the process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
                connection.send(("error", error))
            else:
                connection.send(("done", finished))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _reporter(progress: Progress, number: int, fits: int) -> Callable[[int, Tensor], None]:
    def report(epoch: int, objective: Tensor) -> None:
        progress(number, fits, epoch, float(objective.nanmedian()))

    return report
