"""Compartment models given as dA/dt, integrated by torchdiffeq with every dose and observation as an exact
breakpoint (``medcm_cli.pk.timeline``)."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from medcm_cli.checks import flag, number, one_of, whole
from medcm_cli.errors import InputError
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.derivatives import reverse_over_reverse
from medcm_cli.pk.dosing import Values, with_dose_parameters
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.steady import Tolerance, settle
from medcm_cli.pk.timeline import Series, follow, timeline

# torchdiffeq's methods that control their error and can be differentiated. The fixed-step ones would take one
# step from breakpoint to breakpoint, and scipy's pass no gradient.
METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")

Rate = Callable[[Tensor, Tensor, Values], Tensor]


@dataclass(frozen=True)
class OdeModel(PkModel):
    """``rate(t, amounts, z)`` gives dA/dt without the doses, amounts (compartments, S, N, B), t (S, N, B) h.

    The amount in compartment ``observed`` divided by ``volume`` and ``amount_per_level`` is the prediction;
    doses go into ``dose_compartment`` unless they say otherwise; both count from 1. ``lag`` (h),
    ``bioavailability`` (fraction) and ``durations`` (h): compartment, from 1 -> the parameter of doses into
    it (NONMEM's ALAGn, Fn and Dn), which becomes one of ``parameters``. Bioavailability scales the amount; of
    an infusion whose rate was given ``bioavailability_keeps`` the ``rate``, so that it lasts longer or
    shorter, or the ``duration``. A steady state is solved for (``medcm_cli.pk.steady``), where that fails
    again from what ``steady_state_doses`` doses lead to.

    ``method``, ``rtol`` and ``atol`` are torchdiffeq's; ``atol`` is in amounts. ``adjoint``: gradients by
    the adjoint equations, whose memory does not grow with the steps taken, and not by backpropagation
    through these; df/dlog z, whose own gradient objectives such as foce need, always comes from the latter.

    :raises InputError: an option that is not of its kind, a dose parameter of a compartment that is not
        there.
    """

    rate: Rate
    parameters: tuple[str, ...]
    compartments: int
    volume: str = "V1"
    amount_per_level: float = 1000.0
    observed: int = 1
    dose_compartment: int = 1
    lag: Mapping[int, str] = field(default_factory=dict)
    bioavailability: Mapping[int, str] = field(default_factory=dict)
    durations: Mapping[int, str] = field(default_factory=dict)
    bioavailability_keeps: str = "rate"
    steady_state_doses: int = 50
    adjoint: bool = False
    method: str = "dopri5"
    rtol: float = 1e-6
    atol: float = 1e-6

    def __post_init__(self) -> None:
        one_of("pk.method", self.method, METHODS)
        for option in ("rtol", "atol"):
            number(f"pk.{option}", getattr(self, option), above=0)
        for option in ("compartments", "steady_state_doses"):
            whole(f"pk.{option}", getattr(self, option), 1)
        for option in ("observed", "dose_compartment"):
            whole(f"pk.{option}", getattr(self, option), 1, self.compartments, limit="pk.compartments")
        flag("pk.adjoint", self.adjoint)
        object.__setattr__(self, "parameters", with_dose_parameters(self))
        one_of("pk.volume", self.volume, self.parameters)

    @property
    def observes(self) -> int:
        """``observed``, from 0."""
        return self.observed - 1

    @property
    def dosed(self) -> int:
        """The compartment, from 0, of a dose that names none."""
        return self.dose_compartment - 1

    @property
    def takes_doses(self) -> int:
        """How many compartments, from the first, doses can go to: all."""
        return self.compartments

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``."""
        return _predict(self, schedule, z)

    def sensitivities(self, schedule: Schedule, z: Values, wrt: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """See ``medcm_cli.pk.sensitivities``. Exact derivatives of the discrete solution."""
        direct = replace(self, adjoint=False)
        return reverse_over_reverse(lambda values: _predict(direct, schedule, values), schedule, z, wrt)


def two_compartment_rate(t: Tensor, amounts: Tensor, z: Values) -> Tensor:
    """dA/dt of the two-compartment model, h^-1 (docs/methods.md, "Units and symbols"); t is not used."""
    del t
    central, peripheral = amounts[0], amounts[1]
    to_peripheral = z["Q"] / z["V1"] * central - z["Q"] / z["V2"] * peripheral
    return torch.stack([-z["CL"] / z["V1"] * central - to_peripheral, to_peripheral])


def michaelis_menten_rate(t: Tensor, amounts: Tensor, z: Values) -> Tensor:
    """dA/dt = -VM C / (KM + C) with C = A / V1: one compartment, elimination that saturates.

    VM in amount/time, KM in amount/L (which is 1/1000 of the amount per mL), V1 in L; t is not used.
    """
    del t
    concentration = amounts / z["V1"]
    return -z["VM"] * concentration / (z["KM"] + concentration)


def _predict(pk: OdeModel, schedule: Schedule, z: Values) -> Tensor:
    """See ``medcm_cli.pk.solve``."""
    shapes = (z[name].shape[-3:] for name in pk.parameters)
    shape = torch.broadcast_shapes(schedule.start.shape[1:], *shapes)
    z = {name: z[name].expand(*z[name].shape[:-3], *shape) for name in pk.parameters}
    observed = pk.observed - 1
    line = timeline(pk, observed, pk.compartments, schedule, z)

    def advance(interval: int, amounts: Tensor) -> Tensor:
        here = line.z_of(interval)
        return _integrate(pk, amounts, here, line.left[interval], line.width[interval], line.inflow[interval])

    def steady(series: Series) -> tuple[Tensor, Tensor]:
        return _steady(pk, series, torch.zeros_like(line.jump[0]))

    amounts = follow(line, observed, advance, steady)
    return amounts / (pk.amount_per_level * line.z_seen[pk.volume])


def _steady(pk: OdeModel, series: Series, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Amounts (C, S, N, B) that a series has led to, and whether (S, N, B) it has."""
    # A slow elimination multiplies the solver's error by the number of doses that add up.
    search = Tolerance(pk.rtol / 100, pk.atol / 100, pk.rtol, pk.atol)
    fine = replace(pk, rtol=search.rtol, atol=search.atol)

    def after(model: OdeModel, here: Series, amounts: Tensor, hours: Tensor) -> Tensor:
        amounts = amounts + here.at_once(pk.compartments)
        # A rate that depends on t is taken at 0: a steady state needs one that does not.
        begin = torch.zeros_like(amounts[0])
        for width, inflow in here.stretches(pk.compartments, hours.expand_as(begin)):
            amounts = _integrate(model, amounts, here.z, begin, width, inflow)
        return amounts

    known, direct = series.detached(), replace(fine, adjoint=False)
    before, settled = settle(
        functools.partial(after, fine, series, hours=series.interval),
        functools.partial(after, direct, known, hours=known.interval),
        nothing,
        series.present.expand_as(nothing[0]),
        search,
        pk.steady_state_doses,
    )
    return after(fine, series, before, series.latest), settled


def _integrate(
    pk: OdeModel, amounts: Tensor, z: Values, left: Tensor, width: Tensor, inflow: Tensor
) -> Tensor:
    """Amounts (C, S, N, B) after ``width`` hours from the time ``left`` (S, N, B) with a constant
    ``inflow``."""
    if not bool((width > 0).any()):
        return amounts

    # The interval of every subject is mapped to s in [0, 1].
    def derivative(s: Tensor, state: Tensor, *constants: Tensor) -> Tensor:
        begin, length, rate, *values = constants
        change = pk.rate(begin + s * length, state, dict(zip(z, values, strict=True)))
        return length * (change + rate)

    unit = amounts.new_tensor([0.0, 1.0])
    # A step ends where the interval does: the state there is no interpolation, which is of low order.
    options = {"method": pk.method, "rtol": pk.rtol, "atol": pk.atol, "options": {"step_t": unit}}
    constants = (left, width, inflow, *z.values())
    if not pk.adjoint:
        with _solvable():
            path: Tensor = odeint(lambda s, state: derivative(s, state, *constants), amounts, unit, **options)
        return path[-1]

    # All that has a gradient is a state that does not move. As adjoint_params, what depends on another of
    # them (a width on a lag time) would be counted twice.
    def joint(s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return derivative(s, *state), *(torch.zeros_like(values) for values in state[1:])

    with _solvable():
        path, *_ = odeint_adjoint(joint, (amounts, *constants), unit, adjoint_params=(), **options)
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
        raise InputError(
            "the model's equations cannot be solved at some of its parameter values, which are extreme"
        ) from error
