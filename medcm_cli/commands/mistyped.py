"""What there is to choose, what is wrong with options that Hydra cannot compose, and what was meant.

Read off the configuration files, without composing them: which options there are, and which choices of a
group have each.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from medcm_cli.commands.nearest import nearest, suggestion
from medcm_cli.errors import InputError
from medcm_cli.study.options import conf_dir

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_added(command: str, config_name: str, overrides: Sequence[str]) -> None:
    """:raises InputError: an option that ``+`` would add at the top, where nothing that is added has a
    meaning."""
    added = [text for text in overrides if text.startswith("+")]
    for override in OverridesParser.create().parse_overrides(added):
        name = override.key_or_group
        if "." not in name and "/" not in name and name != "hydra":
            options = _Options(config_name, [conf_dir()])
            if name not in options.of:
                raise InputError(options.unknown(command, override))


def check_package(config_name: str, package: str | None) -> None:
    """:raises InputError: a part of the configuration to be printed that there is not."""
    known = _Options(config_name, [conf_dir()]).of if package else {}
    if package and package not in known:
        raise InputError(f"--package {package}: no such option{suggestion(package, known)}")


def help_text(config_name: str, config_dir: str | None, configuration: str) -> str:
    """What ``--help`` says: ``hydra.help.template`` with the choices of each group and the ``configuration``
    in it."""
    folders = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    choices = _Options(config_name, folders).groups
    main = yaml.load((conf_dir() / f"{config_name}.yaml").read_text(encoding="utf-8"), _LOADER)
    listed = (f"{group}: {', '.join(sorted(choices[group]))}\n" for group in sorted(choices))
    template = Template(main["hydra"]["help"]["template"])
    return template.substitute(APP_CONFIG_GROUPS="".join(listed), CONFIG=configuration)


def explained(command: str, config_name: str, arguments: Sequence[str], fault: str) -> str:
    """What is wrong with a command line that Hydra does not compose, in words that help; Hydra's own,
    ``fault``, for what is not known here."""
    flags = get_args_parser().parse_args(list(arguments))
    folders = [conf_dir()]
    if flags.config_dir is not None:
        folder = Path(flags.config_dir)
        if not folder.is_dir():
            beside = [path.name for path in folder.parent.glob("*/")]
            return f"--config-dir {folder}: no such folder{suggestion(folder.name, beside)}"
        folders.append(folder)
    if flags.config_name is not None:
        names = [path.stem for folder in folders for path in folder.glob("*.yaml")]
        name = str(flags.config_name).removesuffix(".yaml")
        if name not in names and "/" not in name:
            rest = suggestion(name, names) or "; --config-dir FOLDER says where it is"
            return f"--config-name {name}: no such configuration{rest}"
    overrides = []
    for text in flags.overrides:
        try:
            overrides.append(OverridesParser.create().parse_override(text))
        except HydraException as error:
            return f"{text}: {_unread(text) or str(error).partition('See https')[0].strip()}"
    options = _Options(config_name, folders)
    chosen = {f"{override.key_or_group}={override.value()}" for override in overrides}
    for override in overrides:
        if reason := options.choice(override) or options.unknown(command, override, chosen):
            return reason
        if override.is_sweep_override() and not flags.multirun:
            name, _, values = _text(override).partition("=")
            return (
                f"{name}={values}: several values; -m runs each of them, {name}=[{values}] makes them a list"
            )
    return fault.partition("To append to your config")[0].strip()


# Between the signs that Hydra's parser divides a value by; what it takes there without quotes.
_PIECE = re.compile(r"[^\[\]{},:]+")
_UNQUOTED = re.compile(r"[A-Za-z0-9_./\\$%*@?|+ -]*")


def _unread(text: str) -> str:
    """What to do about an option whose value has signs that are read only in quotes, such as brackets and
    letters beyond a to z; nothing where these are not what is wrong."""
    name, equals, value = text.partition("=")

    def quoted(found: re.Match[str]) -> str:
        piece = found[0].strip()
        if _UNQUOTED.fullmatch(piece) or piece[0] in "'\"":
            return found[0]
        return found[0].replace(piece, '"' + piece.replace('"', '\\"') + '"')

    divided = value[:1] in ("{", "[") or not _UNQUOTED.fullmatch(name.lstrip("+~"))
    better = f"{name}{equals}{_PIECE.sub(quoted, value) if divided else chr(34) + value + chr(34)}"
    odd = _odd(value, "[]{},:'\"")
    if not odd and (odd := _odd(name.lstrip("+~"), "")):
        return f"a name with {odd} is not read here; write it in a file, as {_IN_A_FILE}"
    if not odd:
        return ""
    try:
        OverridesParser.create().parse_override(better)
    except HydraException:
        return f"{odd} is read only in values, in double quotes; write it in a file, as {_IN_A_FILE}"
    shell = better.replace("'", "'\\''")
    return f"{odd} is read in double quotes only, and these in single ones: '{shell}'"


def _odd(text: str, known: str) -> str:
    """The signs of a text that need quotes, but for those in ``known``."""
    return "".join(
        dict.fromkeys(sign for sign in text if not _UNQUOTED.fullmatch(sign) and sign not in known)
    )


_IN_A_FILE = "`medcm help configuration` says under -cd"


def not_taken(config_name: str, fault: str) -> str:
    """A message about an option that was added and that its class does not take, in words that help; other
    messages as they are."""
    found = re.match(r"(\w+): .*unexpected keyword argument '(\w+)'", fault)
    if found is None:
        return fault
    key = f"{found[1]}.{found[2]}"
    return f"{key}: no such option{suggestion(key, _Options(config_name, [conf_dir()]).of)}"


class _Options:
    """The options that a command has: ``of``, from dotted names to the choices that have each, as in
    objective=foce, none where every configuration has it; ``groups``, and their choices."""

    def __init__(self, config_name: str, folders: Sequence[Path]) -> None:
        self.groups: dict[str, list[str]] = {}
        self.of: dict[str, list[str]] = {}
        self._mappings: set[str] = set()
        self._targets: dict[str, str] = {}
        main, has = _composed(conf_dir(), conf_dir() / f"{config_name}.yaml")
        self._usual = {f"{group}={name}" for group, name in has.items()}
        main.pop("hydra", None)
        self._add(main, "")
        for folder in folders:
            for path in sorted(folder.glob("*/[!_]*.yaml")):
                group = path.parent.name
                if group in has:
                    self.groups.setdefault(group, []).append(path.stem)
                    self.of.setdefault(group, [])
                    self._add({group: _composed(folder, path)[0]}, f"{group}={path.stem}")

    def _add(self, options: Mapping[str, Any], choice: str) -> None:
        for key, value in _flat(options):
            if key.endswith("_target_"):
                self._targets[key.partition(".")[0]] = str(value)
            self.of.setdefault(key, []).extend([choice] if choice else [])
            if isinstance(value, Mapping):
                self._mappings.add(key)

    def choice(self, override: Override) -> str:
        """Why an override chooses nothing from a group; nothing where it does, or is none of a group."""
        known = self.groups.get(override.key_or_group)
        if known is None or override.is_delete():
            return ""
        chosen = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
        for name in chosen:
            if isinstance(name, str) and name not in known:
                rest = suggestion(name, known) or f"; there are {', '.join(known)}"
                return f"{override.key_or_group}={name}: no such choice{rest}"
        return ""

    def unknown(self, command: str, override: Override, chosen: Collection[str] = ()) -> str:
        """Why an override that Hydra refuses names no option, and what it may mean; nothing where it names
        one, which may be of what is ``chosen`` beside it, such as objective=foce."""
        key = override.key_or_group
        if key in self.groups or key.startswith("hydra") or "/" in key or override.package is not None:
            return ""
        group, _, _ = key.partition(".")
        above = key.rpartition(".")[0]
        if key in self.of:
            choices = self.of[key]
            if key in self._mappings and not override.is_delete() and not override.is_add():
                given = override.value()
                if isinstance(given, Mapping) and all(f"{key}.{name}" in self.of for name in given):
                    return ""  # it has them all, and another override is at fault
                return f"{key}: entries are added with a +, as in +{_text(override)}"
            # What is chosen of a group stands in the place of what it has by default.
            own = any(one.startswith(f"{group}=") for one in chosen)
            there = set(chosen) if own else {*chosen, *self._usual}
            if choices and len(choices) < len(self.groups[group]) and not set(choices) & there:
                return f"{key}: only {', '.join(choices)} has this option"
            return ""
        free = above in self._mappings and above not in self.groups
        if close := nearest(key, (name for name in self.of if not free or name.startswith(f"{above}."))):
            return f"{key}: no such option; did you mean {' or '.join(close)}?"
        foreign = above in self.groups and not self._targets.get(group, "medcm_cli").startswith("medcm_cli")
        if (free or foreign) and not override.is_add() and not override.is_delete():
            return f"{key}: no such option; to add it, give +{_text(override)}"
        return f"{key}: no such option; medcm {command} --help lists them"


def _text(override: Override) -> str:
    """As it was given."""
    return override.input_line or override.key_or_group


def _composed(folder: Path, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The options of a configuration file below ``folder`` and of the files that it is composed of, and the
    groups that it has a choice of, with that choice."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _LOADER)  # a subclass of SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):  # Hydra says so where it is chosen
        return {}, {}
    if not isinstance(loaded, dict):
        return {}, {}
    options: dict[str, Any] = {}
    groups: dict[str, str] = {}
    for entry in loaded.pop("defaults", []):
        if isinstance(entry, Mapping):
            groups |= {str(key): str(value) for key, value in entry.items()}
            continue
        name = str(entry).partition("@")[0]
        part = (folder if name.startswith("/") else path.parent) / f"{name.lstrip('/')}.yaml"
        if part.is_file():
            below, more = _composed(folder, part)
            options |= below
            groups |= more
    return options | loaded, groups


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every option with its dotted name, groups of options too."""
    for key, value in options.items():
        yield f"{above}{key}", value
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
