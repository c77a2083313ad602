"""Importance-weighted variational inference: a bound of the likelihood that tightens as samples are added."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from medcm_cli.checks import one_of, whole
from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.numerics.normal import LOG_2PI, normal_points
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import families
from medcm_cli.objectives.base import Criterion, Objective, State
from medcm_cli.objectives.focei import Focei
from medcm_cli.runs.description import Description

FAMILIES = tuple(family for family in families.FAMILIES if family != "mixture")
ESTIMATORS = ("doubly_reparametrised", "standard")
_POINTS = 256  # of the moments of eta


@dataclass(frozen=True)
class Iw(Objective):
    """-sum_i E_q log[1/S sum_s w_s], w = p(y, eta) / q(eta), S = ``samples`` draws of q_i (Burda, Grosse and
    Salakhutdinov 2016); of one sample it is ``Vi``.

    ``family`` of q_i, as of ``Vi``, but for mixtures. ``estimator`` of the gradient of q's own values:
    doubly_reparametrised (Tucker et al. 2019), or standard, whose signal is lost in its noise as samples are
    added. That of all other values is the same by both.
    """

    samples: int = 8
    family: str = "full_rank"
    estimator: str = "doubly_reparametrised"
    mixed: ClassVar[bool] = True
    effort: ClassVar[float] = 4.0

    def __post_init__(self) -> None:
        whole("objective.samples", self.samples, 1)
        one_of("objective.family", self.family, FAMILIES)
        one_of("objective.estimator", self.estimator, ESTIMATORS)

    def describe(self) -> Description:
        """A lower bound of the likelihood, which no distribution of its own belongs to."""
        return Description(
            *("-IW-ELBO", "nats"),
            likelihood="importance-weighted lower bound",
            scale=1.0,
            per_observation=LOG_2PI / 2,
        )

    def criterion(self, effects: int) -> Criterion:
        """:raises InputError: always. With samples that stay the same, a q that misses what lies between them
        would be the optimum."""
        del effects
        raise InputError("objective=iw is no function without noise; refit by objective=focei or agq")

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``; q begins as that of ``Vi``."""
        shape = model.size(population), population.shape[1]
        occasions = (0, 0) if model.occasions is None else (population.occasions, len(model.occasions.names))
        own = families.init(self.family, 1, streams, shape, dtype, occasions)
        return State(model.init(streams, dtype) | own, per_subject=tuple(own))

    def first(self, model: Model, population: Population) -> Objective | None:
        """See ``Objective.first``: where q begins at the modes there."""
        return Focei() if families.searched(self.family, model, population) else None

    def near(self, model: Model, population: Population, state: State) -> State:
        """See ``Objective.near``."""
        values = families.at_modes(self.family, model, population, state.trained, state.trained)
        return replace(state, trained=values)

    def noise_shape(self, model: Model, population: Population) -> tuple[int, int, int]:
        """eps: (K, S, N)."""
        return model.size(population), self.samples, population.shape[1]

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``."""
        assert noise is not None
        q = families.posterior(self.family, state.trained, model.sizes(len(noise)))
        eta = q.points(noise.unbind(0))
        doubly = self.estimator == "doubly_reparametrised" and torch.is_grad_enabled()
        log_weight = _log_weight(model, population, state.trained, q.detach() if doubly else q, eta)
        bound = torch.logsumexp(log_weight, 0, keepdim=True)
        if doubly:
            share = torch.exp(log_weight - bound).detach()
            for effect in eta:
                if effect.requires_grad:
                    # What reaches q comes through eta, with the square of its share in place of that.
                    effect.register_hook(share.mul)
            along = (share * log_weight).sum(0, keepdim=True)
            bound = bound.detach() + along - along.detach()
        constant = torch.full_like(bound, float(self.samples)).log()
        return population.sum_subjects(constant - bound)

    @torch.no_grad()
    def random_effects(self, model: Model, population: Population, state: State) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the posterior, by the weights of quasi-random draws of q, which is wider."""
        values, k = state.trained, model.size(population)
        q = families.posterior(self.family, values, model.sizes(k))
        points = normal_points(k, _POINTS).to(values["q.mean"])
        eta = q.points([row.view(-1, 1, 1).expand(-1, *values["q.mean"].shape[-2:]) for row in points])
        weight = torch.softmax(_log_weight(model, population, values, q, eta), 0)
        stacked = torch.stack(eta)  # (K, S, N, B)
        mean = (weight * stacked).sum(1)
        away = stacked - mean[:, None]
        return mean, (weight * away[:, None] * away).sum(2)


def _log_weight(
    model: Model, population: Population, values: Values, q: families.Posterior, eta: Sequence[Tensor]
) -> Tensor:
    """log p(y, eta) - log q(eta) of each subject, (S, N, B)."""
    joint = model.log_joint(values, model.typical(values, population), population, eta)
    return joint - q.log_density(eta)
