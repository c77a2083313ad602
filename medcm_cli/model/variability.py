"""Random effects and residual error: Omega from unconstrained values, error models, Gaussian densities and
the probability of lying below a limit.

A lower-triangular K x K matrix is a list of K rows, row i holding i + 1 tensors. K is at most six, the
tensors are large: every operation on such matrices is written out over K and vectorised over subjects,
samples and fits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream, per_fit

Lower = list[list[Tensor]]

LOG_2PI = math.log(2 * math.pi)


# -- small lower-triangular matrices ---------------------------------------------------------------


def cholesky(matrix: Sequence[Sequence[Tensor]]) -> Lower:
    """Cholesky factor of a symmetric positive definite matrix, of which only the lower triangle is read."""
    rows: Lower = []
    for i in range(len(matrix)):
        row: list[Tensor] = []
        for j in range(i + 1):
            value = matrix[i][j]
            for k in range(j):
                value = value - row[k] * (rows[j][k] if j < i else row[k])
            row.append(torch.sqrt(value) if i == j else value / rows[j][j])
        rows.append(row)
    return rows


def solve_lower(lower: Lower, vector: Sequence[Tensor]) -> list[Tensor]:
    """x with L x = vector."""
    x: list[Tensor] = []
    for i, row in enumerate(lower):
        value = vector[i]
        for k in range(i):
            value = value - row[k] * x[k]
        x.append(value / row[i])
    return x


def solve_lower_transposed(lower: Lower, vector: Sequence[Tensor]) -> list[Tensor]:
    """x with L' x = vector."""
    n = len(lower)
    x: list[Tensor] = list(vector)
    for i in reversed(range(n)):
        value = vector[i]
        for k in range(i + 1, n):
            value = value - lower[k][i] * x[k]
        x[i] = value / lower[i][i]
    return x


def multiply_lower(lower: Lower, vector: Sequence[Tensor]) -> list[Tensor]:
    """L x."""
    return [total([entry * vector[k] for k, entry in enumerate(row)]) for row in lower]


def multiply_lower_transposed(lower: Lower, vector: Sequence[Tensor]) -> list[Tensor]:
    """L' x."""
    n = len(lower)
    return [total([lower[k][i] * vector[k] for k in range(i, n)]) for i in range(n)]


def covariance(lower: Lower) -> list[list[Tensor]]:
    """L L', full K x K."""
    n = len(lower)
    return [
        [total([lower[i][k] * lower[j][k] for k in range(min(i, j) + 1)]) for j in range(n)] for i in range(n)
    ]


def log_det(lower: Lower) -> Tensor:
    """log |L L'|."""
    return 2 * total([torch.log(row[-1]) for row in lower])


def dense(matrix: Sequence[Sequence[Tensor]]) -> Tensor:
    """Stack a (lower-triangular) matrix of lists to (K, K, ...), zeros above the diagonal where rows are
    short."""
    n = len(matrix)
    shape = torch.broadcast_shapes(*(entry.shape for row in matrix for entry in row))
    zero = matrix[0][0].new_zeros(shape)
    rows = [torch.stack([row[j].expand(shape) if j < len(row) else zero for j in range(n)]) for row in matrix]
    return torch.stack(rows)


