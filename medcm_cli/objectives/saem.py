"""Stochastic approximation EM: the maximum of the likelihood itself, by draws of each subject's random
effects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from medcm_cli.checks import whole
from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.numerics.devices import everywhere, nowhere
from medcm_cli.numerics.normal import normal_points
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import multiply_lower, total
from medcm_cli.objectives import ascent, chains, maximisation
from medcm_cli.objectives.agq import UP_TO, Agq
from medcm_cli.objectives.base import Criterion, Objective, State
from medcm_cli.objectives.integral import joint
from medcm_cli.objectives.laplace import Laplace
from medcm_cli.runs.description import Description

_TOLERANCE, _ITERATIONS = 1e-2, 2  # of modes, in an epoch: a step in eta, and how many steps
_KEPT = 0.95  # of a variance, in an epoch of the exploration, at the least
_RATE = 0.02  # the weight of an epoch's scores, once there are as many
_MANY = 5  # times as many subjects as values that are moved: who has fewer takes no step by information
# Of the k-th epoch after the exploration a step is (k + _SHORT)^-_POWER of a whole one: longer than those of
# a mean would be, and averaged.
_POWER, _SHORT = 0.7, 5.0
_POINTS = 256  # of the moments of eta
_NODES = {1: 32, 2: 31, 3: 10}  # of each of so many random effects: about 1000 of a subject


@dataclass(frozen=True)
class Saem(Objective):
    """-2 log L, by the mean weight of an epoch's proposals of eta; at rest, by that over many epochs
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
        whole("objective.chains", self.chains, 1, 1000)
        whole("objective.exploration", self.exploration, 0, 1_000_000)

    def describe(self) -> Description:
        """-2 log L, by importance sampling."""
        return Description(unit="-2 log L", likelihood="importance sampling", scale=2.0)

    def criterion(self, effects: int) -> Criterion:
        """The likelihood, of which it seeks the maximum: of a few random effects by quadrature, of more
        Laplace's approximation."""
        if not 0 < effects <= UP_TO:
            return Laplace().criterion(effects)
        return Agq(nodes=_NODES[effects]).criterion(effects)

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
            "epochs": none,
            "log_mean": none,
            "log_square": none,
        }
        moved = _moved(model, population, trained)
        of_fit = {"passes": none[0, 0], "subjects": population.present.sum(0).to(dtype)}
        count = sum(trained[name][..., 0].numel() for name in moved)
        if count:
            own["score"] = none.expand(count, -1, -1).clone()
            of_fit["information"] = none[0, 0].expand(count, count, -1).clone()
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
        eta: Sequence[Tensor] = carried["eta"].unbind(0)
        old = state.trained
        prediction = model.predict(model.typical(old, population), population, eta)
        new, known = self._moved(model, population, state, eta, prediction, drawn, share)
        # Individual parameters, and so what is predicted, stay where they are.
        eta = maximisation.recentred(model, population, old, new, eta)
        mode = [one[None] for one in carried["mode"]]
        mode = maximisation.recentred(model, population, old, new, mode)
        own = {
            "eta": torch.stack(list(eta)),
            "mode": torch.cat(mode),
            "passes": carried["passes"] + share,
            "epochs": torch.zeros_like(carried["epochs"]),
        }
        changed = replace(state, trained=dict(new), carried={**carried, **known, **own})
        return self._drawn(model, population, changed, prediction, noise)

    @torch.no_grad()
    def settled(self, model: Model, population: Population, state: State, noise: Tensor) -> State:
        """See ``Objective.settled``: chains go on, and weights are averaged over all their epochs since."""
        eta = state.carried["eta"].unbind(0)
        prediction = model.predict(model.typical(state.trained, population), population, eta)
        return self._drawn(model, population, state, prediction, noise)

    def _drawn(
        self, model: Model, population: Population, state: State, prediction: Tensor, noise: Tensor
    ) -> State:
        """After a step of the chains. :param prediction: where they are, (T, S, N, B)."""
        carried, values = state.carried, state.trained
        eta, mode = carried["eta"].unbind(0), [one[None] for one in carried["mode"]]
        at = chains.around(model, values, population, mode, _TOLERANCE, _ITERATIONS)
        fresh = carried["drawn"] == 0
        found = chains.step(model, values, population, at, eta, fresh, prediction, noise.unbind(0))
        epochs = carried["epochs"] + 1
        own = {
            "eta": torch.stack(found.eta),
            "mode": torch.cat(found.start),
            "drawn": population.present.expand_as(fresh).clone(),
            "epochs": epochs,
            "log_mean": _log_mean(carried["log_mean"], found.log_mean, 1 / epochs),
            "log_square": _log_mean(carried["log_square"], found.log_square, 1 / epochs),
        }
        return replace(state, carried={**carried, **own})

    def _moved(
        self,
        model: Model,
        population: Population,
        state: State,
        eta: Sequence[Tensor],
        prediction: Tensor,
        drawn: Tensor,
        share: Tensor,
    ) -> tuple[Values, dict[str, Tensor]]:
        """Values after their step, and what is known of scores."""
        carried, moved = state.carried, state.moved
        if not moved:
            return state.trained, {}
        passes = carried["passes"]
        exploring = passes < self.exploration
        known = ascent.Known(carried["score"], carried["information"])
        # Of few subjects the scores do not tell the information.
        many = carried["subjects"] >= _MANY * len(known.score)
        if not nowhere(many):
            found = ascent.scores(model, population, state.trained, moved, eta, prediction)
            rate = torch.maximum(1 / passes.clamp(min=1), torch.full_like(passes, _RATE))
            known = ascent.learned(known, found, drawn, share, rate)
        shorter = (passes - self.exploration + _SHORT).clamp(min=_SHORT) ** -_POWER
        newton = many & ~exploring
        new = {name: state.trained[name] for name in moved}
        if not nowhere(newton):
            there = ascent.step(state.trained, moved, known, found, drawn, share, share * shorter)
            new = {name: torch.where(newton, there[name], old) for name, old in new.items()}
        if not everywhere(newton):
            move = torch.where(exploring, share, share * shorter)
            gain = maximisation.Gain(move, torch.where(exploring, _KEPT**share, 0.0))
            there = maximisation.step(model, population, state.trained, moved, eta, prediction, drawn, gain)
            new = {name: torch.where(newton, old, there[name]) for name, old in new.items()}
        return {**state.trained, **new}, known._asdict()

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
        draws = self.chains * carried["epochs"]
        variance = torch.expm1(carried["log_square"] - 2 * carried["log_mean"]) / draws
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
            torch.autograd.grad(of, list(leaves.values()), retain_graph=True, allow_unused=True)
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
