"""Families of q, the approximate posterior of each subject's random effects.

Their trained values are named q.*, with subject and fit as last dimensions: K random effects first.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.model.random_effects import raw_correlation_init
from medcm_cli.model.rows import raws_of
from medcm_cli.numerics.streams import Stream, per_fit
from medcm_cli.numerics.triangular import cholesky, raw_from_lower
from medcm_cli.objectives import by_occasion
from medcm_cli.objectives.by_occasion import ByOccasion
from medcm_cli.objectives.flow import Flow, flow_init
from medcm_cli.objectives.gaussian import RAW_SD, Gaussian
from medcm_cli.objectives.modes import find_modes, laplace_covariance
from medcm_cli.objectives.several_modes import mode_on_logs

GAUSSIAN = ("full_rank", "mean_field")
_MOST_EFFECTS = {False: 12, True: 4}
"""Of a subject, by whether the model is integrated: q has about half their square of numbers, whose curvature
is asked for."""
FAMILIES = (*GAUSSIAN, "mixture", "flow", "by_occasion")


class Posterior(Protocol):
    """q of every subject of every fit. ``eta`` and numbers are lists of K tensors (S, N, B)."""

    def points(self, eps: Sequence[Tensor]) -> list[Tensor]:
        """eta at standard normal numbers; the mean over S with ``weights`` is an expectation under q."""

    def weights(self, draws: int) -> Tensor | None:
        """Weights of S = ``draws`` points, (S, N, B), that add up to 1; None for 1 / S each."""

    def log_density(self, eta: Sequence[Tensor]) -> Tensor:
        """log q(eta), (S, N, B)."""

    def log_density_at(self, eps: Sequence[Tensor], eta: Sequence[Tensor]) -> Tensor:
        """The same at ``eta = points(eps)``."""

    def detach(self) -> "Posterior":
        """The same q, to whose parameters no gradient flows."""

    def draw(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """Independent draws from standard normal numbers, ``numbers`` tensors of them."""

    @property
    def numbers(self) -> int:
        """How many numbers a draw takes."""

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (K, N, B) and covariance (K, K, N, B)."""


