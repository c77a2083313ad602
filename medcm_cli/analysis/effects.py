"""What learned effects of covariates are shown beside: the covariates that there are, and the truth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from medcm_cli.data.sheet import FloatArray
from medcm_cli.haemophilia.cohorts import drawn_from
from medcm_cli.study.restore import Restored
from medcm_cli.training.results import GRID_POINTS


def covariates(restored: Restored) -> dict[str, FloatArray]:
    """Name -> the values of all subjects of the data set; of a covariate that changes, of all its regimes."""
    found = restored.problem.everyone.covariates
    return {
        name: np.asarray(values.double().numpy(), dtype=np.float64).ravel() for name, values in found.items()
    }


def true_effects(config: Mapping[str, Any]) -> pd.DataFrame | None:
    """The covariate functions that simulated data were drawn from, relative to the reference covariates, on
    the grid of ``effects.parquet``: ``covariate``, ``parameter``, ``x``, ``relative``. None where they are
    not known: the data set has no truth, or not that of patients that medcm draws."""
    dataset = config["dataset"]
    if dataset["truth"] is None:
        return None
    entries = dataset["covariates"]
    zeta = drawn_from(entries, dataset["truth"]["omega"], dataset.get("cohort"))
    if zeta is None:
        return None
    parts = []
    reference = {name: np.full(GRID_POINTS, float(entry["reference"])) for name, entry in entries.items()}
    base = zeta(reference)
    for name, entry in entries.items():
        x = np.linspace(0, float(entry["scale"]), GRID_POINTS)
        moved = zeta({**reference, name: x})
        parts += [
            pd.DataFrame({"covariate": name, "parameter": p, "x": x, "relative": moved[p] / base[p]})
            for p in moved
        ]
    return pd.concat(parts, ignore_index=True)
