"""Linear models whose parameters change in time, or that are given by a rate function: exact, by the
exponential of the rate matrix over each interval between events."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from medcm_cli.pk import exponential
from medcm_cli.pk.dosing import Dosed, Values
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.timeline import Series, Timeline, follow, timeline

_DIGITS = 1e-4  # of the amounts of a steady state, that rounding may have grown to


class Rates(Dosed, Protocol):
    """A linear model, as this module sees it: the observed compartment ``central``, from 0, its ``volume``
    and the ``rate_matrix`` K (..., C, C), 1/h, at parameters (...)."""

    @property
    def central(self) -> int: ...
    @property
    def volume(self) -> str: ...
    @property
    def amount_per_level(self) -> float: ...
    def rate_matrix(self, z: Values) -> Tensor: ...
    def rates(self, z: Values) -> list[Tensor]: ...


@dataclass(frozen=True)
class Flow:
    """dA/dt = K A + b: ``matrix`` K (..., C, C), 1/h, at parameters (...); ``source`` b (C, ...), amount/h,
    and amounts at first and after a reset, ``begin`` (C, ...), where there are any; ``rates``: the C rates of
    decay of K, 1/h, where they are known; ``collects``: there is one more compartment, the last, that takes
    up this share of what leaves the others for good, and is empty after a steady state."""

    compartments: int
    matrix: Callable[[Values], Tensor]
    source: Callable[[Values], Tensor] | None = None
    begin: Callable[[Values], Tensor] | None = None
    superposed: bool = True
    rates: Callable[[Values], list[Tensor]] | None = None
    collects: Callable[[Values], Tensor | float] | None = None

    @property
    def settling(self) -> "Flow":
        """Without what collects."""
        return (
            self
            if self.collects is None
            else replace(self, compartments=self.compartments - 1, collects=None)
        )


def predict(pk: Rates, schedule: Schedule, z: Values) -> Tensor:
    """See ``medcm_cli.pk.solve``. Exact for parameters that do not change, too."""
    z = expanded(pk, schedule, z)
    states = len(pk.rate_matrix({name: value.flatten()[0] for name, value in z.items()}))
    flow = Flow(states, pk.rate_matrix, rates=pk.rates if states <= exponential.MOST else None)
    found, then = amounts(pk, flow, pk.central, schedule, z)
    return found / (pk.amount_per_level * then[pk.volume])


def expanded(pk: Dosed, schedule: Schedule, z: Values) -> dict[str, Tensor]:
    """The parameters of a model, (S, N, B), or (P, S, N, B), each."""
    shapes = (value.shape[-3:] for value in z.values())
    shape = torch.broadcast_shapes(schedule.start.shape[1:], *shapes)
    return {name: z[name].expand(*z[name].shape[:-3], *shape) for name in pk.parameters}


def amounts(pk: Dosed, flow: Flow, seen: int | None, schedule: Schedule, z: Values) -> tuple[Tensor, Values]:
    """Amounts in a compartment at each observation, (T, S, N, B), or in all, (T, C, S, N, B); and the
    parameters in force then.

    :param seen: the compartment, None for all. :param z: (S, N, B) each, or (P, S, N, B).
    """
    states = flow.compartments
    line = timeline(pk, seen, states, schedule, z)
    inflow = line.inflow
    if flow.source is not None:
        inflow = inflow + flow.source(line.z).movedim(0, -4)
    if flow.begin is not None:
        line = replace(line, start=flow.begin(line.z))
    line = replace(line, superposed=flow.superposed)
    advance = _advance(flow, line, inflow)

    return follow(line, seen, advance, functools.partial(led_to, flow)), line.z_seen


def _advance(flow: Flow, line: Timeline, inflow: Tensor) -> Callable[[int, Tensor], Tensor]:
    """From an interval of a time line and amounts (C, S, N, B) at its left end to those at its right end."""
    if flow.collects is not None:
        return _collecting(flow, line, inflow)
    matrix = flow.matrix(line.z)
    if flow.rates is not None:
        return exponential.Propagator(matrix, flow.rates(line.z), line.width, inflow)
    transition, gain = _propagator(matrix, line.width, inflow)
    return lambda interval, amounts: _times(transition[interval], amounts) + gain[interval]


def _collecting(flow: Flow, line: Timeline, inflow: Tensor) -> Callable[[int, Tensor], Tensor]:
    """The same of a flow that collects: what is not there any more has left."""
    own = inflow[:, :-1]
    advance, came = _advance(flow.settling, line, own), own.sum(1) * line.width
    assert flow.collects is not None
    share = flow.collects(line.z)

    def then(interval: int, amounts: Tensor) -> Tensor:
        there = amounts[:-1]
        end = advance(interval, there)
        left = there.sum(0) + came[interval] - end.sum(0)
        part = share[interval] if isinstance(share, Tensor) and share.ndim > 3 else share
        return torch.cat([end, (amounts[-1] + part * left)[None]])

    return then


def led_to(flow: Flow, series: Series) -> tuple[Tensor, Tensor]:
    """Amounts (C, S, N, B) that a series has led to, and whether (S, N, B) it has."""
    if flow.collects is not None:
        found, settled = led_to(flow.settling, series)
        return torch.cat([found, torch.zeros_like(found[:1])]), settled
    matrix, states = flow.matrix(series.z), flow.compartments
    more = 0.0 if flow.source is None else flow.source(series.z)
    at_once = series.at_once(states)

    def stretches(hours: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(width, into + more) for width, into in series.stretches(states, hours)]

    move, taken = _moves(matrix, stretches(series.interval))
    rest = torch.eye(states, dtype=matrix.dtype, device=matrix.device) - move
    # Before a dose; of a singular matrix (no elimination) no numbers, for its own fit and no other's.
    before = torch.linalg.solve_ex(rest, (_times(move, at_once) + taken).movedim(0, -1)[..., None])[0]
    move, taken = _moves(matrix, stretches(series.latest))
    amounts = _times(move, before[..., 0].movedim(-1, 0) + at_once) + taken
    # What a rate matrix without elimination leaves over is rounding.
    growth = torch.linalg.inv_ex(rest.detach())[0].abs().sum(-1).amax(-1)
    return amounts, growth * torch.finfo(growth.dtype).eps < _DIGITS


def _moves(matrix: Tensor, stretches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What becomes of a unit of each compartment over some stretches (..., C, C), and what is left of what
    runs in meanwhile (C, ...)."""
    total = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    left = matrix.new_zeros(())
    for width, inflow in stretches:
        move, taken = _propagator(matrix, width, inflow)
        left = _times(move, left) + taken if left.ndim else taken
        total = move @ total
    return total, left


