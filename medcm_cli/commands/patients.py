"""What ``medcm predict`` and ``medcm dose`` share: what they show of patients and say of them, and
the folder of tables that they leave, all of which name their study and what they are for."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from medcm_cli import __version__
from medcm_cli.commands.replaced import differing
from medcm_cli.commands.terminal import ERR, by_cause, job_bar, shortened
from medcm_cli.data import EventTable
from medcm_cli.data.edit import latest_covariates
from medcm_cli.data.names import ROLES
from medcm_cli.data.sheet import read_sheet
from medcm_cli.errors import InputError
from medcm_cli.files import folder_name, from_json, replaced, write_text
from medcm_cli.patients.results import DISCLAIMER, GIVEN
from medcm_cli.patients.study import Study
from medcm_cli.report.section import Section
from medcm_cli.runs import columns, study_folder, write_table
from medcm_cli.study.endpoints import told_by

_WARNINGS = 10  # that are shown
_LONGEST = 120  # bytes of a folder's name, which that of files is made of


def folder_for(study: Study, out: Path | None, kind: str, name: str, wanted: Mapping[str, Any]) -> Path:
    """``out`` or ``STUDY/kind/name``, where ``write`` can go; where the latter holds what was asked for with
    other options, the same with a hash of them.

    :param kind: of results, ``predictions`` or ``doses``; ``kind.json`` marks their folders.
    :param wanted: see ``replaced.asked``. :raises InputError: something else is there.
    """
    if out is not None:
        other = _differences(out, kind, wanted)
        if other:
            words = f"{kind} that were asked for with another {', '.join(other)}"
            raise InputError(f"{out}: holds {words}; choose another --out")
        return out
    above = study_folder(study.fits.folders[0], study.fits.records[0].address)
    if above is None:
        raise InputError(f"{study.fits.folders[0]}: is not in the folder of its study; give --out")
    chosen = above / kind / (name if len(name.encode()) <= _LONGEST else folder_name(name, _LONGEST))
    if _differences(chosen, kind, wanted):
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:8]
        chosen = chosen.with_name(f"{chosen.name}~{digest}")
        _differences(chosen, kind, wanted)
    return chosen.relative_to(Path.cwd()) if chosen.is_relative_to(Path.cwd()) else chosen


def _differences(folder: Path, kind: str, wanted: Mapping[str, Any]) -> list[str]:
    """In which flags what a folder holds was asked for otherwise; none where nothing is there.

    :raises InputError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    try:
        marked = (folder / f"{kind}.json").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        words = f"is there and holds no {kind} of this command; choose another --out"
        raise InputError(f"{folder}: {words}") from None
    try:
        held = dict(from_json(marked, folder)["options"])
    except (ValueError, KeyError, TypeError):  # of an earlier version, that does not say, or damaged
        return ["version of medcm"]
    return differing(held, wanted)


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of patients; what it gives is to be told how many are done."""
    with job_bar() as bar:
        task = bar.add_task("patients", total=total, state="")
        yield lambda done: bar.update(task, completed=done, state=f"{done} done")


def write(
    folder: Path,
    kind: str,
    study: Study,
    tables: Mapping[str, pd.DataFrame],
    about: Mapping[str, Any],
    draw: Callable[[Path], None] | None = None,
    origins: pa.Table | None = None,
) -> None:
    """Parquet tables, ``kind.json`` and what ``draw`` adds to the folder; everything or nothing.

    :param origins: how the patients' covariates came about, where there is something to say of it.
    """
    said = {"study": study.label, "disclaimer": DISCLAIMER, "unit": study.unit, "time": study.units.time}
    if "warnings" in tables:
        said["warnings"] = "; ".join(_lines(tables["warnings"]))
    record = study.fits.records[0]
    content = {
        **said,
        "medcm": __version__,
        "fits": [str(path) for path in study.fits.folders],
        "data": {key: record.data[key] for key in ("source", "fingerprint", "subjects")},
        "trained_on": asdict(study.ranges),
        **about,
    }
    with replaced(folder) as partial:
        partial.mkdir()
        for name, frame in tables.items():
            table = pa.Table.from_pandas(frame, preserve_index=False)
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), **said})
            several = "endpoint" in table
            units = columns(f"{kind}/{name}", study.units.of_each if several else study.units.named)
            write_table(partial / f"{name}.parquet", table, units)
        if origins is not None:
            write_table(partial / "preparation.parquet", origins)
        write_text(partial / f"{kind}.json", json.dumps(content, indent=1) + "\n")
        if draw is not None:
            draw(partial)


def what_was_read(study: Study, events: EventTable, most: int, shown: int) -> Section:
    """A line for each patient, or the first ``shown`` of more than ``most``: doses, levels and covariates as
    the model has them, so that a wrong unit is seen."""
    n = len(events.ids)
    given, covariates = events.given, latest_covariates(events)
    amount = np.bincount(events.subject[given], events.amount[given], n)
    doses, levels = (np.bincount(events.subject[rows], minlength=n) for rows in (given, ~events.is_dose))
    units = {name: str(entry.get("unit") or "") for name, entry in study.dataset["covariates"].items()}
    headers = ["patient", "doses", f"in all, {study.dose_unit}", "levels"]
    headers += [f"{name}, {units.get(name, '')}".rstrip(", ") for name in covariates]
    count = n if n <= most else shown
    cells = [
        [
            events.ids[i],
            str(doses[i]),
            f"{amount[i]:g}",
            str(levels[i]),
            *("-" if np.isnan(values[i]) else f"{values[i]:.4g}" for values in covariates.values()),
        ]
        for i in range(count)
    ]
    words = "" if count == n else f", first {count} of {n} patients"
    return Section(f"What was read{words}", headers, cells)


def lean(section: Section) -> Section:
    """Without the columns of patient and regimen where they have one value, which goes into the title."""
    _, headers, cells = section
    shared = []
    for key in ("patient", "regimen"):
        values = {row[headers.index(key)] for row in cells} if key in headers else set()
        if len(values) == 1:
            number, (name,) = headers.index(key), values
            shared.append("doses as given" if (key, name) == ("regimen", GIVEN) else name)
            headers = [h for h in headers if h != key]
            cells = [row[:number] + row[number + 1 :] for row in cells]
    return Section(": ".join(filter(None, (", ".join(shared), section.title))), headers, cells)


def warn(warnings: pd.DataFrame, path: Path, study: Study, notes: Sequence[str]) -> None:
    """Say what a person has to know, on stderr: the first warnings, what is to be said of the file, and its
    columns that say nothing to the study, whose names may be misspelt."""
    for line in (*notes, *_lines(warnings)):
        ERR.print(line)
    sheet = read_sheet(path, study.dataset["columns"], {}, study.dataset["dialect"])
    names = [*study.dataset["keep"], *(entry["column"] for entry in study.dataset["covariates"].values())]
    names += [entry.get("by") for entry in study.dataset["covariates"].values()]
    names += [told_by(one)[0] for one in (study.fits.config["endpoints"] or {}).values()]
    steps = study.dataset["preparation"]
    if steps is not None:
        names += [*steps["columns"].values(), steps["baseline"]]
    used = {sheet.named(role) for role in ROLES} | {sheet.find(name) for name in names if name}
    unused = [str(name) for name in sheet.frame if name not in used]
    if unused:
        ERR.print(f"columns that were not used: {', '.join(unused)}")


def _lines(warnings: pd.DataFrame) -> list[str]:
    """The warnings, of many patients a line for each thing that there is to say."""
    said = [(f"patient {p}" if p else "", m) for p, m in warnings[["patient", "message"]].to_numpy()]
    if len(said) > _WARNINGS:
        lines = by_cause([(name.removeprefix("patient "), words) for name, words in said], "patients")
    else:
        lines = [": ".join(filter(None, one)) for one in said]
    return shortened([f"warning: {line}" for line in lines], _WARNINGS, ", in warnings.parquet")
