"""Compartment models given as dA/dt: integrated with every dose and observation as an exact breakpoint
(``medcm_cli.pk.timeline``), or, where dA/dt is linear, by the exponential of its matrix."""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from medcm_cli.checks import flag, number, one_of, whole
from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk import integrated, outputs, reference, stepwise
from medcm_cli.pk import names as named
from medcm_cli.pk.base import PkModel
from medcm_cli.pk.compiled import check_compiler
from medcm_cli.pk.derivatives import Direction, moves, reverse_over_reverse
from medcm_cli.pk.dosing import Values, with_dose_parameters
from medcm_cli.pk.formula import Formula, formula_of
from medcm_cli.pk.neural import Term
from medcm_cli.pk.rates import Function, Output, Start, Written, matrix, name_of
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.steps import Control
from medcm_cli.pk.stretch import share
from medcm_cli.pk.tableaux import TABLEAUX
from medcm_cli.pk.trial import Facts, facts_of, unread

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
    unit, in braces ``time`` and ``amount``, those of the data. ``endpoints``: the output of each, where there
    are several (``medcm_cli.pk.outputs``).

    Doses go into ``dose_compartment`` unless they say otherwise; compartments count from 1 or have their
    names. ``lag`` (h), ``bioavailability`` (fraction) and ``durations`` (h): compartment -> the parameter of
    doses into it (NONMEM's ALAGn, Fn and Dn), which becomes one of ``parameters``. Bioavailability scales the
    amount; of an infusion whose rate was given ``bioavailability_keeps`` the ``rate``, so that it lasts
    longer or shorter, or the ``duration``. A steady state is solved for (``medcm_cli.pk.steady``), where that
    fails again from what ``steady_state_doses`` doses lead to.

    ``method``: tsit5, or kvaerno5, in double precision, for stiff equations, of ``medcm_cli.pk.interval``,
    one of torchdiffeq's, or auto: the matrix exponential of a linear rate (``medcm_cli.pk.trial``), tsit5 of
    any other. By medcm's own methods the linear part of a mixed system is not integrated, but exact
    (``medcm_cli.pk.linear_part``). ``rtol`` and ``atol`` (amounts): its tolerances; ``norm``: what is kept
    within them, as in ``Control``. ``adjoint``: gradients by the adjoint equations of torchdiffeq (dopri5 in
    place of tsit5), for which only the amounts at the end of each step are kept; df/dlog z, whose own
    gradient objectives such as foce need, then comes by backpropagation through the solver.

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
    endpoints: Sequence[str] = ()

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
        put("_several", outputs.several(self, self._output) if self.endpoints else None)
        _check_read(self)

    states: tuple[str, ...] = field(init=False, repr=False, compare=False)
    right_side: Written = field(init=False, repr=False, compare=False)
    facts: Facts = field(init=False, repr=False, compare=False)
    compiled: bool = field(init=False, repr=False, compare=False, default=False)
    _output: Output | None = field(init=False, repr=False, compare=False)
    _start: Start | None = field(init=False, repr=False, compare=False)
    _several: outputs.Several | None = field(init=False, repr=False, compare=False)

    @property
    def by_torchdiffeq(self) -> bool:
        """Whether that solves it."""
        return self.adjoint or self.method in reference.METHODS

    @property
    def by_exponential(self) -> bool:
        """Whether the exponential of its matrix solves it."""
        return self.method == "auto" and self.facts.linear and not self.adjoint

    @property
    def formula(self) -> Formula | None:
        """Of its rate, where it has one."""
        return formula_of(self.right_side)

    @property
    def timed(self) -> bool:
        """Whether its rate depends on the time."""
        return self.facts.timed

    @property
    def seen(self) -> int | None:
        """The compartment, from 0, that is observed; None where an output may depend on all."""
        return None if self.output or self.endpoints else int(self.observed) - 1

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
        return self.by_exponential and self.seen is not None and self.facts.empty

    @property
    def outputs(self) -> tuple[str, ...]:
        """See ``medcm_cli.pk.outputs``."""
        return outputs.names_of(self)

    def observing(self, outputs: Sequence[str]) -> "OdeModel":
        """See ``PkModel``."""
        return replace(self, endpoints=tuple(outputs))

    def silent(self, endpoint: int) -> bool:
        """See ``PkModel``: what a function gives may be something without any amount."""
        if not self.endpoints or self.facts.source or self._start:
            return self.facts.empty
        return not self.facts.outputs.get(self.endpoints[endpoint], False)

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
        of_rate = getattr(self.rate, "units", {})  # of those of medcm_cli.pk.models
        known = {name: unit for name, unit in of_rate.items() if name in self.parameters}
        return {**PkModel.units.fget(self), **known, **self.parameter_units}  # type: ignore[attr-defined]

    @property
    def above_zero(self) -> tuple[str, ...]:
        """See ``PkModel.above_zero``: also those of medcm's own rates, but for effects."""
        of_rate = {name for name in getattr(self.rate, "units", {}) if name not in ("E0", "EMAX", "SLOPE")}
        known = {*PkModel.above_zero.fget(self), *of_rate}  # type: ignore[attr-defined]
        return tuple(name for name in self.parameters if name in known)

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

    def with_compiled_steps(self) -> "OdeModel":
        """See ``PkModel.with_compiled_steps``."""
        why = ""
        if self.by_torchdiffeq or self.method == "kvaerno5":
            why = "pk.method=tsit5"
        elif self.by_exponential:
            why = "one that is integrated (pk.method=tsit5)"
        elif self.right_side.terms:
            why = "a model without learned terms"
        if why:
            raise InputError(f"batch.compile=true: expected {why}")
        check_compiler()
        copied = copy.copy(self)
        object.__setattr__(copied, "compiled", True)
        return copied

    def begin(self, z: Values) -> Tensor | None:
        """Amounts at first, (C, S, N, B), or (I, C, S, N, B) of z (I, S, N, B); None for 0."""
        return None if self._start is None else self._start(z).movedim(0, -4)

    def rate_matrix(self, z: Values) -> Tensor:
        """The derivatives of the rate (..., C, C), 1/h, of a linear one, at parameters (...)."""
        return matrix(self.right_side, self._nothing(z), z)

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        """See ``medcm_cli.pk.solve``."""
        if self._lacks_digits(schedule):
            return self.predict(*_doubled(schedule, z)).to(schedule.amount.dtype)
        values, weights = _expanded(self, schedule, z), _terms(self, z)
        if self.by_torchdiffeq:
            return self._observed(schedule, *reference.amounts(self, schedule, values, weights))
        if self.by_exponential:
            return _exactly(self, schedule, values)
        amounts, then = integrated.amounts(self, schedule, values, weights)
        return self._observed(schedule, amounts, then)

    def sensitivities(
        self, schedule: Schedule, z: Values, wrt: Sequence[Direction]
    ) -> tuple[Tensor, list[Tensor]]:
        """See ``medcm_cli.pk.sensitivities``. Exact derivatives of the discrete solution."""
        if self._lacks_digits(schedule):
            prediction, slopes = self.sensitivities(*_doubled(schedule, z), wrt)
            dtype = schedule.amount.dtype
            return prediction.to(dtype), [slope.to(dtype) for slope in slopes]
        values, weights = _expanded(self, schedule, z), _terms(self, z)
        if self.by_torchdiffeq:
            direct = replace(self, adjoint=False, method=reference.options(self)[0])

            def predict(z: Values) -> Tensor:
                return self._observed(schedule, *reference.amounts(direct, schedule, z, weights))

            return reverse_over_reverse(predict, schedule, values, wrt)
        if self.by_exponential:
            return reverse_over_reverse(lambda z: _exactly(self, schedule, z), schedule, values, wrt)
        wrt = [one if isinstance(one, str) else one.expanded(values) for one in wrt]
        amounts, then = integrated.amounts(self, schedule, values, weights, wrt)
        if self.seen is None:
            return outputs.turned(self._observed, schedule, amounts, then, wrt)
        levels = amounts / (self._per_level * then[self.volume]).unsqueeze(-4)
        prediction, *slopes = levels.unbind(1)
        for place, one in enumerate(wrt):
            if moves(one) == self.volume:
                slopes[place] = slopes[place] - prediction * share(then, place)
        return prediction, slopes

    def _lacks_digits(self, schedule: Schedule) -> bool:
        """In float32 what stiff equations leave of nearly equal numbers is rounding, at any step."""
        return self.method == "kvaerno5" and schedule.amount.dtype != torch.float64

    def _observed(self, schedule: Schedule, amounts: Tensor, z: Values) -> Tensor:
        """The prediction, from amounts (T, S, N, B), or (T, C, S, N, B) for an output, and the parameters in
        force then."""
        time = schedule.time.to(amounts.dtype)
        if self._several is not None:
            return self._several(time, amounts.movedim(1, 0), z, schedule.endpoint)
        if self._output is None:
            return amounts / (self._per_level * z[self.volume])
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


def _doubled(schedule: Schedule, z: Values) -> tuple[Schedule, dict[str, Tensor]]:
    return schedule.to(torch.float64), {name: value.double() for name, value in z.items()}


def _check_read(pk: OdeModel) -> None:
    """:raises InputError: of a rate of medcm's own, which parameters choose between, one that means nothing
    beside the others."""
    if not hasattr(pk.rate, "units"):
        return
    of_doses = {*pk.lag.values(), *pk.bioavailability.values(), *pk.durations.values()}
    named = of_doses if pk.output else {*of_doses, pk.volume}
    idle = [name for name in unread(pk.right_side, pk._output, pk._start) if name not in named]
    if idle:
        raise InputError(
            f"pk.parameters has {idle[0]}, which means nothing to {name_of(pk.rate)} beside "
            f"{', '.join(name for name in pk.parameters if name not in idle)}"
        )


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


def _expanded(pk: OdeModel, schedule: Schedule, z: Values) -> dict[str, Tensor]:
    """Parameters of the model, (S, N, B) or (P, S, N, B) each."""
    shape = torch.broadcast_shapes(schedule.start.shape[1:], *(z[n].shape[-3:] for n in pk.parameters))
    return {name: z[name].expand(*z[name].shape[:-3], *shape) for name in pk.parameters}
