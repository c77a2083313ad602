"""Several outputs of one integration, of which each observation is of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medcm_cli.checks import one_of
from medcm_cli.pk.change import leaf
from medcm_cli.pk.derivatives import Direction, moves
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.rates import Output
from medcm_cli.pk.schedule import Schedule
from medcm_cli.pk.stretch import share
from medcm_cli.pk.trial import Facts

PLAIN = "output"
"""The name of what an output function gives that gives one value."""


class Observable(Protocol):
    """A model given as dA/dt, as this module sees it."""

    @property
    def states(self) -> tuple[str, ...]: ...
    @property
    def parameters(self) -> tuple[str, ...]: ...
    @property
    def facts(self) -> Facts: ...
    @property
    def observed(self) -> int | str: ...
    @property
    def volume(self) -> str: ...
    @property
    def amount_per_level(self) -> float | None: ...
    @property
    def endpoints(self) -> Sequence[str]: ...
    @property
    def output(self) -> object: ...


@dataclass(frozen=True)
class Several:
    """The k-th of ``names`` where an observation is of endpoint k.

    One that a function gives is what it gives; the compartment ``level`` its amount over ``volume``; both
    that and what a function gives of the same name are divided by ``amount_per_level``; any other compartment
    is its amount.
    """

    names: tuple[str, ...]
    states: tuple[str, ...]
    function: Output | None
    level: str
    volume: str
    amount_per_level: float

    def __call__(self, t: Tensor, amounts: Tensor, z: Values, endpoint: Tensor | None) -> Tensor:
        """(T, S, N, B), from amounts (C, T, S, N, B).

        :param endpoint: (T, 1, N, B), None: the first.
        """
        given = {} if self.function is None else self.function.rows(t, amounts, z)
        each = {name: self._one(name, given, amounts, z) for name in dict.fromkeys(self.names)}
        return picked([each[name] for name in self.names], endpoint).expand_as(amounts[0])

    def _one(self, name: str, given: dict[str, Tensor], amounts: Tensor, z: Values) -> Tensor:
        if name in given or (name == PLAIN and "" in given):
            value = given[name] if name in given else given[""]
            return value / self.amount_per_level if name in (self.level, PLAIN) else value
        amount = amounts[self.states.index(name)]
        return amount / (self.amount_per_level * z[self.volume]) if name == self.level else amount


def picked(each: Sequence[Tensor], endpoint: Tensor | None) -> Tensor:
    """Of the values of each endpoint (T, S, N, B) the one that an observation is of (T, 1, N, B), from 0, the
    first where that is None."""
    found = each[0]
    if endpoint is not None:
        for number, value in enumerate(each[1:], 1):
            found = torch.where(endpoint == number, value, found)
    return found


def names_of(pk: Observable) -> tuple[str, ...]:
    """What an endpoint can be of: what an output function gives by name, or ``output``, and compartments."""
    own = tuple(pk.facts.outputs) or ((PLAIN,) if pk.output else ())
    return tuple(dict.fromkeys((*own, *pk.states)))


def several(pk: Observable, function: Output | None) -> Several:
    """:raises InputError: an endpoint of what the model does not have, or of a level without a volume."""
    level = pk.states[int(pk.observed) - 1]
    for name in pk.endpoints:
        one_of("endpoints.*.output", name, names_of(pk))
    if level in pk.endpoints and level not in pk.facts.outputs:
        one_of("pk.volume", pk.volume, pk.parameters)
    per_level = pk.amount_per_level
    if per_level is None:
        per_level = 1000.0 if function is None else 1.0
    return Several(tuple(pk.endpoints), pk.states, function, level, pk.volume, per_level)


def turned(
    observed: Callable[[Schedule, Tensor, Values], Tensor],
    schedule: Schedule,
    amounts: Tensor,
    z: Values,
    wrt: Sequence[Direction],
) -> tuple[Tensor, list[Tensor]]:
    """An output and its derivatives, from amounts (T, C, 1 + K, S, N, B) with theirs.

    :param observed: (schedule, amounts (T, C, S, N, B), parameters in force then) -> the output.
    """
    again = torch.is_grad_enabled()
    value, turns = amounts[:, :, 0], amounts[:, :, 1:].unbind(2)
    with torch.enable_grad():
        at = leaf(value)
        own = {name: leaf(z[name].expand_as(value[:, 0])) for name in dict.fromkeys(map(moves, wrt))}
        found = observed(schedule, at, {**z, **own})
        by, *others = torch.autograd.grad(
            found.sum(), [at, *own.values()], create_graph=again, allow_unused=True, materialize_grads=True
        )
        of = dict(zip(own, others, strict=True))
        slopes = [
            (by * turn).sum(1) + of[moves(one)] * own[moves(one)] * share(z, place)
            for place, (one, turn) in enumerate(zip(wrt, turns, strict=True))
        ]
    return (found, slopes) if again else (found.detach(), [slope.detach() for slope in slopes])
