"""The units of a data set: checked, and what follows from them filled in."""

import re
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from medcm_cli import quantities
from medcm_cli.checks import number, shown
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.units import REPORTED, THRESHOLDS, UNITS
from medcm_cli.study.identity import Config, full_units

if TYPE_CHECKING:
    from medcm_cli.runs import Units

MOST_LEVEL = 1e9  # of a threshold, in any unit
_CLOSE = 1e-6  # of a factor that is given; how far it may lie from the one that follows


def with_units(config: Config) -> dict[str, Any]:
    """A configuration with ``dataset.level_unit``, ``dataset.level_scale`` and ``pk.amount_per_level`` where
    they are null, and follow from ``dataset.units``. One that has no such option, as records of before, stays
    as it is.

    :raises InputError: a unit that does not exist, or what is given contradicts the units.
    """
    dataset, pk = dict(config["dataset"]), dict(config["pk"])
    if dataset.get("units") is None:
        before = {"level_unit": REPORTED[UNITS["level"]], "level_scale": 100}
        missing = [f"dataset.{name}" for name in before if dataset.get(name, 0) is None]
        missing += ["pk.amount_per_level"] if pk.get("amount_per_level", 0) is None else []
        if missing:
            raise InputError(f"{missing[0]} is null and there is no dataset.units; expected {_EXAMPLE}")
        return {**config, "dataset": {**before, **dataset}}
    units = checked(dataset["units"])
    if dataset.get("path") is None and units != UNITS:
        made = ", ".join(f"{kind}: {unit}" for kind, unit in UNITS.items())
        raise InputError(
            f"dataset.units is {units}, but without dataset.path patients are made whose units are {{{made}}}"
        )
    unit = dataset.get("level_unit")
    if unit is None:
        unit = REPORTED.get(units["level"], units["level"])
    if not isinstance(unit, str):
        raise InputError(f"dataset.level_unit is {unit!r}; expected a text")
    factor, given = quantities.factor(units["level"], unit), dataset.get("level_scale")
    scale = _agreed("dataset.level_scale", given, factor, units["level"], unit)
    dataset |= {"units": units, "level_unit": unit, "level_scale": scale}
    if "amount_per_level" in pk:
        per_litre = quantities.factor(units["level"], f"{units['amount']}/L")
        words = units["level"], f"{units['amount']}/L"
        pk["amount_per_level"] = _agreed("pk.amount_per_level", pk["amount_per_level"], per_litre, *words)
    return {**config, "dataset": dataset, "pk": pk}


def without_derived(config: Config) -> dict[str, Any]:
    """A complete configuration with null in place of what follows from its units (``with_units``). One of
    before that says none has those that it was of, where these are known."""
    dataset, pk = dict(config["dataset"]), dict(config["pk"])
    if dataset.get("units") is None:
        known = (dataset["level_unit"], dataset["level_scale"]) == (REPORTED[UNITS["level"]], 100)
        dataset["units"] = dict(UNITS) if known and pk.get("amount_per_level", 1000) == 1000 else None
    units = dataset["units"]
    if units is not None:
        level, amount = units["level"], units["amount"]
        if dataset["level_scale"] == quantities.factor(level, dataset["level_unit"]):
            dataset["level_scale"] = None
        if dataset["level_unit"] == REPORTED.get(level, level):
            dataset["level_unit"] = None
        if pk.get("amount_per_level") == quantities.factor(level, f"{amount}/L"):
            pk["amount_per_level"] = None
    return {**config, "dataset": dataset, "pk": pk}


