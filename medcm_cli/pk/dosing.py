"""What a model makes of doses: their compartment, lag time, bioavailability and modelled duration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk.schedule import Schedule

Values = Mapping[str, Tensor]

_EQUAL = 1e-3  # of an interval between doses: what rounding may move one


class Dosed(Protocol):
    """What every model says about doses; compartments of mappings count from 1, the others from 0."""

    @property
    def parameters(self) -> tuple[str, ...]: ...
    @property
    def lag(self) -> Mapping[int, str]: ...
    @property
    def bioavailability(self) -> Mapping[int, str]: ...
    @property
    def durations(self) -> Mapping[int, str]: ...
    @property
    def dosed(self) -> int: ...
    @property
    def takes_doses(self) -> int: ...


def with_dose_parameters(pk: Dosed) -> tuple[str, ...]:
    """``pk.parameters`` and, after them, those of its doses, each once.

    :raises InputError: a dose parameter of a compartment that takes no doses.
    """
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
    """Doses as the model takes them. A parameter that changes in time has, for a dose, its value at the start
    that the table gives."""
    compartment = compartments(pk, schedule)
    amount, duration = schedule.amount, schedule.duration
    names = (*pk.lag.values(), *pk.bioavailability.values(), *pk.durations.values())
    here = in_force(schedule, schedule.start, {name: z[name] for name in names})

    def of_dose(mapping: Mapping[int, str], otherwise: Tensor) -> Tensor:
        value = otherwise
        for number, name in mapping.items():
            value = torch.where(compartment == number - 1, here[name], value)
        return value

    if pk.bioavailability:
        amount = amount * of_dose(pk.bioavailability, amount.new_ones(()))
    if schedule.modelled is not None:
        duration = torch.where(schedule.modelled > 0, of_dose(pk.durations, duration), duration)
    lag = of_dose(pk.lag, amount.new_zeros(())) if pk.lag else None
    return Doses(compartment, amount, duration, lag)


def in_force(schedule: Schedule, when: Tensor, z: Values) -> dict[str, Tensor]:
    """Parameters at times ``when`` (X, S or 1, N, B): (X, S, N, B), or as they are where they do not
    change."""
    if schedule.change is None:  # then there is one regime at most
        return {name: value[0] if value.ndim > 3 else value for name, value in z.items()}
    regime = (schedule.change[:, None] < when).sum(0)
    found = {}
    for name, value in z.items():
        shape = torch.broadcast_shapes(value.shape[1:], when.shape[1:])
        index = regime.expand(len(regime), *shape)
        found[name] = value.expand(-1, *shape).gather(0, index) if value.ndim == 4 else value
    return found


def compartments(pk: Dosed, schedule: Schedule) -> Tensor:
    """The compartment of each dose, from 0: (E, 1, N, B)."""
    if schedule.compartment is None:
        return torch.full(schedule.start.shape, pk.dosed)
    return torch.where(schedule.compartment < 0, pk.dosed, schedule.compartment)


def check_doses(pk: Dosed, schedule: Schedule, stepwise: bool) -> None:
    """Whether a model can take the doses of a schedule.

    :param stepwise: whether the amounts are followed from event to event, as they are where parameters change
        in time and in models given as dA/dt; a steady state then has to begin with nothing there.
    :raises InputError: a dose into a compartment that takes none, a duration that is to be a parameter but
        has no name, a steady state on top of what is there.
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
    if stepwise and schedule.interval is not None and bool(_on_top(schedule, real).any()):
        raise InputError(
            "a steady state on top of what is there (SS 2) needs a linear model in closed form and "
            "parameters that do not change in time; expected SS 1"
        )


def _on_top(schedule: Schedule, real: Tensor) -> Tensor:
    """Per dose (E, 1, N, B): whether it stands for a steady state with something else in its segment before
    it or between its own doses."""
    assert schedule.interval is not None
    found = torch.zeros_like(real)

    def segment(when: Tensor) -> Tensor:
        resets = schedule.reset
        return torch.zeros_like(when) if resets is None else (resets[:, None] <= when).sum(0)

    of_doses, of_observations = segment(schedule.start), segment(schedule.time)
    steady = real & torch.isfinite(schedule.interval)
    for number in torch.nonzero(steady.flatten(1).any(1)).flatten().tolist():
        start, interval = schedule.start[number], schedule.interval[number]
        own = of_doses[number]
        explicit = torch.floor(schedule.duration[number] / interval) + 1
        place = (schedule.start - start) / interval
        between = (place < explicit + 0.5) & ((place - place.round()).abs() > _EQUAL)
        other = real & (of_doses == own) & ((place < -_EQUAL) | between)
        seen = schedule.time < start + (explicit + 1 - _EQUAL) * interval
        early = seen & (of_observations == own)
        found[number] = steady[number] & (other.any(0) | early.any(0))
    return found
