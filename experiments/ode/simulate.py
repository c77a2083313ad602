"""A study of saturable elimination, for the sweep of 400 fits: 1260 subjects, one bolus of 150 to 250 mg
each, levels near 4, 24 and 48 h.

    python experiments/ode/simulate.py outputs/data/saturable_study.csv
"""

import sys
from pathlib import Path

import numpy as np
from scipy.special import lambertw

SUBJECTS, SEED = 1260, 0
VM, KM, V1 = 6.0, 30.0, 2.0  # mg/h, mg/L, L
OMEGA, SIGMA = 0.2, 3.0  # sd of log VM and log KM between subjects; of the error, mg/L


def main(path: str) -> None:
    """One row a dose or a level."""
    g = np.random.default_rng(SEED)
    dose = g.uniform(150, 250, SUBJECTS)
    vm, km = (typical * np.exp(OMEGA * g.standard_normal(SUBJECTS)) for typical in (VM, KM))
    hours = np.array([4.0, 24.0, 48.0]) + g.uniform(-0.5, 0.5, (SUBJECTS, 3))
    first = (dose / V1 / km)[:, None]
    # Of C' = -VM C / (KM + C) / V1 after a bolus.
    level = km[:, None] * lambertw(first * np.exp(first - (vm / km / V1)[:, None] * hours)).real
    level = level + SIGMA * g.standard_normal(level.shape)
    with Path(path).open("w") as file:
        file.write("id,time,amt,dv,evid\n")
        for i in range(SUBJECTS):
            file.write(f"{i + 1},0,{dose[i]:.4f},.,1\n")
            file.writelines(f"{i + 1},{t:.4f},.,{y:.4f},0\n" for t, y in zip(hours[i], level[i], strict=True))


if __name__ == "__main__":
    main(sys.argv[1])