def total(terms: Sequence[Tensor]) -> Tensor:
    """Sum of one or more tensors, broadcast."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


# -- Omega -----------------------------------------------------------------------------------------


def lower_from_raw(scale: Sequence[Tensor], raw_correlation: Sequence[Tensor]) -> Lower:
    """Cholesky factor of S C S from marginal sds and unconstrained correlations.

    tanh of the raw values are the canonical partial correlations, row by row (2,1), (3,1), (3,2) ...; with K
    = 2 the single one is rho itself (METHODS, "Population parameters"; Lewandowski, Kurowicka and Joe 2009).
    """
    partial = iter(torch.tanh(raw) for raw in raw_correlation)
    rows: Lower = []
    for i, sd in enumerate(scale):
        left = torch.ones_like(sd)  # what remains of the squared length of the row
        row: list[Tensor] = []
        for _ in range(i):
            value = next(partial)
            row.append(sd * value * torch.sqrt(left))
            left = left * (1 - value * value)
        row.append(sd * torch.sqrt(left))
        rows.append(row)
    return rows


def diagonal(scale: Sequence[Tensor]) -> Lower:
    """diag(scale) as a lower-triangular matrix."""
    zero = torch.zeros_like(scale[0])
    return [[*[zero] * i, sd] for i, sd in enumerate(scale)]


STRUCTURES = ("full", "diagonal")


@dataclass(frozen=True)
class RandomEffects:
    """Which parameters vary between subjects: eta ~ N(0, Omega), z = zeta exp(eta). ``names`` in the order
    of Omega; ``structure`` full estimates its correlations, diagonal has none. ``fixed`` is Omega where it is
    known, and not estimated.

    :raises InputError: another structure, or a fixed Omega that does not fit or is not positive definite.
    """

    names: tuple[str, ...]
    structure: str = "full"
    fixed: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise InputError(f"omega is {self.structure!r}: expected one of {', '.join(STRUCTURES)}")
        if self.fixed is not None and not _is_covariance(self.fixed, len(self.names)):
            raise InputError(
                f"fixed.omega is {self.fixed!r}: expected a positive definite matrix with a row for each of "
                f"{', '.join(self.names)}"
            )

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Positions (i, j), i > j, of the estimated correlations, row by row; none where Omega is
        diagonal."""
        size = len(self.names) if self.structure == "full" else 0
        return [(i, j) for i in range(size) for j in range(i)]

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Raw values (K, B) and, with correlations, (K (K - 1) / 2, B): omega ~ N(0.1, 0.025) above 0, raw
        correlation ~ N(0, 0.1); none where Omega is fixed."""
        if self.fixed is not None:
            return {}
        k = len(self.names)
        values = {"omega": positive_init(streams, "omega", k, dtype)}
        if self.pairs:
            values["correlation"] = raw_correlation_init(streams, "correlation", (len(self.pairs),), dtype)
        return values

    def cholesky(self, values: Mapping[str, Tensor]) -> Lower:
        """Cholesky factor of Omega, entries (B,)."""
        if self.fixed is not None:
            factor = torch.linalg.cholesky(torch.tensor(self.fixed, dtype=torch.float64)).tolist()
            return [[_constant(values, entry) for entry in row[: i + 1]] for i, row in enumerate(factor)]
        scale = F.softplus(values["omega"]).unbind(0)
        return lower_from_raw(scale, values["correlation"].unbind(0)) if self.pairs else diagonal(scale)


def _is_covariance(matrix: Sequence[Sequence[float]], size: int) -> bool:
    try:
        m = torch.tensor(matrix, dtype=torch.float64)
    except (TypeError, ValueError):
        return False
    fits = m.shape == (size, size) and bool(torch.isfinite(m).all()) and bool((m == m.mT).all())
    return fits and int(torch.linalg.cholesky_ex(m).info) == 0


def _constant(values: Mapping[str, Tensor], number: float) -> Tensor:
    """A number that is the same for every fit, (B,), as the fits' ``values`` are."""
    like = next(iter(values.values()))
    return like.new_full(like.shape[-1:], number)


def positive_init(streams: Sequence[Stream], purpose: str, count: int, dtype: torch.dtype) -> Tensor:
    """Raw values whose softplus is Normal(0.1, 0.025) truncated at 0: (count, B)."""
    uniform = per_fit(streams, lambda g: g.random(count), purpose, torch.float64)
    below = torch.special.ndtr(uniform.new_tensor(-4.0))  # the part of the normal that lies below zero
    drawn = 0.1 + 0.025 * torch.special.ndtri(below + (1 - below) * uniform)
    return torch.log(torch.expm1(drawn)).to(dtype)


