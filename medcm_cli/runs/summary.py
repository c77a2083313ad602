"""Run folders -> estimates and statistics over fits. No torch: only what the files say."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medcm_cli.errors import InputError
from medcm_cli.runs.description import converged
from medcm_cli.runs.folder import ALIKE, read_parquet
from medcm_cli.runs.units import LOG, SIGMAS, TYPICAL, by_row, columns
from medcm_cli.runs.walk import DAMAGED, Fault, Fit, Typical, damage, walk

MEASURES = ["objective_value", "rmse", "kl", "omega_mae", "sigma_mae", "seconds"]
SCORES = "ofv_", "held_out_ofv_"
"""What columns of scores begin with; the method that they are by follows (``medcm score``)."""
COUNTS = ["complete", "failed", "unfinished", "not_converged", "redrawn"]
# Those of further random effects follow, where there are any.
ESTIMATES = ["omega_1", "omega_2", "cv_1", "cv_2", "rho_21", *(f"sigma_{part}" for part in SIGMAS)]
UNKNOWN = "unknown"  # random effects of records that do not say them, or of several that differ
_ESTIMATED = ("omega_", "rho_", "pi_", "sigma_", "rmse_", TYPICAL)
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """``fits``: a row per finished fit; ``table``: a row per group; ``random_effects`` of both names the
    parameters whose random effects are 1, 2 ...; ``skipped``: folders that could not be read, and why;
    ``cohorts``: (study, dataset) -> the characteristics of its subjects (``medcm_cli.data.describe``), levels
    in the reported unit, where the fits' records have them; ``typical``: the same -> what is known of its
    typical parameters; ``endpoints``: the same, of several endpoints -> estimate of one and its unit."""

    fits: pd.DataFrame
    table: pd.DataFrame
    skipped: list[str]
    cohorts: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    typical: dict[tuple[str, str], Typical] = field(default_factory=dict)
    endpoints: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)


def summarize(
    roots: Sequence[Path], tail: int | None = None, progress: Callable[[int], None] | None = None
) -> Summary:
    """Read every run folder below ``roots``.

    :param tail: a fit's estimate is the mean over the checkpoints of its last ``tail`` epochs; by default
        as many as it was configured with, or else the last quarter, at most 500 (docs/methods.md,
        "Protocol of the simulation study").
    :param progress: told the number of folders read so far.
    :raises InputError: a root does not exist, or holds no run folder.
    """
    return summary_of(walk(roots, progress), roots, tail)


def summary_of(found: Iterable[Fit | Fault], roots: Sequence[Path], tail: int | None = None) -> Summary:
    """Of fits that a walk below ``roots`` found; see ``summarize``."""
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    cohorts: dict[tuple[str, str], dict[str, Any]] = {}
    typical: dict[tuple[str, str], Typical] = {}
    endpoints: dict[tuple[str, str], dict[str, str]] = {}
    # One folder at a time: memory holds one short row per fit, however many there are.
    for one in found:
        if isinstance(one, Fault):
            skipped.append(one.reason)
            continue
        try:
            row, cohort = _row(one, tail), _cohort(one)
        except DAMAGED as error:
            skipped.append(damage(one.folder, error))
            continue
        rows.append(row)
        if one.units.endpoints:
            endpoints.setdefault(one.record.address.sweep, {}).update(one.units.by_endpoint)
        if cohort:
            cohorts.setdefault(one.record.address.sweep, cohort)
        if one.record.status == "complete" and one.typical.units:
            typical[one.record.address.sweep] = _joined(typical.get(one.record.address.sweep), one.typical)
    if not rows:
        where = ", ".join(map(str, roots))
        if skipped:
            raise InputError(
                f"{where}: none of {len(skipped)} run folders can be read; the first: {skipped[0]}"
            )
        raise InputError(f"{where}: no run folder below it; `medcm fit` writes them")
    fits = pd.DataFrame(rows)
    return Summary(fits, _table(fits), skipped, cohorts, typical, endpoints)


def _joined(one: Typical | None, other: Typical) -> Typical:
    """What fits of one data set have; of several units or references all of them."""
    if one is None or one == other:
        return other
    units = {
        name: " or ".join(dict.fromkeys(of[name] for of in (one.units, other.units) if name in of))
        for name in {**one.units, **other.units}
    }
    return Typical(units, " or ".join(dict.fromkeys(filter(None, (one.reference, other.reference)))))


def kl_zero_mean(true: FloatArray, estimated: FloatArray) -> float:
    """KL(N(0, true) || N(0, estimated)) of K x K covariances; NaN where ``estimated`` is not positive
    definite."""
    sign, log_det = np.linalg.slogdet(estimated)
    if sign <= 0 or not np.isfinite(log_det):
        return float("nan")
    trace = np.trace(np.linalg.solve(estimated, true))
    return float(0.5 * (trace - len(true) + log_det - np.linalg.slogdet(true)[1]))


def _row(fit: Fit, tail: int | None) -> dict[str, Any]:
    """One fit's row; see ``DAMAGED`` for what it may raise."""
    record, address = fit.record, fit.record.address
    row: dict[str, Any] = dict(zip(ALIKE, address.alike, strict=True))
    row |= {name: getattr(address, name) for name in ("fold", "replicate", "outer", "inner")}
    row |= {"status": record.status, "level_unit": fit.units.reported, "redraws": record.redraws}
    row |= {"random_effects": ", ".join(fit.random_effects) or UNKNOWN}
    if record.status == "failed" and record.failure:
        row |= {"failed_epoch": record.failure["epoch"], "cause": record.failure["cause"]}
    if record.status != "complete":
        return row
    estimate = fit.estimates(tail)
    row |= {
        "objective_value": estimate["objective_value"],
        "rmse": estimate["rmse"],
        "epochs": estimate["epoch"],
        "seconds": record.seconds,
        "unconverged_modes": record.unconverged_modes,
        "converged": converged(record),
    }
    row |= {n: value for n, value in estimate.items() if n.startswith(_ESTIMATED)}
    scales = fit.effect_scales
    log_normal = [scale == LOG for scale in scales.values()]
    row |= {} if all(log_normal) else {"effect_scales": "; ".join(scales.values())}
    row |= _scores(fit.folder)
    for name in estimate:
        # Of what is log-normal (docs/methods.md, "Protocol of the real data").
        if name.startswith("omega_") and log_normal[int(name[6:]) - 1 :][:1] != [False]:
            row[f"cv_{name[6:]}"] = 100 * float(np.sqrt(np.expm1(row[name] ** 2)))
    if record.truth and "omega_1" in row:
        row |= _distances(row, record.truth, fit.units.scale)
    return row


