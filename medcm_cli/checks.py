"""Values of options: a number, a whole number, a fraction, a flag, one of several words. Each function gives
the value back, or says in one line what was given and what was expected. None loads torch."""

import itertools
import math
import re
import reprlib
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from medcm_cli.errors import InputError

# Names that a command line can have as part of an option, and as that of an entry; texts without quotes.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_KEY = re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z_][A-Za-z0-9_/+.%*@?| ()\[\]{}:=,-]*(?<! )")
_WORD = re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z_][A-Za-z0-9_.-]*")
_MEANING = re.compile(r"[ ()\[\]{}:=,]")
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother, _SHOWN.maxlong = 4, 120, 120, 120


def as_option(option: str, *path: str, **entries: object) -> str:
    """An option with these entries as it is typed on a command line, in quotes for the shell; one with names
    that cannot be typed there, such as Größe, as it stands in a file.

    :param path: names below the option that the entries are of.
    """
    value: Any = entries
    for name in reversed(path):
        value = {name: value}
    if not _can_be_typed(value):
        return f"{option}: {_typed(value)} in a file of options"
    for name in itertools.takewhile(_PLAIN.fullmatch, path):
        option, value = f"{option}.{name}", value[name]
    return shlex.quote(f"+{option}={_typed(value)}")  # entries are added to those that are there


def _can_be_typed(value: object) -> bool:
    """Whether Hydra reads the names of all entries."""
    if not isinstance(value, Mapping):
        return True
    return all(map(_KEY.fullmatch, value)) and all(map(_can_be_typed, value.values()))


def _typed(value: object) -> str:
    """A value as Hydra reads it: a text in quotes, unless it is a plain word; in names of entries, which have
    no quotes there, signs that mean something else are marked."""
    if isinstance(value, Mapping):
        names = [_MEANING.sub(r"\\\g<0>", name) if _KEY.fullmatch(name) else _typed(name) for name in value]
        return f"{{{', '.join(f'{k}: {_typed(v)}' for k, v in zip(names, value.values(), strict=True))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_typed, value))}]"
    if value is None or isinstance(value, int | float):
        return "null" if value is None else f"{value:g}"
    text = str(value)
    if _WORD.fullmatch(text):
        return text
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + (found[2] and '\\"'), text)
    return f'"{escaped}"'


def number(
    option: str,
    value: object,
    above: float = -math.inf,
    least: float = -math.inf,
    unit: str = "",
    most: float = math.inf,
) -> float:
    """A finite number, greater than ``above``, and not less than ``least`` nor greater than ``most``;
    ``unit``: to be named.

    :raises InputError: anything else, true and false among it.
    """
    plain = not isinstance(value, bool)
    largest = min(most, sys.float_info.max)  # which a whole number can be beyond
    if plain and isinstance(value, int | float) and above < value and least <= value <= largest:
        return value
    bound = f" above {above:g}" if above > -math.inf else f" from {least:g}" if least > -math.inf else ""
    bound += f" to {most:g}" if most < math.inf else ""
    raise _unexpected(option, value, f"a number{bound}{f', in {unit}' if unit else ''}")


def fraction(option: str, value: object) -> float:
    """A number above 0 and below 1. :raises InputError: anything else."""
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise _unexpected(option, value, "a number between 0 and 1")


def whole(
    option: str, value: object, least: int, most: int | None = None, other: str = "", limit: str = ""
) -> int:
    """A whole number from ``least``, to ``most`` where given.

    :param other: what else the option can be, to be named.
    :param limit: what ``most`` is, to be named.
    :raises InputError: anything else, true and false among it.
    """
    plain = not isinstance(value, bool)
    if plain and isinstance(value, int) and value >= least and (most is None or value <= most):
        return value
    span = f"{least}" if most is None else f"{least} to {most}{f' ({limit})' if limit else ''}"
    raise _unexpected(option, value, f"{f'{other} or ' if other else ''}a whole number from {span}")


def flag(option: str, value: object) -> bool:
    """True or false. :raises InputError: anything else."""
    if isinstance(value, bool):
        return value
    raise _unexpected(option, value, "true or false")


def name(option: str, value: object) -> str | int | float:
    """A text that is something, or a number that may stand for one. :raises InputError: anything else."""
    if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
        return value
    raise _unexpected(option, value, "a name")


def one_of(option: str, value: object, choices: Iterable[str]) -> str:
    """One of several words. :raises InputError: anything else."""
    words = list(choices)
    if isinstance(value, str) and value in words:
        return value
    raise _unexpected(option, value, " or ".join(words) if len(words) < 3 else f"one of {', '.join(words)}")


def shown(value: object) -> str:
    """A value as an error quotes it: of something long or nested the beginning."""
    return _SHOWN.repr(value)


def _unexpected(option: str, value: object, expected: str) -> InputError:
    return InputError(f"{option} is {shown(value)}; expected {expected}")
