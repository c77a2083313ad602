"""Variational inference: a q over each subject's random effects, and, where they have priors, over sigma and
Omega, fitted together with the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import number, one_of, whole
from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.model.priors import POPULATION, PopulationPrior
from medcm_cli.model.random_effects import raw_correlation_init
from medcm_cli.model.rows import raw_of
from medcm_cli.numerics.normal import LOG_2PI, normal_points
from medcm_cli.numerics.streams import Stream, per_fit
from medcm_cli.objectives import families
from medcm_cli.objectives.base import Criterion, Objective, PopulationPosterior, State
from medcm_cli.objectives.by_occasion import ByOccasion
from medcm_cli.objectives.focei import Focei
from medcm_cli.objectives.gaussian import RAW_SD, Gaussian
from medcm_cli.objectives.profiled import Profiled
from medcm_cli.runs.description import Description

ESTIMATORS = ("path_derivative", "standard", "entropy")
POPULATIONS = ("point", "variational")
SAMPLES = 64  # for an ELBO without noise
_MOST_CORRELATED = 1 - 1e-12


@dataclass(frozen=True)
class Vi(Objective):
    """Minus the ELBO, sum_i E_q [log N(y; f(eta), Sigma) + log N(eta; 0, Omega) - log q(eta)].

    ``family`` of q_i: full_rank N(mu_i, L_i L_i'), mean_field with L_i diagonal, a mixture of ``components``
    Gaussians, or a normalising flow; by_occasion, of kappas that are independent between occasions given what
    varies between subjects (``objectives.by_occasion``). The expectation is the mean of ``samples``
    draws, of each component of a mixture.
    ``estimator`` chooses the gradient of log q: path_derivative detaches q's own parameters in it (Roeder et
    al. 2017), standard does not, entropy uses a Gaussian's closed-form entropy in its place.
    ``population`` variational adds a Gaussian q over the log sigmas, log omegas and raw correlations that are
    not fixed, one per fit, drawn afresh for each sample; minus the ELBO then has log q - log prior of these
    (``PopulationPrior`` with LKJ(``lkj``)), once.
    ``initial_sd``: of q_i where it begins; None: softplus(-1), or, near the data, Laplace's approximation.
    """

    samples: int = 3
    estimator: str = "path_derivative"
    family: str = "full_rank"
    components: int = 2
    population: str = "point"
    lkj: float = 1.0
    initial_sd: float | None = None
    mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for option in ("samples", "components"):
            whole(f"objective.{option}", getattr(self, option), 1)
        for option, choices in (
            ("estimator", ESTIMATORS),
            ("family", families.FAMILIES),
            ("population", POPULATIONS),
        ):
            one_of(f"objective.{option}", getattr(self, option), choices)
        if self.estimator == "entropy" and self.family in ("mixture", "flow"):
            raise InputError(
                f"objective.estimator=entropy: the entropy of objective.family={self.family} has no closed "
                "form; choose path_derivative or standard"
            )
        number("objective.lkj", self.lkj, above=0)
        if self.initial_sd is not None:
            number("objective.initial_sd", self.initial_sd, above=0, most=3)

    def describe(self) -> Description:
        """A lower bound of the likelihood, or of that and the prior of what has a q."""
        rank = 4 if self.samples == 1 else 3
        return Description(
            *("-ELBO", "nats"),
            likelihood="lower bound",
            scale=1.0,
            q=True,
            rank=rank,
            per_observation=LOG_2PI / 2,
        )

    def criterion(self, effects: int) -> Criterion:
        """With antithetic Sobol points in place of random ones, scaled so that their mean is 0 and their
        covariance the identity: exact where log p(y, eta) is quadratic in eta.

        :raises InputError: a q that is not Gaussian.
        """
        if self.family in ("mixture", "flow"):
            raise InputError(
                f"objective.family={self.family}: standard errors are there for full_rank and mean_field"
            )
        points = _points(effects)
        quiet = replace(self, samples=points.shape[1], estimator="entropy")
        return Criterion(quiet, 1.0, points)

    def first(self, model: Model, population: Population) -> Objective | None:
        """See ``Objective.first``: where q begins at the modes there."""
        return Focei() if self._searched(model, population) and self.initial_sd is None else None

    def _searched(self, model: Model, population: Population) -> bool:
        return self.population == "point" and families.searched(self.family, model, population)

    def profile(self, model: Model, population: Population) -> Criterion | None:
        """See ``Objective.profile``: of a Gaussian q, over the points of ``criterion``."""
        found = self._profiled(model, population)
        return None if found is None else Criterion(found, 1.0, places=found.points.shape[1])

    def profiled(self, model: Model, population: Population, state: State) -> dict[str, Tensor]:
        """See ``Objective.profiled``."""
        profiled = self._profiled(model, population)
        assert profiled is not None
        q = families.posterior(self.family, state.trained, model.sizes(len(profiled.points)))
        assert isinstance(q, Gaussian)
        alone = Gaussian([mean[None] for mean in q.mean], [[entry[None] for entry in row] for row in q.lower])
        return profiled.begun(model, population, state.trained, alone)

    def _profiled(self, model: Model, population: Population) -> Profiled | None:
        if not self._searched(model, population):
            return None
        k = model.size(population)
        return Profiled(_points(k), self.family == "full_rank" and k > 1, self.describe())

    def restored(self, model: Model, population: Population, state: State) -> dict[str, Tensor]:
        """See ``Objective.restored``."""
        profiled = self._profiled(model, population)
        assert profiled is not None
        q, sizes = profiled.posterior(model, population, state), model.sizes(len(profiled.points))
        return families.raw_values(q, sizes, profiled.full, _MOST_CORRELATED)

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``. q of the population parameters begins at the values that they would have
        without it, with raw sds -1 and raw correlations ~ N(0, 0.1).

        :raises InputError: ``population`` is variational and sigma and Omega are fixed.
        """
        self._check_occasions(model)
        values = model.init(streams, dtype)
        carried = {}
        if self.population == "variational":
            if not model.error.free and all(group.fixed is not None for group in model.groups):
                raise InputError(
                    "objective.population=variational: sigma and Omega are fixed, nothing of them is to be "
                    "estimated"
                )
            values = _population_init(values, streams, dtype)
            # Each subject's share of the terms that belong to the fit as a whole: a minibatch has that of its
            # own.
            carried["share"] = population.present / population.present.sum(0)
        shape = model.size(population), population.shape[1]
        occasions = (0, 0) if model.occasions is None else (population.occasions, len(model.occasions.names))
        own = families.init(self.family, self.components, streams, shape, dtype, occasions)
        if self.initial_sd is not None:
            own["q.sd"] = torch.full_like(own["q.sd"], raw_of(self.initial_sd))
        return State(values | own, carried, per_subject=(*own, *carried))

    def near(self, model: Model, population: Population, state: State) -> State:
        """See ``Objective.near``; with an ``initial_sd`` q is that of the beginning."""
        if self.initial_sd is not None:
            return state
        known = self.estimates(model, state.trained)
        return replace(state, trained=families.at_modes(self.family, model, population, state.trained, known))

    def noise_shape(self, model: Model, population: Population) -> tuple[int, int, int]:
        """eps: (K, S, N), and P more with P population parameters, for which the first subject's are used."""
        k = model.size(population)
        if self.population == "variational":
            k += PopulationPrior(model, self.lkj).size
        return k, self._draws, population.shape[1]

    def _check_occasions(self, model: Model) -> None:
        if model.occasions is not None and self.family in ("mixture", "flow"):
            raise InputError(
                f"objective.family={self.family}: with occasions choose full_rank, mean_field or by_occasion"
            )

    @property
    def _draws(self) -> int:
        return self.samples * (self.components if self.family == "mixture" else 1)

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``."""
        assert noise is not None
        values, k = state.trained, model.size(population)
        eps = noise[:k].unbind(0)
        q = families.posterior(self.family, values, model.sizes(k), model.there(population))
        eta = q.points(eps)
        weights = q.weights(self._draws)
        known = values
        of_population: Tensor | float = 0.0
        if self.population == "variational":
            prior, q_population = PopulationPrior(model, self.lkj), _population_posterior(values)
            numbers = noise[k:, :, :1].unbind(0)  # (S, 1, B) each
            point = q_population.points(numbers)
            drawn = torch.stack(point)
            known = {**values, **prior.values(drawn)}
            log_q = self._log_q(q_population, point, numbers) - prior.log_density(drawn)
            of_population = log_q.mean((0, 1)) * population.sum_subjects(state.carried["share"])
        prediction = model.predict(model.typical(values, population), population, eta)
        log_prior = model.log_prior(known, eta, None if model.occasions is None else population.there)
        log_q = self._log_q(q, eta, eps)
        likelihood = model.error.log_likelihood(
            model.of_subjects(known, eta), prediction, population, weights
        )
        if weights is not None:
            return population.sum_subjects(weights * (log_q - log_prior)) - likelihood + of_population
        log_q = population.sum_subjects(log_q.mean(0))
        return log_q - (likelihood + population.sum_subjects(log_prior)) / self.samples + of_population

    def _log_q(self, q: families.Posterior, points: Sequence[Tensor], numbers: Sequence[Tensor]) -> Tensor:
        """log q at points, (S, N, B), with the gradient that the estimator prescribes; minus the entropy, (1,
        N, B), where it prescribes that."""
        if self.estimator == "path_derivative":
            return q.detach().log_density(points)
        if self.estimator == "standard":
            return q.log_density_at(numbers, points)
        assert isinstance(q, Gaussian | ByOccasion)
        return -q.entropy().expand(1, *points[0].shape[1:])

    def estimates(self, model: Model, values: Values) -> Values:
        """See ``Objective.estimates``. Where they have a q: its median of sigma and omega, and the
        correlations of its mean raw ones, which for K = 2 is the median too."""
        if self.population == "point":
            return values
        return {**values, **PopulationPrior(model, self.lkj).values(values["population.mean"])}

    def random_effects(self, model: Model, population: Population, state: State) -> tuple[Tensor, Tensor]:
        """Mean and covariance of q; of a flow, over a fixed quasi-random sample."""
        sizes = model.sizes(model.size(population))
        return families.posterior(self.family, state.trained, sizes).moments()

    @torch.no_grad()
    def draw(self, model: Model, state: State, streams: Sequence[Stream], count: int) -> Tensor:
        """Independent draws of eta from q, (K, ``count``, N, B), by each fit's own random numbers."""
        q = families.posterior(self.family, state.trained, model.sizes(len(state.trained["q.mean"])))
        *_, n, _ = state.trained["q.mean"].shape
        shape = n, q.numbers, count
        noise = per_fit(streams, lambda g: g.standard_normal(shape), "draws", state.trained["q.mean"].dtype)
        return torch.stack(q.draw(noise.permute(1, 2, 0, 3).unbind(0)))

    def population_posterior(self, model: Model, values: Values) -> PopulationPosterior | None:
        """See ``Objective.population_posterior``."""
        if self.population == "point":
            return None
        moments = _population_posterior(values).moments()
        return PopulationPosterior(PopulationPrior(model, self.lkj), *moments, name="population.mean")


def _points(effects: int) -> Tensor:
    """(K, S)."""
    return normal_points(effects, max(SAMPLES, 2 ** math.ceil(math.log2(4 * effects))))


def _population_init(
    values: dict[str, Tensor], streams: Sequence[Stream], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Initial values of q in place of those of sigma, omega and raw correlations."""
    point = {name: values.pop(name) for name in POPULATION if name in values}
    mean = torch.cat(
        [raw if "correlation" in name else functional.softplus(raw).log() for name, raw in point.items()]
    )
    size = len(mean)
    values["population.mean"] = mean
    values["population.sd"] = torch.full_like(mean, RAW_SD)
    if size > 1:
        pairs = (size * (size - 1) // 2,)
        values["population.correlation"] = raw_correlation_init(
            streams, "population.correlation", pairs, dtype
        )
    return values


def _population_posterior(values: Values) -> Gaussian:
    return Gaussian.from_raw(
        values["population.mean"], values["population.sd"], values.get("population.correlation")
    )
