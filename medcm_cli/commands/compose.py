"""A subcommand whose options Hydra composes: its flags, its jobs, and its errors in one line."""

import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from medcm_cli.commands.mistyped import check_added, explained, help_text, not_taken
from medcm_cli.commands.parser import check_flags
from medcm_cli.commands.terminal import OUT, refuse
from medcm_cli.errors import InputError
from medcm_cli.study.options import conf_dir


def run(command: str, config_name: str, arguments: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Compose the configuration ``config_name`` and run ``job`` for each combination of swept options.

    :param command: the name of the subcommand.
    :raises InputError: a flag, override, group or choice that does not exist.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, not to Hydra's own printer
    faults: list[Exception] = []

    def guarded(config: DictConfig) -> None:
        try:
            job(config)
        except InputError as error:
            refuse(InputError(not_taken(config_name, str(error))))  # here, before Hydra adds lines of its own
        except (OSError, OmegaConfBaseException) as error:
            refuse(error)
        except Exception as error:
            faults.append(error)
            raise

    composed = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)
    try:
        flags = _checked(command, arguments)
        check_added(command, config_name, flags.overrides)
        if not flags.help:
            sys.argv = ["medcm", *arguments]
            composed()
            return
        # Hydra takes a second to list the choices of each group, and does it twice.
        sys.argv = ["medcm", *(a for a in arguments if a not in ("-h", "--help")), "--cfg", "job"]
        with redirect_stdout(io.StringIO()) as configuration:
            composed()
        OUT.print(help_text(config_name, flags.config_dir, configuration.getvalue()))
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError, YAMLError) as error:
        if faults:
            raise
        fault = str(error).partition("Config search path")[0]
        raise InputError(explained(command, config_name, arguments, fault)) from error


def _checked(command: str, arguments: Sequence[str]) -> Namespace:
    """Flags and overrides among the arguments, by Hydra's parser, but for its usage text before an error.

    :raises InputError: a flag that it has not, or flags that do not go together.
    """

    def refuse_flag(message: str) -> None:
        raise InputError(f"{command}: {message}; medcm {command} --hydra-help lists the flags")

    parser = get_args_parser()
    parser.prog = f"medcm {command}"
    setattr(parser, "error", refuse_flag)  # noqa: B010 (a method, to a type checker)
    check_flags(parser, arguments, "; options are given without dashes, as in seed=1")
    return parser.parse_args(list(arguments))
