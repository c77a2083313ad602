"""Coefficients of equations: numbers that are known, or estimated between bounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medcm_cli.checks import number, shown
from medcm_cli.errors import InputError

_OPTIONS = ("initial", "fixed", "lower", "upper")


@dataclass(frozen=True)
class Coefficient:
    """``name`` as reported; ``begin``, its value, or where it begins if it is ``estimated``; ``lower`` and
    ``upper``, which it stays between; ``step``, how far a change of 1 of what is trained moves it where it
    has no bound; ``unit`` as a pattern (``PkModel.units``)."""

    name: str
    begin: float
    estimated: bool
    lower: float = -math.inf
    upper: float = math.inf
    step: float = 1.0
    unit: str = "-"

    @property
    def trained(self) -> str:
        """The name of what is trained, which is 0 at the beginning."""
        return f"global.{self.name}"

    def over(self, factor: float) -> "Coefficient":
        """The same of a value that is divided by a factor above 0."""
        begin, lower, upper = (value / factor for value in (self.begin, self.lower, self.upper))
        return replace(self, begin=begin, lower=lower, upper=upper)

    @property
    def positive(self) -> bool:
        """Whether it is above 0 whatever is trained, so that its logarithm is what is uncertain."""
        return self.lower >= 0

    def value(self, values: Mapping[str, Tensor]) -> Tensor | float:
        """(B,) from the trained values, a plain number of one that is known: a logit between two bounds, a
        logarithm of the distance from one."""
        if not self.estimated:
            return self.begin
        raw = values[self.trained]
        low, high = math.isfinite(self.lower), math.isfinite(self.upper)
        if low and high:
            at = (self.begin - self.lower) / (self.upper - self.lower)
            return self.lower + (self.upper - self.lower) * torch.sigmoid(raw + math.log(at / (1 - at)))
        if low:
            return self.lower + (self.begin - self.lower) * torch.exp(raw)
        if high:
            return self.upper - (self.upper - self.begin) * torch.exp(raw)
        return self.begin + self.step * raw


def coefficient(
    where: str,
    name: str,
    given: object,
    known: bool,
    lower: float = -math.inf,
    step: float = 1.0,
    unit: str = "-",
) -> Coefficient:
    """From an option: a number, ``{initial: x}`` or ``{fixed: x}``, both with ``lower`` and ``upper`` if
    wanted.

    :param where: the option's name. :param known: whether a plain number is known, and not where it begins.
    :param lower: the bound that it has by what it is. :raises InputError: anything else.
    """
    options = given if isinstance(given, Mapping) else {"fixed" if known else "initial": given}
    begins = [key for key in ("initial", "fixed") if key in options]
    if set(options) - set(_OPTIONS) or len(begins) != 1:
        raise InputError(
            f"{where} is {shown(given)}; expected a number, {{initial: NUMBER}} if it is estimated or "
            "{fixed: NUMBER} if it is known, with lower and upper if wanted"
        )
    low = float(number(f"{where}.lower", options["lower"], least=lower)) if "lower" in options else lower
    high = float(number(f"{where}.upper", options["upper"])) if "upper" in options else math.inf
    begin = float(number(where if begins[0] not in options else f"{where}.{begins[0]}", options[begins[0]]))
    if not (low < begin < high):
        ends = [f"above {low:g}"] * math.isfinite(low) + [f"below {high:g}"] * math.isfinite(high)
        raise InputError(
            f"{where} is {shown(given)}; expected a value {' and '.join(ends) or 'that is finite'}"
        )
    return Coefficient(name, begin, begins[0] == "initial", low, high, step, unit)
