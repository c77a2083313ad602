"""What foce estimates of the sets of ``simulate.py`` beside what they were drawn from: bias, and its Monte
Carlo error.

Run as ``python experiments/occasions/recover.py outputs/occasions``; prints a Markdown table.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from simulate import OMEGA, PI, RHO, SIGMA, TYPICAL
from tabulate import tabulate

from medcm_cli.runs.summary import summarize

TRUTH = {
    **{f"typical_{name}": value for name, value in TYPICAL.items()},
    "omega_1": OMEGA["CL"],
    "omega_2": OMEGA["V1"],
    "rho_21": RHO,
    **{f"pi_{name}": value for name, value in PI.items()},
    "sigma_additive": SIGMA,
}


def table(root: Path) -> pd.DataFrame:
    """A row per quantity: truth, mean over sets, bias with its Monte Carlo error, and their ratio."""
    fits = summarize([root]).fits
    fits = fits[fits["status"] == "complete"]
    rows = {}
    for name, truth in TRUTH.items():
        values = fits[name]
        error = values.std() / np.sqrt(len(values))
        rows[name] = {
            "truth": truth,
            "mean": values.mean(),
            "sd over sets": values.std(),
            "bias, %": 100 * (values.mean() / truth - 1),
            "Monte Carlo error, %": 100 * error / truth,
            "bias / error": (values.mean() - truth) / error,
            "sets": len(values),
        }
    return pd.DataFrame(rows).T


if __name__ == "__main__":
    print(tabulate(table(Path(sys.argv[1])), headers="keys", tablefmt="github", floatfmt=".4g"))
