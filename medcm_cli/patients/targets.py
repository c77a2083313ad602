"""What a regimen is to reach between two doses: as text, and whether levels reach it."""

import re
from dataclasses import dataclass

from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.patients.measures import area, time_above
from medcm_cli.runs import Units

FORMS = (
    "'trough>=1 mg/L', 'peak<=20 mg/L', 'auc>=400 mg/L*h', 'time_above(5 mg/L)>=20 h' or "
    "'time_above(5 mg/L)>=80 %'"
)
_NUMBER, _UNIT = r"\s*([0-9.]+(?:e[-+]?\d+)?)", r"\s*([^\d\s<>=()][^\d<>=()]*?)\s*"
_LEVEL = re.compile(rf"\s*(trough|peak|auc)\s*(>=|<=){_NUMBER}{_UNIT}", re.IGNORECASE)
_ABOVE = re.compile(rf"\s*(time_above)\s*\({_NUMBER}{_UNIT}\)\s*(>=|<=){_NUMBER}{_UNIT}", re.IGNORECASE)
_LARGEST = 1e9  # of a number in a target, in any unit
_SLACK = 1e-5  # of a limit; what single precision may round


@dataclass(frozen=True)
class Target:
    """A measure of an interval between doses that is to be at ``least`` or else at most ``limit``.

    ``kind``: ``trough``, the level just before the next dose; ``peak``, the highest one; ``auc``; or
    ``time_above`` a ``threshold``. Levels are in the unit that the study reports; times in that of its data,
    or a fraction of the interval where ``share``. ``text``: as it was asked for.
    """

    text: str
    kind: str
    least: bool
    limit: float
    threshold: float = 0.0
    share: bool = False

    def bound(self, every: float) -> float:
        """The limit for an interval of ``every``: a level in the reported unit, or a time."""
        return self.limit * every if self.share else self.limit

    def met(self, level: Tensor, clock: Tensor, every: float) -> Tensor:
        """Whether an interval of ``every`` meets it.

        :param level: (T, S, N, B), from one dose to the next. :param clock: (T, N).
        :returns: (S, N, B).
        """
        measure, bound = self.measure(level, clock), self.bound(every)
        return measure >= bound * (1 - _SLACK) if self.least else measure <= bound * (1 + _SLACK)

    def measure(self, level: Tensor, clock: Tensor) -> Tensor:
        """What it limits: a level in the reported unit, this times the unit of time, or a time.

        :param level: (T, S, N, B), from one dose to the next. :param clock: (T, N).
        :returns: (S, N, B).
        """
        if self.kind == "trough":
            return level[-1]
        if self.kind == "peak":
            return level.amax(0)
        if self.kind == "auc":
            return area(level, clock)
        return time_above(level, clock, self.threshold)


def read_target(text: str, units: Units) -> Target:
    """A target from its text, in any unit that can be converted into those of a study.

    :raises InputError: it says nothing of the kind, or a unit that is not known or of another kind.
    """
    plain = text.replace("≥", ">=").replace("≤", "<=")
    if above := _ABOVE.fullmatch(plain):
        _, threshold, unit, sign, number, of = above.groups()
        limit = _number(text, number) * (
            0.01 if of == "%" else _factor(text, of, units.time_in(of), units.time)
        )
        if of == "%" and limit > 1:
            raise InputError(f"target {text!r}: asks for more than 100 % of the interval")
        level = _number(text, threshold) * _factor(text, unit, units.level_in(unit), units.reported)
        return Target(text, "time_above", sign == ">=", limit, level, of == "%")
    parts = _LEVEL.fullmatch(plain)
    if parts is None:
        raise InputError(f"target {text!r} is not understood; expected one such as {FORMS}")
    kind, sign, number, unit = parts.groups()
    if kind.lower() == "auc":
        factor = _factor(text, unit, units.area_in(unit), f"{units.reported}*{units.time}")
    else:
        factor = _factor(text, unit, units.level_in(unit), units.reported)
    return Target(text, kind.lower(), sign == ">=", _number(text, number) * factor)


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError as error:
        raise InputError(f"target {text!r}: {number} is no number; expected one such as {FORMS}") from error
    if not 0 < value <= _LARGEST:
        raise InputError(f"target {text!r}: expected numbers above 0, to {_LARGEST:g}")
    return value


def _factor(text: str, unit: str, factor: float | None, wanted: str) -> float:
    """What one ``unit`` is in the ``wanted`` one."""
    if factor is None:
        raise InputError(f"target {text!r}: {unit} cannot be converted into {wanted}; expected such a unit")
    return factor
