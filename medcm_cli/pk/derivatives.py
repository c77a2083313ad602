"""Derivatives of predictions with respect to parameters, for any model that can be differentiated twice."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.pk.schedule import Schedule

Values = Mapping[str, Tensor]


class Along(NamedTuple):
    """A direction in which the logarithm of a parameter moves by ``share`` of what others move by: (S, N, B),
    or (P, S, N, B) where it depends on the regime, such as 1 in those of an occasion and 0 in others."""

    name: str
    share: Tensor

    def expanded(self, values: Values) -> "Along":
        """With a share that has the dimensions of parameters."""
        shape = values[self.name].shape[-3:]
        return Along(self.name, self.share.expand(*self.share.shape[:-3], *shape))


Direction = str | Along
"""A parameter whose logarithm moves, at all times alike, or a part of that."""


def moves(direction: Direction) -> str:
    """The parameter that moves."""
    return direction if isinstance(direction, str) else direction.name


def shares_of(wrt: Sequence[Direction]) -> dict[str, Tensor]:
    """What directions share of their parameters, by ``key_of`` their places; as if these were parameters,
    which are cut, and in force, as those are."""
    return {key_of(place): one.share for place, one in enumerate(wrt) if isinstance(one, Along)}


def key_of(place: int) -> str:
    """What the share of a direction is called among parameters."""
    return f"share of {place}"


def times_share(direction: Direction, value: Tensor) -> Tensor:
    """``value`` (..., S, N, B), as far as the direction has part in it."""
    return value if isinstance(direction, str) else value * direction.share


def parted(
    z: Values, wrt: Sequence[Direction], apart: Callable[[Values], Sequence[tuple[Schedule, Values]]]
) -> list[tuple[Schedule, Values, list[Direction]]]:
    """Schedules, parameters and directions of each group of subjects, which ``apart`` parts them in."""
    return [
        (
            part,
            {name: own[name] for name in z},
            [
                one if isinstance(one, str) else Along(one.name, own[key_of(place)])
                for place, one in enumerate(wrt)
            ],
        )
        for part, own in apart({**z, **shares_of(wrt)})
    ]


def reverse_over_reverse(
    predict: Callable[[Values], Tensor], schedule: Schedule, z: Values, wrt: Sequence[Direction]
) -> tuple[Tensor, list[Tensor]]:
    """``predict(z)`` (T, S, N, B) and its exact derivatives with respect to the logarithm of each parameter
    in ``wrt``, by reverse mode applied twice.

    The gradient of <v, f> with respect to a shift d of log z is linear in v, and its derivative with respect
    to v is df/dd: one pass per direction, whatever the number of observations. A parameter that changes in
    time is shifted at all times alike, or by the share of ``Along`` at each.
    """
    shapes = (value.shape[1:] if value.ndim > 3 else value.shape for value in z.values())
    shape = torch.broadcast_shapes(schedule.start.shape[1:], *shapes)
    differentiate = torch.is_grad_enabled()
    with torch.enable_grad():
        shifts = [schedule.amount.new_zeros(shape).requires_grad_() for _ in wrt]
        shifted = {name: value.detach() if not differentiate else value for name, value in z.items()}
        for one, shift in zip(wrt, shifts, strict=True):
            name = moves(one)
            shifted[name] = shifted[name] * torch.exp(times_share(one, shift))
        prediction = predict(shifted)
        if not prediction.requires_grad:  # nothing is observed
            return prediction, [torch.zeros_like(prediction) for _ in wrt]
        dual = torch.zeros_like(prediction, requires_grad=True)
        gradients = torch.autograd.grad(
            prediction, shifts, dual, create_graph=True, materialize_grads=True, allow_unused=True
        )
        columns = [
            torch.autograd.grad(
                gradient.sum(),
                dual,
                create_graph=differentiate,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )[0]
            for gradient in gradients
        ]
    if not differentiate:
        return prediction.detach(), [column.detach() for column in columns]
    return prediction, columns
