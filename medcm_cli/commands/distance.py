"""``medcm distance``: posteriors of fits compared with draws of NUTS."""

from pathlib import Path

from medcm_cli.commands.parser import Parser
from medcm_cli.commands.terminal import OUT, show


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or folders that do not fit."""
    parser = Parser("distance", "Wasserstein distances from the posteriors of fits to draws of NUTS.")
    parser.add_argument("posterior", type=Path, help="a folder of draws that `medcm posterior` wrote")
    parser.add_argument("folders", type=Path, nargs="+", help="fits of the same subjects, or folders of them")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="CSV",
        help="table to write, with a row for each fit (POSTERIOR/distances.csv if not given)",
    )
    options = parser.read(arguments)

    from medcm_cli.distances import distances, section
    from medcm_cli.files import replaced

    found = distances(options.posterior, options.folders)
    show(section(found))
    path = options.out or options.posterior / "distances.csv"
    with replaced(path) as partial:
        found.to_csv(partial, index=False)
    if "floor" in found:
        OUT.print(
            f"sliced distance between two sets of NUTS draws, times 1000: {1000 * found['floor'].mean():.3g}"
        )
    OUT.print(f"mean (sd) over fits of the mean over subjects; a row for each fit -> {path}")
