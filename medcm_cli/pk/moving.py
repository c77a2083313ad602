"""How a time line changes with the logarithms of parameters of doses: lag times, fractions, durations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from medcm_cli.pk.derivatives import Direction, moves, times_share
from medcm_cli.pk.dosing import Dosed, Values
from medcm_cli.pk.timeline import Series, Timeline

_OF_LINE = ("left", "width", "inflow", "jump", "extra")
_OF_SERIES = ("amount", "duration", "latest")

Tangents = Mapping[str, Tensor]
"""Field -> its derivative, of those that change."""


@dataclass(frozen=True)
class Moving:
    """How parameters of doses can move the fields of a ``Timeline`` and of each of its series."""

    line: Tangents
    series: list[Tangents] | None

    def of_series(self, number: int) -> Tangents:
        """Of one series."""
        return self.series[number] if self.series else {}

    def at(self, interval: int) -> dict[str, Tensor]:
        """Of one interval."""
        return {name: self.line[name][interval] for name in ("left", "width", "inflow") if name in self.line}


def moving(build: Callable[[Values], Timeline], pk: Dosed, z: Values, along: Direction) -> Moving:
    """The derivatives of ``build(z)`` by the logarithm of a parameter: none where it is none of a dose."""
    name = moves(along)
    if name not in {*pk.lag.values(), *pk.bioavailability.values(), *pk.durations.values()}:
        return Moving({}, None)
    with forward_ad.dual_level():
        line = build({**z, name: forward_ad.make_dual(z[name], times_share(along, z[name]))})
        return Moving(_tangents(line, _OF_LINE), [_tangents(series, _OF_SERIES) for series in line.series])


def _tangents(of: Any, names: Sequence[str]) -> Tangents:
    found = {name: forward_ad.unpack_dual(getattr(of, name)).tangent for name in names}
    return {name: tangent for name, tangent in found.items() if tangent is not None}


def along(
    function: Callable[[Series], Sequence[Tensor]], series: Series, moved: Tangents
) -> list[Tensor | None]:
    """The derivatives of what a function makes of a series, None where there is none."""
    if not moved:
        return [None for _ in function(series)]
    with forward_ad.dual_level():
        own = {field.name: getattr(series, field.name) for field in fields(series)}
        dual = {
            name: forward_ad.make_dual(own[name], tangent.to(own[name].dtype))
            for name, tangent in moved.items()
        }
        return [forward_ad.unpack_dual(value).tangent for value in function(replace(series, **dual))]


def stacked(values: Tensor, tangents: Sequence[Tensor | None], dim: int) -> Tensor:
    """Values and, along ``dim`` after them, their tangents, 0 where there are none."""
    each = [torch.zeros_like(values) if tangent is None else tangent for tangent in tangents]
    return torch.stack([values, *(tangent.expand_as(values) for tangent in each)], dim)
