"""What is in run folders as tables to read and to publish: the comparison of estimation methods, estimates,
patients (the paper's Tables 1 to 3), and expected values beside measured ones."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medcm_cli.errors import InputError
from medcm_cli.files import write_csv, write_text
from medcm_cli.report.section import Section, decimals, latex, markdown
from medcm_cli.runs import ALIKE, METHOD, SIGMAS, SWEEP, write_table
from medcm_cli.runs.summary import (
    COUNTS,
    UNKNOWN,
    Summary,
    columns_units,
    label_of,
    numbers_of,
    scores_of,
    unit_of,
)
from medcm_cli.runs.units import NONE, resolved

# -- presentation ----------------------------------------------------------------------------------


def sections(summary: Summary) -> list[Section]:
    """Per study and dataset a table of the comparison and one of the estimates: median (sd) over the complete
    fits, or over the shuffles of a nested split; where both were fitted, combined beside additive error. Per
    study one of its patients. Columns that say nothing are left out: measures that no row has, and what tells
    no rows apart."""
    result = []
    for (study, dataset), table in summary.table.groupby(list(SWEEP), sort=True):
        unit = ", ".join(table["level_unit"].unique())
        nested = bool(table["nested"].all())
        optional = [name for name in ("unfinished", "not_converged", "redrawn") if table[name].any()]
        optional += ["epochs"] if nested or len(table["epochs"].unique()) > 1 else []
        own = summary.endpoints.get((str(study), str(dataset)), {})
        comparison = {
            "objective_value": "objective value",
            **_scored(summary.fits),
            **_rmse(own, unit),
            "kl": "KL of Omega, nats",
            "seconds": "s per fit",
        }
        title = f"{study}, {dataset}"
        result.append(
            _section(
                f"{title}: over outer shuffles, of means over inner folds" if nested else title,
                table,
                ["complete", "failed", *optional],
                comparison,
            )
        )
        mixed = table[table["omega_1_median"].notna()]
        if len(mixed):
            result.append(_section(f"{title}: estimates", mixed, [], _estimates(mixed, unit, own)))
        if (typical := summary.typical.get((str(study), str(dataset)))) is not None:
            at = f" at {typical.reference}" if typical.reference else ""
            measures = _typical(typical.units)
            result.append(_section(f"{title}: typical parameters{at}", table, [], measures))
        fits = summary.fits
        both = _error_models(fits[(fits["study"] == study) & (fits["dataset"] == dataset)])
        if both:
            headers = ["objective", "additive error", "combined error", "difference within fits"]
            result.append(Section(f"{title}: objective value by error model", headers, both))
    for study in sorted({study for study, _ in summary.cohorts}):
        cohorts = {name: held for (of, name), held in sorted(summary.cohorts.items()) if of == study}
        result.append(_patients(f"{study}: patients", cohorts))
    return result


def _scored(fits: pd.DataFrame) -> dict[str, str]:
    """Scores -> their headers."""
    return {
        name: f"{'held-out OFV' if name.startswith('held') else 'OFV'} by {name.rpartition('_')[2]}"
        for name in scores_of(fits)
    }


def _rmse(endpoints: Mapping[str, str], unit: str) -> dict[str, str]:
    """That of levels in ``unit``, or of each endpoint -> its header."""
    each = {n: f"RMSE {n.removeprefix('rmse_')}, {u}" for n, u in endpoints.items() if n.startswith("rmse_")}
    return each or {"rmse": f"RMSE, {unit}"}


def _estimates(table: pd.DataFrame, unit: str, endpoints: Mapping[str, str]) -> dict[str, str]:
    """Estimates -> their headers, in the order in which they are shown.

    :param endpoints: estimate of one of several endpoints -> its unit.
    """
    names = [str(name).removesuffix("_median") for name in table]
    numbered = {numbers: name.partition("_")[2] for name in names if (numbers := numbers_of(name))}
    single, pairs = (
        [numbered[numbers] for numbers in sorted(numbered) if len(numbers) == length] for length in (1, 2)
    )
    effects = effects_of(table)
    scales = scales_of(table)
    shown = {
        f"omega_{i}": ", ".join([label_of(f"omega_{i}", effects), *scales[int(i) - 1 :][:1]]) for i in single
    }
    shown |= {f"cv_{i}": f"{label_of(f'cv_{i}', effects).replace('cv', 'CV')}, %" for i in single}
    shown |= {f"rho_{ij}": "rho" if len(single) == 2 else label_of(f"rho_{ij}", effects) for ij in pairs}
    own = [name for name in names if name.startswith(("pi_", "rho_pi_"))]
    shown |= {name: f"{label_of(name, ())}{', log scale' * name.startswith('pi_')}" for name in own}
    return shown | {
        "sigma_additive": f"sigma, {unit}",
        "sigma_proportional": "sigma prop.",
        **{
            name: label_of(name, []) if of == NONE else f"{label_of(name, [])}, {of}"
            for name, of in endpoints.items()
            if name.startswith("sigma_") and name in names
        },
        **{
            f"sigma_{part}": _sigma(part, unit) for part in SIGMAS if part not in ("additive", "proportional")
        },
        "omega_mae": "omega MAE",
        "sigma_mae": f"sigma MAE, {unit}",
    }


def _sigma(part: str, unit: str) -> str:
    """The header of a component's sigma, levels in ``unit``."""
    in_units = SIGMAS[part].format(reported=unit)
    return f"sigma {part}" if in_units == NONE else f"sigma {part}, {in_units}"


