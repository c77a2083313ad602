"""A subcommand whose options Hydra composes: its flags, its jobs, and its errors in one line."""

import io
import os
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException, SearchPathException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from medcm_cli.commands.launchers import go_home, launched, lost, not_installed, without_hydra
from medcm_cli.commands.mistyped import check_added, check_package, explained, help_text, not_taken
from medcm_cli.commands.parser import check_flags
from medcm_cli.commands.terminal import OUT, ending
from medcm_cli.errors import InputError, JobError
from medcm_cli.files import DEEPEST, one_line, remove
from medcm_cli.study.options import conf_dir

Use = Callable[[DictConfig], None]
"""What is done with a composed configuration."""

RECORD = "multirun.yaml"
"""What Hydra writes of a multirun, in the study's folder."""
_SHOW = ("cfg", "info", "shell_completion", "hydra_help")  # flags that run no job


def _no_plan(composed: DictConfig) -> Path | None:
    del composed
    return None


def _nothing(left: Sequence[Any]) -> Iterator[tuple[int, Exception]]:
    assert not left
    yield from ()


@dataclass(frozen=True)
class Steps:
    """What is done with the configuration of each job. Before the first one runs: ``check`` finds what is
    wrong with it in itself, and ``plan``, with Hydra's part, writes down what a job of a multirun is to do
    and gives the file where it is new. ``job`` runs it and gives what is left of it to do, or None;
    ``together`` does that, of all jobs that are run in this process at once, and gives the number, from 0,
    and the error of each that fails, as it does."""

    check: Use
    job: Callable[[DictConfig], Any]
    plan: Callable[[DictConfig], Path | None] = _no_plan
    together: Callable[[Sequence[Any]], Iterator[tuple[int, Exception]]] = _nothing


def run(command: str, config_name: str, arguments: Sequence[str], steps: Steps) -> None:
    """Compose the configuration ``config_name`` and run a job for each combination of swept options.

    :param command: the name of the subcommand.
    :raises InputError: a flag, override, group or choice that does not exist, or what ``check`` finds.
    :raises JobError: jobs of a multirun that failed, once the others are done; each has said why.
    """
    check_arguments(arguments)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, not to Hydra's own printer
    flags = checked_flags(command, config_name, arguments)
    # As Hydra's own parser takes them: options all together.
    sys.argv = ["medcm", *(word for word in arguments if word not in flags.overrides), *flags.overrides]
    error = None
    try:
        check_added(command, config_name, flags.overrides)
        # This also sets the version of Hydra's rules, which jobs go by.
        show = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(steps.job)
        if flags.help:
            _help(config_name, flags.config_dir, show)
        elif any(getattr(flags, name) for name in _SHOW) or (flags.run and flags.multirun):
            with _validated():
                show()
        else:
            error = _run(command, config_name, flags, steps)
    except InputError as found:
        error = found
    except (HydraException, OmegaConfBaseException, ValueError, YAMLError, RecursionError) as found:
        raise InputError(_why(found, command, config_name, arguments)) from found
    if isinstance(error, InputError | OmegaConfBaseException):
        raise InputError(not_taken(config_name, str(error))) from error
    if error is not None:
        raise error


def _run(command: str, config_name: str, flags: Namespace, steps: Steps) -> Exception | None:
    """The error of the only job; of several, once all are done, that some of them failed; None where there is
    nothing to say."""
    jobs = _Jobs(config_name, flags.overrides, steps)

    def alone(config: DictConfig) -> Exception | None:
        try:
            steps.check(config)
        except Exception as error:
            return error  # from a raised one Hydra makes lines of its own
        return jobs.one(config)

    name = flags.config_name or config_name
    with _hydra(command, flags, steps) as engine:
        mode = RunMode.MULTIRUN if flags.multirun else engine.get_mode(name, flags.overrides) or RunMode.RUN
        overrides = [*flags.overrides, f"hydra.mode={mode.name}"]
        if mode is RunMode.RUN:
            result: Exception | None = engine.run(name, alone, overrides).return_value
            return result
        returned = _multirun(engine, name, jobs.one_of_many, overrides)
    failed = [line for line in (of.return_value for of in returned) if line is not None] + jobs.rest()
    if not failed:
        return None
    print("failed:", *(f"  {line}" for line in failed), sep="\n", file=sys.stderr)
    return JobError(f"{len(failed)} of {len(returned)} jobs of the multirun failed")


