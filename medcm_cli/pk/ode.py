"""Compartment models given as dA/dt, integrated by torchdiffeq with every dose and observation as an exact
breakpoint.

Each subject's time line is cut at its infusion starts, infusion ends and observations. The p-th interval of
every subject is mapped to s in [0, 1], so that one call of the integrator advances all subjects over their
own p-th interval: breakpoints are exact although they differ between subjects, and the loop runs over
intervals, never over subjects, samples or fits.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from medcm_cli.errors import InputError
from medcm_cli.pk.schedule import Schedule

# torchdiffeq's methods that control their error and can be differentiated. The fixed-step ones would take one
# step from breakpoint to breakpoint, and scipy's pass no gradient.
METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")

Values = Mapping[str, Tensor]
Rate = Callable[[Tensor, Tensor, Values], Tensor]


@dataclass(frozen=True)
class OdeModel:
    """``rate(t, amounts, z)`` gives dA/dt without the infusion, amounts (compartments, S, N, B), t (S, N, B)
    h.

    Doses go into compartment 0, whose amount divided by ``volume`` and ``amount_per_level`` is the
    prediction. ``method``, ``rtol`` and ``atol`` are torchdiffeq's; ``atol`` is in amounts.

    :raises InputError: a method that is not one of ``METHODS``, a tolerance that is not above 0.
    """

    rate: Rate
    parameters: tuple[str, ...]
    compartments: int
    volume: str = "V1"
    amount_per_level: float = 1000.0
    method: str = "dopri5"
    rtol: float = 1e-6
    atol: float = 1e-6

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"pk.method is {self.method!r}; expected one of {', '.join(METHODS)}")
        for option in ("rtol", "atol"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"pk.{option} is {value!r}; expected a number above 0")


def two_compartment_rate(t: Tensor, amounts: Tensor, z: Values) -> Tensor:
    """dA/dt of the two-compartment model, h^-1 (METHODS, "Units and symbols"); t is not used."""
    del t
    central, peripheral = amounts[0], amounts[1]
    to_peripheral = z["Q"] / z["V1"] * central - z["Q"] / z["V2"] * peripheral
    return torch.stack([-z["CL"] / z["V1"] * central - to_peripheral, to_peripheral])


def predict(pk: OdeModel, schedule: Schedule, z: Values) -> Tensor:
    """See ``medcm_cli.pk.solve``."""
    observations = schedule.time.shape[0]
    shape = torch.broadcast_shapes(schedule.rate.shape[1:], *(z[name].shape for name in pk.parameters))
    z = {name: z[name].expand(shape) for name in pk.parameters}
    edges, order = _breakpoints(schedule)
    amounts = schedule.rate.new_zeros((pk.compartments, *shape))
    unit = schedule.rate.new_tensor([0.0, 1.0])
    at_edges = [amounts[0]]
    for left, right in itertools.pairwise(edges):
        width = right - left
        middle = (left + right) / 2
        running = (schedule.start <= middle) & (middle < schedule.start + schedule.duration)
        infusion = (schedule.rate * running).sum(0)

        def derivative(
            s: Tensor, state: Tensor, left: Tensor = left, width: Tensor = width, infusion: Tensor = infusion
        ) -> Tensor:
            change = pk.rate(left + s * width, state, z)
            return width * torch.cat([change[:1] + infusion, change[1:]])

        if bool((width > 0).any()):
            amounts = odeint(derivative, amounts, unit, method=pk.method, rtol=pk.rtol, atol=pk.atol)[-1]
        at_edges.append(amounts[0])
    # Where each observation went in the sorted breakpoints; observations are the first rows of the unsorted
    # ones.
    where = torch.argsort(order, dim=0)[:observations].expand(observations, *shape)
    central = torch.stack(at_edges).gather(0, where)
    return central / (pk.amount_per_level * z[pk.volume])


def _breakpoints(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """All times at which something happens to a subject, sorted (P, 1, N, B), and the permutation that
    sorted them."""
    times = torch.cat([schedule.time, schedule.start, schedule.start + schedule.duration])
    edges, order = torch.sort(times, dim=0, stable=True)
    return edges, order


def sensitivities(
    pk: OdeModel, schedule: Schedule, z: Values, wrt: Sequence[str]
) -> tuple[Tensor, list[Tensor]]:
    """See ``medcm_cli.pk.sensitivities``. Exact derivatives of the discrete solution, by reverse mode
    applied twice.

    The gradient of <v, f> with respect to a shift d of log z is linear in v, and its derivative with respect
    to v is df/dd: one pass per parameter, whatever the number of observations, through any solver that can
    be differentiated twice.
    """
    shape = torch.broadcast_shapes(schedule.rate.shape[1:], *(z[name].shape for name in pk.parameters))
    differentiate = torch.is_grad_enabled()
    with torch.enable_grad():
        shifts = [torch.zeros(shape, dtype=schedule.rate.dtype, requires_grad=True) for _ in wrt]
        shifted = {name: value.detach() if not differentiate else value for name, value in z.items()}
        shifted |= {name: shifted[name] * torch.exp(shift) for name, shift in zip(wrt, shifts, strict=True)}
        prediction = predict(pk, schedule, shifted)
        dual = torch.zeros_like(prediction, requires_grad=True)
        gradients = torch.autograd.grad(prediction, shifts, dual, create_graph=True)
        columns = [
            torch.autograd.grad(gradient.sum(), dual, create_graph=differentiate, retain_graph=True)[0]
            for gradient in gradients
        ]
    if not differentiate:
        return prediction.detach(), [column.detach() for column in columns]
    return prediction, columns
