"""The parser of a command's flags: what each takes, errors in one line, and defaults in the help.

The types of flags say what is expected, with its limits, before anything is read. What they share with a
module that loads torch they repeat, and tests/commands/test_flags.py compares.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from medcm_cli import checks
from medcm_cli.commands.nearest import suggestion
from medcm_cli.errors import InputError

T = TypeVar("T")
MOST_TIMES = 10_000  # of predictions
LATEST = 1e6  # of them, in any unit


class Parser(argparse.ArgumentParser):
    """The parser of ``medcm COMMAND``.

    Its errors are one line, without the usage before them, and for a flag that does not exist it suggests one
    that does.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"medcm {command}", description=description, formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        """:raises InputError: always."""
        flag, colon, rest = message.removeprefix("argument ").partition(": is ")
        if colon and " " not in flag:  # what a type of this module says
            raise InputError(f"{flag} is {rest}; see {self.prog} --help")
        raise InputError(f"{message}; see {self.prog} --help")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """:raises InputError: arguments that do not fit."""
        # Before argparse, which would rather say what else is missing.
        check_flags(self, arguments)
        return self.parse_intermixed_args(arguments)  # options of a fit stand among flags

    def add_folders(self) -> None:
        """The run folders that a command reads."""
        self.add_argument(
            "folders", type=path, nargs="+", help="the outputs folder, a study, or any folder of runs"
        )


def check_flags(
    parser: argparse.ArgumentParser, arguments: Sequence[str], hint: str = "; see {prog} --help"
) -> None:
    """:raises InputError: a flag of two dashes that the parser has not; the message says what it may mean, or
    else ``hint``."""
    known = [flag for action in parser._actions for flag in action.option_strings if flag[:2] == "--"]
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag == "--":
            return
        if flag[:2] == "--" and " " not in flag and not any(name.startswith(flag) for name in known):
            rest = suggestion(flag, known) or hint.format(prog=parser.prog)
            raise InputError(f"{flag}: {parser.prog} has no such flag{rest}")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says what an option is by default, where it is something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        nothing = default is None or default is False or default in ("", []) or action.required
        return action.help if nothing else super()._get_help_string(action)


# -- types of flags --------------------------------------------------------------------------------


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A whole number from ``least``, to ``most`` where given."""
    return _typed(lambda text: checks.whole("", _parsed(int, text), least, most))


def number(
    above: float = -math.inf, least: float = -math.inf, most: float = math.inf, unit: str = ""
) -> Callable[[str], float]:
    """A number in the limits of ``checks.number``."""
    return _typed(lambda text: checks.number("", _parsed(float, text), above, least, unit, most))


def level(given: str) -> str:
    """A level above 0, with a unit or without one; which unit converts into the study's, that one knows."""
    if re.fullmatch(r"[0-9.e+-]*", given) or not re.match(r"\s*[0-9.]", given):
        number(above=0, most=1e9)(given)
    return given


def fraction(given: str) -> float:
    """A number above 0 and below 1."""
    return _typed(lambda text: checks.fraction("", _parsed(float, text)))(given)


def word(*words: str) -> Callable[[str], str]:
    """One of several words."""
    return _typed(lambda text: checks.one_of("", text, words))


def several(one: Callable[[str], T], most: int = 1000) -> Callable[[str], list[T]]:
    """Values of a type with commas between them, at most so many; what is between two commas is one."""

    def read(text: str) -> list[T]:
        parts = text.split(",")
        if len(parts) > most:
            raise argparse.ArgumentTypeError(f"is {checks.shown(text)}; expected at most {most} values")
        try:
            return [one(part) for part in parts]
        except argparse.ArgumentTypeError as error:
            rest = "" if len(parts) > 1 else ", or several with commas between"
            raise argparse.ArgumentTypeError(f"{error}{rest}") from error

    return read


def text(given: str) -> str:
    """Anything that is something."""
    if not given.strip() or "\0" in given:
        raise argparse.ArgumentTypeError(f"is {checks.shown(given)}; expected a text")
    return given


