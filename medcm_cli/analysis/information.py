"""The optimum of an objective and the observed information there, about what the subjects of a fit share.

Each subject is evaluated as a fit of its own, so that the objective's loss is that subject's alone. What a
subject has for itself (the parameters of VI's q) is profiled out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.analysis.through import Through
from medcm_cli.data import Population
from medcm_cli.model import Model
from medcm_cli.numerics.square import inverse_of_saddle
from medcm_cli.objectives import Criterion, State
from medcm_cli.objectives.penalised import SHARE, Penalised
from medcm_cli.training.layout import Layout

STEP = 1e-4  # of the central differences, in the unconstrained values
ITERATIONS = 30  # Newton steps at most
DECREMENT = 1e-3  # the optimum is found once the Newton decrement, in standard errors, is below
_ELEMENTS = 250_000  # of a tensor, at most about: what a processor's cache holds
_ENTRIES = 10_000_000  # of a part's Hessians


class Curvature(NamedTuple):
    """At some values: of each fit ``loss`` (B,); ``score`` (B, P) and ``information`` (B, P, P), gradient and
    Hessian of minus the log likelihood in the P shared values, what subjects have for themselves profiled
    out; ``outer`` (B, P, P), the sum of the subjects' scores' outer products; ``rest`` (B,), the squared
    Newton decrement of what they have for themselves. Of each of M subjects ``shift`` (L, M) and ``follow``
    (L, P, M): its own L values move by -shift - follow d to stay optimal where the shared ones move by d.
    Where some of the shared values are asked for, P is their number.
    """

    loss: Tensor
    score: Tensor
    information: Tensor
    outer: Tensor
    rest: Tensor
    shift: Tensor
    follow: Tensor


@dataclass(frozen=True)
class Subjects:
    """The M subjects of B fits, each as a fit of its own: ``rows`` (M,) of the event table's subjects and
    ``fit`` (M,) that each belongs to, in order of the fits; ``layout`` of the shared values, then of the
    subjects' own; ``shared`` P, their number; ``everyone`` in double precision; ``per_subject`` as in
    ``State``."""

    model: Model
    criterion: Criterion
    everyone: Population
    rows: Tensor
    fit: Tensor
    fits: int
    layout: Layout
    shared: int
    per_subject: tuple[str, ...] = ()

    def only(self, fits: Tensor) -> tuple["Subjects", Tensor]:
        """Some of the fits, a mask (B,); and which subjects are theirs, (M,)."""
        kept = fits[self.fit]
        number = fits.cumsum(0) - 1
        chosen = replace(self, rows=self.rows[kept], fit=number[self.fit[kept]], fits=int(fits.sum()))
        return chosen, kept

    @cached_property
    def _pieces(self) -> list[tuple[slice, Population]]:
        """Subjects in parts that fit into memory."""
        observations, size = self.everyone.shape[0], sum(map(_size, self.layout.shapes))
        noise = self.criterion.noise
        samples = self.criterion.places * (1 if noise is None else noise.shape[1])
        length = max(1, min(_ELEMENTS // (observations * samples), _ENTRIES // size**2))
        parts = [slice(start, start + length) for start in range(0, len(self.rows), length)]
        return [(part, self.everyone.select(list(self.rows[part, None].numpy()))) for part in parts]

    def losses(self, theta: Tensor, own: Tensor, carried: Mapping[str, Tensor]) -> Tensor:
        """The loss of each fit, (B,), at its shared values ``theta`` (P, B) and its subjects' ``own`` (L,
        M)."""
        parts = []
        with torch.no_grad():
            for part, population in self._pieces:
                state = self._state(self._flat(theta, own, part), carried, part)
                state = self.criterion.objective.refresh(self.model, population, state)
                parts.append(
                    self.criterion.objective.loss(self.model, population, state, self._noise(population))
                )
        return _sum_by(self.fit, torch.cat(parts), self.fits)

    def curvature(
        self, theta: Tensor, own: Tensor, carried: Mapping[str, Tensor], free: Tensor
    ) -> tuple[Curvature, dict[str, Tensor]]:
        """At shared values (P, B) and own (L, M), of the shared values that are ``free`` (P,) alone, whose
        number takes the place of P; by differences of the gradient to one side, enough for a step. And
        ``carried`` brought up to date."""
        places = torch.cat([free, free.new_ones(len(own))]).nonzero()[:, 0]
        parts, moved = [], []
        for part, population in self._pieces:
            flat = self._flat(theta, own, part)
            loss, gradient, state = self._gradient(flat, carried, part, population)
            here = {name: self._alone(name, state.carried[name]) for name in carried}
            hessian = flat.new_empty(len(places), len(places), flat.shape[1])
            for row, place in zip(hessian, places.tolist(), strict=True):
                there = flat.clone()
                there[place] += STEP
                row[:] = (self._gradient(there, here, slice(None), population)[1] - gradient)[places] / STEP
            parts.append(self._profiled(self.fit[part], loss, gradient[places], hessian))
            moved.append(here)
        updated = {name: torch.cat([piece[name] for piece in moved], -1) for name in moved[0]}
        return _together(parts), updated

    def whole_curvature(self, theta: Tensor, own: Tensor, carried: Mapping[str, Tensor]) -> Curvature:
        """At shared values (P, B) and own (L, M), of all shared values, by central differences of the
        gradient; those of a network in its typical parameters, which the chain rule leads through. Priors,
        which are of the network itself, add their own curvature, and nothing to the outer products."""
        objective = self.criterion.objective
        if isinstance(objective, Penalised):
            plain = replace(self, criterion=replace(self.criterion, objective=objective.objective))
            of_data = {name: value for name, value in carried.items() if name != SHARE}
            return self._with_priors(objective, theta, plain.whole_curvature(theta, own, of_data))
        parts = []
        for part, population in self._pieces:
            fit, flat = self.fit[part], self._flat(theta, own, part)
            through = Through.of(self.model, self.layout, flat, population)
            inner = replace(self, model=through.model, layout=through.layout)
            loss, gradient, state = inner._gradient(through.values, carried, part, population)
            here = {name: self._alone(name, state.carried[name]) for name in carried}
            hessian = flat.new_empty(len(through.values), *through.values.shape)
            for place, row in enumerate(hessian):
                ends = []
                for step in (STEP, -STEP):
                    there = through.values.clone()
                    there[place] += step
                    ends.append(inner._gradient(there, here, slice(None), population)[1])
                row[:] = (ends[0] - ends[1]) / (2 * STEP)
            parts.append(self._profiled(fit, loss, *through.back(gradient, hessian)))
        return _together(parts)

    def _with_priors(self, objective: Penalised, theta: Tensor, found: Curvature) -> Curvature:
        """With what they add at shared values (P, B)."""
        leaf = theta.detach().requires_grad_()
        rest = sum(map(_size, self.layout.shapes)) - self.shared
        values = self.layout.unpack(torch.cat([leaf, leaf.new_zeros(rest, leaf.shape[1])]))
        loss = objective.of_priors(self.model, values)
        (slope,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
        rows = [
            torch.autograd.grad(
                row.sum(), leaf, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]
            for row in slope
        ]
        scale = self.criterion.scale
        return found._replace(
            loss=found.loss + loss.detach(),
            score=found.score + slope.detach().T / scale,
            information=found.information + torch.stack(rows).permute(2, 0, 1) / scale,
        )

    def _profiled(self, fit: Tensor, loss: Tensor, gradient: Tensor, hessian: Tensor) -> Curvature:
        """Of the subjects of a part, of these fits (m,), from gradient (D, m) and Hessian (D, D, m) of their
        losses (m,) in D values, of which the last L are their own."""
        p = len(gradient) - (sum(map(_size, self.layout.shapes)) - self.shared)
        scale = self.criterion.scale
        hessian = hessian.permute(2, 0, 1) / scale  # (m, D, D)
        hessian = (hessian + hessian.mT) / 2
        g = gradient.T / scale
        inverse = inverse_of_saddle(hessian[:, p:, p:])
        cross = hessian[:, p:, :p]
        follow = inverse @ cross
        shift = (inverse @ g[:, p:, None])[..., 0]
        score = g[:, :p] - (cross.mT @ shift[..., None])[..., 0]
        rest = (shift * g[:, p:]).sum(1)
        each = (loss, score, hessian[:, :p, :p] - cross.mT @ follow, score[:, :, None] * score[:, None], rest)
        loss, score, information, outer, rest = (_sum_by(fit, value, self.fits) for value in each)
        return Curvature(loss, score, information, outer, rest, shift.T, follow.permute(1, 2, 0))

    def _flat(self, theta: Tensor, own: Tensor, part: slice) -> Tensor:
        return torch.cat([theta[:, self.fit[part]], own[:, part]])

    def _noise(self, population: Population) -> Tensor | None:
        noise = self.criterion.noise
        return (
            None if noise is None else noise[..., None, None].expand(*noise.shape, *population.present.shape)
        )

    def _state(self, flat: Tensor, carried: Mapping[str, Tensor], part: slice) -> State:
        of_part = {
            name: value[..., None, part] if name in self.per_subject else value[..., part]
            for name, value in carried.items()
        }
        return State(self.layout.unpack(flat), of_part, self.per_subject)

    def _alone(self, name: str, value: Tensor) -> Tensor:
        """What is carried, (..., M): of a subject there is one in each fit here."""
        return value[..., 0, :] if name in self.per_subject else value

    def _gradient(
        self, flat: Tensor, carried: Mapping[str, Tensor], part: slice, population: Population
    ) -> tuple[Tensor, Tensor, State]:
        """Loss (m,) and gradient (D, m) of the subjects of a part, and their state, at ``flat`` (D, m)."""
        objective = self.criterion.objective
        leaf = flat.detach().requires_grad_()
        state = objective.refresh(self.model, population, self._state(leaf, carried, part))
        loss = objective.loss(self.model, population, state, self._noise(population))
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient, state


def separate(
    model: Model, chosen: Criterion, everyone: Population, population: Population, state: State
) -> tuple[Subjects, Tensor, Tensor, dict[str, Tensor]]:
    """A batch of fits as ``Subjects``, with their shared values (P, B), own values (L, M) and what the
    objective carries of each, (..., M); double precision.

    :param everyone: all subjects once, in double precision. :param population: those of the fits.
    """
    fit, place = (population.present.T > 0).nonzero(as_tuple=True)  # fit by fit

    def of_subjects(value: Tensor) -> Tensor:
        value = value[..., place, fit]
        return value.double() if value.is_floating_point() else value

    shared = {name: v.double() for name, v in state.trained.items() if name not in state.per_subject}
    own = {name: of_subjects(v) for name, v in state.trained.items() if name in state.per_subject}
    theta = Layout.of(shared).pack(shared)
    single = {name: value[..., None, :] for name, value in own.items()}  # of one subject, N = 1
    values = Layout.of(single).pack(single) if single else theta.new_zeros(0, len(fit))
    subjects = Subjects(
        model,
        chosen,
        everyone,
        population.subject[place, fit],
        fit,
        population.shape[2],
        Layout.of({**shared, **single}),
        len(theta),
        state.per_subject,
    )
    carried = {
        name: of_subjects(v) if name in state.per_subject else v[..., fit]
        for name, v in state.carried.items()
    }
    return subjects, theta, values, carried


@dataclass(frozen=True)
class Optimum:
    """Where each fit's search ended: shared values ``theta`` (P, B); ``information`` and ``outer`` (B, P, P)
    there, as in ``Curvature``; ``decrement`` (B,), the Newton decrement, which is how far away the optimum
    is, in standard errors."""

    theta: Tensor
    information: Tensor
    outer: Tensor
    decrement: Tensor

    @property
    def found(self) -> Tensor:
        """Whether the search arrived, (B,)."""
        return self.decrement < DECREMENT


def optimum(
    subjects: Subjects, theta: Tensor, own: Tensor, carried: Mapping[str, Tensor], free: Tensor
) -> Optimum:
    """From ``theta`` (P, B) and ``own`` (L, M), damped Newton steps in the shared values that are ``free``
    (P,) and in all of the subjects' own, of each fit until its decrement is below ``DECREMENT``.

    A direction of negative curvature is taken as if it were positive (saddle-free Newton; Dauphin et al.
    2014, arXiv:1406.2572), and a step is halved while it raises the loss.
    """
    theta, own, carried = theta.clone(), own.clone(), {name: v.clone() for name, v in carried.items()}
    decrement = theta.new_zeros(subjects.fits)
    going = torch.ones(subjects.fits, dtype=torch.bool)
    places = free.nonzero()[:, 0]
    for iteration in range(ITERATIONS + 1):
        part, mine = subjects.only(going)
        x, y = theta[:, going], own[:, mine]
        here = {name: value[..., mine] for name, value in carried.items()}
        found, here = part.curvature(x, y, here, free)
        step = (inverse_of_saddle(found.information) @ found.score[..., None])[..., 0]
        left = ((step * found.score).sum(1) + found.rest).sqrt()
        decrement[going] = left
        still = left >= DECREMENT  # and not where it is not finite
        if iteration == ITERATIONS or not bool(still.any()):
            break
        move = (found.follow * step.T[:, part.fit]).sum(1) - found.shift
        step, move = _bounded(step, 1), _bounded(move, 0)
        length = still.to(step.dtype)
        for _ in range(_HALVINGS):
            to = x.index_add(0, places, -(length * step.T)), y + length[part.fit] * move
            raised = ~(part.losses(*to, here) <= found.loss + 1e-9 * found.loss.abs())
            if not bool((raised & still).any()):
                break
            length = torch.where(raised, length / 2, length)
        theta[:, going], own[:, mine] = to
        for name, value in here.items():
            carried[name][..., mine] = value
        going = going.index_put((going.nonzero()[:, 0],), still)
    found = subjects.whole_curvature(theta, own, carried)
    return Optimum(theta, found.information, found.outer, decrement)


_HALVINGS = 12


def _bounded(step: Tensor, dim: int) -> Tensor:
    """Steps along ``dim``, shortened where their components sum to more than 1."""
    return step / step.abs().sum(dim, keepdim=True).clamp(min=1.0)


def _sum_by(fit: Tensor, values: Tensor, fits: int) -> Tensor:
    """Sums of the subjects' values (M, ...) over those of each fit, (B, ...)."""
    return values.new_zeros(fits, *values.shape[1:]).index_add_(0, fit, values)


def _together(parts: Sequence[Curvature]) -> Curvature:
    """That of all subjects, from that of some each."""
    sums = (torch.stack(each).sum(0) for each in zip(*(part[:5] for part in parts), strict=True))
    loss, score, information, outer, rest = sums
    shift, follow = (torch.cat(each, -1) for each in zip(*(part[5:] for part in parts), strict=True))
    return Curvature(loss, score, information, outer, rest, shift, follow)


def _size(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
