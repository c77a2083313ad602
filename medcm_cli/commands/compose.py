"""A subcommand whose options Hydra composes: its flags, its jobs, and its errors in one line."""

import io
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, SearchPathException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from medcm_cli.commands.mistyped import check_added, check_package, explained, help_text, not_taken
from medcm_cli.commands.parser import check_flags
from medcm_cli.commands.terminal import OUT, ending
from medcm_cli.errors import InputError, JobError
from medcm_cli.files import DEEPEST, one_line
from medcm_cli.study.options import conf_dir

Use = Callable[[DictConfig], None]
"""What is done with a composed configuration."""
Job = Callable[[DictConfig], Any]
"""What a job does; it may return what is left to do of it, or None."""
Together = Callable[[Sequence[Any]], Iterator[tuple[int, Exception]]]
"""Do what is left of some jobs: the number, from 0, and the error of each that fails, as it does."""

RECORD = "multirun.yaml"
"""What Hydra writes of a multirun, in the study's folder."""
_IN_THIS_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
_SHOW = ("cfg", "info", "shell_completion", "hydra_help")  # flags that run no job


def _nothing(left: Sequence[Any]) -> Iterator[tuple[int, Exception]]:
    assert not left
    yield from ()


def run(
    command: str,
    config_name: str,
    arguments: Sequence[str],
    check: Use,
    job: Job,
    together: Together = _nothing,
) -> None:
    """Compose the configuration ``config_name`` and run ``job`` for each combination of swept options.

    :param command: the name of the subcommand.
    :param check: finds what is wrong with a configuration in itself: with every one before a job runs.
    :param together: does what jobs have left, of all that are run in this process at once.
    :raises InputError: a flag, override, group or choice that does not exist, or what ``check`` finds.
    :raises JobError: jobs of a multirun that failed, once the others are done; each has said why.
    """
    check_arguments(arguments)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, not to Hydra's own printer
    flags = checked_flags(command, config_name, arguments)
    sys.argv = ["medcm", *arguments]
    error = None
    try:
        check_added(command, config_name, flags.overrides)
        # This also sets the version of Hydra's rules, which jobs go by.
        show = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)
        if flags.help:
            _help(config_name, flags.config_dir, show)
        elif any(getattr(flags, name) for name in _SHOW) or (flags.run and flags.multirun):
            show()
        else:
            error = _run(command, config_name, flags, check, job, together)
    except InputError as found:
        error = found
    except (HydraException, OmegaConfBaseException, ValueError, YAMLError, RecursionError) as found:
        raise InputError(_why(found, command, config_name, arguments)) from found
    if isinstance(error, InputError | OmegaConfBaseException):
        raise InputError(not_taken(config_name, str(error))) from error
    if error is not None:
        raise error


def _run(
    command: str, config_name: str, flags: Namespace, check: Use, job: Job, together: Together
) -> Exception | None:
    """The error of the only job; of several, once all are done, that some of them failed; None where there is
    nothing to say."""
    jobs = _Jobs(config_name, flags.overrides, job, together)

    def alone(config: DictConfig) -> Exception | None:
        try:
            check(config)
        except Exception as error:
            return error  # from a raised one Hydra makes lines of its own
        return jobs.one(config)

    name = flags.config_name or config_name
    with _hydra(command, flags, check) as engine:
        mode = RunMode.MULTIRUN if flags.multirun else engine.get_mode(name, flags.overrides) or RunMode.RUN
        overrides = [*flags.overrides, f"hydra.mode={mode.name}"]
        if mode is RunMode.RUN:
            result: Exception | None = engine.run(name, alone, overrides).return_value
            return result
        try:
            returned = list(chain.from_iterable(engine.multirun(name, jobs.one_of_many, overrides)))
        except HydraException:
            raise  # some of which are an OSError
        except OSError as error:  # of Hydra's, since jobs raise none
            raise OSError(error.errno or 0, error.strerror or str(error), error.filename or RECORD) from error
    failed = [line for line in (of.return_value for of in returned) if line is not None]
    failed += jobs.rest()
    if not failed:
        return None
    print("failed:", *(f"  {line}" for line in failed), sep="\n", file=sys.stderr)
    return JobError(f"{len(failed)} of {len(returned)} jobs of the multirun failed")


