"""Where a person reads: the two consoles, a long job's bar, and the one line for bad input."""

import sys
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Names may hold brackets, which are not markup.
OUT = Console(highlight=False, soft_wrap=True, markup=False)
ERR = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def job_bar() -> Progress:
    """A bar for a long job, whose tasks have a ``state`` in words; silent where stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=ERR,
        disable=not ERR.is_terminal,
        transient=True,
    )


def refuse(error: Exception) -> NoReturn:
    """Say what is wrong, with the input or with a file, in one line on stderr and exit with code 2."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"medcm: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(2)
