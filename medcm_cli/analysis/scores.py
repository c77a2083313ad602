"""One scale for all fits: OFV = -2 log L - n log(2 pi), n the observations that are not censored, by a method
of one's choice, whatever the fit was trained by.

Priors of Omega and sigma are no part of it. With log-normal errors L is that of levels as the data set gives
them (``ErrorModel.transformation``).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.checks import one_of, whole
from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.numerics.normal import LOG_2PI
from medcm_cli.numerics.pareto import tail_index
from medcm_cli.numerics.streams import Stream, per_fit
from medcm_cli.numerics.triangular import cholesky, log_det, solve_lower, total
from medcm_cli.objectives import Fo, Foce, Focei, Laplace
from medcm_cli.objectives.agq import UP_TO
from medcm_cli.objectives.integral import Nodes, Peak, hermite, joint, peak
from medcm_cli.objectives.several_modes import best_modes

METHODS = ("agq", "imp", "laplace", "focei", "foce", "fo")
MOVED = 0.01  # the OFV of a fit, from one number of nodes to twice as many, where these are enough
_NODES = (4, 8, 16, 32, 64)  # of each random effect
_MOST = 40_000  # nodes of a subject
_PLACED = 2  # times that so many nodes are placed anew
_STILL = 1e-4  # a subject's OFV, by which it moves where its nodes stay
_FREEDOM = 5.0  # degrees of freedom of the proposal
_TOLERANCE, _ITERATIONS = 1e-8, 200  # of the search for modes; a step in eta
_ELEMENTS = 4_000_000  # predictions at once


class Score(NamedTuple):
    """Of N subjects of B fits: ``ofv`` (N, B), 0 of those that are absent. ``error`` (B,): sd of a fit's OFV
    over the random numbers, 0 of methods without any. ``moved`` (B,): by how much the OFV of agq moved as its
    ``nodes`` were doubled last. ``tail`` (B,): the largest k of a fit's subjects (``tail_index``), of imp.
    ``unfound`` (B,): subjects whose mode was not found."""

    ofv: Tensor
    error: Tensor
    unfound: Tensor
    moved: Tensor | None = None
    nodes: int | None = None
    tail: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """That of each fit, (B,)."""
        return self.ofv.sum(0)


def method_for(effects: int) -> str:
    """By which method to score where none is asked for, with so many random effects."""
    return "agq" if effects <= UP_TO else "imp"


@torch.no_grad()
def score(
    model: Model,
    values: Values,
    population: Population,
    streams: Sequence[Stream],
    method: str,
    draws: int = 1000,
) -> Score:
    """The OFV of every subject of every fit.

    :param values: estimates, float64, with Omega and sigma as the model has them. :param population: float64.
    :param streams: the random numbers of each fit. :param draws: of each subject, by imp.
    :raises InputError: another method, or one that the data or the model do not allow.
    """
    one_of("--by", method, METHODS)
    whole("--draws", draws, 100, 1_000_000)
    if method in _OBJECTIVES:
        return _by_objective(model, values, population, streams, method)
    effects = model.size(population)
    if method == "agq" and _NODES[1] ** effects > _MOST:
        raise InputError(f"--by=agq: the nodes of {effects} random effects are too many; choose --by=imp")
    start = [torch.zeros_like(population.present)[None] for _ in range(effects)]
    modes = best_modes(model, values, population, start, _TOLERANCE, _ITERATIONS, stretched=True)
    at = peak(model, values, population, modes.eta)
    unfound = _unfound(population, modes.converged[0])
    if method == "agq":
        return _by_quadrature(model, values, population, at, unfound)
    return _by_importance(model, values, population, at, unfound, streams, draws)


_OBJECTIVES: dict[str, Fo | Foce | Focei | Laplace] = {
    "fo": Fo(),
    "foce": Foce("nonmem", mode_tolerance=_TOLERANCE, mode_iterations=_ITERATIONS),
    "focei": Focei(mode_tolerance=_TOLERANCE, mode_iterations=_ITERATIONS),
    "laplace": Laplace(mode_tolerance=_TOLERANCE, mode_iterations=_ITERATIONS),
}


def _by_objective(
    model: Model, values: Values, population: Population, streams: Sequence[Stream], method: str
) -> Score:
    objective = _OBJECTIVES[method]
    begun = objective.init(model, population, streams, torch.float64)
    state = objective.searched_widely(model, population, replace(begun, trained=dict(values)))
    ofv = objective.of_subjects(model, population, state)[0]
    found = state.carried.get("converged")
    unfound = torch.zeros_like(ofv[0]) if found is None else _unfound(population, found[0])
    return Score(_present(population, ofv), torch.zeros_like(ofv[0]), unfound)


def _unfound(population: Population, converged: Tensor) -> Tensor:
    return ((population.present > 0) & ~converged).sum(0)


def _present(population: Population, ofv: Tensor) -> Tensor:
    return torch.where(population.present > 0, ofv, 0.0)


def _in_parts(population: Population, count: int, part: Callable[[slice], Tensor]) -> Tensor:
    """What ``part`` says of some of ``count`` numbers, (some, N, B), for all, as many at once as memory
    holds."""
    each = max(1, _ELEMENTS // math.prod(population.shape))
    return torch.cat([part(slice(start, start + each)) for start in range(0, count, each)])


def _by_quadrature(model: Model, values: Values, population: Population, at: Peak, unfound: Tensor) -> Score:
    """Nodes are doubled until no fit's OFV moves by more than ``MOVED``. They are placed at the mode, and as
    wide as the Hessian says there; of a subject whose own OFV still moves by the mean and the covariance that
    the posterior has by the last of them (Naylor and Smith 1982, Appl Stat 31:214)."""
    numbers = [each for each in _NODES if each ** len(at.u) <= _MOST]
    before, *_ = _quadrature(model, values, population, at, hermite(len(at.u), numbers[0]))
    for each in numbers[1:]:
        nodes = hermite(len(at.u), each)
        ofv, mean, covariance = _quadrature(model, values, population, at, nodes)
        moved = (ofv - before).sum(0).abs()
        if each == numbers[-1] or bool((moved < MOVED).all()):
            break
        for _ in range(_PLACED):
            at = _placed(at, mean, covariance, (ofv - before).abs() > _STILL)
            before = ofv
            ofv, mean, covariance = _quadrature(model, values, population, at, nodes)
        before = ofv
    return Score(ofv, torch.zeros_like(moved), unfound, moved, each)


def _quadrature(
    model: Model, values: Values, population: Population, at: Peak, nodes: Nodes
) -> tuple[Tensor, Tensor, Tensor]:
    """The OFV of each subject, (N, B), 0 of those that are absent, and the mean (K, N, B) and covariance (K,
    K, N, B) of z, which would be 0 and I if the posterior were as the nodes are placed."""
    z, weight = nodes.points.to(at.u[0]), nodes.log_weight.to(at.u[0])

    def part(of: slice) -> Tensor:
        own = [row[of].view(-1, 1, 1) for row in z]
        value = joint(model, values, population, at, at.away(own)) - total([x * x for x in own])
        return weight[of].view(-1, 1, 1) - _dense(value) / 2

    terms = _in_parts(population, len(weight), part)
    ofv = log_det(at.factor)[0] - 2 * torch.logsumexp(terms, 0)
    share = torch.softmax(terms, 0)
    mean = torch.einsum("ks,snb->knb", z, share)
    square = torch.einsum("ks,ls,snb->klnb", z, z, share)
    return _present(population, ofv), mean, square - mean[:, None] * mean


def _placed(at: Peak, mean: Tensor, covariance: Tensor, restless: Tensor) -> Peak:
    """Nodes of ``restless`` subjects (N, B) by the moments of z; of those whose covariance has no inverse
    they stay."""
    factor = cholesky([[covariance[i, j][None] for j in range(i + 1)] for i in range(len(mean))])
    zero = torch.zeros_like(restless[None], dtype=mean.dtype)
    halves = [solve_lower(factor, [*row, *[zero] * (len(mean) - len(row))]) for row in at.factor]
    # Of u = u_hat + C^-T z the inverse covariance, C cov(z)^-1 C'.
    inverse = [
        [total([a * b for a, b in zip(left, right, strict=True)]) for right in halves[: i + 1]]
        for i, left in enumerate(halves)
    ]
    wider, there = cholesky(inverse), at.away([row[None] for row in mean])
    moves = restless & torch.isfinite(log_det(wider)[0]) & torch.isfinite(torch.stack(there)).all(0)[0]
    return at._replace(
        u=[torch.where(moves, new, old) for new, old in zip(there, at.u, strict=True)],
        factor=[
            [torch.where(moves, new, old) for new, old in zip(*rows, strict=True)]
            for rows in zip(wider, at.factor, strict=True)
        ],
    )


def _dense(value: Tensor) -> Tensor:
    """Where a prediction is no number, there is no density."""
    return torch.where(torch.isfinite(value), value, torch.inf)


def _by_importance(
    model: Model,
    values: Values,
    population: Population,
    at: Peak,
    unfound: Tensor,
    streams: Sequence[Stream],
    draws: int,
) -> Score:
    """Proposals from a multivariate t at the mode, with the scale of Laplace's approximation."""
    k, subjects = len(at.u), population.shape[1]
    # A fit's own subjects come first in what is drawn, so that its numbers do not depend on padding.
    normal = per_fit(streams, lambda g: g.standard_normal((subjects, k, draws)), "score", torch.float64)
    gamma = per_fit(
        streams, lambda g: g.standard_gamma(_FREEDOM / 2, (subjects, draws)), "score scale", torch.float64
    )
    scale = torch.sqrt(_FREEDOM / (2 * gamma)).transpose(0, 1)  # (S, N, B)
    t = [row.transpose(0, 1) * scale for row in normal.unbind(1)]
    constant = (
        math.lgamma((_FREEDOM + k) / 2) - math.lgamma(_FREEDOM / 2) - k / 2 * math.log(_FREEDOM * math.pi)
    )

    def part(of: slice) -> Tensor:
        own = [row[of] for row in t]
        value = _dense(joint(model, values, population, at, at.away(own)))
        log_q = constant - (_FREEDOM + k) / 2 * torch.log1p(total([x * x for x in own]) / _FREEDOM)
        return -value / 2 - k / 2 * LOG_2PI - log_q

    log_weight = _in_parts(population, draws, part)
    mean = torch.logsumexp(log_weight, 0) - math.log(draws)
    relative = torch.exp(log_weight - mean)  # weights in units of their mean
    variance = _present(population, 4 * relative.var(0) / draws)
    tail = torch.where(population.present > 0, tail_index(log_weight), -torch.inf).amax(0)
    ofv = _present(population, log_det(at.factor)[0] - 2 * mean)
    return Score(ofv, variance.sum(0).sqrt(), unfound, tail=tail)
