"""``medcm score``: every fit on one scale, whatever trained it."""

from medcm_cli.commands.parser import Parser, add_trust, text, whole, word
from medcm_cli.commands.terminal import OUT, complain, counter, show
from medcm_cli.errors import InputError


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or folders that do not fit."""
    parser = Parser(
        "score",
        "OFV, AIC and BICc of every fit on one scale, and the OFV of subjects that it was not trained on. "
        "They are shown, and written into the folder of each fit.",
    )
    parser.add_folders()
    parser.add_argument(
        "--by",
        type=word("agq", "imp", "laplace", "focei", "foce", "fo"),
        help="how each subject's likelihood is found (agq of up to three random effects and imp of more, if "
        "not given)",
    )
    parser.add_argument(
        "--draws", type=whole(100, 1_000_000), default=1000, help="proposals of each subject, by imp"
    )
    parser.add_argument(
        "--test",
        type=text,
        metavar="SMALLER:LARGER",
        action="append",
        default=[],
        help="likelihood-ratio test of two configurations, each named by what tells it from the others, as "
        "in variant=base:variant=full; may be given several times",
    )
    add_trust(parser)
    options = parser.read(arguments)

    from medcm_cli.commands.scoring import report

    with counter("fits done") as progress:
        found = report(options.folders, options.by, options.draws, options.test, progress, options.trust)
    for section in found.sections:
        show(section)
    for note in found.notes:
        OUT.print(note)
    complain(f"{len(found.skipped)} without a score:", found.skipped)
    if not found.sections:
        raise InputError("no fit has a score")
