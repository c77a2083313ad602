"""What moves trained values along a gradient: one optimiser, or several where fits differ in their steps."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from medcm_cli.numerics.devices import everywhere
from medcm_cli.training.ending import Moments
from medcm_cli.training.loss import Evaluation

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


class Stepper:
    """An optimiser of the trained values, or of some: in the rows (P,) and fits (B,) that are true."""

    def __init__(
        self, make_optimizer: MakeOptimizer, flat: Tensor, some: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self._where = None
        if some is not None:
            rows, fits = (places.nonzero().to(flat.device) for places in some)
            self._where = rows, fits[:, 0]
        self._values = flat if self._where is None else flat.detach()[self._where].requires_grad_()
        self._optimizer = make_optimizer([self._values])
        if flat.device.type == "cuda":  # what an optimiser counts lies there too
            for group in self._optimizer.param_groups:
                group.update({"capturable": True} if "capturable" in group else {})

    @property
    def repeats(self) -> bool:
        """Whether all of its steps are the same operations, of a CUDA graph too."""
        return all(group.get("capturable") for group in self._optimizer.param_groups)

    @property
    def memory(self) -> dict[str, Any]:
        """What the optimiser remembers, by name."""
        return dict(self._optimizer.state.get(self._values, {}))

    def set(self, flat: Tensor, memory: Mapping[str, Any]) -> None:
        """Go on from the values ``flat`` with what an optimiser remembered there."""
        if self._where is not None:
            with torch.no_grad():
                self._values.copy_(flat[self._where])
        if memory:
            (group,) = self._optimizer.param_groups
            of_host = () if group.get("fused") or group.get("capturable") else ("step",)
            self._optimizer.state[self._values] = {
                name: value.to(flat.device) if isinstance(value, Tensor) and name not in of_host else value
                for name, value in memory.items()
            }

    @property
    def moments(self) -> Moments | None:
        """What the optimiser remembers of gradients; None of one that has no such memory."""
        mean, first = self.memory.get("exp_avg_sq"), self.memory.get("exp_avg")
        if mean is None or first is None:
            return None
        rows, fits = (torch.arange(size, device=mean.device) for size in mean.shape)
        if self._where is not None:
            places, fits = self._where
            rows = places[:, 0]
        (group,) = self._optimizer.param_groups
        decay = float(group["betas"][1]) if "betas" in group else 0.0
        return Moments(first, mean, rows, fits, 1 - decay ** float(self.memory.get("step", 1)))

    def step(self, flat: Tensor, gradient: Tensor, moving: Tensor, rate: Tensor | None = None) -> None:
        """One step that leaves the values of fits that are not ``moving`` exactly as they are; of ``some``,
        none where no fit is.

        :param rate: (B,), what the steps of each fit are multiplied by.
        """
        if self._where is not None:
            gradient, moving = gradient[self._where], moving[self._where[1]]
            rate = None if rate is None else rate[self._where[1]]
            if not bool(moving.any()):
                return
        if rate is not None:
            before = self._values.detach().clone()
            self._values.grad = torch.where(moving, gradient, 0)
            self._optimizer.step()
            with torch.no_grad():
                there = torch.lerp(before, self._values, rate)
                self._values.copy_(torch.where(moving, there, before))
        elif everywhere(moving):
            self._values.grad = gradient
            self._optimizer.step()
        else:
            before = self._values.detach().clone()
            # Zero keeps the optimiser's memory of a dead fit finite.
            self._values.grad = torch.where(moving, gradient, 0)
            self._optimizer.step()
            with torch.no_grad():
                self._values.copy_(torch.where(moving, self._values, before))
        if self._where is not None:
            with torch.no_grad():
                flat[self._where] = self._values


def steppers(
    make_optimizer: MakeOptimizer, flat: Tensor, evaluation: Evaluation
) -> tuple[list[Stepper], list[Stepper]]:
    """For what subjects share and for what each has for itself, but for what the objective moves. Optimisers
    count their steps, so fits with another number of minibatches have an optimiser of their own. Without
    minibatches one does everything."""
    own, count, rest = evaluation.own_rows, evaluation.count, ~evaluation.moved_rows
    if not bool(rest.any()):
        return [], []
    if evaluation.whole:
        return [Stepper(make_optimizer, flat, (rest, count > 0) if evaluation.moves else None)], []
    shared = [Stepper(make_optimizer, flat, (~own & rest, count == steps)) for steps in count.unique()]
    own = own & rest
    return shared, [Stepper(make_optimizer, flat, (own, count > 0))] if bool(own.any()) else []
