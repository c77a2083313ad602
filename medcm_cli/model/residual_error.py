"""What an observation is, given its prediction: the contract of residual errors.

``ErrorModel`` is all that the rest of the program knows about observations. Shapes are those of predictions,
(T, S, N, B), unless said otherwise; ``values`` are the model's unconstrained ones, fit dimension last.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import number
from medcm_cli.data.population import Population
from medcm_cli.errors import InputError
from medcm_cli.model.initial import constant, positive_init
from medcm_cli.numerics.normal import LOG_2PI
from medcm_cli.numerics.streams import Stream

OF_SUBJECTS = "sigma.of_subjects"
"""Among values, (S, N, B): how many times the population's the sds of each subject are."""


class Scale(NamedTuple):
    """What -2 log density says of the logarithm of sd, beside that of f: half its slope, ``pull``; half its
    expected curvature, ``curvature``; and ``cross`` / sd, half the derivative in both, None for 0."""

    pull: Tensor
    curvature: Tensor
    cross: Tensor | None


class Deviance(NamedTuple):
    """-2 log density of each observation, without log 2 pi, as a function of its prediction f: ``value``;
    half its slope, ``pull`` / sd; half its expected curvature, ``curvature`` / sd^2 (None: 1), which is above
    0. ``sd`` may be (B,)."""

    value: Tensor
    sd: Tensor
    pull: Tensor
    curvature: Tensor | None


class Normal(NamedTuple):
    """Observations as a Gaussian approximation sees them: ``deviation`` from the prediction, of sd ``sd``,
    (B,) or the shape of predictions, which does not move with the prediction.

    Their -2 log density, without log 2 pi, is ``misfit`` + 2 ``log_scale``; None where these are
    (deviation / sd)^2 and log sd. Where ``censored``, the deviation is that of a limit, and all that is
    known is that the observation lies beyond it, below or above it as ``side`` is 1 or -1.
    """

    deviation: Tensor
    sd: Tensor
    misfit: Tensor | None = None
    log_scale: Tensor | None = None
    censored: Tensor | None = None
    side: Tensor | float = 1.0

    def shifted(self, shift: Tensor) -> "Normal":
        """Seen from a prediction that is lower by ``shift``."""
        deviation, misfit = self.deviation + shift, self.misfit
        if misfit is not None:
            misfit = misfit + (deviation.square() - self.deviation.square()) / self.sd.square()
        return self._replace(deviation=deviation, misfit=misfit)


