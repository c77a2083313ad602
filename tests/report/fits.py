"""Run folders with invented histories."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from medcm_cli import runs

TRUTH = {"omega": [[0.037, 0.0113], [0.0113, 0.017]], "sigma": {"additive": 0.03}}
History = dict[str, np.ndarray]


def invent(seed: int, epochs: int = 2000, every: int = 25) -> History:
    """A history with a row at epoch 0 and at every ``every``-th."""
    g = np.random.default_rng(seed)
    epoch = np.arange(0, epochs + 1, every, dtype=np.int32)
    n = len(epoch)
    return {
        "epoch": epoch,
        "objective_value": g.normal(-500, 20, n),
        "rmse": g.uniform(7, 9, n),
        "omega_1": g.uniform(0.15, 0.25, n),
        "omega_2": g.uniform(0.1, 0.2, n),
        "rho_21": g.uniform(0.2, 0.6, n),
        "sigma_additive": g.uniform(0.02, 0.05, n),
        "kl": np.full(n, 99.0),  # of each checkpoint; the reported one is that of the averaged estimates
    }


def write_fit(
    root: Path, history: History | None, status: str = "complete", tail: int | None = None, **fields: Any
) -> Path:
    """One run folder, as a finished fit leaves it; an unfinished one has no tables. ``fields`` are the fit's
    address, or of its record."""
    given: dict[str, Any] = {
        "study": "s",
        "dataset": "d",
        "objective": "vi",
        "error": "additive",
        "learning_rate": 0.1,
        "variant": "default",
        "fold": 1,
        "replicate": 1,
    }
    places = {field.name for field in dataclasses.fields(runs.Address)} & set(fields)
    address = runs.Address(**given | {name: fields.pop(name) for name in places})
    levels = {"level_unit": fields.pop("unit", "IU/dL"), "level_scale": 100}
    written: dict[str, Any] = {
        "status": status,
        "address": address,
        "config_hash": "0",
        "config": {"dataset": levels} | ({} if tail is None else {"tail": tail}),
        "data": {},
        "truth": TRUTH,
        "seed": 0,
        "versions": {},
        "failure": {"epoch": 41, "cause": "objective is not finite"} if status == "failed" else None,
        "seconds": 2.0,
    }
    record = runs.Record(**written | fields)
    if history is None:
        runs.start(root, record)
    else:
        runs.finish(root, record, {"history": pa.table(history)})
    return record.address.folder(root)


def only(frame: pd.DataFrame) -> pd.Series:
    assert len(frame) == 1
    return frame.iloc[0]
