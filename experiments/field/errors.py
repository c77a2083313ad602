"""Bias and RMSE, % of the truth, of estimates of 50 sets: the blind comparison, and a dose-response design.

python experiments/field/errors.py outputs/blind_comparison outputs/dose_response
"""

import sys

import numpy as np
import pandas as pd

import medcm_cli

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
    "var E0": 0.09,
    "var EMAX": 0.49,
    "var ED50": 0.49,
    "rho_32": 0.5,
    "var error": 0.01,
}


def measured(study: str) -> pd.DataFrame:
    """A row per quantity: bias and RMSE of each objective, % of the truth; of correlations in % points."""
    found = medcm_cli.load_study(study).summary.reset_index()
    truth, names = (BLIND, ("V1", "KE", "KD")) if "typical_KD" in found else (DOSE, ("E0", "EMAX", "ED50"))
    found = found.assign(**{f"var {name}": found[f"omega_{i}"] ** 2 for i, name in enumerate(names, 1)})
    sigma = "sigma_log" if "sigma_log" in found else "sigma_proportional"
    found = found.assign(**{"var error": found[sigma] ** 2})
    rows: dict[str, dict[str, float]] = {name: {} for name in truth}
    for objective, fits in found.groupby("objective"):
        for name, value in truth.items():
            error = 100 * (fits[name] - value) / (1 if name.startswith("rho") else value)
            rows[name][f"{objective} bias"] = float(error.mean())
            rows[name][f"{objective} RMSE"] = float(np.sqrt((error**2).mean()))
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


if __name__ == "__main__":
    for study in sys.argv[1:]:
        print(measured(study).to_markdown(), "\n")
