"""Whether options are of the kinds that what they are handed to declares."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
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
    kind."""
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
