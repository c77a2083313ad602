"""What a recorded configuration may name. Reading another's results is to run none of their code: without
``trust`` a ``_target_`` is instantiated only if it is one of medcm's own or an optimiser of torch."""

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

import medcm_cli
from medcm_cli import data, haemophilia, model, objectives, pk
from medcm_cli.errors import InputError
from medcm_cli.files import DEEPEST
from medcm_cli.runs import RECORD
from medcm_cli.study.identity import RENAMED, Config

_ROOMS = (data, haemophilia, model, objectives, pk, pk.models)
_ROOTS = {"medcm_cli": medcm_cli, "torch": torch}
# These give what their ``path`` names.
_GETTERS = tuple(f"hydra.utils.get_{what}" for what in ("method", "static_method", "class", "object"))
_NAMED = ("split", "network", "pk", "error", "objective")
_LONGEST = 100  # characters of a value that are shown


def check_recorded(config: Config, folder: Path, trust: bool) -> None:
    """Whether the configuration of the fit in ``folder`` may be instantiated.

    :param trust: its origin is known, so that it may name whatever can be imported.
    :raises InputError: it names what is neither medcm's own nor an optimiser of torch, or lacks a group.
    """
    for group in ("dataset", *_NAMED):
        options = config.get(group)
        if not isinstance(options, Mapping) or (group in _NAMED and "_target_" not in options):
            raise InputError(f"{folder / RECORD}: does not have the contents of a run (no {group})")
    foreign = foreign_part(config)
    if foreign and not trust:
        raise InputError(
            f"{folder / RECORD}: {foreign}; it is used only on trust in who made the file (--trust)"
        )


def foreign_part(config: Config) -> str:
    """The first part of a configuration that could run code that is not medcm's, in words; empty where there
    is none."""
    waiting: list[tuple[str, Any, int]] = [("", config, 0)]
    while waiting:  # no recursion: the file's nesting is another's choice
        place, value, depth = waiting.pop()
        if depth > DEEPEST:
            return f"{place[:_LONGEST]} is nested too deeply"
        if isinstance(value, str) and "${" in value:
            return f"{place} is {_shown(value)}, a reference to other values"
        if isinstance(value, Mapping):
            named = _foreign_target(value)
            if named is not None:
                return f"{place}{named}, which is not medcm's own"
            waiting += [
                (f"{place}.{key}" if place else str(key), part, depth + 1) for key, part in value.items()
            ]
        elif isinstance(value, list):
            waiting += [(f"{place}[{number}]", part, depth + 1) for number, part in enumerate(value)]
    return ""


def _foreign_target(options: Config) -> str | None:
    """What a group of options would call that is not ours, in words; None where there is nothing."""
    if "_target_" not in options:
        return None
    target = options["_target_"]
    if target not in _GETTERS:
        return None if _is_ours(target) else f"._target_ is {_shown(target)}"
    # Options beside the path could hand it over in another way.
    plain = set(options) == {"_target_", "path"} and _is_ours(options["path"])
    return None if plain else f" is {_shown({key: options[key] for key in options if key != '_target_'})}"


def _is_ours(path: object) -> bool:
    """Whether the object behind a dotted path is ours, whatever it is called. Nothing is imported to find it:
    importing a module runs it."""
    if not isinstance(path, str):
        return False
    ours = _ours()  # first of all: what a room exports it may load only now
    first, *rest = RENAMED.get(path, path).split(".")
    found: Any = _ROOTS.get(first)
    for name in rest:
        found = inspect.getattr_static(found, name, None)
    return id(found) in ours


@functools.cache
def _ours() -> dict[int, object]:
    """What may be called, by identity: classes and functions that a room exports, class methods of such
    classes, and optimisers."""
    exported = [getattr(room, name) for room in _ROOMS for name in room.__all__]
    made = [one for one in exported if isinstance(one, type | FunctionType)]
    methods = [
        method
        for one in made
        if isinstance(one, type)
        for name, method in vars(one).items()
        if isinstance(method, classmethod) and not name.startswith("_")
    ]
    optimisers = [
        one
        for one in vars(torch.optim).values()
        if isinstance(one, type) and issubclass(one, torch.optim.Optimizer)
    ]
    return {id(one): one for one in (*made, *methods, *optimisers)}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
