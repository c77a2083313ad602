"""What a regimen is to reach between two doses: as text, and whether levels reach it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.patients.measures import area, time_above

FORMS = (
    "'trough>=0.01 IU/mL', 'peak<=150 IU/dL', 'auc>=10 IU/mL*h', 'time_above(0.05 IU/mL)>=20 h' "
    "or 'time_above(5 IU/dL)>=80 %'"
)
_NUMBER, _UNIT = r"([0-9.]+(?:e[-+]?\d+)?)", r"([a-zA-Z%µ]+(?:/[a-zA-Z]+)?)"
_LEVEL = re.compile(rf"(trough|peak)(>=|<=){_NUMBER}{_UNIT}", re.IGNORECASE)
_AUC = re.compile(rf"(auc)(>=|<=){_NUMBER}{_UNIT}\*h", re.IGNORECASE)
_ABOVE = re.compile(rf"(time_above)\({_NUMBER}{_UNIT}\)(>=|<=){_NUMBER}(h|%)", re.IGNORECASE)
_LARGEST = 1e9  # of a number in a target, in any unit
_SLACK = 1e-5  # of a limit; what single precision may round
_PER_LEVEL = {"IU/mL": 0.01, "IU/dL": 1.0}


@dataclass(frozen=True)
class Target:
    """A measure of an interval between doses that is to be at ``least`` or else at most ``limit``.

    ``kind``: ``trough``, the level just before the next dose; ``peak``, the highest one; ``auc``; or
    ``time_above`` a ``threshold``. Levels are in the unit that the study reports; hours, or a fraction of the
    interval where ``share``. ``text``: as it was asked for.
    """

    text: str
    kind: str
    least: bool
    limit: float
    threshold: float = 0.0
    share: bool = False

    def bound(self, every: float) -> float:
        """The limit for an interval of ``every`` h: levels in the reported unit, or hours."""
        return self.limit * every if self.share else self.limit

    def met(self, level: Tensor, clock: Tensor, every: float) -> Tensor:
        """Whether an interval of ``every`` h meets it.

        :param level: (T, S, N, B), from one dose to the next. :param clock: (T, N), h.
        :returns: (S, N, B).
        """
        measure, bound = self.measure(level, clock), self.bound(every)
        return measure >= bound * (1 - _SLACK) if self.least else measure <= bound * (1 + _SLACK)

    def measure(self, level: Tensor, clock: Tensor) -> Tensor:
        """What it limits: a level in the reported unit, this times h, or hours.

        :param level: (T, S, N, B), from one dose to the next. :param clock: (T, N), h.
        :returns: (S, N, B).
        """
        if self.kind == "trough":
            return level[-1]
        if self.kind == "peak":
            return level.amax(0)
        if self.kind == "auc":
            return area(level, clock)
        return time_above(level, clock, self.threshold)


def units_of(unit: str, in_file: str, scale: float) -> dict[str, float]:
    """Unit of a level -> what one is in the unit that a study reports.

    :param in_file: the unit of the study's event tables, ``scale`` of the reported ones each.
    """
    known = {in_file: scale}
    if unit in _PER_LEVEL:
        known = {name: _PER_LEVEL[unit] / of_one for name, of_one in _PER_LEVEL.items()}
    return known | {unit: 1.0}


def read_target(text: str, units: Mapping[str, float]) -> Target:
    """A target from its text.

    :param units: see ``units_of``. :raises InputError: it says nothing of the kind, with what it may say.
    """
    plain = "".join(text.split()).replace("≥", ">=").replace("≤", "<=")
    if above := _ABOVE.fullmatch(plain):
        _, threshold, unit, sign, number, of = above.groups()
        limit = _number(text, number) / (100 if of == "%" else 1)
        if of == "%" and limit > 1:
            raise InputError(f"target {text!r}: asks for more than 100 % of the interval")
        level = _number(text, threshold) * _factor(text, unit, units)
        return Target(text, "time_above", sign == ">=", limit, level, of == "%")
    parts = _LEVEL.fullmatch(plain) or _AUC.fullmatch(plain)
    if parts is None:
        raise InputError(f"target {text!r} is not understood; expected one such as {FORMS}")
    kind, sign, number, unit = parts.groups()
    return Target(text, kind.lower(), sign == ">=", _number(text, number) * _factor(text, unit, units))


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError as error:
        raise InputError(f"target {text!r}: {number} is no number; expected one such as {FORMS}") from error
    if not 0 < value <= _LARGEST:
        raise InputError(f"target {text!r}: expected numbers above 0, to {_LARGEST:g}")
    return value


def _factor(text: str, unit: str, units: Mapping[str, float]) -> float:
    for name, factor in units.items():
        if name.lower() == unit.lower():
            return factor
    raise InputError(f"target {text!r}: unknown unit {unit}; expected {' or '.join(units)}")
