"""Whether options are of the kinds that what they are handed to declares, and that itself of its group's."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object

from medcm_cli.checks import flag
from medcm_cli.errors import InputError

_HYDRAS = ("_target_", "_partial_")
_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    NoneType: "null",
}


def check_plain(group: str, options: Mapping[str, Any]) -> None:
    """:raises InputError: of the keys that Hydra reads, one that no group of medcm has, or of another
    kind, or none that says what to make."""
    if "_target_" not in options:
        raise InputError(f"{group}._target_: is missing; expected the name of a class or function")
    for key, value in options.items():
        if str(key).startswith("_") and key not in _HYDRAS:
            raise InputError(f"{group}.{key}: no such option; only {' and '.join(_HYDRAS)} begin with _")
        if key == "_target_" and not isinstance(value, str):
            raise InputError(f"{group}._target_ is {value!r}; expected the name of a class or function")
        if isinstance(value, Mapping) and str(value.get("_target_")).startswith("hydra.utils.get_"):
            path = value.get("path")
            if not isinstance(path, str) or not path:
                raise InputError(f"{group}.{key}.path is {path!r}; expected the name of a function")
    flag(f"{group}._partial_", options.get("_partial_", False))


def check_kinds(group: str, options: Mapping[str, Any]) -> None:
    """Options of a group against the annotations of its ``_target_``; those that it does not annotate, or
    with types of its own, are taken as they are.

    :raises InputError: an option of another kind.
    """
    hints = _hints(get_object(options["_target_"]))
    for key, value in options.items():
        if key in hints and not _fits(value, hints[key]):
            raise InputError(f"{group}.{key} is {value!r}; expected {_words(hints[key])}")


def check_target(group: str, options: Mapping[str, Any]) -> None:
    """:raises InputError: what ``_target_`` names is ours or torch's, and not of this group."""
    try:
        target = resolve_name(options["_target_"])
    except Exception:  # whatever an import runs into; instantiating says what
        return
    given = target if isinstance(target, type) else _hints(target).get("return")
    if isinstance(given, type) and given.__module__.partition(".")[0] in ("medcm_cli", "torch"):
        contract, _ = _contracts()[group]
        if contract not in given.__mro__:  # a protocol of data has no subclasses but those that name it
            raise _misplaced(group, options, given)


def check_made(group: str, options: Mapping[str, Any], result: object) -> None:
    """:raises InputError: what has been made of a group is not what the group is of."""
    if not isinstance(result, _contracts()[group][0]):
        raise _misplaced(group, options, type(result))


def _misplaced(group: str, options: Mapping[str, Any], given: type) -> InputError:
    others = (words for contract, words in _contracts().values() if contract in given.__mro__)
    got = next(others, f"a value of type {given.__name__}")
    return InputError(
        f"{group}._target_ is {options['_target_']}: expected {_contracts()[group][1]}, got {got}"
    )


@cache
def _contracts() -> Mapping[str, tuple[type, str]]:
    """Group -> what it is of, and in words."""
    from torch.optim import Optimizer  # takes seconds, which a fault found before need not wait for

    from medcm_cli.data import Fold
    from medcm_cli.model import ErrorModel, Network
    from medcm_cli.objectives import Objective
    from medcm_cli.pk import PkModel

    return {
        "split": (Fold, "a split"),
        "network": (Network, "a network"),
        "pk": (PkModel, "a pk model"),
        "error": (ErrorModel, "a residual error"),
        "objective": (Objective, "an objective"),
        "optimizer": (Optimizer, "an optimiser"),
    }


def _hints(target: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        plain = isinstance(target, type) and not is_dataclass(target)
        return get_type_hints(target.__init__ if plain else target)
    except (NameError, TypeError, AttributeError):  # names that are only there for type checkers
        return {}


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in _WORDS:
        return isinstance(value, hint)
    if not isinstance(kind, type):
        return not isinstance(value, float) or math.isfinite(value)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(part, (*parts, Any, Any)[1]) for part in value.values()
        )
    if issubclass(kind, Sequence):
        return isinstance(value, list | tuple) and all(_fits(part, (*parts, Any)[0]) for part in value)
    return True


def _words(hint: Any) -> str:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, parts)))
    if kind is Literal:
        return " or ".join(map(str, parts))
    if hint in _WORDS:
        return _WORDS[hint]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a group of options"
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return f"a list, each {_words((*parts, Any)[0])}"
    return f"a value for {getattr(hint, '__name__', hint)}"
