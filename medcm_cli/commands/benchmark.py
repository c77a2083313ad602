"""``medcm benchmark``: how fast this machine is."""

from medcm_cli.commands.parser import Parser
from medcm_cli.commands.terminal import ERR, show
from medcm_cli.errors import InputError


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options that do not fit."""
    parser = Parser("benchmark", "Measure speed on this machine, as ratios within one run.")
    parser.add_argument("--epochs", type=int, default=200, help="epochs of each measurement")
    parser.add_argument(
        "--repeats", type=int, default=3, help="how often each is measured; the table shows the median"
    )
    parser.add_argument(
        "--large",
        action="store_true",
        help="measure one fit of thousands of subjects, once, instead of these",
    )
    options = parser.read(arguments)
    if options.epochs < 1 or options.repeats < 1:
        raise InputError("benchmark: --epochs and --repeats are whole numbers from 1")

    from medcm_cli.commands import speed

    if options.large:
        show(speed.large_study(options.epochs, ERR.print))
    else:
        show(speed.measure(options.epochs, options.repeats, ERR.print))
