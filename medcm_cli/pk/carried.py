"""Derivatives of a linear model whose parameters change, carried from event to event beside its amounts.

The exponential over an interval depends on the parameters in force there alone, so that its derivatives are
taken once for each parameter, whatever the number of directions in which it moves.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medcm_cli.pk import exponential, stepwise
from medcm_cli.pk.derivatives import Direction, key_of, moves, shares_of
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.exponential import Propagator
from medcm_cli.pk.moving import stacked
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.timeline import Series, Timeline, follow, timeline


def can(pk: stepwise.Rates, states: int, wrt: Sequence[Direction]) -> bool:
    """Whether derivatives are those of exponentials alone, in closed form, and not of doses."""
    of_doses = {*pk.lag.values(), *pk.bioavailability.values(), *pk.durations.values()}
    return states <= exponential.MOST and not of_doses & set(map(moves, wrt))


def sensitivities(
    pk: stepwise.Rates, states: int, schedule: Schedule, z: Values, wrt: Sequence[Direction]
) -> tuple[Tensor, list[Tensor]]:
    """See ``medcm_cli.pk.sensitivities``, where that ``can`` be."""
    again = torch.is_grad_enabled()
    shape = torch.broadcast_shapes(schedule.start.shape[1:], *(value.shape[-3:] for value in z.values()))
    whole = {**{name: z[name] for name in pk.parameters}, **shares_of(wrt)}
    whole = {name: value.expand(*value.shape[:-3], *shape) for name, value in whole.items()}
    with torch.enable_grad():
        if not again:
            whole = {name: value.detach() for name, value in whole.items()}
        found, then = _carried(pk, states, schedule, whole, wrt, again)
        volume = then[pk.volume].unsqueeze(-4)  # (T, 1, S, N, B), or without T where it does not change
        prediction, *slopes = (found / (pk.amount_per_level * volume)).unbind(1)
        for place, one in enumerate(wrt):
            if moves(one) == pk.volume:
                slopes[place] = slopes[place] - prediction * then.get(key_of(place), 1.0)
    return (prediction, slopes) if again else (prediction.detach(), [slope.detach() for slope in slopes])


def _carried(
    pk: stepwise.Rates, states: int, schedule: Schedule, z: Values, wrt: Sequence[Direction], again: bool
) -> tuple[Tensor, Values]:
    """Observed amounts with their derivatives, (T, 1 + K, S, N, B), and what is in force then."""
    line = timeline(pk, pk.central, states, schedule, z)
    line = replace(
        line,
        jump=stacked(line.jump, [None] * len(wrt), -4),
        extra=stacked(line.extra, [None] * len(wrt), -4),
    )
    names = list(dict.fromkeys(map(moves, wrt)))
    move, left, d_move, d_left = _slopes(pk, line, names, wrt, again)

    def advance(interval: int, amounts: Tensor) -> Tensor:
        here = list(amounts.unbind(0))  # (1 + K, S, N, B) each
        values = exponential.times([[entry[interval] for entry in row] for row in move], here)
        turned = exponential.times(
            [[entry[interval] for entry in row] for row in d_move], [amount[:1] for amount in here]
        )
        ends = []
        for c, (value, turn) in enumerate(zip(values, turned, strict=True)):
            more = [value[0], value[1:] + turn]
            if left is not None and d_left is not None:
                more = [more[0] + left[c][interval], more[1] + d_left[c][interval]]
            ends.append(torch.cat([more[0][None], more[1]]))
        return torch.stack(ends)

    def steady(series: Series) -> tuple[Tensor, Tensor]:
        flow = stepwise.Flow(states, pk.rate_matrix)
        shifts = {name: torch.zeros_like(series.z[name]).requires_grad_() for name in names}
        moved = {**series.z, **{name: series.z[name] * torch.exp(s) for name, s in shifts.items()}}
        amounts, settled = stepwise.led_to(flow, replace(series, z=moved))
        slopes = [_by(amount, shifts, again) for amount in amounts.unbind(0)]
        turns = [_along(slope, series.z, wrt) for slope in slopes]
        return torch.cat([amounts[:, None], torch.stack(turns)], 1), settled

    return follow(line, pk.central, advance, steady), line.z_seen


def _slopes(
    pk: stepwise.Rates, line: Timeline, names: Sequence[str], wrt: Sequence[Direction], again: bool
) -> tuple[list[list[Tensor]], list[Tensor] | None, list[list[Tensor]], list[Tensor] | None]:
    """Exponentials over the intervals and what is left of inflows (``Propagator``), and their derivatives in
    each direction, (I, K, S, N, B)."""
    shape = line.width.shape
    shifts = {name: line.width.new_zeros(shape).requires_grad_() for name in names}
    moved = {**line.z, **{name: line.z[name] * torch.exp(shift) for name, shift in shifts.items()}}
    over = Propagator(pk.rate_matrix(moved), pk.rates(moved), line.width, line.inflow)

    def turned(entry: Tensor) -> Tensor:
        return _along(_by(entry, shifts, again), line.z, wrt).movedim(0, 1)

    left = None if over.left is None else [turned(entry) for entry in over.left]
    return over.move, over.left, [[turned(entry) for entry in row] for row in over.move], left


def _by(value: Tensor, shifts: Values, again: bool) -> Values:
    """The derivatives of values in the shifts that each depends on."""
    if not value.requires_grad:
        return {name: torch.zeros_like(shift) for name, shift in shifts.items()}
    found = torch.autograd.grad(
        value.sum(), list(shifts.values()), create_graph=again, retain_graph=True, materialize_grads=True
    )
    return dict(zip(shifts, found, strict=True))


def _along(slopes: Values, z: Values, wrt: Sequence[Direction]) -> Tensor:
    """Of derivatives by parameters those in directions, (K, ...)."""
    return torch.stack([slopes[moves(one)] * z.get(key_of(place), 1.0) for place, one in enumerate(wrt)])
