"""Where results come from, in words and tables: what was fitted, with which options and data, what failed,
how long it took, and how to do it again. From the records of run folders alone."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medcm_cli import runs
from medcm_cli.report.section import Section
from medcm_cli.runs import SIGMAS, Record, Units
from medcm_cli.runs.description import converged
from medcm_cli.runs.sweeps import by_method, by_sweep

Blocks = list[tuple[str, Any]]
"""What ``report.Block`` holds, in the order of the page."""
_MOST_FAILURES = 100  # that are listed one by one


def lead(records: Sequence[Record]) -> str:
    """What there is, in a sentence."""
    sweeps = by_sweep(records)
    if not sweeps:
        return "No fits."
    ranked = [label.partition(",")[0] for group in sweeps.values() for label in by_method(group)]
    objectives = list(dict.fromkeys(ranked))
    datasets = list(dict.fromkeys(dataset for _, dataset in sweeps))
    named = f"on {_listed(datasets)}" if len(datasets) <= 4 else f"on {len(datasets)} data sets"
    done, failed, waiting = _counts(records)
    rest = ([f"{failed} failed"] if failed else []) + ([f"{waiting} unfinished"] if waiting else [])
    fits = f"{len(records)} {'fit' if len(records) == 1 else 'fits'}"
    return f"{_listed(objectives)} {named}: {fits}, " + ", ".join([f"{done} complete", *rest]) + "."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _counts(records: Sequence[Record]) -> tuple[int, int, int]:
    """How many are complete, failed and unfinished."""
    status = Counter(record.status for record in records)
    return status["complete"], status["failed"], len(records) - status["complete"] - status["failed"]


def overview(records: Sequence[Record]) -> Section:
    """A row per study, data set and method."""
    rows = []
    for (study, dataset), group in by_sweep(records).items():
        for label, fits in by_method(group).items():
            seconds = [record.seconds for record in fits if record.status in runs.FINISHED]
            each = f"{np.median(seconds):.2f}" if seconds else "-"
            counts = map(str, (len(fits), *_counts(fits)))
            rows.append([label, study, dataset, *counts, each, _time(sum(seconds))])
    headers = [
        "Method",
        "Study",
        "Data set",
        "Fits",
        "Complete",
        "Failed",
        "Unfinished",
        "s per fit",
        "Training",
    ]
    same = [place for place in (1, 2) if len({row[place] for row in rows}) == 1]
    headers, *rows = (
        [cell for place, cell in enumerate(row) if place not in same] for row in (headers, *rows)
    )
    return Section("Fits and wall clock", headers, rows)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def titled(section: Section, study: str, dataset: str) -> Section:
    """A section of ``tables.sections`` under a heading that names study and data set already."""
    title = section.title.removeprefix(study).removeprefix(f", {dataset}").lstrip(": ") or "comparison"
    return section._replace(title=title[0].upper() + title[1:])


def data(records: Sequence[Record], patients: Section | None) -> Blocks:
    """The data set: its source, what is in it, and how its covariates enter. ``patients``: of
    ``tables.sections``, where there is one."""
    first = records[0]
    described = first.config["dataset"]
    held = list(dict.fromkeys((str(r.data.get("source")), str(r.data.get("fingerprint"))) for r in records))
    blocks: Blocks = [
        ("text", f"Source: {source}; fingerprint {digest} (SHA-256, its beginning).")
        for source, digest in held
    ]
    if len(held) > 1:
        blocks.append(("warning", "The fits are not all of the same data."))
    if patients is not None:
        blocks.append(("table", patients))
    covariates = described.get("covariates") or {}
    if covariates:
        cells = [
            [name, *(str(entry.get(key, "-")) for key in ("column", "unit", "reference", "scale"))]
            for name, entry in covariates.items()
        ]
        headers = ["Covariate", "Column", "Unit", "Reference", "Scale"]
        blocks.append(("table", Section("Covariates of the model", headers, cells)))
    if (taken := _taken(first)) is not None:
        blocks.append(("table", taken))
    if first.truth:
        level = Units.of(described).level
        units = {f"sigma.{part}": unit.format(reported=level) for part, unit in SIGMAS.items()}
        units |= {"omega": "log scale, squared"}
        rows = [[name, value, units.get(name, "-")] for name, value in _flat(first.truth).items()]
        blocks.append(("table", Section("Known truth", ["Parameter", "Value", "Unit"], rows)))
    return blocks


def _taken(record: Record) -> Section | None:
    """Covariates that some subjects lack: how many, and what was taken; None where there are none."""
    held = record.data.get("characteristics") or {}
    cells = []
    for name, origins in (held.get("origins") or {}).items():
        rule = (held.get("filled") or {}).get(name) or {"rule": None, "by": None, "values": {}}
        unit = ((held.get("covariates") or {}).get(name) or {}).get("unit") or "-"
        values = {
            f"{rule['rule']} of {rule['by']} {kind}" if rule["by"] else rule["rule"]: f"{value:.4g} {unit}"
            for kind, value in rule["values"].items()
        }
        for origin, count in sorted(origins.items()):
            if set(origins) - {"measured", "derived"}:
                cells.append([name, origin, str(count), values.get(origin, "-").removesuffix(" -")])
    title = "Covariates that subjects lack: how their values came about"
    return Section(title, ["Covariate", "Value", "Subjects", "Taken"], cells) if cells else None


def configuration(records: Sequence[Record]) -> Blocks:
    """What differs between methods, and what all share."""
    columns: dict[str, dict[str, str]] = {}
    for label, fits in by_method(records).items():
        distinct = {json.dumps(fit.config, sort_keys=True): fit.config for fit in fits}
        for number, config in enumerate(distinct.values(), 1):
            columns[label if len(distinct) == 1 else f"{label} ({number})"] = _flat(
                {key: value for key, value in config.items() if key not in ("labels", "study", "outputs")}
            )
    names = list(dict.fromkeys(name for options in columns.values() for name in options))
    values = {name: [options.get(name, "-") for options in columns.values()] for name in names}
    shared = {name: row for name, row in values.items() if len(set(row)) == 1}
    different = [[name, *row] for name, row in values.items() if name not in shared]
    blocks: Blocks = []
    if different:
        title = "What differs between methods"
        blocks.append(("table", Section(title, ["Option", *columns], different)))
    elif len(columns) == 1:
        blocks.append(("text", "There is one method."))
    if shared:
        rows = [[name, row[0]] for name, row in shared.items()]
        blocks.append(("table", Section("What all fits share", ["Option", "Value"], rows)))
    return blocks


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name -> value; a plain option before the groups."""
    result: dict[str, str] = {}
    for key, value in sorted(
        options.items(), key=lambda item: isinstance(item[1], Mapping) and bool(item[1])
    ):
        if isinstance(value, Mapping) and value:
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = _text(value)
    return result


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def failures(records: Sequence[Record]) -> Blocks:
    """Failed fits by cause and one by one; unconverged modes and initialisations drawn again."""
    methods = by_method(records)
    failed = [(label, fit) for label, fits in methods.items() for fit in fits if fit.status == "failed"]
    done = sum(fit.status in runs.FINISHED for fit in records)
    blocks = _failed(failed)
    if not failed:
        some = f"None of {done} finished fits failed." if done else "No fit has finished."
        blocks.append(("text", some))
    waiting = len(records) - done
    if waiting:
        blocks.append(
            ("warning", f"{waiting} fits have not finished; the command that started them goes on.")
        )
    blocks += _open(methods)
    noted = [row for label, fits in methods.items() if (row := _noted(label, fits))]
    if noted:
        headers = ["Method", "Fits", "Initialisation drawn again", "Modes not converged"]
        blocks.append(("table", Section("Warnings: number of fits", headers, noted)))
    elif done:
        blocks.append(("text", "Every mode converged, and no initialisation was drawn again."))
    return blocks


