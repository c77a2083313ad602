"""Processes beside this one: how many cores there are for them, how they begin, and that none outlives
it."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

_KEPT = 2**30  # bytes of freed memory that a process keeps
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt

_FORKED = sys.platform == "linux"  # elsewhere a process that others are forked from is slow or not safe


def cores() -> int:
    """Those that this process may use: a cluster's scheduler lends a job some of the machine's."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Freed memory stays with this process, as far as the C library lets it: glibc gives each tensor of more
    than 32 MiB back to the system when it is freed, and to get the next takes longer than many operations."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def foresee(modules: Sequence[str]) -> None:
    """Begin to load in the background what processes to come will need: they are forked from one that has it.
    Not on every system, and only for the first that are foreseen."""
    if not _FORKED:
        return
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(list(modules))
    with suppress(OSError), _signals_blocked():  # what is wrong is said by the first that is to begin
        forkserver.ensure_running()


def begin(target: Callable[[Connection], None]) -> tuple[BaseProcess, Connection]:
    """A process that runs ``target`` with one end of a connection, whose other end is given back.

    :raises OSError: it could not be started.
    """
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context
    make = context("forkserver").Process if _FORKED else context("spawn").Process
    process = make(target=target, args=(theirs,), daemon=True)
    try:
        with _signals_blocked():
            process.start()
    finally:
        theirs.close()
    return process, ours


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


def follow_parent() -> None:
    """Ctrl-C, SIGTERM and the like are the business of the process that has started this one, whose end is
    its end at once."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):  # the latter are of schedulers
        if hasattr(signal, name):  # not on every system
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
