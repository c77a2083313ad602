"""What the tests of variational inference share: known models, states away from their start, q and a grid."""

from dataclasses import replace

import torch
from torch import Tensor

from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.objectives import State, families
from tests.helpers import STREAMS

F64 = torch.float64
OMEGA = [[0.3, 0.1], [0.1, 0.2]]
BEYOND = ("mixture", "flow")
INITIAL = {"CL": 0.15, "V1": 2.0, "Q": 0.2, "V2": 0.8}


def known(model: Model, sigma: float | None = 0.03, omega: object = OMEGA) -> Model:
    """Without a network; Omega and sigma as given, estimated where None."""
    return replace(
        model,
        network=CovariateNetwork.build([], list(INITIAL), {}, INITIAL),
        random_effects=RandomEffects(("CL", "V1"), fixed=omega),  # type: ignore[arg-type]
        error=ResidualError(("additive",), {} if sigma is None else {"additive": sigma}),
    )


def moved(state: State, scale: float = 0.3, seed: int = 5) -> State:
    """q away from where it begins."""
    g = torch.Generator().manual_seed(seed)
    trained = {
        name: v + scale * torch.randn(v.shape, generator=g, dtype=F64)
        if name.startswith(("q.", "population."))
        else v
        for name, v in state.trained.items()
    }
    return replace(state, trained=trained)


def normal(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def q_of(family: str, n: int = 1, k: int = 2, scale: float = 0.3, components: int = 3) -> families.Posterior:
    values = families.init(family, components, STREAMS[:1], (k, n), F64)
    return families.posterior(family, moved(State(values), scale).trained)


def grid(half: float, points: int) -> tuple[list[Tensor], float]:
    """Points of the square [-half, half]^2, (points^2, 1, 1) each, and the area of one."""
    x = torch.linspace(-half, half, points, dtype=F64)
    return [e.reshape(-1, 1, 1) for e in torch.meshgrid(x, x, indexing="ij")], (2 * half / (points - 1)) ** 2