def _open(methods: Mapping[str, Sequence[Record]]) -> Blocks:
    """How many fits of each method have converged, and by which rules; nothing where none was asked."""
    asked = {label: [fit for fit in fits if converged(fit) is not None] for label, fits in methods.items()}
    asked = {label: fits for label, fits in asked.items() if fits}
    cells = [
        [label, str(len(fits)), str(sum(converged(fit) is False for fit in fits)), _rules(fits)]
        for label, fits in asked.items()
    ]
    if not cells:
        return []
    some = sum(converged(fit) is False for fits in asked.values() for fit in fits)
    blocks: Blocks = [
        ("table", Section("Convergence", ["Method", "Fits", "Not converged", "Converged where"], cells))
    ]
    if some:
        who = "1 fit has" if some == 1 else f"{some} fits have"
        blocks.append(("warning", f"{who} not converged: training ended at no optimum."))
    return blocks


def _rules(fits: Sequence[Record]) -> str:
    return _distinct(str((fit.convergence or {}).get("rule", "-")) for fit in fits)


def _failed(failed: Sequence[tuple[str, Record]]) -> Blocks:
    """Failed fits, each with the label of its method, by cause and one by one; nothing of none."""
    if not failed:
        return []
    causes: dict[tuple[str, str], list[float]] = {}
    for label, fit in failed:
        causes.setdefault((label, _cause(fit)), []).append(float((fit.failure or {}).get("epoch", np.nan)))
    counted = [
        [label, cause, str(len(epochs)), f"{np.median(epochs):g} ({min(epochs):g} to {max(epochs):g})"]
        for (label, cause), epochs in causes.items()
    ]
    headers = ["Method", "Cause", "Fits", "Epoch, median (range)"]
    cells = [
        [label, fit.address.place, f"{(fit.failure or {}).get('epoch', '-')}", _cause(fit)]
        for label, fit in failed[:_MOST_FAILURES]
    ]
    blocks: Blocks = [
        ("table", Section("Failures by cause", headers, counted)),
        ("table", Section("Failed fits", ["Method", "Fit", "Epoch", "Cause"], cells)),
    ]
    if len(failed) > _MOST_FAILURES:
        blocks.append(("text", f"And {len(failed) - _MOST_FAILURES} more failed fits."))
    return blocks


