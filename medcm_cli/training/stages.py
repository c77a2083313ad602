"""A batch of fits from its beginning to its end: to another objective's optimum first, where theirs begins
there; along its own gradient; and by Newton's method, where it has no noise, or a profile."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model
from medcm_cli.numerics.devices import CPU
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Objective
from medcm_cli.training.course import Course
from medcm_cli.training.kept import Kept
from medcm_cli.training.loop import Progress, train
from medcm_cli.training.polish import polish_of, polished
from medcm_cli.training.steppers import MakeOptimizer
from medcm_cli.training.trained import Trained

_ENOUGH = 0.1  # OFV, that where a fit begins may lie above another objective's optimum


def fitted(  # noqa: PLR0913 (each is one thing that a batch needs)
    model: Model,
    objective: Objective,
    population: Population,
    double: Callable[[], Population],
    streams: Sequence[Stream],
    make_optimizer: MakeOptimizer,
    course: Course,
    dtype: torch.dtype,
    polish: bool,
    progress: Progress | None = None,
    kept: Kept | None = None,
    device: torch.device = CPU,
) -> Trained:
    """Train B fits, B = ``len(streams)``; see ``loop.train``.

    :param double: their subjects in double precision. :param polish: whether they end by Newton's method.
    """
    minibatches = course.batch_subjects is not None and course.batch_subjects < population.shape[1]
    started = time.perf_counter()
    by = polish_of(model, objective, population, minibatches) if polish else None
    begin = None
    if by is not None:
        course = replace(course, stop=True, brief=not by.fixed)
    if polish and course.near > 0 and course.stop and not minibatches:
        stage = replace(course, brief=True, graph=False, checkpoint_every=course.epochs)
        begin = _optimum(model, objective.first(), population, double, streams, make_optimizer, stage, dtype)
        course = course if begin is None else replace(course, near=2)
    begun = time.perf_counter()
    trained = train(
        model,
        objective,
        population,
        streams,
        make_optimizer,
        course,
        dtype,
        progress,
        kept,
        device,
        begin,
    )
    over = time.perf_counter()
    if by is not None:
        trained = polished(model, by, double(), streams, trained, course.log)
    # The loop's own seconds count what it had done before it was interrupted.
    aside = begun - started + time.perf_counter() - over
    return replace(trained, seconds=trained.seconds + aside)


def _optimum(
    model: Model,
    objective: Objective | None,
    population: Population,
    double: Callable[[], Population],
    streams: Sequence[Stream],
    make_optimizer: MakeOptimizer,
    course: Course,
    dtype: torch.dtype,
) -> dict[str, Tensor] | None:
    """What subjects share near the optimum of an objective, NaN of fits that have none; None where the
    objective cannot take the model or its data, or would leave networks where they are."""
    if objective is None:
        return None
    try:
        by = polish_of(model, objective, population, minibatches=False)
    except InputError:
        return None
    if by is None or by.fixed:
        return None
    trained = train(model, objective, population, streams, make_optimizer, course, dtype)
    found = polished(model, by, double(), streams, trained, course.log, _ENOUGH)
    assert found.ends is not None
    sound = torch.tensor([failure is None for failure in found.failures], device="cpu")
    return found.layout.unpack(torch.where(sound, found.ends.values, torch.nan))
