"""The loss of a batch of fits and its gradient: of all subjects at once, or minibatch by minibatch."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Noise, Stream
from medcm_cli.objectives.base import Objective, State
from medcm_cli.training.layout import Layout
from medcm_cli.training.scales import Scales


@dataclass(frozen=True)
class Minibatch:
    """``index`` (n, B) of each fit's subjects, N where it has fewer than n; ``share`` (B,) of its subjects,
    1 where it has none left; ``there`` (B,) whether it has any."""

    index: Tensor
    share: Tensor
    there: Tensor


@dataclass(frozen=True)
class Part:
    """What some subjects add to the loss, (B,), and to its gradient, (P, B) or 0 where it is not asked for;
    ``values`` (P, B) that these were taken at, the given ones but for what the objective has moved;
    ``carried`` of all subjects, brought up to date for these. Of a minibatch, P are the values that fits
    share and those of its subjects alone, laid out like those of all: a step costs what its subjects do."""

    loss: Tensor
    gradient: Tensor
    values: Tensor
    carried: dict[str, Tensor]


DRAWS = 100  # of the loss of values that do not move
_BEYOND = 1e12
"""Of an observation's share of a loss, in units of 1/2 (y - f)^2/sd^2: on average, observations lie more than
a million sds from their predictions."""


def largest(objective: Objective, population: Population) -> Tensor:
    """The size of the loss, (B,), that no fit of these data reaches (docs/methods.md, "Training").

    Initial sigmas do not know in which unit observations are, so that of a log likelihood is the larger the
    larger they are; a loss in a unit of its own is measured by them alone.
    """
    description = objective.describe()
    count = population.observation_count.clamp(min=1)
    square = population.sum_all(population.dv.square()) / count
    if description.power:
        return _BEYOND * torch.where(square > 0, square, 1) ** (description.power / 2)
    return _BEYOND * (description.scale or 1) * count * square.clamp(min=1)


class Evaluation:
    """The loss of a batch of fits, of all subjects or in minibatches, with an epoch's random numbers.

    ``count`` (B,) minibatches of each fit; ``whole`` whether that is one for every fit, which is then not
    cut at all. Everything is where ``population`` is, but ``count``, which is on the CPU. ``limit`` (B,): see
    ``largest``. ``shared`` of the P rows are of what subjects share, and come first; ``own_rows`` and
    ``moved_rows`` (P,): which each subject has for itself, and which the objective moves; ``moves`` whether
    it moves any.
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
        log: bool = False,
    ) -> None:
        """:param log: train parameters above 0 as logarithms (``Scales``)."""
        self._model, self._objective, self._population = model, objective, population
        self._per_subject, self._moved = state.per_subject, state.moved
        self.limit = largest(objective, population)
        self.layout = Layout.of(state.trained, last=state.per_subject)
        device = population.present.device
        self.scales = Scales(self.layout.places, model.rows(), log, device)
        own, moved = (self.layout.rows(of) for of in (state.per_subject, state.moved))
        self.moves, self._descends = bool(state.moved), not bool(moved.all())
        self.own_rows, self.moved_rows = own.to(device), moved.to(device)
        self.shared = int((~own).sum())  # rows of what subjects share, which come first
        self._present = population.present.cpu()
        self._subjects = self._present.sum(0).long()
        size = population.shape[1] if batch_subjects is None else batch_subjects
        self.count = (self._subjects + size - 1).div(size, rounding_mode="floor")
        self.whole = int(self.count.max()) == 1
        counts = self._subjects.tolist()
        shape, of_refresh = (of(model, population) for of in (objective.noise_shape, objective.refresh_shape))
        self._noise = None if shape is None else Noise(streams, shape, counts, dtype, device=device)
        if of_refresh is None:
            self._refresh = None
        else:
            self._refresh = Noise(streams, of_refresh, counts, dtype, "refresh", device)
        shuffle = (population.shape[1],)
        self._held = False
        self.noise: Tensor | None = None
        self._order = None if self.whole else Noise(streams, shuffle, counts, torch.float64, "minibatch")
        self.draw()

    @property
    def noisy(self) -> bool:
        """Whether the loss, or what is carried, has random numbers."""
        return self._noise is not None or self._refresh is not None

    def packed(self, state: State) -> Tensor:
        """What is trained of a state, (P, B), each number on its scale."""
        return self.scales.trained(self.layout.pack(state.trained))

    def at_rest(
        self, flat: Tensor, carried: dict[str, Tensor], streams: Sequence[Stream]
    ) -> tuple[Tensor, Tensor]:
        """The loss of all subjects at values that do not move, (B,), and its Monte Carlo error: the mean of
        ``DRAWS`` that no other epoch has, of each fit its own."""
        counts = self._subjects.tolist()
        if self._refresh is not None:
            return self._settled(flat, carried, streams)
        if self._noise is None or not self.whole:
            loss = self.total(flat, carried, differentiate=False).loss
            return loss, torch.zeros_like(loss)
        source = Noise(streams, self._noise.shape, counts, flat.dtype, "rest", flat.device)
        found = []
        for _ in range(DRAWS):
            self.noise = source.draw()
            found.append(self.part(flat, carried, None, differentiate=False).loss)
        losses = torch.stack(found)
        return losses.mean(0), losses.std(0) / DRAWS**0.5

    @torch.no_grad()
    def _settled(
        self, flat: Tensor, carried: dict[str, Tensor], streams: Sequence[Stream]
    ) -> tuple[Tensor, Tensor]:
        """The same of an objective whose own steps have random numbers, which it does not take any more."""
        assert self._refresh is not None
        counts = self._subjects.tolist()
        source = Noise(streams, self._refresh.shape, counts, flat.dtype, "rest", flat.device)
        state = State(self.layout.unpack(self.scales.model(flat)), carried, self._per_subject)
        for _ in range(DRAWS):
            state = self._objective.settled(self._model, self._population, state, source.draw())
        loss = self._objective.loss(self._model, self._population, state, self.noise)
        error = self._objective.error(self._population, state)
        return loss, torch.zeros_like(loss) if error is None else error

    @torch.no_grad()
    def searched_widely(self, flat: Tensor, carried: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is carried at values that do not move, found anew (``Objective.searched_widely``)."""
        found = dict(carried) if self.whole else {name: value.clone() for name, value in carried.items()}
        for minibatch in [None] if self.whole else self.minibatches:
            own = flat if minibatch is None else self.at(flat, minibatch)
            state, population, _, _ = self._of(self.scales.model(own), found, minibatch)
            state = self._objective.searched_widely(self._model, population, state)
            found = self._after(own, found, state, minibatch)[1]
        return found

    def draw(self) -> None:
        """The next epoch's random numbers: noise, and who is in which minibatch."""
        noise, self.refresh = (
            None if source is None else source.draw() for source in (self._noise, self._refresh)
        )
        if self._held and noise is not None:
            assert self.noise is not None
            self.noise.copy_(noise)
        else:
            self.noise = noise
        self.minibatches = [] if self._order is None else self._cut(self._order.draw())

    def hold(self) -> None:
        """From now on the noise of every epoch lies where that of this one does."""
        self._held, self.noise = True, None if self.noise is None else self.noise.clone()

    @property
    def _sources(self) -> dict[str, Noise]:
        sources = {"noise": self._noise, "refresh": self._refresh, "minibatch": self._order}
        return {name: source for name, source in sources.items() if source is not None}

    def position(self) -> dict[str, npt.NDArray[np.uint64]]:
        """Where the next epoch's random numbers come from."""
        return {name: source.position() for name, source in self._sources.items()}

    def move_to(self, position: Mapping[str, npt.NDArray[np.uint64]]) -> None:
        """Go on where ``position`` was taken; what was drawn before stays until the next ``draw``.

        :raises ValueError: it is none of these fits.
        """
        if set(position) != set(self._sources):
            raise ValueError("a position of another evaluation")
        for name, source in self._sources.items():
            source.move_to(position[name])

    def _cut(self, keys: Tensor) -> list[Minibatch]:
        """Each fit's subjects in the order of random keys (N, B), in parts whose sizes differ by one at
        most."""
        n, device = len(keys), self._population.present.device
        order = torch.where(self._present > 0, keys, torch.inf).argsort(0)
        ends = [
            (number * self._subjects).div(self.count, rounding_mode="floor").minimum(self._subjects)
            for number in range(int(self.count.max()) + 1)
        ]
        minibatches = []
        for start, end in itertools.pairwise(ends):
            size = end - start
            step = torch.arange(int(size.max()), device="cpu")[:, None]
            index = torch.where(step < size, order.gather(0, (start + step).clamp(max=n - 1)), n)
            share = torch.where(size > 0, size.to(self._population.dv.dtype) / self._subjects, 1)
            minibatches.append(Minibatch(index.to(device), share.to(device), (size > 0).to(device)))
        return minibatches

    def sound(self, part: Part) -> Tensor:
        """Whether a fit's loss and gradient are finite and no larger than a fit's can be, (B,)."""
        return torch.isfinite(part.loss + part.gradient.sum(0)) & (part.loss.abs() <= self.limit)

    def total(self, flat: Tensor, carried: dict[str, Tensor], differentiate: bool) -> Part:
        """The loss of all subjects."""
        if self.whole:
            return self.part(flat, carried, None, differentiate)
        loss, values = flat.new_zeros(flat.shape[-1]), flat.detach()
        gradient, carried = torch.zeros_like(values), {name: of.clone() for name, of in carried.items()}
        values = values.clone() if self.moves else values
        for minibatch in self.minibatches:
            part = self.part(values, carried, minibatch, differentiate)
            loss, carried = loss + part.loss, part.carried
            self.add(gradient, part.gradient, minibatch)
            if self.moves:
                self.put(values, part.values, minibatch)
        return Part(loss, gradient, values, carried)

    def at(self, flat: Tensor, minibatch: Minibatch) -> Tensor:
        """Of the values (P, B) of all those of a minibatch, a copy; anything where it has no subject."""
        n = self._population.shape[1]
        shared, own = flat.split([self.shared, len(flat) - self.shared])
        gathered = _gather(own.view(-1, n, flat.shape[-1]), minibatch.index)
        return torch.cat([shared, gathered.flatten(0, 1)])

    def put(self, flat: Tensor, values: Tensor, minibatch: Minibatch) -> None:
        """The opposite, in place."""
        flat[: self.shared] = values[: self.shared]
        self._put_own(flat, values, minibatch)

    def add(self, total: Tensor, gradient: Tensor, minibatch: Minibatch) -> None:
        """To what other minibatches of an epoch have added the gradient of one, in place."""
        total[: self.shared] += gradient[: self.shared]
        self._put_own(total, gradient, minibatch)

    def _put_own(self, flat: Tensor, values: Tensor, minibatch: Minibatch) -> None:
        fits = flat.shape[-1]
        own = flat[self.shared :].view(-1, self._population.shape[1], fits)
        _put(own, values[self.shared :].view(-1, len(minibatch.index), fits), minibatch.index)

    def part(
        self,
        flat: Tensor,
        carried: dict[str, Tensor],
        minibatch: Minibatch | None,
        differentiate: bool = True,
    ) -> Part:
        """What the subjects of a minibatch, or all, add to the loss, after the objective's own step; what is
        ``carried`` of a minibatch's is brought up to date in place."""
        differentiate = differentiate and self._descends
        if minibatch is not None:
            flat = self.at(flat.detach(), minibatch)
        leaf = flat if flat.requires_grad or not differentiate else flat.detach().requires_grad_()
        with torch.set_grad_enabled(differentiate):
            state, population, noise, refresh = self._of(self.scales.model(leaf), carried, minibatch)
            state = self._objective.refresh(self._model, population, state, refresh)
            loss = self._objective.loss(self._model, population, state, noise)
            if minibatch is not None:
                divisor = self._objective.divisor
                loss = loss * (divisor(population) / divisor(self._population))
            gradient = torch.autograd.grad(loss.sum(), leaf)[0] if differentiate else torch.zeros_like(flat)
        loss = loss.detach()
        if minibatch is not None:  # of no subject nothing can be asked
            loss, gradient = (torch.where(minibatch.there, of, 0) for of in (loss, gradient))
        return Part(loss, gradient, *self._after(flat, carried, state, minibatch))

    def _of(
        self, flat: Tensor, carried: dict[str, Tensor], minibatch: Minibatch | None
    ) -> tuple[State, Population, Tensor | None, Tensor | None]:
        """State, subjects and random numbers, of all or those in a minibatch, whose values are ``flat``."""
        population, noise, refresh, layout = self._population, self.noise, self.refresh, self.layout
        if minibatch is not None:
            index = minibatch.index
            layout = layout.resized(self._per_subject, len(index))
            carried = {n: _gather(v, index) if n in self._per_subject else v for n, v in carried.items()}
            noise, refresh = (None if of is None else _gather(of, index) for of in (noise, refresh))
            population = _some(population, index)
        return State(layout.unpack(flat), carried, self._per_subject, self._moved), population, noise, refresh

    def _after(
        self, flat: Tensor, carried: dict[str, Tensor], state: State, minibatch: Minibatch | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Values (P, B) of some subjects and what is carried of all, as the state of some leaves them."""

        def there(old: Tensor | None, new: Tensor) -> Tensor:
            if minibatch is None or old is None:
                return new.detach()
            return torch.where(minibatch.there, new.detach(), old)

        kept = {}
        for name, new in state.carried.items():
            old = carried.get(name)
            if minibatch is None or name not in self._per_subject:
                kept[name] = there(old, new)
                continue
            shape = *new.shape[:-2], self._population.shape[1], new.shape[-1]
            kept[name] = new.new_zeros(shape) if old is None else old
            _put(kept[name], new.detach(), minibatch.index)
        if not self._moved:
            return flat, kept
        with torch.no_grad():
            number = self._population.shape[1] if minibatch is None else len(minibatch.index)
            layout = self.layout.resized(self._per_subject, number)
            values = layout.unpack(self.scales.model(flat))
            values |= {name: there(values[name], state.trained[name]) for name in self._moved}
            packed = layout.pack(values)
            if self.scales.plain:
                return packed, kept
            moved = layout.rows(self._moved).to(flat.device)[:, None]
            return torch.where(moved, self.scales.trained(packed), flat), kept


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """(..., N, B) at ``index`` (n, B): (..., n, B); anything where the index is N."""
    index = index.clamp(max=values.shape[-2] - 1)
    return values.gather(-2, index.expand(*values.shape[:-2], *index.shape))


def _put(values: Tensor, some: Tensor, index: Tensor) -> None:
    """The opposite, in place: into ``values`` (..., N, B) ``some`` (..., n, B), where the index is not N."""
    last = values.shape[-2] - 1
    real = index <= last
    # Where it is N a fit's first subject is put once more, and where it has none, what is there already.
    place = torch.where(real, index, index[:1]).clamp(max=last).expand(some.shape)
    first = torch.where(real[:1], some[..., :1, :], values.gather(-2, place[..., :1, :]))
    values.scatter_(-2, place, torch.where(real, some, first))


def _some(population: Population, index: Tensor) -> Population:
    """The subjects at ``index`` (n, B), absent where it is N."""
    n = population.shape[1]
    chosen = population.take(index.clamp(max=n - 1))
    there = (index < n).to(chosen.present.dtype)
    if bool(there.all()):
        return chosen
    return replace(chosen, present=chosen.present * there, observed=chosen.observed * there, ragged=True)
