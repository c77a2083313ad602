"""The step of a stochastic EM: what maximises the joint density of levels and individual parameters, at draws
of these, as far as it has a closed form or is a matter of few numbers.

Individual parameters z with g(z) = g(zeta) + eta are held where they were drawn. Typical parameters are then
estimated by a regression of g(z), whatever the compartment model is, Omega by what that leaves, and sigma by
residuals (Delyon, Lavielle and Moulines 1999; Kuhn and Lavielle 2005).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.data.population import Population
from medcm_cli.model import Model, RandomEffects, Values
from medcm_cli.model.rows import raws_of
from medcm_cli.numerics.square import inverse_of_saddle
from medcm_cli.numerics.triangular import Lower, covariance, solve_lower, total

_FURTHEST = 1.0  # that a typical parameter moves in a step, on the scale of its random effect
_RIDGE = 1e-12  # of the diagonal of normal equations
_NEWTON = 3  # steps for sigmas without a closed form


class Gain(NamedTuple):
    """Of a step of each fit, (B,): how far values ``move`` to where the draws' density is highest, and what
    a variance keeps of its size at the ``least`` (simulated annealing)."""

    move: Tensor
    least: Tensor


def step(
    model: Model,
    population: Population,
    values: Values,
    moved: Sequence[str],
    eta: Sequence[Tensor],
    prediction: Tensor,
    drawn: Tensor,
    gain: Gain,
) -> dict[str, Tensor]:
    """Values after a step of those that are ``moved``.

    :param eta: draws, R of (S, N, B), around typical parameters of the given values.
    :param prediction: there, (T, S, N, B). :param drawn: (1, N, B), 1 of the subjects that have draws, 0 of
        others; a fit without any stays as it is.
    """
    move = torch.where(drawn.sum((0, 1)) > 0, gain.move, 0)
    new = dict(values)
    typical = [name for name in moved if name.startswith("global.")]
    if typical:
        change = _regression(model, population, values, typical, eta, drawn)
        new |= {name: values[name] + move * part for name, part in zip(typical, change, strict=True)}
        eta = recentred(model, population, values, new, eta)
    first = len(model.random_effects.names)
    groups = [(model.random_effects, list(eta[:first]), drawn)]
    if model.occasions is not None:
        kappas = list(model.kappas(eta).values())
        groups.append((model.occasions, kappas, drawn * population.there))
    for group, effects, there in groups:
        if group.of in moved:
            new |= _covariance(group, values, effects, there, move, gain.least)
    if "sigma" in moved:
        new["sigma"] = _sigma(model, population, values, eta, prediction, drawn, move, gain.least)
    return new


def recentred(
    model: Model, population: Population, old: Values, new: Values, eta: Sequence[Tensor]
) -> list[Tensor]:
    """Random effects, R of (S, N, B), of the same individual parameters around other typical ones."""
    before, after = (model.random_effects.centres(model.typical(values, population)) for values in (old, new))
    shifted = [
        effect + before[name] - after[name] if name in before else effect
        for name, effect in zip(model.random_effects.names, eta, strict=False)
    ]
    return [*shifted, *eta[len(shifted) :]]


def _regression(
    model: Model,
    population: Population,
    values: Values,
    names: Sequence[str],
    eta: Sequence[Tensor],
    drawn: Tensor,
) -> Tensor:
    """By how much values ``names``, (B,) each, move towards the least sum of eta' Omega^-1 eta, (P, B): a
    step of Gauss and Newton, which gets there where g(zeta) is linear in them."""
    slopes = _slopes(model, population, values, names)  # effects: P of (1, N, B), or none
    omega: Lower = [[entry.double() for entry in row] for row in model.omega_cholesky(values)]
    mean = [effect.mean(0, keepdim=True).double() for effect in eta[: len(omega)]]
    nothing = torch.zeros_like(mean[0])
    white = solve_lower(omega, mean)
    loads = [
        solve_lower(omega, [nothing if slope is None else slope[place].double() for slope in slopes])
        for place in range(len(names))
    ]
    pull = torch.stack([(drawn * total(_products(load, white))).sum((0, 1)) for load in loads])
    matrix = torch.stack(
        [
            torch.stack([(drawn * total(_products(left, right))).sum((0, 1)) for right in loads])
            for left in loads
        ]
    ).permute(2, 0, 1)  # (B, P, P)
    size = matrix.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(matrix.dtype).tiny).sqrt()
    unit = matrix / (size[:, :, None] * size[:, None, :])
    unit = unit + _RIDGE * torch.eye(len(names), dtype=unit.dtype, device=unit.device)
    change = (torch.linalg.solve_ex(unit, (pull.T / size)[..., None])[0][..., 0] / size).T
    sizes = model.random_effects.sizes or [1.0] * len(omega)
    shifts = [
        total([slope[place].double() * change[place] for place in range(len(names))]).abs().amax((0, 1)) / s
        for slope, s in zip(slopes, sizes, strict=True)
        if slope is not None
    ]
    furthest = torch.stack(shifts).amax(0)
    change = change / (furthest / _FURTHEST).clamp(min=1)
    return torch.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0).to(eta[0].dtype)


def _products(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    return [a * b for a, b in zip(left, right, strict=True)]


def _slopes(
    model: Model, population: Population, values: Values, names: Sequence[str]
) -> list[Tensor | None]:
    """Of each random effect the derivatives of g(zeta) in the values ``names``, (P, 1, N, B); None where
    there is no g. Each subject has the values to itself, so that one gradient has those of all."""
    shape = population.present.shape
    own = torch.stack([values[name].detach().expand(1, *shape) for name in names])  # (P, 1, N, B)
    with torch.enable_grad():
        leaf = own.clone().requires_grad_()
        zeta = model.typical({**values, **dict(zip(names, leaf.unbind(0), strict=True))}, population)
        centres = model.random_effects.centres(zeta)
        found = list[Tensor | None]()
        for name in model.random_effects.names:
            at = centres.get(name)
            if at is None:
                found.append(None)
                continue
            (slope,) = (
                # What a network has learned may be all that it depends on.
                torch.autograd.grad(
                    at.sum(), leaf, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                if at.requires_grad
                else (torch.zeros_like(leaf),)
            )
            found.append(slope)
    return found


def _covariance(
    group: RandomEffects,
    values: Values,
    effects: Sequence[Tensor],
    there: Tensor,
    move: Tensor,
    least: Tensor,
) -> dict[str, Tensor]:
    """Raw values of a covariance that has moved to that of draws (..., S, N, B)."""
    count = there.sum(tuple(range(there.ndim - 1))).clamp(min=1) * effects[0].shape[-3]
    old = covariance(group.cholesky(values))
    new = [
        [
            before + move * ((there * a * b).sum(tuple(range(a.ndim - 1))) / count - before)
            for before, b in zip(row, effects, strict=True)
        ]
        for row, a in zip(old, effects, strict=True)
    ]
    # A variance falls slowly at first, and correlations stay as they are.
    grown = [
        torch.sqrt((least * before[i] / after[i]).clamp(min=1))
        for i, (before, after) in enumerate(zip(old, new, strict=True))
    ]
    return group.raws(
        [[entry * grown[i] * grown[j] for j, entry in enumerate(row)] for i, row in enumerate(new)]
    )


def _sigma(
    model: Model,
    population: Population,
    values: Values,
    eta: Sequence[Tensor],
    prediction: Tensor,
    drawn: Tensor,
    move: Tensor,
    least: Tensor,
) -> Tensor:
    """Raw sigmas that have moved to those that residuals at the draws have."""
    log = torch.log(functional.softplus(values["sigma"]))
    error, whole = model.error, model.random_effects.place_of_sigma is None
    if error.in_proportion and whole and population.censored is None:
        white = error.white(values, prediction, population.dv)
        squares = (drawn * population.sum_observations(white * white)).sum((0, 1))
        one = torch.ones_like(white[:, :1])
        count = white.shape[1] * (drawn * population.sum_observations(one)).sum((0, 1))
        ratio = squares / count.clamp(min=1)
        change = 0.5 * torch.log1p(move * (ratio - 1))
    else:
        change = move * (_newton(model, population, values, eta, prediction, drawn, log) - log)
    # Nor does it rise faster than it may fall: a few early draws that predict next to nothing would bring a
    # proportional error to where it is all that explains the levels, and keep it there.
    most = -0.5 * torch.log(least)
    return raws_of(torch.exp(log + torch.minimum(torch.maximum(change, -most), most)))


def _newton(
    model: Model,
    population: Population,
    values: Values,
    eta: Sequence[Tensor],
    prediction: Tensor,
    drawn: Tensor,
    log: Tensor,
) -> Tensor:
    """Logarithms of sigmas, (C, B), after a few steps of Newton's method from ``log``."""
    x = log
    weights = drawn.expand(prediction.shape[1:])
    for _ in range(_NEWTON):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            known: Mapping[str, Tensor] = {**values, "sigma": raws_of(leaf.exp())}
            known = model.of_subjects(known, eta)
            found = model.error.log_likelihood(known, prediction, population, weights)
            (gradient,) = torch.autograd.grad(found.sum(), leaf, create_graph=True)
            rows = [torch.autograd.grad(part.sum(), leaf, retain_graph=True)[0] for part in gradient]
        hessian = torch.stack(rows).permute(2, 0, 1)
        change = (inverse_of_saddle(-hessian) @ gradient.detach().T[..., None])[..., 0].T
        x = x + torch.nan_to_num(change).clamp(-1, 1)
    return x
