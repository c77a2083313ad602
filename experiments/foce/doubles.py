"""FOCE as two programs might have it by mistake, to see what each mistake does to the estimates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medcm_cli.data import Population, from_files
from medcm_cli.data.events import IntArray
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Foce
from medcm_cli.objectives.base import State


@dataclass(frozen=True)
class ModesOfAnotherFold(Foce):
    """EBEs are sought for the subjects of fold k, while the objective is that of the fit's subjects: whoever
    is not in both keeps eta = 0. This is what the published FOCE fits did (the experiment's README).

    ``folder`` holds the fold files of a study of ``subjects`` subjects. With ``threads`` above 1, EBEs
    are also sought for the subjects of the next folds, as if as many fits wrote to the same etas (with this
    fit's parameters, where another fit would leave what its parameters give).
    """

    folder: str = ""
    subjects: int = 500
    threads: int = 1
    folds: int = 20

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``; carries who of the fit's subjects is in fold k."""
        state = super().init(model, population, streams, dtype)
        trained = [np.concatenate([self._train(fold) for fold in self._at_once(s.fold)]) for s in streams]
        columns = zip(population.subject.T.numpy(), trained, strict=True)
        searched = np.stack([np.isin(subject, rows) for subject, rows in columns], axis=-1)
        carried = {**state.carried, "searched": torch.from_numpy(searched)}
        return replace(state, carried=carried, per_subject=tuple(carried))

    def _at_once(self, fold: int) -> list[int]:
        return [1 + (fold - 1 + thread) % self.folds for thread in range(self.threads)]

    def _train(self, fold: int) -> IntArray:
        return from_files(fold, self.subjects, Path(self.folder), "train_set_{fold}.csv").train

    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        """EBEs of those who are in fold k, zero for the others."""
        searched = state.carried["searched"]
        fresh = super().refresh(model, population, state, noise)
        eta = fresh.carried["eta"] * searched
        return replace(fresh, carried={**fresh.carried, "eta": eta, "searched": searched})


@dataclass(frozen=True)
class DetachedSlopes(Foce):
    """No gradient flows through G, the derivative of the model with respect to eta."""

    def linearise(self, model: Model, state: State, population: Population) -> tuple[Tensor, list[Tensor]]:
        """f and the columns of G at eta_hat, the columns as constants."""
        prediction, columns = super().linearise(model, state, population)
        return prediction, [column.detach() for column in columns]
