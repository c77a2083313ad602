"""``medcm benchmark``: how fast this machine is."""

from medcm_cli.commands.parser import Parser, whole
from medcm_cli.commands.terminal import ERR, show
from medcm_cli.errors import InputError


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options that do not fit."""
    parser = Parser("benchmark", "Measure speed on this machine, as ratios within one run.")
    parser.add_argument("--epochs", type=whole(1, 1_000_000), default=200, help="epochs of each measurement")
    parser.add_argument(
        "--repeats",
        type=whole(1, 10_000),
        default=3,
        help="how often each is measured; the table shows the median",
    )
    parser.add_argument(
        "--large",
        action="store_true",
        help="measure one fit of thousands of subjects, once, instead of these",
    )
    parser.add_argument("--ode", action="store_true", help="measure models given as dA/dt instead of these")
    parser.add_argument("--compile", action="store_true", help="with --ode, also batch.compile=true")
    options = parser.read(arguments)

    from medcm_cli.commands import ode_speed, speed

    if options.large and options.ode:
        raise InputError("--large and --ode measure different things; give one of them")
    if options.compile and not options.ode:
        raise InputError("--compile is of models given as dA/dt; give --ode, too")
    if options.ode:
        show(ode_speed.measure(options.repeats, ERR.print, options.compile))
    elif options.large:
        show(speed.large_study(options.epochs, ERR.print))
    else:
        show(speed.measure(options.epochs, options.repeats, ERR.print))
