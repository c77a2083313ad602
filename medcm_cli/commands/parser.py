"""The parser of a command's flags: errors in one line, and defaults in the help."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from medcm_cli.commands.nearest import suggestion
from medcm_cli.errors import InputError


class Parser(argparse.ArgumentParser):
    """The parser of ``medcm COMMAND``.

    Its errors are one line, without the usage before them, and for a flag that does not exist it suggests one
    that does.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"medcm {command}", description=description, formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        """:raises InputError: always."""
        raise InputError(f"{message}; see {self.prog} --help")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """:raises InputError: arguments that do not fit."""
        # Before argparse, which would rather say what else is missing.
        check_flags(self, arguments)
        return self.parse_args(arguments)

    def add_folders(self) -> None:
        """The run folders that a command reads."""
        self.add_argument(
            "folders", type=Path, nargs="+", help="the outputs folder, a study, or any folder of runs"
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
        "--run", type=Path, required=True, help="a study's folder, or a folder of some of its fits"
    )
    parser.add_argument("--objective", help="use only the fits by this objective")
    parser.add_argument(
        "--method",
        default="importance",
        help="how a patient's posterior is found: importance, laplace or variational",
    )
    parser.add_argument(
        "--draws",
        type=int,
        help="draws of each patient's posterior (1000, or 200 for more than 100 patients, if not given)",
    )
    parser.add_argument("--out", type=Path, help=f"folder to write (STUDY/{kind}/NAME if not given)")
    add_trust(parser)
