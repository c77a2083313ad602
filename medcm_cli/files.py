"""Files appear whole or not at all: written under a temporary name beside the target and moved into place.
And text that somebody else wrote, such as a subject's id, is made one that can stand in them.

Several processes, on several machines, may write the same target: each has a temporary name of its own.
"""

import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import time
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcm_cli.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

DEEPEST = 50
"""Lists and groups inside one another, of options and of files that are read."""
_TEMPORARY = ".partial-"
_NAMED = re.compile(rf"{re.escape(_TEMPORARY)}(?:([0-9a-f]{{8}})-)?(\d+)-")  # earlier versions named no place
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_LONG = 24 * 3600  # s; nothing is being written for longer
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # control characters and surrogates; ends of lines and paragraphs
_FORMULA = ("=", "+", "-", "@")
_DROPPED = re.compile(r"[\[\]{}()\"'`]")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,+~-]+")
_ORDER = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # these turn the order of others around


def _place() -> str:
    """Where the numbers of processes mean something: this machine, or the container on it."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        space = ""
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"


PLACE = _place()
"""Of this process: its number means something to those that have the same."""


@contextmanager
def replaced(target: Path, keep: bool = False) -> Iterator[Path]:
    """A temporary path for a file or folder that becomes ``target``, replacing it, once the block ends
    without error.

    :param keep: a folder with something in it that lies there by then stays, and the new one is dropped: of
        several processes that make the same, the first one's is used.
    :raises OSError: it cannot be written, as on a full disk: with the name of ``target``, whoever raised it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{_TEMPORARY}{PLACE}-{os.getpid()}-{target.name}")
    remove(partial)
    try:
        yield partial
        if partial.is_dir():
            _move_folder(partial, target, keep)
        else:
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


def _move_folder(partial: Path, target: Path, keep: bool) -> None:
    """No folder takes the place of one with something in it, which is therefore moved aside first; another
    process may be doing the same."""
    aside = partial.with_name(partial.name + "~")
    while True:
        try:
            partial.rename(target)
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
        else:
            return
        if keep and target.is_dir():
            return
        remove(aside)
        with suppress(FileNotFoundError):
            target.rename(aside)
        remove(aside)


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


def folder_name(text: str, longest: int = 100) -> str:
    """A text as the name of a folder on any system: ASCII letters and digits, and ``. , + - _``. It stays as
    it is where it can, with ``~`` for a slash; else it is made readable and ends in ``~`` and a hash of what
    it was, so that two texts have two names.

    :param longest: characters of the name.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = _DROPPED.sub("", plain).replace("~", "-").replace("/", "~")
    name = _UNSAFE.sub("-", plain).rstrip(".")
    if name == text.replace("/", "~") and "~" not in text and len(name) <= longest:
        return name
    return f"{name[: longest - 9].rstrip('.-')}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def from_json(text: str | bytes, source: object) -> Any:
    """What a text in JSON says, which somebody else may have written.

    :param source: where it stands. :raises ValueError: it is no JSON, or nested too deeply.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise _too_deep(source) from None
    check_depth(content, source)
    return content


def check_depth(content: object, source: object) -> None:
    """:raises InputError: lists and groups more than ``DEEPEST`` levels inside one another, or inside
    themselves, from which whoever walks over them would not come back."""
    level = [content]
    for _ in range(DEEPEST + 1):
        # Each part once: YAML can name one many times, and so be small in a file and endless in a walk.
        parts = {id(one): one for one in level if isinstance(one, Mapping | list)}
        if not parts:
            return
        inside = (one.values() if isinstance(one, Mapping) else one for one in parts.values())
        level = list(itertools.chain.from_iterable(inside))
    raise _too_deep(source)


def _too_deep(source: object) -> InputError:
    return InputError(f"{source}: is nested too deeply; expected at most {DEEPEST} lists inside one another")


def remove_partial(folder: Path) -> None:
    """Remove what a process that is no more left unfinished in ``folder``, and nothing that is still being
    written."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        named = _NAMED.match(path.name)
        ended = named is not None and named[1] in (PLACE, None) and not alive(int(named[2]))
        with suppress(FileNotFoundError):
            if ended or time.time() - path.lstat().st_mtime > _LONG:
                remove(path)


def alive(process: int) -> bool:
    """Whether a process of this machine is there; one that has ended and that nobody has asked after is
    not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        pass
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[float]:
    """Nobody else, on any machine, is inside such a block for the same path, whose file is there meanwhile.
    Gives what time it is by the clock that dates files there, s since 1970.

    Where the system or the file system knows no locks, several may be inside.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            with suppress(ImportError, OSError):
                import fcntl  # not on every system

                fcntl.lockf(file, fcntl.LOCK_EX)
            if not _is_at(path, file.fileno()):  # who had it before has removed it
                continue
            file.write("\n")  # which dates it
            file.flush()
            try:
                yield os.fstat(file.fileno()).st_mtime
            finally:
                with suppress(OSError):  # some systems remove nothing that is open
                    path.unlink()
            return


def _is_at(path: Path, opened: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(opened).st_ino
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it exists; another process may be doing the
    same."""
    while path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
    path.unlink(missing_ok=True)