def _scores(folder: Path) -> dict[str, float]:
    """What ``medcm score`` has found of a fit, by each method; nothing where it was not asked."""
    path = folder / "score.parquet"
    if not path.exists():
        return {}
    table = read_parquet(path).to_pydict()
    found = {}
    for prefix in SCORES:
        for method, value in zip(table["method"], table.get(prefix[:-1], ()), strict=False):
            if value is not None and np.isfinite(value):
                found[f"{prefix}{method}"] = float(value)
    return found


def scores_of(fits: pd.DataFrame) -> list[str]:
    """Columns of fits that are their scores."""
    return sorted(name for name in map(str, fits) if name.startswith(SCORES))


def _cohort(fit: Fit) -> dict[str, Any]:
    """The characteristics of a fit's dataset, with levels in the reported unit; empty where it has none."""
    cohort = dict(fit.record.data.get("characteristics") or {})
    if not cohort:
        return {}
    if cohort.get("level"):
        cohort["level"] = [level * fit.units.scale for level in cohort["level"]]
    described = fit.record.config["dataset"].get("covariates") or {}
    cohort["covariates"] = {  # those of before have no units
        name: {"unit": described.get(name, {}).get("unit"), **covariate}
        for name, covariate in (cohort.get("covariates") or {}).items()
    }
    units = {"time": fit.units.time, "amount": fit.units.amount, "level": fit.units.reported}
    return {**cohort, "units": units}


def _distances(row: dict[str, Any], truth: dict[str, Any], scale: float) -> dict[str, float]:
    """How far a fit's reported estimates (tail means) are from the truth."""
    result = {}
    if truth["omega"] is not None:
        true = np.asarray(truth["omega"], dtype=np.float64)
        k = len(true)
        sd = np.array([row[f"omega_{i + 1}"] for i in range(k)])
        correlation = np.eye(k)
        for i in range(k):
            for j in range(i):
                correlation[i, j] = correlation[j, i] = row.get(f"rho_{i + 1}{j + 1}", 0.0)
        result["kl"] = kl_zero_mean(true, correlation * np.outer(sd, sd))
        result["omega_mae"] = float(np.abs(sd - np.sqrt(np.diag(true))).mean())
    errors = [
        abs(row[f"sigma_{part}"] - value * (scale if part == "additive" else 1))
        for part, value in truth["sigma"].items()
        if f"sigma_{part}" in row
    ]
    return result | ({"sigma_mae": float(np.mean(errors))} if errors else {})


def unit_of(fits: pd.DataFrame) -> pd.Series:
    """What a median and its sd are over: fits, and of a nested split its shuffles, each of which is the mean
    over its inner folds (docs/methods.md, "Protocol of the real data")."""
    fit = "fold " + fits["fold"].astype(str) + " replicate " + fits["replicate"].astype(str)
    return fit.where(fits["outer"].isna(), "outer " + fits["outer"].astype(str))


