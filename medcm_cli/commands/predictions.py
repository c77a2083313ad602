"""What ``medcm predict`` does: individual predictions and their retrospective check, as tables, files and
figures."""

import argparse
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medcm_cli.commands.patients import folder_for, lean, progress, warn, what_was_read, write
from medcm_cli.commands.replaced import asked
from medcm_cli.commands.terminal import OUT
from medcm_cli.data.sheet import FloatArray
from medcm_cli.errors import InputError
from medcm_cli.patients.prediction import predict
from medcm_cli.patients.results import Prediction
from medcm_cli.patients.retrospective import Check, check
from medcm_cli.patients.study import Study, draws_of, load_study
from medcm_cli.report.section import Section
from medcm_cli.study.units import threshold_of

_FIGURES = 16  # patients who get one
_SHOWN = 5  # patients in the tables where there are more than get a figure
_TABLES = ("parameters", "curve", "thresholds", "above", "posteriors", "doses", "observations", "warnings")
_KIND = "predictions"
_USES = (0, 1, 2, 3)
_FEW_TIMES = 6  # of a prediction, that are all shown
Show = Callable[[Section], None]
Order = Callable[[pd.Series], pd.Series]
Row = Mapping[Hashable, Any]


def run(options: argparse.Namespace, show: Show) -> None:
    """Do what the command line says. :raises InputError: options or files that do not fit."""
    for flag in ("regimen", "times", "threshold") if options.check else ("uses",):
        if getattr(options, flag) not in (None, []):
            which = "not for --check, which predicts the levels that were measured"
            raise InputError(f"--{flag} is {which if options.check else 'for --check alone'}")
    if options.patient is None and not options.check:
        raise InputError("--patient is missing; expected an event table of patients, or --check")
    torch.set_num_threads(1)  # more lose time on tensors of this size
    study = load_study(options.run, options.objective, options.trust).with_dialect(dict(options.dialect))
    said = [threshold_of("--threshold", text, study.units) for text in options.threshold or ()]
    thresholds = said or study.thresholds
    if options.check:
        _check(study, options, show)
        return
    name = "_".join([options.patient.stem, *(path.stem for path in options.regimen)])
    folder = folder_for(study, options.out, _KIND, name, asked(options))
    until = np.inf if options.times is None else max(options.times)
    events, origins = study.read_with_origins(options.patient, until)
    with progress(len(events.ids)) as told:
        found = predict(
            study,
            events,
            options.regimen,
            options.times,
            thresholds,
            options.method,
            options.draws,
            told,
        )
    tables = {name: getattr(found, name) for name in _TABLES}
    tables = {name: table for name, table in tables.items() if len(table.columns)}  # of thresholds, if any
    about = {
        "patients": str(options.patient),
        "method": options.method,
        "draws": draws_of(options.draws, len(events.ids)),
        "regimens": list(map(str, options.regimen)),
        "thresholds": ",".join(f"{level:.16g}" for level in thresholds),
        "times": found.times.tolist(),
        "options": asked(options),
    }
    drawn = len(events.ids) <= _FIGURES
    write(folder, _KIND, study, tables, about, partial(_draw, found) if drawn else None, origins)
    OUT.print(f"{found.label}.\n{found.disclaimer}\n")
    warn(found.warnings, options.patient, study, events.notes)
    for section in (what_was_read(study, events, _FIGURES, _SHOWN), *sections(found)):
        show(lean(section))
    OUT.print(f"Parquet{' and figures' if drawn else ''} -> {folder}")


def _draw(found: Prediction, folder: Path) -> None:
    """A figure of each patient who has a dose. Names that a file cannot tell apart get a number."""
    from medcm_cli.report.figures import individual, style  # matplotlib takes a second

    taken: dict[str, int] = {}
    several = [(name, *one) for name in dict.fromkeys(found.curve["patient"]) for one in found.of_endpoints]
    for name, quantity, part in several:
        drawn = individual.patient(part, name, quantity)
        taken[drawn.stem] = taken.get(drawn.stem, 0) + 1
        number = taken[drawn.stem]
        named = drawn if number == 1 else replace(drawn, stem=f"{drawn.stem}_{number}")
        style.write(named, folder, ("png", "svg"))


# -- tables ----------------------------------------------------------------------------------------


def sections(found: Prediction) -> list[Section]:
    """What a person reads: of a few patients everything, of many the first ones."""
    ids = list(dict.fromkeys(found.parameters["patient"]))
    shown = ids if len(ids) <= _FIGURES else ids[:_SHOWN]
    words = "" if shown == ids else f", first {len(shown)} of {len(ids)} patients"
    bands = ["typical", "median", "50 %", "90 %"]
    parameters = found.parameters[found.parameters["patient"].isin(shown)]
    cells = [
        [row["patient"], f"{row['parameter']}, {row['unit']}".rstrip(", "), *_bands(row)]
        for row in parameters.to_dict("records")
    ]
    result = [Section(f"Parameters{words}", ["patient", "parameter", *bands], cells)]
    times = _chosen(found.times, found.units.hours)
    order = _order(shown, found.curve["regimen"])
    for name, part in found.of_endpoints:
        title = f"{'Levels' if name == 'level' else name}{part.over(shown)}, {part.unit}{words}"
        result.append(_levels(title, part, shown, times, order))
    if len(found.thresholds):
        result.append(_above(found, shown, times, words, order))
    return result


