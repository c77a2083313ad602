"""``medcm summarize``: finished fits compared in tables."""

from collections.abc import Iterable, Iterator

from medcm_cli.commands.parser import Parser, path, whole
from medcm_cli.commands.replaced import tell
from medcm_cli.commands.terminal import OUT, complain, counter, show


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or files that do not fit."""
    parser = Parser("summarize", "Compare finished fits in tables, on the terminal and as files.")
    parser.add_folders()
    parser.add_argument("--out", type=path, help="where to write the tables (FOLDER/summary if not given)")
    parser.add_argument(
        "--tail",
        type=whole(0),
        metavar="EPOCHS",
        help="an estimate is the mean over so many last epochs (the last quarter, at most 500, if not given)",
    )
    parser.add_argument(
        "--expected", type=path, metavar="CSV", help="expected values, shown beside those that were found"
    )
    options = parser.read(arguments)

    from medcm_cli.report import tables
    from medcm_cli.report.findings import objective_units
    from medcm_cli.runs import Record
    from medcm_cli.runs.summary import summary_of
    from medcm_cli.runs.walk import Fault, Fit, walk
    from medcm_cli.study.mixture import unmixed

    first: dict[tuple[object, ...], Record] = {}

    def kept(found: Iterable[Fit | Fault]) -> Iterator[Fit | Fault]:
        """The same, of which a record of each kind of fit is kept."""
        for one in found:
            if isinstance(one, Fit):
                first.setdefault(one.record.address.alike, one.record)
            yield one

    with counter("fits read") as progress:
        found = kept(unmixed(walk(options.folders, progress)))
        summary = summary_of(found, options.folders, options.tail)
    compared = None if options.expected is None else tables.compare(summary, options.expected)
    for section in tables.sections(summary):
        show(section)
    OUT.print(
        "Median (sd) over complete fits, or over the outer shuffles of a nested split, "
        f"of the mean over a fit's last checkpoints. {objective_units(list(first.values()))}"
    )
    if compared is not None:
        show(compared)
    folder = options.out or options.folders[0] / "summary"
    tables.write(summary, folder)
    if options.out is None:
        tell(folder, folder / "summary.json", options)
    OUT.print(f"Parquet, CSV, Markdown and LaTeX -> {folder}")
    complain(f"skipped {len(summary.skipped)}:", summary.skipped)
