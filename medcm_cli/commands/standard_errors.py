"""``medcm uncertainty``: standard errors into the folders of fits, and a table of each configuration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

from medcm_cli import runs
from medcm_cli.analysis import likelihood, resampling
from medcm_cli.analysis.uncertainty import METHODS, POSTERIOR, estimate, intervals, true_values
from medcm_cli.checks import fraction, one_of
from medcm_cli.errors import InputError
from medcm_cli.files import write_csv
from medcm_cli.report.section import Section
from medcm_cli.runs.summary import label_of
from medcm_cli.runs.sweeps import complete, grouped
from medcm_cli.runs.units import NONE
from medcm_cli.runs.walk import walk
from medcm_cli.study.restore import Restored, restore
from medcm_cli.study.workers import prepare

_INFLUENTIAL = 10  # subjects that are shown


@dataclass(frozen=True)
class Report:
    """``sections``, a table per configuration; ``notes`` on how they came about; ``skipped``: folders
    without standard errors, and why."""

    sections: list[Section]
    notes: list[str]
    skipped: list[str]


def report(
    roots: Sequence[Path],
    method: str,
    level: float,
    progress: Callable[[int], None] | None = None,
    trust: bool = False,
) -> Report:
    """Write ``uncertainty.parquet``, with intervals by both methods, into the folder of every complete fit
    below ``roots``, and show medians over the fits of a configuration by one ``method``. One of
    ``resampling.METHODS`` takes the fits of a configuration together, and writes one table for them.

    :param trust: as ``study.restore.restore`` has it.
    :raises InputError: no complete fit, or a level or method that does not exist.
    """
    one_of("--method", method, (*METHODS, *likelihood.METHODS, *resampling.METHODS))
    fraction("--level", level)
    prepare(1)
    found = list(walk(roots))
    fits = complete(found, roots)
    whole = {folder for folder, _ in fits}
    others = [one.folder for one in found if one.folder not in whole]
    result = Report([], [], [f"{folder}: is no complete fit" for folder in others])
    done = 0
    for group in grouped(fits):
        try:
            (restored,) = restore(group, trust)
            if method in resampling.METHODS:
                _together(result, restored, method, level)
                continue
            estimates = estimate(restored)
            found_of = intervals(restored, estimates, level)
            if method in likelihood.METHODS:
                more = likelihood.more_intervals(restored, estimates, level, method)
                found_of = [_joined(*both) for both in zip(found_of, more, strict=True)]
        except InputError as error:
            result.skipped.extend(f"{folder}: {error}" for folder, _ in group)
            continue
        frames = _write(restored, found_of, result.skipped)
        done += len(group)
        if progress is not None:
            progress(done)
        if frames:
            rows = pd.concat(frames)
            shown = POSTERIOR if POSTERIOR in estimates.covariance else method
            result.sections.append(_section(restored, rows[rows["method"] == shown], shown, level))
            result.notes.append(f"{group[0][1].address.objective}: {estimates.note}")
    return result


def _joined(one: pd.DataFrame | str, more: pd.DataFrame | str) -> pd.DataFrame | str:
    """The rows of both, or why there are none."""
    if isinstance(one, str) or isinstance(more, str):
        return one if isinstance(one, str) else more
    return pd.concat([one, more])


def _together(result: Report, restored: Restored, method: str, level: float) -> None:
    """Add what the fits of a configuration say together, and write it into their common folder."""
    found = resampling.resampled(restored, method, level)
    record = restored.records[0]
    folder = restored.folders[0].parents[len(Path(record.address.within).parts) - 1]
    write_csv(folder / f"{method}.csv", found.intervals)
    result.sections.append(_section(restored, found.intervals, method, level))
    written = [f"{method}.csv"]
    if found.influence is not None:
        write_csv(folder / "influence.csv", found.influence)
        result.sections.append(_influential(restored, found.influence))
        written.append("influence.csv")
    dropped = f"; {found.dropped} without an optimum inside are left out" if found.dropped else ""
    result.notes.append(
        f"{record.address.objective}: {found.used} fits at the optimum of the objective{dropped}; "
        f"{' and '.join(written)} -> {folder}"
    )


def _influential(restored: Restored, influence: pd.DataFrame) -> Section:
    """The subjects that move the estimates most."""
    effects = list(map(str, restored.problem.config["random_effects"]))
    names = [str(name) for name in influence.columns[2:]]
    shown = influence.head(_INFLUENTIAL)
    steps = [label_of(name, effects) for name in names]
    cells = [
        [str(row["subject"]), f"{row['cook']:.2f}", *(f"{row[name]:+.2f}" for name in names)]
        for row in shown.to_dict("records")
    ]
    title = (
        f"Subjects without whom estimates move most, in standard errors ({len(shown)} of {len(influence)})"
    )
    return Section(title, ["subject", "Cook's distance", *steps], cells)


def _write(restored: Restored, found: Sequence[pd.DataFrame | str], skipped: list[str]) -> list[pd.DataFrame]:
    """Write the table of each fit that has one; why others have none is added to ``skipped``."""
    units = runs.columns("uncertainty", named_units(restored))
    frames = []
    for folder, of_fit in zip(restored.folders, found, strict=True):
        if isinstance(of_fit, str):
            skipped.append(f"{folder}: {of_fit}")
        else:
            frames.append(of_fit)
            runs.write_table(folder / "uncertainty.parquet", of_fit, units)
    return frames


def named_units(restored: Restored) -> dict[str, str]:
    """What stands in braces in the units of a table of estimates."""
    units = runs.Units.of_config(restored.problem.config)
    always = ("sigma_additive", "sigma_proportional")  # whichever error there is
    return units.named | {
        "parameters": runs.by_row({name: u for name, u in _units(restored).items() if name not in always})
    }


def _units(restored: Restored) -> dict[str, str]:
    """Estimate -> its unit, of parameters, coefficients of equations and the error's sigmas."""
    units, model = runs.Units.of_config(restored.problem.config), restored.problem.model
    parameters = units.of_parameters(model.pk.units)
    effects = model.random_effects.units(parameters)
    coefficients = model.coefficients(restored.state.trained)
    sigmas = {name: unit for name, unit in units.of_sigmas.items() if name in model.error.names}
    return (
        parameters
        | {n: unit for n, (_, unit, _) in coefficients.items()}
        | {f"omega_{i + 1}": unit for i, unit in enumerate(effects) if unit != NONE}
        | sigmas
    )


