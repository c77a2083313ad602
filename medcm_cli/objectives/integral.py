"""-2 log of the integral of each subject's likelihood over eta, by the shape of what is integrated around its
mode."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.numerics.devices import everywhere
from medcm_cli.numerics.triangular import (
    Lower,
    cholesky,
    log_det,
    multiply_lower,
    solve_lower,
    solve_lower_transposed,
    total,
)
from medcm_cli.objectives.modes import Point, evaluate, inside


class Nodes(NamedTuple):
    """Of a quadrature of standard normal numbers: ``points`` (K, M), and the logarithms (M,) of weights that
    add up to 1."""

    points: Tensor
    log_weight: Tensor


def hermite(dimensions: int, each: int) -> Nodes:
    """The grid of Gauss-Hermite's nodes, ``each`` to the power of ``dimensions``: on the CPU, float64."""
    node, weight = np.polynomial.hermite_e.hermegauss(each)
    grid = np.stack(np.meshgrid(*[node] * dimensions, indexing="ij")).reshape(dimensions, -1)
    logs = np.stack(np.meshgrid(*[np.log(weight / weight.sum())] * dimensions, indexing="ij"))
    return Nodes(torch.from_numpy(grid), torch.from_numpy(logs.reshape(dimensions, -1).sum(0)))


class Peak(NamedTuple):
    """What is integrated, around its mode: typical parameters ``zeta``, L of Omega = L L' as ``omega``, the
    mode ``u`` = L^-1 eta, (1, N, B) each, and ``factor`` C, of C C' half the Hessian there."""

    zeta: Values
    omega: Lower
    u: Sequence[Tensor]
    factor: Lower

    def away(self, z: Sequence[Tensor]) -> list[Tensor]:
        """u at numbers, K of (S, N, B) or broadcastable, that would be standard normal if u were normal."""
        shift = solve_lower_transposed(self.factor, z)
        return [x + move for x, move in zip(self.u, shift, strict=True)]


def peak(model: Model, values: Values, population: Population, eta: Sequence[Tensor]) -> Peak:
    """At modes ``eta``, one (1, N, B) per random effect; without a gradient."""
    with torch.no_grad():
        omega, zeta = model.prior_cholesky(values, population), model.typical(values, population)
        still = solve_lower(omega, eta)
    with torch.enable_grad():
        u = [x.detach().requires_grad_() for x in still]
        at = evaluate(model, values, zeta, omega, population, u)
        exact = hessian(at, u, differentiable=False)
    with torch.no_grad():
        factor = cholesky(_positive(exact, [[entry.detach() for entry in row] for row in at.information]))
    return Peak(zeta, omega, still, factor)


def joint(model: Model, values: Values, population: Population, at: Peak, u: Sequence[Tensor]) -> Tensor:
    """l = -2 log p(y, eta) at ``u``, without normal constants and log|Omega|: (S, N, B)."""
    eta = multiply_lower(at.omega, u)
    prediction = model.predict(at.zeta, population, eta)
    return joint_of(model, values, population, prediction, eta, u)


def joint_of(
    model: Model,
    values: Values,
    population: Population,
    prediction: Tensor,
    eta: Sequence[Tensor],
    u: Sequence[Tensor],
) -> Tensor:
    """The same where the ``prediction`` (T, S, N, B) at ``u``, and so at ``eta``, is known."""
    own = model.of_subjects(values, eta)
    value = population.sum_observations(model.error.deviance(own, prediction, population).value)
    return value + total([x * x for x in u])


