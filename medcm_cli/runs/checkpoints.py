"""Which checkpoints a fit's estimates are the mean of."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

AVERAGED = {b"epochs": b"tail"}
"""What the schema of a table of random effects says which are those at a fit's estimates. One of before says
nothing: its are those of the fit's last step."""


def is_averaged(table: pa.Table) -> bool:
    """Whether a table of random effects is of a fit's estimates; else of its last step."""
    return AVERAGED.items() <= (table.schema.metadata or {}).items()


def tail_start(last: npt.ArrayLike, tail: int | None) -> npt.NDArray[np.float64]:
    """The epoch from which checkpoints count for a fit's estimates, given its ``last`` one: that of the last
    ``tail`` epochs, by default the last quarter, at most 500 (docs/methods.md, "Protocol of the simulation
    study"). Likewise of several fits."""
    end = np.asarray(last, dtype=np.float64)
    return end - (np.minimum(500, end / 4) if tail is None else tail)


def tail_weights(
    epoch: npt.NDArray[Any], kept: npt.NDArray[Any], tail: int | None
) -> npt.NDArray[np.float64]:
    """The weight of each of C checkpoints in the estimates of B fits, (C, B).

    :param epoch: (C,). :param kept: (B,), how many checkpoints a fit has; one without any has the first.
    """
    count = np.maximum(kept, 1)
    there = np.arange(len(epoch))[:, None] < count
    weights = (there & (epoch[:, None] >= tail_start(epoch[count - 1], tail))).astype(np.float64)
    return np.asarray(weights / weights.sum(0), dtype=np.float64)


def tail_rows(epoch: npt.NDArray[Any], tail: int | None) -> npt.NDArray[np.int64]:
    """The rows of a table that count, (C, R): of each of C checkpoints its R rows, in the order of the table.

    :param epoch: (M,), of each row. :param tail: epochs, as in the configuration.
    :raises ValueError: no row, an epoch that is not a number, or checkpoints with different numbers of rows.
    """
    last = float(epoch.max())
    if not np.isfinite(last):
        raise ValueError("an epoch is not a number")
    rows = np.flatnonzero(epoch >= tail_start(last, tail))
    rows = rows[np.argsort(epoch[rows], kind="stable")]
    return rows.reshape(len(np.unique(epoch[rows])), -1)


def tail_mean(values: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The means (R,) over checkpoints of ``values`` (M,), in the ``rows`` (C, R) of ``tail_rows``."""
    return np.asarray(values[rows].astype(np.float64, copy=False).mean(0), dtype=np.float64)
