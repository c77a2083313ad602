"""Adaptive Gauss-Hermite quadrature of each subject's likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from medcm_cli.checks import whole
from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Criterion, Objective, State
from medcm_cli.objectives.conditional import Conditional
from medcm_cli.objectives.integral import around_modes, hermite
from medcm_cli.runs.description import Description

MOST = 2000  # nodes of a subject
UP_TO = 3
"""Random effects for which a likelihood is taken by quadrature where nobody says how; of more, nodes are too
many."""


@dataclass(frozen=True)
class Agq(Conditional):
    """``nodes`` per random effect, around eta_hat, as wide as the expected information there says; of one
    node, Laplace's approximation (docs/methods.md, "Objectives")."""

    nodes: int = 5
    effort: ClassVar[float] = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("objective.nodes", self.nodes, 1, MOST)

    def describe(self) -> Description:
        """-2 log L, by quadrature."""
        return Description(unit="-2 log L", likelihood="adaptive Gauss-Hermite", scale=2.0)

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Conditional``. :raises InputError: more nodes than anybody can wait for."""
        effects = model.size(population)
        if self.nodes**effects > MOST:
            raise InputError(
                f"objective.nodes={self.nodes}: of {effects} random effects these are {self.nodes**effects} "
                f"nodes of each subject, expected at most {MOST}; choose fewer, or objective=laplace"
            )
        return super().init(model, population, streams, dtype)

    def criterion(self, effects: int) -> Criterion:
        """See ``Conditional``."""
        return replace(super().criterion(effects), places=self.nodes**effects)

    def held(self) -> Objective | None:
        """See ``Objective``: a quadrature of several nodes may be centred anywhere."""
        if self.nodes == 1:
            return None
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        return _Held(**{**options, "mode_gradient": "fixed"})

    def of_subjects(self, model: Model, population: Population, state: State) -> Tensor:
        """See ``Conditional``."""
        eta = state.carried["eta"].split(1)
        nodes = hermite(len(eta), self.nodes)
        # Several nodes are placed by the expected information, which always has an inverse: where the Hessian
        # has none, as where two modes become one, the sum of few nodes has no bound: a fit would end there.
        exact = self.nodes == 1
        return around_modes(
            model, state.trained, population, eta, exact=exact, follow=self.follows, nodes=nodes
        )


class _Held(Agq):
    """Around the eta that are carried, modes or not, which stay where they are."""

    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        """Nothing is searched."""
        del model, population, noise
        return state
