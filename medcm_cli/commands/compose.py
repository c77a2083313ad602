"""A subcommand whose options Hydra composes: its flags, its jobs, and its errors in one line."""

import os
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from medcm_cli.commands.terminal import refuse
from medcm_cli.errors import InputError
from medcm_cli.study.options import conf_dir


def check_flags(command: str, arguments: Sequence[str]) -> None:
    """Hydra's parser, but for its usage text before an error. :raises InputError: a flag that it has not."""

    def refuse_flag(message: str) -> None:
        raise InputError(f"{command}: {message}; `medcm {command} --hydra-help` lists the flags")

    parser = get_args_parser()
    setattr(parser, "error", refuse_flag)  # noqa: B010 (a method, to a type checker)
    parser.parse_args(arguments)


def run(config_name: str, arguments: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Compose the configuration ``config_name`` and run ``job`` for each combination of swept options.

    :raises InputError: an override, group or choice that does not exist.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, not to Hydra's own printer
    sys.argv = ["medcm", *arguments]
    faults: list[Exception] = []

    def guarded(config: DictConfig) -> None:
        try:
            job(config)
        except (InputError, OSError, OmegaConfBaseException) as error:
            refuse(error)  # here, before Hydra adds lines of its own
        except Exception as error:
            faults.append(error)
            raise

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)()
    except (HydraException, OmegaConfBaseException, ValueError, YAMLError) as error:
        if faults:
            raise
        raise InputError(str(error).partition("Config search path")[0]) from error
