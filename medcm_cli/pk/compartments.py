"""Linear models of one, two and three compartments: impulse responses as sums of exponentials.

Rate constants k10 = CL / V1, k12 = Q / V1, k21 = Q / V2, k13 = Q3 / V1, k31 = Q3 / V3 (1/h).
"""

import functools
from collections.abc import Mapping, Sequence

import torch

from medcm_cli.pk.dosing import Values
from medcm_cli.pk.linear import Exponentials, LinearModel


def one_compartment(
    amount_per_level: float = 1000.0,
    absorption: bool = False,
    lag: Mapping[int, str] | None = None,
    bioavailability: Mapping[int, str] | None = None,
    durations: Mapping[int, str] | None = None,
    bioavailability_keeps: str = "rate",
    excreted: str | None = None,
) -> LinearModel:
    """Parameters CL (L/h), V1 (L), with absorption KA (1/h): dA/dt = R - (CL/V1) A, level = A / V1 /
    amount_per_level. The other options are described at ``LinearModel``, with the errors raised."""
    return LinearModel(
        _parameters(("CL", "V1"), absorption),
        "V1",
        amount_per_level,
        _one_response,
        _one_tangents,
        absorption,
        lag or {},
        bioavailability or {},
        durations or {},
        bioavailability_keeps,
        excreted,
    )


def two_compartment(
    amount_per_level: float = 1000.0,
    absorption: bool = False,
    lag: Mapping[int, str] | None = None,
    bioavailability: Mapping[int, str] | None = None,
    durations: Mapping[int, str] | None = None,
    bioavailability_keeps: str = "rate",
    excreted: str | None = None,
) -> LinearModel:
    """Parameters CL, V1, Q, V2 (docs/methods.md, "Units and symbols"), with absorption KA (1/h). The other
    options are described at ``LinearModel``, with the errors raised.

    With alpha > beta the eigenvalues of the rate matrix, beta <= k21 <= alpha, so both weights
    (alpha - k21) / (alpha - beta) and (k21 - beta) / (alpha - beta) lie in [0, 1] and add to 1: the response
    is a weighted mean of two exponentials and stays accurate when the eigenvalues nearly coincide.
    """
    return LinearModel(
        _parameters(("CL", "V1", "Q", "V2"), absorption),
        "V1",
        amount_per_level,
        _two_response,
        _two_tangents,
        absorption,
        lag or {},
        bioavailability or {},
        durations or {},
        bioavailability_keeps,
        excreted,
    )


def three_compartment(
    amount_per_level: float = 1000.0,
    absorption: bool = False,
    lag: Mapping[int, str] | None = None,
    bioavailability: Mapping[int, str] | None = None,
    durations: Mapping[int, str] | None = None,
    bioavailability_keeps: str = "rate",
    excreted: str | None = None,
) -> LinearModel:
    """Parameters CL, V1, Q, V2 and, of the second peripheral compartment, Q3, V3, with absorption KA (1/h).
    The other options are described at ``LinearModel``, with the errors raised."""
    return LinearModel(
        _parameters(("CL", "V1", "Q", "V2", "Q3", "V3"), absorption),
        "V1",
        amount_per_level,
        _three_response,
        None,
        absorption,
        lag or {},
        bioavailability or {},
        durations or {},
        bioavailability_keeps,
        excreted,
    )


def _parameters(names: tuple[str, ...], absorption: bool) -> tuple[str, ...]:
    return (*names, "KA") if absorption else names


def _one_response(z: Values) -> Exponentials:
    rate = (z["CL"] / z["V1"])[None]
    return Exponentials(rate, torch.ones_like(rate))


def _one_tangents(z: Values, at: Exponentials, wrt: Sequence[str]) -> Exponentials:
    del z
    sign = {"CL": 1.0, "V1": -1.0}
    return Exponentials(
        torch.stack([sign[name] * at.rates for name in wrt]),
        torch.zeros_like(at.rates).expand(len(wrt), *at.rates.shape),
    )


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


@functools.lru_cache(32)  # on a device, every copy from Python's memory is waited for
def _signs(
    wrt: tuple[str, ...], dimensions: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """The columns of ``_MICRO`` for some parameters, (K, 1, ...) each."""
    columns = zip(*(_MICRO[name] for name in wrt), strict=True)
    return tuple(
        torch.tensor(column, dtype=dtype, device=device).view(-1, *[1] * dimensions) for column in columns
    )


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
    e10, e12, e21 = _signs(tuple(wrt), max(k10.ndim, k21.ndim), k10.dtype, k10.device)
    d_m = torch.stack([move.expand_as(root) for move in moves])
    d_p = (e12 + e21) * (k12 * k21)
    d_above = (above * d_m + d_p) / root
    d_below = (d_p - below * d_m) / root
    d_root = d_above + d_below
    d_alpha = e21 * k21 + d_above
    d_beta = beta * (e10 + e21 - d_alpha / alpha)
    d_weights = torch.stack([d_above, d_below], 1) / root - at.weights * (d_root / root)[:, None]
    return Exponentials(torch.stack([d_alpha, d_beta], 1), d_weights)


def _three_response(z: Values) -> Exponentials:
    """The largest eigenvalue from the trigonometric formula for a cubic with three real roots, polished by
    Newton's method; the others from their product and sum.

    In float64 throughout, since the characteristic polynomial loses digits where eigenvalues are close.
    """
    dtype = z["CL"].dtype
    cl, v1, q2, v2, q3, v3 = torch.broadcast_tensors(
        *(z[name].double() for name in ("CL", "V1", "Q", "V2", "Q3", "V3"))
    )
    k10, k12, k21, k13, k31 = cl / v1, q2 / v1, q2 / v2, q3 / v1, q3 / v3
    # Elementary symmetric functions of the eigenvalues: sums of positive terms.
    e1 = k10 + k12 + k13 + k21 + k31
    e2 = k10 * k31 + k21 * k31 + k10 * k21 + k21 * k13 + k31 * k12
    e3 = k10 * k21 * k31
    with torch.no_grad():
        spread = torch.sqrt((e1 * e1 - 3 * e2).clamp(min=0) / 9)
        centre = e1 / 3
        at_centre = ((centre - e1) * centre + e2) * centre - e3
        cosine = -at_centre / (2 * spread**3).clamp(min=torch.finfo(torch.float64).tiny)
        first = centre + 2 * spread * torch.cos(torch.acos(cosine.clamp(-1, 1)) / 3)
    # A step of Newton's method from a root doubles the order of the derivatives that are exact: one gives
    # the first, two the third.
    for _ in range(2):
        first = first - (((first - e1) * first + e2) * first - e3) / ((3 * first - 2 * e1) * first + e2)
    product = e3 / first
    total = (e2 - product) / first
    gap = torch.sqrt(total * total - 4 * product)
    second = (total + gap) / 2
    third = product / second
    weights = [
        (first - k21) * (first - k31) / ((first - second) * (first - third)),
        (k21 - second) * (second - k31) / ((first - second) * gap),
        (k21 - third) * (k31 - third) / ((first - third) * gap),
    ]
    return Exponentials(torch.stack([first, second, third]).to(dtype), torch.stack(weights).to(dtype))
