"""A linear-Gaussian model whose typical parameters depend on a covariate: ``fo`` is exact."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import Equations, Model, RandomEffects, ResidualError, Values
from medcm_cli.model.distributions import Additive
from medcm_cli.numerics.streams import Stream
from tests.helpers import (
    COVARIATES,
    F64,
    make_population,
)

STREAMS = [Stream(3, 1, replicate) for replicate in (1, 2, 3)]
MOVED = ("omega", "correlation", "sigma", "global.CL", "global.V1", "global.CL_weight_slope")


@dataclass(frozen=True)
class Linear(Model):
    """y = x1 z1 + x2 z2 + residual, z = zeta + eta: the likelihood of ``fo`` is exact."""

    def design(self, population: Population) -> list[Tensor]:
        t = population.time
        return [torch.cos(t / 9), torch.sin(t / 7) + 0.5]

    def predict(self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None) -> Tensor:
        z = [zeta["CL"], zeta["V1"]]
        if eta is not None:
            z = [typical + effect for typical, effect in zip(z, eta, strict=True)]
        left, right = self.design(population)
        return left * z[0] + right * z[1]

    def linearise(
        self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        f = self.predict(zeta, population, eta)
        return f, [column.expand_as(f) for column in self.design(population)]


def linear_of(like: Model, structure: str = "full") -> Linear:
    """With typical parameters of which one depends on weight."""
    written: dict[str, dict[str, Any]] = {
        "CL": {"typical": 1.0, "weight": {"linear": {"initial": 0.0}}},
        "V1": {"typical": 2.0},
        "Q": {"typical": {"fixed": 0.1}},
        "V2": {"typical": {"fixed": 0.5}},
    }
    effects = RandomEffects(("CL", "V1"), structure, distributions={n: Additive() for n in ("CL", "V1")})
    return Linear(Equations.build(written, COVARIATES), like.pk, effects, ResidualError(("additive",)))


def population_of(linear: Linear) -> Population:
    """Fits of the same subjects, of omega 0.6 and 0.4 with a correlation of 0.5, and sigma 0.2."""
    subjects = make_population(25, 3, doses=2)
    g = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 1, 25, 1, generator=g, dtype=F64)
    eta = [0.6 * first, 0.4 * (0.5 * first + 0.75**0.5 * second)]
    noise = 0.2 * torch.randn(subjects.dv.shape[0], 1, 25, 1, generator=g, dtype=F64)
    weight = subjects.covariates["weight"][..., :1]
    zeta = {"CL": 1 + 0.01 * (weight - 70), "V1": torch.full((1,), 2.0, dtype=F64)}
    dv = (linear.predict(zeta, subjects, eta) + noise)[..., :1]
    return replace(subjects, dv=dv.expand_as(subjects.dv).contiguous())
