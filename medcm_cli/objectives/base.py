"""The contract between the training loop and an objective."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.model.priors import PopulationPrior
from medcm_cli.numerics.streams import Stream
from medcm_cli.runs.description import Description


@dataclass(frozen=True)
class State:
    """``trained``: unconstrained values by name, fit dimension last, which are what a fit estimates. The
    optimiser moves them, but for those that ``moved`` names, which ``Objective.refresh`` moves.

    ``carried``: tensors that an objective keeps between epochs and no gradient flows to, such as FOCE's modes
    or the statistics of a stochastic EM. ``per_subject``: names of the values, trained or carried, of which
    each subject has its own: (..., N, B). The others are of the fit: (..., B).
    """

    trained: dict[str, Tensor]
    carried: dict[str, Tensor] = field(default_factory=dict)
    per_subject: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "State":
        """The same, on a device."""
        trained, carried = (
            {name: value.to(device) for name, value in values.items()}
            for values in (self.trained, self.carried)
        )
        return replace(self, trained=trained, carried=carried)


class PopulationPosterior(NamedTuple):
    """N(``mean`` (P, B), ``covariance`` (P, P, B)) over the coordinates of ``prior``; ``name`` of the trained
    values that are the mean."""

    prior: PopulationPrior
    mean: Tensor
    covariance: Tensor
    name: str


@runtime_checkable
class Objective(Protocol):
    """Minimised by ``training.loop.train``. Functions of their arguments only: an objective holds options,
    never state.

    In every epoch, or with every minibatch, ``refresh`` is called first and the ``loss`` taken of the state
    that it returns; the optimiser then takes a step along the gradient of that loss. A method that is no
    gradient descent (EM, SAEM, Newton) takes its own step in ``refresh``, of the values that its state says
    are ``moved``: of all, or of some, beside what the optimiser moves.

    ``mixed``: whether Omega and sigma are estimated. ``effort``: how long an epoch takes, roughly, in units
    of one of mse's; jobs that share processes are divided by it.
    """

    mixed: ClassVar[bool]
    effort: ClassVar[float] = 2.0

    def describe(self) -> Description:
        """What it is, for those who show its results."""
        return Description()

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """Initial values of a batch of fits, and everything that is carried: on the CPU, where ``population``
        is, whatever device they are then trained on."""

    def noise_shape(self, model: Model, population: Population) -> tuple[int, ...] | None:
        """Shape (..., N) of the standard normal numbers that the loss of one epoch of one fit uses, None for
        none."""
        del model, population
        return None

    def refresh_shape(self, model: Model, population: Population) -> tuple[int, ...] | None:
        """Likewise of those that ``refresh`` uses, which have a stream of their own."""
        del model, population
        return None

    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        """At the start of an epoch: ``carried`` brought up to date with ``trained``, and a step of the values
        that are ``moved``; no gradient is recorded."""
        del model, population, noise
        return state

    def first(self, model: Model, population: Population) -> "Objective | None":
        """Another, whose optimum is a good place to begin at, and soon found; None where there is none."""
        del model, population
        return None

    def near(self, model: Model, population: Population, state: State) -> State:
        """The same beginning, where population parameters are near what the data say: what each subject has
        for itself is what these lead to."""
        del model, population
        return state

    def searched_widely(self, model: Model, population: Population, state: State) -> State:
        """``refresh`` of an objective without random numbers, where what it searches is looked for in more
        places than where it was last: now and then, since it takes long."""
        return self.refresh(model, population, state)

    def held(self) -> "Objective | None":
        """The same with what is searched left where ``searched_widely`` has put it, which approximates the
        same likelihood and has no step where a search leads elsewhere; None where it has to be searched."""
        return None

    def profile(self, model: Model, population: Population) -> "Criterion | None":
        """The same without noise, and of what subjects share alone, their own values at their optimum; it has
        the same optimum but for what points that stay what they are leave out. None where there is none."""
        del model, population
        return None

    def profiled(self, model: Model, population: Population, state: State) -> dict[str, Tensor]:
        """What the profile carries where each subject's own values are those of a ``state``."""
        del model, population, state
        return {}

    def restored(self, model: Model, population: Population, state: State) -> dict[str, Tensor]:
        """The opposite: the values of each subject's own where a profile's ``state`` has led."""
        del model, population, state
        return {}

    def settled(self, model: Model, population: Population, state: State, noise: Tensor) -> State:
        """The same of values that have come to rest, of which none is ``moved``: what is carried learns more
        of them."""
        return self.refresh(model, population, state, noise)

    def unconverged(self, population: Population, state: State) -> Tensor | None:
        """Of each fit, (B,), the share of subjects for which what ``refresh`` searches was not found; None
        where it searches nothing."""
        del population, state
        return None

    def error(self, population: Population, state: State) -> Tensor | None:
        """The Monte Carlo error of the value of each fit, (B,), where what is carried makes it up; None
        where it is that of the noise of an epoch, or there is none."""
        del population, state
        return None

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """Value to minimise per fit, (B,): a sum over subjects, divided by ``divisor``."""

    def of_priors(self, model: Model, values: Values) -> Tensor | None:
        """What priors of the population add to the value, (B,), in its unit; None where there are none."""
        del model, values
        return None

    def divisor(self, population: Population) -> Tensor | float:
        """What the loss of ``population`` is divided by, (B,) or 1: with it, losses of parts of a population
        can be put together to that of the whole."""
        del population
        return 1.0

    def estimates(self, model: Model, values: Values) -> Values:
        """Trained values with estimates of Omega and sigma among them, as ``Model.init`` lays them out: the
        values themselves where those are what is trained."""
        del model
        return values

    def random_effects(
        self, model: Model, population: Population, state: State
    ) -> tuple[Tensor, Tensor] | None:
        """Posterior mean (K, N, B) and covariance (K, K, N, B) of eta under the trained values, None without
        eta."""

    def draw(self, model: Model, state: State, streams: Sequence[Stream], count: int) -> Tensor | None:
        """Independent draws of eta from q, (K, ``count``, N, B), by each fit's own random numbers; None of an
        objective without a q."""
        del model, state, streams, count
        return None

    def population_posterior(self, model: Model, values: Values) -> PopulationPosterior | None:
        """q of the population parameters; None where they have none."""
        del model, values
        return None

    def criterion(self, effects: int) -> "Criterion":
        """What a fit estimates by, with ``effects`` random effects.

        :raises InputError: this is no likelihood, or no function without noise.
        """
        del effects
        raise InputError(f"objective={type(self).__name__.lower()} is no likelihood")


