"""Derivatives of predictions with respect to parameters, for any model that can be differentiated twice."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from medcm_cli.pk.schedule import Schedule

Values = Mapping[str, Tensor]


def reverse_over_reverse(
    predict: Callable[[Values], Tensor], schedule: Schedule, z: Values, wrt: Sequence[str]
) -> tuple[Tensor, list[Tensor]]:
    """``predict(z)`` (T, S, N, B) and its exact derivatives with respect to the logarithm of each parameter
    in ``wrt``, by reverse mode applied twice.

    The gradient of <v, f> with respect to a shift d of log z is linear in v, and its derivative with respect
    to v is df/dd: one pass per parameter, whatever the number of observations. A parameter that changes in
    time is shifted at all times alike.
    """
    shapes = (value.shape[1:] if value.ndim > 3 else value.shape for value in z.values())
    shape = torch.broadcast_shapes(schedule.start.shape[1:], *shapes)
    differentiate = torch.is_grad_enabled()
    with torch.enable_grad():
        shifts = [schedule.amount.new_zeros(shape).requires_grad_() for _ in wrt]
        shifted = {name: value.detach() if not differentiate else value for name, value in z.items()}
        shifted |= {name: shifted[name] * torch.exp(shift) for name, shift in zip(wrt, shifts, strict=True)}
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