def effects_of(rows: pd.DataFrame) -> list[str]:
    """The parameters that the random effects of fits or methods belong to; none where they have several."""
    found = set(rows["random_effects"]) if "random_effects" in rows else set()
    return str(found.pop()).split(", ") if len(found) == 1 and UNKNOWN not in found else []


def scales_of(rows: pd.DataFrame) -> list[str]:
    """What the random effects of fits or methods are on, where some are not on the log scale and all rows
    agree; none otherwise."""
    found = set(rows["effect_scales"]) if "effect_scales" in rows else set()
    return str(found.pop()).split("; ") if len(found) == 1 and not rows["effect_scales"].isna().any() else []


def _typical(units: Mapping[str, str]) -> dict[str, str]:
    """Typical parameters -> their headers."""
    return {
        name: label_of(name, []) if unit == NONE else f"{label_of(name, [])}, {unit}"
        for name, unit in units.items()
    }


def _error_models(fits: pd.DataFrame) -> list[list[str]]:
    """Rows of objectives that were fitted with additive and with combined error and otherwise alike: median
    (sd) of the objective value with each, and of the difference between two fits of the same subjects."""
    rows: list[list[str]] = []
    done = fits[(fits["status"] == "complete") & fits["error"].isin(["additive", "combined"])]
    if "sigma_additive" not in done:
        return rows
    done = done[done["sigma_additive"].notna()]
    for (objective, _, variant), group in done.groupby(["objective", "learning_rate", "variant"]):
        additive, combined = (
            part.groupby(unit_of(part))["objective_value"].mean()
            for part in (group[group["error"] == name] for name in ("additive", "combined"))
        )
        if len(additive) and len(combined):
            columns = (additive, combined, (combined - additive).dropna())
            label = str(objective) if variant == "default" else f"{objective}, {variant}"
            rows.append(
                [label, *(_cell("objective_value", column.median(), column.std()) for column in columns)]
            )
    return rows


def characteristics(title: str, held: Mapping[str, Any], units: Mapping[str, str]) -> Section:
    """What ``medcm_cli.data.describe`` found in an event table, in the form of the paper's Table 2.

    :param units: of ``time``, ``amount`` and ``level``.
    """
    rows = _characteristics(held, units)
    return Section(title, ["characteristic", "median (least to most)"], [list(row) for row in rows.items()])


