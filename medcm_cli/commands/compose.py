"""A subcommand whose options Hydra composes: its flags, its jobs, and its errors in one line."""

import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from textwrap import shorten

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from medcm_cli.commands.mistyped import check_added, check_package, explained, help_text, not_taken
from medcm_cli.commands.parser import check_flags
from medcm_cli.commands.terminal import OUT, refuse
from medcm_cli.errors import InputError, JobError
from medcm_cli.files import DEEPEST
from medcm_cli.study.options import conf_dir


def run(command: str, config_name: str, arguments: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Compose the configuration ``config_name`` and run ``job`` for each combination of swept options.

    :param command: the name of the subcommand.
    :raises InputError: a flag, override, group or choice that does not exist.
    :raises JobError: jobs of a multirun that failed, once the others are done; each has said why.
    """
    check_arguments(arguments)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, not to Hydra's own printer
    faults: list[Exception] = []
    failed: list[str] = []
    here = os.getpid()

    def guarded(config: DictConfig) -> None:
        try:
            job(config)
        except InputError as error:
            refuse(InputError(not_taken(config_name, str(error))))  # here, before Hydra adds lines of its own
        except (OSError, OmegaConfBaseException) as error:
            refuse(error)
        except Exception as error:
            faults.append(error)
            # A launcher's process cannot add to the list. Hydra's own would print lines before the others.
            if HydraConfig.get().mode is not RunMode.MULTIRUN or os.getpid() != here:
                raise
            name = _swept(HydraConfig.get().overrides.task, arguments)
            failed.append(name)
            print(f"medcm: {name}: {_reason(error)}", file=sys.stderr)

    composed = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)
    try:
        flags = checked_flags(command, config_name, arguments)
        check_added(command, config_name, flags.overrides)
        sys.argv = ["medcm", *arguments]
        (partial(_help, config_name, flags.config_dir, composed) if flags.help else composed)()
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError, YAMLError, RecursionError) as error:
        if faults:
            raise
        raise InputError(_why(error, command, config_name, arguments)) from error
    if failed:
        raise _listed(failed) from faults[0]


def check_arguments(arguments: Sequence[str]) -> None:
    """:raises InputError: an override without a name, or with more brackets inside one another than its
    parser comes back from."""
    for argument in arguments:
        if argument.partition("=")[0] == "":
            raise InputError(f"{argument!r}: expected OPTION=VALUE")
        depth = 0
        for character in argument:
            depth += (character in "[{(") - (character in "]})")
            if depth > DEEPEST:
                name = argument.partition("=")[0][:100]
                raise InputError(f"{name}: expected at most {DEEPEST} brackets inside one another")


def _why(error: Exception, command: str, config_name: str, arguments: Sequence[str]) -> str:
    """Why a command line was not composed."""
    if isinstance(error, RecursionError):  # overrides have been checked, so that it is a file
        return "the configuration is nested too deeply, or refers to itself"
    return explained(command, config_name, arguments, str(error).partition("Config search path")[0])


def _listed(failed: Sequence[str]) -> JobError:
    jobs = "1 job" if len(failed) == 1 else f"{len(failed)} jobs"
    return JobError(f"{jobs} of the multirun failed: {'; '.join(failed)}")


def _help(config_name: str, config_dir: str | None, composed: Callable[[], None]) -> None:
    """What Hydra prints, but for its two searches for the choices of each group, which take a second."""
    sys.argv = [*(word for word in sys.argv if word not in ("-h", "--help")), "--cfg", "job"]
    with redirect_stdout(io.StringIO()) as configuration:
        composed()
    OUT.print(help_text(config_name, config_dir, configuration.getvalue()))


def _swept(overrides: Sequence[str], arguments: Sequence[str]) -> str:
    """What tells a job from the others of its multirun."""
    names = []
    for argument in arguments:
        with suppress(HydraException):
            override = OverridesParser.create().parse_override(argument)
            if override.is_sweep_override():
                names.append(override.key_or_group)
    own = [text for text in overrides if text.partition("=")[0] in names]
    return shorten(" ".join(own) or "the job", 80)


def _reason(error: Exception) -> str:
    if isinstance(error, JobError):
        return str(error)
    return " ".join(f"internal error, {type(error).__name__}: {error}".split())


def checked_flags(command: str, config_name: str, arguments: Sequence[str]) -> Namespace:
    """Flags and overrides among the arguments, by Hydra's parser, but for its usage text before an error.

    :raises InputError: a flag that it has not, or flags that do not go together.
    """

    def refuse_flag(message: str) -> None:
        raise InputError(f"{command}: {message}; medcm {command} --hydra-help lists the flags")

    parser = get_args_parser()
    parser.prog = f"medcm {command}"
    setattr(parser, "error", refuse_flag)  # noqa: B010 (a method, to a type checker)
    check_flags(parser, arguments, "; options are given without dashes, as in seed=1")
    flags = parser.parse_args(list(arguments))
    if flags.experimental_rerun is not None:
        raise InputError("--experimental-rerun: is not for medcm; a file for it can run any code")
    path = flags.config_path
    if path is not None and not (Path(path).is_absolute() and Path(path).is_dir()):
        raise InputError(
            f"--config-path {path}: expected the absolute path of a folder that takes the place of medcm's; "
            "--config-dir adds one"
        )
    check_package(config_name, flags.package if flags.cfg == "job" else None)
    return flags
