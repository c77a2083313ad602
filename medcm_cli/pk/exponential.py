"""The exponential of the rate matrix of one or two compartments in closed form, from its rates of decay.

With R = -K, rates l <= h and a function g, g(R) = g(l) + g[l, h] (R - l) with the divided difference
g[l, h] = (g(h) - g(l)) / (h - l). For exp(-x w) that is -w exp(-l w) M_0((h - l) w), and for what is left
of an inflow, w M_0(x w), it is -w^2 (M_0(l w) - M_0(h w)) / ((h - l) w): smooth where the rates are equal.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medcm_cli.pk.moments import moment, moment_difference

MOST = 2  # compartments


class Propagator:
    """What becomes of amounts over widths w (I, S, N, B), h: ``move`` = exp(K w), C rows of C tensors (I, S,
    N, B), times them, and ``left``, C tensors, of an ``inflow`` (I, C, S, N, B), amount/h, None where all of
    it is 0.

    :param matrix: K (..., C, C), 1/h. :param rates: the C rates of decay, (S, N, B) or (I, S, N, B), in any
        order.
    """

    def __init__(self, matrix: Tensor, rates: Sequence[Tensor], width: Tensor, inflow: Tensor) -> None:
        low, high = rates[0], rates[-1]
        if len(rates) > 1:
            swap = (low > high).detach()
            low, high = torch.where(swap, high, low), torch.where(swap, low, high)
        gap = (high - low) * width
        decay = torch.exp(-low * width)
        self.move = _function(matrix, low, decay, -width * decay * moment(gap, 0))
        self.left: list[Tensor] | None = None
        if bool((inflow != 0).any()):
            x = low * width
            share = width * moment(x, 0)
            slope = -width * width * moment_difference(x, gap) if len(rates) > 1 else x
            self.left = times(_function(matrix, low, share, slope), list(inflow.unbind(1)))

    def __call__(self, interval: int, amounts: Tensor) -> Tensor:
        """Amounts (C, S, N, B) at the end of an interval."""
        rows = [[entry[interval] for entry in row] for row in self.move]
        found = times(rows, list(amounts.unbind(0)))
        if self.left is not None:
            found = [here + more[interval] for here, more in zip(found, self.left, strict=True)]
        return torch.stack(found)


def _function(matrix: Tensor, low: Tensor, value: Tensor, slope: Tensor) -> list[list[Tensor]]:
    """g(R) of R = -``matrix``, from its value and divided difference."""
    size = matrix.shape[-1]
    if size == 1:
        return [[value]]
    return [
        [
            (value if i == j else 0.0) - slope * (matrix[..., i, j] + (low if i == j else 0.0))
            for j in range(size)
        ]
        for i in range(size)
    ]


def times(rows: Sequence[Sequence[Tensor]], amounts: Sequence[Tensor]) -> list[Tensor]:
    """A matrix of tensors times C of them."""
    found = []
    for row in rows:
        total = row[0] * amounts[0]
        for entry, amount in zip(row[1:], amounts[1:], strict=True):
            total = total + entry * amount
        found.append(total)
    return found
