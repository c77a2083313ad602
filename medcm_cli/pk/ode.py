"""Compartment models given as dA/dt: integrated with every dose and observation as an exact breakpoint
(``medcm_cli.pk.timeline``), or, where dA/dt is linear, by the exponential of its matrix."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from medcm_cli.checks import flag, number, one_of, whole
from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk import integrated, reference, stepwise
from medcm_cli.pk import names as named
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.derivatives import Along, Direction, moves, reverse_over_reverse
from medcm_cli.pk.dosing import Values, with_dose_parameters
from medcm_cli.pk.neural import Term
from medcm_cli.pk.rates import Function, Output, Start, Written, matrix, name_of
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.steady import Tolerance, settle
from medcm_cli.pk.steps import Control, leaf
from medcm_cli.pk.tableaux import TABLEAUX
from medcm_cli.pk.timeline import Series, follow, timeline
from medcm_cli.pk.trial import Facts, facts_of

METHODS = ("auto", *TABLEAUX, *reference.METHODS)
NORMS = ("rms", "largest")


@dataclass(frozen=True)
class OdeModel(PkModel):
    """``rate(t, a, p)`` gives dA/dt without the doses, state -> rate, written for one subject: t (h),
    ``a.NAME`` the amount in each of the ``compartments``, ``p.NAME`` each of the ``parameters``.
    ``compartments``: their names in the order of their numbers (CMT), or how many, of a rate that gives them
    in this order.

    The amount in compartment ``observed`` divided by ``volume`` is what is observed or, where there is one,
    ``output(t, a, p)``; that divided by ``amount_per_level`` (1000, of an output 1, where that is None) is
    the prediction. ``start(p)``: state ->
    amount that there is at first and after a reset, 0 of a state that it does not name. ``terms``: name ->
    options of a learned ``Term``; a rate has these as its fourth argument. ``parameter_units``: parameter ->
    unit, in braces ``time`` and ``amount``, those of the data.

    Doses go into ``dose_compartment`` unless they say otherwise; compartments count from 1 or have their
    names. ``lag`` (h), ``bioavailability`` (fraction) and ``durations`` (h): compartment -> the parameter of
    doses into it (NONMEM's ALAGn, Fn and Dn), which becomes one of ``parameters``. Bioavailability scales the
    amount; of an infusion whose rate was given ``bioavailability_keeps`` the ``rate``, so that it lasts
    longer or shorter, or the ``duration``. A steady state is solved for (``medcm_cli.pk.steady``), where that
    fails again from what ``steady_state_doses`` doses lead to.

    ``method``: tsit5, or kvaerno5 for stiff equations, of ``medcm_cli.pk.interval``, one of torchdiffeq's, or
    auto: the matrix exponential of a linear rate (``medcm_cli.pk.trial``), tsit5 of any other. ``rtol`` and
    ``atol`` (amounts): its tolerances; ``norm``: what is kept within them, as in ``Control``. ``adjoint``:
    gradients by the adjoint equations of torchdiffeq (dopri5 in place of tsit5), whose memory does not grow
    with the steps taken; df/dlog z, whose own gradient objectives such as foce need, then comes by
    backpropagation through these.

    :raises InputError: an option that is not of its kind or does not fit the method, a function that does not
        do what is said here, a dose parameter of a compartment that is not there.
    """

    rate: Function
    parameters: tuple[str, ...]
    compartments: int | Sequence[str] | None = None
    volume: str = "V1"
    amount_per_level: float | None = None
    observed: int | str = 1
    dose_compartment: int | str = 1
    lag: Mapping[int, str] = field(default_factory=dict)
    bioavailability: Mapping[int, str] = field(default_factory=dict)
    durations: Mapping[int, str] = field(default_factory=dict)
    bioavailability_keeps: str = "rate"
    steady_state_doses: int = 50
    adjoint: bool = False
    method: str = "auto"
    rtol: float = 1e-6
    atol: float = 1e-6
    norm: str = "rms"
    output: Function | None = None
    start: Function | None = None
    terms: Mapping[str, Any] = field(default_factory=dict)
    parameter_units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_solver(self)
        names = named.names("pk.parameters", self.parameters)
        terms = tuple(
            Term.build(name, options) for name, options in named.group("pk.terms", self.terms).items()
        )
        named.names("pk.terms", [term.name for term in terms])
        put = functools.partial(object.__setattr__, self)
        put("states", named.states(self, names, terms))
        for option in ("observed", "dose_compartment"):
            put(option, named.place(f"pk.{option}", getattr(self, option), self.states))
        for option in ("lag", "bioavailability", "durations"):
            put(option, named.by_number(getattr(self, option), self.states))
        put("parameters", with_dose_parameters(self))
        named.names("pk.parameters", self.parameters)
        for name in named.group("pk.parameter_units", self.parameter_units):
            one_of("pk.parameter_units", name, self.parameters)
        if self.output is None:
            one_of("pk.volume", self.volume, self.parameters)
        put("right_side", Written(self.rate, self.states, self.parameters, terms))
        put("_output", self.output and Output(self.output, self.states, self.parameters))
        put("_start", self.start and Start(self.start, self.states, self.parameters))
        put("facts", facts_of(self.right_side, self._output, self._start))

    states: tuple[str, ...] = field(init=False, repr=False, compare=False)
    right_side: Written = field(init=False, repr=False, compare=False)
    facts: Facts = field(init=False, repr=False, compare=False)
    _output: Output | None = field(init=False, repr=False, compare=False)
    _start: Start | None = field(init=False, repr=False, compare=False)

    @property
    def by_torchdiffeq(self) -> bool:
        """Whether that solves it."""
        return self.adjoint or self.method in reference.METHODS

    @property
    def by_exponential(self) -> bool:
        """Whether the exponential of its matrix solves it."""
        return self.method == "auto" and self.facts.linear and not self.adjoint

    @property
    def timed(self) -> bool:
        """Whether its rate depends on the time."""
        return self.facts.timed

    @property
    def seen(self) -> int | None:
        """The compartment, from 0, that is observed; None where an output may depend on all."""
        return None if self.output else int(self.observed) - 1

    @property
    def observes(self) -> int | None:
        """``seen``: of an output CMT says nothing."""
        return self.seen

    @property
    def dosed(self) -> int:
        """The compartment, from 0, of a dose that names none."""
        return int(self.dose_compartment) - 1

    @property
    def takes_doses(self) -> int:
        """How many compartments, from the first, doses can go to: all."""
        return len(self.states)

    @property
    def begins_empty(self) -> bool:
        """Not where its amounts begin above 0 or grow by themselves, or its output is something without."""
        return self.facts.empty

    @property
    def scales_with_dose(self) -> bool:
        """Where its rate is linear and solved as such."""
        return self.by_exponential and self.output is None and self.facts.empty

    @property
    def notes(self) -> tuple[str, ...]:
        """That a rate is solved as a linear one."""
        words = "is linear in the amounts: solved by the exponential of its matrix, exactly"
        other = "integrated, which is faster with fo and foce"
        return (
            (f"rate function {name_of(self.rate)} {words} (pk.method=tsit5: {other})",)
            if self.by_exponential
            else ()
        )

    @property
    def units(self) -> dict[str, str]:
        """See ``PkModel.units``."""
        return {**PkModel.units.fget(self), **self.parameter_units}  # type: ignore[attr-defined]

    @property
    def control(self) -> Control:
        """How far a step may go, of the methods of medcm."""
        method = "tsit5" if self.method == "auto" else self.method
        return Control(TABLEAUX[method], self.rtol, self.atol, self.norm == "largest")

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Weights of learned terms."""
        return {
            name: value for term in self.right_side.terms for name, value in term.init(streams, dtype).items()
        }

    def weights(self, values: Values) -> dict[str, Tensor]:
        """Those of learned terms."""
        return {name: values[name] for term in self.right_side.terms for name in term.weights}

    def begin(self, z: Values) -> Tensor | None:
        """Amounts at first, (C, S, N, B), or (I, C, S, N, B) of z (I, S, N, B); None for 0."""
        return None if self._start is None else self._start(z).movedim(0, -4)

    def rate_matrix(self, z: Values) -> Tensor:
        """The derivatives of the rate (..., C, C), 1/h, of a linear one, at parameters (...)."""
        return matrix(self.right_side, self._nothing(z), z)

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``."""
        values, weights = _expanded(self, schedule, z), _terms(self, z)
        if self.by_torchdiffeq:
            return _predict(self, schedule, values, weights)
        if self.by_exponential:
            return _exactly(self, schedule, values)
        amounts, then = integrated.amounts(self, schedule, values, weights)
        return self._observed(schedule, amounts, then)

    def sensitivities(
        self, schedule: Schedule, z: Values, wrt: Sequence[Direction]
    ) -> tuple[Tensor, list[Tensor]]:
        """See ``medcm_cli.pk.sensitivities``. Exact derivatives of the discrete solution."""
        values, weights = _expanded(self, schedule, z), _terms(self, z)
        if self.by_torchdiffeq:
            direct = replace(self, adjoint=False, method=_options(self)[0])
            return reverse_over_reverse(
                lambda z: _predict(direct, schedule, z, weights), schedule, values, wrt
            )
        if self.by_exponential:
            return reverse_over_reverse(lambda z: _exactly(self, schedule, z), schedule, values, wrt)
        wrt = [one if isinstance(one, str) else _whole(one, values) for one in wrt]
        amounts, then = integrated.amounts(self, schedule, values, weights, wrt)
        if self._output:
            return _turned(self, schedule, amounts, then, wrt)
        levels = amounts / (self._per_level * then[self.volume]).unsqueeze(-4)
        prediction, *slopes = levels.unbind(1)
        for place, one in enumerate(wrt):
            if moves(one) == self.volume:
                slopes[place] = slopes[place] - prediction * integrated.share(then, place)
        return prediction, slopes

    def _observed(self, schedule: Schedule, amounts: Tensor, z: Values) -> Tensor:
        """The prediction, from amounts (T, S, N, B), or (T, C, S, N, B) for an output, and the parameters in
        force then."""
        if self._output is None:
            return amounts / (self._per_level * z[self.volume])
        time = schedule.time.to(amounts.dtype)
        found: Tensor = self._output(time, amounts.movedim(1, 0), z) / self._per_level
        return found

    @property
    def _per_level(self) -> float:
        if self.amount_per_level is None:
            return 1000.0 if self.output is None else 1.0
        return self.amount_per_level

    def _nothing(self, z: Values) -> Tensor:
        like: Tensor = torch.broadcast_tensors(*(z[name] for name in self.parameters))[0]
        return like.new_zeros((len(self.states), *like.shape))


def _check_solver(pk: OdeModel) -> None:
    one_of("pk.method", pk.method, METHODS)
    one_of("pk.norm", pk.norm, NORMS)
    for option in ("rtol", "atol"):
        number(f"pk.{option}", getattr(pk, option), above=0)
    whole("pk.steady_state_doses", pk.steady_state_doses, 1)
    flag("pk.adjoint", pk.adjoint)
    if pk.adjoint and pk.method == "kvaerno5":
        raise InputError("pk.adjoint=true is of torchdiffeq, which has no kvaerno5; choose pk.adjoint=false")
    if pk.by_torchdiffeq and pk.norm != "rms":
        raise InputError(f"pk.norm={pk.norm} is of pk.method=tsit5 and kvaerno5 with pk.adjoint=false")


def _terms(pk: OdeModel, z: Values) -> dict[str, Tensor]:
    """Weights of learned terms with dimensions for samples and subjects, (out, in + 1, 1, 1, B)."""
    return {name: weight[..., None, None, :] for name, weight in pk.weights(z).items()}


def _exactly(pk: OdeModel, schedule: Schedule, z: Values) -> Tensor:
    """By the exponential of the rate's matrix."""

    def source(values: Values) -> Tensor:
        nothing = pk._nothing(values)
        return pk.right_side(nothing[0], nothing, values)

    flow = stepwise.Flow(
        len(pk.states),
        pk.rate_matrix,
        source if pk.facts.source else None,
        None if pk._start is None else lambda values: _begun(pk, values),
        pk.scales_with_dose,
    )
    amounts, then = stepwise.amounts(pk, flow, pk.seen, schedule, z)
    return pk._observed(schedule, amounts, then)


def _begun(pk: OdeModel, z: Values) -> Tensor:
    start = pk.begin(z)
    assert start is not None
    return start


def _turned(
    pk: OdeModel, schedule: Schedule, amounts: Tensor, z: Values, wrt: Sequence[Direction]
) -> tuple[Tensor, list[Tensor]]:
    """An output and its derivatives, from amounts (T, C, 1 + K, S, N, B) with theirs."""
    again = torch.is_grad_enabled()
    value, turns = amounts[:, :, 0], amounts[:, :, 1:].unbind(2)
    with torch.enable_grad():
        at = leaf(value)
        own = {name: leaf(z[name].expand_as(value[:, 0])) for name in dict.fromkeys(map(moves, wrt))}
        found = pk._observed(schedule, at, {**z, **own})
        by, *others = torch.autograd.grad(
            found.sum(), [at, *own.values()], create_graph=again, allow_unused=True, materialize_grads=True
        )
        of = dict(zip(own, others, strict=True))
        slopes = [
            (by * turn).sum(1) + of[moves(one)] * own[moves(one)] * integrated.share(z, place)
            for place, (one, turn) in enumerate(zip(wrt, turns, strict=True))
        ]
    return (found, slopes) if again else (found.detach(), [slope.detach() for slope in slopes])


def _expanded(pk: OdeModel, schedule: Schedule, z: Values) -> dict[str, Tensor]:
    """Parameters of the model, (S, N, B) or (P, S, N, B) each."""
    shapes = (z[name].shape[-3:] for name in pk.parameters)
    shape = torch.broadcast_shapes(schedule.start.shape[1:], *shapes)
    return {name: z[name].expand(*z[name].shape[:-3], *shape) for name in pk.parameters}


def _whole(one: Along, values: Values) -> Along:
    """A direction whose share has the dimensions of parameters that are expanded."""
    shape = values[one.name].shape[-3:]
    return Along(one.name, one.share.expand(*one.share.shape[:-3], *shape))


def _predict(pk: OdeModel, schedule: Schedule, z: Values, weights: Values) -> Tensor:
    """By torchdiffeq, of values expanded."""
    states = len(pk.states)
    line = timeline(pk, pk.seen, states, schedule, z)
    line = replace(line, z={**line.z, **weights}, start=pk.begin(line.z), superposed=False)

    def advance(interval: int, amounts: Tensor) -> Tensor:
        here = line.z_of(interval)
        at = line.left[interval], line.width[interval], line.inflow[interval]
        return reference.integrate(pk.right_side, _options(pk), amounts, here, *at)

    def steady(series: Series) -> tuple[Tensor, Tensor]:
        series, start = replace(series, z={**series.z, **weights}), pk.begin(series.z)
        nothing = torch.zeros_like(line.jump[0])
        return _steady(pk, series, nothing if start is None else start.detach().expand_as(nothing))

    amounts = follow(line, pk.seen, advance, steady)
    return pk._observed(schedule, amounts, line.z_seen)


def _options(pk: OdeModel) -> tuple[str, float, float, bool]:
    method = pk.method if pk.method in reference.METHODS else reference.METHODS[0]
    return method, pk.rtol, pk.atol, pk.adjoint


def _steady(pk: OdeModel, series: Series, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Amounts (C, S, N, B) that a series has led to, and whether (S, N, B) it has."""
    # A slow elimination multiplies the solver's error by the number of doses that add up.
    search = Tolerance(pk.rtol / 100, pk.atol / 100, pk.rtol, pk.atol)
    fine = replace(pk, rtol=search.rtol, atol=search.atol)

    def after(model: OdeModel, here: Series, amounts: Tensor, hours: Tensor) -> Tensor:
        amounts = amounts + here.at_once(len(pk.states))
        # A rate that depends on t is taken at 0: a steady state needs one that does not.
        begin = torch.zeros_like(amounts[0])
        for width, inflow in here.stretches(len(pk.states), hours.expand_as(begin)):
            amounts = reference.integrate(
                model.right_side, _options(model), amounts, here.z, begin, width, inflow
            )
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
