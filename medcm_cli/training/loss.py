"""The loss of a batch of fits and its gradient: of all subjects at once, or minibatch by minibatch."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Noise, Stream
from medcm_cli.objectives.base import Objective, State


@dataclass(frozen=True)
class Layout:
    """Names and shapes of trained values inside one flat tensor (P, B), so that an epoch moves a single
    tensor."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, values: Mapping[str, Tensor]) -> "Layout":
        """The layout of ``values``, whose last dimension is the fit."""
        return cls(tuple(values), tuple(tuple(value.shape[:-1]) for value in values.values()))

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values -> (P, B), a copy."""
        return torch.cat([values[name].reshape(-1, values[name].shape[-1]) for name in self.names])

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """(P, B) -> values, as views through which gradients flow back."""
        parts = flat.split([torch.Size(shape).numel() for shape in self.shapes])
        return {
            name: part.view(*shape, flat.shape[-1])
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def rows(self, names: Sequence[str]) -> Tensor:
        """Which of the P rows belong to ``names``, as booleans (P,)."""
        return torch.cat(
            [
                torch.full((torch.Size(shape).numel(),), name in names)
                for name, shape in zip(self.names, self.shapes, strict=True)
            ]
        )


@dataclass(frozen=True)
class Minibatch:
    """``index`` (n, B) of each fit's subjects, N where it has fewer than n; ``share`` (B,) of its subjects,
    1 where it has none left."""

    index: Tensor
    share: Tensor


@dataclass(frozen=True)
class Part:
    """What some subjects add to the loss, (B,), and to its gradient, (P, B) or 0 where it is not asked for;
    ``carried`` of all subjects, brought up to date for these."""

    loss: Tensor
    gradient: Tensor
    carried: dict[str, Tensor]

    @property
    def finite(self) -> Tensor:
        """Whether a fit's loss and gradient are, (B,)."""
        return torch.isfinite(self.loss + self.gradient.sum(0))


class Evaluation:
    """The loss of a batch of fits, of all subjects or in minibatches, with an epoch's random numbers.

    ``count`` (B,) minibatches of each fit; ``whole`` whether that is one for every fit, which is then not
    cut at all.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        population: Population,
        state: State,
        streams: Sequence[Stream],
        dtype: torch.dtype,
        batch_subjects: int | None,
    ) -> None:
        self._model, self._objective, self._population = model, objective, population
        self._per_subject = state.per_subject
        self.layout = Layout.of(state.trained)
        self.own_rows = self.layout.rows(state.per_subject)
        self._subjects = population.present.sum(0).long()
        size = population.shape[1] if batch_subjects is None else batch_subjects
        self.count = (self._subjects + size - 1).div(size, rounding_mode="floor")
        self.whole = int(self.count.max()) == 1
        counts = self._subjects.tolist()
        shape = objective.noise_shape(model, population)
        self._noise = None if shape is None else Noise(streams, shape, counts, dtype)
        shuffle = (population.shape[1],)
        self._order = None if self.whole else Noise(streams, shuffle, counts, torch.float64, "minibatch")
        self.draw()

    def draw(self) -> None:
        """The next epoch's random numbers: noise, and who is in which minibatch."""
        self.noise = None if self._noise is None else self._noise.draw()
        self.minibatches = [] if self._order is None else self._cut(self._order.draw())

    def _cut(self, keys: Tensor) -> list[Minibatch]:
        """Each fit's subjects in the order of random keys (N, B), in parts whose sizes differ by one at
        most."""
        n = len(keys)
        order = torch.where(self._population.present > 0, keys, torch.inf).argsort(0)
        ends = [
            (number * self._subjects).div(self.count, rounding_mode="floor").minimum(self._subjects)
            for number in range(int(self.count.max()) + 1)
        ]
        minibatches = []
        for start, end in itertools.pairwise(ends):
            size = end - start
            step = torch.arange(int(size.max()))[:, None]
            index = torch.where(step < size, order.gather(0, (start + step).clamp(max=n - 1)), n)
            share = torch.where(size > 0, size.to(self._population.dv.dtype) / self._subjects, 1)
            minibatches.append(Minibatch(index, share))
        return minibatches

    def total(self, flat: Tensor, carried: dict[str, Tensor], differentiate: bool) -> Part:
        """The loss of all subjects."""
        if self.whole:
            return self.part(flat, carried, None, differentiate)
        loss, gradient = flat.new_zeros(flat.shape[-1]), torch.zeros_like(flat)
        for minibatch in self.minibatches:
            part = self.part(flat, carried, minibatch, differentiate)
            loss, gradient, carried = loss + part.loss, gradient + part.gradient, part.carried
        return Part(loss, gradient.detach(), carried)

    def part(
        self,
        flat: Tensor,
        carried: dict[str, Tensor],
        minibatch: Minibatch | None,
        differentiate: bool = True,
    ) -> Part:
        """What the subjects of a minibatch, or all, add to the loss."""
        population, noise, fraction = self._population, self.noise, None
        with torch.set_grad_enabled(differentiate):
            state = State(self.layout.unpack(flat), carried, self._per_subject)
            if minibatch is not None:
                population = _some(self._population, minibatch.index)
                noise = None if noise is None else _gather(noise, minibatch.index)
                state = replace(
                    state,
                    trained={
                        name: _gather(value, minibatch.index) if name in self._per_subject else value
                        for name, value in state.trained.items()
                    },
                    carried={name: _gather(value, minibatch.index) for name, value in carried.items()},
                )
                divisor = self._objective.divisor
                fraction = divisor(population) / divisor(self._population)
            state = self._objective.refresh(self._model, population, state)
            loss = self._objective.loss(self._model, population, state, noise)
            if fraction is not None:
                loss = loss * fraction
            gradient = torch.autograd.grad(loss.sum(), flat)[0] if differentiate else torch.zeros_like(flat)
        carried = {
            name: value.detach()
            if minibatch is None
            else _put(carried.get(name), value.detach(), minibatch.index, self._population.shape[1])
            for name, value in state.carried.items()
        }
        return Part(loss.detach(), gradient, carried)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """(..., N, B) at ``index`` (n, B): (..., n, B); anything where the index is N."""
    index = index.clamp(max=values.shape[-2] - 1)
    return values.gather(-2, index.expand(*values.shape[:-2], *index.shape))


def _put(old: Tensor | None, values: Tensor, index: Tensor, n: int) -> Tensor:
    """The opposite: ``old`` (..., N, B), or zeros, with ``values`` (..., n, B) at ``index``."""
    shape = (*values.shape[:-2], n, values.shape[-1])
    base = values.new_zeros(shape) if old is None else old
    extended = torch.cat([base, base[..., :1, :]], -2)  # one place more, for where the index is N
    return extended.scatter(-2, index.expand(values.shape), values)[..., :n, :]


def _some(population: Population, index: Tensor) -> Population:
    """The subjects at ``index`` (n, B), absent where it is N."""
    n = population.shape[1]
    chosen = population.take(index.clamp(max=n - 1))
    there = (index < n).to(chosen.present.dtype)
    if bool(there.all()):
        return chosen
    return replace(chosen, present=chosen.present * there, observed=chosen.observed * there, ragged=True)
