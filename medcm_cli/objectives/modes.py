"""Empirical Bayes estimates: the mode of each subject's posterior of eta, all subjects of all fits at
once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.model.residual_error import Scale
from medcm_cli.numerics.devices import everywhere, nowhere
from medcm_cli.numerics.triangular import (
    Lower,
    cholesky,
    dense,
    multiply_lower,
    multiply_lower_transposed,
    solve_lower,
    solve_lower_transposed,
    total,
)
from medcm_cli.pk import Ragged
from medcm_cli.pk.schedule import alone

_FEW = 0.6  # of all subjects: fewer are followed without the others

Reach = Sequence[tuple[Tensor | float, Tensor | float]]
"""From where to where each random effect is searched."""


class Modes(NamedTuple):
    """``eta`` one (1, N, B) per random effect; ``converged`` (1, N, B) whether the last step was below the
    tolerance."""

    eta: list[Tensor]
    converged: Tensor


class Point(NamedTuple):
    """Value, half its gradient and half its expected Hessian (lower triangle) with respect to u = L^-1
    eta."""

    value: Tensor
    gradient: list[Tensor]
    information: Lower


@torch.no_grad()
def find_modes(
    model: Model,
    values: Values,
    population: Population,
    start: Sequence[Tensor],
    tolerance: float,
    max_iterations: int,
    *,
    stretched: bool = False,
) -> Modes:
    """eta minimising log|Sigma| + r' Sigma^-1 r + eta' Omega^-1 eta, for each subject, as far as the
    distributions of parameters reach: of those that are exponential within [-3, 3], or five sds.

    Fisher scoring with Levenberg-Marquardt damping per subject, in u = L^-1 eta with Omega = L L', where the
    prior is u'u and a nearly singular Omega does no harm. For Gaussian observations with mean f and sd s(f)
    the expected Hessian is positive definite, and exact where the model is linear in eta. A step that does
    not lower a subject's value is refused; damping rises where the value falls by less than a quarter of
    what the quadratic predicts, which also ends the overshooting from side to side, and falls where it falls
    by more than three quarters.

    An observation that is not normal has its -2 log density in place of its two terms, and what the error
    model gives as its curvature (``ErrorModel.deviance``).

    :param start: first guesses, one (S, N, B) per random effect, of which the lowest place counts that a
        search ends in: another than the first guess's by more than rounding.
    :param tolerance: a subject has converged once no component of its step in eta exceeds it, and none would
        exceed ten times as much without damping; that last step is taken without another evaluation. So has
        one of whom a step is refused that damping has made so short that it was worth nothing, as at a kink.
    :param max_iterations: a subject that has not converged by then keeps the best eta found.
    :param stretched: whether steps of a search that is slow become longer than Fisher scoring has them, from
        one to the next. An observation that is tiny beside its prediction, with an error in proportion to
        that, is as good as none: the expected Hessian does not know, and a step moves log f by sigma^2,
        however far it is to go.
    """
    zeta = model.typical(values, population)
    omega = model.prior_cholesky(values, population)

    def at(u: Sequence[Tensor], among: Tensor | None = None) -> Point:
        return evaluate(model, values, zeta, omega, population, u, among)

    reach = model.reach(zeta, population, omega)
    search = _begin(at, solve_lower(omega, _clamped(start, reach)))
    for _ in range(max_iterations):
        candidate = _candidate(omega, search, reach)
        close = _length(omega, search, candidate) <= tolerance
        search = _arrive(search, candidate, close & _undamped(omega, search, reach, close, tolerance))
        if bool(search.done.all()):
            break
        search = _judge(search, candidate, close, at(candidate, ~search.done), stretched)
    return _lowest(Modes(multiply_lower(omega, search.u), search.converged), search.at.value)


_LOWER = 1e-6
"""-2 log density, by which a mode has to be lower than the first guess's to be another one."""


def _lowest(modes: Modes, value: Tensor) -> Modes:
    """Of (S, N, B) the lowest of each subject's, (1, N, B)."""
    if len(value) == 1:
        return modes
    value = torch.where(torch.isfinite(value), value, torch.inf)
    value = torch.cat([value[:1] - _LOWER, value[1:]])
    best = value.argmin(0, keepdim=True)
    return Modes([e.gather(0, best) for e in modes.eta], modes.converged.gather(0, best))


