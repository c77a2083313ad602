"""Compartment models given as dA/dt, integrated by torchdiffeq with every dose and observation as an exact
breakpoint (``medcm_cli.pk.timeline``)."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medcm_cli.checks import flag, number, one_of, whole
from medcm_cli.errors import InputError
from medcm_cli.pk import integrated, reference
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.derivatives import reverse_over_reverse
from medcm_cli.pk.dosing import Values, with_dose_parameters
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.steady import Tolerance, settle
from medcm_cli.pk.steps import Control, Rate
from medcm_cli.pk.tableaux import TABLEAUX
from medcm_cli.pk.timeline import Series, follow, timeline

METHODS = (*TABLEAUX, *reference.METHODS)
NORMS = ("rms", "largest")


@dataclass(frozen=True)
class OdeModel(PkModel):
    """``rate(t, amounts, z)`` gives dA/dt without the doses, amounts (compartments, S, N, B), t (S, N, B) h,
    of each trajectory for itself. Stages of a step are shown to it at once, (compartments, I, S, N, B), or,
    where it cannot take these, as samples.

    The amount in compartment ``observed`` divided by ``volume`` and ``amount_per_level`` is the prediction;
    doses go into ``dose_compartment`` unless they say otherwise; both count from 1. ``lag`` (h),
    ``bioavailability`` (fraction) and ``durations`` (h): compartment, from 1 -> the parameter of doses into
    it (NONMEM's ALAGn, Fn and Dn), which becomes one of ``parameters``. Bioavailability scales the amount; of
    an infusion whose rate was given ``bioavailability_keeps`` the ``rate``, so that it lasts longer or
    shorter, or the ``duration``. A steady state is solved for (``medcm_cli.pk.steady``), where that fails
    again from what ``steady_state_doses`` doses lead to.

    ``method``: tsit5, or kvaerno5 for stiff equations, of ``medcm_cli.pk.interval``, or one of torchdiffeq's.
    ``rtol`` and ``atol`` (amounts): its tolerances; ``norm``: what is kept within them, as in ``Control``.
    ``adjoint``: gradients by the adjoint equations of torchdiffeq (dopri5 in place of tsit5), whose memory
    does not grow with the steps taken; df/dlog z, whose own gradient objectives such as foce need, then comes
    by backpropagation through these.

    :raises InputError: an option that is not of its kind or does not fit the method, a dose parameter of a
        compartment that is not there.
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
    method: str = "tsit5"
    rtol: float = 1e-6
    atol: float = 1e-6
    norm: str = "rms"

    def __post_init__(self) -> None:
        one_of("pk.method", self.method, METHODS)
        one_of("pk.norm", self.norm, NORMS)
        for option in ("rtol", "atol"):
            number(f"pk.{option}", getattr(self, option), above=0)
        for option in ("compartments", "steady_state_doses"):
            whole(f"pk.{option}", getattr(self, option), 1)
        for option in ("observed", "dose_compartment"):
            whole(f"pk.{option}", getattr(self, option), 1, self.compartments, limit="pk.compartments")
        flag("pk.adjoint", self.adjoint)
        if self.adjoint and self.method == "kvaerno5":
            raise InputError(
                "pk.adjoint=true is of torchdiffeq, which has no kvaerno5; choose pk.adjoint=false"
            )
        if self.by_torchdiffeq and self.norm != "rms":
            raise InputError(f"pk.norm={self.norm} is of pk.method=tsit5 and kvaerno5 with pk.adjoint=false")
        object.__setattr__(self, "parameters", with_dose_parameters(self))
        one_of("pk.volume", self.volume, self.parameters)

    @property
    def by_torchdiffeq(self) -> bool:
        """Whether that solves it."""
        return self.adjoint or self.method not in TABLEAUX

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

    @property
    def control(self) -> Control:
        """How far a step may go, of the methods of medcm."""
        return Control(TABLEAUX[self.method], self.rtol, self.atol, self.norm == "largest")

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``."""
        if self.by_torchdiffeq:
            return _predict(self, schedule, z)
        amounts, z = integrated.amounts(self, schedule, _expanded(self, schedule, z))
        return amounts / (self.amount_per_level * z[self.volume])

    def sensitivities(self, schedule: Schedule, z: Values, wrt: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """See ``medcm_cli.pk.sensitivities``. Exact derivatives of the discrete solution."""
        if self.by_torchdiffeq:
            direct = replace(self, adjoint=False)
            return reverse_over_reverse(lambda values: _predict(direct, schedule, values), schedule, z, wrt)
        amounts, z = integrated.amounts(self, schedule, _expanded(self, schedule, z), wrt)
        levels = amounts / (self.amount_per_level * z[self.volume]).unsqueeze(-4)
        prediction, *slopes = levels.unbind(1)
        if self.volume in wrt:
            place = list(wrt).index(self.volume)
            slopes[place] = slopes[place] - prediction
        return prediction, slopes


def two_compartment_rate(t: Tensor, amounts: Tensor, z: Values) -> Tensor:
    """dA/dt of the two-compartment model, h^-1 (docs/methods.md, "Units and symbols"); t is not used."""
    del t
    central, peripheral = amounts
    to_peripheral = z["Q"] / z["V1"] * central - z["Q"] / z["V2"] * peripheral
    return torch.stack([-z["CL"] / z["V1"] * central - to_peripheral, to_peripheral])


def michaelis_menten_rate(t: Tensor, amounts: Tensor, z: Values) -> Tensor:
    """dA/dt = -VM C / (KM + C) with C = A / V1: one compartment, elimination that saturates.

    VM in amount/time, KM in amount/L (which is 1/1000 of the amount per mL), V1 in L; t is not used.
    """
    del t
    concentration = amounts / z["V1"]
    return -z["VM"] * concentration / (z["KM"] + concentration)


def _expanded(pk: OdeModel, schedule: Schedule, z: Values) -> dict[str, Tensor]:
    """Parameters of the model, (S, N, B) or (P, S, N, B) each."""
    shapes = (z[name].shape[-3:] for name in pk.parameters)
    shape = torch.broadcast_shapes(schedule.start.shape[1:], *shapes)
    return {name: z[name].expand(*z[name].shape[:-3], *shape) for name in pk.parameters}


def _predict(pk: OdeModel, schedule: Schedule, z: Values) -> Tensor:
    """See ``medcm_cli.pk.solve``."""
    z = _expanded(pk, schedule, z)
    observed = pk.observed - 1
    line = timeline(pk, observed, pk.compartments, schedule, z)

    def advance(interval: int, amounts: Tensor) -> Tensor:
        here = line.z_of(interval)
        at = line.left[interval], line.width[interval], line.inflow[interval]
        return reference.integrate(pk.rate, _options(pk), amounts, here, *at)

    def steady(series: Series) -> tuple[Tensor, Tensor]:
        return _steady(pk, series, torch.zeros_like(line.jump[0]))

    amounts = follow(line, observed, advance, steady)
    return amounts / (pk.amount_per_level * line.z_seen[pk.volume])


def _options(pk: OdeModel) -> tuple[str, float, float, bool]:
    method = pk.method if pk.method in reference.METHODS else reference.METHODS[0]
    return method, pk.rtol, pk.atol, pk.adjoint


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
            amounts = reference.integrate(model.rate, _options(model), amounts, here.z, begin, width, inflow)
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
