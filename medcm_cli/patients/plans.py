"""Regimens to be tried, as people write them: YAML or an event table of doses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from medcm_cli import checks
from medcm_cli.data import EventTable, Format, names, read_events
from medcm_cli.data.edit import with_doses
from medcm_cli.data.names import ROLES
from medcm_cli.data.segments import last_of
from medcm_cli.data.sheet import label, read_sheet
from medcm_cli.errors import InputError
from medcm_cli.files import check_depth

DOSE = ("time", "amount", "rate", "duration", "ii", "addl", "cmt")
_COLUMNS = {"amount": "amt"}
_STARTS = ("fresh", "continue")


@dataclass(frozen=True)
class Plan:
    """A regimen to try. ``doses``: an event table's dose rows, with ``id`` where patients have their own.
    ``continues``: whether they are given on top of the doses in the patients' file, on its clock, and not in
    their place to someone who has had none. Times are the file's, after a patient's last reset. ``assumed``:
    how an event table was read, in words."""

    name: str
    doses: pd.DataFrame
    continues: bool = False
    bolus_duration: float = Format.bolus_duration
    until: float = np.inf
    assumed: tuple[str, ...] = ()


def read_plan(
    given: Path | str | pd.DataFrame | Mapping[str, Any], dataset: Mapping[str, Any], until: float = np.inf
) -> Plan:
    """A plan from a YAML file or its contents, or from an event table of doses.

    The YAML has ``doses``, a list of ``time`` (h, 0 if not given), ``amount``, ``rate`` or ``duration``,
    ``ii`` and ``addl`` (h between and number of additional doses), ``cmt``; it may have ``name`` and
    ``start``, ``fresh`` or ``continue`` (see ``Plan``). An event table has the columns of the data; without
    ``id`` its doses are everyone's.

    :param dataset: the study's options, for the names of columns and the duration of a bolus.
    :param until: see ``Plan``.
    :raises InputError: a file that cannot be read or is neither, with what was expected.
    """
    plan = _plan(given, dataset["columns"])
    return replace(plan, bolus_duration=float(dataset["bolus_duration"]), until=until)


def _plan(given: Path | str | pd.DataFrame | Mapping[str, Any], columns: Mapping[str, str]) -> Plan:
    if isinstance(given, Mapping):
        return _from_mapping(given, "regimen", "regimen")
    if isinstance(given, pd.DataFrame):
        return _from_table("regimen", given, columns)
    path = Path(given)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a regimen, as YAML or an event table")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _from_mapping(_yaml(path), path.stem, str(path))
    return _from_table(path.stem, path, columns)


def _yaml(path: Path) -> object:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply; expected a list of doses") from error
    # A value that looks like a number or a date and is none is Python's to refuse.
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    check_depth(content, path)
    return content


def _from_table(name: str, given: Path | pd.DataFrame, columns: Mapping[str, str]) -> Plan:
    """The doses of an event table."""
    sheet = read_sheet(given, columns, {}, {})
    names.unused(sheet, {sheet.named(role) for role in ROLES})
    frame = pd.DataFrame({"time": sheet.number(sheet.named("time"))})
    for role in ("amt", "rate", "duration", "addl", "ii", "ss", "cmt", "evid", "mdv"):
        if sheet.has(role):
            frame[role] = sheet.number(sheet.named(role))
    if sheet.has("id"):
        frame.insert(0, "id", sheet.frame[sheet.named("id")].map(label).to_numpy())
    if (frame.get("evid", pd.Series(dtype=float)) >= 3).any():
        raise InputError(f"{sheet.source}: has a reset (EVID 3 or 4), which a regimen cannot have")
    gives = frame.reindex(columns=["amt", "rate"]).fillna(0.0).ne(0).any(axis=1)
    if not gives.any():
        raise InputError(f"{sheet.source}: holds no dose; expected rows with an amount or a rate")
    doses = frame[gives.to_numpy()].drop(columns=["evid", "mdv"], errors="ignore")
    return Plan(name, doses, assumed=sheet.assumed)


def _from_mapping(content: object, name: str, source: str) -> Plan:
    if not isinstance(content, Mapping) or set(content) - {"name", "start", "doses"}:
        raise InputError(f"{source}: expected doses, a list, and name and start if wanted")
    doses, start = content.get("doses"), content.get("start", "fresh")
    if isinstance(content.get("name"), Mapping | list | set):
        raise InputError(f"{source}: name is {checks.shown(content['name'])}; expected a text")
    checks.one_of(f"{source}: start", start, _STARTS)
    if not isinstance(doses, Sequence) or isinstance(doses, str) or not doses:
        raise InputError(
            f"{source}: doses is {checks.shown(doses)}; expected a list such as [{{time: 0, amount: 1000}}]"
        )
    for number, dose in enumerate(doses, 1):
        _check_dose(dose, f"{source}, dose {number}")
    frame = pd.DataFrame([dict(dose) for dose in doses]).rename(columns=_COLUMNS)
    if "time" not in frame:
        frame["time"] = 0.0
    frame["time"] = frame["time"].fillna(0.0)
    return Plan(str(content.get("name") or name), frame.sort_values("time"), start == "continue")


def _check_dose(dose: object, where: str) -> None:
    """A dose of a YAML file. :param where: the words for it. :raises InputError: it makes no sense."""
    if not isinstance(dose, Mapping) or set(dose) - set(DOSE):
        raise InputError(f"{where}: is {checks.shown(dose)}; expected some of {', '.join(DOSE)}")
    for key, value in dose.items():
        checks.number(f"{where}: {key}", value, least=0)
    both = {"amount", "rate", "duration"} <= set(dose)
    if both and not np.isclose(dose["amount"], dose["rate"] * dose["duration"]):
        raise InputError(f"{where}: amount is not rate times duration; give two of them")
    if not dose.get("amount", 0) and not dose.get("rate", 0):
        raise InputError(f"{where}: gives nothing; expected an amount or a rate above 0")
    if dose.get("addl", 0) and not dose.get("ii", 0):
        raise InputError(f"{where}: has addl without ii, the hours between these doses")
    if dose.get("ii", 0) and not dose.get("addl", 0):
        raise InputError(f"{where}: has ii without addl, the number of additional doses")


def with_plan(events: EventTable, plan: Plan) -> EventTable:
    """The patients of ``events`` with the doses of a plan and no observations.

    :raises InputError: doses that cannot be given, patients that the plan does not know, or a plan that is
        to continue after a reset.
    """
    ids = pd.Index(events.ids)
    if "id" in plan.doses:
        stray = set(plan.doses["id"]) - set(events.ids)
        if stray:
            raise InputError(
                f"regimen {plan.name}: has doses of {min(stray)!r}, who is not among the patients"
            )
        doses = plan.doses.assign(place=ids.get_indexer(pd.Index(plan.doses["id"].tolist())))
    else:
        doses = plan.doses.merge(pd.DataFrame({"place": np.arange(len(ids))}), how="cross")
    # Who has no dose is there too. Before a dose a row would matter: one at steady state begins anew (SS 1).
    others = pd.DataFrame(
        {"place": np.setdiff1d(np.arange(len(ids)), doses["place"]), "time": 0.0, "evid": 2}
    )
    rows = pd.concat([others, doses.assign(evid=1)], ignore_index=True)
    rows = rows.sort_values(["place", "time", "evid"], ascending=[True, True, False], kind="stable")
    rows["id"] = np.asarray(ids)[rows["place"]]
    rows["dv"] = np.nan
    how = Format(bolus_duration=plan.bolus_duration, patients=True, until=plan.until)
    try:
        given = read_events(rows.drop(columns="place"), {}, how)
    except InputError as error:
        raise InputError(f"regimen {plan.name}: {error}") from error
    if plan.continues:
        early = given.time < last_of(events)[1][given.subject]
        if early.any():
            row = int(np.argmax(early))
            raise InputError(
                f"regimen {plan.name}: continues at {given.time[row]:g} h, before the last reset of patient "
                f"{events.ids[given.subject[row]]!r}; expected doses after it"
            )
    return with_doses(events, given, plan.continues)
