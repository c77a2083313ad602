"""``medcm simulate``: virtual patients, and the synthetic cohorts, as event tables."""

import argparse
from pathlib import Path

from medcm_cli.commands.parser import Parser, path, whole, word
from medcm_cli.commands.terminal import OUT, job_bar
from medcm_cli.errors import InputError

_MOST = 10_000_000  # patients, or training sets


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or folders that do not fit."""
    parser = Parser("simulate", "Write virtual haemophilia A patients: events, truth and training folds.")
    parser.add_argument(
        "--n", type=whole(1, _MOST), help="patients (500, or the size of the cohort, if not given)"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="the same seed gives the same bytes")
    parser.add_argument(
        "--folds", type=whole(0, _MOST), help="training sets to draw, 0 for none (20 if not given)"
    )
    parser.add_argument(
        "--fold-size",
        type=whole(1, _MOST),
        help="subjects in each set, drawn with replacement (60 if not given)",
    )
    parser.add_argument(
        "--out",
        type=path,
        help="folder to write (outputs/data/simulated, or outputs/data/synthetic_KIND for a cohort, if not "
        "given)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace patients that are already there")
    parser.add_argument(
        "--cohort",
        type=word("prophylaxis", "perioperative"),
        metavar="KIND",
        help="prophylaxis or perioperative: a synthetic cohort instead of the patients of the simulation "
        "study",
    )
    parser.add_argument("--complete", action="store_true", help="with --cohort: no covariate is missing")
    parser.add_argument(
        "--censor", action="store_true", help="with --cohort: concentrations below 0.01 are censored (CENS)"
    )
    options = parser.read(arguments)
    if options.cohort is not None:
        for flag in ("folds", "fold_size"):
            if getattr(options, flag) is not None:
                raise InputError(
                    f"--{flag.replace('_', '-')} is not for a cohort, which has no training sets"
                )
        _cohort(options)
    elif options.complete or options.censor:
        raise InputError("--complete and --censor belong to a cohort; give --cohort KIND")
    else:
        _study(options)


def _study(options: argparse.Namespace) -> None:
    from medcm_cli.haemophilia.virtual import Settings, is_whole, settings_of, write_study
    from medcm_cli.study.dataset import default_data_folder

    names = ("n", "seed", "folds", "fold_size")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = Settings(**given)
    folder: Path = options.out or default_data_folder("outputs")
    there = settings_of(folder)
    if there is None and not _is_empty(folder):
        raise InputError(f"{folder}: exists and holds no simulated patients; choose another --out")
    if there is not None and not options.overwrite:
        if there != settings:
            raise InputError(f"{folder}: already holds other patients; choose another --out, or --overwrite")
        if is_whole(folder, settings):
            OUT.print(f"{folder} already holds these patients")
            return
    with job_bar() as bar:
        task = bar.add_task("patients", total=settings.n, state="")
        write_study(folder, settings, lambda done: bar.update(task, completed=done))
    OUT.print(f"{settings.n} patients and {settings.folds} folds -> {folder}")


def _cohort(options: argparse.Namespace) -> None:
    from medcm_cli.haemophilia.cohorts import FILES, cohort_folder, write_cohort

    folder: Path = options.out or cohort_folder("outputs", options.cohort)
    if not _is_empty(folder):
        if not options.overwrite:
            raise InputError(f"{folder}: already exists; choose another --out, or --overwrite")
        if {path.name for path in folder.iterdir()} - set(FILES):
            raise InputError(f"{folder}: holds other files than a synthetic cohort; choose another --out")
    write_cohort(folder, options.cohort, options.seed, options.n, options.complete, options.censor)
    OUT.print(f"synthetic {options.cohort} cohort -> {folder}")


def _is_empty(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
