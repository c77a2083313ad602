"""The ``medcm fit`` commands that repeat what run folders hold, from their recorded configurations."""

import functools
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medcm_cli.errors import InputError
from medcm_cli.files import folder_name
from medcm_cli.runs import Address, Record
from medcm_cli.study.identity import Config, difference, full_units, identity
from medcm_cli.study.options import as_config, complete, conf_dir, with_protocol
from medcm_cli.study.trust import foreign_part
from medcm_cli.study.units import without_derived

_GROUPS = ("dataset", "split", "network", "pk", "error", "objective", "optimizer")
# No part of what a result is, but of where it lies and how it is reported.
_PLACES = ("study", "outputs", "tail")


@dataclass(frozen=True)
class Command:
    """``arguments`` of ``medcm``, of ``fits`` fits, none where they cannot be found; ``note``: why, or in
    what they differ from what was run, empty where they are the same to the last option, folder included."""

    arguments: tuple[str, ...]
    fits: int
    note: str = ""

    @property
    def text(self) -> str:
        """For a shell; the value alone is quoted, as one types it."""
        return " ".join(["medcm", *map(_quoted, self.arguments)])


def _quoted(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if shlex.quote(name.lstrip("+~")) != name.lstrip("+~"):
        return shlex.quote(argument)  # no option's name: what a file of another's says may be anything
    return name + equals + (shlex.quote(value) if value else "")


def commands(records: Sequence[Record], trust: bool = False) -> list[Command]:
    """As few as name every fit: one for all objectives that have the same options and fits.

    :param trust: without it there is no command that would run what is not medcm's own.
    """
    held: dict[str, list[Record]] = {}
    for record in records:
        key = [record.address.alike, record.config]
        held.setdefault(json.dumps(key, sort_keys=True), []).append(record)
    merged: dict[tuple[tuple[str, ...], tuple[str, ...], str], tuple[list[str], int]] = {}
    unknown: list[Command] = []
    for group in held.values():
        options, note = overrides(group[0].config, group[0].address, trust)
        if not options and note:
            unknown.append(Command((), len(group), note))
            continue
        names = [option for option in options if option.startswith("objective=")]
        rest = tuple(option for option in options if option not in names)
        objective = names[0].partition("=")[2] if names else _choices()["objective"]
        for product in _products([tuple(map(int, r.address.where.values())) for r in group]):
            axes = zip(group[0].address.where, product, strict=True)
            values = tuple(f"{name}={_axis(numbers)}" for name, numbers in axes)
            objectives, fits = merged.get((rest, values, note), ([], 0))
            count = fits + math.prod(map(len, product))
            merged[rest, values, note] = [*objectives, objective], count
    result = []
    for (rest, values, note), (objectives, fits) in merged.items():
        many = ("-m",) if len(objectives) > 1 else ()
        first = f"objective={','.join(dict.fromkeys(objectives))}"
        result.append(Command(("fit", *many, first, *rest, *values), fits, note))
    return [*result, *unknown]


def _products(places: Iterable[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    """Sets of numbers, one for each axis, whose products together hold every place once."""
    behind: dict[int, set[tuple[int, ...]]] = {}
    for first, *rest in places:
        behind.setdefault(first, set()).add(tuple(rest))
    alike: dict[frozenset[tuple[int, ...]], list[int]] = {}
    for first in sorted(behind):
        alike.setdefault(frozenset(behind[first]), []).append(first)
    result = []
    for rests, firsts in alike.items():
        inner = _products(rests) if any(rests) else [()]
        result += [(tuple(firsts), *product) for product in inner]
    return result


def _axis(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) == 1:
        return str(first)
    if len(numbers) > 2 and list(numbers) == list(range(first, last + 1)):
        return f"range({first},{last + 1})"
    return ",".join(map(str, numbers))


def overrides(config: Config, address: Address, trust: bool = False) -> tuple[list[str], str]:
    """The options, relative to the defaults, that give a recorded configuration and a fit's folder; and a
    note, empty where they give just these. :param trust: see ``commands``."""
    foreign = foreign_part(config)
    if foreign and not trust:
        return [], f"cannot be given without trust in who made run.json (--trust): {foreign}"
    try:
        # Of no consequence to a result, and not recorded.
        whole = complete({"batch": _composed(())["batch"], "overwrite": False, **config})
        recorded = without_derived(_as_given(whole))
        chosen, note = _chosen(recorded)
        options = [f"{group}={name}" for group, name in chosen.items() if name != _choices()[group]]
        plain = [key for key, value in _composed(()).items() if not isinstance(value, Mapping)]
        # Of values that follow others, as the optimiser's learning rate does, those that then still differ.
        for keys in (plain, [*_GROUPS, "training", *plain]):
            base = with_protocol(_composed(tuple(options)))
            options += _differences(_part(recorded, keys), _part(base, keys), recorded, base)
        found, folder = _final(tuple(options))
        renamed = [str(name) for group, name in recorded["labels"].items() if name != chosen.get(group, name)]
        named = [address.variant] if address.variant != "default" or not renamed else []
        variant = "+".join([*renamed, *named])
        if variant != folder:
            options.append(f"variant={_value(variant)}")
        if _comparable(recorded) != _comparable(without_derived(found)):
            note = f"not quite what was recorded: {difference(recorded, without_derived(_as_given(found)))}"
    except (InputError, HydraException, OmegaConfBaseException, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        return [], f"cannot be derived from what was recorded ({type(error).__name__}: {reason})"
    return options, note


def _chosen(recorded: Config) -> tuple[dict[str, str], str]:
    """Of each group the choice that was made, where its name is recorded, or that comes nearest."""
    result, notes = {}, []
    for group in _GROUPS:
        name = recorded["labels"].get(group)
        names = _names(group)
        if name in names:
            result[group] = str(name)
            continue
        result[group] = _nearest(group, names, _flat(recorded[group]))
        if name is not None:
            notes.append(
                f"{group}={name} is a choice of a folder that was given with -cd, which is not recorded; "
                f"here it is spelt out, under {group}={result[group]} and a variant of that name"
            )
    return result, "; ".join(notes)


def _names(group: str) -> list[str]:
    """The choices of a group."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def _nearest(group: str, names: Sequence[str], given: Mapping[str, str]) -> str:
    """The choice whose values differ least from those ``given``, the default first. Others are not looked at,
    which takes Hydra long, once nothing differs."""
    default = _choices()[group]
    least: dict[str, int] = {}
    for name in sorted(names, key=lambda name: name != default):
        least[name] = _distance(given, _leaf(group, name))
        if not least[name]:
            break
    return min(least, key=lambda name: least[name])


@functools.cache
def _leaf(group: str, name: str) -> dict[str, str]:
    """The values of a choice, as ``${name}`` where they follow other options."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = compose(f"{group}/{name}")[group]
    return _flat(OmegaConf.to_container(found))


def _flat(options: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name -> value, as text."""
    if not isinstance(options, Mapping) or not options:
        return {prefix: _value(options)}
    parts = (_flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in options.items())
    return {name: value for part in parts for name, value in part.items()}


def _distance(given: Mapping[str, str], leaf: Mapping[str, str]) -> int:
    """How many values differ; one that follows another option equals any."""
    names = [name for name in {*given, *leaf} if "${" not in leaf.get(name, "")]
    return sum(given.get(name) != leaf.get(name) for name in names)


def _composed(options: tuple[str, ...]) -> dict[str, Any]:
    """What Hydra makes of options, with ``???`` where one is missing."""
    return _hydra(options)[0]


@functools.cache
def _hydra(options: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str], str]:
    """The configuration, the choices of its groups, and the variant that names its folder."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", list(options), return_hydra_config=True)
    hydra = composed.hydra
    choices = {str(key): str(value) for key, value in hydra.runtime.choices.items()}
    variant = folder_name(str(hydra.job.override_dirname)) or "default"
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}, choices, variant


def _choices() -> dict[str, str]:
    return _hydra(())[1]


def _final(options: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The complete configuration, checked as ``medcm fit`` does, and its variant."""
    config, _, variant = _hydra(options)
    return complete(as_config(OmegaConf.create(config))), variant


def _as_given(config: Config) -> dict[str, Any]:
    """A configuration without what a fit itself adds to it: the name and truth of a cohort's stand-in."""
    dataset = dict(config["dataset"])
    if dataset.get("cohort") is not None and dataset.get("path") is None:
        dataset |= {"name": str(dataset["name"]).removeprefix("synthetic_"), "truth": None}
    return {**config, "dataset": dataset}


def _comparable(config: Config) -> list[Any]:
    own = identity(_as_given(config))
    return [own, config["dataset"]["path"], *(config[name] for name in _PLACES)]


def _part(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    """What matters of some options: that of their identity, and where results and data lie."""
    own = identity(config)
    data = config["dataset"]
    own["dataset"] = {**own["dataset"], "path": data.get("path"), "units": full_units(data.get("units"))}
    own |= {name: config[name] for name in _PLACES}
    return {key: own[key] for key in keys if key in own}


def _differences(new: Config, old: Config, every: Config, base: Config, prefix: str = "") -> list[str]:
    """Overrides that turn ``old`` into ``new``; ``every`` and ``base``: all that they are a part of."""
    result = []
    for key in dict.fromkeys([*new, *old]):
        name = f"{prefix}{key}"
        if key not in new and key not in every:
            result.append(f"~{name}")
            continue
        wanted = new.get(key, every.get(key))
        there = old.get(key, base.get(key))
        if isinstance(wanted, Mapping) and isinstance(there, Mapping):
            parts = (every.get(key) or {}, base.get(key) or {})
            result += _differences(wanted, there, *parts, f"{name}.")
        elif wanted != there or key not in base:
            result.append(f"{'' if key in base else '+'}{name}={_value(wanted)}")
    return result


def _value(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and not _plain(value):
        return QuotedString(value, Quote.single).with_quotes()
    return str(value)


def _plain(text: str) -> bool:
    """Whether it needs no quotes: letters, digits and a few signs, and no number or word that means more."""
    letters = text.replace("_", "a").replace("/", "a").replace(".", "a").replace("-", "a")
    start = text[:1].isalpha() or text[:1] in "./_"
    words = ("null", "true", "false", "nan", "inf")
    return letters.isalnum() and letters.isascii() and start and text.lower() not in words


__all__ = ["Command", "commands", "overrides"]
