"""What was asked for where a command writes by default, so that it is said where something that was asked for
otherwise is replaced."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcm_cli.commands.terminal import ERR
from medcm_cli.errors import InputError
from medcm_cli.files import from_json, write_text

_OF_NO_CONSEQUENCE = ("out", "trust")  # to results


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """What a command was asked for, as its results say it: the same command again may replace them."""
    given = {name: value for name, value in vars(options).items() if name not in _OF_NO_CONSEQUENCE}
    found: dict[str, Any] = json.loads(json.dumps(given, default=lambda path: str(Path(path).resolve())))
    return found


def differing(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """In which flags two of ``asked`` differ."""
    names = [name for name in wanted if held.get(name) != wanted[name]]
    return ["folders" if name == "folders" else f"--{name.replace('_', '-')}" for name in names]


def tell(place: Path, record: Path, options: argparse.Namespace) -> None:
    """Once ``place`` is written, say on stderr where that replaced what was asked for otherwise.

    :param record: a file beside or in the place, which is renewed.
    """
    wanted = asked(options)
    try:
        held = dict(from_json(record.read_text(encoding="utf-8"), record))
    except (OSError, InputError, ValueError, TypeError):
        held = wanted  # nothing is known of it, if there was any
    if others := differing(held, wanted):
        ERR.print(f"{place}: replaced what was made with another {', '.join(others)}; --out keeps both")
    write_text(record, json.dumps(wanted, indent=1) + "\n")
