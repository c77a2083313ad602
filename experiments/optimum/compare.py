"""Fits from medcm's own starts beside what others have published or found: a table of every quantity, then a
row per fit.

    medcm uncertainty outputs/optimum_*
    python experiments/optimum/compare.py outputs/optimum_*

Asked for: objective values within 0.05, or 0.01 where nothing is trained; estimates within 1 %, standard
errors (sandwich) within 3 %.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from medcm_cli.runs.summary import label_of
from medcm_cli.runs.sweeps import complete
from medcm_cli.runs.walk import Fit, walk

PUBLISHED = Path(__file__).parent / "published.csv"
KEYS = ["study", "objective", "error"]
ASKED = {"ofv": 0.05, "estimate": 1.0, "se": 3.0}  # OFV, and % of what is published
GIVEN = 0.01  # OFV of a fit in which nothing is trained


def measured(fit: Fit) -> pd.DataFrame:
    """``kind``, ``quantity`` and ``measured`` of a fit, with the keys of the published table; and what is
    ``asked``."""
    effects, address = fit.random_effects, fit.record.address
    estimates = {label_of(name, effects): value for name, value in fit.estimates().items()}
    trained = fit.record.convergence is not None
    rows = [("ofv", "", estimates.pop("objective value"), ASKED["ofv"] if trained else GIVEN)]
    rows += [("estimate", name, value, ASKED["estimate"]) for name, value in estimates.items()]
    path = fit.folder / "uncertainty.parquet"
    if path.exists():
        errors = pd.read_parquet(path).query("method == 'sandwich'")
        named = zip(errors["name"], errors["se"], strict=True)
        rows += [("se", label_of(name, effects), value, ASKED["se"]) for name, value in named]
    found = pd.DataFrame(rows, columns=["kind", "quantity", "measured", "asked"])
    return found.assign(**{key: getattr(address, key) for key in KEYS})


def compared(roots: Sequence[Path]) -> pd.DataFrame:
    """The published table with what was ``measured``, ``off`` by, in OFV or %, and whether ``within``."""
    fits = [Fit(folder, record) for folder, record in complete(list(walk(roots)), roots)]
    published = pd.read_csv(PUBLISHED, keep_default_na=False)
    table = published.merge(pd.concat(map(measured, fits)), "left", [*KEYS, "kind", "quantity"])
    off = table["measured"] - table["value"]
    relative = table["kind"] != "ofv"
    table["off"] = off.where(~relative, 100 * off / table["value"])
    return table.assign(within=table["off"].abs() <= table["asked"])


def by_fit(table: pd.DataFrame) -> list[list[str]]:
    """A row per fit: its objective value, and the largest deviations of estimates and of standard errors."""
    rows = []
    for keys, own in table.groupby(KEYS, sort=False):
        (ofv,) = own[own["kind"] == "ofv"].itertuples()
        cells = [*map(str, keys), f"{ofv.value:.3f}", f"{ofv.measured:.3f}"]
        for kind in ("estimate", "se"):
            some = own[own["kind"] == kind]
            most = some.loc[some["off"].abs().idxmax()] if some["off"].notna().any() else None
            cells.append("" if most is None else f"{most['off']:+.2f} % ({most['quantity']}, of {len(some)})")
        rows.append([*cells, "yes" if own["within"].all() else "no"])
    return rows


def main(folders: Sequence[str]) -> None:
    """Print both tables."""
    table = compared([Path(folder) for folder in folders])
    shown = table.assign(
        off=[
            "-" if pd.isna(row.off) else f"{row.off:+.3f}" if row.kind == "ofv" else f"{row.off:+.2f} %"
            for row in table.itertuples()
        ],
        within=table["within"].map({True: "yes", False: "no"}).where(table["measured"].notna(), "not run"),
    )
    columns = [*KEYS, "kind", "quantity", "value", "measured", "off", "within", "source"]
    heads = [*KEYS, "", "", "published", "measured", "off", "within", "source"]
    cells = [
        [f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in shown[columns].to_numpy().tolist()
    ]
    print(tabulate(cells, heads, tablefmt="github", disable_numparse=True), end="\n\n")
    heads = [*KEYS, "published", "measured", "estimates off by at most", "standard errors", "within"]
    print(tabulate(by_fit(table), heads, tablefmt="github", disable_numparse=True))
    print(f"\n{int(table['within'].sum())} of {len(table)} within what is asked")


if __name__ == "__main__":
    main(sys.argv[1:])
