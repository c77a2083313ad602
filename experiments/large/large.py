"""How much time and memory large tables take: epochs of vi in minibatches, and `medcm data check`.

    python experiments/large/large.py

Writes simulated tables into a temporary folder (1 GB), in blocks, and prints two Markdown tables. Every
case is a process of its own with one thread; what counts is CPU time.
"""

import argparse
import contextlib
import io
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from hydra import compose, initialize_config_dir
from tabulate import tabulate

from medcm_cli.commands import data
from medcm_cli.commands.speed import _peak_memory
from medcm_cli.study.job import Job
from medcm_cli.study.options import as_config, conf_dir
from medcm_cli.study.workers import prepare

HERE = Path(__file__).resolve().parent
SUBJECTS = (12_500, 25_000, 50_000, 100_000)
ROWS = (1_000_000, 10_000_000)  # of tables that are checked
DOSES = OBSERVATIONS = 10  # of each subject
AMOUNT = 100.0  # mg
BLOCK = 10_000  # subjects
EPOCHS = 4


def blocks(subjects: int) -> Iterator[pa.Table]:
    """An event table, in blocks: one compartment, a dose every 12 h, and levels at any time between them."""
    generator = np.random.default_rng(1)
    for begin in range(0, subjects, BLOCK):
        n = min(BLOCK, subjects - begin)
        weight = np.round(generator.uniform(40, 110, (n, 1)), 1)
        cl, v = (
            typical * (weight / 70) ** power * np.exp(0.3 * generator.standard_normal((n, 1)))
            for typical, power in ((4.0, 0.75), (30.0, 1.0))
        )
        given = np.tile(12.0 * np.arange(DOSES), (n, 1))
        seen = np.sort(np.round(generator.uniform(0.5, 12 * DOSES, (n, OBSERVATIONS)), 2), 1)
        passed = seen[:, :, None] - given[:, None]  # h since each dose
        left = np.where(passed > 0, np.exp(-(cl / v)[:, :, None] * passed.clip(0)), 0)
        level = AMOUNT / v * left.sum(2) * np.exp(0.1 * generator.standard_normal(seen.shape))
        order = np.argsort(np.c_[given, seen], 1, kind="stable")
        nothing = np.full_like(given, np.nan)
        columns = {
            "TIME": (given, seen),
            "AMT": (np.full_like(given, AMOUNT), nothing),
            "DV": (nothing, np.round(level, 4)),
        }
        yield pa.table(
            {
                "ID": np.repeat(np.arange(begin, begin + n) + 1, DOSES + OBSERVATIONS),
                "EVID": (order < DOSES).astype(int).ravel(),
                **{
                    name: pa.array(
                        np.take_along_axis(np.concatenate(both, 1), order, 1).ravel(), from_pandas=True
                    )
                    for name, both in columns.items()
                },
                "wt": np.repeat(weight, DOSES + OBSERVATIONS),
            }
        )


def write(path: Path, subjects: int) -> None:
    """The table, as CSV or Parquet."""
    is_csv = path.suffix == ".csv"
    first = next(blocks(1))
    make = pyarrow.csv.CSVWriter if is_csv else pyarrow.parquet.ParquetWriter
    with make(path, first.schema) as writer:
        for block in blocks(subjects):
            writer.write_table(block)


def epoch(path: Path) -> tuple[float, float, float]:
    """CPU s of an epoch and until training begins, and the most memory of the process, GiB."""
    prepare(threads=1)
    began = time.process_time()
    options = [f"hydra.searchpath=[file://{conf_dir()}]", f"dataset.path={path}", "epochs=1"]
    with initialize_config_dir(str(HERE), version_base="1.3"):
        job = Job.build(as_config(compose("large", options)))
    ready = time.process_time()
    times = []
    for epochs in (1, 1 + EPOCHS):  # what is done once is in both
        started = time.process_time()
        replace(job, config={**job.config, "epochs": epochs}).train([(1, 1)])
        times.append(time.process_time() - started)
    return (times[1] - times[0]) / EPOCHS, ready - began, _peak_memory()


def check(path: Path) -> tuple[float, float]:
    """CPU s of `medcm data check`, and the most memory of the process, GiB."""
    prepare(threads=1)
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        data.command(["check", str(path), "--level-unit", "mg/L", "--amount-unit", "mg"])
    return time.process_time() - began, _peak_memory()


def alone(what: Callable[[Path], Any], path: Path) -> Any:
    """In a fresh interpreter: a peak of memory is never forgotten."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(what, path).result()
    print(f"{path.name}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--subjects", type=int, nargs="*", default=SUBJECTS)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="of tables that are checked")
    options = parser.parse_args()
    trained, checked = [], []
    with tempfile.TemporaryDirectory() as folder:
        for subjects in options.subjects:
            path = Path(folder, f"{subjects}.parquet")
            write(path, subjects)
            cpu, ready, peak = alone(epoch, path)
            cells = f"{cpu:.2f}", f"{1e6 * cpu / subjects:.1f}", f"{ready:.1f}", f"{peak:.2f}"
            trained.append([f"{subjects:,}".replace(",", " "), *cells])
        for rows in options.rows:
            for suffix in (".csv", ".parquet"):
                path = Path(folder, f"rows{rows}{suffix}")
                write(path, rows // (DOSES + OBSERVATIONS))
                cpu, peak = alone(check, path)
                checked.append([f"{rows:,}".replace(",", " "), suffix, f"{cpu:.1f}", f"{peak:.2f}"])
                path.unlink()
    heads = ["subjects", "CPU s an epoch", "us per subject", "CPU s before it", "GiB"]
    print(tabulate(trained, heads, tablefmt="github", disable_numparse=True), end="\n\n")
    heads = ["rows checked", "file", "CPU s", "GiB"]
    print(tabulate(checked, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