@runtime_checkable
class ErrorModel(Protocol):
    """How an observation spreads around its prediction. A frozen value that holds options, never a sigma.

    ``components`` name the sigmas, of which ``fixed`` are known, and not estimated. A class that has this
    protocol as its base need only give these, ``white``, ``deviance`` and ``draw``. Padding has the
    prediction of the subject's last observation, or 1, and dv 0: what is computed there has to be finite, and
    is not used.
    """

    components: tuple[str, ...]
    fixed: Mapping[str, float]
    size: float = 1.0
    """Of a usual level, in the unit of the data: an additive sigma that is estimated begins, and has its
    prior, as a part of it."""
    shapes: tuple[str, ...] = ()
    """Components that are no sd, nor in proportion to one."""
    above_zero: bool = False
    """Whether its likelihood is given that levels are above 0 (Beal's M4)."""
    logged: bool = False
    """Whether its likelihood is that of the logarithms of levels, which the data set gives."""

    @property
    def names(self) -> list[str]:
        """Names of the sigmas in reports."""
        return [f"sigma_{component}" for component in self.components]

    @property
    def free(self) -> list[str]:
        """The components whose sigma is estimated."""
        return [component for component in self.components if component not in self.fixed]

    @property
    def in_proportion(self) -> bool:
        """Whether a normal observation's sd, on the scale of ``white``, is in proportion to its one sigma."""
        return False

    @property
    def allows_zero(self) -> bool:
        """Whether an observation has a density where its prediction is 0, as before the first dose."""
        return False

    @property
    def needs_positive(self) -> bool:
        """Whether an observation of 0 or less has no density, whatever is predicted."""
        return False

    @property
    def each(self) -> "tuple[ErrorModel, ...]":
        """That of each endpoint, in the order of their numbers: itself where there is one."""
        return (self,)

    def of_endpoint(self, endpoint: Tensor | int | None) -> "ErrorModel":
        """The same, whose ``white`` and ``draw`` are of observations of these endpoints, (T, 1, N, B) or one
        of all, from 0 (``Population.endpoint``)."""
        del endpoint
        return self

    def relative(self, deviation: Tensor, population: Population) -> Tensor:
        """Deviations (T, S, N, B) from predictions as they can be added up: relative to the size of their
        endpoints where there are several."""
        del population
        return deviation

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Raw sigmas (free components, B); none where all are fixed."""
        return {"sigma": positive_init(streams, "sigma", len(self.free), dtype)} if self.free else {}

    def unit_of(self, component: str) -> float:
        """What an estimated sigma is counted in, where it is trained: ``size``, or 1 of a fraction."""
        return self.size if component == "additive" else 1.0

    def counted_in(self, component: str, begins: Mapping[str, float]) -> float:
        """How much of an estimated sigma one of what is trained is, where the others are as they ``begin``
        (component -> sigma, where that is said)."""
        del begins
        return self.unit_of(component)

    def sigmas(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """component -> sigma, (B,), or (S, N, B) of those of subjects (``OF_SUBJECTS``)."""
        free = self.free
        raw = functional.softplus(values["sigma"]).unbind(0) if free else ()
        known = {name: constant(values, sigma) for name, sigma in self.fixed.items()}
        sigmas = known | self.of_trained(dict(zip(free, raw, strict=True)))
        if (of_subjects := values.get(OF_SUBJECTS)) is not None:
            sigmas = {name: s if name in self.shapes else s * of_subjects for name, s in sigmas.items()}
        return {component: sigmas[component] for component in self.components}

    def of_trained(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Free component -> sigma, from what is trained of each, which is above 0."""
        return {name: part * self.unit_of(name) for name, part in parts.items()}

    def reported(self, values: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        """``names`` -> sigma, (B,): of ``additive`` in the unit of the model, of others in the reported one,
        of which the model's is ``scale``, where they have it."""
        del scale
        return dict(zip(self.names, self.sigmas(values).values(), strict=True))

    def white(self, values: Mapping[str, Tensor], prediction: Tensor, dv: Tensor) -> Tensor:
        """Residuals that are standard normal, or of variance 1, where the model is right."""

    def deviance(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Deviance:
        """See ``Deviance``; of a censored observation, which lies somewhere beyond its dv, the probability of
        that takes the place of a density."""

    def scale(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Scale:
        """See ``Scale``, for approximations with a random effect of the residual error.

        :raises InputError: by default there is none.
        """
        del values, prediction, population
        raise InputError(
            f"random_effects has sigma, of which objective=foce has no likelihood with this error"
            f"{' and dataset.blq=M4' * self.above_zero}; choose objective=vi"
        )

    def without_interaction(self, values: Mapping[str, Tensor], typical: Tensor) -> "ErrorModel":
        """The same with the spread that it has at ``typical`` predictions, whatever the prediction is: what
        NONMEM takes where there is no interaction of eta and epsilon.

        :raises InputError: it has none.
        """
        del values, typical
        raise InputError(
            "objective.formulation=nonmem needs an error with an sd, which this one has not; choose "
            "objective=focei"
        )

    def transformation(self, population: Population) -> Tensor:
        """What -2 log L of each subject has beside that of the observations in the form in which the error is
        normal, (1, N, B): of log-normal ones 2 sum log y."""
        return torch.zeros_like(population.present)[None]

    def draw(
        self, values: Mapping[str, Tensor], prediction: Tensor, noise: Tensor | float, unit: float = 1.0
    ) -> Tensor:
        """Observations whose standard normal quantiles are ``noise``: random ones where that is random.

        :param unit: that predictions are given in, and observations returned: how many of it the model's is.
        """

    def log_density(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Tensor:
        """log p(y | f) of each observation, constants included; log P(y < dv | f), or of y > dv, where it is
        censored."""
        value = self.deviance(values, prediction, population).value
        if population.censored is None:
            return -0.5 * (value + LOG_2PI)
        return -0.5 * torch.where(population.censored > 0, value, value + LOG_2PI)

    def deviance_of(self, log_density: Tensor, population: Population) -> Tensor:
        """``Deviance.value`` from ``log_density``: a probability has no log 2 pi to leave out."""
        value = -2 * log_density
        if population.censored is None:
            return value - LOG_2PI
        return torch.where(population.censored > 0, value, value - LOG_2PI)

    def log_likelihood(
        self,
        values: Mapping[str, Tensor],
        prediction: Tensor,
        population: Population,
        weights: Tensor | None = None,
    ) -> Tensor:
        """``log_density``, times ``weights`` (S, N, B), summed over all but fits: (B,)."""
        terms = self.log_density(values, prediction, population)
        return population.sum_all(terms if weights is None else terms * weights)

    def as_normal(self, values: Mapping[str, Tensor], prediction: Tensor, population: Population) -> Normal:
        """For approximations that take observations as normal around a prediction that random effects move
        along a straight line: by default such that slope and expected curvature are those of ``deviance``."""
        value, sd, pull, curvature = self.deviance(values, prediction, population)
        if curvature is not None:
            root = root_of(curvature)
            pull, sd = pull / root, sd / root
        return Normal(-pull * sd, sd, value, torch.zeros_like(value))


def root_of(curvature: Tensor) -> Tensor:
    """Its square root. A censored observation far beyond its limit tells nothing: of 0 the root would have no
    slope."""
    return curvature.clamp(min=torch.finfo(curvature.dtype).eps ** 2).sqrt()


def check_fixed(error: ErrorModel) -> None:
    """:raises InputError: a fixed sigma that is not above 0, or of no component."""
    for name, sigma in error.fixed.items():
        if name not in error.components:
            known = " or ".join(error.components)
            raise InputError(f"fixed.sigma.{name}: no such component of the error; expected {known}")
        number(f"fixed.sigma.{name}", sigma, above=0)