def _propagator(matrix: Tensor, width: Tensor, inflow: Tensor) -> tuple[Tensor, Tensor]:
    """exp(K w) and what is left at the end of ``inflow`` (..., C, S, N, B) over the width w (..., S, N, B):
    (..., S, N, B, C, C) and (..., C, S, N, B), both from one exponential of [[K, inflow], [0, 0]] w.

    The inflow is scaled to the size of one, since a large one would cost digits.
    """
    scale = (inflow.detach().abs().sum(-4) * width.detach()).clamp(min=1)
    column = (inflow.movedim(-4, -1) * (width / scale)[..., None])[..., None]
    upper = matrix * width[..., None, None]
    shape = torch.broadcast_shapes(upper.shape[:-2], column.shape[:-2])
    size = upper.shape[-1]
    upper = torch.cat([upper.expand(*shape, size, size), column.expand(*shape, size, 1)], -1)
    augmented = torch.cat([upper, upper.new_zeros((*shape, 1, size + 1))], -2)
    exponential = torch.linalg.matrix_exp(augmented)
    taken = exponential[..., :size, size] * scale[..., None]
    return exponential[..., :size, :size], taken.movedim(-1, -4)


def _times(matrix: Tensor, amounts: Tensor) -> Tensor:
    """(S, N, B, C, C) times (C, S, N, B)."""
    return (matrix @ amounts.movedim(0, -1)[..., None])[..., 0].movedim(-1, 0)
