"""What an epoch costs as K, the number of random effects, grows, with a full, a blocked and a diagonal Omega.

Run as ``python experiments/large/effects.py``; prints a Markdown table.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from tabulate import tabulate

from medcm_cli.study.job import Job
from medcm_cli.study.options import as_config, conf_dir

FITS, SUBJECTS, TIMES = 10, 100, (0.5, 1, 2, 4, 8, 12, 18, 24)
EPOCHS = {"vi": 40, "foce": 8}
REPEATS = 3
# Twelve parameters, of which three multiply to each of CL, V1, Q and V2; an even number of them vary.
PARTS = {"CL": (2, 1, 1), "V1": (20, 1, 1), "Q": (1, 1, 1), "V2": (30, 1, 1)}
BEGIN = {f"{name}_{part}": value for name, of in PARTS.items() for part, value in enumerate(of)}
ORDER = [f"{name}_{part}" for part in range(3) for name in PARTS]


def table(path: Path) -> None:
    """A bolus, and levels that fall with one rate."""
    generator, rows = np.random.default_rng(0), list[dict[str, float]]()
    for subject in range(1, SUBJECTS + 1):
        rows.append({"ID": subject, "TIME": 0, "AMT": 100})
        for at in TIMES:
            level = 5 * np.exp(-0.1 * at + 0.2 * generator.standard_normal())
            rows.append({"ID": subject, "TIME": at, "DV": level})
    pd.DataFrame(rows).to_csv(path, index=False)


def job(folder: Path, objective: str, effects: list[str], omega: object, epochs: int) -> Job:
    """Ten fits of that table."""
    options: dict[str, Any] = {
        "dataset.path": str(folder / "levels.csv"),
        "dataset.units": {"time": "h", "amount": "mg", "level": "mg/L"},
        "+given": {name: "*".join(f"{name}_{part}" for part in range(3)) for name in PARTS},
        "+network.equations": {name: {"typical": value} for name, value in BEGIN.items()},
        "random_effects": effects,
        "omega": omega,
        "epochs": epochs,
        "checkpoint_every": epochs,
        "outputs": str(folder / "outputs"),
    }
    chosen = [
        "dataset=table",
        "dataset.name=levels",
        "dataset.covariates={}",
        "split=all",
        "pk=two_compartment",
    ]
    chosen += ["network=equations", "error=proportional", "training.protocol=paper", f"objective={objective}"]
    written = [f"{name}={value}".replace("'", "") for name, value in options.items()]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return Job.build(as_config(compose("config", [*chosen, *written])))


def cost(folder: Path, objective: str, effects: list[str], omega: object) -> float:
    """CPU ms of an epoch, of some epochs less one, so that what comes before them does not count; the least
    of ``REPEATS``, as other work on a machine only adds to it."""
    seconds = []
    for epochs in (1, 1 + EPOCHS[objective]):
        made, taken = job(folder, objective, effects, omega, epochs), list[float]()
        for _ in range(REPEATS):
            begun = time.process_time()
            made.train([(1, replicate) for replicate in range(1, FITS + 1)])
            taken.append(time.process_time() - begun)
        seconds.append(min(taken))
    return 1000 * (seconds[1] - seconds[0]) / EPOCHS[objective]


def measure(sizes: list[int]) -> str:
    """The table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    cells = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table(folder / "levels.csv")
        for objective in EPOCHS:
            for size in sizes:
                effects = ORDER[:size]
                pairs = [list(pair) for pair in zip(effects[::2], effects[1::2], strict=True)]
                each = [cost(folder, objective, effects, omega) for omega in ("full", pairs, "diagonal")]
                cells.append([objective, size, *(f"{ms:.0f}" for ms in each)])
    return str(tabulate(cells, ["", "K", "full", "blocks of 2", "diagonal"], tablefmt="github"))


if __name__ == "__main__":
    print(measure([int(size) for size in sys.argv[1:]] or [2, 4, 8, 12]))