def checked(given: object) -> dict[str, str]:
    """Units of time, amount and level, each by its name; one that is null or not given is that of ``UNITS``.

    :raises InputError: one that is not known, or of another kind.
    """
    if not isinstance(given, Mapping) or set(given) - set(UNITS):
        raise InputError(f"dataset.units is {given!r}; expected time, amount and level, as in {_EXAMPLE}")
    units = full_units(given)
    for kind, unit in units.items():
        if not isinstance(unit, str) or not unit.strip():
            raise InputError(f"dataset.units.{kind} is {unit!r}; expected a unit, as in {_EXAMPLE}")
    units = {kind: unit.strip() for kind, unit in units.items()}
    quantities.check_time("dataset.units.time", units["time"])
    quantities.define_amount(units["amount"])
    if quantities.factor(units["amount"], "L") or quantities.factor(units["amount"], "h"):
        raise InputError(
            f"dataset.units.amount is {units['amount']!r}; expected an amount, such as mg or mmol"
        )
    if quantities.parsed(units["level"]) is None and "/" in units["level"]:
        raise InputError(
            f"dataset.units.level is {units['level']!r}, which is not known; expected an amount per "
            f"volume, such as {units['amount']}/L or {units['amount']}/mL"
        )
    return units


def thresholds_of(dataset: Config) -> tuple[float, ...]:
    """The levels, in the reported unit, above which predictions say how long a patient is; none of those of a
    choice (conf/dataset) whose units were replaced by others.

    :raises InputError: one that is no level, or cannot be converted.
    """
    from medcm_cli.runs import Units  # pandas and pyarrow, which help need not wait for

    said, units = dataset["thresholds"], Units.of(dataset)
    of_choice = isinstance(said, list | tuple) and tuple(said) == THRESHOLDS
    if said is None or (of_choice and level_of(THRESHOLDS[0], units) is None):
        return ()
    where = "dataset.thresholds"
    if not isinstance(said, list | tuple):
        raise InputError(f"{where} is {shown(said)}; expected a list of levels, as in [5 {units.reported}]")
    for text in said:
        if _plain(text) is not None:
            raise InputError(
                f"{where} has {shown(text)}; expected levels with a unit, as in [5 {units.reported}]"
            )
    return tuple(threshold_of(where, text, units) for text in said)


def threshold_of(where: str, said: object, units: "Units") -> float:
    """A level in the reported unit: a number of it, or a text with a unit, such as 5 mg/L.

    :param where: that says it. :raises InputError: it is none, or its unit is another kind of thing.
    """
    level = _plain(said) or level_of(said, units)
    if level is None or not 0 < level <= MOST_LEVEL:
        example = f"5 {units.reported}" if where.startswith("--") else f"[5 {units.reported}]"
        what = f"expected levels above 0 with a unit that converts into {units.reported}"
        raise InputError(f"{where} has {shown(said)}; {what}, as in {example}")
    return level


def _plain(said: object) -> float | None:
    """A number without a unit, None of what is none."""
    if isinstance(said, bool) or not isinstance(said, Real | str):
        return None
    try:
        return float(said)
    except ValueError:
        return None


def level_of(text: object, units: "Units") -> float | None:
    """A level such as 5 mg/L in the reported unit, None of what is none."""
    parts = re.fullmatch(r"\s*([0-9.]+(?:e[-+]?\d+)?)\s*(\D.*?)\s*", text) if isinstance(text, str) else None
    factor = units.level_in(parts[2]) if parts else None
    try:
        return None if parts is None or factor is None else float(f"{float(parts[1]) * factor:.12g}")
    except ValueError:
        return None


def _agreed(option: str, given: object, derived: float | None, one: str, other: str) -> float:
    """A factor as it is given or, where it is null, as it follows from the units.

    :param derived: how many ``other`` one ``one`` is, None where that does not follow.
    """
    if given is None and derived is None:
        raise InputError(
            f"{option} must be given: how many {other} one {one} is does not follow from dataset.units; "
            "expected units of one kind, or the number"
        )
    if given is None:
        assert derived is not None
        return int(derived) if derived == int(derived) else derived  # as conf/ has had it, and hashes have
    value = number(option, given, above=0, most=1e12)
    if derived is not None and abs(value - derived) > _CLOSE * derived:
        raise InputError(
            f"{option} is {value:g}, but one {one} is {derived:g} {other}; leave it out, or say the units of "
            "the event table with dataset.units"
        )
    return value


_EXAMPLE = "dataset.units={time: h, amount: mg, level: ng/mL}"
