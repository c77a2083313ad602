"""Intervals by torchdiffeq: what the solver of ``medcm_cli.pk.interval`` is compared with, and gradients by
the adjoint equations."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk.change import Rate
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.integrated import Integrable
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.steady import Tolerance, settle
from medcm_cli.pk.steps import EXTREME
from medcm_cli.pk.timeline import Series, follow, timeline

# Methods that control their error and can be differentiated. The fixed-step ones would take one step from
# breakpoint to breakpoint, and scipy's pass no gradient.
METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")

Options = tuple[str, float, float, bool]


class Referred(Integrable, Protocol):
    """A model that torchdiffeq is to solve, as this module sees it (``medcm_cli.pk.ode.OdeModel``)."""

    @property
    def method(self) -> str: ...
    @property
    def rtol(self) -> float: ...
    @property
    def atol(self) -> float: ...
    @property
    def adjoint(self) -> bool: ...


def integrate(
    rate: Rate,
    options: Options,
    amounts: Tensor,
    z: Values,
    left: Tensor,
    width: Tensor,
    inflow: Tensor,
) -> Tensor:
    """Amounts (C, S, N, B) after ``width`` from the time ``left`` (S, N, B) with a constant ``inflow``.

    :param options: method, relative and absolute tolerance, and whether gradients are those of the adjoint
        equations.
    :raises InputError: there is no solution.
    """
    from torchdiffeq import odeint, odeint_adjoint  # with scipy's solvers, which few need to wait for

    if not bool((width > 0).any()):
        return amounts
    method, rtol, atol, adjoint = options

    # The interval of every subject is mapped to s in [0, 1].
    def derivative(s: Tensor, state: Tensor, *constants: Tensor) -> Tensor:
        begin, length, constant, *values = constants
        change = rate(begin + s * length, state, dict(zip(z, values, strict=True)))
        return length * (change + constant)

    unit = amounts.new_tensor([0.0, 1.0])
    # A step ends where the interval does: the state there is no interpolation, which is of low order.
    solver = {"method": method, "rtol": rtol, "atol": atol, "options": {"step_t": unit}}
    constants = (left, width, inflow, *z.values())
    if not adjoint:
        with _solvable():
            path: Tensor = odeint(lambda s, state: derivative(s, state, *constants), amounts, unit, **solver)
        return path[-1]

    # All that has a gradient is a state that does not move. As adjoint_params, what depends on another of
    # them (a width on a lag time) would be counted twice.
    def joint(s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return derivative(s, *state), *(torch.zeros_like(values) for values in state[1:])

    with _solvable():
        path, *_ = odeint_adjoint(joint, (amounts, *constants), unit, adjoint_params=(), **solver)
    return path[-1]


@contextmanager
def _solvable() -> Iterator[None]:
    """:raises InputError: the solver, which integrates everything at once, finds no step that is small
    enough."""
    try:
        yield
    except AssertionError as error:  # torchdiffeq's
        if "underflow in dt" not in str(error):
            raise
        raise InputError(EXTREME) from error


def amounts(pk: Referred, schedule: Schedule, z: Values, weights: Values) -> tuple[Tensor, Values]:
    """Amounts in the observed compartment, (T, S, N, B), or in all, (T, C, S, N, B), and the parameters in
    force then; of values (S, N, B), or (P, S, N, B) where they change."""
    states = len(pk.states)
    line = timeline(pk, pk.seen, states, schedule, z)
    line = replace(line, z={**line.z, **weights}, start=pk.begin(line.z), superposed=False)

    def advance(interval: int, amounts: Tensor) -> Tensor:
        here = line.z_of(interval)
        at = line.left[interval], line.width[interval], line.inflow[interval]
        return integrate(pk.right_side, options(pk), amounts, here, *at)

    def steady(series: Series) -> tuple[Tensor, Tensor]:
        series, start = replace(series, z={**series.z, **weights}), pk.begin(series.z)
        nothing = torch.zeros_like(line.jump[0])
        return _steady(pk, series, nothing if start is None else start.detach().expand_as(nothing))

    return follow(line, pk.seen, advance, steady), line.z_seen


def options(pk: Referred) -> Options:
    """Of ``integrate``."""
    method = pk.method if pk.method in METHODS else METHODS[0]
    return method, pk.rtol, pk.atol, pk.adjoint


def _steady(pk: Referred, series: Series, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Amounts (C, S, N, B) that a series has led to, and whether (S, N, B) it has."""
    # A slow elimination multiplies the solver's error by the number of doses that add up.
    search = Tolerance(pk.rtol / 100, pk.atol / 100, pk.rtol, pk.atol)
    method, _, _, adjoint = options(pk)
    fine, direct = ((method, search.rtol, search.atol, by) for by in (adjoint, False))

    def after(how: Options, here: Series, amounts: Tensor, hours: Tensor) -> Tensor:
        amounts = amounts + here.at_once(len(pk.states))
        # A rate that depends on t is taken at 0: a steady state needs one that does not.
        begin = torch.zeros_like(amounts[0])
        for width, inflow in here.stretches(len(pk.states), hours.expand_as(begin)):
            amounts = integrate(pk.right_side, how, amounts, here.z, begin, width, inflow)
        return amounts

    known = series.detached()
    before, settled = settle(
        functools.partial(after, fine, series, hours=series.interval),
        functools.partial(after, direct, known, hours=known.interval),
        nothing,
        series.present.expand_as(nothing[0]),
        search,
        pk.steady_state_doses,
    )
    return after(fine, series, before, series.latest), settled
