"""The option ``occasions``: which parameters differ between the occasions of a subject, and when these begin.
Loads no torch."""

import itertools
from collections.abc import Mapping
from typing import Any

from medcm_cli.checks import number, shown
from medcm_cli.errors import InputError

MOST = 1000  # of a subject
_KEYS = ("parameters", "structure", "column", "times", "gap")
_EXAMPLE = "{parameters: [CL], column: OCC}"


def check_occasions(given: object) -> None:
    """:raises InputError: neither null nor a group of options that says what it has to."""
    if given is None:
        return
    if not isinstance(given, Mapping) or set(given) - set(_KEYS):
        raise InputError(f"occasions is {shown(given)}; expected null, or some of {', '.join(_KEYS)}")
    parameters = given.get("parameters")
    if not isinstance(parameters, list) or not parameters or not all(isinstance(p, str) for p in parameters):
        raise InputError(
            f"occasions.parameters is {shown(parameters)}; expected a list of parameters, as in {_EXAMPLE}"
        )
    said = [name for name in ("column", "times", "gap") if given.get(name) is not None]
    if len(said) > 1:
        raise InputError(
            f"occasions.{said[0]} and occasions.{said[1]} both say when occasions begin; expected one of them"
        )
    column, times = given.get("column"), given.get("times")
    if column is not None and (not isinstance(column, str) or not column):
        raise InputError(f"occasions.column is {shown(column)}; expected the name of a column")
    if given.get("gap") is not None:
        number("occasions.gap", given["gap"], above=0, most=1e6)
    if times is not None:
        _check_times(times)


def _check_times(times: object) -> None:
    if not isinstance(times, list) or not 0 < len(times) < MOST:
        raise InputError(
            f"occasions.times is {shown(times)}; expected a list of times, at which others begin"
        )
    begins = [number("occasions.times", time) for time in times]
    if any(later <= earlier for earlier, later in itertools.pairwise(begins)):
        raise InputError(f"occasions.times is {shown(times)}; expected times in ascending order")


def structure_of(given: Mapping[str, Any]) -> Any:
    """That of Pi: diagonal where nothing is said."""
    structure = given.get("structure")
    return "diagonal" if structure is None else structure
