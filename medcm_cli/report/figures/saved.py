"""Figures saved by several processes: that takes most of the time, and each is alone with its figure."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from medcm_cli.errors import JobError
from medcm_cli.processes import cores, follow_parent

Result = TypeVar("Result")
Submit = Callable[..., Future[Any]]
"""A function and its arguments, all of which can be pickled; gives what becomes of it."""


@contextmanager
def savers(processes: int | None = None) -> Iterator[Submit]:
    """What calls functions in processes of their own, one for each core; at once, in this one, where there is
    one core alone. Leaving it in order, all is done.

    :param processes: in place of the number of cores.
    """
    count = cores() if processes is None else processes
    if count < 2:
        yield _at_once
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, follow_parent)
    try:
        yield pool.submit
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def result(of: Future[Result]) -> Result:
    """What a function has returned; its error is raised. :raises JobError: its process is no more."""
    try:
        return of.result()
    except BrokenProcessPool as error:
        raise JobError("a process that saves figures was killed, as for lack of memory") from error


def _at_once(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    done: Future[Any] = Future()
    done.set_result(function(*arguments))
    return done