class _Jobs:
    """The jobs of a command, and what those have left that are run in this process."""

    def __init__(self, config_name: str, overrides: Sequence[str], job: Job, together: Together) -> None:
        self._config_name, self._overrides = config_name, overrides
        self._job, self._together = job, together
        self._waiting: list[tuple[str, Any]] = []

    def one(self, config: DictConfig) -> Exception | None:
        """A job and what it leaves; its error."""
        try:
            left = self._job(config)
        except Exception as error:
            return error
        return None if left is None else next((error for _, error in self._together([left])), None)

    def one_of_many(self, config: DictConfig) -> str | None:
        """A job of a multirun, whose rest waits for that of the others where they come here too; why it
        failed."""
        name, error = _swept(self._overrides), None
        if HydraConfig.get().launcher._target_ != _IN_THIS_PROCESS:
            error = self.one(config)
        else:
            try:
                self._waiting.append((name, self._job(config)))
            except Exception as found:
                error = found
        return None if error is None else _failed(self._config_name, error, name)

    def rest(self) -> list[str]:
        """Do what is left; why jobs failed."""
        waiting = [(name, left) for name, left in self._waiting if left is not None]
        ended = self._together([left for _, left in waiting])
        return [_failed(self._config_name, error, waiting[number][0]) for number, error in ended]


def _failed(config_name: str, error: Exception, name: str) -> str:
    """Say of a job why it failed, in one line. What the job returns, a launcher brings home from processes of
    its own."""
    if isinstance(error, InputError):
        error = InputError(not_taken(config_name, str(error)))
    text, code = ending(error)
    line = f"{one_line(name)}: {text}"
    print(f"medcm: {line}", file=sys.stderr, flush=True)
    if code == 1 and os.environ.get("MEDCM_TRACEBACK"):
        traceback.print_exception(error)
    return line


@contextmanager
def _hydra(command: str, flags: Namespace, check: Use) -> Iterator[Hydra]:
    """Hydra as its ``main`` makes it, which however drops what jobs return.

    :raises SearchPathException: the folder that a flag names is not there.
    """
    path = create_config_search_path(flags.config_path or str(conf_dir()))
    if flags.config_dir is not None:
        folder = Path(flags.config_dir).absolute()
        if not folder.is_dir():
            raise SearchPathException(f"{folder}: no such folder")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    engine = Hydra(command, _Checking(path, check))
    GlobalHydra.instance().initialize(engine)
    try:
        yield engine
    finally:
        GlobalHydra.instance().clear()


class _Checking(ConfigLoaderImpl):
    """Composes as Hydra does, which composes every job of a multirun before it runs one, and checks it."""

    def __init__(self, path: ConfigSearchPath, check: Use) -> None:
        super().__init__(path)
        self._check = check

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed = super().load_sweep_config(master_config, sweep_overrides)
        self._check(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))
        return composed


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


def _help(config_name: str, config_dir: str | None, composed: Callable[[], None]) -> None:
    """What Hydra prints, but for its two searches for the choices of each group, which take a second."""
    sys.argv = [*(word for word in sys.argv if word not in ("-h", "--help")), "--cfg", "job"]
    with redirect_stdout(io.StringIO()) as configuration:
        composed()
    OUT.print(help_text(config_name, config_dir, configuration.getvalue()))


def _swept(given: Sequence[str]) -> str:
    """What tells the job that runs from the others of its multirun. :param given: overrides of all."""
    config, names = HydraConfig.get(), []
    of_file = config.sweeper.get("params") or {}
    for argument in [*(f"{name}={value}" for name, value in of_file.items()), *given]:
        with suppress(HydraException):
            override = OverridesParser.create().parse_override(argument)
            if override.is_sweep_override():
                names.append(override.key_or_group)
    own = [text for text in config.overrides.task if text.partition("=")[0] in names]
    return shorten(" ".join(own) or "the job", 80)


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
