"""How often confidence intervals hold the truth, after ``medcm uncertainty``, beside those of the exact
likelihood by quadrature, and why not more often.

Run as ``python experiments/coverage/intervals.py outputs/coverage``; prints a Markdown table. The exact
likelihood is that of the data sets of the ``foce`` fits, and of the same with levels below 0 where the
simulation has 0; ``--without-exact`` leaves both out.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tabulate import tabulate

from medcm_cli import runs
from medcm_cli.analysis import uncertainty
from medcm_cli.objectives import Agq
from medcm_cli.runs.sweeps import finished, grouped
from medcm_cli.study.restore import Restored, restore
from medcm_cli.study.workers import prepare

NODES = 9  # per random effect


def exact(restored: Restored, nodes: int = NODES) -> list[pd.DataFrame | str]:
    """Maximum likelihood estimates of the data sets of fits, with intervals, or why not."""
    chosen = Agq(nodes=nodes).criterion(restored.problem.model.size(restored.population))
    return uncertainty.intervals(restored, uncertainty.estimate(restored, chosen), 0.95)


def unfloored(source: Path, truth: Any, folder: Path) -> Path:
    """A copy of a simulated data set in which a level of 0 is drawn from what it was before it was
    set to that: normal around the individual level, below 0."""
    events, sigma = pd.read_parquet(source), truth["sigma"]["additive"]
    zero = (events["mdv"] == 0) & (events["dv"] == 0)
    level = events.loc[zero, "ipred"]
    below = np.random.default_rng(0).random(len(level)) * stats.norm.cdf(-level / sigma)
    events.loc[zero, "dv"] = level + sigma * stats.norm.ppf(below)
    path = folder / source.name
    events.to_parquet(path)
    return path


def table(fits: dict[str, Sequence[pd.DataFrame]], truth: dict[str, float]) -> pd.DataFrame:
    """A row per objective, method and parameter: fits; share of 95 % intervals that hold the truth, with its
    exact binomial interval; how many lie below it and above; mean error in mean standard errors; and mean
    standard error by sd of the estimates."""
    rows: list[dict[str, Any]] = []
    for objective, frames in fits.items():
        for (method, name), group in pd.concat(frames).groupby(["method", "name"], sort=False):
            if name not in truth:
                continue
            low, high = group["upper"] < truth[name], group["lower"] > truth[name]
            hits, count = int((~low & ~high).sum()), len(group)
            share = stats.binomtest(hits, count).proportion_ci(0.95, "exact")
            se = group["se"].mean()
            row = {"objective": objective, "method": method, "parameter": name, "fits": count}
            row["coverage, %"] = f"{100 * hits / count:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"
            row |= {"below": int(low.sum()), "above": int(high.sum())}
            row["bias / SE"] = (group["estimate"].mean() - truth[name]) / se
            row["SE / sd"] = se / group["estimate"].std()
            rows.append(row)
    return pd.DataFrame(rows)


def with_data(fits: Sequence[tuple[Path, runs.Record]], path: Path) -> list[tuple[Path, runs.Record]]:
    """The same fits, to be restored with the data in ``path``."""
    data = {"source": str(path), "fingerprint": runs.fingerprint([path])}
    return [(folder, replace(record, data=record.data | data)) for folder, record in fits]


def collect(root: Path, with_exact: bool) -> pd.DataFrame:
    """The table of all fits below a folder."""
    prepare(1)
    fits: dict[str, Sequence[pd.DataFrame]] = {}
    truth: dict[str, float] = {}
    for group in grouped(finished([root])):
        objective, record = group[0][1].address.objective, group[0][1]
        truth = uncertainty.true_values(record.truth, float(record.config["dataset"]["level_scale"]))
        files = (folder / "uncertainty.parquet" for folder, _ in group)
        fits[objective] = [pd.read_parquet(path) for path in files if path.exists()]
        if objective == "foce" and with_exact:
            with tempfile.TemporaryDirectory() as folder:
                path = unfloored(Path(record.data["source"]), record.truth, Path(folder))
                for name, fits_of in (("exact", group), ("exact, no floor", with_data(group, path))):
                    refitted = exact(restore(fits_of)[0])
                    fits[name] = [frame for frame in refitted if not isinstance(frame, str)]
    return table(fits, truth)


if __name__ == "__main__":
    shown = collect(Path(sys.argv[1]), "--without-exact" not in sys.argv)
    print(tabulate(shown, headers="keys", tablefmt="github", floatfmt=".2f", showindex=False))
