"""Where a person reads: the two consoles, tables, long lists cut short, bars, and the one line about an
error."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from medcm_cli.errors import InputError, JobError
from medcm_cli.files import one_line

if TYPE_CHECKING:
    from medcm_cli.report.section import Section


class _Plain(Console):
    """Shows text as it is: names may hold brackets, which are not markup, and control characters, which a
    terminal is not to obey."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text that is printed goes through here, those of a table's cells too."""
        return super().render_str("\n".join(map(one_line, text.split("\n"))), **options)

    def on_broken_pipe(self) -> None:
        """Who reads has gone, as in ``medcm fit -m ... | head``: what there is to do is done all the same."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class _Sentences(_Plain):
    """On a terminal, goes on in the next line between words, and not within a number and its unit; names that
    are longer than a line stay whole."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Those that are said to be wrapped softly stay as they are."""
        if self.is_terminal and "soft_wrap" not in options:
            objects = tuple(self._in_lines(one) if isinstance(one, str) else one for one in objects)
        super().print(*objects, **options)

    def _in_lines(self, text: str) -> str:
        from medcm_cli.commands.layout import wrapped

        lines = []
        for line in text.split("\n"):
            indent = line[: len(line) - len(line.lstrip(" "))]
            room = max(1, self.width - len(indent))
            long = len(line) > self.width
            lines += [indent + part for part in wrapped(line.strip(" "), room, False)] if long else [line]
        return "\n".join(lines)


OUT = _Sentences(highlight=False, soft_wrap=True, markup=False)
ERR = _Plain(stderr=True, highlight=False, soft_wrap=True, markup=False)


_NUMBER = re.compile(r"\d[\d.]*(?:e[-+]?\d+)?")
_NAMES = 3  # that have one cause, which are shown


@cache
def said(line: str) -> None:
    """A line on stderr, once: jobs of a sweep read the same file."""
    ERR.print(line)


def show(section: "Section") -> None:
    """A table for a person on a terminal, as wide as that is, and Markdown in full width anywhere else."""
    from medcm_cli.report.section import in_lines, markdown

    if not OUT.is_terminal:
        OUT.print(markdown(section))
        return
    from medcm_cli.commands.layout import blocks, wrapped

    section = in_lines(section)
    for line in wrapped(section.title, OUT.width):
        OUT.print(Text(line, style="bold"))
    for lines in blocks(section, OUT.width):
        OUT.print(Text("\n".join([*lines, ""])))


def shortened(lines: Sequence[str], most: int = 20, rest: str = "") -> list[str]:
    """The first ``most`` lines, and how many more there are, with what ``rest`` adds about them."""
    more = len(lines) - most
    return [*map(one_line, lines[:most]), *([f"and {more} more{rest}"] if more > 0 else [])]


def complain(title: str, reasons: Sequence[str]) -> None:
    """A title on stderr, with the reasons below it, a line for each cause; nothing where there are none.

    :param reasons: what is wrong, some as in ``FOLDER: CAUSE``.
    """
    if reasons:
        ERR.print(title)
        for line in shortened(by_cause(list(map(_apart, reasons)), "folders")):
            ERR.print(f"  {line}")


def by_cause(faults: Sequence[tuple[str, str]], nouns: str) -> list[str]:
    """A line for each cause, those of most first: how many have it and the first of their names.

    :param faults: name, or folder, or nothing, and cause; numbers in it make no cause of its own.
    :param nouns: what the names are of.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, cause in faults:
        groups.setdefault(_NUMBER.sub("0", cause), []).append((name, cause))
    lines = []
    for group in sorted(groups.values(), key=len, reverse=True):
        (name, cause), count = group[0], len(group)
        if count == 1:
            lines.append(f"{name}: {cause}" if name else cause)
            continue
        alike = len({cause for _, cause in group}) == 1
        said = cause if alike else f"{cause} (numbers of the first)"
        named = _listed([name for name, _ in group if name])
        lines.append(f"{count} {nouns}: {said}{f': {named}' if named else ''}")
    return lines


def _apart(reason: str) -> tuple[str, str]:
    """The folder or file that a reason begins with, and the rest."""
    place, _, cause = reason.partition(": ")
    return (place, cause) if cause and ("/" in place or os.sep in place) else ("", reason)


def _listed(names: Sequence[str]) -> str:
    """The first names, of folders behind the one that all are in."""
    if not all("/" in name or os.sep in name for name in names) or len(set(names)) < 2:
        return ", ".join(shortened(list(dict.fromkeys(names)), _NAMES))
    try:
        above = os.path.commonpath(names)
    except ValueError:  # one is absolute, another is not
        return ", ".join(shortened(names, _NAMES))
    inside = shortened([os.path.relpath(name, above) for name in names], _NAMES)
    return f"{', '.join(inside)}{f' in {above}' if above else ''}"


@contextmanager
def counter(what: str) -> Iterator[Callable[[int], None]]:
    """How many are done, in words, as in ``what`` = "fits read". Silent where stderr is no terminal."""
    with _words(f"{{task.completed}} {what}") as bar:
        task = bar.add_task(what)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def saying(what: str) -> Iterator[Callable[[str], None]]:
    """What is being done, in words that change. Silent where stderr is no terminal."""
    with _words("{task.description}") as bar:
        task = bar.add_task(what)
        yield lambda now: bar.update(task, description=one_line(now))


def _words(form: str) -> Progress:
    return Progress(TextColumn(form, markup=False), console=ERR, disable=not ERR.is_terminal, transient=True)


def job_bar(shown: bool = True) -> Progress:
    """A bar for a long job, whose tasks have a ``state`` in words; silent where stderr is not a terminal, or
    unless it is to be ``shown``."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=ERR,
        disable=not (shown and ERR.is_terminal),
        transient=True,
    )


def ending(error: Exception) -> tuple[str, int]:
    """What is said of an error that ends a command or one of its jobs, in one line, and the exit code."""
    text, code = str(error), 2
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        text = str(InputError(text))  # as short
    elif isinstance(error, JobError):
        code = 3
    elif isinstance(error, MemoryError):
        text, code = "there is not memory enough; batch.fits=N trains fewer fits at once", 3
    elif not isinstance(error, InputError | OSError):
        text = f"internal error, {type(error).__name__}: {text}; MEDCM_TRACEBACK=1 shows where"
        code = 1
    return one_line(" ".join(text.split())), code
