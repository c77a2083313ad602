"""Estimates of the data sets of the field: bias and RMSE, % of the truth, fits that have converged, and the
time that one took; how far fits from other starts end apart, and how far above the best method each one is.

python experiments/field/errors.py outputs/blind_comparison outputs/blind_true

Studies of the same data set are taken as several starts. Scores (`medcm score --by agq`) are compared where
they are there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medcm_cli.runs.summary import summarize

BLIND = {
    "typical_V1": 27.2,
    "typical_KE": 0.232,
    "typical_KD": 0.304,
    "var V1": 0.218,
    "var KE": 0.655,
    "var KD": 0.023,
    "rho_21": 0.906,
    "rho_31": 0.327,
    "rho_32": 0.013,
    "var error": 0.064,
}
DOSE = {
    "typical_E0": 5.0,
    "typical_EMAX": 30.0,
    "typical_ED50": 500.0,
    "typical_GAMMA": 3.0,
    "var E0": 0.09,
    "var EMAX": 0.49,
    "var ED50": 0.49,
    "rho_32": 0.5,
    "var error": 0.01,
}
NEAR = 0.05  # OFV, by which a method is as low as the lowest


def measured(fits: pd.DataFrame) -> pd.DataFrame:
    """A row per quantity: bias and RMSE of each objective, % of the truth; of correlations in % points. And
    how many fits have converged, and the seconds that one took in its batch."""
    truth, names = (BLIND, ("V1", "KE", "KD")) if "typical_KD" in fits else (DOSE, ("E0", "EMAX", "ED50"))
    fits = fits.assign(**{f"var {name}": fits[f"omega_{i}"] ** 2 for i, name in enumerate(names, 1)})
    sigma = "sigma_log" if "sigma_log" in fits else "sigma_proportional"
    fits = fits.assign(**{"var error": fits[sigma] ** 2})
    columns = {}
    for objective, own in fits.groupby("objective"):
        found = {name: own[name] - value for name, value in truth.items() if name in own}
        scale = {name: 100 / (1 if name.startswith("rho") else truth[name]) for name in found}
        columns[f"{objective} bias"] = {n: scale[n] * error.mean() for n, error in found.items()}
        columns[f"{objective} RMSE"] = {
            n: scale[n] * np.sqrt((error**2).mean()) for n, error in found.items()
        } | {
            "converged": int(own["converged"].eq(True).sum()),
            "of": len(own),
            "seconds each": own["seconds"].mean(),
        }
    return pd.DataFrame(columns).round(1).astype(object).fillna("")


def between_starts(fits: pd.DataFrame) -> pd.DataFrame:
    """Per objective, of the sets that have converged from several starts: how many, and how far the
    objective's values lie apart at most, in how many by more than 0.01 and 0.1."""
    rows = {}
    for objective, own in fits[fits["converged"].eq(True)].groupby("objective"):
        value = own.pivot_table(index="fold", columns="study", values="objective_value").dropna()
        apart = value.max(axis=1) - value.min(axis=1)
        largest = ", ".join(f"{fold}: {by:.3f}" for fold, by in apart.nlargest(3).items())
        rows[objective] = {
            "sets": len(apart),
            "largest": apart.max(),
            "above 0.01": int((apart > 0.01).sum()),
            "above 0.1": int((apart > 0.1).sum()),
            "sets furthest apart": largest,
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(4)


def between_methods(fits: pd.DataFrame, score: str) -> pd.DataFrame:
    """Per study and objective: how far its OFV by one score lies above the lowest of the study's objectives,
    in the median set and at most, and in how many sets by no more than ``NEAR``."""
    rows = {}
    for study, own in fits.groupby("study"):
        value = own.pivot_table(index="fold", columns="objective", values=score).dropna(axis=1, how="all")
        above = value.sub(value.min(axis=1), axis=0)
        for objective, by in above.items():
            rows[f"{study}, {objective}"] = {
                "sets": by.count(),
                "median": by.median(),
                "largest": by.max(),
                f"within {NEAR:g}": int((by <= NEAR).sum()),
            }
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def main(studies: Sequence[str]) -> None:
    """Tables of them, as Markdown."""
    everything = summarize([Path(study) for study in studies]).fits
    for study, fits in everything.groupby("study", sort=False):
        print(f"{study}\n\n{measured(fits.dropna(axis=1, how='all')).to_markdown()}\n")
    for dataset, fits in everything.groupby("dataset"):
        starts = fits["study"].unique()
        if len(starts) > 1:
            print(f"{dataset}, starts: {', '.join(starts)}; objective apart, in its unit\n")
            print(f"{between_starts(fits).to_markdown()}\n")
        if "ofv_agq" in fits and fits["ofv_agq"].notna().any():
            print(f"{dataset}, OFV by agq above the lowest\n")
            print(f"{between_methods(fits, 'ofv_agq').to_markdown()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
