"""The ``medcm`` command: dispatch, Hydra, and what a person sees."""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from medcm_cli import __version__, benchmark, tables
from medcm_cli.errors import InputError
from medcm_cli.simulate import Settings, settings_of, write_study
from medcm_cli.study import Setup, axis, conf_dir, default_data_folder
from medcm_cli.workers import Workers, batches, process_count

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)

_FIT_HELP = """Train mixed-effects deep compartment models.

  medcm fit objective=vi                         one fit
  medcm fit -m objective=mse,fo,foce,vi fold='range(1,21)' replicate='range(1,6)'
  medcm fit --cfg job                            print the configuration
  medcm fit -cd experiments/table1 -cn as_published

Options are those of Hydra (medcm fit --hydra-help); groups and their choices (group=choice):
"""


def main() -> NoReturn:
    """Entry point. Exit codes: 0 done, 1 internal fault, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:]
    # Shell completion calls the bare command with Hydra's own flag.
    command: Callable[[list[str]], None]
    if arguments and arguments[0] in ("-sc", "--shell-completion"):
        command, rest = fit, arguments
    elif arguments and arguments[0] == "fit":
        command, rest = fit, arguments[1:]
    else:
        command, rest = _other, arguments
    try:
        command(rest)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        _refuse(error)
    except KeyboardInterrupt:
        print("interrupted: finished fits are kept; the same command trains the rest", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as in `medcm summarize | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _refuse(error: Exception) -> NoReturn:
    cause = error
    while isinstance(cause.__cause__, InputError):
        cause = cause.__cause__
    print(f"medcm: {' '.join(str(cause).split())}", file=sys.stderr)
    sys.exit(2)


def _other(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="medcm",
        description="Experiments with mixed-effects deep compartment models.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medcm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("fit", help="train models (Hydra: medcm fit --help)", add_help=False)

    simulate = commands.add_parser(
        "simulate", help="write virtual patients", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    default = Settings()
    simulate.add_argument("--n", type=int, default=default.n, help="patients")
    simulate.add_argument("--seed", type=int, default=default.seed, help="same seed, same bytes")
    simulate.add_argument("--folds", type=int, default=default.folds, help="training sets to draw")
    simulate.add_argument("--fold-size", type=int, default=default.fold_size, help="subjects in each, with replacement")
    simulate.add_argument("--out", type=Path, default=default_data_folder("outputs"), help="folder to write")
    simulate.add_argument("--overwrite", action="store_true", help="replace a folder that holds other data")

    summarize = commands.add_parser("summarize", help="tables from run folders")
    summarize.add_argument("folders", type=Path, nargs="+", help="outputs, a study, or any folder of runs")
    summarize.add_argument("--out", type=Path, help="where to write the tables (default: FOLDER/summary)")
    summarize.add_argument("--tail", type=int, help="epochs that an estimate averages (default: last quarter, at most 500)")
    summarize.add_argument("--expected", type=Path, help="CSV of expected values to show beside the measured ones")

    bench = commands.add_parser(
        "benchmark", help="measure speed ratios here", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    bench.add_argument("--epochs", type=int, default=150, help="epochs per measurement")
    bench.add_argument("--repeats", type=int, default=3, help="measurements of each, taken in turn; the median counts")
    options = parser.parse_args(arguments)
    match options.command:
        case "simulate":
            _simulate(options)
        case "summarize":
            _summarize(options)
        case "benchmark":
            _benchmark(options)


# -- fit --------------------------------------------------------------------------------------------------------------


def fit(arguments: list[str]) -> None:
    """``medcm fit``: Hydra composes the configuration and runs one job per combination of swept options."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, not to Hydra's own printer
    sys.argv = ["medcm", *coalesce(arguments)]
    with Workers() as workers:

        def job(config: DictConfig) -> None:
            try:
                _job(config, workers)
            except (InputError, OmegaConfBaseException) as error:
                _refuse(error)  # here, before Hydra adds lines of its own

        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()


def coalesce(arguments: Sequence[str]) -> list[str]:
    """Turn sweeps over the batched axes, fold and replicate, into lists, so that Hydra runs one job for all of them.

    With ``batch.fits=N`` in a multirun they become a sweep over lists of at most N fits, for launchers that spread jobs.
    """
    rest: list[str] = []
    axes: dict[str, list[int]] = {}
    most: int | None = None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "batch.fits" and value.isdigit() and int(value) > 0:
            most = int(value)
        if equals and name in ("fold", "replicate") and value:
            try:
                swept = OverridesParser.create().parse_override(argument).is_sweep_override()
            except HydraException as error:
                raise InputError(f"{argument}: {' '.join(str(error).split())}") from error
            # Lists of lists are a sweep that somebody has already split.
            if not (swept and "[" in value):
                axes[name] = axis(name, value)
                continue
        rest.append(argument)
    multirun = any(argument in ("-m", "--multirun") for argument in rest)
    if multirun and most is not None and axes:
        return [*rest, *_split(axes, most)]
    return [*rest, *(f"{name}={_list(values)}" for name, values in axes.items())]


