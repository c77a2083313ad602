"""Processes beside this one: how many cores there are for them, and that none outlives it."""

import multiprocessing
import os
import signal
import threading


def cores() -> int:
    """Those that this process may use: a cluster's scheduler lends a job some of the machine's."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
