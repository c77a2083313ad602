"""``medcm calibrate``: whether the posteriors of random effects that a fit reports are right."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medcm_cli.commands.parser import Parser, add_trust, path, whole
from medcm_cli.commands.terminal import OUT, complain, counter, show
from medcm_cli.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from medcm_cli.report.section import Section


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or folders that do not fit."""
    parser = Parser(
        "calibrate",
        "Simulation-based calibration of random effects: data sets are drawn from a fit of each method, and "
        "the true random effects ranked among draws of the posteriors that its objective gives. Ranks are "
        "uniform where these are right.",
    )
    parser.add_folders()
    parser.add_argument("--sets", type=whole(1, 10_000), default=20, help="data sets of each fit")
    parser.add_argument("--fold", type=whole(1), help="of this fold (of a typical one if not given)")
    parser.add_argument("--replicate", type=whole(1), help="of this replicate")
    parser.add_argument(
        "--out", type=path, metavar="CSV", help="table to write (FOLDER/calibration.csv if not given)"
    )
    add_trust(parser)
    options = parser.read(arguments)

    from medcm_cli.files import write_csv

    rows, skipped = _rows(options.folders, options.sets, options.fold, options.replicate, options.trust)
    show(_section(rows, options.sets))
    out = options.out or options.folders[0] / "calibration.csv"
    write_csv(out, rows)
    OUT.print(f"of a right posterior: mean rank 0.5, and p is rarely below 0.05 -> {out}")
    complain("not calibrated:", skipped)


def _rows(
    folders: Sequence[Path], sets: int, fold: int | None, replicate: int | None, trust: bool
) -> tuple["pd.DataFrame", list[str]]:
    """A row per method and random effect, and why others have none. :raises InputError: there is none."""
    import pandas as pd

    from medcm_cli.analysis.calibration import calibrate, table
    from medcm_cli.runs.sweeps import collect, typical_fit
    from medcm_cli.study.restore import restore
    from medcm_cli.study.workers import prepare

    prepare(1)
    found = collect(folders)
    frames, skipped = [], list(found.missing)
    with counter("methods done") as progress:
        methods = [(sweep, method) for sweep in found.sweeps for method in sweep.methods]
        for number, (sweep, method) in enumerate(methods, 1):
            fit = typical_fit(method, fold, replicate)
            try:
                if fit is None:
                    raise InputError("no complete fit")
                (restored,) = restore([(fit.folder, fit.record)], trust)
                of_method = table(calibrate(restored, sets))
            except InputError as error:
                skipped.append(f"{sweep.study}, {sweep.dataset}, {method.label}: {error}")
                continue
            where = {"study": sweep.study, "dataset": sweep.dataset, "method": method.label}
            frames.append(of_method.assign(**where, fit=fit.record.address.place))
            progress(number)
    if not frames:
        raise InputError(f"nothing to calibrate: {'; '.join(skipped) or 'no finished fits'}")
    return pd.concat(frames, ignore_index=True), skipped


def _section(rows: "pd.DataFrame", sets: int) -> "Section":
    from medcm_cli.report.section import Section

    headers = ["method", "fit", "parameter", "posterior", "ranks", "mean rank", "in 50 %", "in 90 %", "p"]
    cells = [
        [
            *(str(row[name]) for name in ("method", "fit", "parameter", "posterior", "ranks")),
            *(f"{row['mean']:.3f}", f"{100 * row['inside_50']:.1f} %"),
            *(f"{100 * row['inside_90']:.1f} %", f"{row['p']:.2g}"),
        ]
        for row in rows.to_dict("records")
    ]
    return Section(f"Calibration of random effects, {sets} data sets of each fit", headers, cells)