class Mixture(NamedTuple):
    """A mixture of C Gaussians: ``components`` with entries (C, 1, N, B), ``log_weight`` (C, 1, N, B).

    Its points are stratified: S / C of each component, weighted, so that the weights have a gradient too
    (Roeder et al. 2017; Morningstar et al. 2021).
    """

    components: Gaussian
    log_weight: Tensor

    def points(self, eps: Sequence[Tensor]) -> list[Tensor]:
        """See ``Posterior``; S is a multiple of C."""
        own = [e.unflatten(0, (len(self.log_weight), -1)) for e in eps]
        return [effect.flatten(0, 1) for effect in self.components.points(own)]

    def weights(self, draws: int) -> Tensor:
        """See ``Posterior``."""
        each = draws // len(self.log_weight)
        return (self.log_weight.exp() / each).expand(-1, each, -1, -1).flatten(0, 1)

    def log_density(self, eta: Sequence[Tensor]) -> Tensor:
        """See ``Posterior``."""
        of_each = self.components.log_density([effect[None] for effect in eta])
        return torch.logsumexp(of_each + self.log_weight, 0)

    def log_density_at(self, eps: Sequence[Tensor], eta: Sequence[Tensor]) -> Tensor:
        """See ``Posterior``."""
        del eps
        return self.log_density(eta)

    def detach(self) -> "Mixture":
        """See ``Posterior``."""
        return Mixture(self.components.detach(), self.log_weight.detach())

    def draw(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """See ``Posterior``; the last number chooses the component."""
        *eps, choice = noise
        below = self.log_weight.exp().cumsum(0)[:-1]
        chosen = (torch.special.ndtr(choice) > below).sum(0)

        def of_chosen(entry: Tensor) -> Tensor:
            return entry[:, 0].gather(0, chosen)

        mean = [of_chosen(m) for m in self.components.mean]
        return Gaussian(mean, [[of_chosen(entry) for entry in row] for row in self.components.lower]).draw(
            eps
        )

    @property
    def numbers(self) -> int:
        """See ``Posterior``."""
        return self.components.numbers + 1

    def moments(self) -> tuple[Tensor, Tensor]:
        """See ``Posterior``."""
        mean, cov = (
            values.squeeze(-3) for values in self.components.moments()
        )  # (K, C, N, B), (K, K, C, ..)
        weight = self.log_weight.exp()[:, 0]
        center = (weight * mean).sum(1)
        spread = mean - center[:, None]
        return center, (weight * (cov + spread[:, None] * spread[None])).sum(2)


def init(
    family: str,
    components: int,
    streams: Sequence[Stream],
    shape: tuple[int, int],
    dtype: torch.dtype,
    occasions: tuple[int, int] = (0, 0),
) -> dict[str, Tensor]:
    """Initial values of q for K random effects of N subjects, ``shape`` = (K, N): mu 0, raw sd -1, raw
    correlations ~ N(0, 0.1) (docs/methods.md, "Objectives").

    :param occasions: how many there are, and how many of the K random effects each has; without any
        by_occasion is full_rank.

    The components of a mixture, which would stay equal if they began so, have equal weights and means drawn
    from that Gaussian; a flow begins as that Gaussian.
    """
    k, n = shape
    fits = len(streams)
    several = (components,) if family == "mixture" else ()
    values = {
        "q.mean": torch.zeros(k, *several, n, fits, dtype=dtype, device="cpu"),
        "q.sd": torch.full((k, *several, n, fits), RAW_SD, dtype=dtype, device="cpu"),
    }
    # A fit's own subjects come first in what is drawn, so their numbers do not depend on padding.
    if several:
        sd = float(functional.softplus(torch.tensor(RAW_SD, device="cpu")))
        drawn = per_fit(streams, lambda g: g.normal(0.0, sd, (n, components, k)), "q.mean", dtype)
        values["q.mean"] = drawn.permute(2, 1, 0, 3).contiguous()
        values["q.weight"] = torch.zeros(components, n, fits, dtype=dtype, device="cpu")
    pairs = k * (k - 1) // 2  # those of q, which is correlated where Omega is diagonal too
    if family == "by_occasion" and occasions[0]:
        number, own = occasions
        values |= by_occasion.init(streams, (k - number * own, number, own, n), dtype)
    elif pairs and family != "mean_field":
        drawn = raw_correlation_init(streams, "q.correlation", (n, *several, pairs), dtype)
        values["q.correlation"] = drawn.movedim(-2, 0).transpose(-3, -2) if several else drawn.transpose(0, 1)
    return values | (flow_init(streams, shape, dtype) if family == "flow" else {})


@torch.no_grad()
def at_modes(
    family: str, model: Model, population: Population, values: Mapping[str, Tensor], known: Values
) -> dict[str, Tensor]:
    """Values, of which those of a Gaussian q are such that it is Laplace's approximation to each subject's
    posterior, given the population parameters that are ``known``; a q of another family, and one of a subject
    whose approximation is not finite, is left where it is."""
    if family not in GAUSSIAN:
        return dict(values)
    k = model.size(population)
    zero = torch.zeros_like(values["q.mean"][:1])
    start = [zero] * k
    if (near := mode_on_logs(model, known, population, start)) is not None:
        start = [torch.cat([zero, eta]) for eta in near]
    eta = find_modes(model, known, population, start, _TOLERANCE, _ITERATIONS, stretched=True).eta
    covariance = laplace_covariance(model, known, population, eta)
    lower = cholesky([list(row[: place + 1, None]) for place, row in enumerate(covariance)])
    found = raw_values(Gaussian(eta, lower), model.sizes(k), "q.correlation" in values, _MOST_CORRELATED)
    finite = torch.stack([torch.isfinite(value).all(0) for value in found.values()]).all(0)
    return {**values, **{name: torch.where(finite, value, values[name]) for name, value in found.items()}}


def searched(family: str, model: Model, population: Population) -> bool:
    """Whether q of each subject is a Gaussian whose optimum is soon found."""
    return family in GAUSSIAN and 0 < model.size(population) <= _MOST_EFFECTS[model.pk.needs_double]


def raw_values(
    q: Gaussian, sizes: Sequence[float] | None, correlated: bool, most: float
) -> dict[str, Tensor]:
    """Values of a Gaussian q with entries (1, N, B), partial correlations no further from 0 than ``most``.

    :param sizes: see ``posterior``.
    """
    scale, raw = raw_from_lower(q.lower, most)
    sizes = sizes or [1.0] * len(scale)
    found = {
        "q.mean": torch.cat([effect / size for effect, size in zip(q.mean, sizes, strict=True)]),
        "q.sd": raws_of(torch.cat([sd / size for sd, size in zip(scale, sizes, strict=True)])),
    }
    return {**found, "q.correlation": torch.cat(raw)} if correlated else found


_TOLERANCE, _ITERATIONS = 1e-3, 50  # of modes
_MOST_CORRELATED = 0.999


def posterior(
    family: str,
    values: Mapping[str, Tensor],
    sizes: Sequence[float] | None = None,
    there: Tensor | None = None,
) -> Posterior:
    """q of the trained values.

    :param sizes: what each random effect is counted in there (``RandomEffects.sizes``).
    :param there: (K, 1, N, B), 1 of a random effect that a subject has, and 0 of the others, of which there
        is no density; None where all have all.
    """
    if "q.cross" in values:
        return ByOccasion.of(values, sizes, there)
    mean, sd, correlation = (values.get(f"q.{name}") for name in ("mean", "sd", "correlation"))
    assert mean is not None
    assert sd is not None
    if family == "mixture":
        mean, sd = mean[:, :, None], sd[:, :, None]
        correlation = None if correlation is None else correlation[:, :, None]
        log_weight = torch.log_softmax(values["q.weight"], 0)[:, None]
        return Mixture(Gaussian.from_raw(mean, sd, correlation, sizes), log_weight)
    correlation = None if family == "mean_field" else correlation
    gaussian = Gaussian.from_raw(mean, sd, correlation, sizes, there)
    return Flow.of(gaussian, values) if family == "flow" else gaussian
