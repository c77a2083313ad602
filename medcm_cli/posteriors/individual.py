"""The patient in front of you: the posterior of the random effects of subjects that a model has not seen.

Fits are the batch: each of them has its own posterior of every subject, all found at once. Numbers drawn
for a fit are quasi-random and the same for every subject, so that a patient's posterior does not depend on
who else is in the file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from medcm_cli.checks import one_of
from medcm_cli.data import Population
from medcm_cli.model import Model, Values
from medcm_cli.model.rows import raws_of
from medcm_cli.numerics.streams import Stream, per_fit
from medcm_cli.numerics.triangular import (
    Lower,
    cholesky,
    covariance,
    dense,
    multiply_lower,
    raw_from_lower,
    solve_lower,
    total,
)
from medcm_cli.objectives import State
from medcm_cli.objectives.gaussian import Gaussian
from medcm_cli.objectives.modes import find_modes, laplace_covariance
from medcm_cli.objectives.vi import Vi

METHODS = ("importance", "laplace", "variational")
_TOLERANCE, _ITERATIONS = 1e-8, 100  # of the search for modes; a step in eta
_FREEDOM = 5.0  # degrees of freedom of the proposal
_PER_DRAW, _FEWEST = 2, 32  # proposals for each draw that is kept, and at least so many
# Prior sds beyond the mode's distance from 0 where the posterior has next to no mass (of two random effects
# and no level 1e-8): proposals further out do not count. An ODE of such parameters may have no solution, or
# one that takes millions of steps.
_REACH = 6.0
_MISFIT = 4.0  # residual sds of a level at a mode that asks for other beginnings of the search
_SCREENED = 256  # points of eta for that
_ELEMENTS = 4_000_000  # levels in memory at once, of those points
_STEPS, _RATE, _SAMPLES = 200, 0.03, 16  # of the variational approximation


@dataclass(frozen=True)
class Posterior:
    """p(eta | levels) of N subjects under each of B fits.

    ``mode`` (its maximum) and ``draws``, with equal weights: K tensors, (1, N, B) and (S, N, B).
    ``covariance`` (K, K, N, B) of the Gaussian that stands for it: Laplace's, or q's. ``converged`` (N, B):
    whether the search for the mode has ended. ``effective`` (N, B): how many independent draws the weights
    of importance sampling are worth, as a fraction of the proposals; 1 of other methods.
    """

    mode: list[Tensor]
    covariance: Tensor
    converged: Tensor
    draws: list[Tensor]
    effective: Tensor


def proposals(draws: int) -> int:
    """Of importance sampling, for so many draws of a fit."""
    return max(_PER_DRAW * draws, _FEWEST)


def log_joint(model: Model, values: Values, population: Population, eta: Sequence[Tensor]) -> Tensor:
    """``Model.log_joint`` with the typical parameters of ``values``: (S, N, B)."""
    return model.log_joint(values, model.typical(values, population), population, eta)


def posterior(
    model: Model,
    values: Values,
    population: Population,
    streams: Sequence[Stream],
    method: str = "importance",
    draws: int = 1000,
) -> Posterior:
    """The posterior of eta of every subject under every fit.

    ``laplace``: the mode and a Gaussian with the inverse of the expected information there.
    ``importance``: draws from a multivariate t distribution with that mode and scale, weighted by the
    posterior and resampled. Where the levels say little about eta, the posterior's tails are those of the
    prior, which may be wider than Laplace's Gaussian; those of a t distribution are wider than any
    Gaussian's, which keeps the weights bounded. ``variational``: the Gaussian q of ``objectives.vi`` with
    everything else held fixed, begun at Laplace's.

    :param population: N subjects, of whom any may have no observation: then it is the prior. Its tensors
        may have a fit dimension of 1, but for covariates.
    :param streams: the random numbers of the fits. :param draws: S, of each fit.
    :raises InputError: another method.
    """
    one_of("method", method, METHODS)
    with torch.no_grad():
        mode, converged = _modes(model, values, population, len(streams))
        spread = laplace_covariance(model, values, population, mode)
        lower = cholesky([list(row.unbind(0)) for row in spread.unbind(0)])
        if method == "importance":
            drawn, effective = _importance(model, values, population, streams, mode, lower, draws)
            return Posterior(mode, spread, converged[0], drawn, effective)
    centre = mode
    if method == "variational":
        centre, lower = _variational(model, values, population, streams, mode, lower)
        spread = dense(covariance(lower))
    normal = _normal(streams, "individual", len(mode), draws, mode[0].dtype)
    drawn = [m + shift for m, shift in zip(centre, multiply_lower(lower, normal), strict=True)]
    return Posterior(mode, spread, converged[0], drawn, torch.ones_like(mode[0][0]))


def misfit(model: Model, values: Values, population: Population, eta: Sequence[Tensor]) -> Tensor:
    """Size of the white residual of each level, (T, S, N, B); 0 where there is none or only a limit is
    known."""
    prediction = model.predict(model.typical(values, population), population, eta)
    known = population.observed > 0
    if population.censored is not None:
        known = known & (population.censored == 0)
    error, own = model.error.of_endpoint(population.endpoint), model.of_subjects(values, eta)
    return torch.where(known, error.white(own, prediction, population.dv).abs(), 0.0)


def _modes(model: Model, values: Values, population: Population, fits: int) -> tuple[list[Tensor], Tensor]:
    """Each subject's mode of eta under each fit, and whether the search has ended.

    It begins at 0. Levels that are far from anything near there may have no slope there, and a posterior
    then has its highest mode elsewhere: of subjects whose levels are not met, it begins again at the most
    likely of many points, and the higher mode counts.
    """
    size, dtype = model.size(population), population.dv.dtype
    n = population.present.shape[-2]
    start = [torch.zeros((1, n, fits), dtype=dtype)] * size
    mode, converged = find_modes(model, values, population, start, _TOLERANCE, _ITERATIONS)
    unmet = (misfit(model, values, population, mode) > _MISFIT).any(0).any(0).any(-1)
    if not bool(unmet.any()):
        return mode, converged
    points = torch.quasirandom.SobolEngine(size, scramble=True, seed=1).draw(_SCREENED, dtype=dtype)
    eta = _spread_out(model, values, population, points)
    at_once = max(1, _ELEMENTS // (_SCREENED * fits * len(population.time)))
    for numbers in torch.nonzero(unmet).flatten().split(at_once):
        some = _some(population, numbers)
        likely = _finite(log_joint(model, values, some, eta)).argmax(0, keepdim=True)
        begin = [column[:, 0, 0][likely] for column in eta]
        found, ended = find_modes(model, values, some, begin, _TOLERANCE, _ITERATIONS)
        before = [old[:, numbers] for old in mode]
        higher = _finite(log_joint(model, values, some, found)) > log_joint(model, values, some, before)
        mode = [
            old.index_copy(1, numbers, torch.where(higher, new, kept))
            for old, new, kept in zip(mode, found, before, strict=True)
        ]
        converged = converged.index_copy(1, numbers, torch.where(higher, ended, converged[:, numbers]))
    return mode, converged


def _spread_out(model: Model, values: Values, population: Population, points: Tensor) -> list[Tensor]:
    """Points (S, K) of (0, 1) over what each random effect reaches, K of (S, 1, B or 1); three sds either way
    of one that reaches anywhere."""
    shapes = model.random_effects.shapes(values)
    spread = []
    omega = model.prior_cholesky(values, population)
    for place, (low, high) in enumerate(model.reach(shapes, population, omega)):
        share = points[:, place, None, None]
        if isinstance(high, float) and math.isinf(high):
            high = 3 * total([entry * entry for entry in omega[place]]).sqrt()
            low = -high
        spread.append((low + (high - low) * share).to(points.dtype))
    return spread


def _finite(log_density: Tensor) -> Tensor:
    """What is not is taken as no density."""
    return torch.where(torch.isfinite(log_density), log_density, -torch.inf)


def _some(population: Population, numbers: Tensor) -> Population:
    """Some subjects, any number of times; covariates may have more fits than the rest."""
    index = numbers[:, None].expand(-1, population.present.shape[-1])
    taken = replace(population, covariates={}).take(index)
    return replace(taken, covariates={name: v[..., numbers, :] for name, v in population.covariates.items()})


def _uniform(streams: Sequence[Stream], purpose: str, dimension: int, count: int) -> Tensor:
    """Scrambled Sobol points of each fit, inside (0, 1): (dimension, count, B)."""

    def draw(generator: np.random.Generator) -> np.ndarray:
        engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=int(generator.integers(2**31)))
        return np.asarray(engine.draw(count, dtype=torch.float64).T.numpy()) + 2.0**-32

    return per_fit(streams, draw, purpose, torch.float64)


def _normal(
    streams: Sequence[Stream], purpose: str, dimension: int, count: int, dtype: torch.dtype
) -> list[Tensor]:
    """Standard normal quasi-random numbers, ``dimension`` of (count, 1, B)."""
    points = torch.special.ndtri(_uniform(streams, purpose, dimension, count))
    return list(_along_curve(points)[:, :, None].to(dtype))


def _along_curve(points: Tensor) -> Tensor:
    """Points (K, count, B) of a distribution like the normal one, in the order of Morton's space-filling
    curve, on which neighbours are near each other in every dimension: the bits of their probabilities,
    interleaved."""
    bits = 60 // len(points)
    coordinates = (torch.special.ndtr(points) * 2**bits).long()
    code = torch.zeros_like(coordinates[0])
    for bit in range(bits):
        for number, coordinate in enumerate(coordinates):
            code |= ((coordinate >> bit) & 1) << (bit * len(coordinates) + number)
    return points.gather(1, code.argsort(0)[None].expand_as(points))


def residual_noise(streams: Sequence[Stream], count: int, dtype: torch.dtype) -> Tensor:
    """A standard normal number for each draw of a fit, (count, 1, B), for levels as they would be measured.

    The draws are in the order of a space-filling curve, and these numbers beside them are even in every
    stretch of it (as in a Hammersley set); they serve for one time at once, not for series in time.
    """
    normal: Tensor = torch.special.ndtri(_uniform(streams, "residual", 1, count))
    return normal[0][:, None].to(dtype)


def _importance(
    model: Model,
    values: Values,
    population: Population,
    streams: Sequence[Stream],
    mode: list[Tensor],
    lower: Lower,
    draws: int,
) -> tuple[list[Tensor], Tensor]:
    size, count = len(mode), proposals(draws)
    dtype = mode[0].dtype
    points = _uniform(streams, "individual", size + 1, count)
    chi2 = 2 * gammaincinv(_FREEDOM / 2, points[-1].numpy())
    scale = torch.from_numpy(np.sqrt(_FREEDOM / chi2))
    # Systematic resampling of proposals in this order keeps every random effect even (Gerber and Chopin
    # 2015); of as many random draws the quantiles are three times as far off.
    along = _along_curve(torch.special.ndtri(points[:-1]) * scale)
    t = list(along[:, :, None].to(dtype))  # K of (count, 1, B)
    there, sizes = model.there(population), torch.tensor(float(size), dtype=dtype)
    if there is not None:  # on what a subject lacks no weight depends: it is drawn afterwards
        t, sizes = [x * has for x, has in zip(t, there, strict=True)], there.sum(0)
    eta = [m + shift for m, shift in zip(mode, multiply_lower(lower, t), strict=True)]
    omega = model.prior_cholesky(values, population)
    counts = _distance(omega, eta) < _distance(omega, mode) + _REACH
    eta = [torch.where(counts, value, m) for value, m in zip(eta, mode, strict=True)]
    log_q = -0.5 * (_FREEDOM + sizes) * torch.log1p(total([x * x for x in t]) / _FREEDOM)
    log_weight = _finite(log_joint(model, values, population, eta) - log_q)
    log_weight = torch.where(counts, log_weight, -torch.inf)
    weight = torch.softmax(log_weight, 0)
    effective = 1 / (weight.square().sum(0) * count)
    cumulative = weight.cumsum(0).permute(1, 2, 0).contiguous()
    # Each fit begins at a place of its own: an ensemble of many fits has few draws of each, which at the same
    # places in all would be too narrow.
    begin = per_fit(streams, lambda generator: generator.random(1), "resampling", dtype)  # (1, B)
    place = (torch.arange(draws, dtype=dtype) + begin[..., None]) / draws * cumulative[..., -1:]
    chosen = torch.searchsorted(cumulative, place).clamp(max=count - 1).permute(2, 0, 1)
    drawn = [values.gather(0, chosen) for values in torch.broadcast_tensors(*eta)]
    return drawn if there is None else _with_prior(omega, streams, drawn, there), effective


def _with_prior(omega: Lower, streams: Sequence[Stream], drawn: list[Tensor], there: Tensor) -> list[Tensor]:
    """Draws with those of the prior in place of random effects that a subject lacks, which are independent of
    the others: beside them in no order, as ``residual_noise`` is."""
    points = torch.special.ndtri(_uniform(streams, "occasions", len(drawn), len(drawn[0])))
    prior = multiply_lower(omega, list(points[:, :, None].to(drawn[0].dtype)))
    return [torch.where(has > 0, d, p) for has, d, p in zip(there, drawn, prior, strict=True)]


def _distance(omega: Lower, eta: Sequence[Tensor]) -> Tensor:
    """Of eta from 0, in standard deviations of the prior."""
    return total([white * white for white in solve_lower(omega, eta)]).sqrt()


def _variational(
    model: Model,
    values: Values,
    population: Population,
    streams: Sequence[Stream],
    mode: list[Tensor],
    lower: Lower,
) -> tuple[list[Tensor], Lower]:
    """Mean and Cholesky factor of q, K of (1, N, B) and of (N, B)."""
    size = len(mode)
    sizes = model.sizes(size) or [1.0] * size
    parts = [m / each for m, each in zip(mode, sizes, strict=True)]
    q = _as_q(parts, [[entry / each for entry in row] for row, each in zip(lower, sizes, strict=True)])
    q = {name: value.detach().clone().requires_grad_() for name, value in q.items()}
    noise = torch.stack(_normal(streams, "individual", size, _SAMPLES, mode[0].dtype))
    noise = noise.expand(-1, -1, mode[0].shape[1], -1)
    objective = Vi(samples=_SAMPLES, estimator="path_derivative")
    fixed: dict[str, Tensor] = dict(values)
    optimizer = torch.optim.Adam(list(q.values()), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss: Any = objective.loss(model, population, State(fixed | q), noise).sum()
        loss.backward()
        optimizer.step()
        schedule.step()
    done = {name: value.detach() for name, value in q.items()}
    found = Gaussian.from_raw(done["q.mean"], done["q.sd"], done.get("q.correlation"), model.sizes(size))
    return [mean[None] for mean in found.mean], found.lower


def _as_q(mode: Sequence[Tensor], lower: Lower) -> dict[str, Tensor]:
    """The values of ``objectives.vi`` that give a mean and a covariance: the inverse of
    ``lower_from_raw``."""
    sd, raw = raw_from_lower(lower, 0.999)
    q = {"q.mean": torch.cat(list(mode)), "q.sd": raws_of(torch.stack(sd))}
    return q | ({"q.correlation": torch.stack(raw)} if raw else {})