def _patients(title: str, cohorts: Mapping[str, Mapping[str, Any]]) -> Section:
    """The characteristics of several data sets side by side."""
    columns = [_characteristics(held, held["units"]) for held in cohorts.values()]
    labels = dict.fromkeys(label for rows in columns for label in rows)
    cells = [[label, *(rows.get(label, "") for rows in columns)] for label in labels]
    return Section(title, ["median (least to most)", *cohorts], cells)


def _characteristics(held: Mapping[str, Any], units: Mapping[str, str]) -> dict[str, str]:
    """Label -> text. What hardly any table has stands there only where this one has it."""
    endpoints = held.get("endpoints") or {}
    rows = {
        "subjects": str(held["subjects"]),
        "doses": str(held["doses"]),
        "doses per subject": _spread(held["doses_per_subject"]),
        f"amount per subject, {units['amount']}": _spread(held["amount_given"]),
        "infusions of more than 1 h": str(held["infusions_over_an_hour"]),
        "infusions of a modelled length": str(held["modelled_durations"]),
        "steady states": str(held["steady_states"]),
        "resets": str(held["resets"]),
        "occasions": str(held["occasions"]),
        "occasions per subject": _spread(held.get("occasions_per_subject")),
        "observations": str(held["observations"]),
        "observations per subject": _spread(held["observations_per_subject"]),
        "observations below the limit of quantification": str(held["below_limit"]),
        **{f"observations of {name}": str(of["observations"]) for name, of in endpoints.items()},
        **{f"{name}, {of['unit']}": _spread(of["values"]) for name, of in endpoints.items()},
        **({} if endpoints else {f"level, {units['level']}": _spread(held["level"])}),
        f"follow-up, {units['time']}": _spread(held["follow_up"]),
    }
    if above := held.get("above_limit", 0):  # which records of before do not have
        rows["observations above the limit of quantification"] = str(above)
    for label in ("steady states", "resets", "infusions of a modelled length"):
        if rows[label] == "0":
            del rows[label]
    if held["occasions"] == 1 or not rows["occasions per subject"]:
        del rows["occasions per subject"]
    for name, covariate in held["covariates"].items():
        missing = f"missing {100 * covariate['missing']:.1f} %" if covariate["missing"] else ""
        changes = "changes in time" if name in held["changing"] else ""
        notes = ", ".join(note for note in (_spread(covariate["values"]), missing, changes) if note)
        rows[f"covariate {name}, {covariate.get('unit') or NONE}"] = notes
    return rows


def _spread(values: Sequence[float] | None) -> str:
    """A median with the range around it, where there is any."""
    if values is None:
        return "-"
    median, least, most = (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}" for value in values)
    return median if least == most else f"{median} ({least} to {most})"


def _section(title: str, table: pd.DataFrame, counts: Sequence[str], measures: Mapping[str, str]) -> Section:
    keys = ["objective"]
    for name in METHOD[1:]:
        if table.groupby("objective")[name].nunique().max() > 1:
            keys.append(name)
    present = {
        name: title
        for name, title in measures.items()
        if f"{name}_median" in table and table[f"{name}_median"].notna().any()
    }
    cells = [
        [
            *(f"{row[name]:g}" if name == "learning_rate" else str(row[name]) for name in keys),
            *("-" if np.isnan(row[name]) else f"{row[name]:g}" for name in counts),
            *(_cell(name, row[f"{name}_median"], row[f"{name}_sd"]) for name in present),
        ]
        for _, row in table.iterrows()
    ]
    return Section(title, [*(name.replace("_", " ") for name in keys), *counts, *present.values()], cells)


def _cell(name: str, median: float, sd: float) -> str:
    if np.isnan(median):
        return "-"
    digits = decimals(name, median)
    return f"{median:.{digits}f}" + ("" if np.isnan(sd) else f" ({sd:.{digits}f})")


