"""``medcm report``: what is in run folders as one page."""

from medcm_cli.commands.parser import Parser, add_trust, path, text
from medcm_cli.commands.replaced import tell
from medcm_cli.commands.terminal import OUT, saying


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or files that do not fit."""
    parser = Parser(
        "report", "Put what is in run folders on one page: tables, figures, failures and commands."
    )
    parser.add_folders()
    parser.add_argument("--out", type=path, help="the page to write (FOLDER/report.html if not given)")
    parser.add_argument(
        "--question",
        type=text,
        metavar="TEXT",
        help="the question of the study, shown above a fixed list of findings with numbers and intervals",
    )
    parser.add_argument(
        "--expected", type=path, metavar="CSV", help="expected values, shown beside those that were found"
    )
    add_trust(parser)
    options = parser.read(arguments)

    from medcm_cli.report import page

    out = options.out or options.folders[0] / "report.html"
    with saying("reading fits") as say:
        fits = page.write(options.folders, out, options.question, options.expected, say, options.trust)
    if options.out is None:
        tell(out, out.with_suffix(".json"), options)
    OUT.print(f"{fits} {'fit' if fits == 1 else 'fits'}, {out.stat().st_size / 1e6:.1f} MB -> {out}")
