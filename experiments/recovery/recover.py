"""What vi estimates on synthetic cohorts beside what they were drawn from: bias, and its Monte Carlo error.

Run as ``python experiments/recovery/recover.py outputs/recovery prophylaxis``; prints a Markdown table.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from medcm_cli import runs
from medcm_cli.haemophilia.cohorts import TRUTHS
from medcm_cli.runs.summary import summarize


def typical(folder: Path, tail: int) -> dict[str, float]:
    """CL and V1 of a fit at the reference covariates, mean over the epochs of the tail: its absolute effects
    divided by the relative ones."""
    effects = pd.read_parquet(folder / "effects.parquet")
    last = effects[effects["epoch"] >= effects["epoch"].max() - tail]
    last = last[(last["covariate"] == "ffm") & (last["x"] > 0)]
    return {
        str(name): float((rows["value"] / rows["relative"]).mean())
        for name, rows in last.groupby("parameter")
    }


def table(root: Path, kind: str) -> pd.DataFrame:
    """A row per quantity: truth, mean over cohorts, bias in % with its Monte Carlo error, and the ratio."""
    truth = TRUTHS[kind]
    fits = summarize([root]).fits
    fits = fits[fits["status"] == "complete"]
    values = []
    for folder in runs.find(root):
        record = runs.read_record(folder)
        assert record is not None
        key = {"dataset": record.address.dataset, "replicate": record.address.replicate}
        values.append({**key, **typical(folder, record.config["tail"])})
    fits = fits.merge(pd.DataFrame(values), on=["dataset", "replicate"])
    wanted = {
        "CL": truth.typical["CL"],
        "V1": truth.typical["V1"],
        "omega_1": truth.omega_sd[0],
        "omega_2": truth.omega_sd[1],
        "rho_21": truth.rho,
        "sigma_additive": truth.additive * 100,  # IU/dL
        "sigma_proportional": truth.proportional,
    }
    # Replicates of a cohort differ by their initialisation only: a cohort is one observation, its median.
    cohorts = fits.groupby("dataset")[list(wanted)].median()
    mean, error = cohorts.mean(), cohorts.std() / np.sqrt(len(cohorts))
    rows = {
        name: {
            "truth": exact,
            "mean": mean[name],
            "sd over cohorts": cohorts[name].std(),
            "bias, %": 100 * (mean[name] / exact - 1),
            "Monte Carlo error, %": 100 * error[name] / exact,
            "bias / error": (mean[name] - exact) / error[name],
            "cohorts within 2 sd": int(((cohorts[name] - exact).abs() < 2 * cohorts[name].std()).sum()),
        }
        for name, exact in wanted.items()
    }
    return pd.DataFrame(rows).T


if __name__ == "__main__":
    shown = table(Path(sys.argv[1]), sys.argv[2])
    print(tabulate(shown, headers="keys", tablefmt="github", floatfmt=".4g"))