def compare(summary: Summary, expected: Path) -> Section:
    """Measured values beside expected ones.

    ``expected`` is a CSV with the columns objective, measure, statistic, value, tolerance, source, and any
    of the columns study, dataset, error, learning_rate, variant to choose the group. ``statistic`` is median,
    mean or sd of a measure, or count, where ``measure`` is complete, failed, unfinished or redrawn.

    :raises InputError: a column is missing, or a measure unknown.
    """
    wanted = _expected(expected)
    keys, units = [name for name in ALIKE if name in wanted], columns_units(summary)
    cells = []
    for line, row in enumerate(wanted.to_dict("records"), 2):
        of_fits = row["statistic"] == "count"
        column = str(row["measure"]) if of_fits else f"{row['measure']}_{row['statistic']}"
        if column not in summary.table or of_fits != (column in COUNTS):
            raise InputError(
                f"{expected}, line {line}: no statistic {row['statistic']!r} of measure {row['measure']!r}"
            )
        given = {key: row[key] for key in keys if not pd.isna(row[key])}
        match = summary.table
        for key, value in given.items():
            match = match[match[key] == value]
        group, said = " ".join(map(str, given.values())), [row["value"], row["tolerance"]]
        of_measure = _measure(row, match, units)
        for value in match[column] if len(match) else [np.nan]:
            cells.append([group, of_measure, *_compared(value, *said), str(row["source"])])
    headers = ["group", "measure", "expected", "tolerance", "measured", "", "source"]
    return Section(f"beside {expected}", headers, cells)


def _measure(row: Mapping[Hashable, Any], groups: pd.DataFrame, units: Mapping[str, str]) -> str:
    """A measure and its statistic in words, with the unit that it has in some groups of fits.

    :param units: of columns of ``Summary.table``, by patterns.
    """
    name = f"{label_of(str(row['measure']), effects_of(groups))} {row['statistic']}"
    unit = resolved([str(row["measure"])], units).get(str(row["measure"]), NONE)
    if unit == "see level_unit":
        unit = ", ".join(groups["level_unit"].unique())
    return name if row["statistic"] == "count" or unit in (NONE, "of objective", "") else f"{name}, {unit}"


def _expected(path: Path) -> pd.DataFrame:
    """A table of expected values, as ``compare`` has it. :raises InputError: it is not as it should be."""
    try:
        wanted = pd.read_csv(path, dtype={name: str for name in ALIKE if name != "learning_rate"})
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a CSV ({' '.join(str(error).split())})") from error
    missing = {"objective", "measure", "statistic", "value", "tolerance", "source"} - set(wanted.columns)
    if missing:
        raise InputError(f"{path}: column {min(missing)!r} is missing")
    for name in ("value", "tolerance"):
        numbers = pd.to_numeric(wanted[name], errors="coerce")
        bad = (numbers.isna() & (wanted[name].notna() if name == "tolerance" else True)).to_numpy()
        if bad.any():
            line = int(np.argmax(bad))
            raise InputError(
                f"{path}, line {line + 2}, column {name!r}: {wanted[name].iloc[line]!r} is not a number"
            )
        wanted[name] = numbers
    return wanted


def _compared(measured: float, expected: float, tolerance: Any) -> list[str]:
    """Expected value, tolerance, measured value and verdict."""
    if np.isnan(measured):
        verdict = "not run"
    elif pd.isna(tolerance):
        verdict = ""
    else:
        verdict = "within" if abs(measured - expected) <= tolerance else "outside"
    shown = "-" if np.isnan(measured) else f"{measured:.4g}"
    return [f"{expected:g}", "" if pd.isna(tolerance) else f"{tolerance:g}", shown, verdict]


def write(summary: Summary, folder: Path) -> list[Path]:
    """Write the table as Parquet, CSV (both with every statistic), Markdown and LaTeX (as shown), and the
    fits as Parquet."""
    shown = sections(summary)
    paths = [
        folder / name for name in ("table.parquet", "table.csv", "table.md", "table.tex", "fits.parquet")
    ]
    for path, frame in ((paths[0], summary.table), (paths[4], summary.fits)):
        write_table(path, frame, columns_units(summary))
    write_csv(paths[1], summary.table)
    write_text(paths[2], "\n".join(map(markdown, shown)))
    write_text(paths[3], "\n".join(map(latex, shown)))
    return paths
