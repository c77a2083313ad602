"""What an interval between events leads to, as a function that can be differentiated to any order.

Gradients are exact ones of the steps that were taken: backwards along their stages
(``medcm_cli.pk.adjoint``), and forwards with tangents (``medcm_cli.pk.tangents``). A gradient that is
differentiated in its turn goes through the steps once more (``medcm_cli.pk.replay``).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk.adjoint import adjoint
from medcm_cli.pk.replay import Inputs, gradients
from medcm_cli.pk.stages import Call
from medcm_cli.pk.tangents import adjoint_with, carried


def follow(call: Call, amounts: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Amounts (C, S, N, B) at the end of an interval, or (n, C, S, N, B) after each of the n steps of it, as
    ``call`` asks, differentiable to any order; not a number where there is no way.

    :param tensors: those of ``Where``.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (amounts, *tensors)):
        return _Follow.apply(call, amounts, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    return call.reached(*call.followed(amounts, tensors, keep=False))


def follow_with(
    call: Call, amounts: Tensor, tangents: Tensor, tensors: Sequence[Tensor], moved: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The same with ``tangents`` (C, K, S, N, B), derivatives of amounts by K things.

    :param moved: how each tensor that ``call.moves`` names changes along its tangent.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (amounts, tangents, *tensors, *moved)):
        return _FollowWith.apply(  # type: ignore[no-any-return, no-untyped-call]
            call, len(tensors), amounts, tangents, *tensors, *moved
        )
    with torch.no_grad():
        march, path = call.followed(amounts, tensors, keep=True)
        turned = carried(call, march, path, Inputs(amounts, tangents, tensors, moved))
        return call.reached(march, path), turned


class _Follow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, amounts: Tensor, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.march, ctx.path = call.followed(amounts, tensors, keep=True)
        ctx.save_for_backward(amounts, *tensors)
        return call.reached(ctx.march, ctx.path)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:
        amounts, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            given = Inputs(amounts, None, tensors, ())
            return None, *gradients(ctx.call, ctx.march, ctx.path, given, [bar])
        needs = ctx.needs_input_grad[2:]
        bar, grads = adjoint(ctx.call, ctx.march, ctx.path, tensors, needs, bar)
        return None, bar, *grads


class _FollowWith(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, count: int, amounts: Tensor, tangents: Tensor, *others: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.call, ctx.count, ctx.stages = call, count, []
        given = Inputs(amounts, tangents, others[:count], others[count:])
        ctx.march, ctx.path = call.followed(amounts, given.tensors, keep=True)
        ctx.save_for_backward(amounts, tangents, *others)
        turned = carried(call, ctx.march, ctx.path, given, ctx.stages)
        return call.reached(ctx.march, ctx.path), turned

    @staticmethod
    def backward(ctx: Any, bar: Tensor, bars: Tensor) -> Any:
        amounts, tangents, *others = ctx.saved_tensors
        given = Inputs(amounts, tangents, others[: ctx.count], others[ctx.count :])
        if torch.is_grad_enabled():
            return None, None, *gradients(ctx.call, ctx.march, ctx.path, given, [bar, bars])
        needs = ctx.needs_input_grad[4 : 4 + ctx.count]
        found = adjoint_with(ctx.call, ctx.march, ctx.path, given, ctx.stages, needs, (bar, bars))
        return None, None, *found
