"""The one optimisation loop: a batch of fits, trained together, each as if it were alone."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.objectives.base import Objective, State
from medcm_cli.streams import Noise, Stream

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Progress = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of trained values inside one flat tensor (P, B), so that an epoch moves a single
    tensor."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, values: Mapping[str, Tensor]) -> "Layout":
        """The layout of ``values``, whose last dimension is the fit."""
        return cls(tuple(values), tuple(tuple(value.shape[:-1]) for value in values.values()))

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values -> (P, B), a copy."""
        return torch.cat([values[name].reshape(-1, values[name].shape[-1]) for name in self.names])

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """(P, B) -> values, as views through which gradients flow back."""
        parts = flat.split([torch.Size(shape).numel() for shape in self.shapes])
        return {
            name: part.view(*shape, flat.shape[-1])
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }


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
    not found at a checkpoint (0 without modes); ``seconds`` wall-clock time of the training loop.
    """

    epochs: tuple[int, ...]
    layout: Layout
    checkpoints: Tensor
    objective: Tensor
    failures: tuple[Failure | None, ...]
    state: State
    unconverged: Tensor
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
) -> Trained:
    """Train B fits, B = ``len(streams)``, for ``epochs`` full-batch steps.

    A fit whose loss or gradient is not finite stops there: its values and rows so far are kept, and since no
    operation mixes fits, the others go on as if it were not there.

    :param population: training subjects, with B fits.
    :param make_optimizer: from the trained tensor to an optimiser that treats its elements independently of
        each other.
    :param progress: called at every checkpoint with the epoch and the objective (B,).
    """
    labels = checkpoint_labels(epochs, checkpoint_every)
    state = objective.init(model, population, streams, dtype)
    layout = Layout.of(state.trained)
    flat = layout.pack(state.trained).requires_grad_()
    optimizer = make_optimizer([flat])
    noise = _noise(objective, model, population, streams, dtype)
    fits = len(streams)
    alive = torch.ones(fits, dtype=torch.bool)
    failures: list[Failure | None] = [None] * fits
    unconverged = torch.zeros(fits, dtype=dtype)
    snapshots: list[Tensor] = []
    values: list[Tensor] = []
    started = time.perf_counter()
    # Epoch e evaluates the loss of the values after e - 1 steps: a checkpoint after epoch c is complete at
    # the start of epoch c + 1, with the objective belonging to those very values. One evaluation without a
    # step closes the run.
    for epoch in range(1, epochs + 2):
        state = replace(state, trained=layout.unpack(flat))
        state = objective.refresh(model, population, state)
        loss = objective.loss(model, population, state, noise.draw() if noise else None)
        (gradient,) = torch.autograd.grad(loss.sum(), flat)
        healthy = torch.isfinite(loss.detach() + gradient.sum(0))
        if not bool((healthy | ~alive).all()):
            for fit in torch.nonzero(alive & ~healthy).flatten().tolist():
                failures[fit] = Failure(epoch, _cause(model, objective, state, loss, fit))
            alive &= healthy
        if epoch - 1 in labels:
            snapshots.append(flat.detach().clone())
            values.append(loss.detach())
            if "converged" in state.carried:
                share = 1 - state.carried["converged"].to(dtype).mean((0, 1))
                unconverged = torch.maximum(unconverged, torch.where(alive, share, 0))
            if progress:
                progress(epoch - 1, loss.detach())
        if epoch > epochs or not bool(alive.any()):
            break
        _step(optimizer, flat, gradient, alive)
    kept = tuple(labels[epoch] for epoch in sorted(labels))[: len(snapshots)]
    return Trained(
        epochs=kept,
        layout=layout,
        checkpoints=torch.stack(snapshots) if snapshots else flat.detach().new_zeros((0, *flat.shape)),
        objective=torch.stack(values) if values else flat.detach().new_zeros((0, fits)),
        failures=tuple(failures),
        state=State(
            {name: value.detach() for name, value in state.trained.items()},
            {name: value.detach() for name, value in state.carried.items()},
        ),
        unconverged=unconverged,
        seconds=time.perf_counter() - started,
    )


def _noise(
    objective: Objective, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
) -> Noise | None:
    shape = objective.noise_shape(model, population)
    if shape is None:
        return None
    counts = [int(count) for count in population.present.sum(0).tolist()]
    return Noise(streams, shape, counts, dtype)


def _step(optimizer: torch.optim.Optimizer, flat: Tensor, gradient: Tensor, alive: Tensor) -> None:
    """One optimiser step that leaves the values of fits that are not alive exactly as they are."""
    if bool(alive.all()):
        flat.grad = gradient
        optimizer.step()
        return
    before = flat.detach().clone()
    flat.grad = torch.where(alive, gradient, 0)  # keeps the optimiser's memory of a dead fit finite
    optimizer.step()
    with torch.no_grad():
        flat.copy_(torch.where(alive, flat, before))


def _cause(model: Model, objective: Objective, state: State, loss: Tensor, fit: int) -> str:
    if objective.mixed:
        diagonal = torch.stack([row[-1] for row in model.omega_cholesky(state.trained)])[:, fit]
        if not bool((diagonal > 0).all()):
            return "Omega is not positive definite"
    return "gradient is not finite" if bool(torch.isfinite(loss[fit])) else "objective is not finite"
