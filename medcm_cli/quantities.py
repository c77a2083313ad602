"""Units by their names: which there are, and what one is in another. The door to pint, which takes a while to
import and so waits until a unit is asked for."""

import functools
import re
from typing import TYPE_CHECKING, Any

from medcm_cli.errors import InputError

if TYPE_CHECKING:
    import pint

HOUR = "h"
# pint's own registry knows a thousand units, of which a misspelt one easily hits another: minute, year, inch.
_DEFINED = (
    "pico- = 1e-12 = p-",
    "nano- = 1e-9 = n-",
    "micro- = 1e-6 = u- = µ- = μ- = mc-",
    "milli- = 1e-3 = m-",
    "centi- = 1e-2 = c-",
    "deci- = 1e-1 = d-",
    "kilo- = 1e3 = k-",
    "gram = [mass] = g",
    "mole = [substance] = mol",
    "liter = [volume] = L = l",
    "second = [time] = s = sec",
    "minute = 60 * second = min",
    "hour = 60 * minute = h = hr",
    "day = 24 * hour = d",
    "week = 7 * day = wk",
)
# Of biological activity, what a substance does in an assay: U, with letters before it that say which. Two of
# them, or one and a mass, have no factor but that of the substance: each is a kind of its own. A million is a
# capital M, which is no prefix here: a milli of it would be taken for one.
_ACTIVITY = re.compile(r"(?:[pnumcdkµμ]|mc)?([A-Z]{0,4}U|[A-Za-z]?[Uu])")
# Levels of a usual size, of the amounts in which doses are given: where a residual error begins. Of every
# other amount it is one in a mL.
_USUAL = {"[mass]": "mg/L", "[substance]": "umol/L"}
_WORD = re.compile(r"[A-Za-zµμ_]+")
_PRODUCT = re.compile(rf"(1 ?/ ?)?{_WORD.pattern}( ?[*/ ] ?{_WORD.pattern})*")


@functools.cache
def _registry() -> "pint.UnitRegistry[Any]":
    import pint

    registry: pint.UnitRegistry[Any] = pint.UnitRegistry(None)
    for line in _DEFINED:
        registry.define(line)
    return registry


@functools.cache
def parsed(text: str) -> "pint.Unit | None":
    """The unit of this name, in whatever case where that leaves no doubt, None where there is none such."""
    import pint

    plain = text.strip().replace("·", "*").replace(".", "*")
    if not _PRODUCT.fullmatch(plain):  # pint's parser takes arithmetic too
        return None
    for word in _WORD.findall(plain):
        _define_activity(word)
    for sensitive in (True, False):
        try:
            return _registry().parse_units(plain, case_sensitive=sensitive)
        except pint.UndefinedUnitError:
            continue
    return None


def _define_activity(word: str) -> None:
    found = _ACTIVITY.fullmatch(word)
    if found and (name := found[1].upper()) not in _registry():
        _registry().define(f"{name} = [activity_of_{name}]")


def define_amount(text: str) -> None:
    """Make an amount's unit known that is none of those known, such as copies or cells: of a kind of its own.

    :raises InputError: it is no single word.
    """
    if parsed(text) is not None:
        return
    if not _WORD.fullmatch(text):
        raise InputError(
            f"dataset.units.amount is {text!r}; expected the unit of AMT in one word, such as mg or mmol"
        )
    _registry().define(f"{text} = [amount_of_{text}]")
    parsed.cache_clear()


def factor(one: str, other: str) -> float | None:
    """How many of ``other`` one of ``one`` is; None where the two are of different kinds, or not known.

    >>> factor("mg/L", "ng/mL")
    1000.0
    """
    if one == other:
        return 1.0
    units = parsed(one), parsed(other)
    if units[0] is None or units[1] is None or units[0].dimensionality != units[1].dimensionality:
        return None
    # Definitions are decimal: what binary numbers add in the last digits is left out.
    return float(f"{_registry().Quantity(1.0, units[0]).to(units[1]).magnitude:.15g}")


def hours(time: str) -> float:
    """How many hours a unit of time is."""
    found = factor(time, HOUR)
    assert found is not None, time  # of a data set it is checked
    return found


def check_time(option: str, text: str) -> None:
    """A unit of time. :raises InputError: it is none."""
    if not factor(text, HOUR):
        raise InputError(f"{option} is {text!r}; expected a unit of time: h, min, s, d or week")


def usual_level(amount: str, level: str) -> float:
    """How many of its unit a level of a usual size is."""
    unit = parsed(amount)
    kind = "" if unit is None else str(unit.dimensionality)
    return factor(_USUAL.get(kind, f"{amount}/mL"), level) or 1.0
