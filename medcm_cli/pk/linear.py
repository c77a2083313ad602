"""Linear compartment models in closed form, for any number of infusions, by superposition.

The amount in the central compartment after a unit bolus is a sum of exponentials, sum_j w_j exp(-lambda_j
t). After an infusion at unit rate of which the last ``infused`` = l hours ended (or were still running)
``since_end`` = tau hours ago it is

    sum_j w_j exp(-lambda_j tau) psi(lambda_j), psi(lambda) = l M_0(lambda l), M_n(x) = int_0^1 u^n exp(-x u)
    du,

a product of positive factors: nothing cancels, neither for a one-minute bolus seen 48 h later nor inside an
infusion.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medcm_cli.pk.schedule import Schedule

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Exponentials:
    """A unit impulse response sum_j weights[j] exp(-rates[j] t): (J, S, N, B) or broadcastable, ``rates`` in
    1/h."""

    rates: Tensor
    weights: Tensor


@dataclass(frozen=True)
class LinearModel:
    """A linear compartment model with all doses and observations in the central compartment.

    ``response`` maps parameters to their impulse response; ``tangents`` maps them and names to the
    derivatives of that response with respect to the logarithm of each named parameter, stacked to (K, J, S,
    N, B). ``volume`` names the central volume (L); ``amount_per_level`` is 1000 where doses are in IU and
    levels in IU/mL.
    """

    parameters: tuple[str, ...]
    volume: str
    amount_per_level: float
    response: Callable[[Values], Exponentials]
    tangents: Callable[[Values, Exponentials, Sequence[str]], Exponentials]


class _Moment(torch.autograd.Function):
    """See ``moment``. The derivative of M_n is -M_(n+1), computed as such: every derivative is as accurate
    as the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.n = n
        if n == 0:
            x = x.clamp(min=torch.finfo(x.dtype).tiny)  # M_0(0) = 1, not 0 / 0
            return torch.expm1(-x).neg_() / x
        low, high = torch.aminmax(x)
        if float(high) < _QUADRATURE_BELOW:
            return _moment_quadrature(x, n)
        if float(low) >= _QUADRATURE_BELOW:
            return _moment_recurrence(x, n)
        small = _moment_quadrature(x.clamp(max=_QUADRATURE_BELOW), n)
        return torch.where(
            x < _QUADRATURE_BELOW, small, _moment_recurrence(x.clamp(min=_QUADRATURE_BELOW), n)
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return -grad * moment(x, ctx.n + 1), None


def moment(x: Tensor, n: int) -> Tensor:
    """M_n(x) = int_0^1 u^n exp(-x u) du for x >= 0, elementwise; differentiable to all orders."""
    result = _Moment.apply(x, n)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


# Above it the recurrence loses no more than the factor (n / x)^n of rounding; below it so few Gauss-Legendre
# nodes reach rounding error (the remainder falls as x^(2 nodes)) that they are cheaper than a series.
_QUADRATURE_BELOW = 0.5
_NODES = {
    dtype: tuple(torch.as_tensor(values, dtype=dtype) for values in ((1 + nodes) / 2, weights / 2))
    for dtype, (nodes, weights) in {
        torch.float32: np.polynomial.legendre.leggauss(3),
        torch.float64: np.polynomial.legendre.leggauss(7),
    }.items()
}


def _moment_quadrature(x: Tensor, n: int) -> Tensor:
    nodes, weights = _NODES[x.dtype]
    return torch.matmul(weights * nodes**n, torch.exp(-nodes[:, None] * x.reshape(1, -1))).view(x.shape)


def _moment_recurrence(x: Tensor, n: int) -> Tensor:
    value, decay = -torch.expm1(-x) / x, torch.exp(-x)
    for order in range(1, n + 1):
        value = (order * value - decay) / x
    return value


def predict(pk: LinearModel, schedule: Schedule, z: Values) -> Tensor:
    """See ``medcm_cli.pk.solve``."""
    z = _ranked(z)
    response = pk.response(z)
    rates, weights = _per_dose(response.rates), _per_dose(response.weights)
    level = schedule.given / (pk.amount_per_level * z[pk.volume])
    amplitude = weights * moment(rates * schedule.infused, 0) * level
    return (amplitude * torch.exp(rates * -schedule.since_end)).sum(
        (0, 1)
    )  # (J, E, T, S, N, B) -> (T, S, N, B)


def sensitivities(
    pk: LinearModel, schedule: Schedule, z: Values, wrt: Sequence[str]
) -> tuple[Tensor, list[Tensor]]:
    """See ``medcm_cli.pk.sensitivities``."""
    z = _ranked(z)
    response = pk.response(z)
    tangents = pk.tangents(z, response, wrt)
    rates, weights = _per_dose(response.rates), _per_dose(response.weights)
    d_rates, d_weights = _per_dose(tangents.rates), _per_dose(tangents.weights)  # (K, J, 1, 1, S, N, B)
    level = schedule.given / (pk.amount_per_level * z[pk.volume])
    x = rates * schedule.infused
    mean_decay = moment(x, 0)
    decay = level * torch.exp(rates * -schedule.since_end)  # (J, E, T, S, N, B)
    term = weights * mean_decay
    prediction = (term * decay).sum((0, 1))
    # d/dp of weight M_0(rate infused) exp(-rate since_end), with M_0' = -M_1.
    constant = d_weights * mean_decay - weights * schedule.infused * moment(x, 1) * d_rates
    slopes = ((constant - schedule.since_end * (term * d_rates)) * decay).sum((1, 2))  # (K, T, S, N, B)
    return prediction, [
        slope - prediction if name == pk.volume else slope
        for name, slope in zip(wrt, slopes.unbind(0), strict=True)
    ]


def _ranked(z: Values) -> Values:
    """Every value as (S, N, B): a value per fit only comes as (B,), and what is stacked before it would pass
    for samples and subjects."""
    return {name: value[(None,) * (3 - value.ndim)] for name, value in z.items()}


def _per_dose(values: Tensor) -> Tensor:
    """(..., J, S, N, B) -> (..., J, dose 1, observation 1, S, N, B)."""
    return values[..., None, None, :, :, :]


def one_compartment(amount_per_level: float = 1000.0) -> LinearModel:
    """Parameters CL (L/h) and V1 (L): dA/dt = R - (CL/V1) A, level = A / V1 / amount_per_level."""

    def response(z: Values) -> Exponentials:
        rate = (z["CL"] / z["V1"])[None]
        return Exponentials(rate, torch.ones_like(rate))

    def tangents(z: Values, at: Exponentials, wrt: Sequence[str]) -> Exponentials:
        del z
        sign = {"CL": 1.0, "V1": -1.0}
        return Exponentials(
            torch.stack([sign[name] * at.rates for name in wrt]),
            torch.zeros_like(at.rates).expand(len(wrt), *at.rates.shape),
        )

    return LinearModel(("CL", "V1"), "V1", amount_per_level, response, tangents)


def two_compartment(amount_per_level: float = 1000.0) -> LinearModel:
    """Parameters CL, V1, Q, V2 (METHODS, "Units and symbols").

    With alpha > beta the eigenvalues of the rate matrix, beta <= k21 <= alpha, so both weights
    (alpha - k21) / (alpha - beta) and (k21 - beta) / (alpha - beta) lie in [0, 1] and add to 1: the response
    is a weighted mean of two exponentials and stays accurate when the eigenvalues nearly coincide.
    """
    return LinearModel(("CL", "V1", "Q", "V2"), "V1", amount_per_level, _two_response, _two_tangents)


def _two_response(z: Values) -> Exponentials:
    k10, k12, k21 = z["CL"] / z["V1"], z["Q"] / z["V1"], z["Q"] / z["V2"]
    # (alpha - k21) (k21 - beta) = k12 k21 and their difference is m: the larger is a sum, the smaller a
    # quotient.
    m = k10 + k12 - k21
    product = k12 * k21
    root = torch.sqrt(m * m + 4 * product)  # alpha - beta
    larger = (root + m.abs()) / 2
    smaller = product / larger
    upper = m > 0
    above = torch.where(upper, larger, smaller)  # alpha - k21
    below = torch.where(upper, smaller, larger)  # k21 - beta
    alpha = k21 + above
    return Exponentials(torch.stack([alpha, k10 * k21 / alpha]), torch.stack([above, below]) / root)


# d log(k10, k12, k21) / d log of each parameter.
_MICRO = {"CL": (1, 0, 0), "V1": (-1, -1, 0), "Q": (0, 1, 1), "V2": (0, 0, -1)}


def _two_tangents(z: Values, at: Exponentials, wrt: Sequence[str]) -> Exponentials:
    # From (alpha - k21) (k21 - beta) = k12 k21 = p and their difference m: every result keeps its relative
    # accuracy, also that of a weight of 1e-7, which a derivative taken from alpha and beta themselves would
    # lose.
    k10, k12, k21 = z["CL"] / z["V1"], z["Q"] / z["V1"], z["Q"] / z["V2"]
    alpha, beta = at.rates.unbind(0)
    root = alpha - beta
    above, below = (at.weights * root).unbind(0)
    moves = []
    for name in wrt:
        signs = zip(_MICRO[name], (k10, k12, -k21), strict=True)
        moves.append(functools.reduce(torch.add, [k if sign == 1 else -k for sign, k in signs if sign]))
    ones = [1] * max(k10.ndim, k21.ndim)
    e10, e12, e21 = (
        k10.new_tensor(column).view(-1, *ones) for column in zip(*(_MICRO[n] for n in wrt), strict=True)
    )
    d_m = torch.stack([move.expand_as(root) for move in moves])
    d_p = (e12 + e21) * (k12 * k21)
    d_above = (above * d_m + d_p) / root
    d_below = (d_p - below * d_m) / root
    d_root = d_above + d_below
    d_alpha = e21 * k21 + d_above
    d_beta = beta * (e10 + e21 - d_alpha / alpha)
    d_weights = torch.stack([d_above, d_below], 1) / root - at.weights * (d_root / root)[:, None]
    return Exponentials(torch.stack([d_alpha, d_beta], 1), d_weights)
