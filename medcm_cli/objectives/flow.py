"""A normalising flow as q: an autoregressive spline of its own for each subject, then a Gaussian's affine
map."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

from medcm_cli.numerics.normal import LOG_2PI
from medcm_cli.numerics.streams import Stream, per_fit
from medcm_cli.numerics.triangular import log_det, solve_lower, total
from medcm_cli.objectives.gaussian import Gaussian

BINS = 5  # of each spline
HIDDEN = 4  # units through which a spline depends on the numbers before its own
BOUND = 5.0  # the spline's domain and range are [-5, 5], beyond which it is the identity
SLOPE = 0.1  # least of its slopes, 1 / SLOPE the greatest; steeper ones make gradients noisy
# A spline is far more sensitive than mu and sd, and both are trained at one learning rate.
RATE = 0.2
_VALUES = 3 * BINS - 1  # of a spline: widths, heights, slopes at inner knots
_POINTS, _CHUNK = 512, 32  # quasi-random points for moments, so many at a time


class Flow(NamedTuple):
    """eta = mu + L u, u_i a monotonic rational-quadratic spline of eps_i (Durkan et al. 2019) whose values
    depend on eps_j, j < i, through one layer of tanh units.

    ``spline`` (K, P, N, B); ``bias`` (K - 1, H, N, B), ``weight`` (K (K - 1) / 2, H, N, B) and ``out`` (K -
    1, P, H, N, B), each None with a single random effect. See ``families.Posterior``.
    """

    gaussian: Gaussian
    spline: Tensor
    bias: Tensor | None
    weight: Tensor | None
    out: Tensor | None

    @classmethod
    def of(cls, gaussian: Gaussian, values: Mapping[str, Tensor]) -> "Flow":
        """From trained values."""
        return cls(gaussian, values["q.spline"], *(values.get(f"q.{name}") for name in _CONDITIONER))

    def points(self, eps: Sequence[Tensor]) -> list[Tensor]:
        """See ``Posterior``."""
        return self.gaussian.points(self._forward(eps)[0])

    def draw(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """See ``Posterior``."""
        return self.points(noise)

    @property
    def numbers(self) -> int:
        """See ``Posterior``."""
        return self.gaussian.numbers

    def weights(self, draws: int) -> None:
        """Equal."""
        del draws

    def log_density(self, eta: Sequence[Tensor]) -> Tensor:
        """See ``Posterior``."""
        lower = self.gaussian.lower
        eps: list[Tensor] = []
        terms: list[Tensor] = []
        for i, u in enumerate(solve_lower(lower, self.gaussian.deviation(eta))):
            x, term = self._transform(i, eps).inv.call_and_ladj(u)
            eps.append(x)
            terms.append(term)
        return _standard(eps) + total(terms) - 0.5 * log_det(lower)

    def log_density_at(self, eps: Sequence[Tensor], eta: Sequence[Tensor]) -> Tensor:
        """See ``Posterior``."""
        del eta
        return _standard(eps) - self._forward(eps)[1] - 0.5 * log_det(self.gaussian.lower)

    def detach(self) -> "Flow":
        """See ``Posterior``."""
        bias, weight, out = (
            None if value is None else value.detach() for value in (self.bias, self.weight, self.out)
        )
        return Flow(self.gaussian.detach(), self.spline.detach(), bias, weight, out)

    def moments(self) -> tuple[Tensor, Tensor]:
        """See ``Posterior``: over a fixed quasi-random sample."""
        like = self.spline
        first, second = like.new_zeros(()), like.new_zeros(())
        sobol = torch.quasirandom.SobolEngine(self.numbers).draw(_POINTS, dtype=like.dtype).to(like.device)
        eps = torch.special.ndtri(sobol + 0.5 / _POINTS).T[..., None, None].expand(-1, -1, *like.shape[-2:])
        for part in eps.split(_CHUNK, 1):
            eta = torch.stack(self.points(part.unbind(0)))
            first = first + eta.sum(1)
            second = second + torch.einsum("isnb,jsnb->ijnb", eta, eta)
        mean = first / _POINTS
        return mean, second / _POINTS - mean[:, None] * mean[None]

    def _forward(self, eps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """u and log |du / d eps|."""
        moved = [self._transform(i, eps[:i]).call_and_ladj(x) for i, x in enumerate(eps)]
        return [u for u, _ in moved], total([term for _, term in moved])

    def _transform(self, i: int, before: Sequence[Tensor]) -> MonotonicRQSTransform:
        values = self.spline[i].movedim(0, -1)  # (N, B, P)
        if before:
            assert self.bias is not None
            assert self.weight is not None
            assert self.out is not None
            weight = self.weight[i * (i - 1) // 2 :]
            signal = total([w[:, None] * x for w, x in zip(weight, before, strict=False)])
            hidden = torch.tanh(signal + self.bias[i - 1][:, None])  # (H, S, N, B)
            shift = torch.matmul(self.out[i - 1].permute(2, 3, 0, 1), hidden.permute(2, 3, 0, 1))
            values = values + shift.movedim(-1, 0)  # (S, N, B, P)
        widths, heights, slopes = (RATE * values).split((BINS, BINS, BINS - 1), -1)
        return MonotonicRQSTransform(widths, heights, slopes, bound=BOUND, slope=SLOPE)


_CONDITIONER = ("bias", "weight", "out")


def flow_init(streams: Sequence[Stream], shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Initial values of the splines for K random effects of N subjects, ``shape`` = (K, N): the identity, and
    hidden units with weights and biases ~ N(0, 1)."""
    k, n = shape
    fits, pairs = len(streams), k * (k - 1) // 2
    values = {"q.spline": torch.zeros(k, _VALUES, n, fits, dtype=dtype, device="cpu")}
    for name, count in (("bias", k - 1), ("weight", pairs)):
        if count:
            drawn = per_fit(streams, lambda g: g.standard_normal((n, count, HIDDEN)), f"q.{name}", dtype)  # noqa: B023
            values[f"q.{name}"] = drawn.permute(1, 2, 0, 3).contiguous()
    if pairs:
        values["q.out"] = torch.zeros(k - 1, _VALUES, HIDDEN, n, fits, dtype=dtype, device="cpu")
    return values


def _standard(eps: Sequence[Tensor]) -> Tensor:
    return -0.5 * (total([e * e for e in eps]) + len(eps) * LOG_2PI)
