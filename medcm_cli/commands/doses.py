"""What ``medcm dose`` does: the doses that meet a target, as tables and files."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pandas as pd

from medcm_cli.commands.patients import folder_for, lean, progress, warn, what_was_read, write
from medcm_cli.commands.replaced import asked
from medcm_cli.commands.terminal import OUT, shortened
from medcm_cli.patients.dosing import dose, until_of, vial_of
from medcm_cli.patients.results import Dosing
from medcm_cli.patients.study import draws_of, load_study
from medcm_cli.report.section import Section

_SHOWN = 5  # patients whose candidates are shown
_BESIDE = 3  # of an interval's candidates, those next to the answer
_LINES = 40  # patients in the first table
_REASONS = 10  # lines about intervals without a dose
_KIND = "doses"
Show = Callable[[Section], None]


def run(options: argparse.Namespace, show: Show) -> None:
    """Do what the command line says. :raises InputError: options or files that do not fit."""
    study = load_study(options.run, options.objective, options.trust).with_dialect(dict(options.dialect))
    folder = folder_for(study, options.out, _KIND, options.patient.stem, asked(options))
    options.vial = vial_of(study, options.vial)
    events, origins = study.read_with_origins(options.patient, until_of(options.after))
    with progress(len(events.ids)) as told:
        found = dose(
            study,
            events,
            options.target,
            options.probability,
            options.every,
            options.vial,
            options.most,
            options.after,
            options.horizon,
            options.method,
            options.draws,
            told,
        )
    about = {
        "patients": str(options.patient),
        "method": options.method,
        "draws": draws_of(options.draws, len(events.ids)),
        "every": sorted(set(map(float, found.doses["every"]))),
        "after": options.after,
        "dose_unit": found.dose_unit,
        "time_unit": found.units.time,
        "regimen": found.regimen,
        "targets": [asdict(target) for target in found.targets],
        "probability": found.probability,
        "vial": options.vial,
        "most": options.most,
        "options": asked(options),
    }
    tables = {name: getattr(found, name) for name in ("doses", "candidates", "warnings")}
    write(folder, _KIND, study, tables, about, origins=origins)
    OUT.print(f"{found.label}.\n{found.disclaimer}\n")
    warn(found.warnings, options.patient, study, events.notes)
    _show(found, what_was_read(study, events, _SHOWN, _SHOWN), options.vial, options.most, show)
    OUT.print(f"Parquet -> {folder}")


def _show(found: Dosing, read: Section, vial: float, most: int, show: Show) -> None:
    """The question, the answers, and why a patient or interval has none."""
    wanted = " and ".join(target.text for target in found.targets)
    OUT.print(
        f"{wanted} with probability {found.probability:g}; {found.regimen}; doses of {vial:g} to "
        f"{vial * most:g} {found.dose_unit}. Targets are of one interval, and true levels count, without "
        "residual error.\n"
    )
    for section in (read, *sections(found)):
        show(lean(section))
    for line in _infeasible(found, vial * most):
        OUT.print(line)
    if found.doses["least_weekly"].any():
        OUT.print(
            "* the least consumption per week of the intervals: a convenience, not a recommendation to treat."
        )


def sections(found: Dosing) -> list[Section]:
    """What a person reads: a line per patient, and the candidates of the first patients."""
    ids = list(dict.fromkeys(found.doses["patient"]))
    intervals = list(dict.fromkeys(found.doses["every"]))
    entries = {(row["patient"], row["every"]): row for row in found.doses.to_dict("records")}
    lines = ids[:_LINES]
    cells = [[name, *(_answer(entries[name, every]) for every in intervals)] for name in lines]
    words = "" if lines == ids else f", first {len(lines)} of {len(ids)} patients"
    headers = ["patient", *(f"every {every:g} {found.units.time}" for every in intervals)]
    which = "Least" if any(target.least for target in found.targets) else "Highest"
    title = f"{which} dose, {found.dose_unit}, and its probability{words}"
    result = [Section(title, headers, cells)]
    shown = ids if len(ids) <= _SHOWN else ids[:_SHOWN]
    some = found.candidates[found.candidates["patient"].isin(shown)]
    words = "" if shown == ids else f", first {len(shown)} of {len(ids)} patients"
    result.append(_candidates(found, some, words))
    return result


def _answer(row: dict[Any, Any]) -> str:
    if not row["feasible"]:
        return f"none; {row['best_probability']:.2f} at best"
    return f"{row['dose']:g} ({row['probability']:.2f}){' *' if row['least_weekly'] else ''}"


def _candidates(found: Dosing, some: pd.DataFrame, words: str) -> Section:
    """The answer (or the best) with the doses beside it; everything else about them is in the files."""
    wanted = {target.kind for target in found.targets}
    names = [name.removesuffix("_median") for name in map(str, some) if name.endswith("_median")]
    names = [name for name in names if name != "auc" or name in wanted]
    weighed = bool(some["per_kg"].notna().any())
    unit = found.dose_unit
    headers = [
        "patient",
        f"every, {found.units.time}",
        f"dose, {unit}",
        *([f"{unit}/kg"] if weighed else []),
        "P",
    ]
    for name in names:
        above = name.removeprefix("above_")
        level = {"auc": f"{found.unit} {found.units.time}"}.get(name, found.unit)
        measure = f"{name}, {level}" if above == name else f"{found.units.time} above {above} {found.unit}"
        headers.append(f"{measure} (90 %)")
    keys = ["patient", "every"]
    answer = found.doses.set_index(keys)["dose"].fillna(found.doses.set_index(keys)["best_dose"])
    far = (some["dose"] - answer.reindex(pd.MultiIndex.from_frame(some[keys])).to_numpy()).abs()
    nearest = far.groupby([some[key] for key in keys]).rank(method="first") <= _BESIDE
    cells = []
    for row in some[nearest].to_dict("records"):
        cell = [row["patient"], f"{row['every']:g}", f"{row['dose']:g}{' <' if row['chosen'] else ''}"]
        cell += [f"{row['per_kg']:.4g}"] if weighed else []
        cell.append(f"{row['probability']:.2f}")
        for name in names:
            bounds = (f"{name}_{bound}" for bound in ("median", "lower_90", "upper_90"))
            middle, low, high = (_digits(row[bound]) for bound in bounds)
            cell.append(f"{middle} ({low} to {high})")
        cells.append(cell)
    return Section(f"Candidates around the answer (<){words}", headers, cells)


def _best(row: dict[Any, Any], unit: str) -> str:
    if row["best_probability"] < 0.005:
        return "all have less than 0.01"
    return f"{row['best_dose']:g} {unit} has {row['best_probability']:.2f}, the highest"


def _digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _infeasible(found: Dosing, most: float) -> list[str]:
    """A line per patient and interval without a dose, of the first patients."""
    bad = found.doses[~found.doses["feasible"]]
    lines = [
        f"patient {row['patient']}, every {row['every']:g} {found.units.time}: no dose up to {most:g} "
        f"{found.dose_unit} has probability {found.probability:g}; "
        f"{_best(row, found.dose_unit)}: {row['reason']}"
        for row in bad.to_dict("records")
    ]
    return shortened(lines, _REASONS, ", in doses.parquet")
