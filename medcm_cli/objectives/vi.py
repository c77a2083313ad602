"""Variational inference: a Gaussian q over each subject's random effects, fitted together with the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.objectives.base import Objective, State
from medcm_cli.streams import Stream
from medcm_cli.variability import (
    LOG_2PI,
    Lower,
    covariance,
    dense,
    diagonal,
    log_det,
    log_probability_below,
    lower_from_raw,
    multiply_lower,
    normal_log_density,
    raw_correlation_init,
    total,
)

ESTIMATORS = ("path_derivative", "standard", "entropy")
FAMILIES = ("full_rank", "mean_field")


@dataclass(frozen=True)
class Vi(Objective):
    """Minus the ELBO, sum_i mean_s [log N(y; f(eta_s), Sigma) + log N(eta_s; 0, Omega) - log q(eta_s)].

    q_i = N(mu_i, L_i L_i'), eta_s = mu_i + L_i eps_s; ``family`` mean_field makes L_i diagonal.
    ``estimator`` chooses the gradient of log q: path_derivative detaches q's own parameters in it (Roeder et
    al. 2017), standard does not, entropy uses the closed-form entropy in its place.
    """

    samples: int = 3
    estimator: str = "path_derivative"
    family: str = "full_rank"
    mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 1:
            raise InputError(f"objective.samples is {self.samples!r}: expected a whole number from 1")
        if self.estimator not in ESTIMATORS:
            raise InputError(
                f"objective.estimator is {self.estimator!r}: expected one of {', '.join(ESTIMATORS)}"
            )
        if self.family not in FAMILIES:
            raise InputError(f"objective.family is {self.family!r}: expected one of {', '.join(FAMILIES)}")

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``: mu 0, raw sd -1, raw correlations ~ N(0, 0.1)."""
        _, n, fits = population.shape
        k = len(model.random_effects.names)
        pairs = k * (k - 1) // 2  # those of q, which is correlated where Omega is diagonal too
        values = model.init(streams, dtype)
        values["q.mean"] = torch.zeros(k, n, fits, dtype=dtype)
        values["q.sd"] = torch.full((k, n, fits), -1.0, dtype=dtype)
        if pairs and self.family == "full_rank":
            # A fit's own subjects come first, so their numbers do not depend on padding.
            values["q.correlation"] = raw_correlation_init(
                streams, "q.correlation", (n, pairs), dtype
            ).transpose(0, 1)
        return State(values, per_subject=tuple(name for name in values if name.startswith("q.")))

    def noise_shape(self, model: Model, population: Population) -> tuple[int, int, int]:
        """eps: (K, S, N)."""
        return len(model.random_effects.names), self.samples, population.shape[1]

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``."""
        assert noise is not None
        values = state.trained
        mean, lower = self._posterior(values)
        eps = noise.unbind(0)
        eta = [m + shift for m, shift in zip(mean, multiply_lower(lower, eps), strict=True)]
        prediction = model.predict(model.typical(values, population), population, eta)
        prior = normal_log_density(model.omega_cholesky(values), eta)
        log_q = self._log_q(mean, lower, eta, eps)
        likelihood = self._log_likelihood(model, values, population, prediction)
        return population.sum_subjects(log_q) - (likelihood + population.sum_subjects(prior)) / self.samples

    def _log_likelihood(
        self, model: Model, values: Values, population: Population, prediction: Tensor
    ) -> Tensor:
        """sum over subjects and samples of log N(y; f, Sigma), log Phi((limit - f) / sd) where censored:
        (B,)."""
        sd, _ = model.error.sd(values, prediction)
        deviation = population.dv - prediction
        if sd.ndim == 1 and population.censored is None:
            # Additive error: one sd per fit, which need not be spread over the observations.
            count = self.samples * population.observation_count
            return -0.5 * population.sum_all(deviation * deviation) / (sd * sd) - count * (
                torch.log(sd) + 0.5 * LOG_2PI
            )
        white = deviation / sd
        terms = 0.5 * white * white + torch.log(sd) + 0.5 * LOG_2PI
        if population.censored is not None:
            terms = torch.where(population.censored > 0, -log_probability_below(white), terms)
        return -population.sum_all(terms)

    def random_effects(self, model: Model, population: Population, state: State) -> tuple[Tensor, Tensor]:
        """Mean and covariance of q."""
        del model, population
        mean, lower = self._posterior(state.trained)
        return torch.stack(mean), dense(covariance(lower))

    def _posterior(self, values: Values) -> tuple[list[Tensor], Lower]:
        mean = list(values["q.mean"].unbind(0))
        sd = F.softplus(values["q.sd"]).unbind(0)
        if len(sd) > 1 and self.family == "full_rank":
            return mean, lower_from_raw(sd, values["q.correlation"].unbind(0))
        return mean, diagonal(sd)

    def _log_q(self, mean: list[Tensor], lower: Lower, eta: list[Tensor], eps: Sequence[Tensor]) -> Tensor:
        """mean_s log q(eta_s), (N, B), with the gradient that the estimator prescribes."""
        if self.estimator == "entropy":
            return -0.5 * log_det(lower) - 0.5 * len(lower) * (1 + LOG_2PI)
        if self.estimator == "standard":
            # L^-1 (eta - mu) is eps whatever the parameters, so only the determinant has a gradient.
            square = total([e.square().mean(0) for e in eps])
            return -0.5 * (square + log_det(lower) + len(lower) * LOG_2PI)
        fixed = [[entry.detach() for entry in row] for row in lower]
        deviation = [effect - m.detach() for effect, m in zip(eta, mean, strict=True)]
        return normal_log_density(fixed, deviation).mean(0)
