"""Covariate terms as they are written down: each multiplies a typical parameter by a function of one
covariate, which is 1 at its reference."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medcm_cli.checks import number, shown
from medcm_cli.errors import InputError
from medcm_cli.model.coefficients import Coefficient, coefficient

Known = Tensor | float


class Described(NamedTuple):
    """A covariate as the data set describes it, and the parameter that a term multiplies; ``where`` names
    the option."""

    where: str
    parameter: str
    name: str
    scale: float
    reference: float
    unit: str
    values: Mapping[str, float]

    def named(self, kind: str) -> str:
        """The name of a coefficient of a term."""
        return f"{self.parameter}_{self.name}_{kind}"

    @property
    def inverse(self) -> str:
        """The unit of a slope."""
        return f"1/{self.unit}" if self.unit not in ("", "-") else "-"


@dataclass(frozen=True)
class Term:
    """``of`` (x, values of ``coefficients``) -> factor, for a covariate x in its unit, which is one of
    ``categories`` where there are any."""

    covariate: str
    coefficients: tuple[Coefficient, ...]
    of: Callable[[Tensor, Sequence[Known]], Tensor]
    categories: tuple[float, ...] = ()

    def factor(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> Tensor:
        """(1, N, B), or (P, 1, N, B) of a covariate that changes in time."""
        return self.of(covariates[self.covariate], [c.value(values) for c in self.coefficients])


def _power(of: Described, option: object) -> Term:
    """(x / reference)^theta."""
    if of.reference <= 0:
        raise InputError(
            f"{of.where}: a power needs a reference above 0; dataset.covariates.{of.name}.reference is "
            f"{of.reference:g}"
        )
    theta = coefficient(f"{of.where}.power", of.named("power"), option, known=True)
    least = 1e-6 * of.reference  # a weight of 0, where effects are drawn, has no power below 0
    return Term(of.name, (theta,), lambda x, c: (x.clamp(min=least) / of.reference) ** c[0])


def _exponential(of: Described, option: object) -> Term:
    """exp(theta (x - reference))."""
    theta = coefficient(
        f"{of.where}.exponential", of.named("slope"), option, True, step=1 / of.scale, unit=of.inverse
    )
    return Term(of.name, (theta,), lambda x, c: torch.exp(c[0] * (x - of.reference)))


def _linear(of: Described, option: object) -> Term:
    """1 + theta (x - reference); the least that there is where that is below 0."""
    theta = coefficient(
        f"{of.where}.linear", of.named("slope"), option, True, step=1 / of.scale, unit=of.inverse
    )
    return Term(of.name, (theta,), lambda x, c: _above_zero(1 + c[0] * (x - of.reference)))


def _piecewise(of: Described, option: object) -> Term:
    """1 + below (x - knot) below a knot and 1 + above (x - knot) above it, over its value at the reference
    (a hockey stick)."""
    options = _options(of.where, "piecewise", option, ("knot", "below", "above"))
    knot = float(number(f"{of.where}.piecewise.knot", options["knot"]))
    slopes = tuple(
        coefficient(
            f"{of.where}.piecewise.{side}",
            of.named(side),
            options[side],
            True,
            step=1 / of.scale,
            unit=of.inverse,
        )
        for side in ("below", "above")
    )

    def at(x: Tensor, c: Sequence[Known]) -> Tensor:
        away = x - knot
        return _above_zero(1 + c[0] * away.clamp(max=0) + c[1] * away.clamp(min=0))

    def factor(x: Tensor, c: Sequence[Known]) -> Tensor:
        return at(x, c) / at(torch.full_like(x[..., :1, :], of.reference), c)

    return Term(of.name, slopes, factor)


def _category(of: Described, option: object) -> Term:
    """A factor for each category but the reference, which has 1."""
    if not of.values:
        raise InputError(
            f"{of.where}.category: which categories there are is not known; say their numbers by "
            f"dataset.covariates.{of.name}.values, as in {{F: 0, M: 1}}"
        )
    others = {text: code for text, code in of.values.items() if code != of.reference}
    if len(others) == len(of.values):
        raise InputError(
            f"{of.where}.category: dataset.covariates.{of.name}.reference is {of.reference:g}; expected the "
            f"number of one of {', '.join(of.values)}"
        )
    options = _options(of.where, "category", option, tuple(others))
    factors = tuple(
        coefficient(f"{of.where}.category.{text}", of.named(text), options[text], True, lower=0.0)
        for text in others
    )

    def factor(x: Tensor, c: Sequence[Known]) -> Tensor:
        found = torch.ones_like(x)
        for code, value in zip(others.values(), c, strict=True):
            found = torch.where((x - code).abs() < 1e-6, value, found)
        return found

    return Term(of.name, factors, factor, tuple(sorted(set(of.values.values()))))


def _maturation(of: Described, option: object) -> Term:
    """x^hill / (half^hill + x^hill), of an age x (Holford, Heo and Anderson 2013): 1 of an adult, whatever
    the reference."""
    options = _options(of.where, "maturation", option, ("half", "hill"))
    half = coefficient(
        f"{of.where}.maturation.half", of.named("half"), options["half"], True, lower=0.0, unit=of.unit or "-"
    )
    hill = coefficient(f"{of.where}.maturation.hill", of.named("hill"), options["hill"], True, lower=0.0)

    def factor(x: Tensor, c: Sequence[Known]) -> Tensor:
        # 1 / (1 + (half / x)^hill), which neither overflows nor divides 0 by 0 at birth.
        log_ratio = torch.log(x.clamp(min=torch.finfo(x.dtype).tiny)) - (
            torch.log(c[0]) if isinstance(c[0], Tensor) else math.log(c[0])
        )
        return _above_zero(torch.sigmoid(c[1] * log_ratio))

    return Term(of.name, (half, hill), factor)


def _function(of: Described, option: object) -> Term:
    """A function of one's own, of the covariate in its unit and its coefficients by name."""
    if not isinstance(option, Mapping) or not callable(option.get("of")):
        raise InputError(
            f"{of.where}.function is {shown(option)}; expected of: {{_target_: MODULE.FUNCTION, _partial_: "
            "true} and its coefficients by name"
        )
    names = tuple(key for key in option if key != "of")
    made = tuple(
        coefficient(f"{of.where}.function.{key}", of.named(key), option[key], known=True) for key in names
    )
    call: Callable[..., Any] = option["of"]

    def factor(x: Tensor, c: Sequence[Known]) -> Tensor:
        try:
            found = call(x, **dict(zip(names, c, strict=True)))
        except Exception as error:  # whatever a function of somebody's own runs into
            raise InputError(f"{of.where}.function: {type(error).__name__}: {error}") from error
        if not isinstance(found, Tensor) or found.dtype != x.dtype:
            raise InputError(
                f"{of.where}.function: returned {type(found).__name__}; expected a tensor like x"
            )
        return found

    return Term(of.name, made, factor)


TERMS: Mapping[str, Callable[[Described, object], Term]] = {
    "power": _power,
    "exponential": _exponential,
    "linear": _linear,
    "piecewise": _piecewise,
    "category": _category,
    "maturation": _maturation,
    "function": _function,
}


def _options(where: str, kind: str, option: object, needed: Sequence[str]) -> Mapping[str, object]:
    if not isinstance(option, Mapping) or {str(key) for key in option} != set(needed):
        raise InputError(f"{where}.{kind} is {shown(option)}; expected {', '.join(needed)}")
    return {str(key): value for key, value in option.items()}


def _above_zero(factor: Tensor) -> Tensor:
    """A typical parameter is above 0, wherever a coefficient goes while it is trained."""
    return factor.clamp(min=math.sqrt(torch.finfo(factor.dtype).tiny))
