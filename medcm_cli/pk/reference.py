"""Intervals by torchdiffeq: what the solver of ``medcm_cli.pk.interval`` is compared with, and gradients by
the adjoint equations."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
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
Derivative = Callable[[Tensor, Tensor], Tensor]  # of a time and amounts
Solve = Callable[[Derivative, Tensor, Tensor], Tensor]  # from amounts, at times


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
    if not bool((width > 0).any()):
        return amounts
    torchdiffeq = _torchdiffeq()
    method, rtol, atol, adjoint = options
    # As parameters of the adjoint equations, what depends on another (a width on a lag time) must not be
    # reached through it as well: views depend on none.
    constants = [one.view_as(one) for one in (left, width, inflow, *z.values())]
    begin, length, constant, *values = constants

    # The interval of every subject is mapped to s in [0, 1].
    def derivative(s: Tensor, state: Tensor) -> Tensor:
        change = rate(begin + s * length, state, dict(zip(z, values, strict=True)))
        change = length * (change + constant)
        # The adjoint equations differentiate it, also where it depends on nothing that has a gradient.
        return change if change.requires_grad or not state.requires_grad else change + 0 * state

    unit = amounts.new_tensor([0.0, 1.0], dtype=torch.float64)
    # A step ends where the interval does: the state there is no interpolation, which is of low order.
    solver = {"rtol": rtol, "atol": atol, "method": method, "options": {"step_t": unit}}
    with _solvable():
        if not adjoint:
            path: Tensor = torchdiffeq.odeint(derivative, amounts, unit, **solver)
            return path[-1]
        # The adjoint equations need the amounts on the way, and find them again backwards, where a decay is
        # a growth: over an interval of many half-lives nothing is left of them. Each step begins anew.
        times = _ends_of_steps(functools.partial(torchdiffeq.odeint, **solver), derivative, amounts, unit)
        backwards = {"adjoint_params": constants, "adjoint_options": {"step_t": times}}
        path = torchdiffeq.odeint_adjoint(derivative, amounts, times, **solver, **backwards)
    return path[-1]


def _ends_of_steps(solve: Solve, derivative: Derivative, amounts: Tensor, unit: Tensor) -> Tensor:
    """The times in ``unit`` between which a solution takes its steps, with both ends."""
    begins = list[Tensor]()

    def watched(s: Tensor, state: Tensor) -> Tensor:
        return derivative(s, state)

    def accepted(begin: Tensor, *_: Tensor) -> None:
        begins.append(begin)

    watched.callback_accept_step = accepted  # type: ignore[attr-defined]
    with torch.no_grad():
        solve(watched, amounts, unit)
    return torch.stack([*begins, unit[1]])


def _torchdiffeq() -> ModuleType:
    """Imported when it is asked for: scipy's solvers come with it, which few need to wait for."""
    # Its coefficients lie where the default device is at that time, from where a model's device must be able
    # to read them.
    with torch.device("cpu"):
        import torchdiffeq
    module: ModuleType = torchdiffeq
    return module


@contextmanager
def _solvable() -> Iterator[None]:
    """:raises InputError: the solver, which integrates everything at once, finds no step that is small
    enough."""
    try:
        yield
    except AssertionError as error:  # torchdiffeq's
        if not any(cause in str(error) for cause in ("underflow in dt", "non-finite values")):
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