class _Search(NamedTuple):
    """How far the search is: ``u`` and what is known there, ``at``; each subject's ``damping``, how many of
    its last steps were ``slow``, whether it has ``converged``, and whether it is ``done``, for better or
    worse."""

    u: list[Tensor]
    at: Point
    damping: Tensor
    slow: Tensor
    converged: Tensor
    done: Tensor

    @property
    def stretch(self) -> Tensor:
        """How many times a step of its length is taken."""
        return 2 ** (self.slow - _PATIENCE).clamp(min=0)


_PATIENCE = 4
"""Slow steps one after another, from which on each is twice as long as the last; a step that is not slow is
followed by one that is a sixteenth of its stretch."""
_LITTLE = 0.05  # damping


def _begin(evaluate: Callable[[Sequence[Tensor]], Point], u: list[Tensor]) -> _Search:
    at = evaluate(u)
    nobody = torch.zeros_like(at.value, dtype=torch.bool)
    return _Search(u, at, torch.zeros_like(at.value), torch.zeros_like(at.value), nobody, nobody)


def _candidate(omega: Lower, search: _Search, reach: Reach) -> list[Tensor]:
    """Where a damped step leads."""
    damped = [[*row[:-1], row[-1] * (1 + search.damping)] for row in search.at.information]
    factor = cholesky(damped)
    step = solve_lower_transposed(factor, solve_lower(factor, search.at.gradient))
    if not nowhere(search.slow > _PATIENCE):
        step = [search.stretch * part for part in step]
    return _within(omega, reach, [value - s for value, s in zip(search.u, step, strict=True)])


def _length(omega: Lower, search: _Search, candidate: list[Tensor]) -> Tensor:
    """The largest component of a step in eta."""
    change = [old - new for old, new in zip(search.u, candidate, strict=True)]
    return torch.stack([c.abs() for c in multiply_lower(omega, change)]).amax(0)


def _undamped(omega: Lower, search: _Search, reach: Reach, close: Tensor, tolerance: float) -> Tensor:
    """Whether steps that are ``close`` would nearly be without damping, too: one that damping alone has made
    short does not say how near the mode is."""
    if nowhere(close & ~search.done & (search.damping > 0)):
        return close
    whole = _candidate(omega, search._replace(damping=torch.zeros_like(search.damping)), reach)
    return _length(omega, search, whole) <= _NEARLY * tolerance


_NEARLY = 10.0  # times: a little damping, as a search often ends with, leaves most of a step


def _arrive(search: _Search, candidate: list[Tensor], close: Tensor) -> _Search:
    """A last step within the tolerance, which is ``close``, is taken unseen, since it is not worth an
    evaluation. Who is done stays: a mode must not depend on how long others take."""
    arrived = close & ~search.done
    u = [torch.where(arrived, c, old) for c, old in zip(candidate, search.u, strict=True)]
    return search._replace(u=u, converged=search.converged | arrived, done=search.done | arrived)


def _judge(search: _Search, candidate: list[Tensor], close: Tensor, new: Point, may_stretch: bool) -> _Search:
    """Take the step to where ``new`` is known or refuse it, and set the damping of the next. A search is over
    where a step is refused that is ``close`` and foretells no mode that is another."""
    at, damping = search.at, search.damping
    change = [old - there for old, there in zip(search.u, candidate, strict=True)]
    rounding = 1000 * torch.finfo(at.value.dtype).eps
    slope, stretched = _dot(change, at.gradient), search.slow > _PATIENCE
    predicted = 2 * slope - _dot(change, _times(at.information, change))
    # Near the mode the value is flat to rounding and two of them compare at random; the gradients at both
    # ends still tell, to third order in the step, how far it fell.
    by_gradient = _dot(change, [a + b for a, b in zip(at.gradient, new.gradient, strict=True)])
    flat = (predicted <= rounding * (1 + at.value.abs())) & ~stretched
    fell = torch.where(flat, by_gradient, at.value - new.value)
    accept = (fell >= 0) & ~search.done
    # A step that is cut off at a bound may be predicted to rise, and one too long to lead where there is no
    # density: what is refused is damped, whatever was predicted.
    short = ((fell < 0.25 * predicted) | ~(fell >= 0)) & ~stretched
    raised = torch.where(short, (damping * 10).clamp(min=0.1), damping)
    over = close & ~(fell >= 0) & (predicted <= _LOWER) & ~stretched & ~search.done
    # Half of the slope is left after a whole step: far from the mode the expected Hessian may be far too
    # large, as where an observation is tiny beside its prediction, and the error in proportion to that.
    slow = accept & (by_gradient > 1.5 * slope) & (damping < _LITTLE) & may_stretch
    return _Search(
        [torch.where(accept, c, old) for c, old in zip(candidate, search.u, strict=True)],
        _merge(accept, new, at),
        torch.where(accept & (fell > 0.75 * predicted), damping * 0.1, raised),
        torch.where(slow, search.slow + 1, (search.slow - _PATIENCE).clamp(min=0)),
        search.converged | over,
        search.done | over | ~torch.isfinite(at.value),
    )


