"""Patients whose posteriors are far from normal: one sample each, about a day after the dose, and a
wide Omega.

python experiments/posteriors/sparse.py outputs/data/sparse
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from medcm_cli.files import replaced
from medcm_cli.haemophilia.covariates import draw_covariates
from medcm_cli.haemophilia.virtual import DOSE_PER_KG, MINUTE, VIAL, Truth, levels, typical_parameters

SUBJECTS, SEED = 60, 1
TIME = 24.0, 4.0  # h, mean and sd
TRUTH = Truth(omega=((1.0, 0.3), (0.3, 1.0)))


def write(folder: Path) -> None:
    """``simulation.csv`` and, so that `split=files` works, a training set of all but the last."""
    generator = np.random.default_rng(SEED)
    covariates = draw_covariates(SUBJECTS, generator)
    eta = np.linalg.cholesky(np.asarray(TRUTH.omega)) @ generator.standard_normal((2, SUBJECTS))
    zeta = typical_parameters(covariates.weight, covariates.vwf, TRUTH)
    z = {**zeta, "CL": zeta["CL"] * np.exp(eta[0]), "V1": zeta["V1"] * np.exp(eta[1])}
    time = TIME[0] + TIME[1] * generator.standard_normal((1, SUBJECTS))
    dose = np.maximum(np.round(DOSE_PER_KG * covariates.weight / VIAL), 1) * VIAL
    at_once = np.zeros((1, SUBJECTS)), np.full((1, SUBJECTS), MINUTE), dose[None]
    dv = levels(time, *at_once, z)[0] + TRUTH.sigma * generator.standard_normal(SUBJECTS)
    each = {"id": np.arange(1, SUBJECTS + 1), "wt": covariates.weight, "vwf": covariates.vwf}
    doses = {"time": 0.0, "mdv": 1, "amt": dose, "rate": dose / MINUTE, "duration": MINUTE}
    samples = {"time": time[0], "mdv": 0, "dv": np.maximum(dv, 0)}
    rows = pd.concat([pd.DataFrame({**each, **doses}), pd.DataFrame({**each, **samples})])
    with replaced(folder) as partial:
        partial.mkdir()
        rows.sort_values(["id", "time"]).to_csv(partial / "simulation.csv", index=False)
        drawn = "".join(f"{number}\n" for number in range(1, SUBJECTS))
        (partial / "train_set_1.csv").write_text(f"idxs\n{drawn}")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
