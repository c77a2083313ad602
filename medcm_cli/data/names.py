"""Names of columns that look as if they meant something and are not used: refused where the table would mean
something else with them, and told where they may be misspelt."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence

from medcm_cli.checks import as_option
from medcm_cli.data.sheet import Sheet
from medcm_cli.errors import InputError

# What a column can be, as NONMEM names them.
ROLES = (
    *("id", "time", "date", "amt", "rate", "duration", "dv", "evid", "mdv"),
    *("addl", "ii", "ss", "cmt", "occ", "cens", "lloq", "uloq"),
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
    "uloq": ("ulq", "upperlimit"),
    "occ": ("occasion",),
}
_HARMLESS = (
    "date",
    "ii",
    "occ",
    "evid",
    "mdv",
)  # without which a table that needs them is refused, or nothing changes
# What else may be one of the roles without which there is no table, as a suggestion where it is missing.
_PERHAPS = {
    "id": "patient patientid patid pat patnr subject subjectid subjid usubjid",
    "time": "hours hour zeit uhrzeit t heure hora tijd",
    "amt": "dosis menge",
    "dv": "conc concentration konz konzentration level spiegel cp obs observation y",
}
_KINDS = ("dvid", "ytype", "dvtype")  # of observations, of which a model has one


def meaning(name: object) -> str | None:
    """The role that a column's name stands for in the field, None where for none."""
    plain = _plain(name)
    if plain in ROLES:
        return plain
    return next((role for role, others in _SYNONYMS.items() if plain in others), None)


def check_present(
    sheet: Sheet,
    covariates: Mapping[str, str],
    options: Mapping[str, Sequence[str]],
    patients: bool,
    doses: bool = True,
) -> None:
    """All columns without which there is no table are there.

    :param covariates: name -> column of those that are needed.
    :param options: covariate -> the option that names its column, where it is not its own.
    :param patients: who may have no dose. :param doses: whether there are any.
    :raises InputError: names all that are not, and the options that say what they are called.
    """
    kinds = sheet.has("evid") or sheet.has("mdv")
    amount = ("amt",) if doses and not sheet.has("rate") and not (patients and kinds) else ()
    roles = [role for role in ("id", "time", *amount, "dv") if sheet.named(role) not in sheet.frame]
    others = [name for name, column in covariates.items() if column not in sheet.frame]
    if not roles and not others:
        return
    columns = [*(sheet.named(role) or role for role in roles), *(covariates[name] for name in others)]
    if patients:
        raise sheet.absent(*columns, says="expected those of the study's data")
    free = [name for name in sheet.frame if name not in {sheet.named(role) for role in ROLES}]
    named = {role: next((str(n) for n in free if _may_be(n, role)), "NAME") for role in roles}
    ways = [as_option("dataset.columns", **named)] if roles else []
    paths = [options.get(name, ("covariates", name, "column")) for name in others]
    ways += [as_option("dataset", *path, **{last: "NAME"}) for *path, last in paths]
    says = f"{' '.join(ways)} says which {'they are' if len(columns) > 1 else 'it is'}"
    says += "; network=none reads no covariate" if others else ""
    raise sheet.absent(*columns, says=says + (f" ({flag(named)})" if named else ""))


def flag(named: Mapping[str, str]) -> str:
    """The flags of ``medcm data check`` that say what columns of roles are called."""
    flags = " ".join(f"--column {shlex.quote(f'{role}={name}')}" for role, name in named.items())
    return f"{flags} of `medcm data check`"


def _may_be(name: object, role: str) -> bool:
    return meaning(name) == role or _plain(name) in _PERHAPS[role].split()


def says_kind(name: object) -> bool:
    """Whether a column tells kinds of observations apart."""
    return _plain(name) in _KINDS


def unused(sheet: Sheet, used: Collection[str | None]) -> tuple[str, ...]:
    """A line for each column that looks like one that is used, or like a role that another has.

    :param used: columns that are.
    :raises InputError: a column looks like a role that the file has no column for, and is not used.
    """
    lines, known = [], (*ROLES, *sorted(filter(None, used)))
    strange: dict[str, str] = {}
    for name in sheet.frame:
        if name in used:
            continue
        role = meaning(name)
        if role is not None and role in sheet.columns and sheet.columns[role] is None:
            continue
        if role is not None and not sheet.has(role) and role not in _HARMLESS:
            strange.setdefault(role, str(name))
            continue
        near = role or next((of for of in known if _near(_plain(name), _plain(of))), None)
        if near is not None:
            lines.append(f"{sheet.source}: column {str(name)!r} is not used; it looks like {near!r}")
    if strange:
        raise _unused(sheet, strange)
    return tuple(lines)


def _unused(sheet: Sheet, strange: Mapping[str, str]) -> InputError:
    """The error for columns that look like roles. :param strange: role -> column."""
    looks = [f"column {name!r} is not used, and looks like {role!r}" for role, name in strange.items()]
    without = ", ".join(f"{role}: null" for role in strange)
    return InputError(
        f"{sheet.source}: {'; '.join(looks)}; rename {'them' if len(strange) > 1 else 'it'}, or say "
        f"{as_option('dataset.columns', **strange)}, or {{{without}}} to do without "
        f"{'them' if len(strange) > 1 else 'it'} ({flag(strange)})"
    )


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
