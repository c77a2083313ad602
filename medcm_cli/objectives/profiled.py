"""Variational inference without noise, each subject's q at its optimum: a function of what subjects share.

The expectation of a bound is that over points that stay what they are (Giordano, Ingram and Broderick 2024,
"Black box variational inference with a deterministic objective"). A q with correlations is that of u =
L^-1 eta, Omega = L L', in which it keeps its shape where Omega becomes singular, and where Omega moves it
moves along; one without has none in eta.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model, Values
from medcm_cli.numerics.square import inverse_of_saddle
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import Lower, diagonal, multiply_lower, solve_lower, total
from medcm_cli.objectives.base import Objective, State
from medcm_cli.objectives.gaussian import Gaussian
from medcm_cli.runs.description import Description

Q, INVERSE, LEFT = "profiled.q", "profiled.inverse", "profiled.left"
_ITERATIONS = 40
_DECREMENT = 1e-15  # of a bound in nats, twice what a step of Newton's method would still gain
_FOUND = 1e-6  # likewise, where q is at its optimum
_DIFFERENCE = 1e-4
_FAR = 0.1  # likewise, from where steps are those of a q that fits better
_HALVINGS = 20
_ENOUGH = 1e-4  # of the gain that the gradient foretells
_FEW = 0.5  # of the subjects, who are worth to be followed without the others


@dataclass(frozen=True)
class Profiled(Objective):
    """-sum_i max_q of a bound of log p(y_i): the mean over ``points`` (K, S), standard normal numbers, of
    log p(y, eta) - log q(eta), for K random effects and a Gaussian q.

    ``full``: q has correlations. What is carried of each subject is its q, D numbers, and the inverse of
    their curvature.
    """

    points: Tensor
    full: bool
    description: Description

    @property
    def mixed(self) -> bool:  # type: ignore[override]
        """See ``Objective``."""
        return True

    def describe(self) -> Description:
        """That of the objective whose profile it is."""
        return self.description

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        """See ``Objective.init``: q is the prior."""
        k = len(self.points)
        shape = 2 * k + self._pairs, population.shape[1], len(streams)
        x = torch.zeros(shape, dtype=dtype, device="cpu")
        x[k : 2 * k] = 1
        own = self._carried(x)
        return State(model.init(streams, dtype), own, tuple(own))

    def begun(self, model: Model, population: Population, values: Values, q: Gaussian) -> dict[str, Tensor]:
        """What is carried where ``q`` is that Gaussian over eta, with entries (1, N, B)."""
        if not self.full:
            return self._carried(self._numbers(q.mean, q.lower))
        omega = model.prior_cholesky(values, population)
        k, zero = len(q.mean), torch.zeros_like(q.mean[0])
        columns = [
            solve_lower(omega, [q.lower[i][j] if i >= j else zero for i in range(k)]) for j in range(k)
        ]
        lower = [[columns[j][i] for j in range(i + 1)] for i in range(k)]
        return self._carried(self._numbers(solve_lower(omega, q.mean), lower))

    def _carried(self, x: Tensor) -> dict[str, Tensor]:
        return {Q: x, INVERSE: self._inverse(x), LEFT: torch.full_like(x[0], torch.inf)}

    @property
    def _pairs(self) -> int:
        k = len(self.points)
        return k * (k - 1) // 2 if self.full else 0

    def _q(self, x: Tensor) -> tuple[list[Tensor], Lower]:
        """Mean and factor of numbers (D, N, B): entries (1, N, B)."""
        k = len(self.points)
        mean, sds, rest = (part.unbind(0) for part in x[:, None].split([k, k, self._pairs]))
        if not self.full:
            return list(mean), diagonal(sds)
        below = iter(rest)
        return list(mean), [[*(next(below) for _ in range(i)), sds[i]] for i in range(k)]

    def _numbers(self, mean: Sequence[Tensor], lower: Lower) -> Tensor:
        """The opposite."""
        below = [entry for row in lower for entry in row[:-1]] if self.full else []
        rows = [*mean, *(row[-1] for row in lower), *below]
        shape = torch.broadcast_shapes(*(row.shape for row in rows))
        return torch.cat([row.expand(shape) for row in rows])

    def _moved(self, x: Tensor, step: Tensor) -> Tensor:
        """q (D, N, B) after a ``step`` in coordinates in which it is standard normal itself: those of a mean,
        and of a factor with the logarithms of what is on its diagonal. Their curvature differs little between
        subjects, and from one place to another."""
        (mean, lower), (shift, factor) = self._q(x), self._q(step)
        mean = [m + move for m, move in zip(mean, multiply_lower(lower, shift), strict=True)]
        factor = [[*row[:-1], row[-1].exp()] for row in factor]
        first = [0] * len(lower) if self.full else range(len(lower))
        product = [
            [total([row[m] * factor[m][j] for m in range(j, i + 1)]) for j in range(first[i], i + 1)]
            for i, row in enumerate(lower)
        ]
        return self._numbers(mean, product)

    def _inverse(self, x: Tensor) -> Tensor:
        """Of the curvature in such steps, (D, D, N, B), where log p(y, eta) is quadratic and q fits it."""
        k = len(self.points)
        each = torch.ones(len(x), dtype=x.dtype, device=x.device)
        each[k : 2 * k] = 0.5
        return torch.diag(each)[..., None, None].repeat(1, 1, *x.shape[1:])

    def posterior(self, model: Model, population: Population, state: State) -> Gaussian:
        """q over eta, entries (1, N, B)."""
        mean, lower = self._q(state.carried[Q])
        if not self.full:
            return Gaussian(mean, lower)
        omega = model.prior_cholesky(state.trained, population)
        k, zero = len(mean), torch.zeros_like(mean[0])
        columns = [
            multiply_lower(omega, [lower[i][j] if i >= j else zero for i in range(k)]) for j in range(k)
        ]
        return Gaussian(
            multiply_lower(omega, mean), [[columns[j][i] for j in range(i + 1)] for i in range(k)]
        )

    def random_effects(self, model: Model, population: Population, state: State) -> tuple[Tensor, Tensor]:
        """Mean and covariance of q."""
        mean, covariance = self.posterior(model, population, state).moments()
        return mean[:, 0], covariance[:, :, 0]

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        """See ``Objective.loss``."""
        del noise
        return population.sum_subjects(self._bound(model, population, state.trained, state.carried[Q]))

    def _bound(self, model: Model, population: Population, values: Values, x: Tensor) -> Tensor:
        """Minus the bound of each subject, (N, B)."""
        eps = self.points.to(x)[..., None, None].unbind(0)  # (S, 1, 1) each
        mean, lower = self._q(x)
        omega = model.prior_cholesky(values, population)
        log_det = total([row[-1].log() for row in lower])
        eta = u = [m + shift for m, shift in zip(mean, multiply_lower(lower, eps), strict=True)]
        if self.full:
            eta = multiply_lower(omega, u)
        else:
            u = solve_lower(omega, eta)
            log_det = log_det - total([row[-1].log() for row in omega])
        prediction = model.predict(model.typical(values, population), population, eta)
        terms = model.error.log_density(model.of_subjects(values, eta), prediction, population)
        log_weight = population.sum_observations(terms) - 0.5 * total([z * z for z in u])
        log_weight = log_weight + 0.5 * total([e * e for e in eps])
        return -log_weight.mean(0) - log_det[0]

    @torch.no_grad()
    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        """See ``Objective.refresh``."""
        del noise
        return self._searched(model, population, state, state.carried[INVERSE])

    @torch.no_grad()
    def searched_widely(self, model: Model, population: Population, state: State) -> State:
        """With their curvature found anew; there is one place that is looked at."""
        known = {name: value.detach() for name, value in state.trained.items()}
        x = state.carried[Q]
        gradient = self._at(model, population, known, x)[1]
        columns = []
        for place in range(len(x)):
            step = torch.zeros_like(x)
            step[place] = _DIFFERENCE
            there = self._at(model, population, known, x, step)[1]
            columns.append((there - gradient) / _DIFFERENCE)
        hessian = torch.stack(columns).permute(2, 3, 0, 1)
        inverse = inverse_of_saddle((hessian + hessian.mT) / 2).permute(2, 3, 0, 1)
        inverse = torch.where(torch.isfinite(inverse).all(0).all(0), inverse, self._inverse(x))
        return self._searched(model, population, state, inverse)

    def unconverged(self, population: Population, state: State) -> Tensor | None:
        """See ``Objective.unconverged``."""
        lost = ~(state.carried[LEFT] < _FOUND) * population.present
        return lost.sum(0) / population.present.sum(0)

    def _at(
        self, model: Model, population: Population, values: Values, x: Tensor, step: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Minus the bounds (N, B), and their gradient (D, N, B) in steps from x, after such a ``step``."""
        with torch.enable_grad():
            leaf = (torch.zeros_like(x) if step is None else step.detach()).requires_grad_()
            loss = self._bound(model, population, values, self._moved(x.detach(), leaf))
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient

    def _searched(self, model: Model, population: Population, state: State, inverse: Tensor) -> State:
        known = {name: value.detach() for name, value in state.trained.items()}
        begin = _Place(state.carried[Q], inverse, torch.full_like(state.carried[LEFT], torch.inf))
        x, inverse, left = self._from(model, population, known, begin, _ITERATIONS)
        return replace(state, carried={**state.carried, Q: x, INVERSE: inverse, LEFT: left})

    def _from(
        self, model: Model, population: Population, values: Values, place: "_Place", most: int
    ) -> "_Place":
        """The optimum by BFGS from a place (Nocedal and Wright 2006, section 6.1), every subject for itself,
        or where so many iterations lead; few that go on are followed without the others."""
        at = partial(self._at, model, population, values)
        x, inverse, left = place
        loss, gradient = at(x)
        going = torch.isfinite(loss)
        for iteration in range(most):
            step = -(inverse * gradient).sum(1)
            left = torch.where(going, -(step * gradient).sum(0), left)
            going = going & (left > _DECREMENT)
            number = int(going.sum(0).max())
            if not number:
                break
            if number <= _FEW * len(going):
                index = (~going).long().argsort(dim=0, stable=True)[:number]
                here = _Place(x, inverse, left)
                some = population.take(index)
                return here.put(
                    index, going, self._from(model, some, values, here.of(index), most - iteration)
                )
            step = step / step.abs().sum(0).clamp(min=1.0)
            far = going & (left > _FAR)
            if bool(far.any()):
                natural = self._natural(gradient)
                far = far & ((natural * gradient).sum(0) < 0)
                step = torch.where(far, natural, step)
            slope = (step * gradient).sum(0)
            length, waiting = going.to(x.dtype), going
            old = loss, gradient
            new = x
            for _ in range(_HALVINGS):
                there = self._moved(x, length * step)
                value, change = at(there)
                good = torch.isfinite(value) & torch.isfinite(change).all(0)
                lower = value <= old[0] + _ENOUGH * length * slope + 1e-12 * old[0].abs()
                taken = waiting & good & lower
                new, loss, gradient = (
                    torch.where(taken, a, b) for a, b in ((there, new), (value, loss), (change, gradient))
                )
                waiting = waiting & ~taken
                if not bool(waiting.any()):
                    break
                length = torch.where(waiting, length / 2, length)
            going = going & ~waiting
            inverse = _updated(inverse, length * step, gradient - old[1], going & ~far)
            x = new
        return _Place(x, inverse, left)

    def _natural(self, gradient: Tensor) -> Tensor:
        """The step (D, N, B) that would lead to the optimum were log p(y, eta) quadratic: along the natural
        gradient (Khan and Rue 2023), with the mean curvature that Price's theorem reads from the gradient in
        the factor of q. NaN where that is not positive definite."""
        k = len(self.points)
        slope, logs, below = gradient.split([k, k, self._pairs])
        curvature = torch.diag_embed(logs.permute(1, 2, 0) + 1)
        if self.full:
            rows, columns = torch.tril_indices(k, k, -1, device="cpu")
            curvature[..., rows, columns] = curvature[..., columns, rows] = below.permute(1, 2, 0)
        inverse = torch.linalg.inv_ex(curvature)[0]
        factor, wrong = torch.linalg.cholesky_ex(inverse)
        mean = -(inverse @ slope.permute(1, 2, 0)[..., None])[..., 0]
        parts = [mean, factor.diagonal(dim1=-2, dim2=-1).log()]
        parts += [factor[..., rows, columns]] if self.full else []
        return torch.where(wrong == 0, torch.cat(parts, -1).permute(2, 0, 1), torch.nan)


