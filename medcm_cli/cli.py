"""The ``medcm`` command: one function per subcommand, each importing only what it needs, since torch takes
seconds."""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from medcm_cli import __version__
from medcm_cli.commands.terminal import ERR, OUT, refuse
from medcm_cli.errors import InputError

if TYPE_CHECKING:
    from medcm_cli.report.section import Section


def main() -> NoReturn:
    """Entry point. Exit codes: 0 done, 1 internal error, 2 bad input or a file that cannot be
    read or written, 130 interrupted."""
    arguments = sys.argv[1:]
    try:
        if arguments and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]][1](arguments[1:])
        elif arguments and arguments[0] in ("-sc", "--shell-completion"):
            _complete(arguments)
        else:
            _top(arguments)
    except KeyboardInterrupt:
        print("medcm: interrupted; what is finished is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as in `medcm summarize ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        refuse(error)
    except Exception as error:
        if os.environ.get("MEDCM_TRACEBACK"):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"medcm: internal error, {text}; MEDCM_TRACEBACK=1 shows where", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage before them."""

    def error(self, message: str) -> NoReturn:
        """:raises InputError: always."""
        raise InputError(f"{message}; see {self.prog} --help")


def _top(arguments: list[str]) -> None:
    lines = (f"  {name:<11}{what}" for name, (what, _) in COMMANDS.items())
    parser = _Parser(
        prog="medcm",
        usage="medcm COMMAND [options]",
        description="Experiments with mixed-effects deep compartment models.",
        epilog="commands:\n" + "\n".join(lines) + "\n\nmedcm COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medcm {__version__}")
    parser.add_argument("command", choices=list(COMMANDS), help=argparse.SUPPRESS)
    parser.parse_args(arguments)


def _complete(arguments: list[str]) -> None:
    """Tab completion. Hydra's knows the options of ``fit``, but no commands, so it sees the line without."""
    program, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    command, typed, options = rest.lstrip().partition(" ")
    if not any(argument.startswith("query") for argument in arguments):
        _fit(arguments)
    elif not typed:
        OUT.print(" ".join(COMMANDS))
    elif command == "fit":
        os.environ["COMP_LINE"] = f"{program} {options}"
        with suppress(InputError):  # a line that is not finished; nothing to offer, and no place to say so
            _fit(arguments)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says what an option is by default, where it is something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default in (None, False, "") or action.default == [] or action.required
        return action.help if nothing else super()._get_help_string(action)


def _parser(command: str, description: str) -> _Parser:
    return _Parser(
        prog=f"medcm {command}",
        description=description,
        formatter_class=_Help,
    )


def _fit(arguments: list[str]) -> None:
    from medcm_cli.commands.fit import fit

    fit(arguments)


def _simulate(arguments: list[str]) -> None:
    from medcm_cli.haemophilia.virtual import Settings, is_whole, settings_of, write_study
    from medcm_cli.study.dataset import default_data_folder

    default = Settings()
    parser = _parser("simulate", "Write virtual haemophilia A patients: events, truth and training folds.")
    parser.add_argument("--n", type=int, default=default.n, help="patients")
    parser.add_argument("--seed", type=int, default=default.seed, help="same seed, same bytes")
    parser.add_argument("--folds", type=int, default=default.folds, help="training sets to draw")
    parser.add_argument(
        "--fold-size", type=int, default=default.fold_size, help="subjects in each, drawn with replacement"
    )
    parser.add_argument("--out", type=Path, default=default_data_folder("outputs"), help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace patients that are there already")
    parser.add_argument(
        "--cohort",
        metavar="KIND",
        help="prophylaxis or perioperative: a synthetic cohort in place of the simulation study's patients; "
        "--n is its own size if not given",
    )
    parser.add_argument("--complete", action="store_true", help="of a cohort: with no covariate missing")
    parser.add_argument("--censor", action="store_true", help="of a cohort: levels below 0.01 IU/mL censored")
    options = parser.parse_args(arguments)
    if options.cohort is not None:
        _simulate_cohort(options, None if options.n == default.n else options.n)
        return
    if options.complete or options.censor:
        raise InputError("--complete and --censor belong to a cohort; give --cohort KIND")
    settings = Settings(options.n, options.seed, options.folds, options.fold_size)
    folder: Path = options.out
    held = settings_of(folder)
    if held is None and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: is there and holds no simulated patients; choose another --out")
    if held is not None and not options.overwrite:
        if held != settings:
            raise InputError(f"{folder}: holds other patients already; choose another --out, or --overwrite")
        if is_whole(folder, settings):
            OUT.print(f"{folder} already holds these patients")
            return
    with Progress(console=ERR, disable=not ERR.is_terminal, transient=True) as bar:
        task = bar.add_task("patients", total=settings.n)
        write_study(folder, settings, lambda done: bar.update(task, completed=done))
    OUT.print(f"{settings.n} patients and {settings.folds} folds -> {folder}")


def _simulate_cohort(options: argparse.Namespace, n: int | None) -> None:
    from medcm_cli.haemophilia.cohorts import FILES, cohort_folder, write_cohort
    from medcm_cli.study.dataset import default_data_folder

    folder: Path = options.out
    if folder == default_data_folder("outputs"):
        folder = cohort_folder("outputs", options.cohort)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not options.overwrite:
        raise InputError(f"{folder}: is there already; choose another --out, or --overwrite")
    if not empty and {path.name for path in folder.iterdir()} - set(FILES):
        raise InputError(f"{folder}: holds other files than a synthetic cohort; choose another --out")
    write_cohort(folder, options.cohort, options.seed, n, options.complete, options.censor)
    OUT.print(f"synthetic {options.cohort} cohort -> {folder}")


def _summarize(arguments: list[str]) -> None:
    from medcm_cli.report import tables
    from medcm_cli.runs.summary import summarize

    parser = _parser("summarize", "Tables of what is in run folders, on the terminal and as files.")
    parser.add_argument("folders", type=Path, nargs="+", help="outputs, a study, or any folder of runs")
    parser.add_argument("--out", type=Path, help="where to write the tables (FOLDER/summary if not given)")
    parser.add_argument(
        "--tail",
        type=int,
        help="epochs that an estimate averages (the last quarter, at most 500, if not given)",
    )
    parser.add_argument("--expected", type=Path, help="CSV of expected values to show beside the measured")
    options = parser.parse_args(arguments)
    if options.tail is not None and options.tail < 0:
        raise InputError(f"--tail is {options.tail}; expected 0 or more epochs")
    counter = Progress("{task.completed} fits read", console=ERR, disable=not ERR.is_terminal, transient=True)
    with counter as bar:
        task = bar.add_task("fits")
        summary = summarize(options.folders, options.tail, lambda read: bar.update(task, completed=read))
    compared = None if options.expected is None else tables.compare(summary, options.expected)
    for section in tables.sections(summary):
        _print(section)
    OUT.print(
        "Median (sd) over complete fits, or over the outer shuffles of a nested split, "
        "of the mean over a fit's last checkpoints."
    )
    if compared is not None:
        _print(compared)
    if summary.skipped:
        ERR.print(f"skipped {len(summary.skipped)} that could not be read:")
        for reason in summary.skipped[:20]:
            ERR.print(f"  {reason}")
        if len(summary.skipped) > 20:
            ERR.print(f"  and {len(summary.skipped) - 20} more")
    folder = options.out or options.folders[0] / "summary"
    tables.write(summary, folder)
    OUT.print(f"Parquet, CSV, Markdown and LaTeX -> {folder}")


def _plot(arguments: list[str]) -> None:
    from medcm_cli.report.figures import plot, style

    parser = _parser("plot", "Figures of what is in run folders, each with the numbers that it shows.")
    parser.add_argument("folders", type=Path, nargs="+", help="outputs, a study, or any folder of runs")
    parser.add_argument("--out", type=Path, help="where to write the figures (FOLDER/figures if not given)")
    parser.add_argument("--format", default=",".join(style.FORMATS), help="some of these")
    parser.add_argument("--epochs", default="", help="at which covariate effects are shown too, as in 25,100")
    parser.add_argument(
        "--fold", type=int, help="of the fit whose goodness is shown (that of median objective)"
    )
    parser.add_argument("--replicate", type=int, help="likewise")
    options = parser.parse_args(arguments)
    formats = options.format.split(",")
    for kind in formats:
        if kind not in style.FORMATS:
            raise InputError(f"--format {kind}: expected some of {','.join(style.FORMATS)}")
    try:
        epochs = [int(epoch) for epoch in options.epochs.split(",") if epoch]
    except ValueError as error:
        raise InputError(f"--epochs {options.epochs}: expected whole numbers, as in 25,100") from error
    out = options.out or options.folders[0] / "figures"
    with Progress("{task.description}", console=ERR, disable=not ERR.is_terminal, transient=True) as bar:
        task = bar.add_task("reading fits")
        found = plot.collect(options.folders, lambda read: bar.update(task, description=f"{read} fits read"))
        for folder, drawn in plot.write_all(found, out, formats, epochs, options.fold, options.replicate):
            bar.update(task, description=f"{folder}: {drawn.title}")
    for reason in found.missing[:20]:
        ERR.print(reason, soft_wrap=True)
    if len(found.missing) > 20:
        ERR.print(f"and {len(found.missing) - 20} more")
    if found.sweeps:
        OUT.print(f"{', '.join(formats)} and numbers -> {out}")


def _uncertainty(arguments: list[str]) -> None:
    from medcm_cli.commands import standard_errors as uncertainty

    parser = _parser(
        "uncertainty", "Standard errors and confidence intervals of estimates, into each fit's folder."
    )
    parser.add_argument("folders", type=Path, nargs="+", help="outputs, a study, or any folder of runs")
    parser.add_argument("--method", default=uncertainty.METHODS[0], help="to show: hessian or sandwich")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals")
    options = parser.parse_args(arguments)
    counter = Progress("{task.completed} fits done", console=ERR, disable=not ERR.is_terminal, transient=True)
    with counter as bar:
        task = bar.add_task("fits")
        found = uncertainty.report(
            options.folders, options.method, options.level, lambda done: bar.update(task, completed=done)
        )
    for section in found.sections:
        _print(section)
    for note in found.notes:
        OUT.print(note)
    if found.skipped:
        ERR.print(f"{len(found.skipped)} without standard errors:")
        for reason in found.skipped[:20]:
            ERR.print(f"  {reason}")
        if len(found.skipped) > 20:
            ERR.print(f"  and {len(found.skipped) - 20} more")
    if not found.sections:
        raise InputError("no fit has standard errors")


def _predict(arguments: list[str]) -> None:
    from medcm_cli.commands import predict as predict_command

    parser = _parser(
        "predict",
        "Individual predictions of patients that a study has not seen, as an ensemble over all its fits. For "
        "research use only, not for treatment decisions.",
    )
    predict_command.add_options(parser)
    predict_command.run(parser.parse_args(arguments), _print)


def _dose(arguments: list[str]) -> None:
    from medcm_cli.commands import dose as dose_command

    parser = _parser(
        "dose",
        "The least dose, in whole vials, that meets targets with a probability. For research use only, not "
        "for treatment decisions.",
    )
    dose_command.add_options(parser)
    dose_command.run(parser.parse_args(arguments), _print)


def _report(arguments: list[str]) -> None:
    from medcm_cli.report import page

    parser = _parser("report", "One page of what is in run folders: tables, figures, failures, commands.")
    parser.add_argument("folders", type=Path, nargs="+", help="outputs, a study, or any folder of runs")
    parser.add_argument("--out", type=Path, help="the page to write (FOLDER/report.html if not given)")
    parser.add_argument("--question", metavar="TEXT", help="what the study asks, to stand below its title")
    parser.add_argument("--expected", type=Path, help="CSV of expected values to show beside the measured")
    options = parser.parse_args(arguments)
    out = options.out or options.folders[0] / "report.html"
    with Progress("{task.description}", console=ERR, disable=not ERR.is_terminal, transient=True) as bar:
        task = bar.add_task("reading fits")
        fits = page.write(
            options.folders,
            out,
            options.question,
            options.expected,
            lambda what: bar.update(task, description=what),
        )
    OUT.print(f"{fits} {'fit' if fits == 1 else 'fits'}, {out.stat().st_size / 1e6:.1f} MB -> {out}")


def _posterior(arguments: list[str]) -> None:
    from medcm_cli.commands.posterior import posterior

    posterior(arguments, _print)


def _distance(arguments: list[str]) -> None:
    from medcm_cli.analysis.distances import distances
    from medcm_cli.commands.distances import section
    from medcm_cli.files import replaced

    parser = _parser("distance", "How far the posteriors of fits are from draws of NUTS (Wasserstein).")
    parser.add_argument("posterior", type=Path, help="a folder of draws that `medcm posterior` wrote")
    parser.add_argument("folders", type=Path, nargs="+", help="fits of the same subjects, or folders of them")
    parser.add_argument("--out", type=Path, help="CSV, a row per fit (POSTERIOR/distances.csv if not given)")
    options = parser.parse_args(arguments)
    found = distances(options.posterior, options.folders)
    _print(section(found))
    path = options.out or options.posterior / "distances.csv"
    with replaced(path) as partial:
        found.to_csv(partial, index=False)
    if "floor" in found:
        OUT.print(f"sliced, draws of NUTS from as many others: {1000 * found['floor'].mean():.3g}")
    OUT.print(f"mean (sd over fits) of means over subjects; a row per fit -> {path}")


def _data(arguments: list[str]) -> None:
    from medcm_cli.data import Format, describe, plain_covariates, read_events
    from medcm_cli.data.sheet import ROLES
    from medcm_cli.report.tables import characteristics

    parser = _parser("data", "Check an event table without fitting it, and print what it holds.")
    parser.add_argument("action", choices=["check"])
    parser.add_argument("file", type=Path, help="event table, .csv or .parquet")
    repeated: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument(
        "--column", metavar="ROLE=NAME", help=f"a column's name; roles: {', '.join(ROLES)}", **repeated
    )
    parser.add_argument(
        "--keep", metavar="NAME=VALUES", help="only rows with one of these values, as in DVID=1,2", **repeated
    )
    parser.add_argument(
        "--covariate",
        metavar="NAME",
        help="a column to describe (all that hold numbers, if none)",
        **repeated,
    )
    parser.add_argument("--level-unit", default="IU/mL", help="of DV")
    parser.add_argument("--amount-unit", default="IU", help="of AMT")
    parser.add_argument("--predose", action="store_true", help="allow observations before the first dose")
    options = parser.parse_args(arguments)
    columns = dict(_pair("--column", text) for text in options.column)
    keep = {name: values.split(",") for name, values in (_pair("--keep", text) for text in options.keep)}
    how = Format(columns, keep, predose_observations="keep" if options.predose else "error")
    covariates, how = plain_covariates(options.file, how, options.covariate)
    held = describe(read_events(options.file, covariates, how))
    _print(characteristics(str(options.file), held, options.amount_unit, options.level_unit))
    OUT.print(f"{options.file}: no fault found")


def _pair(option: str, text: str) -> tuple[str, str]:
    """:raises InputError: not of the form NAME=VALUE."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise InputError(f"{option} {text}: expected NAME=VALUE")
    return name, value


def _benchmark(arguments: list[str]) -> None:
    from medcm_cli.commands import benchmark

    parser = _parser("benchmark", "Measure speed on this machine, as ratios within one run.")
    parser.add_argument("--epochs", type=int, default=200, help="epochs per measurement")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each; the median counts")
    parser.add_argument(
        "--large",
        action="store_true",
        help="in place of these, one fit of thousands of subjects, measured once",
    )
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.repeats < 1:
        raise InputError("benchmark: --epochs and --repeats are whole numbers from 1")
    if options.large:
        _print(benchmark.large_study(options.epochs, ERR.print))
        return
    _print(benchmark.measure(options.epochs, options.repeats, ERR.print))


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "simulate": ("write virtual patients", _simulate),
    "fit": ("train models, one or a whole study", _fit),
    "data": ("check an event table", _data),
    "summarize": ("compare finished fits in tables", _summarize),
    "plot": ("draw what is in run folders", _plot),
    "report": ("put it all on one page", _report),
    "uncertainty": ("standard errors and confidence intervals of estimates", _uncertainty),
    "predict": ("levels of patients that a study has not seen", _predict),
    "dose": ("the least dose that meets a target", _dose),
    "posterior": ("sample random effects by NUTS", _posterior),
    "distance": ("compare posteriors of fits with draws of NUTS", _distance),
    "benchmark": ("measure speed here", _benchmark),
}


def _print(section: "Section") -> None:
    """A table for a person on a terminal, Markdown anywhere else."""
    if not OUT.is_terminal:
        from medcm_cli.report.section import markdown

        OUT.print(markdown(section))
        return
    table = Table(
        title=section.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for header, *column in zip(section.headers, *section.cells, strict=True):
        numbers = any(cell[:1].isdigit() or cell[:1] in ("-", "(") for cell in column if cell)
        first = header == section.headers[0]
        table.add_column(header, justify="right" if numbers else "left", overflow="fold", no_wrap=first)
    for row in section.cells:
        table.add_row(*row)
    OUT.print(table, soft_wrap=False)
