"""Where a batch of fits begins: initial values whose loss and gradient are sound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Objective, State
from medcm_cli.training.loss import Evaluation, Part


class How(NamedTuple):
    """Of a course (``course.Course``) what its beginning has to know; and the values to begin with that are
    ``given``, of a fit that has none NaN."""

    batch_subjects: int | None
    log: bool
    redraws: int
    near: bool
    given: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Begun:
    """Where fits begin: their initial ``state``, how it is evaluated, the ``first`` of these evaluations, and
    how often each fit's initial values were drawn again, (B,)."""

    state: State
    evaluation: Evaluation
    first: Part
    redraws: Tensor


def begun(
    model: Model,
    objective: Objective,
    population: Population,
    there: Population,
    streams: Sequence[Stream],
    dtype: torch.dtype,
    how: How,
) -> Begun:
    """Initial values whose loss and gradient are sound, as far as they are drawn again; ``there`` are the
    subjects where they are trained.

    Fits are drawn again by a stream of their own, so that the others get the same values as before.
    """
    redrawn = torch.zeros(len(streams), dtype=torch.long, device="cpu")
    device = there.present.device
    while True:
        drawn = [replace(s, attempt=n) for s, n in zip(streams, redrawn.tolist(), strict=True)]
        state = objective.init(model, population, drawn, dtype)
        given = {
            name: torch.where(torch.isnan(of), state.trained[name], of)
            for name, of in (how.given or {}).items()
        }
        state = replace(state, trained={**state.trained, **given})
        if how.near:
            state = objective.near(model, population, state)
        state = state.to(device)
        evaluation = Evaluation(model, objective, there, state, drawn, dtype, how.batch_subjects, how.log)
        flat = evaluation.packed(state).requires_grad_()
        first = evaluation.total(flat, state.carried, differentiate=True)
        again = ~evaluation.sound(first).cpu() & (redrawn < how.redraws)
        if not bool(again.any()):
            return Begun(state, evaluation, first, redrawn)
        redrawn += again