def _noted(label: str, fits: Sequence[Record]) -> list[str]:
    """The row of a method of which something is to be noted, empty if nothing is."""
    redrawn = [fit.redraws for fit in fits if fit.redraws]
    open_modes = [fit.unconverged_modes for fit in fits if fit.unconverged_modes]
    if not redrawn and not open_modes:
        return []
    again = f"{len(redrawn)} (at most {max(redrawn)} times)" if redrawn else "0"
    share = f"{len(open_modes)} (at most {100 * max(open_modes):.1f} % of subjects)" if open_modes else "0"
    return [label, str(len(fits)), again, share]


def _cause(fit: Record) -> str:
    return str((fit.failure or {}).get("cause", "not recorded"))


def reproduction(records: Sequence[Record], trust: bool = False) -> Blocks:
    """The commands, versions and seeds. :param trust: as ``study.reproduction.commands`` has it."""
    from medcm_cli.study.reproduction import commands  # Hydra and torch take seconds

    blocks: Blocks = [
        (
            "text",
            "These commands repeat every fit on this page, from the folder in which they were first run.",
        )
    ]
    for command in commands(records, trust):
        if command.arguments:
            blocks.append(
                ("command", (f"{command.fits} {'fit' if command.fits == 1 else 'fits'}", command.text))
            )
        if command.note:
            blocks.append(("warning", f"{command.fits} fits: {command.note}."))
    names = list(dict.fromkeys(name for record in records for name in record.versions))
    rows = [["seed", _distinct(str(record.seed) for record in records)]]
    rows += [[name, _distinct(record.versions.get(name, "-") for record in records)] for name in names]
    blocks.append(("table", Section("Versions and seed", ["What", "Value"], rows)))
    total = sum(record.seconds for record in records)
    blocks.append(
        (
            "text",
            f"Training took {_time(total)}, a batch's time shared equally among its fits and summed over "
            "processes: two at the same time take half of it.",
        )
    )
    return blocks


def _distinct(values: Any) -> str:
    return ", ".join(dict.fromkeys(values))
