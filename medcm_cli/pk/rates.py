"""Functions that are written for one subject, with states and parameters by name, and shown all trajectories
at once: the rate of a model, what it begins with, and what is observed."""

import functools
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk.dosing import Values
from medcm_cli.pk.neural import Term

Function = Callable[..., Any]


def name_of(function: Function) -> str:
    """As it is named in a configuration."""
    return ".".join(
        str(getattr(function, part, "")) for part in ("__module__", "__qualname__") if hasattr(function, part)
    ) or repr(function)


@functools.cache
def record(kind: str, names: tuple[str, ...]) -> Callable[..., Any]:
    """A type of named tuples."""
    return namedtuple(kind, names)


@dataclass(frozen=True)
class Written:
    """A ``rate(t, a, p)`` as the solvers have it: (t (S, N, B), amounts (C, S, N, B), z) -> dA/dt, whatever
    dimensions stand before S.

    It sees t, ``a.STATE`` and ``p.PARAMETER`` and gives state -> rate; where a model has learned ``terms``,
    they are its fourth argument.
    """

    function: Function
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    terms: tuple[Term, ...] = ()

    def __call__(self, t: Tensor, amounts: Tensor, z: Values) -> Tensor:
        found = self.raw(t, amounts, z)
        return stacked(found, self.states, amounts[0])

    def raw(self, t: Tensor, amounts: Tensor, z: Values) -> Any:
        """What the function gives."""
        return self.given(t, record("State", self.states)(*amounts.unbind(0)), z)

    def given(self, t: Tensor, a: Any, z: Values) -> Any:
        """The same of named amounts."""
        if not self.terms:
            return self.function(t, a, parameters_of(self.parameters, z))
        learned = record("Learned", tuple(term.name for term in self.terms))
        each = (functools.partial(term, [z[name] for name in term.weights]) for term in self.terms)
        return self.function(t, a, parameters_of(self.parameters, z), learned(*each))


def parameters_of(names: tuple[str, ...], z: Values) -> Any:
    """``p`` of functions."""
    return record("Parameters", names)(*[z[name] for name in names])


def stacked(found: Mapping[str, Any], states: Sequence[str], like: Tensor) -> Tensor:
    """What a function gives by state, each as ``like`` (..., S, N, B): (C, ..., S, N, B)."""
    rows = [found[state] for state in states]
    for place, row in enumerate(rows):
        if not isinstance(row, Tensor):
            rows[place] = like.new_full(like.shape, row)
        elif row.shape != like.shape:
            rows[place] = row.expand(like.shape)
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)


@dataclass(frozen=True)
class Output:
    """An ``output(t, a, p)``: what is observed, from (t, amounts (C, T, S, N, B), z): one value or, of
    several outputs, name -> value."""

    function: Function
    states: tuple[str, ...]
    parameters: tuple[str, ...]

    def __call__(self, t: Tensor, amounts: Tensor, z: Values) -> Tensor:
        return self.rows(t, amounts, z)[""]

    def rows(self, t: Tensor, amounts: Tensor, z: Values) -> dict[str, Tensor]:
        """Each output by its name, that of a single value empty."""
        found = self.raw(t, amounts, z)
        each = found if isinstance(found, Mapping) else {"": found}
        return {
            name: value if isinstance(value, Tensor) else torch.full_like(amounts[0], value)
            for name, value in each.items()
        }

    def raw(self, t: Tensor, amounts: Tensor, z: Values) -> Any:
        """What the function gives."""
        a = record("State", self.states)(*amounts.unbind(0))
        return self.function(t, a, parameters_of(self.parameters, z))


@dataclass(frozen=True)
class Start:
    """A ``start(p)``: the amounts (C, ..., S, N, B) that a model begins with, 0 of states that it does not
    name."""

    function: Function
    states: tuple[str, ...]
    parameters: tuple[str, ...]

    def __call__(self, z: Values) -> Tensor:
        like = torch.broadcast_tensors(*(z[name] for name in self.parameters))[0]
        found = self.raw(z)
        return stacked({state: found.get(state, 0.0) for state in self.states}, self.states, like)

    def raw(self, z: Values) -> Any:
        """What the function gives."""
        return self.function(parameters_of(self.parameters, z))


def matrix(written: Written, amounts: Tensor, z: Values) -> Tensor:
    """Derivatives of each state's rate by each amount, (..., C, C), differentiable with respect to z."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        x = amounts.detach().requires_grad_()
        change = written(torch.zeros_like(amounts[0]), x, z)
        options: dict[str, Any] = {"create_graph": again, "allow_unused": True, "materialize_grads": True}
        rows = [
            torch.autograd.grad(row.sum(), x, retain_graph=True, **options)[0]
            if row.requires_grad
            else torch.zeros_like(x)
            for row in change
        ]
    return torch.stack(rows).movedim((0, 1), (-2, -1))
