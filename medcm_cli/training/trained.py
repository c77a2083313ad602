"""What has become of a batch of fits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medcm_cli.objectives.base import State
from medcm_cli.training.loss import Layout


@dataclass(frozen=True)
class Failure:
    """Why and in which epoch (from 1) a fit stopped early."""

    epoch: int
    cause: str


@dataclass(frozen=True)
class Ends:
    """Where fits have ended, which are their estimates: ``values`` (P, B) after ``epoch`` (B,) epochs, and
    the ``objective`` (B,) there, of one with noise the mean of new draws and its Monte Carlo ``error`` (B,);
    ``converged`` (B,) by its own of the ``rules``."""

    values: Tensor
    objective: Tensor
    error: Tensor
    epoch: Tensor
    converged: Tensor
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Trained:
    """What became of a batch of fits.

    ``epochs`` the C checkpoints' labels; ``checkpoints`` (C, P, B) the trained values at each, laid out by
    ``layout``; ``objective`` (C, B) its value at those values; ``failures`` one per fit, None where it ran
    to the end. Rows of a failed fit after its failure are not valid. ``state`` the final state, that of a
    failed fit as it was when it failed; ``unconverged`` (B,) the largest share of subjects whose mode was
    not found at a checkpoint (0 without modes); ``redraws`` (B,) how often its initialisation was drawn
    again; ``seconds`` wall-clock time of all its stages; ``replayed`` how many epochs were those of a CUDA
    graph; ``ends`` of fits that end where they have converged, None of others. All tensors are on the CPU.
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
    replayed: int = 0
    ends: Ends | None = None

    def kept(self, fit: int) -> tuple[list[int], list[int]]:
        """Epochs of the checkpoints of a fit that are valid, and which those are; the end is number C."""
        failure = self.failures[fit]
        end = None if self.ends is None or failure else int(self.ends.epoch[fit])
        rows = [
            number
            for number, epoch in enumerate(self.epochs)
            if (failure is None or max(epoch, 1) < failure.epoch) and (end is None or epoch < end)
        ]
        epochs = [self.epochs[row] for row in rows]
        return (epochs, rows) if end is None else ([*epochs, end], [*rows, len(self.epochs)])

    def convergence(self, fit: int) -> dict[str, Any] | None:
        """Whether a fit has converged, after how many epochs and by which rule, and the Monte Carlo error of
        its objective; None where nothing was asked, or it has failed."""
        if self.ends is None or self.failures[fit] is not None:
            return None
        return {
            "converged": bool(self.ends.converged[fit]),
            "epoch": int(self.ends.epoch[fit]),
            "rule": self.ends.rules[fit],
            "error": float(self.ends.error[fit]),
        }

    def all_checkpoints(self) -> Tensor:
        """Those at ``epochs`` and, of fits that have one, their end: (C, P, B) or (C + 1, P, B)."""
        return (
            self.checkpoints if self.ends is None else torch.cat([self.checkpoints, self.ends.values[None]])
        )

    def all_objectives(self) -> Tensor:
        """The objective there."""
        return self.objective if self.ends is None else torch.cat([self.objective, self.ends.objective[None]])
