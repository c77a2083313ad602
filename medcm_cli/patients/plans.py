"""Regimens to be tried, and tables of what is to be predicted: doses of patients with times to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from medcm_cli import checks
from medcm_cli.data import EventTable, Format, read_events
from medcm_cli.data.events import Regimes
from medcm_cli.data.sheet import BoolArray, FloatArray, label, read_sheet
from medcm_cli.errors import InputError

DOSE = ("time", "amount", "rate", "duration", "ii", "addl", "cmt")
_COLUMNS = {"amount": "amt"}
_STARTS = ("fresh", "continue")
_AFTER = 1e-6  # h; how long after its end all of a dose is seen, one that is given at once too
# h after that, and before, to follow levels whatever the times that they are asked for at.
_FALL = (
    *(0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 16, 20, 24, 36, 48, 72, 96),
    *(144, 240, 480, 1000),
)
_RISE = (2.0, 1.0, 0.5, 0.25)
LAGGED = _FALL[:12]
LOOKS = 2 + len(_RISE) + len(_FALL)  # for a dose, at most
_ROWS = [f.name for f in fields(EventTable) if f.name not in ("source", "ids", "covariates", "regimes")]
_ROWS = [name for name in _ROWS if name not in ("reset_subject", "reset_clock", "superposed")]


@dataclass(frozen=True)
class Plan:
    """A regimen to try. ``doses``: an event table's dose rows, with ``id`` where patients have their own.
    ``continues``: whether they are given on top of the doses in the patients' file, on its clock, and not in
    their place to someone who has had none."""

    name: str
    doses: pd.DataFrame
    continues: bool = False
    bolus_duration: float = Format.bolus_duration


def read_plan(given: Path | str | pd.DataFrame | Mapping[str, Any], dataset: Mapping[str, Any]) -> Plan:
    """A plan from a YAML file or its contents, or from an event table of doses.

    The YAML has ``doses``, a list of ``time`` (h, 0 if not given), ``amount``, ``rate`` or ``duration``,
    ``ii`` and ``addl`` (h between and number of additional doses), ``cmt``; it may have ``name`` and
    ``start``, ``fresh`` or ``continue`` (see ``Plan``). An event table has the columns of the data; without
    ``id`` its doses are everyone's.

    :param dataset: the study's options, for the names of columns and the duration of a bolus.
    :raises InputError: a file that cannot be read or is neither, with what was expected.
    """
    bolus = float(dataset["bolus_duration"])
    if isinstance(given, Mapping):
        return _from_mapping(given, "regimen", "regimen", bolus)
    if not isinstance(given, pd.DataFrame):
        path = Path(given)
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected a regimen, as YAML or an event table")
        if path.suffix.lower() in (".yaml", ".yml"):
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise InputError(
                    f"{path}: cannot be read as YAML ({' '.join(str(error).split())})"
                ) from error
            return _from_mapping(content, path.stem, str(path), bolus)
        name, given = path.stem, path
    else:
        name = "regimen"
    sheet = read_sheet(given, dataset["columns"], {})
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
    return Plan(name, frame[gives.to_numpy()].drop(columns=["evid", "mdv"], errors="ignore"), False, bolus)


def _from_mapping(content: object, name: str, source: str, bolus: float) -> Plan:
    if not isinstance(content, Mapping) or set(content) - {"name", "start", "doses"}:
        raise InputError(f"{source}: expected doses, a list, and name and start if wanted")
    doses, start = content.get("doses"), content.get("start", "fresh")
    checks.one_of(f"{source}: start", start, _STARTS)
    if not isinstance(doses, Sequence) or isinstance(doses, str) or not doses:
        raise InputError(f"{source}: doses is {doses!r}; expected a list such as [{{time: 0, amount: 1000}}]")
    for number, dose in enumerate(doses, 1):
        if not isinstance(dose, Mapping) or set(dose) - set(DOSE):
            raise InputError(f"{source}, dose {number}: is {dose!r}; expected some of {', '.join(DOSE)}")
        for key, value in dose.items():
            checks.number(f"{source}, dose {number}: {key}", value, least=0)
        both = {"amount", "rate", "duration"} <= set(dose)
        if both and not np.isclose(dose["amount"], dose["rate"] * dose["duration"]):
            raise InputError(f"{source}, dose {number}: amount is not rate times duration; give two of them")
        if not dose.get("amount", 0) and not dose.get("rate", 0):
            raise InputError(f"{source}, dose {number}: gives nothing; expected an amount or a rate above 0")
        if dose.get("addl", 0) and not dose.get("ii", 0):
            raise InputError(f"{source}, dose {number}: has addl without ii, the hours between these doses")
        if dose.get("ii", 0) and not dose.get("addl", 0):
            raise InputError(f"{source}, dose {number}: has ii without addl, the number of additional doses")
    frame = pd.DataFrame([dict(dose) for dose in doses]).rename(columns=_COLUMNS)
    if "time" not in frame:
        frame["time"] = 0.0
    frame["time"] = frame["time"].fillna(0.0)
    return Plan(str(content.get("name") or name), frame.sort_values("time"), start == "continue", bolus)


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
    how = Format(bolus_duration=plan.bolus_duration, patients=True)
    try:
        given = read_events(rows.drop(columns="place"), {}, how)
    except InputError as error:
        raise InputError(f"regimen {plan.name}: {error}") from error
    given = replace(given, source=events.source, covariates=events.covariates)
    if not plan.continues:
        return replace(given, covariates=latest_covariates(events))
    if len(events.reset_subject) or len(given.reset_subject):
        raise InputError(f"regimen {plan.name}: start continue is not for patients whose records are reset")
    both = _joined(_some(events, events.is_dose), _some(given, given.is_dose))
    table = replace(events, **_in_order(both), superposed=events.superposed or given.superposed)
    return replace(table, regimes=events.regimes)


def latest_covariates(events: EventTable) -> dict[str, FloatArray]:
    """One value per patient, the last of those that change."""
    if events.regimes is None:
        return events.covariates
    last = np.r_[np.diff(events.regimes.subject) != 0, True]
    return events.covariates | {name: values[last] for name, values in events.regimes.covariates.items()}


def part(events: EventTable, numbers: npt.NDArray[np.int64]) -> EventTable:
    """Some patients, by their numbers from 0 in ascending order."""
    place = np.full(len(events.ids), -1)
    place[numbers] = np.arange(len(numbers))
    rows, resets = place[events.subject] >= 0, place[events.reset_subject] >= 0
    changed = _some(events, rows)
    changed["subject"] = place[changed["subject"]]
    regimes = events.regimes
    if regimes is not None:
        own = place[regimes.subject] >= 0
        changing = {name: values[own] for name, values in regimes.covariates.items()}
        regimes = Regimes(place[regimes.subject[own]], regimes.end[own], changing)
    return replace(
        events,
        **changed,
        ids=tuple(events.ids[number] for number in numbers),
        reset_subject=place[events.reset_subject[resets]],
        reset_clock=events.reset_clock[resets],
        covariates={name: values[numbers] for name, values in events.covariates.items()},
        regimes=regimes,
    )


def looked_at(
    events: EventTable, times: FloatArray, corners: FloatArray, after: Sequence[float] = _FALL
) -> tuple[EventTable, npt.NDArray[np.int64]]:
    """The patients' doses, with an observation at each of ``times`` (h on the clock) and, between the first
    and the last of them, at each dose's corners and at hours ``after`` the second of them and, of a
    dose that is not seen at once, ``_RISE`` before it.

    :param corners: when each dose begins to be seen and when all of it has been given (``dose_corners``).
    :returns: the table, every patient with as many observations in it, and the place among them of each of
        ``times``, (times, N).
    """
    n = len(events.ids)
    doses = _some(events, events.is_dose)
    counts = np.bincount(doses["subject"], minlength=n)
    most = int(counts.max(initial=0))
    position = np.arange(len(doses["subject"])) - np.repeat(np.cumsum(counts) - counts, counts)
    start, end = corners
    before = _RISE if (start > doses["clock"]).any() else ()
    around = np.stack([start, end, *(end - h for h in before), *(end + h for h in after)])
    padded = np.full((len(around), most, n), times[-1])
    padded[:, position, doses["subject"]] = around.clip(times[0], times[-1])
    added = padded.reshape(-1, n)
    added = added[((added > times[0]) & (added < times[-1])).any(1)]  # those that someone has
    grid = np.broadcast_to(times[:, None], (len(times), n))
    every = np.concatenate([grid, added])
    order = np.argsort(every, axis=0, kind="stable")
    place = np.argsort(order, axis=0, kind="stable")[: len(times)]
    clock = np.take_along_axis(every, order, axis=0).T.ravel()
    subject = np.repeat(np.arange(n), len(every))
    nothing = np.full(len(clock), np.nan)
    seen = {
        **dict.fromkeys(_ROWS, nothing),
        "subject": subject,
        "time": clock,
        "clock": clock,
        "dv": np.zeros(len(clock)),
        "compartment": np.full(len(clock), -1),
        "segment": _segment(events, subject, clock),
        "occasion": np.ones(len(clock), dtype=np.int64),
        **dict.fromkeys(("is_dose", "added", "censored"), np.zeros(len(clock), dtype=bool)),
    }
    return replace(events, **_in_order(_joined(doses, seen))), place


def dose_corners(events: EventTable) -> FloatArray:
    """Where each dose begins and when all of it has been given, h on the clock: (2, doses). Without lag times
    and durations that are parameters, which ``Study.corners`` has."""
    start, duration = events.clock[events.is_dose], events.duration[events.is_dose]
    return np.stack([start, start + np.nan_to_num(duration) + _AFTER])


def _segment(events: EventTable, subject: npt.NDArray[np.int64], clock: FloatArray) -> npt.NDArray[np.int64]:
    """How many resets a patient has had by a time."""
    far = 1e9  # h; more than any clock, so that patients and their times can be searched as one number
    resets = np.sort(events.reset_subject * far + events.reset_clock)
    before = np.searchsorted(resets, np.stack([subject * far, subject * far + clock]), side="right")
    return np.asarray(before[1] - before[0], dtype=np.int64)


def _some(events: EventTable, rows: BoolArray) -> dict[str, Any]:
    return {name: getattr(events, name)[rows] for name in _ROWS}


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: np.concatenate([one[name], other[name]]) for name in _ROWS}


def _in_order(rows: dict[str, Any]) -> dict[str, Any]:
    """By patient and time; what is given at a time comes before what is seen then."""
    when = np.where(rows["is_dose"], rows["since"], rows["clock"])
    order = np.lexsort((~rows["is_dose"], when, rows["subject"]))
    return {name: values[order] for name, values in rows.items()}
