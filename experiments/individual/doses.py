"""Whether doses keep what they promise: patients whose true parameters are known are dosed on their first 0,
1, 2 or 3 levels, and the true trough at steady state is computed here, with numpy and scipy alone.

    python experiments/individual/doses.py outputs/individual_truth outputs/data/individual [patients]
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.linalg import expm

from medcm_cli import dose, load_study

EVERY, TARGET = 48.0, 3.0  # h, IU/dL
INFUSED = 1 / 60  # h


def troughs(truth):
    """IU/dL of 1 IU every ``EVERY`` h at steady state, by matrix exponentials."""
    cl, v1, q, v2 = (truth[name].to_numpy() for name in ("CL", "V1", "Q", "V2"))
    k = np.moveaxis(np.array([[-(cl + q) / v1, q / v2], [q / v1, -q / v2]]), -1, 0)
    one = np.eye(2)
    pushed = np.linalg.solve(k, expm(k * INFUSED) - one)[:, :, :1] / INFUSED
    before = np.linalg.solve(one - expm(k * EVERY), expm(k * (EVERY - INFUSED)) @ pushed)
    return before[:, 0, 0] / v1 / 10


def main():
    study, folder = load_study(sys.argv[1]), Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    frame = pd.read_parquet(folder / "simulation.parquet")
    frame = frame[frame["id"].isin(frame["id"].unique()[-count:])]
    truth = pd.read_parquet(folder / "truth.parquet").set_index("id").loc[frame["id"].unique()]
    unit = troughs(truth)
    rank = (frame["mdv"] == 0).groupby(frame["id"]).cumsum().where(frame["mdv"] == 0, 0)
    print(
        "| levels used | P asked for | dosed | P promised | true trough reaches it | IU/kg | one vial less |"
    )
    print("|---|---|---|---|---|---|---|")
    for used in range(4):
        for wanted in (0.5, 0.8, 0.95):
            target = f"trough>={TARGET:g} IU/dL"
            chosen = dose(study, frame[rank <= used], target, wanted, [EVERY], most=80, draws=400)
            table = chosen.doses.set_index("patient").loc[truth.index]
            can = table["feasible"].to_numpy()
            amount = table["dose"].to_numpy()[can]
            hit, less = (np.mean(x * unit[can] >= TARGET) for x in (amount, amount - 250))
            promised, per_kg = table["probability"][can].mean(), table["per_kg"][can].median()
            cells = [
                f"{100 * can.mean():.1f} %",
                f"{promised:.3f}",
                f"{hit:.3f}",
                f"{per_kg:.1f}",
                f"{less:.3f}",
            ]
            print(f"| {used} | {wanted} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
