"""The contract between the training loop and an objective."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.streams import Stream


@dataclass(frozen=True)
class State:
    """``trained``: unconstrained values by name, fit dimension last, which the optimiser moves.

    ``carried``: tensors that an objective keeps between epochs and no gradient flows to (FOCE's modes).
    """

    trained: dict[str, Tensor]
    carried: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """Minimised by ``fit.train``. Functions of their arguments only: an objective holds options, never state.

    ``mixed``: whether Omega and sigma are estimated.
    """

    mixed: ClassVar[bool]

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """Initial values of a batch of fits."""

    def noise_shape(self, model: Model, population: Population) -> tuple[int, ...] | None:
        """Shape (..., N) of the standard normal numbers that one epoch of one fit uses, None for none."""
        del model, population
        return None

    def refresh(self, model: Model, population: Population, state: State) -> State:
        """Bring ``carried`` up to date with ``trained`` at the start of an epoch; no gradient is recorded."""
        del model, population
        return state

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """Value to minimise per fit, (B,)."""

    def random_effects(
        self, model: Model, population: Population, state: State
    ) -> tuple[Tensor, Tensor] | None:
        """Posterior mean (K, N, B) and covariance (K, K, N, B) of eta under the trained values, None without
        eta."""
