"""Stochastic approximation EM: the maximum of the likelihood itself, by draws of each subject's random
effects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from medcm_cli.checks import whole
from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.numerics.normal import normal_points
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import multiply_lower, total
from medcm_cli.objectives import chains, maximisation
from medcm_cli.objectives.base import Criterion, Objective, State
from medcm_cli.objectives.integral import joint
from medcm_cli.runs.description import Description

_TOLERANCE, _ITERATIONS = 1e-2, 2  # of modes, in an epoch: a step in eta, and how many steps
_KEPT = 0.95  # of a variance, in an epoch of the exploration, at the least
_POWER = 0.7  # steps of epochs after it are longer than those of a mean would be, and are averaged
_POINTS = 256  # of the moments of eta


@dataclass(frozen=True)
class Saem(Objective):
    """-2 log L, by the mean weight of proposals of eta over all epochs after the ``exploration``
    (docs/methods.md, "Objectives").

    In an epoch values step to where the joint density of levels and individual parameters is highest, at the
    draws of the last one; then each of so many ``chains`` of each subject takes a step. In the
    ``exploration``, of so many epochs, values go all the way, but variances fall slowly; afterwards they are
    the means of where they would have gone. What has no such step, as what a network has learned, follows the
    gradient of that density.
    """

    chains: int = 5
    exploration: int = 200
    mixed: ClassVar[bool] = True
    effort: ClassVar[float] = 5.0

    def __post_init__(self) -> None:
        whole("objective.chains", self.chains, 1)
        whole("objective.exploration", self.exploration, 0)

    def describe(self) -> Description:
        """-2 log L, by importance sampling."""
        return Description(unit="-2 log L", likelihood="importance sampling", scale=2.0)

    def criterion(self, effects: int) -> Criterion:
        """:raises InputError: always; draws are no function without noise."""
        del effects
        raise InputError("objective=saem is no function without noise; refit by objective=focei or agq")

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``; all subjects are still without draws."""
        trained = model.init(streams, dtype)
        none = population.present.new_zeros(population.present.shape, dtype=dtype)[None]
        size = model.size(population)
        own = {
            "eta": none.expand(size, self.chains, -1, -1).clone(),
            "mode": none.expand(size, -1, -1).clone(),
            "drawn": none,
            "log_mean": none,
            "log_square": none,
        }
        of_fit = {"passes": none[0, 0], "subjects": population.present.sum(0).to(dtype)}
        moved = _moved(model, population, trained)
        return State(trained, own | of_fit, per_subject=tuple(own), moved=moved)

    def refresh_shape(self, model: Model, population: Population) -> tuple[int, int, int]:
        """(numbers of a draw, chains, N)."""
        return chains.numbers(model.size(population)), self.chains, population.shape[1]

    @torch.no_grad()
    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        """A step of the values that are moved, by the last draws, and of the chains."""
        assert noise is not None
        carried = state.carried
        drawn = carried["drawn"] * population.present
        # Of a minibatch the step is as much shorter as it has fewer subjects.
        share = population.present.sum(0) / carried["subjects"]
        after = (carried["passes"] + share - self.exploration).clamp(min=1)
        exploring = carried["passes"] < self.exploration
        gain = maximisation.Gain(share / after**_POWER, torch.where(exploring, _KEPT**share, 0.0))
        eta = carried["eta"].unbind(0)
        new, eta, prediction = maximisation.step(
            model, population, state.trained, state.moved, eta, drawn, gain
        )
        mode = maximisation.recentred(
            model, population, state.trained, new, [one[None] for one in carried["mode"]]
        )
        at = chains.around(model, new, population, mode, _TOLERANCE, _ITERATIONS)
        fresh = carried["drawn"] == 0
        found = chains.step(model, new, population, at, eta, fresh, prediction, noise.unbind(0))
        means = {
            name: torch.where(fresh, value, _log_mean(carried[name], value, 1 / after))
            for name, value in (("log_mean", found.log_mean), ("log_square", found.log_square))
        }
        kept = {
            "eta": torch.stack(found.eta),
            "mode": torch.cat(found.start),
            "drawn": population.present.expand_as(fresh).clone(),
            "passes": carried["passes"] + share,
        }
        return replace(state, trained=new, carried={**carried, **means, **kept})

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``. Its gradient is that of -2 log density of levels and individual parameters,
        the mean over draws, in what is not moved (Fisher's identity)."""
        del noise
        value = population.sum_subjects(-2 * state.carried["log_mean"])
        if not torch.is_grad_enabled() or set(state.moved) == set(state.trained):
            return value
        along = self._complete(model, population, state)
        return value + along - along.detach()

    def _complete(self, model: Model, population: Population, state: State) -> Tensor:
        values = {
            name: value.detach() if name in state.moved else value for name, value in state.trained.items()
        }
        zeta = model.typical(values, population)
        held = model.random_effects.centres(zeta)
        eta = state.carried["eta"].unbind(0)
        # Individual parameters stay, so typical ones have a say in the density of eta alone.
        around = [
            effect + held[name].detach() - held[name] if name in held else effect
            for name, effect in zip(model.random_effects.names, eta, strict=False)
        ]
        around += eta[len(around) :]
        there = None if model.occasions is None else population.there
        density = population.sum_subjects(model.log_prior(values, around, there))
        free = {name: value.detach() if name in held else value for name, value in zeta.items()}
        if any(value.requires_grad for value in free.values()) or "sigma" not in state.moved:
            prediction = model.predict(free, population, eta)
            density = density + model.error.log_likelihood(
                model.of_subjects(values, eta), prediction, population
            )
        return -2 * density / self.chains

    def error(self, population: Population, state: State) -> Tensor:
        """See ``Objective.error``."""
        carried = state.carried
        after = (carried["passes"] - self.exploration).clamp(min=1)
        variance = torch.expm1(carried["log_square"] - 2 * carried["log_mean"]) / (self.chains * after)
        return population.sum_subjects(4 * variance).sqrt()

    @torch.no_grad()
    def random_effects(self, model: Model, population: Population, state: State) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the posterior, by the weights of quasi-random proposals."""
        values, k = state.trained, model.size(population)
        zero = torch.zeros_like(population.present)[None]
        at = chains.around(model, values, population, [zero] * k, _TOLERANCE**2, 100).peak
        z = [row.view(-1, 1, 1) for row in normal_points(k, _POINTS).to(at.u[0]) * _WIDER]
        u = at.away(z)
        value = joint(model, values, population, at, u)
        weight = torch.softmax(0.5 * (total([x * x for x in z]) / _WIDER**2 - value), 0)
        eta = torch.stack(multiply_lower(at.omega, u))  # (K, S, N, B)
        mean = (weight * eta).sum(1)
        away = eta - mean[:, None]
        return mean, (weight * away[:, None] * away).sum(2)


_WIDER = 1.2  # of these, relative to the information's sds


def _log_mean(old: Tensor, new: Tensor, share: Tensor) -> Tensor:
    """log((1 - share) exp(old) + share exp(new))."""
    return torch.logaddexp(old + torch.log1p(-share), new + torch.log(share))


def _moved(model: Model, population: Population, trained: Values) -> tuple[str, ...]:
    """The values that have a step of their own: covariances of which nothing is known, sigmas, and single
    numbers on which nothing depends but what individual parameters lie around."""
    found = [name for group in model.groups if group.is_plain for name in (group.of, group.raw_correlation)]
    found = [name for name in (*found, "sigma") if name in trained]
    leaves = {
        name: value.detach().clone().requires_grad_() for name, value in trained.items() if value.ndim == 1
    }
    if not leaves:
        return tuple(found)
    with torch.enable_grad():
        zeta = model.typical({**trained, **leaves}, population)
        held = model.random_effects.centres(zeta)
        of_held, of_others = (
            [z.sum() for name, z in zeta.items() if (name in held) == wanted and z.requires_grad]
            for wanted in (True, False)
        )
        touches, also = (
            torch.autograd.grad(sum(of), list(leaves.values()), retain_graph=True, allow_unused=True)
            if of
            else [None] * len(leaves)
            for of in (of_held, of_others)
        )
    return (
        *found,
        *(
            name
            for name, one, other in zip(leaves, touches, also, strict=True)
            if one is not None and other is None
        ),
    )
