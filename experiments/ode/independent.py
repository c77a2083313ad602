"""The optimum of FO of bolus_1cpt_mm.csv, single doses, by numpy alone: saturable elimination in closed form
(Lambert's W) with its derivatives, proportional error, Omega diagonal, -2 log L - n log(2 pi), float64.

    python experiments/ode/independent.py ../shared/data/published/bolus_1cpt_mm.csv
"""

import sys

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import lambertw

STARTS = ((63, 1205, 417), (50, 700, 400))  # V, VM, KM


def linearised(logs, t, dose):
    """The level after a bolus, and its derivatives by the logarithms of V, VM and KM."""
    v, vm, km = np.exp(logs)
    first = dose / v
    power = np.log(first / km) + (first - vm / v * t) / km
    with np.errstate(over="ignore"):
        w = np.where(
            power < 500, lambertw(np.exp(np.minimum(power, 500))).real, power - np.log(power.clip(1))
        )
    level, slope = km * w, km * w / (1 + w)
    by_v, by_vm = slope * (-1 + (vm / v * t - first) / km), -slope * vm / v * t / km
    by_km = level + slope * (-1 - (first - vm / v * t) / km)
    return level, np.stack([by_v, by_vm, by_km], 1)


def objective(p, subjects):
    """:param p: logarithms of V, VM, KM, three omegas and sigma."""
    total = 0.0
    for t, y, dose in subjects:
        level, g = linearised(p[:3], t, dose)
        covariance = (g * np.exp(2 * p[3:6])) @ g.T + np.diag(np.exp(2 * p[6]) * level**2)
        root = np.linalg.cholesky(covariance)
        white = np.linalg.solve(root, y - level)
        total += 2 * np.log(np.diag(root)).sum() + white @ white
    return total


def main(path):
    """One line a start."""
    rows = pd.read_csv(path)
    rows = rows[rows["SD"] == 1]
    dose = rows[rows["EVID"] == 1].set_index("ID")["AMT"]
    seen = rows[(rows["EVID"] == 0) & (rows["MDV"] == 0)]
    subjects = [
        (own["TIME"].to_numpy(float), own["DV"].to_numpy(float), float(dose[i]))
        for i, own in seen.groupby("ID")
    ]
    for start in STARTS:
        x = np.log([*start, 0.3, 0.3, 0.3, 0.2])
        for _ in range(3):
            found = minimize(objective, x, (subjects,), method="BFGS", options={"gtol": 1e-4})
            x = found.x
        v, vm, km, *others = np.exp(x)
        rest = " ".join(f"{value:.4f}" for value in others)
        print(
            f"OFV {found.fun:.3f}, V {v:.2f}, VM {vm:.1f}, KM {km:.1f}, omegas, sigma {rest}, n {len(seen)}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
