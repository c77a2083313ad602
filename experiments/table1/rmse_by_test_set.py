"""RMSE of the fits `as published`, on several sets of test subjects.

    python experiments/table1/rmse_by_test_set.py outputs/table1_as_published

All fits were trained on train_set_1. The published RMSE is that of the test subjects of the fold in a fit's
file name, some of whom are in train_set_1; ours is that of the test subjects of fold 1.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from tabulate import tabulate

from medcm_cli import runs
from medcm_cli.data import Population
from medcm_cli.numerics.streams import Stream
from medcm_cli.study.job import Job

TAIL = 1500  # of 2000 epochs: the first of the checkpoints that an estimate averages
FOLDS = list(range(1, 21))


def squared_errors(job: Job, folder: Path, tail: int) -> np.ndarray:
    """(T, N, C) squared errors of the typical predictions for every subject at a fit's last C checkpoints."""
    everyone = Population.from_events(job.problem.events, torch.float32)
    state = job.objective.init(
        job.problem.model, everyone.select([np.arange(1)]), [Stream(0, 1, 1)], torch.float32
    )
    table = pyarrow.parquet.ParquetFile(folder / "parameters.parquet").read().to_pandas()
    table = table[table["epoch"] >= tail]
    checkpoints = table["epoch"].nunique()
    values = {}
    for name, rows in table.groupby("name", observed=True):
        if not name.startswith("q."):
            shape = state.trained[name].shape[:-1]
            flat = rows["value"].to_numpy().reshape(checkpoints, -1).T
            values[name] = torch.tensor(flat.reshape(*shape, checkpoints))
    population = everyone.select([np.arange(len(job.problem.events.ids))] * checkpoints)
    prediction = job.problem.model.predict(job.problem.model.typical(values, population), population)
    return ((prediction - population.dv)[:, 0] ** 2).numpy()


def rmse(errors: np.ndarray, subjects: np.ndarray, level_scale: float) -> float:
    """Mean over checkpoints."""
    return float(np.sqrt(errors[:, subjects].mean((0, 1))).mean() * level_scale)


def by_test_set(root: Path, tail: int) -> dict[str, list[tuple[float, ...]]]:
    """RMSE of each fit of an objective: test subjects of fold 1, of the fold in its name, all subjects."""
    jobs: dict[str, Job] = {}
    rows: dict[str, list[tuple[float, ...]]] = {}
    for number, folder in enumerate(runs.find(root)):
        record = runs.read_record(folder)
        assert record is not None
        objective = record.address.objective
        if objective not in jobs:
            choices = {"fold": FOLDS, "batch": {"threads": 1, "fits": None}, "overwrite": False}
            jobs[objective] = Job.build({**record.config, **choices})
        job = jobs[objective]
        errors = squared_errors(job, folder, tail)
        scale = float(record.config["dataset"]["level_scale"])
        # Five fits for each fold, as in the published files.
        other = job.problem.folds[FOLDS[number % len(FOLDS)]]
        everyone = np.arange(errors.shape[1])
        sets = (job.problem.folds[1].test, other.test, everyone)
        rows.setdefault(objective, []).append(tuple(rmse(errors, subjects, scale) for subjects in sets))
    return rows


def main(root: Path) -> None:
    """Print a row per objective: median over its fits, by test subjects."""
    errors = by_test_set(root, TAIL)
    headers = ["objective", "fits", "test subjects of fold 1", "of the fold in the name", "all subjects"]
    rows = [
        [name, len(values), *np.median(np.array(values), axis=0)] for name, values in sorted(errors.items())
    ]
    sys.stdout.write(tabulate(rows, headers, tablefmt="github", floatfmt=".2f") + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