def moving_modes(model: Model, values: Values, population: Population, eta: Sequence[Tensor]) -> list[Tensor]:
    """Modes ``eta`` as functions of the trained values: equal to ``eta``, with the derivative that the
    implicit function theorem gives, -H^-1 dg, for the gradient g and the exact Hessian H of what the modes
    minimise.

    It is the derivative of one Newton step from the mode, whose length there is zero. A mode at a bound, and
    one where H is not positive definite since the search has not got there, does not move.
    """
    zeta = model.typical(values, population)
    omega = model.prior_cholesky(values, population)
    start = [x.detach().requires_grad_() for x in solve_lower(omega, eta)]
    gradient = evaluate(model, values, zeta, omega, population, start).gradient
    # Subjects do not share etas, so a sum over them has the gradient of each.
    hessian = [torch.autograd.grad(part.sum(), start, retain_graph=True) for part in gradient]
    with torch.no_grad():
        factor = cholesky(hessian)
        zero = torch.zeros_like(start[0])
        inverse = []
        for i in range(len(start)):
            unit = [zero + 1 if i == j else zero for j in range(len(start))]
            inverse.append(solve_lower_transposed(factor, solve_lower(factor, unit)))
        moves = inside(model.reach(zeta, population, omega), eta)
        moves &= torch.isfinite(dense(inverse)).all(0).all(0)
        inverse = [[torch.where(moves, entry, 0) for entry in row] for row in inverse]
    change = [part - part.detach() for part in gradient]
    u = [x.detach() - _dot(row, change) for x, row in zip(start, inverse, strict=True)]
    return [torch.where(moves, m, e) for m, e in zip(multiply_lower(omega, u), eta, strict=True)]


@torch.no_grad()
def laplace_covariance(model: Model, values: Values, population: Population, eta: Sequence[Tensor]) -> Tensor:
    """Covariance of Laplace's approximation to the posterior at its mode ``eta``, from the expected
    information there: (K, K, N, B)."""
    omega = model.prior_cholesky(values, population)
    zeta = model.typical(values, population)
    at = evaluate(model, values, zeta, omega, population, solve_lower(omega, eta))
    factor = cholesky(at.information)
    zero = torch.zeros_like(at.value)
    halves = [  # L (information)^-1 L', by rows of L
        solve_lower(factor, [*(entry + zero for entry in row), *[zero] * (len(omega) - len(row))])
        for row in omega
    ]
    return dense([[_dot(left, right) for right in halves] for left in halves])[:, :, 0]


def evaluate(
    model: Model,
    values: Values,
    zeta: Values,
    omega: Lower,
    population: Population,
    u: Sequence[Tensor],
    among: Tensor | None = None,
) -> Point:
    """What modes minimise, at ``u`` of (S, N, B) each.

    :param among: (1, N, B), of whom alone it is wanted; None: of all.
    """
    eta = multiply_lower(omega, u)
    prediction, columns = _linearised(model, zeta, population, eta, among)
    own = model.of_subjects(values, eta)
    terms, sd, pull, curvature = model.error.deviance(own, prediction, population)
    loadings = [loading / sd for loading in multiply_lower_transposed(omega, columns)]
    curved = loadings if curvature is None else [loading * curvature for loading in loadings]
    information = []
    for i, left in enumerate(curved):
        row = [population.sum_observations(left * right) for right in loadings[: i + 1]]
        information.append([*row[:-1], row[-1] + 1])
    gradient = [population.sum_observations(part * pull) + x for part, x in zip(loadings, u, strict=True)]
    if (place := model.random_effects.place_of_sigma) is not None:
        scale = model.error.scale(own, prediction, population)
        gradient, information = _with_scale(population, omega[place], loadings, scale, gradient, information)
    return Point(
        population.sum_observations(terms) + total([x * x for x in u]),
        gradient,
        information,
    )