@dataclass(frozen=True)
class Criterion:
    """A function without noise whose minimum is the estimate: ``objective``, with ``noise`` (K, S) for each
    subject, is -``scale`` times a log likelihood, or a bound or an approximation of it, plus a constant. Each
    subject is predicted at so many ``places``, for each sample of the noise."""

    objective: Objective
    scale: float
    noise: Tensor | None = None
    places: int = 1


def refuse_censored(objective: str, model: Model, population: Population) -> None:
    """For objectives that need a normal density for every observation.

    :raises InputError: the population has censored observations, or they are given above 0.
    """
    if model.error.above_zero:
        raise InputError(
            f"{objective} has no likelihood given that levels are above 0 (dataset.blq=M4); choose "
            "objective=foce (joint) or vi"
        )
    if population.censored is not None:
        raise InputError(
            f"{objective} has no likelihood for observations beyond a limit of quantification (cens 1 or "
            "-1); "
            "choose objective=foce (joint) or vi"
        )


def refuse_sigma(objective: str, model: Model) -> None:
    """For objectives that linearise predictions alone.

    :raises InputError: the residual error has a random effect.
    """
    if model.random_effects.place_of_sigma is not None:
        raise InputError(
            f"random_effects has sigma, which moves no prediction: {objective} linearises these and would "
            "not see it; choose objective=foce (joint) or vi"
        )
