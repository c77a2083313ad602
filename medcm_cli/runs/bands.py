"""Medians and bands over the fits of a method: of histories, and of the covariate effects they learned."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from medcm_cli.runs.checkpoints import tail_mean
from medcm_cli.runs.folder import estimate_rows, read_table
from medcm_cli.runs.sweeps import Method

BAND = (0.025, 0.5, 0.975)
_CURVE = ["covariate", "parameter", "x"]


def bands(method: Method, column: str) -> pd.DataFrame:
    """Median and 2.5 and 97.5 % quantiles of a column of the histories over all fits that have reached an
    epoch, a failed one until it fails: ``epoch``, ``low``, ``median``, ``high``, ``fits``."""
    values = [
        pd.Series(fit.history[column].to_numpy(), pd.Index(fit.history["epoch"]))
        for fit in method.fits
        if column in fit.history and len(fit.history)
    ]
    return _quantiles(pd.concat(values), "epoch") if values else pd.DataFrame()


def _quantiles(values: pd.Series, by: str | list[str]) -> pd.DataFrame:
    finite = values.replace([np.inf, -np.inf], np.nan).dropna()
    if finite.empty:
        return pd.DataFrame()
    grouped = finite.groupby(level=by)
    named = zip(("low", "median", "high"), BAND, strict=True)
    columns = {name: grouped.quantile(quantile) for name, quantile in named}
    return pd.DataFrame(columns | {"fits": grouped.size()}).reset_index()


def effects(method: Method, epochs: Sequence[int] = ()) -> pd.DataFrame:
    """Median and band over complete fits of the learned effects relative to the reference covariates:
    ``epoch`` (NaN for the mean over a fit's tail), ``covariate``, ``parameter``, ``x``, ``low``, ``median``,
    ``high``, ``fits``.

    :raises InputError: a fit's effects cannot be read.
    """
    parts = []
    for fit in method.complete:
        table = read_table(fit.folder, fit.record, "effects", [*_CURVE, "epoch", "relative"])
        if "relative" not in table.column_names:
            continue  # no covariate enters the model
        epoch, relative = np.asarray(table["epoch"]), np.asarray(table["relative"])
        rows = estimate_rows(fit.folder, fit.record, epoch)
        mean = tail_mean(relative, rows)
        curve = table.select(_CURVE).take(rows[0]).to_pandas()
        parts.append(curve.assign(relative=mean.astype(relative.dtype), epoch=-1.0))
        if len(epochs):
            some = table.filter(pa.array(np.isin(epoch, epochs))).to_pandas()
            parts.append(some.astype({"epoch": float}))
    if not parts:
        return pd.DataFrame()
    every = pd.concat(parts).astype({"covariate": str, "parameter": str})
    keys = ["epoch", *_CURVE]
    result = _quantiles(every.set_index(keys)["relative"].astype(float), keys)
    result["epoch"] = result["epoch"].where(result["epoch"] >= 0)
    return result