def estimates_of(fits: pd.DataFrame) -> list[str]:
    """Names of estimates: those of two random effects, and of as many more as there are."""
    names = map(str, fits)
    numbered = (name for name in names if name.startswith(("omega_", "cv_", "rho_")) and name[-1].isdigit())
    more = sorted(numbered, key=lambda name: (name.partition("_")[0], numbers_of(name), name))
    more += [name for name in map(str, fits) if name.startswith(("pi_", "rho_pi_"))]
    sigmas = [name for name in map(str, fits) if name.startswith("sigma_")]
    of_endpoints = [name for name in sigmas if name not in (*ESTIMATES, "sigma_mae")]
    typical = [name for name in map(str, fits) if name.startswith(TYPICAL)]
    more = [name for name in dict.fromkeys(more) if name not in ESTIMATES]
    return [*ESTIMATES, *more, *of_endpoints, *typical]


def label_of(name: str, random_effects: Sequence[str]) -> str:
    """An estimate in words: omega CL of omega_1, rho CL:V1 of rho_21.

    :param random_effects: the parameters that they belong to; without them a number stays one.
    """
    kind = name.partition("_")[0]
    if name.startswith(TYPICAL):
        return name.removeprefix(TYPICAL).replace("_", " ")
    numbers = numbers_of(name)
    if not numbers or max(numbers) > len(random_effects):
        return name.replace("_", " ")
    return f"{kind} {':'.join(random_effects[number - 1] for number in reversed(numbers))}"


def numbers_of(name: str) -> tuple[int, ...]:
    """The random effects that an estimate is of, from 1: (10,) of omega_10 and cv_10, (11, 10) of rho_1110;
    none of another name.

    The numbers of a pair stand side by side, the larger first: of an odd number of digits it has one more.
    """
    kind, _, places = name.partition("_")
    if not places.isdecimal():
        return ()
    middle = (len(places) + 1) // 2
    return (
        (int(places[:middle]), int(places[middle:]))
        if kind == "rho" and middle < len(places)
        else (int(places),)
    )


def columns_units(summary: Summary) -> dict[str, str]:
    """The units of the columns of ``fits`` and ``table``, by patterns."""
    reported = summary.fits["level_unit"].unique()
    level = str(reported[0]) if len(reported) == 1 else "see level_unit"
    found: dict[str, dict[str, str]] = {}
    named = [(sweep, typical.units) for sweep, typical in summary.typical.items()]
    for sweep, of_sweep in [*named, *summary.endpoints.items()]:
        for name, unit in of_sweep.items():
            found.setdefault(name, {})[", ".join(sweep)] = unit
    units = {
        name: next(iter(of.values())) if len(set(of.values())) == 1 else by_row(of)
        for name, of in found.items()
    }
    statistics = {f"{name}_{of}": unit for name, unit in units.items() for of in ("median", "mean", "sd")}
    return units | statistics | columns("summary", {"reported": level})


def _table(fits: pd.DataFrame) -> pd.DataFrame:
    """Per group: fits complete, failed and unfinished; median, mean and sd of every measure over complete
    fits or, in a nested split, over its shuffles."""
    rows = []
    of_endpoints = [name for name in map(str, fits) if name.startswith("rmse_")]
    names = [*MEASURES, *scores_of(fits), *of_endpoints, *estimates_of(fits)]
    for key, group in fits.groupby(list(ALIKE), sort=True):
        status = group["status"]
        row: dict[str, Any] = dict(zip(ALIKE, key, strict=True))
        row |= {"complete": int((status == "complete").sum()), "failed": int((status == "failed").sum())}
        row["unfinished"] = len(group) - row["complete"] - row["failed"]
        row["not_converged"] = sum(one is False for one in group.get("converged", ()))
        row["redrawn"] = int((group["redraws"] > 0).sum())
        row["nested"] = bool(group["outer"].notna().any())
        effects = group["random_effects"].unique()
        row["random_effects"] = effects[0] if len(effects) == 1 else UNKNOWN
        scales = list(group["effect_scales"].dropna().unique()) if "effect_scales" in group else []
        row |= {"effect_scales": scales[0]} if len(scales) == 1 else {}
        units = group["level_unit"].unique()
        row["level_unit"] = units[0] if len(units) == 1 else "mixed units"
        done = group[status == "complete"]
        row["epochs"] = done["epochs"].median() if len(done) else np.nan
        averaged = done.groupby(unit_of(done))[[name for name in names if name in done]].mean()
        for name in names:
            values = averaged[name].dropna() if name in averaged else pd.Series(dtype=float)
            row[f"{name}_median"] = values.median() if len(values) else np.nan
            row[f"{name}_mean"] = values.mean() if len(values) else np.nan
            row[f"{name}_sd"] = values.std() if len(values) > 1 else np.nan
        rows.append(row)
    return pd.DataFrame(rows)
