"""The one optimisation loop: a batch of fits, trained together, each as if it were alone."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Objective, State
from medcm_cli.training.loss import Evaluation, Layout, Part

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Progress = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Failure:
    """Why and in which epoch (from 1) a fit stopped early."""

    epoch: int
    cause: str


@dataclass(frozen=True)
class Trained:
    """What became of a batch of fits.

    ``epochs`` the C checkpoints' labels; ``checkpoints`` (C, P, B) the trained values at each, laid out by
    ``layout``; ``objective`` (C, B) its value at those values; ``failures`` one per fit, None where it ran
    to the end. Rows of a failed fit after its failure are not valid. ``state`` the final state, that of a
    failed fit as it was when it failed; ``unconverged`` (B,) the largest share of subjects whose mode was
    not found at a checkpoint (0 without modes); ``redraws`` (B,) how often its initialisation was drawn
    again; ``seconds`` wall-clock time of the training loop.
    """

    epochs: tuple[int, ...]
    layout: Layout
    checkpoints: Tensor
    objective: Tensor
    failures: tuple[Failure | None, ...]
    state: State
    unconverged: Tensor
    redraws: Tensor
    seconds: float


def checkpoint_labels(epochs: int, every: int) -> dict[int, int]:
    """Epoch -> label of the checkpoints: epoch 1, labelled 0, and every ``every``-th (METHODS, simulation
    study)."""
    return {1: 0} | {epoch: epoch for epoch in range(every, epochs + 1, every) if epoch > 1}


def train(
    model: Model,
    objective: Objective,
    population: Population,
    streams: Sequence[Stream],
    make_optimizer: MakeOptimizer,
    epochs: int,
    checkpoint_every: int,
    dtype: torch.dtype,
    progress: Progress | None = None,
    batch_subjects: int | None = None,
    redraws: int = 20,
) -> Trained:
    """Train B fits, B = ``len(streams)``, for ``epochs`` passes over their subjects.

    An initialisation whose first loss or gradient is not finite is drawn again. A fit that is not finite
    later, or still after ``redraws`` draws, stops there: its values and rows so far are kept, and since no
    operation mixes fits, the others go on as if it were not there.

    A pass is one step, or, where a fit has more than ``batch_subjects`` subjects, one step for each of the
    minibatches of at most so many into which it is cut, in a new random order in every epoch. What all
    subjects share takes a step with each minibatch, along a gradient whose expectation is that of the whole;
    what a subject has for itself takes one step an epoch, along its own gradient.

    :param population: training subjects, with B fits.
    :param make_optimizer: from the trained tensor to an optimiser that treats its elements independently of
        each other.
    :param progress: called at every checkpoint with the epoch and the objective (B,).
    """
    labels = checkpoint_labels(epochs, checkpoint_every)
    evaluation, state, first, redrawn = _start(
        model, objective, population, streams, dtype, batch_subjects, redraws
    )
    flat, carried = evaluation.layout.pack(state.trained).requires_grad_(), state.carried
    shared, own = _steppers(make_optimizer, flat, evaluation)
    fits = len(streams)
    alive = torch.ones(fits, dtype=torch.bool)
    failures: list[Failure | None] = [None] * fits
    unconverged = torch.zeros(fits, dtype=dtype)
    snapshots: list[Tensor] = []
    values: list[Tensor] = []

    def stop(epoch: int, fits: Tensor, loss: Tensor) -> None:
        if bool(fits.any()):
            trained = evaluation.layout.unpack(flat.detach())
            for fit in torch.nonzero(fits).flatten().tolist():
                failures[fit] = Failure(epoch, _cause(model, objective, trained, loss, fit))
            alive.logical_and_(~fits)

    started = time.perf_counter()
    # Epoch e evaluates the loss of the values after e - 1 steps: a checkpoint after epoch c is complete at
    # the start of epoch c + 1, with the objective belonging to those very values. One evaluation without a
    # step closes the run. Minibatches see values that move during an epoch, so they are evaluated once more
    # for a checkpoint.
    for epoch in range(1, epochs + 2):
        total = first if epoch == 1 else None
        if epoch > 1:
            evaluation.draw()
            if evaluation.whole or epoch - 1 in labels or epoch > epochs:
                total = evaluation.total(flat, carried, differentiate=evaluation.whole)
        if total is not None:
            carried = total.carried
            stop(epoch, alive & ~total.finite, total.loss)
        if epoch - 1 in labels:
            assert total is not None
            snapshots.append(flat.detach().clone())
            values.append(total.loss)
            if "converged" in carried:
                present = population.present
                share = 1 - (carried["converged"] * present).sum((0, 1)) / present.sum(0)
                unconverged = torch.maximum(unconverged, torch.where(alive, share, 0))
            if progress:
                progress(epoch - 1, total.loss)
        if epoch > epochs or not bool(alive.any()):
            break
        if evaluation.whole:
            assert total is not None
            shared[0].step(flat, total.gradient, alive)
            continue
        gradient = torch.zeros_like(flat)
        for number, minibatch in enumerate(evaluation.minibatches):
            part = evaluation.part(flat, carried, minibatch)
            carried = part.carried
            active = alive & (number < evaluation.count)
            stop(epoch, active & ~part.finite, part.loss)
            for stepper in shared:
                stepper.step(flat, part.gradient / minibatch.share, active & alive)
            gradient += part.gradient
        for stepper in own:
            stepper.step(flat, gradient, alive)
    kept = tuple(labels[epoch] for epoch in sorted(labels))[: len(snapshots)]
    return Trained(
        epochs=kept,
        layout=evaluation.layout,
        checkpoints=torch.stack(snapshots) if snapshots else flat.detach().new_zeros((0, *flat.shape)),
        objective=torch.stack(values) if values else flat.detach().new_zeros((0, fits)),
        failures=tuple(failures),
        state=replace(state, trained=evaluation.layout.unpack(flat.detach()), carried=carried),
        unconverged=unconverged,
        redraws=redrawn,
        seconds=time.perf_counter() - started,
    )


def _start(
    model: Model,
    objective: Objective,
    population: Population,
    streams: Sequence[Stream],
    dtype: torch.dtype,
    batch_subjects: int | None,
    redraws: int,
) -> tuple[Evaluation, State, Part, Tensor]:
    """Initial values whose loss and gradient are finite, the two, and how often each fit's were drawn again.

    Fits are drawn again by a stream of their own, so that the others get the same values as before.
    """
    redrawn = torch.zeros(len(streams), dtype=torch.long)
    while True:
        drawn = [replace(s, attempt=n) for s, n in zip(streams, redrawn.tolist(), strict=True)]
        state = objective.init(model, population, drawn, dtype)
        evaluation = Evaluation(model, objective, population, state, drawn, dtype, batch_subjects)
        flat = evaluation.layout.pack(state.trained).requires_grad_()
        first = evaluation.total(flat, state.carried, differentiate=True)
        again = ~first.finite & (redrawn < redraws)
        if not bool(again.any()):
            return evaluation, state, first, redrawn
        redrawn += again


class _Stepper:
    """An optimiser of the trained values, or of some: in the rows (P,) and fits (B,) that are true."""

    def __init__(
        self, make_optimizer: MakeOptimizer, flat: Tensor, some: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self._where = None if some is None else (some[0].nonzero(), some[1].nonzero()[:, 0])
        self._values = flat if self._where is None else flat.detach()[self._where].requires_grad_()
        self._optimizer = make_optimizer([self._values])

    def step(self, flat: Tensor, gradient: Tensor, moving: Tensor) -> None:
        """One step that leaves the values of fits that are not ``moving`` exactly as they are; none where no
        fit is."""
        if self._where is not None:
            gradient, moving = gradient[self._where], moving[self._where[1]]
        if not bool(moving.any()):
            return
        if bool(moving.all()):
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


def _steppers(
    make_optimizer: MakeOptimizer, flat: Tensor, evaluation: Evaluation
) -> tuple[list[_Stepper], list[_Stepper]]:
    """For what subjects share and for what each has for itself. Optimisers count their steps, so fits with
    another number of minibatches have an optimiser of their own. Without minibatches one does everything."""
    if evaluation.whole:
        return [_Stepper(make_optimizer, flat)], []
    own, count = evaluation.own_rows, evaluation.count
    shared = [_Stepper(make_optimizer, flat, (~own, count == steps)) for steps in count.unique()]
    return shared, [_Stepper(make_optimizer, flat, (own, count > 0))] if bool(own.any()) else []


def _cause(model: Model, objective: Objective, values: Mapping[str, Tensor], loss: Tensor, fit: int) -> str:
    if objective.mixed:
        omega = model.omega_cholesky(objective.estimates(model, values))
        diagonal = torch.stack([row[-1] for row in omega])[:, fit]
        if not bool((diagonal > 0).all()):
            return "Omega is not positive definite"
    return "gradient is not finite" if bool(torch.isfinite(loss[fit])) else "objective is not finite"
