"""Intervals by torchdiffeq: what the solver of ``medcm_cli.pk.interval`` is compared with, and gradients by
the adjoint equations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.steps import EXTREME, Rate

# Methods that control their error and can be differentiated. The fixed-step ones would take one step from
# breakpoint to breakpoint, and scipy's pass no gradient.
METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


def integrate(
    rate: Rate,
    options: tuple[str, float, float, bool],
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
