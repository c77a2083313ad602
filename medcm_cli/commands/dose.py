"""``medcm dose``: the doses that meet a target."""

import argparse
from pathlib import Path

from medcm_cli.commands.parser import Parser, add_study
from medcm_cli.commands.terminal import show

from medcm_cli.commands import patients as commands
from medcm_cli.commands.patients import folder_for, lean, progress, warn, what_was_read, write
from medcm_cli.commands.terminal import OUT
from medcm_cli.errors import InputError
from medcm_cli.patients.dosing import dose
from medcm_cli.patients.results import Dosing
from medcm_cli.patients.search import AFTER
from medcm_cli.patients.study import draws_of, load_study
from medcm_cli.patients.targets import FORMS
from medcm_cli.report.section import Section

def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: options or files that do not fit."""
    parser = Parser(
        "dose",
        "The lowest dose, in whole vials, that meets all targets with a given probability. For research use "
        "only, not for treatment decisions.",
    )
    add_options(parser)
    options = parser.read(arguments)

    from medcm_cli.commands.doses import run

    run(options, show)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_study(parser, "doses")
    parser.add_argument(
        "--patient", type=Path, required=True, help="event table of patients, laid out as the study's data"
    )
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        help="what the dose has to reach; may be given several times: 'trough>=0.01 IU/mL', "
        "'peak<=150 IU/dL', 'auc>=10 IU/mL*h', 'time_above(0.05 IU/mL)>=20 h' or "
        "'time_above(5 IU/dL)>=80 %%'",
    )
    parser.add_argument(
        "--probability", type=float, default=0.8, help="the least probability of meeting all targets"
    )
    parser.add_argument("--every", default="24,36,48,72", help="dosing intervals to try, h")
    parser.add_argument("--vial", type=float, default=250.0, help="amount in one vial")
    parser.add_argument("--most", type=int, default=40, help="the most vials in a dose")
    parser.add_argument(
        "--after",
        choices=("steady", "given"),
        default="steady",
        help="steady: the dose is repeated until nothing changes any more; given: it comes on top of the "
        "doses in the patient's file",
    )
    parser.add_argument(
        "--horizon",
        type=float,
        help="with --after given: repeat the dose for so many hours; targets are of the last interval",
    )


def run(options: argparse.Namespace, show: Show) -> None:
    """Do what the command line says. :raises InputError: options or files that do not fit."""
    try:
        every = [float(part) for part in options.every.split(",")]
    except ValueError as error:
        raise InputError(f"--every {options.every}: expected hours, as in 24,48") from error
    study = load_study(options.run, options.objective)
    folder = folder_for(study, options.out, _KIND, options.patient.stem)
    events = study.read(options.patient)
    with progress(len(events.ids)) as told:
        dosing = dose(
            study,
            events,
            options.target,
            options.probability,
            every,
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
        "every": every,
        "after": options.after,
        "dose_unit": dosing.dose_unit,
        "regimen": dosing.regimen,
        "targets": [asdict(target) for target in dosing.targets],
        "probability": dosing.probability,
        "vial": options.vial,
        "most": options.most,
    }
    tables = {name: getattr(dosing, name) for name in ("doses", "candidates", "warnings")}
    write(folder, _KIND, study, tables, about)
    OUT.print(f"{dosing.label}.\n{dosing.disclaimer}\n")
    _show(dosing, what_was_read(study, events, _SHOWN, _SHOWN), options.vial, options.most, show)
    warn(dosing.warnings, options.patient, study)
    OUT.print(f"Parquet -> {folder}")


def _show(dosing: Dosing, read: Section, vial: float, most: int, show: Show) -> None:
    wanted = " and ".join(target.text for target in dosing.targets)
    OUT.print(
        f"{wanted} with probability {dosing.probability:g}; {dosing.regimen}; doses of {vial:g} to "
        f"{vial * most:g} {dosing.dose_unit}. Targets are of one interval, and true "
        "levels count, without residual error.\n"
    )
    for section in (read, *sections(dosing)):
        show(lean(section))
    for line in _infeasible(dosing, vial * most):
        OUT.print(line)
    if dosing.doses["least_weekly"].any():
        OUT.print(
            "* the least consumption per week of the intervals: a convenience, not a recommendation to treat."
        )


def sections(dosing: Dosing) -> list[Section]:
    """What a person reads: a line per patient, and the candidates of the first patients."""
    ids = list(dict.fromkeys(dosing.doses["patient"]))
    intervals = list(dict.fromkeys(dosing.doses["every"]))
    entries = {(row["patient"], row["every"]): row for row in dosing.doses.to_dict("records")}
    lines = ids[:_LINES]
    cells = [[name, *(_answer(entries[name, hours]) for hours in intervals)] for name in lines]
    words = "" if lines == ids else f", first {len(lines)} of {len(ids)} patients"
    headers = ["patient", *(f"every {hours:g} h" for hours in intervals)]
    which = "Least" if any(target.least for target in dosing.targets) else "Highest"
    title = f"{which} dose, {dosing.dose_unit}, and its probability{words}"
    result = [Section(title, headers, cells)]
    shown = ids if len(ids) <= _SHOWN else ids[:_SHOWN]
    some = dosing.candidates[dosing.candidates["patient"].isin(shown)]
    words = "" if shown == ids else f", first {len(shown)} of {len(ids)} patients"
    result.append(_candidates(dosing, some, words))
    return result


def _answer(row: dict[Any, Any]) -> str:
    if not row["feasible"]:
        return f"none; {row['best_probability']:.2f} at best"
    return f"{row['dose']:g} ({row['probability']:.2f}){' *' if row['least_weekly'] else ''}"


def _candidates(dosing: Dosing, some: pd.DataFrame, words: str) -> Section:
    """The answer (or the best) with the doses beside it; everything else about them is in the files."""
    wanted = {target.kind for target in dosing.targets}
    names = [name.removesuffix("_median") for name in map(str, some) if name.endswith("_median")]
    names = [name for name in names if name != "auc" or name in wanted]
    weighed = bool(some["per_kg"].notna().any())
    unit = dosing.dose_unit
    headers = ["patient", "every, h", f"dose, {unit}", *([f"{unit}/kg"] if weighed else []), "P"]
    for name in names:
        above = name.removeprefix("above_")
        headers.append(f"{name} (90 %)" if above == name else f"h above {above} (90 %)")
    keys = ["patient", "every"]
    answer = dosing.doses.set_index(keys)["dose"].fillna(dosing.doses.set_index(keys)["best_dose"])
    far = (some["dose"] - answer.reindex(pd.MultiIndex.from_frame(some[keys])).to_numpy()).abs()
    nearest = far.groupby([some[key] for key in keys]).rank(method="first") <= _BESIDE
    cells = []
    for row in some[nearest].to_dict("records"):
        cell = [row["patient"], f"{row['every']:g}", f"{row['dose']:g}{' <' if row['chosen'] else ''}"]
        cell += [f"{row['per_kg']:.1f}"] if weighed else []
        cell.append(f"{row['probability']:.2f}")
        for name in names:
            bounds = (f"{name}_{bound}" for bound in ("median", "lower_90", "upper_90"))
            middle, low, high = (_digits(row[bound]) for bound in bounds)
            cell.append(f"{middle} ({low} to {high})")
        cells.append(cell)
    return Section(f"Candidates around the answer (<), {dosing.unit} and h{words}", headers, cells)


def _best(row: dict[Any, Any]) -> str:
    if row["best_probability"] < 0.005:
        return "all have less than 0.01"
    return f"{row['best_dose']:g} has {row['best_probability']:.2f}, the highest"


def _digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _infeasible(dosing: Dosing, most: float) -> list[str]:
    """A line per patient and interval without a dose, of the first patients."""
    bad = dosing.doses[~dosing.doses["feasible"]]
    lines = [
        f"patient {row['patient']}, every {row['every']:g} h: no dose up to {most:g} {dosing.dose_unit} has "
        f"probability {dosing.probability:g}; {_best(row)}: {row['reason']}"
        for row in bad.head(_REASONS).to_dict("records")
    ]
    more = len(bad) - len(lines)
    return [*lines, *([f"and {more} more, in doses.parquet"] if more else [])]