def around_modes(
    model: Model,
    values: Values,
    population: Population,
    eta: Sequence[Tensor],
    *,
    exact: bool,
    follow: bool,
    nodes: Nodes | None = None,
) -> Tensor:
    """-2 log of the integral over eta, without n log(2 pi), of each subject: (1, N, B).

    In u = L^-1 eta, Omega = L L', it is l(u) + log|H|: what modes minimise, and half its curvature; Laplace's
    approximation. With ``nodes``, adaptive Gauss-Hermite quadrature (Pinheiro and Bates 1995) at the mode
    with that scale, of which Laplace's is the case of one node.

    :param eta: modes, one (1, N, B) per random effect. :param exact: H is the Hessian, and the expected one
        where that is not positive definite, as it may be at a bound; otherwise it is the expected one.
    :param follow: the gradient follows the modes as the trained values move them; otherwise they are
        constants.
    """
    differentiate = torch.is_grad_enabled()
    with torch.set_grad_enabled(differentiate or exact):
        omega = model.prior_cholesky(values, population)
        still = solve_lower(omega, eta)
        u = [x.detach().requires_grad_() for x in still]
        zeta = model.typical(values, population)
        at = evaluate(model, values, zeta, omega, population, u)
        curvature = at.information
        if exact:
            curvature = _positive(hessian(at, u, differentiate), at.information)
        factor = cholesky(curvature)
        if nodes is None:
            result = at.value + log_det(factor)
        else:
            result = quadrature(model, values, population, Peak(zeta, omega, u, factor), nodes)
    if not differentiate:
        return result.detach()
    slope = torch.autograd.grad(result.sum(), u, retain_graph=True)
    # Of modes that are constants u moves with Omega.
    moved = [s * (x - x.detach()) for s, x in zip(slope, still, strict=True)]
    if follow:
        free = inside(model.reach(zeta, population, omega), eta)
        along, moves = _following(at, u, free, slope, curvature if exact else None)
        moved = [torch.where(moves, a, b) for a, b in zip(along, moved, strict=True)]
    return result + total(moved)


def hessian(at: Point, u: Sequence[Tensor], differentiable: bool) -> Lower:
    """Half the Hessian in ``u``, by the gradient of half the gradient."""
    # Subjects do not share etas, so a sum over them has the gradient of each.
    return [
        list(
            torch.autograd.grad(
                part.sum(),
                u[: row + 1],
                retain_graph=True,
                create_graph=differentiable,
                allow_unused=True,
                materialize_grads=True,
            )
        )
        for row, part in enumerate(at.gradient)
    ]


def _positive(exact: Lower, expected: Lower) -> Lower:
    """The exact curvature of a subject where it is positive definite."""
    with torch.no_grad():
        sound = torch.isfinite(log_det(cholesky(exact)))
    if everywhere(sound):
        return exact
    return [
        [torch.where(sound, a, b) for a, b in zip(*rows, strict=True)]
        for rows in zip(exact, expected, strict=True)
    ]


def quadrature(model: Model, values: Values, population: Population, at: Peak, nodes: Nodes) -> Tensor:
    """-2 log of the integral, (1, N, B), by the mean of exp(-l / 2) over exp(-z'z / 2) at nodes z."""
    z = [row.view(-1, 1, 1) for row in nodes.points.to(at.u[0])]
    value = joint(model, values, population, at, at.away(z)) - total([x * x for x in z])
    weight = nodes.log_weight.to(value).view(-1, 1, 1)
    return log_det(at.factor) - 2 * torch.logsumexp(weight - value / 2, 0, keepdim=True)


def _following(
    at: Point, u: Sequence[Tensor], free: Tensor, slope: Sequence[Tensor], curvature: Lower | None
) -> tuple[list[Tensor], Tensor]:
    """0, K of it, with the gradient that the modes' moves add to a result whose gradient by u is ``slope``;
    and which modes move, (1, N, B).

    By the implicit function theorem they move by -H^-1 dg, for the gradient g and the Hessian H of what they
    minimise. A mode that is not ``free`` of its bounds, and one where H is not positive definite since the
    search has not got there, does not.
    """
    matrix = hessian(at, u, differentiable=False) if curvature is None else curvature
    with torch.no_grad():
        factor = cholesky([[entry.detach() for entry in row] for row in matrix])
        pull = solve_lower_transposed(factor, solve_lower(factor, slope))
        moves = free & torch.isfinite(torch.stack(pull)).all(0)
        pull = [torch.where(moves, part, 0) for part in pull]
    return [-part * (g - g.detach()) for part, g in zip(pull, at.gradient, strict=True)], moves