def pair(given: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, _, value = given.partition("=")
    if not name.strip() or not value.strip():
        raise argparse.ArgumentTypeError(f"is {checks.shown(given)}; expected NAME=VALUE")
    return name, value


def path(given: str) -> Path:
    """The name of a file or folder."""
    if not given.strip() or "\0" in given:
        raise argparse.ArgumentTypeError(f"is {checks.shown(given)}; expected the name of a file or folder")
    return Path(given)


def times(given: str) -> list[float]:
    """FROM:TO:STEP or a list."""
    what = f"is {checks.shown(given)}; expected"
    if ":" not in given:
        found = several(number(least=0, most=LATEST), MOST_TIMES)(given)
        if len(set(found)) < 2:
            raise argparse.ArgumentTypeError(f"{what} two or more times, as in 24,48, or FROM:TO:STEP")
        return found
    try:
        start, stop, step = map(float, given.split(":"))
        fits = 0 <= start < stop <= LATEST and 0 < step <= stop - start
    except ValueError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(
            f"{what} FROM:TO:STEP, 0 <= FROM < TO <= {LATEST:g} and a STEP that fits between, as in 0:72:1"
        )
    if (stop - start) / step > MOST_TIMES:
        raise argparse.ArgumentTypeError(f"{what} at most {MOST_TIMES} times; take a larger STEP")
    # To the last bit as numpy's arange, which takes a while to import.
    count, between = math.ceil((stop + 1e-9 * step - start) / step), (start + step) - start
    return [start, *(start + between * number for number in range(1, count))]


def _typed(read: Callable[[str], T]) -> Callable[[str], T]:
    """As argparse wants it."""

    def typed(given: str) -> T:
        try:
            return read(given)
        except InputError as error:
            quoted = checks.shown(given) if isinstance(_parsed(float, given), str) else given.strip()
            expected = str(error).partition("; expected ")[2]
            raise argparse.ArgumentTypeError(f"is {quoted}; expected {expected}") from error

    return typed


def _parsed(kind: type[int] | type[float], given: str) -> object:
    """The number, or the text where it is none."""
    try:
        return kind(given)
    except ValueError:
        return given


# -- flags that several commands have --------------------------------------------------------------


def add_dialect(parser: argparse.ArgumentParser) -> None:
    """How a text file is written, where that cannot be found in it."""
    parser.add_argument(
        "--dialect",
        type=_dialect,
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="how the file is written, where it does not show it, as in decimal=comma; may be given several "
        "times. Names: encoding, separator, decimal, thousands, dates, ignore, names",
    )


def add_units(parser: argparse.ArgumentParser) -> None:
    """The units of a table's columns."""
    for kind, column in (("time", "TIME"), ("amount", "AMT"), ("level", "DV")):
        parser.add_argument(f"--{kind}-unit", type=text, help=f"unit of {column}, as dataset.units.{kind}")


def _dialect(given: str) -> tuple[str, str | None]:
    name, value = pair(given)
    return name, None if value == "null" else value


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Whether code runs that recorded configurations name."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run classes and functions that run.json names and that are not medcm's own: only for files "
        "whose origin is known",
    )


def add_study(parser: argparse.ArgumentParser, kind: str) -> None:
    """The study that patients are predicted from, and how. :param kind: of results, which names their
    folder."""
    parser.add_argument(
        "--run", type=path, required=True, help="a study's folder, or a folder of some of its fits"
    )
    parser.add_argument("--objective", type=text, help="use only the fits by this objective")
    parser.add_argument(
        "--method",
        type=word("importance", "laplace", "variational"),
        default="importance",
        help="how a patient's posterior is found: importance, laplace or variational",
    )
    parser.add_argument(
        "--draws",
        type=whole(20, 100_000),
        help="draws of each patient's posterior (1000, or 200 for more than 100 patients, if not given)",
    )
    add_dialect(parser)
    parser.add_argument("--out", type=path, help=f"folder to write (STUDY/{kind}/NAME if not given)")
    add_trust(parser)