def _linearised(
    model: Model, zeta: Values, population: Population, eta: Sequence[Tensor], among: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """f and the columns of G at ``eta``. Of a model that is integrated a few are followed without the others,
    who then have 1 and 0."""
    if among is None or not model.pk.needs_double or isinstance(population.schedule, Ragged):
        return model.linearise(zeta, population, eta)
    among = among.any(0)  # of a subject's searches, from several starts
    index, fits = among.flatten().nonzero().flatten(), among.shape[-1]
    if len(index) > _FEW * among.numel():
        return model.linearise(zeta, population, eta)
    own = {
        name: alone(value, index, fits)
        if name in model.pk.parameters and value.ndim > 1
        # What a fit has, its subjects share.
        else value[..., index % fits if value.shape[-1] > 1 else torch.zeros_like(index)]
        for name, value in zeta.items()
    }
    prediction, columns = model.linearise(
        own, population.alone(index), [alone(values, index, fits) for values in eta]
    )

    def spread(values: Tensor, other: float) -> Tensor:
        everyone = values.new_full((*values.shape[:-2], among.numel()), other)
        return everyone.index_copy_(-1, index, values.squeeze(-2)).view(*values.shape[:-2], *among.shape)

    return spread(prediction, 1.0), [spread(column, 0.0) for column in columns]


def _with_scale(
    population: Population,
    row: Sequence[Tensor],
    loadings: Sequence[Tensor],
    scale: Scale,
    gradient: Sequence[Tensor],
    information: Lower,
) -> tuple[list[Tensor], Lower]:
    """Gradient and information with what a random effect of the residual error, which moves the logarithm of
    sd alone, adds. :param row: of L, that random effect's."""
    pull, curvature = (population.sum_observations(part) for part in (scale.pull, scale.curvature))
    across: list[Tensor | float] = [
        0.0 if scale.cross is None else population.sum_observations(loading * scale.cross)
        for loading in loadings
    ]
    own: list[Tensor | float] = [*row, *[0.0] * (len(loadings) - len(row))]
    added = [
        [
            information[i][j] + own[i] * own[j] * curvature + own[i] * across[j] + own[j] * across[i]
            for j in range(i + 1)
        ]
        for i in range(len(loadings))
    ]
    return [part + entry * pull for part, entry in zip(gradient, own, strict=True)], added


def inside(reach: Reach, eta: Sequence[Tensor]) -> Tensor:
    """Modes that are at no bound, (1, N, B)."""
    near = 1 - 1e-6
    free = [(e > near * low) & (e < near * high) for e, (low, high) in zip(eta, reach, strict=True)]
    return torch.stack(free).all(0)


def _within(omega: Lower, reach: Reach, u: list[Tensor]) -> list[Tensor]:
    eta = multiply_lower(omega, u)
    beyond = [(e < low) | (e > high) for e, (low, high) in zip(eta, reach, strict=True)]
    outside = torch.stack(beyond).any(0)
    if nowhere(outside):
        return u
    inside = solve_lower(omega, _clamped(eta, reach))
    return [torch.where(outside, i, x) for i, x in zip(inside, u, strict=True)]


def _clamped(eta: Sequence[Tensor], reach: Reach) -> list[Tensor]:
    return [torch.clamp(e, low, high) for e, (low, high) in zip(eta, reach, strict=True)]  # type: ignore[arg-type]


def _times(lower: Lower, vector: Sequence[Tensor]) -> list[Tensor]:
    """A x for a symmetric matrix given by its lower triangle."""
    n = len(lower)
    return [total([lower[max(i, j)][min(i, j)] * vector[j] for j in range(n)]) for i in range(n)]


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return total([a * b for a, b in zip(left, right, strict=True)])


def _merge(accept: Tensor, new: Point, old: Point) -> Point:
    if everywhere(accept):
        return new
    return Point(
        torch.where(accept, new.value, old.value),
        [torch.where(accept, a, b) for a, b in zip(new.gradient, old.gradient, strict=True)],
        [
            [torch.where(accept, a, b) for a, b in zip(*rows, strict=True)]
            for rows in zip(new.information, old.information, strict=True)
        ],
    )
