"""What an epoch costs where a few patients have very many doses: time and memory, as ratios.

    python experiments/propofol/ragged.py ../shared/data/propofol/propofol.csv.gz

Prints a Markdown table. ``padded`` is everybody in one group, padded to the longest record. Every case is a
process of its own with one thread; each round trains all of them for some epochs in turn, and what counts is
the median of the CPU time.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir
from tabulate import tabulate

from medcm_cli.commands.speed import _peak_memory
from medcm_cli.data import population
from medcm_cli.study.job import Job
from medcm_cli.study.options import as_config, conf_dir
from medcm_cli.study.workers import prepare

HERE = Path(__file__).resolve().parent
FEW = 86  # dose rows
COPIES = 10
CASES = {  # table, whether padded, epochs
    f"at most {FEW} dose rows, padded": ("few", True, 10),
    f"at most {FEW} dose rows": ("few", False, 10),
    "all, padded": ("all", True, 2),
    "all": ("all", False, 10),
    f"all, {COPIES} copies": ("copies", False, 3),
}


def write_tables(source: Path, folder: Path) -> dict[str, tuple[int, int, int]]:
    """Table -> its patients, doses and levels; those without a level are left out."""
    rows = pd.read_csv(source)
    level = rows["EVID"] == 0
    rows = rows[level.groupby(rows["ID"]).transform("any")]
    doses = (rows["EVID"] == 1).groupby(rows["ID"]).transform("sum")
    step = int(rows["ID"].max()) + 1
    tables = {
        "few": rows[doses <= FEW],
        "all": rows,
        "copies": pd.concat([rows.assign(ID=rows["ID"] + step * copy) for copy in range(COPIES)]),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return {
        name: (table["ID"].nunique(), int(table["EVID"].eq(1).sum()), int(table["EVID"].eq(0).sum()))
        for name, table in tables.items()
    }


def epoch(path: Path, padded: bool, epochs: int) -> tuple[float, float, float]:
    """CPU s of an epoch, the most memory of the process, GiB, and CPU s until training begins."""
    prepare(threads=1)
    if padded:
        population.groups_of = lambda doses, _: [np.arange(len(doses))]
    options = [f"hydra.searchpath=[file://{conf_dir()}]", f"dataset.path={path}", f"epochs={epochs}"]
    began = time.process_time()
    with initialize_config_dir(str(HERE), version_base="1.3"):
        job = Job.build(as_config(compose("ragged", options)))
    ready = time.process_time()
    job.train([(1, 1)])
    return (time.process_time() - ready) / epochs, _peak_memory(), ready - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_tables(options.source, Path(folder))
        for _ in range(options.rounds):
            for name, (table, padded, epochs) in CASES.items():
                # A fresh interpreter: a peak of memory is never forgotten.
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    run = pool.submit(epoch, Path(folder, f"{table}.csv"), padded, epochs)
                    found[name].append(run.result())
                print(f"{name}: {found[name][-1][0]:.3f} CPU s an epoch", file=sys.stderr, flush=True)
    middle = {name: [statistics.median(v) for v in zip(*runs, strict=True)] for name, runs in found.items()}
    before = middle[next(iter(CASES))][0]
    cells = [
        [name, *sizes[CASES[name][0]], f"{cpu:.3f}", f"{cpu / before:.2f}", f"{peak:.2f}", f"{ready:.1f}"]
        for name, (cpu, peak, ready) in middle.items()
    ]
    heads = ("patients", "doses", "levels", "CPU s an epoch", "ratio", "GiB", "CPU s before it")
    print(tabulate(cells, ["vi, three compartments", *heads], tablefmt="github"))


if __name__ == "__main__":
    main()