def _split(axes: dict[str, list[int]], most: int) -> list[str]:
    """Sweeps over lists whose product has at most ``most`` fits: replicates are split where they alone are too many."""
    folds, replicates = axes.get("fold"), axes.get("replicate")
    per_fold = min(len(replicates), most) if replicates else 1
    parts = {"replicate": (replicates, per_fold), "fold": (folds, max(1, most // per_fold))}
    return [
        f"{name}={','.join(map(_list, _chunks(values, size)))}" for name, (values, size) in parts.items() if values
    ]


def _chunks(values: Sequence[int], size: int) -> list[tuple[int, ...]]:
    iterator = iter(values)
    return list(iter(lambda: tuple(itertools.islice(iterator, size)), ()))


def _list(values: Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]"


def _job(composed: DictConfig, workers: Workers) -> None:
    """One combination of options: train what remains of its folds and replicates."""
    hydra_config = HydraConfig.get()
    config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    choices = hydra_config.runtime.choices
    variant = hydra_config.job.override_dirname.replace("/", "~")
    config["labels"] = {"objective": choices["objective"], "error": choices["error"], "variant": variant}
    setup = Setup.build(config)
    plan = setup.plan()
    label = str(choices["objective"])
    where = next(iter(plan.records.values())).address
    study = Path(config["outputs"]) / where.study
    if not plan.todo:
        OUT.print(f"{label}: all {len(plan.done)} fits are done already, in {study}; overwrite=true trains them again")
        return
    batch = config["batch"]
    if batch["fits"] is not None and (not isinstance(batch["fits"], int) or batch["fits"] < 1):
        raise InputError(f"batch.fits is {batch['fits']!r}; expected a whole number from 1, or null")
    records = [plan.records[fit] for fit in plan.todo]
    processes = process_count(batch["processes"], len(records))
    parts = batches(records, batch["fits"], processes)
    with _training_bar(label, len(records), config["epochs"]) as (update, elapsed):
        finished = workers.run(setup, parts, min(processes, len(parts)), update)
    failed = [record for record in finished if record.status == "failed"]
    OUT.print(
        f"{label}: {len(finished)} {'fit' if len(finished) == 1 else 'fits'} in {elapsed():.1f} s"
        + (f", {len(plan.done)} done before" if plan.done else "")
        + f", {len(failed)} failed -> {study}"
    )
    for record in failed[:5]:
        assert record.failure is not None
        OUT.print(
            f"  failed: fold {record.address.fold} replicate {record.address.replicate} "
            f"at epoch {record.failure['epoch']}: {record.failure['cause']}"
        )
    if len(failed) > 5:
        OUT.print(f"  and {len(failed) - 5} more; `medcm summarize {study}` counts them")


class _training_bar:  # noqa: N801 - reads as a function
    """Progress of a job on a terminal: objective value, rate, time left. Silent where stderr is not a terminal."""

    def __init__(self, label: str, fits: int, epochs: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("objective {task.fields[objective]:.4g}"),
            TextColumn("{task.fields[rate]:.0f} epochs/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=ERR,
            disable=not ERR.is_terminal,
            transient=True,
        )
        noun = "fit" if fits == 1 else "fits"
        self._task = self._bar.add_task(f"{label}, {fits} {noun}", total=fits * epochs, objective=float("nan"), rate=0.0)
        self._fits = fits
        self._done: dict[int, tuple[int, int, float]] = {}

    def __enter__(self) -> tuple[Callable[[int, int, int, float], None], Callable[[], float]]:
        self._bar.start()
        return self._update, self._elapsed

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _update(self, batch: int, fits: int, epoch: int, objective: float) -> None:
        self._done[batch] = (fits, epoch, objective)
        completed = sum(fits * epoch for fits, epoch, _ in self._done.values())
        mean = sum(fits * value for fits, _, value in self._done.values()) / sum(f for f, _, _ in self._done.values())
        rate = completed / self._fits / max(self._elapsed(), 1e-9)
        self._bar.update(self._task, completed=completed, objective=mean, rate=rate)

    def _elapsed(self) -> float:
        return self._bar.tasks[0].elapsed or 0.0


# -- simulate, summarize, benchmark -----------------------------------------------------------------------------------


def _simulate(options: argparse.Namespace) -> None:
    settings = Settings(options.n, options.seed, options.folds, options.fold_size)
    folder: Path = options.out
    if folder.exists() and not options.overwrite:
        if settings_of(folder) == settings:
            OUT.print(f"{folder} already holds these patients")
            return
        raise InputError(f"{folder}: holds something else already; choose another --out, or --overwrite")
    with Progress(console=ERR, disable=not ERR.is_terminal, transient=True) as bar:
        task = bar.add_task("patients", total=settings.n)
        write_study(folder, settings, lambda done: bar.update(task, completed=done))
    OUT.print(f"{settings.n} patients and {settings.folds} folds -> {folder}")


def _summarize(options: argparse.Namespace) -> None:
    if options.tail is not None and options.tail < 0:
        raise InputError(f"--tail is {options.tail}; expected 0 or more epochs")
    summary = tables.summarize(options.folders, options.tail)
    if len(summary.table):
        _print(*tables.columns(summary))
        OUT.print("Median (sd) over complete fits of the mean over a fit's last checkpoints.")
    if options.expected is not None:
        _print(*tables.compare(summary, options.expected))
    if summary.skipped:
        ERR.print(f"skipped {len(summary.skipped)} that could not be read:")
        for reason in summary.skipped[:20]:
            ERR.print(f"  {reason}")
        if len(summary.skipped) > 20:
            ERR.print(f"  and {len(summary.skipped) - 20} more")
    folder = options.out or options.folders[0] / "summary"
    tables.write(summary, folder)
    OUT.print(f"Parquet, CSV, Markdown and LaTeX -> {folder}")


def _print(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    if not OUT.is_terminal:
        OUT.print(tables.markdown(headers, cells), end="", markup=False)
        return
    table = Table()
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number == 0 else "right")
    for row in cells:
        table.add_row(*row)
    OUT.print(table, soft_wrap=False)


def _benchmark(options: argparse.Namespace) -> None:
    if options.epochs < 1 or options.repeats < 1:
        raise InputError("benchmark: --epochs and --repeats are whole numbers from 1")
    headers, cells = benchmark.measure(options.epochs, options.repeats, lambda line: ERR.print(line))
    _print(headers, cells)
