"""``medcm distance``: the table of distances from fits to draws of NUTS."""

import numpy as np
import pandas as pd

from medcm_cli.report.section import Section
from medcm_cli.runs import ALIKE

HEADERS = {
    "eta": "eta, squared 2-W",
    "eta_last": "eta at the last epoch",
    "eta_sliced": "eta, sliced",
}


def section(found: pd.DataFrame) -> Section:
    """Mean (sd over fits) of each distance, times 1000, a row for each method."""
    places = [*ALIKE, "fold", "replicate", "floor"]
    measures = [name for name in found.columns if name not in places]
    told_apart = [name for name in ALIKE if len(found[name].unique()) > 1] or ["objective"]
    cells = []
    for key, fits in found.groupby(list(ALIKE), sort=True):
        of_group = dict(zip(ALIKE, key, strict=True))
        spread = fits[measures].std(ddof=1)
        row = [str(of_group[name]) for name in told_apart] + [str(len(fits))]
        for name, mean in fits[measures].mean().items():
            row.append("" if np.isnan(mean) else f"{1000 * mean:.3g} ({1000 * spread[str(name)]:.2g})")
        cells.append(row)
    names = [HEADERS.get(name, f"{name}, 1-W") for name in measures]
    return Section("Distance to NUTS, times 1000", [*told_apart, "fits", *names], cells)
