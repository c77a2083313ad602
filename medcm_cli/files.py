"""Files appear whole or not at all: written under a temporary name beside the target and moved into place.
And text that somebody else wrote, such as a subject's id, is made one that can stand in them."""

import os
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_TEMPORARY = ".partial-"
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # control characters and surrogates; ends of lines and paragraphs
_FORMULA = ("=", "+", "-", "@")
_ORDER = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # these turn the order of others around


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A temporary path for a file or folder that becomes ``target``, replacing it, once the block ends
    without error.

    :raises OSError: it cannot be written, as on a full disk: with the name of ``target``, whoever raised it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{_TEMPORARY}{os.getpid()}-{target.name}")
    remove(partial)
    try:
        yield partial
        if target.is_dir() and partial.exists():
            remove(target)
        partial.replace(target)
    except OSError as error:
        unnamed = error.filename is None or Path(error.filename).is_relative_to(partial)
        if not unnamed or error.filename == str(target):
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)  # in the same words from everybody
        raise OSError(error.errno or 0, reason, str(target)) from error
    finally:
        remove(partial)


def write_text(target: Path, text: str) -> None:
    """Write a whole text file."""
    with replaced(target) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(target: Path, table: "pd.DataFrame") -> None:
    """Write a whole CSV file. Text that a spreadsheet would take for a formula begins with an apostrophe."""
    text = {str(name): column.map(_cell) for name, column in table.items() if column.dtype.kind == "O"}
    with replaced(target) as partial:
        table.assign(**text).rename(columns=_cell).to_csv(partial, index=False)


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.startswith(_FORMULA) else line


def one_line(text: str) -> str:
    """Text with its control characters spelt out, as in \\n and \\x1b: a line stays one, and a terminal shows
    what it would otherwise obey."""
    odd = {c for c in text if unicodedata.category(c) in _CONTROL or c in _ORDER}
    return text.translate({ord(c): repr(c)[1:-1] for c in odd}) if odd else text


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left unfinished in ``folder``."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