def raw_correlation_init(
    streams: Sequence[Stream], purpose: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Raw correlations ~ N(0, 0.1): (*shape, B)."""
    return per_fit(streams, lambda g: g.normal(0.0, 0.1, shape), purpose, dtype)


# -- residual error --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResidualError:
    """Residual sd of an observation with prediction f: the sum of its components' sds (METHODS).

    ``components`` is a subset of ``additive`` (sigma_additive, IU/mL) and ``proportional``
    (sigma_proportional * f). ``fixed`` holds the sigmas that are known, and not estimated.
    """

    components: tuple[str, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        distinct = set(self.components)
        if not distinct or distinct - {"additive", "proportional"} or len(distinct) < len(self.components):
            raise InputError(
                f"error.components is {list(self.components)}: expected additive, proportional or both"
            )
        for name, sigma in self.fixed.items():
            number = isinstance(sigma, int | float) and not isinstance(sigma, bool)
            if name not in self.components or not number or not 0 < sigma < math.inf:
                raise InputError(
                    f"fixed.sigma.{name} is {sigma!r}: expected a number above 0 for a component of the "
                    f"error, {' or '.join(self.components)}"
                )

    @property
    def names(self) -> list[str]:
        """Names of the sigmas in reports."""
        return [f"sigma_{component}" for component in self.components]

    @property
    def free(self) -> list[str]:
        """The components whose sigma is estimated."""
        return [component for component in self.components if component not in self.fixed]

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Raw sigmas (free components, B); none where all are fixed."""
        return {"sigma": positive_init(streams, "sigma", len(self.free), dtype)} if self.free else {}

    def sigmas(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """component -> sigma, (B,)."""
        free = self.free
        raw = F.softplus(values["sigma"]).unbind(0) if free else ()
        known = {name: _constant(values, sigma) for name, sigma in self.fixed.items()}
        sigmas = known | dict(zip(free, raw, strict=True))
        return {component: sigmas[component] for component in self.components}

    def sd(self, values: Mapping[str, Tensor], prediction: Tensor) -> tuple[Tensor, Tensor | None]:
        """sd, (B,) or the shape of ``prediction``, and its derivative with respect to the prediction (None
        for zero)."""
        sigmas = self.sigmas(values)
        if "proportional" not in sigmas:
            return sigmas["additive"], None
        slope = sigmas["proportional"]
        sd = slope * prediction
        return (sd + sigmas["additive"] if "additive" in sigmas else sd), slope


# -- Gaussian densities ----------------------------------------------------------------------------


def normal_log_density(lower: Lower, deviation: Sequence[Tensor]) -> Tensor:
    """log N(x; m, L L') of x - m, K-dimensional, constants included; elementwise over the other
    dimensions."""
    white = solve_lower(lower, deviation)
    return -0.5 * (total([w * w for w in white]) + log_det(lower) + len(white) * LOG_2PI)


# -- observations of which only a limit is known ---------------------------------------------------


class _LogProbabilityBelow(torch.autograd.Function):
    """See ``log_probability_below``. torch's own derivative of log_ndtr loses its digits in float32 from
    z = -1e3 on and is 0 at -1e6, where an early epoch may well come."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        result: Tensor = torch.special.log_ndtr(z)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        rate, _ = hazard(z)
        return grad * rate


class _Excess(torch.autograd.Function):
    """lambda(z) + z, with lambda as in ``hazard``; its derivative is 1 - lambda (lambda + z)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        far = _FAR[z.dtype]
        near = z.clamp(min=far)
        excess = math.sqrt(2 / math.pi) / torch.special.erfcx(near * -math.sqrt(0.5)) + near
        # Far below, lambda and -z cancel: the asymptotic series of Mills' ratio (Abramowitz and Stegun
        # 26.2.12), inverted.
        u = -1 / z.clamp(max=far)
        v = u * u
        series = u * (1 + v * (-2 + v * (10 + v * (-74 + v * 706))))
        return torch.where(z < far, series, excess)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        rate, excess = hazard(z)
        return grad * (1 - rate * excess)


# Where the series is as accurate as the quotient: the error of one falls as z^-10, that of the other grows as
# z^2 times rounding.
_FAR = {torch.float32: -9.0, torch.float64: -50.0}


def log_probability_below(z: Tensor) -> Tensor:
    """log Phi(z), the log probability that a standard normal lies below z; elementwise, differentiable."""
    result = _LogProbabilityBelow.apply(z)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


def hazard(z: Tensor) -> tuple[Tensor, Tensor]:
    """lambda = phi(z) / Phi(z) and lambda + z, elementwise, differentiable: the slope of log Phi is lambda
    and its curvature -lambda (lambda + z), which lies between -1 and 0."""
    excess = _Excess.apply(z)  # type: ignore[no-untyped-call]
    assert isinstance(excess, Tensor)
    return excess - z, excess
