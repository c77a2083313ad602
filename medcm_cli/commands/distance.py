"""``medcm distance``: posteriors of fits compared with draws of NUTS."""

from math import isnan
from typing import TYPE_CHECKING

from medcm_cli.commands.parser import Parser, add_trust, path
from medcm_cli.commands.terminal import OUT, show

if TYPE_CHECKING:
    import pandas as pd

    from medcm_cli.report.section import Section

_HEADERS = {
    "eta": "eta, squared 2-W",
    "eta_last": "eta at the last epoch",
    "eta_sliced": "eta, sliced",
}


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or folders that do not fit."""
    parser = Parser("distance", "Wasserstein distances from the posteriors of fits to draws of NUTS.")
    parser.add_argument("posterior", type=path, help="a folder of draws that `medcm posterior` wrote")
    parser.add_argument("folders", type=path, nargs="+", help="fits of the same subjects, or folders of them")
    parser.add_argument(
        "--out",
        type=path,
        metavar="CSV",
        help="table to write, with a row for each fit (POSTERIOR/distances.csv if not given)",
    )
    add_trust(parser)
    options = parser.read(arguments)

    from medcm_cli.analysis.distances import distances
    from medcm_cli.files import write_csv

    found = distances(options.posterior, options.folders, options.trust)
    show(section(found))
    table = options.out or options.posterior / "distances.csv"
    write_csv(table, found)
    if "floor" in found:
        OUT.print(
            f"sliced distance between two sets of NUTS draws, times 1000: {1000 * found['floor'].mean():.3g}"
        )
    OUT.print(f"mean (sd) over fits of the mean over subjects; a row for each fit -> {table}")


def section(found: "pd.DataFrame") -> "Section":
    """Mean (sd over fits) of each distance, times 1000, a row for each method."""
    from medcm_cli.report.section import Section
    from medcm_cli.runs import ALIKE
    from medcm_cli.runs.summary import label_of

    places = [*ALIKE, "fold", "replicate", "floor"]
    measures = [name for name in found.columns if name not in places]
    told_apart = [name for name in ALIKE if len(found[name].unique()) > 1] or ["objective"]
    cells = []
    for key, fits in found.groupby(list(ALIKE), sort=True):
        of_group = dict(zip(ALIKE, key, strict=True))
        spread = fits[measures].std(ddof=1)
        row = [str(of_group[name]) for name in told_apart] + [str(len(fits))]
        for name, mean in fits[measures].mean().items():
            row.append("" if isnan(mean) else f"{1000 * mean:.3g} ({1000 * spread[str(name)]:.2g})")
        cells.append(row)
    effects, units = found.attrs.get("random_effects", []), found.attrs.get("units", {})
    names = [
        _HEADERS.get(name) or ", ".join([label_of(name, effects), "1-W", *filter(None, [units.get(name)])])
        for name in map(str, measures)
    ]
    return Section("Distance to NUTS, times 1000", [*told_apart, "fits", *names], cells)
