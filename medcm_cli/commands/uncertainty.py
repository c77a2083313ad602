"""``medcm uncertainty``: standard errors and confidence intervals of what fits estimate."""

from medcm_cli.commands.parser import Parser, add_trust, fraction, word
from medcm_cli.commands.terminal import OUT, complain, counter, show
from medcm_cli.errors import InputError


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or folders that do not fit."""
    parser = Parser(
        "uncertainty",
        "Standard errors and confidence intervals of estimates. They are shown, and written into the folder "
        "of each fit.",
    )
    parser.add_folders()
    parser.add_argument(
        "--method",
        type=word("sandwich", "hessian", "profile", "sir", "bootstrap", "jackknife"),
        default="sandwich",
        help="sandwich or hessian; both are written, this one is shown; profile or sir, of "
        "models without a network; bootstrap or jackknife, of fits with split=bootstrap or split=deletion "
        "together",
    )
    parser.add_argument("--level", type=fraction, default=0.95, help="confidence level of the intervals")
    add_trust(parser)
    options = parser.read(arguments)

    from medcm_cli.commands.standard_errors import report

    with counter("fits done") as progress:
        found = report(options.folders, options.method, options.level, progress, options.trust)
    for section in found.sections:
        show(section)
    for note in found.notes:
        OUT.print(note)
    complain(f"{len(found.skipped)} without standard errors:", found.skipped)
    if not found.sections:
        raise InputError("no fit has standard errors")
