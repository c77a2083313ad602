"""Names of columns that look as if they meant something and are not used: refused where the table would mean
something else with them, and told where they may be misspelt."""

import re
import shlex
from collections.abc import Collection

from medcm_cli.checks import as_option
from medcm_cli.data.sheet import Sheet
from medcm_cli.errors import InputError

# What a column can be, as NONMEM names them.
ROLES = (
    *("id", "time", "date", "amt", "rate", "duration", "dv", "evid", "mdv"),
    *("addl", "ii", "ss", "cmt", "occ", "cens", "lloq"),
)
# What else the field calls a role, without regard to case, blanks, punctuation and a unit in brackets.
_SYNONYMS = {
    "date": ("dat1", "dat2", "dat3"),
    "amt": ("amount", "dose", "dosage"),
    "rate": ("infusionrate", "infrate", "rateinf"),
    "duration": ("dur", "tinf", "tinfusion", "infdur", "inftime", "infusiontime", "infusionduration"),
    "addl": ("additional", "additionaldoses", "adddoses", "nadd"),
    "ii": ("tau", "interval", "doseinterval", "dosinginterval", "interdoseinterval"),
    "ss": ("steadystate", "ssflag"),
    "cmt": ("compartment", "comp", "adm"),
    "evid": ("eventid",),
    "mdv": ("missingdv",),
    "cens": ("blq", "bql", "bloq", "blqflag", "bqlflag", "censored", "censoring", "cens1"),
    "lloq": ("loq", "lod", "limit", "blqlimit", "quantificationlimit"),
    "occ": ("occasion",),
}
_HARMLESS = (
    "date",
    "ii",
    "occ",
    "evid",
    "mdv",
)  # without which a table that needs them is refused, or nothing changes
_KINDS = ("dvid", "ytype", "dvtype")  # of observations, of which a model has one


def meaning(name: object) -> str | None:
    """The role that a column's name stands for in the field, None where for none."""
    plain = _plain(name)
    if plain in ROLES:
        return plain
    return next((role for role, others in _SYNONYMS.items() if plain in others), None)


def says_kind(name: object) -> bool:
    """Whether a column tells kinds of observations apart."""
    return _plain(name) in _KINDS


def unused(sheet: Sheet, used: Collection[str | None]) -> tuple[str, ...]:
    """A line for each column that looks like one that is used, or like a role that another has.

    :param used: columns that are.
    :raises InputError: a column looks like a role that the file has no column for, and is not used.
    """
    lines, known = [], (*ROLES, *sorted(filter(None, used)))
    for name in sheet.frame:
        if name in used:
            continue
        role = meaning(name)
        if role is not None and role in sheet.columns and sheet.columns[role] is None:
            continue
        if role is not None and not sheet.has(role) and role not in _HARMLESS:
            raise InputError(
                f"{sheet.source}: column {name!r} is not used, and looks like {role!r}; rename it, or say "
                f"{as_option('dataset.columns', **{role: name})}, or {{{role}: null}} to do without it "
                f"(--column {shlex.quote(f'{role}={name}')} of `medcm data check`)"
            )
        near = role or next((of for of in known if _near(_plain(name), _plain(of))), None)
        if near is not None:
            lines.append(f"{sheet.source}: column {str(name)!r} is not used; it looks like {near!r}")
    return tuple(lines)


def _plain(name: object) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\(.*?\)|\[.*?\]", "", str(name).lower()))


def _near(one: str, other: str) -> bool:
    """Whether words differ by a letter too many or too few, by two that changed places, or, of long ones, by
    another letter: RACE is no misspelt RATE."""
    if one == other or min(len(one), len(other)) < 3 or abs(len(one) - len(other)) > 1:
        return False
    if len(one) != len(other):
        short, long = sorted((one, other), key=len)
        return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))
    wrong = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    swapped = len(wrong) == 2 and wrong[1] == wrong[0] + 1
    swapped = swapped and one[wrong[0]] == other[wrong[1]] and one[wrong[1]] == other[wrong[0]]
    return swapped or (len(wrong) == 1 and len(one) > 4)
