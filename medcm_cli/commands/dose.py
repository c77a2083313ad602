"""``medcm dose``: the doses that meet a target."""

import argparse

from medcm_cli.commands.parser import LATEST, Parser, add_study, fraction, number, path, several, text, whole
from medcm_cli.commands.terminal import show


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or files that do not fit."""
    parser = Parser(
        "dose",
        "The lowest dose, in whole vials, that meets all targets with a given probability. For research use "
        "only, not for treatment decisions.",
    )
    add_options(parser)
    options = parser.read(arguments)

    from medcm_cli.commands.doses import run

    run(options, show)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_study(parser, "doses")
    parser.add_argument(
        "--patient", type=path, required=True, help="event table of patients, laid out as the study's data"
    )
    parser.add_argument(
        "--target",
        type=text,
        action="append",
        required=True,
        help="what the dose has to reach, in any unit that converts into the study's; may be given several "
        "times: 'trough>=1 mg/L', 'peak<=20 mg/L', 'auc>=400 mg/L*h', 'time_above(5 mg/L)>=20 h' or "
        "'time_above(5 mg/L)>=80 %%'",
    )
    parser.add_argument(
        "--probability", type=fraction, default=0.8, help="the least probability of meeting all targets"
    )
    parser.add_argument(
        "--every",
        type=several(number(above=0, most=LATEST)),
        help="dosing intervals to try, in the data's unit of time (24,36,48,72 h if not given)",
    )
    parser.add_argument(
        "--vial",
        type=number(above=0, most=1e9),
        help="amount in one vial, in the data's unit (250 if a dose trained on was as large)",
    )
    parser.add_argument("--most", type=whole(1, 10_000), default=40, help="the most vials in a dose")
    parser.add_argument(
        "--after",
        choices=("steady", "given"),
        default="steady",
        help="steady: the dose is repeated until nothing changes any more; given: it comes on top of the "
        "doses in the patient's file",
    )
    parser.add_argument(
        "--horizon",
        type=number(above=0, most=LATEST),
        help="with --after given: repeat the dose for so long, in the data's unit of time; targets are of "
        "the last interval",
    )