class _Place(NamedTuple):
    """Of each subject its q, ``x`` (D, N, B), the ``inverse`` (D, D, N, B) of its curvature there, and twice
    what a step would still gain, ``left`` (N, B)."""

    x: Tensor
    inverse: Tensor
    left: Tensor

    def of(self, index: Tensor) -> "_Place":
        """Those of some subjects, (n, B)."""
        return _Place(*(value.gather(-2, index.expand(*value.shape[:-2], *index.shape)) for value in self))

    def put(self, index: Tensor, wanted: Tensor, some: "_Place") -> "_Place":
        """With theirs, of whom they are ``wanted``, (N, B)."""
        each = []
        for value, new in zip(self, some, strict=True):
            put = value.scatter(-2, index.expand(*value.shape[:-2], *index.shape), new)
            each.append(torch.where(wanted, put, value))
        return _Place(*each)


def _updated(inverse: Tensor, s: Tensor, y: Tensor, taken: Tensor) -> Tensor:
    """The inverse (D, D, N, B) of a curvature after a step s (D, N, B), along which the gradient has changed
    by y, where it is ``taken``."""
    hy = (inverse * y).sum(1)
    curve = (s * y).sum(0)
    rate = 1 / curve
    new = inverse + (rate + rate * rate * (y * hy).sum(0)) * s[:, None] * s
    new = new - rate * (hy[:, None] * s + s[:, None] * hy)
    sound = taken & (curve > 0) & torch.isfinite(new).all(0).all(0)
    return torch.where(sound, new, inverse)