def _levels(title: str, found: Prediction, shown: Sequence[str], times: FloatArray, order: Order) -> Section:
    """Of some patients at some times."""
    curve = found.curve[found.curve["patient"].isin(shown) & found.curve["time"].isin(times)]
    curve = curve.sort_values(["patient", "regimen"], key=order, kind="stable")
    cells = [
        [
            row["patient"],
            row["regimen"],
            f"{row['time']:g}",
            *_bands(row),
            f"{row['measured_lower_90']:.3g} to {row['measured_upper_90']:.3g}",
        ]
        for row in curve.to_dict("records")
    ]
    bands = ["typical", "median", "50 %", "90 %"]
    return Section(
        title, ["patient", "regimen", f"time, {found.units.time}", *bands, "90 %, as measured"], cells
    )


def _above(found: Prediction, shown: Sequence[str], times: FloatArray, words: str, order: Order) -> Section:
    keys = ["patient", "regimen", "threshold"]
    above = found.above[found.above["patient"].isin(shown) & found.above["time"].isin(times)]
    wide = above.pivot_table(index=keys, columns="time", values="probability")
    chances = dict(zip(wide.index, wide.to_numpy(), strict=True))
    spans = found.thresholds[found.thresholds["patient"].isin(shown)]
    spans = spans.sort_values(["patient", "regimen"], key=order, kind="stable")
    cells, digits = [], 1 if found.units.hours <= 1 else 2  # of an hour or less, and of a day
    for row in spans.to_dict("records"):
        low, high = row["lower_90"], row["upper_90"]
        cells.append(
            [
                row["patient"],
                row["regimen"],
                f"{row['threshold']:g}",
                f"{row['typical']:.{digits}f}",
                f"{row['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})",
                *(f"{chance:.2f}" for chance in chances[row["patient"], row["regimen"], row["threshold"]]),
            ]
        )
    unit = found.units.time
    headers = ["patient", "regimen", f"above, {found.unit}", f"typical, {unit}", f"median, {unit} (90 %)"]
    headers += [f"P at {time:g} {unit}" for time in times]
    span = f"{found.times[0]:g} to {found.times[-1]:g} {unit}"
    return Section(f"Time above a level, {span}, and P of being above at a time{words}", headers, cells)


def _order(shown: Sequence[str], regimens: pd.Series) -> Order:
    """Patients as in the file and regimens as given."""
    known = {"patient": shown, "regimen": list(dict.fromkeys(regimens))}
    return lambda column: column.map({name: number for number, name in enumerate(known[str(column.name)])})


def _bands(row: Row) -> list[str]:
    cells = [f"{row['typical']:.3g}", f"{row['median']:.3g}"]
    return cells + [f"{row[f'lower_{p}']:.3g} to {row[f'upper_{p}']:.3g}" for p in (50, 90)]


def _chosen(times: FloatArray, hours: float) -> FloatArray:
    """The times where they are few; of more at most five, whole days where they are among them.

    :param hours: that 1 is.
    """
    if len(times) <= _FEW_TIMES:
        return times
    days = times[np.isclose(times * hours % 24, 0) & (times > 0)]
    some = days if len(days) else times
    chosen = np.unique(np.linspace(0, len(some) - 1, min(5, len(some))).round().astype(np.int64))
    return np.asarray(some[chosen])


# -- retrospective check ---------------------------------------------------------------------------


def _check(study: Study, options: argparse.Namespace, show: Show) -> None:
    name = "check" if options.patient is None else f"check_{options.patient.stem}"
    folder = folder_for(study, options.out, _KIND, name, asked(options))
    draws = {} if options.draws is None else {"draws": options.draws}
    with progress(None) as told:
        found = check(study, options.patient, options.uses or _USES, options.method, progress=told, **draws)
    tables = {"check": found.summary, "check_levels": found.levels}
    about = {"patients": str(options.patient or study.fits.records[0].data["source"]), "note": found.note}
    write(folder, _KIND, study, tables, about | {"method": options.method, "options": asked(options)})
    OUT.print(f"{found.label}.\n{found.disclaimer}\n")
    show(check_section(found))
    OUT.print(f"Of the median of a measured level; {found.note}.\nParquet -> {folder}")


def check_section(found: Check) -> Section:
    """A row per number of levels used."""
    names = ["rmse", "rmse_expected", "bias", "rmse_typical", "rmse_last"]
    cells = [
        [
            f"{row['used']:.0f}",
            f"{row['subjects']:.0f}",
            f"{row['levels']:.0f}",
            *("-" if np.isnan(row[name]) else f"{row[name]:.2f}" for name in names),
            *(f"{100 * row[f'coverage_{percent}']:.1f}" for percent in (50, 90)),
        ]
        for row in found.summary.to_dict("records")
    ]
    headers = [
        "levels used",
        "subjects",
        "later levels",
        f"RMSE, {found.unit}",
        f"expected, {found.unit}",
        f"bias, {found.unit}",
        f"RMSE, typical, {found.unit}",
    ]
    headers += [f"RMSE, last level, {found.unit}", "in 50 % band, %", "in 90 % band, %"]
    return Section("Later levels predicted from the first", headers, cells)
