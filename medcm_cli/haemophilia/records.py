"""Records of a synthetic cohort: its event table, and covariates as the file has them, some missing."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from medcm_cli.data.sheet import BoolArray, FloatArray
from medcm_cli.haemophilia.covariates import Covariates
from medcm_cli.haemophilia.regimens import Regimen

LLOQ = 0.01  # IU/mL
MISSING = {"vwf": 0.652, "weight": 0.014, "height": 0.043}  # shares
HISTORIC = 1 / 3  # of those without VWF:Ag have a historic value: assumed
HISTORIC_SD = 0.2  # of the log of VWF:Ag from one setting to another: assumed
NO_VWF, NO_VWF_EVER = 0.2, 0.5  # share without VWF:Ag around surgery; of these, without any


def subject_ids(n: int) -> pa.Array:
    """Names of ``n`` subjects."""
    return pa.array([f"synthetic_{number}" for number in range(1, n + 1)])


def recorded(
    kind: str, truth: Covariates, regimen: Regimen, generator: np.random.Generator, complete: bool
) -> dict[str, FloatArray]:
    """What the file has of the covariates.

    :param truth: the true covariates of n subjects.
    :param complete: whether none is missing.
    :returns: column -> (n,), or (T, n) where it is measured with the T samples of ``regimen``; NaN where
        missing.
    """
    n = len(truth.age)

    def missing(share: float) -> BoolArray:
        """The same number in every cohort, that nearest to the share."""
        return generator.permutation(n) < (0 if complete else round(share * n))

    def without(values: FloatArray, absent: BoolArray) -> FloatArray:
        return np.where(absent, np.nan, values)

    columns = {"age": truth.age, "ht": truth.height, "wt": truth.weight, "bgo": truth.blood_group_o}
    if kind == "prophylaxis":
        for name, column in (("weight", "wt"), ("height", "ht")):
            columns[column] = without(columns[column], missing(MISSING[name]))
        absent = missing(MISSING["vwf"])
        historic = truth.vwf * np.exp(HISTORIC_SD * generator.standard_normal(n))
        known = absent & (generator.random(n) < HISTORIC)
        return {**columns, "vwf": without(truth.vwf, absent), "vwf_hist": without(historic, ~known)}
    absent = missing(NO_VWF)
    never = absent & (generator.random(n) < NO_VWF_EVER)
    return {**columns, "vwf": without(regimen.vwf, absent), "vwf_prophylaxis": without(truth.vwf, never)}


def event_table(
    regimen: Regimen, level: FloatArray, dv: FloatArray, recorded: dict[str, FloatArray], censor: bool
) -> dict[str, pa.Array]:
    """Doses given and samples taken, in the order of subjects and time.

    :param level: true levels (T, n), IU/mL; ``dv`` the measured ones, censored below LLOQ with ``censor``.
    :param recorded: column -> (n,) or (T, n), as from the function of that name."""
    doses, n = regimen.start.shape
    samples = len(regimen.time)
    is_dose = np.repeat([True, False], [doses, samples])[:, None] & np.ones((1, n), dtype=bool)
    kept = np.concatenate([regimen.amount > 0, regimen.taken]).ravel()
    time = np.concatenate([regimen.start, regimen.time]).ravel()
    subject = np.tile(np.arange(n), doses + samples)
    order = np.lexsort((time, subject))
    order = order[kept[order]]

    def column(of_doses: FloatArray | None, of_samples: FloatArray | None) -> FloatArray:
        parts = (of_doses, (doses, n)), (of_samples, (samples, n))
        both = [
            np.full(shape, np.nan) if part is None else np.broadcast_to(part, shape) for part, shape in parts
        ]
        return np.asarray(np.concatenate(both).ravel()[order], dtype=np.float64)

    whole = is_dose.ravel()[order]
    rate = np.divide(
        regimen.amount, regimen.duration, where=regimen.amount > 0, out=np.zeros_like(regimen.amount)
    )
    below = (dv < LLOQ) & censor
    table = {
        "id": subject_ids(n).take(pa.array(subject[order])),
        "time": _cells(time[order]),
        "evid": _cells(whole.astype(np.int8)),
        "amt": _cells(column(regimen.amount, None)),
        "rate": _cells(column(rate, None)),
        "duration": _cells(column(regimen.duration, None)),
        "dv": _cells(column(None, np.where(below, LLOQ, dv))),
    }
    if censor:
        table["cens"] = _cells((np.nan_to_num(column(None, below.astype(np.float64)))).astype(np.int8))
        table["lloq"] = _cells(column(None, np.full_like(dv, LLOQ)))
    table["ipred"] = _cells(column(None, level))
    for name, values in recorded.items():
        everywhere = values.ndim == 1
        table[name] = _cells(column(values if everywhere else None, values))
    return table


def _cells(values: npt.ArrayLike) -> pa.Array:
    return pa.array(values, from_pandas=True)  # NaN is an empty cell
