"""A configuration to start from, written for an event table: what that says, and where a fit may begin."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medcm_cli.data import EventTable, Format, apparent_volume, read_plain, with_magnitudes
from medcm_cli.data.names import meaning, says_kind
from medcm_cli.data.sheet import Sheet, read_sheet
from medcm_cli.errors import InputError
from medcm_cli.quantities import factor
from medcm_cli.runs.units import Units
from medcm_cli.study.second import MOST, Second, second_of

_MOST_CATEGORIES = 6
_RISE = 1.2  # of the first level, the least that is no noise
_LEAST_SUBJECTS = 2  # of which a covariate differs
# What the field calls a covariate, in which unit it nearly always is.
_UNITS = {
    **dict.fromkeys(("wt", "weight", "bw", "ffm", "lbm"), "kg"),
    **dict.fromkeys(("ht", "height"), "cm"),
    "age": "a",
    "bmi": "kg/m^2",
    "bsa": "m^2",
    **dict.fromkeys(("crcl", "clcr"), "mL/min"),
}


@dataclass(frozen=True)
class Covariate:
    """A column as ``dataset.covariates`` describes it; ``values`` of its categories, if it has any."""

    name: str
    column: str
    reference: float
    scale: float
    unit: str
    values: Mapping[str, float]

    @property
    def entry(self) -> str:
        """In YAML."""
        parts = [
            f"column: {_quoted(self.column)}",
            f"scale: {self.scale:g}",
            f"reference: {self.reference:g}",
        ]
        parts.append(f"unit: {_quoted(self.unit)}")
        if self.values:
            texts = ", ".join(f"{_quoted(text)}: {code:g}" for text, code in self.values.items())
            parts.append(f"values: {{{texts}}}")
        return f"{self.name}: {{{', '.join(parts)}}}"


@dataclass(frozen=True)
class Starting:
    """``text``: a YAML file that ``medcm fit`` takes; ``notes``: what was found in the table, in lines."""

    text: str
    notes: tuple[str, ...]


class _Look(NamedTuple):
    """At a table: what it is called and how it is read; ``assumed``: the kinds of units that nobody said;
    ``oral``, and why; its covariates; and the second of its endpoints, if there are several."""

    path: Path
    how: Format
    units: Units
    assumed: list[str]
    table: EventTable
    oral: bool
    why: str
    covariates: list[Covariate]
    second: Second | None
    occasion: str


def starting(path: Path, how: Format, units: Units, said: Collection[str], name: str) -> Starting:
    """What to begin with.

    :param said: the kinds of units that were given. :param name: of the study.
    :raises InputError: a fault in the table.
    """
    sheet = read_sheet(path, how.columns, how.keep, how.dialect)
    table = read_plain(path, how)
    if len(table.kinds) > MOST:
        how = _with_few(sheet, how, table)
        table = read_plain(path, how)
    table = with_magnitudes(table, units)
    if table.is_dose.all():
        raise InputError(f"{path}: has no observation to begin from")
    oral, why = _route(table)
    assumed = [kind for kind in ("time", "amount", "level") if kind not in said]
    covariates = _covariates(sheet, how, table)
    second = second_of(table, units) if len(table.kinds) == MOST else None
    look = _Look(path, how, units, assumed, table, oral, why, covariates, second, sheet.named("occ"))
    more = [f"{path}: {second.why}"] if second else []
    return Starting(_written(look, name), (*table.notes, *more, f"{path}: {why}"))


def _with_few(sheet: Sheet, how: Format, table: EventTable) -> Format:
    """With the first kinds of observations alone, and the kinds that rows of doses say."""
    column = str(table.kinds[0].column)
    doses = sheet.frame[column][sheet.number(sheet.named("dv")) != sheet.number(sheet.named("dv"))]
    kept = dict.fromkeys([*(one.value for one in table.kinds[:MOST]), *map(_plain, doses.dropna().unique())])
    left = {one.value for one in table.kinds[MOST:]}
    return replace(how, keep={**how.keep, column: [value for value in kept if value not in left]})


def _plain(value: Any) -> Any:
    """A value of a cell as YAML has it."""
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _route(table: EventTable) -> tuple[bool, str]:
    """Whether doses are by mouth, and why."""
    doses, seen = table.is_dose, ~table.is_dose & (table.endpoint == 0)
    if (table.duration[doses] > 0).any() or np.isnan(table.duration[doses]).any():
        return False, "doses have a rate or a duration, and are taken as infusions"
    into, observed = set(table.compartment[doses].tolist()), set(table.compartment[seen].tolist())
    if into == {0} and 1 in observed:
        return True, "doses go into compartment 1 and 2 is observed, so they are taken as by mouth"
    frame = pd.DataFrame({"subject": table.subject, "clock": table.clock, "dv": table.dv})
    second = frame[doses].groupby("subject")["clock"].nth(1)
    until = frame.loc[second.index].set_index("subject")["clock"]
    first = frame[seen & ~table.censored].sort_values(["subject", "clock"], ignore_index=True)
    first = first[first["clock"] <= first["subject"].map(until).fillna(np.inf)]
    of_subject = first.groupby("subject")["dv"]
    later = (of_subject.max() > _RISE * of_subject.first())[of_subject.size() >= 3]
    if len(later) and later.mean() > 0.5:
        count = f"{int(later.sum())} of {len(later)} subjects"
        return True, f"levels rise after the first dose in {count}, so it is taken as by mouth"
    return False, "levels fall from the first one on, so doses are taken as boluses"


def _covariates(sheet: Sheet, how: Format, table: EventTable) -> list[Covariate]:
    """Of the columns that have no role and differ between subjects."""
    taken = {sheet.named(role) for role in _ROLES} | set(how.keep)
    by_subject = sheet.frame.groupby(sheet.frame[sheet.named("id")].astype(str), sort=False)
    found = list[Covariate]()
    for column in map(str, sheet.frame):
        if column in taken or meaning(column) is not None or says_kind(column):
            continue
        first = by_subject[column].first().dropna()
        name = re.sub(r"\W+", "_", column.strip().lower()).strip("_")
        if first.nunique() < _LEAST_SUBJECTS or not re.match(r"[a-z]", name) or len(first) < len(table.ids):
            continue
        made = _covariate(name, column, first)
        if made is not None and made.name not in {one.name for one in found}:
            found.append(made)
    return found


_ROLES = ("id", "time", "date", "amt", "rate", "duration", "dv", "evid", "mdv", "addl", "ii", "ss", "cmt")


def _covariate(name: str, column: str, first: pd.Series) -> Covariate | None:
    """From the first value of each subject; None of a text of many kinds."""
    numeric = first.dtype.kind in "iufb"
    kinds = first.value_counts()
    if not numeric or (len(kinds) <= 2 and set(kinds.index) <= {0, 1, 2}):
        if len(kinds) > _MOST_CATEGORIES:
            return None
        texts = sorted(str(_plain(kind)) for kind in kinds.index)
        codes = {text: float(text) if numeric else float(code) for code, text in enumerate(texts)}
        usual = codes[str(_plain(kinds.index[0]))]
        return Covariate(name, column, usual, max(1.0, *codes.values()), "-", codes)
    scale = float(f"{first.abs().max():.1g}") or 1.0
    return Covariate(name, column, float(f"{first.median():.2g}"), scale, _UNITS.get(name, "-"), {})


def _begin(look: _Look) -> dict[str, float]:
    """Where typical parameters may begin: by the highest level, and the area under levels."""
    table, units = look.table, look.units
    volume = apparent_volume(table, units)
    volume = volume if np.isfinite(volume) else 1.0
    per_litre = factor(units.level, f"{units.amount}/L") or 1.0
    seen = ~table.is_dose & ~table.censored & (table.endpoint == 0)
    frame = pd.DataFrame({"subject": table.subject, "clock": table.clock, "dv": table.dv})[seen]
    frame = frame.sort_values(["subject", "clock"])
    of_subject = frame.groupby("subject")
    steps = of_subject["clock"].diff() * (frame["dv"] + of_subject["dv"].shift()) / 2
    area = steps.groupby(frame["subject"]).sum() * per_litre
    given = pd.Series(table.amount[table.given]).groupby(table.subject[table.given]).sum()
    ratio = (given / area).replace([np.inf, -np.inf], np.nan).dropna()
    ratio = ratio[ratio > 0]
    found = {"CL": float(ratio.median()) if len(ratio) else volume / 10, "V1": volume}
    found |= {"KA": units.hours} if look.oral else {}  # 1/h
    if look.second is not None:
        found = look.second.begin(found)
    return {name: float(f"{value:.2g}") for name, value in found.items()}


def _quoted(text: object) -> str:
    """As YAML reads it back as a text."""
    plain = str(text)
    if re.fullmatch(r"[A-Za-z][\w/^ .-]*", plain) and plain.lower() not in _WORDS:
        return plain.strip()
    return "'" + plain.replace("'", "''") + "'"


_WORDS = ("yes", "no", "on", "off", "true", "false", "null", "y", "n", "nan", "inf")


def _listed(values: Sequence[object]) -> str:
    return ", ".join(_quoted(v) if isinstance(v, str) else f"{v}" for v in values)


def _written(look: _Look, name: str) -> str:
    """The file."""
    oral = "_oral" * look.oral
    named = ", ".join(f"{kind}: {_quoted(getattr(look.units, kind))}" for kind in ("time", "amount", "level"))
    check = f"   # {' and '.join(look.assumed)}: assumed, check" if look.assumed else ""
    begin = _begin(look)
    lines = [
        f"# A start for {look.path.name}. `medcm help nonmem` shows what else can be said.",
        "defaults:",
        "  - drug",
        *_of_model(look, oral),
        "  - override /error: combined_variances   # or proportional, additive, log_normal, power",
        "  - _self_",
        "",
        f"study: {_quoted(name)}",
        "dataset:",
        f"  path: {_quoted(str(look.path))}",
        f"  name: {_quoted(name)}",
        f"  units: {{{named}}}{check}",
        *_of_table(look),
        *([] if look.second is None else look.second.lines(list(begin))),
        *_of_occasions(look),
        "network:",
        "  equations:",
    ]
    weight = next((one for one in look.covariates if _UNITS.get(one.name) == "kg"), None)
    for parameter, value in begin.items():
        power = {"CL": 0.75, "V1": 1}.get(parameter)
        as_well = (
            f"   # or {{typical: {value:g}, {weight.name}: {{power: {power}}}}}" if weight and power else ""
        )
        lines.append(f"    {parameter}: {{typical: {value:g}}}{as_well}")
    varying = [name for name in begin if look.second is None or name not in look.second.alike]
    lines.append(f"random_effects: [{', '.join(varying)}]")
    return "\n".join(lines) + "\n"


def _of_model(look: _Look, oral: str) -> list[str]:
    """Which of conf/pk, and why."""
    if look.second is None:
        return [
            f"  # {look.why}; another model: two_compartment{oral}, with Q and V2",
            f"  - override /pk: one_compartment{oral}",
        ]
    return [
        f"  # {look.why};",
        f"  # {look.second.why}",
        f"  - override /pk: {look.second.choice}",
    ]


def _of_occasions(look: _Look) -> list[str]:
    """What varies between the occasions of a subject, where some have several."""
    table = look.table
    of_subject = pd.Series(table.occasion).groupby(table.subject)
    several = of_subject.max() > of_subject.min()
    if not several.any():
        return []
    return [
        f"occasions: {{parameters: [CL], column: {_quoted(look.occasion)}}}"
        f"   # {int(several.sum())} of {len(table.ids)} subjects have several; or null"
    ]


def _of_table(look: _Look) -> list[str]:
    """What of ``dataset`` stands there only where it is needed."""
    table, lines = look.table, []
    for option, entries in (("columns", look.how.columns), ("dialect", look.how.dialect)):
        if entries:
            inside = ", ".join(f"{k}: {'null' if v is None else _quoted(v)}" for k, v in entries.items())
            lines.append(f"  {option}: {{{inside}}}")
    if look.how.keep:
        kept = ", ".join(f"{_quoted(column)}: [{_listed(of)}]" for column, of in look.how.keep.items())
        lines.append(f"  keep: {{{kept}}}")
    if table.censored.any():
        lines.append(f"  blq: M3   # {int(table.censored.sum())} observations lie beyond a limit; or M1, M4")
    first = pd.Series(table.clock[table.is_dose]).groupby(table.subject[table.is_dose]).min()
    seen = ~table.is_dose
    if (table.clock[seen] < pd.Series(table.subject[seen]).map(first).fillna(np.inf).to_numpy()).any():
        lines.append("  predose_observations: keep   # there are some before the first dose")
    if look.covariates:
        lines += ["  covariates:", *(f"    {one.entry}" for one in look.covariates)]
    return lines
