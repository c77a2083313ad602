"""``medcm plot``: figures of what is in run folders."""

from medcm_cli.commands.parser import Parser, add_trust, path, several, whole, word
from medcm_cli.commands.replaced import tell
from medcm_cli.commands.terminal import OUT, complain, saying
from medcm_cli.errors import InputError


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or files that do not fit."""
    parser = Parser("plot", "Draw what is in run folders; each figure comes with the numbers that it shows.")
    parser.add_folders()
    parser.add_argument("--out", type=path, help="where to write the figures (FOLDER/figures if not given)")
    parser.add_argument(
        "--format",
        type=several(word("png", "svg", "pdf")),
        default="png,svg,pdf",
        help="one or several of these",
    )
    parser.add_argument(
        "--epochs",
        type=several(whole(0)),
        default=[],
        help="show covariate effects at these epochs too: 25,100",
    )
    parser.add_argument(
        "--fold",
        type=whole(1),
        help="show the goodness of fit of this fold (of one that is typical of all methods if not given)",
    )
    parser.add_argument("--replicate", type=whole(1), help="show the goodness of fit of this replicate")
    add_trust(parser)
    options = parser.read(arguments)

    from medcm_cli.report.figures import catalogue
    from medcm_cli.runs.sweeps import gather
    from medcm_cli.runs.walk import walk
    from medcm_cli.study.mixture import unmixed

    out = options.out or options.folders[0] / "figures"
    with saying("reading fits") as say:
        read = walk(options.folders, lambda count: say(f"{count} fits read"))
        found = gather(unmixed(read), options.folders)
        if not found.sweeps:
            more = f" (and {len(found.missing) - 1} more)" if len(found.missing) > 1 else ""
            raise InputError(f"{found.missing[0]}{more}")
        for folder, drawn in catalogue.write_all(
            found, out, options.format, options.epochs, options.fold, options.replicate, options.trust
        ):
            say(f"{folder}: {drawn.title}")
    if options.out is None:
        tell(out, out / "figures.json", options)
    OUT.print(f"{', '.join(options.format)} and numbers -> {out}")
    complain("not drawn, or in part:", found.missing)