class _Jobs:
    """The jobs of a command, and what those have left that are run in this process."""

    def __init__(self, config_name: str, overrides: Sequence[str], steps: Steps) -> None:
        self._config_name, self._overrides, self._steps = config_name, overrides, steps
        self._waiting: list[tuple[str, Any]] = []

    def one(self, config: DictConfig) -> Exception | None:
        """A job and what it leaves; its error."""
        try:
            left = self._steps.job(config)
        except Exception as error:
            return error
        return None if left is None else next((error for _, error in self._steps.together([left])), None)

    def one_of_many(self, config: DictConfig) -> str | None:
        """A job of a multirun, whose rest waits for that of the others where they come here too; why it
        failed."""
        name, error = _swept(self._overrides), None
        try:
            if launched(HydraConfig.get()):
                go_home(HydraConfig.get())
                error = self.one(config)
            else:
                self._waiting.append((name, self._steps.job(config)))
        except Exception as found:
            error = found
        return None if error is None else _failed(self._config_name, error, name)

    def rest(self) -> list[str]:
        """Do what is left; why jobs failed."""
        waiting = [(name, left) for name, left in self._waiting if left is not None]
        ended = self._steps.together([left for _, left in waiting])
        return [_failed(self._config_name, error, waiting[number][0]) for number, error in ended]


def _multirun(
    engine: Hydra, name: str, job: Callable[[DictConfig], str | None], overrides: list[str]
) -> list[JobReturn]:
    """What the jobs return. :raises JobError: a launcher did not bring all of them home."""
    loader = engine.config_loader
    assert isinstance(loader, _Checking)
    try:
        return list(chain.from_iterable(engine.multirun(name, job, overrides)))
    except (HydraException, InputError):  # before the first job; some are an OSError
        for path in loader.planned:
            remove(path)
        if loader.record is not None:
            loader.record.put_back()
        raise
    except Exception as error:  # jobs raise none
        if absent := not_installed(str(error)):
            raise InputError(absent) from error
        if loader.launcher and not (isinstance(error, OSError) and error.errno and error.filename):
            raise lost(loader.launcher, error) from error
        if isinstance(error, OSError):
            raise OSError(error.errno or 0, error.strerror or str(error), error.filename or RECORD) from error
        raise


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
def _hydra(command: str, flags: Namespace, steps: Steps) -> Iterator[Hydra]:
    """Hydra as its ``main`` makes it, which however drops what jobs return.

    :raises SearchPathException: the folder that a flag names is not there.
    """
    path = create_config_search_path(flags.config_path or str(conf_dir()))
    if flags.config_dir is not None:
        folder = Path(flags.config_dir).absolute()
        if not folder.is_dir():
            raise SearchPathException(f"{folder}: no such folder")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    engine = Hydra(command, _Checking(path, steps))
    GlobalHydra.instance().initialize(engine)
    try:
        yield engine
    finally:
        GlobalHydra.instance().clear()


class _Before:
    """What was in the place of the record of a multirun, which Hydra writes before it composes any job."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # above a folder that is not there yet nothing is found
        self._text = self._path.read_bytes() if self._path.is_file() else None
        on_the_way = [*self._path.parents, *path.absolute().parents]
        self._made = [folder for folder in on_the_way if ".." not in folder.parts and not folder.exists()]

    def put_back(self) -> None:
        """As it was, and no folder that has been made for it."""
        if self._text is None:
            remove(self._path)
        else:
            self._path.write_bytes(self._text)
        for folder in self._made:
            with suppress(OSError):  # there is something else in it by now
                folder.rmdir()


class _Checking(ConfigLoaderImpl):
    """Composes as Hydra does, which composes every job of a multirun before it runs one, and checks it.

    ``planned``: files that were written about these jobs; ``launcher``: the class that they are handed to,
    empty where that is Hydra's own; ``record``: what stood in the place of the multirun's.
    """

    def __init__(self, path: ConfigSearchPath, steps: Steps) -> None:
        super().__init__(path)
        self._steps = steps
        self.planned: list[Path] = []
        self.launcher = ""
        self.record: _Before | None = None

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        composed = super().load_configuration(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )
        if run_mode is RunMode.MULTIRUN:
            self.record = _Before(Path(composed.hydra.sweep.dir) / RECORD)
        return composed

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed = super().load_sweep_config(master_config, sweep_overrides)
        self._steps.check(without_hydra(composed))
        # A launcher's process may begin in another folder.
        composed.hydra.sweep.dir = str(Path(composed.hydra.sweep.dir).absolute())
        self.launcher = str(composed.hydra.launcher.get("_target_")) if launched(composed.hydra) else ""
        path = self._steps.plan(composed)
        self.planned += [path] if path is not None else []
        return composed

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        with _validated():
            return super()._load_single_config(default, repo)


@contextmanager
def _validated() -> Iterator[None]:
    """No warning that a launcher's file is validated by what the launcher says of itself, as it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*validated against ConfigStore schema", UserWarning)
        yield


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
    text = str(error).partition("Config search path")[0]
    return not_installed(text) or explained(command, config_name, arguments, text)


def _help(config_name: str, config_dir: str | None, composed: Callable[[], None]) -> None:
    """What Hydra prints, but for its two searches for the choices of each group, which take a second."""
    sys.argv = [*(word for word in sys.argv if word not in ("-h", "--help")), "--cfg", "job"]
    with redirect_stdout(io.StringIO()) as configuration:
        composed()
    OUT.print(help_text(config_name, config_dir, configuration.getvalue()), soft_wrap=True)


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
    flags = parser.parse_intermixed_args(list(arguments))
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
