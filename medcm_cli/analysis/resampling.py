"""Standard errors from fits of resampled subjects, and the influence of each subject."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from medcm_cli.analysis.uncertainty import AT_BOUNDARY, estimate, units_of
from medcm_cli.data import bootstrap, deletion
from medcm_cli.data.sheet import FloatArray
from medcm_cli.errors import InputError
from medcm_cli.study.restore import Restored

METHODS = ("bootstrap", "jackknife")
_SPLITS = {"bootstrap": bootstrap, "jackknife": deletion}
_FEWEST = 20  # resamples


class Resampled(NamedTuple):
    """``intervals``: a row per estimate, as ``uncertainty.intervals`` has it; ``influence``, of a jackknife:
    a row per subject that was left out, the most influential first; how many fits were ``used``, and how many
    were ``dropped``, since they have no optimum nearby or, of a jackknife, one on the boundary of Omega."""

    intervals: pd.DataFrame
    influence: pd.DataFrame | None
    used: int
    dropped: int


def resampled(restored: Restored, method: str, level: float) -> Resampled:
    """Of fits of one configuration, each of another resample, at the optimum of their objective; of several
    replicates of a fold the first.

    ``bootstrap`` (Efron 1979): the sd and the percentiles over the resamples, whose median is the estimate.
    ``jackknife``: (N - 1) / n times the sum of squares around the mean of n of N fits that leave one subject
    out, on the scale where intervals are symmetric. ``influence`` is then Cook's: ``cook``, the length of the
    step that leaving a subject out takes, in units of this covariance, and the step of each estimate in
    standard errors.

    :raises InputError: another split, or fewer than 20 fits with an optimum.
    """
    split = restored.problem.config["split"]["_target_"]
    if split != f"medcm_cli.data.{_SPLITS[method].__name__}":
        raise InputError(f"--method {method} is of fits with split={_SPLITS[method].__name__}")
    found = estimate(restored)
    places = [record.address for record in restored.records]
    order = sorted(range(len(places)), key=lambda fit: (places[fit].fold, places[fit].replicate))
    first = {places[fit].fold: fit for fit in reversed(order)}
    # A resample whose Omega is on its boundary is one of those that there are; a step to there has no length.
    counts = {"", AT_BOUNDARY} if method == "bootstrap" else {""}
    kept = [fit for fit in sorted(first.values()) if found.faults[fit] in counts]
    if len(kept) < _FEWEST:
        raise InputError(
            f"{len(kept)} fits of other subjects that have an optimum: expected {_FEWEST} or more, as by "
            "fold='range(1,201)'"
        )
    at = found.quantities
    values = at.value[:, kept].numpy()
    if method == "bootstrap":
        middle, spread = np.median(values, 1), values.std(1, ddof=1)
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=1)
        influence = None
    else:
        subjects = len(restored.problem.events.ids)
        middle = values.mean(1)
        factor = (subjects - 1) / len(kept)
        covariance = factor * (values - middle[:, None]) @ (values - middle[:, None]).T
        spread = np.sqrt(covariance.diagonal())
        z = float(torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64)))
        low, high = middle - z * spread, middle + z * spread
        left_out = [str(restored.problem.events.ids[places[fit].fold - 1]) for fit in kept]
        influence = _influence(at.names, values - middle[:, None], covariance, left_out)
    back = {
        name: at.back(torch.from_numpy(of)[:, None])[:, 0].numpy()
        for name, of in {"estimate": middle, "lower": low, "upper": high}.items()
    }
    if method == "bootstrap":  # on the reported scale, where sds are what is asked for
        se = at.back(torch.from_numpy(values)).numpy().std(1, ddof=1)
    else:
        se = at._replace(value=torch.from_numpy(middle)[:, None]).back_slope()[:, 0].numpy() * spread
    unit = units_of(restored, at).numpy()
    rows = pd.DataFrame({"name": at.names, "method": method, "estimate": back["estimate"] * unit})
    rows = rows.assign(se=se * unit, rse=100 * se / np.abs(back["estimate"]))
    rows = rows.assign(lower=back["lower"] * unit, upper=back["upper"] * unit)
    return Resampled(rows, influence, len(kept), len(first) - len(kept))


def _influence(
    names: list[str], steps: FloatArray, covariance: FloatArray, left_out: list[str]
) -> pd.DataFrame:
    """``steps`` (R, n) that leaving each of n subjects out takes."""
    square = np.einsum("rn,rs,sn->n", steps, np.linalg.pinv(covariance, hermitian=True), steps)
    sd = np.sqrt(covariance.diagonal())
    columns = {"subject": left_out, "cook": np.sqrt(np.maximum(square, 0))}
    columns |= {name: step / one for name, step, one in zip(names, steps, sd, strict=True)}
    return pd.DataFrame(columns).sort_values("cook", ascending=False, ignore_index=True)
