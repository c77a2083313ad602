"""Fifty data sets of 40 subjects whose clearance and volume differ between subjects and between the two or
three occasions of each: a bolus every 12 h, levels 1, 4 and 10 h after it, so that a part of each dose, a
third as a rule, is still there at the next.

    python experiments/occasions/simulate.py outputs/data/visits.csv
"""

import sys
from pathlib import Path

import numpy as np

SETS, SUBJECTS, SEED = 50, 40, 0
TYPICAL = {"CL": 3.0, "V1": 30.0}  # L/h, L
OMEGA, RHO, PI = {"CL": 0.3, "V1": 0.2}, 0.3, {"CL": 0.2, "V1": 0.12}  # sds of the logarithms
SIGMA = 0.4  # mg/L
EVERY, AFTER = 12.0, (1.0, 4.0, 10.0)  # h


def main(path: str) -> None:
    """One row a dose or a level; the sets one after another, as split=blocks takes them apart."""
    g = np.random.default_rng(SEED)
    number = SETS * SUBJECTS
    z = g.standard_normal((2, number))
    z[1] = RHO * z[0] + np.sqrt(1 - RHO**2) * z[1]
    eta = {name: sd * z[k] for k, (name, sd) in enumerate(OMEGA.items())}
    dose = np.round(g.uniform(300, 600, (number, 3)), -1)
    kappa = {name: sd * g.standard_normal((number, 3)) for name, sd in PI.items()}
    error = SIGMA * g.standard_normal((number, 3, len(AFTER)))
    with Path(path).open("w") as file:
        file.write("id,time,amt,dv,evid,occ\n")
        for i in range(number):
            amount, last = 0.0, 0.0
            for occasion in range(2 + i % 2):
                own = {
                    name: TYPICAL[name] * np.exp(eta[name][i] + kappa[name][i, occasion]) for name in TYPICAL
                }
                begin = EVERY * occasion
                # The parameters of a record hold since the record before it, which was on the last occasion.
                amount = amount * np.exp(-own["CL"] / own["V1"] * (begin - last)) + dose[i, occasion]
                file.write(f"{i + 1},{begin:g},{dose[i, occasion]:g},.,1,{occasion + 1}\n")
                last = begin
                for k, after in enumerate(AFTER):
                    amount *= np.exp(-own["CL"] / own["V1"] * (begin + after - last))
                    last = begin + after
                    level = amount / own["V1"] + error[i, occasion, k]
                    file.write(f"{i + 1},{last:g},.,{level:.5f},0,{occasion + 1}\n")


if __name__ == "__main__":
    main(sys.argv[1])
