"""What a model makes of doses: their compartment, lag time, bioavailability and modelled duration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medcm_cli.checks import one_of
from medcm_cli.errors import InputError
from medcm_cli.pk.schedule import Schedule

Values = Mapping[str, Tensor]

KEEPS = ("rate", "duration")
"""What bioavailability leaves as it is of an infusion whose rate was given."""

OVERLAPPING = 100
"""Doses of an endless series that may be under way at one time."""


class DoseParameters(Protocol):
    """Compartment, from 1 -> the parameter of doses into it."""

    @property
    def lag(self) -> Mapping[int, str]: ...
    @property
    def bioavailability(self) -> Mapping[int, str]: ...
    @property
    def durations(self) -> Mapping[int, str]: ...


class Dosed(DoseParameters, Protocol):
    """What every model says about doses; other compartments than those of mappings count from 0."""

    @property
    def parameters(self) -> tuple[str, ...]: ...
    @property
    def bioavailability_keeps(self) -> str: ...
    @property
    def dosed(self) -> int: ...
    @property
    def takes_doses(self) -> int: ...


def with_dose_parameters(pk: Dosed) -> tuple[str, ...]:
    """``pk.parameters`` and, after them, those of its doses, each once.

    :raises InputError: a dose parameter of a compartment that takes no doses, or an unknown rule of
        bioavailability.
    """
    one_of("pk.bioavailability_keeps", pk.bioavailability_keeps, KEEPS)
    names = list(pk.parameters)
    for option in ("lag", "bioavailability", "durations"):
        mapping = getattr(pk, option)
        if not isinstance(mapping, Mapping):
            raise InputError(
                f"pk.{option} is {mapping!r}; expected compartment: parameter, as in {{1: NAME}}"
            )
        for compartment, name in mapping.items():
            whole = isinstance(compartment, int) and not isinstance(compartment, bool)
            if not whole or not 1 <= compartment <= pk.takes_doses:
                raise InputError(
                    f"pk.{option}: compartment {compartment!r} takes no doses; "
                    f"expected {_up_to(pk.takes_doses)}"
                )
            if not isinstance(name, str) or not name:
                raise InputError(f"pk.{option}: {name!r} for compartment {compartment}; expected a parameter")
            names.append(name)
    return tuple(dict.fromkeys(names))


def _up_to(most: int) -> str:
    return "1" if most == 1 else f"1 to {most}"


@dataclass(frozen=True)
class Doses:
    """``compartment`` (E, 1, N, B) from 0, ``amount`` that arrives, ``duration`` h and, where the model has
    one, ``lag`` h: (E, S, N, B) or broadcastable."""

    compartment: Tensor
    amount: Tensor
    duration: Tensor
    lag: Tensor | None


def doses(pk: Dosed, schedule: Schedule, z: Values) -> Doses:
    """Doses as the model takes them. A parameter that changes in time has, for a dose, the value of its
    record.

    Of a dose whose rate was given, bioavailability changes how long it lasts, as in NONMEM, or, where the
    model keeps the duration, the rate. A constant infusion until now (``rated`` 2) keeps its rate; it is an
    endless series of doses as long as their interval, the last of which ends when the table has it, and so
    begins before.
    """
    compartment = compartments(pk, schedule)
    amount, duration = schedule.amount, schedule.duration
    names = (*pk.lag.values(), *pk.bioavailability.values(), *pk.durations.values())
    here = in_force(schedule, schedule.start, {name: z[name] for name in names}, schedule.of_dose)

    def of_dose(mapping: Mapping[int, str], otherwise: Tensor) -> Tensor:
        value = otherwise
        for number, name in mapping.items():
            value = torch.where(compartment == number - 1, here[name], value)
        return value

    if schedule.modelled is not None:
        duration = torch.where(schedule.modelled > 0, of_dose(pk.durations, duration), duration)
    if pk.bioavailability:
        fraction = of_dose(pk.bioavailability, amount.new_ones(()))
        if schedule.rated is None or pk.bioavailability_keeps == "duration":
            amount = amount * fraction
        else:
            amount = torch.where(schedule.rated > 1, amount, amount * fraction)
            duration = torch.where(schedule.rated == 1, duration * fraction, duration)
    lag = of_dose(pk.lag, amount.new_zeros(())) if pk.lag else None
    if schedule.rated is not None:
        constant = torch.where(schedule.rated > 1, schedule.duration, 0)
        lag = -constant if lag is None else lag - constant
    return Doses(compartment, amount, duration, lag)


def in_force(schedule: Schedule, when: Tensor, z: Values, regime: Tensor | None = None) -> dict[str, Tensor]:
    """Parameters at times ``when`` (X, S or 1, N, B): (X, S, N, B), or as they are where they do not
    change.

    :param regime: (X, 1, N, B) in force where the times do not tell, of what is evaluated at a record.
    """
    if schedule.change is None:  # then there is one regime at most
        return {name: value[0] if value.ndim > 3 else value for name, value in z.items()}
    if regime is None:
        regime = (schedule.change[:, None] < when).sum(0)
    found = {}
    for name, value in z.items():
        shape = torch.broadcast_shapes(value.shape[1:], regime.shape[1:])
        index = regime.expand(len(regime), *shape)
        found[name] = value.expand(-1, *shape).gather(0, index) if value.ndim == 4 else value
    return found


def compartments(pk: Dosed, schedule: Schedule) -> Tensor:
    """The compartment of each dose, from 0: (E, 1, N, B)."""
    if schedule.compartment is None:
        return torch.full_like(schedule.start, pk.dosed, dtype=torch.long)
    return torch.where(schedule.compartment < 0, pk.dosed, schedule.compartment)


def check_doses(pk: Dosed, schedule: Schedule, superposed: bool) -> None:
    """Whether a model can take the doses of a schedule.

    :param superposed: whether amounts add up, so that a steady state can be added to what is there.
    :raises InputError: a dose into a compartment that takes none, a duration that is to be a parameter but
        has no name, a steady state on top of what is there, one of infusions too many of which overlap.
    """
    real = schedule.amount > 0
    compartment = compartments(pk, schedule)
    wrong = real & (compartment >= pk.takes_doses)
    if bool(wrong.any()):
        number = int(compartment[wrong][0]) + 1
        raise InputError(
            f"a dose goes into compartment {number} (CMT); pk takes doses into {_up_to(pk.takes_doses)}"
        )
    if schedule.modelled is not None:
        for number in compartment[real & (schedule.modelled > 0)].unique().tolist():
            if number + 1 not in pk.durations:
                raise InputError(
                    f"a dose into compartment {number + 1} has a duration that is a parameter (RATE -2); "
                    f"name it, as in +pk.durations={{{number + 1}: D{number + 1}}}"
                )
    if schedule.interval is None:
        return
    overlap = torch.where(real & torch.isfinite(schedule.interval), schedule.duration / schedule.interval, 0)
    if bool((overlap > OVERLAPPING).any()):
        raise InputError(
            f"infusions of a steady state last {float(overlap.max()):.6g} times the interval between them "
            f"(II); expected at most {OVERLAPPING}"
        )
    if not superposed and bool(_on_top(schedule, real).any()):
        raise InputError("a steady state on top of what is there (SS 2) needs a linear model; expected SS 1")


def _on_top(schedule: Schedule, real: Tensor) -> Tensor:
    """Per dose (E, 1, N, B): whether it stands for a steady state with something else given in its segment
    before it."""
    assert schedule.interval is not None
    resets = schedule.reset
    start = schedule.start
    segment = torch.zeros_like(start) if resets is None else (resets[:, None] <= start).sum(0)
    steady = real & torch.isfinite(schedule.interval)
    row = torch.arange(len(start), device=start.device).view(-1, 1, 1, 1)
    before = (start < start[:, None]) | ((start == start[:, None]) & (row < row[:, None]))
    return steady & (before & real & (segment == segment[:, None])).any(1)
