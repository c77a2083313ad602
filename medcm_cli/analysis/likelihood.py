"""Intervals from the shape of a likelihood, and not from its curvature alone: by profiles, and by importance
sampling."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.analysis.information import Subjects, optimum
from medcm_cli.analysis.uncertainty import Estimates, Quantities, begun, quantities, units_of
from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import per_fit
from medcm_cli.study.restore import Restored
from medcm_cli.training.layout import Layout

METHODS = ("profile", "sir")
_ROUNDS = 300, 300, 1000  # proposals, the next from what the last have found
_FREEDOM, _WIDER = 5.0, 1.2  # of the proposals: degrees of freedom, and sds relative to the information's
_STEPS, _CLOSE = 12, 1e-3  # to a bound of a profile, and how near to it the last has to be, in sds
_FURTHEST = 20.0  # standard errors from the optimum beyond which a profile has no bound


class Around(NamedTuple):
    """Fits at the optimum of their objective: ``theta`` (P, B) by ``layout``, with its ``covariance`` (B, P,
    P); ``loss`` (B,), and ``scale`` of it, as of ``Criterion``."""

    subjects: Subjects
    layout: Layout
    theta: Tensor
    covariance: Tensor
    carried: dict[str, Tensor]
    loss: Tensor
    scale: float


def more_intervals(
    restored: Restored, estimates: Estimates, level: float, method: str
) -> list[pd.DataFrame | str]:
    """Per fit a frame like those of ``uncertainty.intervals``, or why there is none.

    ``profile``: where minus twice the log likelihood, maximised over everything else, is the chi-squared
    quantile above its least; estimates that depend on several trained values have none, and no sd is given.
    ``sir`` (Dosne et al. 2017, J Pharmacokinet Pharmacodyn 44:509-520): draws of a t distribution, first
    around the optimum and as wide as the information says, then as the weighted draws are, weighted by the
    likelihood.

    :raises InputError: a network, whose weights have no likelihood of their own, or an objective with values
        for each subject.
    """
    around = _around(restored, estimates, method)
    found = _profiles(restored, around, level) if method == "profile" else _sir(restored, around, level)
    return [fault or found[fit] for fit, fault in enumerate(estimates.faults)]


def _around(restored: Restored, estimates: Estimates, method: str) -> Around:
    criterion = restored.objective.criterion(restored.problem.model.size(restored.population))
    subjects, _, own, carried, layout, weights = begun(restored, criterion)
    if len(own) or estimates.theta is None:
        raise InputError(f"--method {method} is for fo, foce and their like, not for a q")
    if bool(weights.any()):
        raise InputError(
            f"--method {method}: the weights of a network are not parameters of a likelihood; expected "
            "network=equations, none or truth"
        )
    theta, covariance = estimates.theta, estimates.covariance["hessian"]
    loss = subjects.losses(theta, own, carried)
    return Around(subjects, layout, theta, covariance, carried, loss, criterion.scale)


def _profiles(restored: Restored, around: Around, level: float) -> list[pd.DataFrame | str]:
    z = float(stats.norm.ppf(0.5 + level / 2))
    at = quantities(restored, around.layout, around.theta)
    size = at.slope.abs().amax(-1)  # (R, P)
    alone = size > 1e-9 * size.amax(1, keepdim=True)
    value = at.back(at.value)
    bounds = torch.full((2, *value.shape), torch.nan, dtype=value.dtype)
    for row, places in enumerate(alone):
        if int(places.sum()) != 1:
            continue
        place = int(places.nonzero()[0, 0])
        sign = torch.sign(at.slope[row, place])
        for side, direction in enumerate((-1.0, 1.0)):
            theta = _bound(around, place, direction * sign, z)
            moved = quantities(restored, around.layout, theta)
            bounds[side, row] = moved.back(moved.value)[row]
    return [
        _frame(restored, at, "profile", value[:, fit], None, bounds[:, :, fit])
        for fit in range(value.shape[1])
    ]


def _bound(around: Around, place: int, direction: Tensor, z: float) -> Tensor:
    """Where the signed root of the profile's rise is z, in a ``direction`` (B,) along one of the values:
    (P, B), NaN where it is nowhere. The root is nearly a straight line, along which the search goes."""
    free = torch.ones(len(around.theta), dtype=torch.bool)
    free[place] = False
    error = around.covariance[:, place, place].sqrt()
    length = z * error
    theta, best = around.theta.clone(), around.theta[place]
    own = theta.new_zeros(0, len(around.subjects.fit))
    close = torch.zeros_like(error, dtype=torch.bool)
    for _ in range(_STEPS):
        theta[place] = torch.where(close, theta[place], best + direction * length)
        found = optimum(around.subjects, theta, own, around.carried, free)
        theta = torch.where(close, theta, found.theta)
        rise = around.subjects.losses(theta, own, around.carried)
        root = (2 / around.scale * (rise - around.loss)).clamp(min=1e-12).sqrt()
        close = close | ((root - z).abs() < _CLOSE)
        if bool(close.all()):
            break
        length = torch.where(close, length, length * (z / root).clamp(0.5, 2.0))
    within = close & (length <= _FURTHEST * error)
    return torch.where(within, theta, torch.nan)


def _sir(restored: Restored, around: Around, level: float) -> list[pd.DataFrame | str]:
    lower, fault = torch.linalg.cholesky_ex(torch.nan_to_num(around.covariance))
    centre = around.theta
    for number, count in enumerate(_ROUNDS):
        theta, weight = _proposed(restored, around, centre, _WIDER * lower, number, count)
        effective = 1 / weight.square().sum(1)
        drawn = theta.unflatten(1, weight.shape)  # (P, B, S)
        mean = (weight * drawn).sum(-1)
        off = drawn - mean[..., None]
        wider, unsound = torch.linalg.cholesky_ex(torch.einsum("bs,pbs,qbs->bpq", weight, off, off))
        better = (unsound == 0) & (effective > 4 * len(theta))
        centre = torch.where(better, mean, centre)
        lower = torch.where(better[:, None, None], wider, lower)
    at, moved = (quantities(restored, around.layout, x) for x in (around.theta, theta))
    found = moved.back(moved.value).unflatten(1, weight.shape)
    mean = (weight * found).sum(-1, keepdim=True)
    sd = (weight * (found - mean).square()).sum(-1).sqrt()
    bounds = _weighted_quantiles(found, weight, ((1 - level) / 2, (1 + level) / 2))
    value = at.back(at.value)
    return [
        f"{float(effective[fit]):.0f} of {_ROUNDS[-1]} proposals count: the likelihood is far from normal"
        if int(fault[fit]) or not effective[fit] > _FEWEST
        else _frame(restored, at, "sir", value[:, fit], sd[:, fit], bounds[:, :, fit])
        for fit in range(len(around.loss))
    ]


def _proposed(
    restored: Restored, around: Around, centre: Tensor, lower: Tensor, number: int, count: int
) -> tuple[Tensor, Tensor]:
    """Proposals (P, B * S), S of each fit, from a t distribution, and their weights (B, S), which add up to
    1."""
    size, fits = centre.shape

    def drawn(generator: np.random.Generator) -> np.ndarray:
        normal, chi2 = generator.standard_normal((size, count)), generator.chisquare(_FREEDOM, count)
        return np.asarray(normal * np.sqrt(_FREEDOM / chi2))

    t = per_fit(restored.streams, drawn, f"sir.{number}", torch.float64)  # (P, S, B)
    theta = (centre[..., None] + torch.einsum("bpq,qsb->pbs", lower, t)).flatten(1)
    carried = {name: value.repeat_interleave(count, -1) for name, value in around.carried.items()}
    own = theta.new_zeros(0, count * len(around.subjects.fit))
    loss = _each(around.subjects, count).losses(theta, own, carried)
    log_q = -0.5 * (_FREEDOM + size) * torch.log1p(t.square().sum(0) / _FREEDOM).T
    log_weight = -loss.view(fits, count) / around.scale - log_q
    return theta, torch.softmax(torch.where(torch.isfinite(log_weight), log_weight, -torch.inf), 1)


_FEWEST = 50.0  # independent draws that the weights have to be worth


def _each(subjects: Subjects, times: int) -> Subjects:
    """Every fit so many times, one after the other."""
    number = torch.arange(times).repeat(len(subjects.fit))
    return replace(
        subjects,
        rows=subjects.rows.repeat_interleave(times),
        fit=subjects.fit.repeat_interleave(times) * times + number,
        fits=subjects.fits * times,
    )


def _weighted_quantiles(values: Tensor, weight: Tensor, levels: tuple[float, float]) -> Tensor:
    """Of values (R, B, S) with weights (B, S) that add up to 1: (2, R, B)."""
    ordered, order = values.sort(-1)
    of_each = weight.expand_as(values).gather(-1, order)
    middle = of_each.cumsum(-1) - of_each / 2
    found = []
    for level in levels:
        above = (middle < level).sum(-1, keepdim=True).clamp(1, values.shape[-1] - 1)
        left, right = middle.gather(-1, above - 1), middle.gather(-1, above)
        part = ((level - left) / (right - left)).clamp(0, 1)
        found.append(torch.lerp(ordered.gather(-1, above - 1), ordered.gather(-1, above), part)[..., 0])
    return torch.stack(found)


def _frame(
    restored: Restored, at: Quantities, method: str, value: Tensor, sd: Tensor | None, bounds: Tensor
) -> pd.DataFrame:
    """Of one fit: ``value`` (R,), ``sd`` and ``bounds`` (2, R), as ``intervals`` has them; those that have no
    bound are left out."""
    unit = units_of(restored, at)
    kept = torch.isfinite(bounds).any(0)
    spread = torch.full_like(value, torch.nan) if sd is None else sd
    found = pd.DataFrame(
        {
            "name": at.names,
            "method": method,
            "estimate": (value * unit).numpy(),
            "se": (spread * unit).numpy(),
            "rse": (100 * spread / value.abs()).numpy(),
            "lower": (bounds[0] * unit).numpy(),
            "upper": (bounds[1] * unit).numpy(),
        }
    )
    return found[kept.numpy()]
