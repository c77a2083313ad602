"""The step of a stochastic EM once it is near the maximum: along the gradient of the likelihood, by the
information on it.

By Fisher's identity the score of a subject, the gradient of its log likelihood, is the mean of that of the
joint density over draws of its random effects. The sum over subjects of outer products of scores is the
information (Berndt, Hall, Hall and Hausman 1974), as in Delattre and Kuhn (2023) and Baey et al. (2023). EM
alone takes ever so long where draws say much and levels little.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.model.random_effects import MOST_CORRELATED

_RIDGE = 1e-4  # of information whose diagonal is 1
_FURTHEST = 0.5  # that a value moves in a step, or as a part of itself where it is above 1


class Known(NamedTuple):
    """What earlier draws say of Q values: the ``score`` (Q, N, B) of each subject, and the ``information``
    (Q, Q, B) of a fit."""

    score: Tensor
    information: Tensor


def scores(
    model: Model,
    population: Population,
    values: Values,
    names: Sequence[str],
    eta: Sequence[Tensor],
    prediction: Tensor,
) -> Tensor:
    """The gradient in values ``names`` of log density of levels and individual parameters, at each of S draws
    of each subject: (Q, S, N, B), value after value.

    :param eta: R of (S, N, B). :param prediction: there, (T, S, N, B).
    """
    shape = prediction.shape[1:]
    with torch.enable_grad():
        # Each draw has the values to itself, so that one gradient has those of all.
        own = {
            name: values[name].detach()[..., None, None, :].expand(*values[name].shape[:-1], *shape).clone()
            for name in names
        }
        leaves = [value.requires_grad_() for value in own.values()]
        known = {**values, **own}
        here = model.random_effects.centres(model.typical(values, population))
        held = model.random_effects.centres(model.typical(known, population))
        around = [
            effect + here[name].detach() - held[name] if name in held else effect
            for name, effect in zip(model.random_effects.names, eta, strict=False)
        ]
        around += eta[len(around) :]
        density = model.log_prior(known, around, None if model.occasions is None else population.there)
        seen = model.error.log_density(model.of_subjects(known, eta), prediction, population)
        density = density + population.sum_observations(seen)
        gradients = torch.autograd.grad(density.sum(), leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.reshape(-1, *shape) for gradient in gradients])


def learned(known: Known, found: Tensor, drawn: Tensor, share: Tensor, rate: Tensor) -> Known:
    """What draws whose ``scores`` are ``found`` add to what is known.

    :param drawn: (1, N, B), 1 of the subjects that have draws. :param share: (B,), of a fit's subjects, that
        these are. :param rate: (B,), the weight of new ones.
    """
    mean = drawn * torch.nan_to_num(found.mean(1))
    score = known.score + rate * (mean - known.score)
    products = torch.einsum("pnb,qnb->pqb", drawn * score, score) / share.clamp(min=1e-9)
    return Known(score, known.information + rate * (products - known.information))


def step(
    values: Values,
    names: Sequence[str],
    known: Known,
    found: Tensor,
    drawn: Tensor,
    share: Tensor,
    move: Tensor,
) -> dict[str, Tensor]:
    """Values ``names`` after a step: by a part ``move`` (B,) of one of Newton's method with the information
    in place of the Hessian."""
    gradient = (drawn * torch.nan_to_num(found.mean(1))).sum(1).T / share.clamp(min=1e-9)[:, None]  # (B, Q)
    matrix = known.information.permute(2, 0, 1)
    size = matrix.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(matrix.dtype).tiny).sqrt()
    unit = matrix / (size[:, :, None] * size[:, None, :])
    unit = unit + _RIDGE * torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
    change = torch.linalg.solve_ex(unit, (gradient / size)[..., None])[0][..., 0] / size
    change = torch.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0).T  # (Q, B)
    new, first = {}, 0
    for name in names:
        old = values[name]
        part = change[first : first + old[..., 0].numel()].view(old.shape)
        first += old[..., 0].numel()
        most = _FURTHEST * old.abs().clamp(min=1)
        new[name] = old + move * torch.minimum(torch.maximum(part, -most), most)
        if name.endswith("correlation"):
            new[name] = new[name].clamp(-MOST_CORRELATED, MOST_CORRELATED)
    return new