def _section(restored: Restored, rows: pd.DataFrame, method: str, level: float) -> Section:
    record = restored.records[0]
    units = runs.Units.of_config(restored.problem.config)
    truth = true_values(record.truth, units.scale)
    unit_of = _units(restored)
    effects = list(map(str, restored.problem.config["random_effects"]))
    headers = ["parameter", "estimate", "SE", "RSE, %", f"{100 * level:g} % interval"]
    cells = []
    for name, of_name in rows.groupby("name", sort=False):
        median = of_name[["estimate", "se", "rse", "lower", "upper"]].median()
        estimate, se, rse, lower, upper = (f"{value:.4g}" for value in median)
        words = label_of(str(name), effects)
        unit = unit_of.get(str(name), NONE)
        label = words if unit == NONE else f"{words}, {unit}"
        cells.append([label, estimate, se, rse, f"{lower} to {upper}"])
        if truth:
            cells[-1] += _coverage(of_name, truth.get(str(name)))
    headers += ["truth", "fits that cover it"] if truth else []
    count, a = len(rows) // rows["name"].nunique(), record.address
    title = f"{a.study}, {a.dataset}: {a.objective}, {a.error} error, {a.variant}; {method}"
    return Section(f"{title}, median of {count} fits" if count > 1 else title, headers, cells)


def _coverage(rows: pd.DataFrame, truth: float | None) -> list[str]:
    """The truth, and how many intervals hold it, with the exact binomial interval (Clopper and Pearson 1934)
    of that share."""
    if truth is None:
        return ["", ""]
    hits, count = int(((rows["lower"] <= truth) & (truth <= rows["upper"])).sum()), len(rows)
    if count == 1:
        return [f"{truth:.4g}", "yes" if hits else "no"]
    share = stats.binomtest(hits, count).proportion_ci(0.95, "exact")
    shown = f"{100 * hits / count:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
    return [f"{truth:.4g}", shown]
