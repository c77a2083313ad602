"""Run folders -> the comparison of estimation methods (the paper's Table 1). No torch: only what the files
say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from tabulate import tabulate

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.files import replaced, write_text

GROUP = ["study", "dataset", "objective", "error", "learning_rate", "variant"]
MEASURES = ["objective_value", "rmse", "kl", "omega_mae", "sigma_mae", "seconds"]
COUNTS = ["complete", "failed", "unfinished"]
ESTIMATES = ["omega_1", "omega_2", "rho_21", "sigma_additive", "sigma_proportional"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """``fits``: a row per finished fit; ``table``: a row per group; ``skipped``: folders that could not be
    read, and why."""

    fits: pd.DataFrame
    table: pd.DataFrame
    skipped: list[str]


class Section(NamedTuple):
    """A table as a person reads it."""

    title: str
    headers: list[str]
    cells: list[list[str]]


def summarize(
    roots: Sequence[Path], tail: int | None = None, progress: Callable[[int], None] | None = None
) -> Summary:
    """Read every run folder below ``roots``.

    :param tail: a fit's estimate is the mean over the checkpoints of its last ``tail`` epochs; by default
        the last quarter, at most 500 (METHODS, "Protocol").
    :param progress: told the number of folders read so far.
    :raises InputError: a root does not exist, or holds no run folder.
    """
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder")
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    distinct = {root.resolve(): root for root in roots}
    separate = [root for full, root in distinct.items() if not set(full.parents) & set(distinct)]
    # One folder at a time: memory holds one short row per fit, however many there are.
    for folder in (folder for root in separate for folder in runs.find(root)):
        outcome = _read(folder, tail)
        if isinstance(outcome, str):
            skipped.append(outcome)
        else:
            rows.append(outcome)
        if progress is not None:
            progress(len(rows) + len(skipped))
    if not rows:
        where = ", ".join(map(str, roots))
        if skipped:
            raise InputError(
                f"{where}: none of {len(skipped)} run folders can be read; the first: {skipped[0]}"
            )
        raise InputError(f"{where}: no run folder below it; `medcm fit` writes them")
    fits = pd.DataFrame(rows)
    return Summary(fits, _table(fits), skipped)


def kl_zero_mean(true: FloatArray, estimated: FloatArray) -> float:
    """KL(N(0, true) || N(0, estimated)) of K x K covariances; NaN where ``estimated`` is not positive
    definite."""
    sign, log_det = np.linalg.slogdet(estimated)
    if sign <= 0 or not np.isfinite(log_det):
        return float("nan")
    trace = np.trace(np.linalg.solve(estimated, true))
    return float(0.5 * (trace - len(true) + log_det - np.linalg.slogdet(true)[1]))


def _read(folder: Path, tail: int | None) -> dict[str, Any] | str:
    """One fit's row, or why it has none."""
    try:
        record = runs.read_record(folder)
        if record is None:
            return f"{folder}: vanished while it was read"
        return _row(folder, record, tail)
    except InputError as error:
        return str(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"{folder}: does not have the contents of a run ({type(error).__name__}: {error})"


def _row(folder: Path, record: runs.Record, tail: int | None) -> dict[str, Any]:
    address = record.address
    row: dict[str, Any] = {name: getattr(address, name) for name in (*GROUP, "fold", "replicate")}
    dataset = record.config["dataset"]
    row |= {"status": record.status, "level_unit": str(dataset["level_unit"])}
    if record.status == "failed" and record.failure:
        row |= {"failed_epoch": record.failure["epoch"], "cause": record.failure["cause"]}
    if record.status != "complete":
        return row
    table = runs.read_history(folder)
    names = table.column_names
    history = {name: np.asarray(table[name], dtype=np.float64) for name in names}
    last = history["epoch"].max()
    if not np.isfinite(last):
        raise ValueError("an epoch is not a number")
    in_tail = history["epoch"] >= last - (min(500, last / 4) if tail is None else tail)
    estimate = {name: float(values[in_tail].mean()) for name, values in history.items()}
    scale = float(dataset["level_scale"])
    row |= {
        "objective_value": estimate["objective_value"],
        "rmse": estimate["rmse"],
        "seconds": record.seconds,
        "unconverged_modes": record.unconverged_modes,
    }
    row |= {name: estimate[name] for name in names if name.startswith(("omega_", "rho_", "sigma_"))}
    if "sigma_additive" in row:
        row["sigma_additive"] *= scale
    if record.truth and "omega_1" in row:
        row |= _distances(row, record.truth, scale)
    return row


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
                correlation[i, j] = correlation[j, i] = row[f"rho_{i + 1}{j + 1}"]
        result["kl"] = kl_zero_mean(true, correlation * np.outer(sd, sd))
        result["omega_mae"] = float(np.abs(sd - np.sqrt(np.diag(true))).mean())
    errors = [
        abs(row[f"sigma_{part}"] - value * (scale if part == "additive" else 1))
        for part, value in truth["sigma"].items()
        if f"sigma_{part}" in row
    ]
    return result | ({"sigma_mae": float(np.mean(errors))} if errors else {})


def _table(fits: pd.DataFrame) -> pd.DataFrame:
    """Per group: fits complete, failed and unfinished; n, median, mean and sd of every measure over complete
    fits."""
    rows = []
    for key, group in fits.groupby(GROUP, sort=True):
        status = group["status"]
        row: dict[str, Any] = dict(zip(GROUP, key, strict=True))
        row |= {"complete": int((status == "complete").sum()), "failed": int((status == "failed").sum())}
        row["unfinished"] = len(group) - row["complete"] - row["failed"]
        units = group["level_unit"].unique()
        row["level_unit"] = units[0] if len(units) == 1 else "mixed units"
        done = group[status == "complete"]
        for name in (*MEASURES, *ESTIMATES):
            values = done[name].dropna() if name in done else pd.Series(dtype=float)
            row[f"{name}_median"] = values.median() if len(values) else np.nan
            row[f"{name}_mean"] = values.mean() if len(values) else np.nan
            row[f"{name}_sd"] = values.std() if len(values) > 1 else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


# -- presentation ----------------------------------------------------------------------------------


def sections(summary: Summary) -> list[Section]:
    """Per study and dataset a table of the comparison and one of the estimates: median (sd) over the complete
    fits. Columns that say nothing are left out: measures that no row has, and what tells no rows apart."""
    result = []
    for (study, dataset), table in summary.table.groupby(["study", "dataset"], sort=True):
        unit = ", ".join(table["level_unit"].unique())
        counts = ["complete", "failed", *(["unfinished"] if table["unfinished"].any() else [])]
        comparison = {
            "objective_value": ("objective value", 1),
            "rmse": (f"RMSE, {unit}", 2),
            "kl": ("KL of Omega", 4),
            "seconds": ("s per fit", 2),
        }
        estimates = {
            "omega_1": ("omega 1", 3),
            "omega_2": ("omega 2", 3),
            "rho_21": ("rho", 3),
            "sigma_additive": (f"sigma, {unit}", 2),
            "sigma_proportional": ("sigma prop.", 3),
            "omega_mae": ("omega MAE", 4),
            "sigma_mae": (f"sigma MAE, {unit}", 3),
        }
        title = f"{study}, {dataset}"
        result.append(_section(title, table, counts, comparison))
        mixed = table[table["omega_1_median"].notna()]
        if len(mixed):
            result.append(_section(f"{title}: estimates", mixed, [], estimates))
    return result


def _section(
    title: str, table: pd.DataFrame, counts: Sequence[str], measures: Mapping[str, tuple[str, int]]
) -> Section:
    keys = ["objective"]
    for name in ("error", "learning_rate", "variant"):
        if table.groupby("objective")[name].nunique().max() > 1:
            keys.append(name)
    present = {name: how for name, how in measures.items() if table[f"{name}_median"].notna().any()}
    titles = (title for title, _ in present.values())
    cells = [
        [
            *(f"{row[name]:g}" if name == "learning_rate" else str(row[name]) for name in keys),
            *(str(row[name]) for name in counts),
            *(
                _cell(row[f"{name}_median"], row[f"{name}_sd"], digits)
                for name, (_, digits) in present.items()
            ),
        ]
        for _, row in table.iterrows()
    ]
    return Section(title, [*(name.replace("_", " ") for name in keys), *counts, *titles], cells)


def _cell(median: float, sd: float, digits: int) -> str:
    if np.isnan(median):
        return "-"
    # A mean squared error in (IU/mL)^2 has no digit left at the precision of a log likelihood.
    digits = digits if median == 0 or abs(median) >= 10**-digits else 5
    digits = min(digits, 1) if abs(median) >= 1000 else digits
    return f"{median:.{digits}f}" + ("" if np.isnan(sd) else f" ({sd:.{digits}f})")


def compare(summary: Summary, expected: Path) -> Section:
    """Measured values beside expected ones.

    ``expected`` is a CSV with the columns objective, measure, statistic, value, tolerance, source, and any
    of the columns study, dataset, error, learning_rate, variant to choose the group. ``statistic`` is median,
    mean or sd of a measure, or count, where ``measure`` is complete, failed or unfinished.

    :raises InputError: a column is missing, or a measure unknown.
    """
    try:
        wanted = pd.read_csv(expected, dtype={name: str for name in GROUP if name != "learning_rate"})
    except (OSError, ValueError) as error:
        raise InputError(f"{expected}: cannot be read as a CSV ({' '.join(str(error).split())})") from error
    missing = {"objective", "measure", "statistic", "value", "tolerance", "source"} - set(wanted.columns)
    if missing:
        raise InputError(f"{expected}: column {min(missing)!r} is missing")
    keys = [name for name in GROUP if name in wanted]
    cells = []
    for name in ("value", "tolerance"):
        numbers = pd.to_numeric(wanted[name], errors="coerce")
        bad = (numbers.isna() & (wanted[name].notna() if name == "tolerance" else True)).to_numpy()
        if bad.any():
            line = int(np.argmax(bad))
            raise InputError(
                f"{expected}, line {line + 2}, column {name!r}: {wanted[name].iloc[line]!r} is not a number"
            )
        wanted[name] = numbers
    for line, row in enumerate(wanted.to_dict("records"), 2):
        of_fits = row["statistic"] == "count"
        column = row["measure"] if of_fits else f"{row['measure']}_{row['statistic']}"
        if column not in summary.table or of_fits != (column in COUNTS):
            raise InputError(
                f"{expected}, line {line}: no statistic {row['statistic']!r} of measure {row['measure']!r}"
            )
        match = summary.table
        for key in keys:
            if not pd.isna(row[key]):
                match = match[match[key] == row[key]]
        name = " ".join(str(row[key]) for key in keys if not pd.isna(row[key]))
        for value in match[column] if len(match) else [np.nan]:
            tolerance = row["tolerance"]
            if np.isnan(value):
                verdict = "not run"
            elif pd.isna(tolerance):
                verdict = ""
            else:
                verdict = "within" if abs(value - row["value"]) <= tolerance else "outside"
            expected_cells = [f"{row['value']:g}", "" if pd.isna(tolerance) else f"{tolerance:g}"]
            measured = "-" if np.isnan(value) else f"{value:.4g}"
            cells.append(
                [name, column.replace("_", " "), *expected_cells, measured, verdict, str(row["source"])]
            )
    headers = ["group", "measure", "expected", "tolerance", "measured", "", "source"]
    return Section(f"beside {expected}", headers, cells)


def markdown(section: Section) -> str:
    """A heading and a Markdown table."""
    table = tabulate(section.cells, section.headers, tablefmt="github", disable_numparse=True)
    return f"### {section.title}\n\n{table}\n"


def latex(section: Section) -> str:
    """A LaTeX table with the rules of booktabs."""
    table = tabulate(section.cells, section.headers, tablefmt="latex_booktabs", disable_numparse=True)
    return f"% {section.title}\n{table}\n"


def write(summary: Summary, folder: Path) -> list[Path]:
    """Write the table as Parquet, CSV (both with every statistic), Markdown and LaTeX (as shown), and the
    fits as Parquet."""
    shown = sections(summary)
    paths = [
        folder / name for name in ("table.parquet", "table.csv", "table.md", "table.tex", "fits.parquet")
    ]
    for path, frame in ((paths[0], summary.table), (paths[4], summary.fits)):
        with replaced(path) as partial:
            frame.to_parquet(partial)
    with replaced(paths[1]) as partial:
        summary.table.to_csv(partial, index=False)
    write_text(paths[2], "\n".join(map(markdown, shown)))
    write_text(paths[3], "\n".join(map(latex, shown)))
    return paths
