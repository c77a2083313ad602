"""``medcm predict``: individual predictions of patients, and their retrospective check."""

import argparse

from medcm_cli.commands.parser import Parser, add_study, level, path, several, times, whole
from medcm_cli.commands.terminal import show


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or files that do not fit."""
    parser = Parser(
        "predict",
        "Individual predictions of patients that a study has not seen, as an ensemble over all its fits. For "
        "research use only, not for treatment decisions.",
    )
    add_options(parser)
    options = parser.read(arguments)

    from medcm_cli.commands.predictions import run

    run(options, show)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_study(parser, "predictions")
    parser.add_argument("--patient", type=path, help="event table of patients, laid out as the study's data")
    parser.add_argument(
        "--regimen", type=path, nargs="+", default=[], help="doses to try: YAML, or an event table of doses"
    )
    parser.add_argument(
        "--times",
        type=times,
        help="times of the predictions, in the data's unit (h): FROM:TO:STEP as in 0:72:1, or a list as in "
        "24,48 (to a day after the last event if not given)",
    )
    parser.add_argument(
        "--threshold",
        type=several(level),
        help="concentrations to stay above, in the unit that is shown or with their own, as in 5,20 or "
        "'0.05 mg/mL' (those of dataset.thresholds if not given)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="predict the later observations of each patient from the first ones, in --patient or else in "
        "the study's own data",
    )
    parser.add_argument(
        "--uses",
        type=several(whole(0)),
        help="with --check: how many first observations are used (0,1,2,3 if not given)",
    )
