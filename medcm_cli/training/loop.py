"""The one optimisation loop: a batch of fits, trained together, each as if it were alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.numerics.devices import CPU, nowhere
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Objective, State
from medcm_cli.training import replay
from medcm_cli.training.absurd import cause_of
from medcm_cli.training.beginning import Begun, How, begun
from medcm_cli.training.course import Course
from medcm_cli.training.ending import Rule, Watch
from medcm_cli.training.kept import Kept, Reached
from medcm_cli.training.loss import Minibatch, Part
from medcm_cli.training.steppers import MakeOptimizer, steppers
from medcm_cli.training.trained import Ends, Failure, Trained

Progress = Callable[[int, Tensor], None]


def train(  # noqa: PLR0913 (each is one thing that a batch needs)
    model: Model,
    objective: Objective,
    population: Population,
    streams: Sequence[Stream],
    make_optimizer: MakeOptimizer,
    course: Course,
    dtype: torch.dtype,
    progress: Progress | None = None,
    kept: Kept | None = None,
    device: torch.device = CPU,
    given: Mapping[str, Tensor] | None = None,
) -> Trained:
    """Train B fits, B = ``len(streams)``.

    A fit that is not finite, or whose loss lies beyond any fit's, and that is not drawn again, stops there:
    its values and rows so far are kept, and since no operation mixes fits, the others go on as if it were not
    there.

    :param population: training subjects, with B fits, on the CPU.
    :param make_optimizer: from the trained tensor to an optimiser that treats its elements independently of
        each other.
    :param progress: called at every checkpoint with the epoch and the objective (B,).
    :param kept: where to go on from, with the very same result, and to keep how far it is.
    :param given: values to begin with (``How``).
    :param device: to train on. Random numbers are those of the CPU, so that results differ by rounding.
    """
    there = population.to(device)
    if course.batch_subjects is not None and course.batch_subjects < population.shape[1]:
        there = there.by_subject()
    how = How(course.batch_subjects, course.log, course.redraws, course.near > 0, given)
    start = begun(model, objective, population, there, streams, dtype, how)
    fits = _Fits(model, objective, there, make_optimizer, start, course)
    before, seconds = fits.resumed(kept)
    labels, started = course.labels, time.perf_counter() - seconds
    # Epoch e evaluates the loss of the values after e - 1 steps: a checkpoint after epoch c is complete at
    # the start of epoch c + 1, with the objective belonging to those very values. One evaluation without a
    # step closes the run. Minibatches see values that move during an epoch, so they are evaluated once more
    # for a checkpoint.
    for epoch in range(before + 1, course.epochs + 2):
        last = epoch > course.epochs
        due = epoch - 1 in labels
        total = start.first if epoch == 1 else fits.evaluate(epoch, due, last)
        if due:
            assert total is not None
            fits.keep(total)
            if progress:
                progress(epoch - 1, total.loss)
        if last or fits.over(due):
            break
        fits.step(epoch, total)
        fits.look(epoch)
        # At the end too: some fits are written before others.
        if kept is not None and (kept.due or epoch == course.epochs or fits.over(epoch in labels)):
            fits.keep_all(kept, epoch, time.perf_counter() - started)
    ends = fits.ends(course, streams)
    return fits.trained(sorted(labels.values()), time.perf_counter() - started, ends)


class _Fits:
    """A batch of fits on their way: their values (P, B), what is carried, which are alive, and what has been
    kept of them."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        population: Population,
        make_optimizer: MakeOptimizer,
        begun: Begun,
        course: Course,
    ) -> None:
        self._model, self._objective, self._population = model, objective, population
        self._begun, self._evaluation = begun, begun.evaluation
        self._flat = begun.evaluation.packed(begun.state).requires_grad_()
        self._shared, self._own = steppers(make_optimizer, self._flat, begun.evaluation)
        count = len(begun.redraws)
        self.alive = torch.ones(count, dtype=torch.bool, device=self._flat.device)
        self._watch: Watch | None = None
        if course.stop:
            scale = objective.describe().scale
            rule = Rule(self._evaluation.noisy, scale, course.brief, course.near)
            self._watch = Watch(rule, self._flat, self._evaluation.moved_rows)
        self._failures: list[Failure | None] = [None] * count
        # Of each fit, its loss where it failed and in which epoch; 0 where it has not.
        self._lost = self._flat.detach().new_zeros(count)
        self._failed = torch.zeros_like(self.alive, dtype=torch.long)
        self._unconverged = torch.zeros_like(self._lost)
        self._replay: Callable[[], None] | None = None
        wanted = course.graph and not course.stop and begun.evaluation.scales.plain
        wanted = wanted and begun.evaluation.whole and not begun.evaluation.moves
        repeated = all(stepper.repeats for stepper in (*self._shared, *self._own))
        self._warm: int | None = None  # epochs until one is captured; None: none is
        if wanted and repeated and replay.repeats(model, objective, self._flat.device):
            self._warm = replay.WARM
        self._replayed = 0
        self._now, self._loss = torch.zeros_like(self._failed[0]), torch.zeros_like(self._lost)
        self._before: Tensor | None = None
        self._last: tuple[Tensor, Tensor] | None = None  # loss and gradient of the epoch under way
        self._snapshots, self._values = list[Tensor](), list[Tensor]()
        self._unsound = torch.zeros_like(self.alive)
        self._carried: dict[str, Tensor] = begun.state.carried
        self._take(1, begun.first, self.alive)

    def evaluate(self, epoch: int, due: bool, last: bool) -> Part | None:
        """All subjects, with the random numbers of a new epoch; None where only minibatches will be asked
        for, and nothing else is needed: no checkpoint is ``due`` and it is not the ``last``. Where an epoch
        is a graph, its step is taken with it."""
        self._evaluation.draw()
        self._before = None
        if not (self._evaluation.whole or due or last):
            return None
        if self._warm is not None and not last:
            self._warm -= 1
            if self._warm < 0 and self._replay is None:
                self._evaluation.hold()
                self._replay = replay.captured(self._epoch)
                self._warm = 0 if self._replay else None
        if self._replay is not None and not last:
            return self._once_more(epoch, due)
        total = self._evaluation.total(self._flat, self._carried, differentiate=self._evaluation.whole)
        self._take(epoch, total, self.alive)
        return total

    def _epoch(self) -> None:
        """One epoch from its evaluation to its step, of tensors that stay where they are."""
        part = self._evaluation.total(self._flat, self._carried, differentiate=True)
        self._take(self._now, part, self.alive)
        self._loss.copy_(part.loss)
        for stepper in self._shared:
            stepper.step(self._flat, part.gradient, self.alive)

    def _once_more(self, epoch: int, due: bool) -> Part:
        """``_epoch``, replayed; what a checkpoint needs of the values before its step is put aside."""
        assert self._replay is not None
        values = self._flat.detach()
        self._before = values.to(CPU, copy=True) if due else values
        self._now.fill_(epoch)
        self._replay()
        self._replayed += 1
        return Part(self._loss, values, values, self._carried)

    @property
    def moving(self) -> Tensor:
        """Which fits are, (B,): those that have neither failed nor converged."""
        return self.alive if self._watch is None else self.alive & ~self._watch.done & ~self._unsound

    def look(self, epoch: int) -> None:
        """What an epoch says of whether fits have converged, once its steps are taken."""
        if (watch := self._watch) is None:
            return
        assert self._last is not None
        if watch.see(*self._last, self._flat.detach()):
            found = (stepper.moments for stepper in (*self._shared, *self._own))
            watch.judge(epoch, [of for of in found if of is not None], ~self._evaluation.own_rows)
            if not watch.rule.noise and self._evaluation.whole:
                self._carried = self._evaluation.searched_widely(self._flat.detach(), self._carried)

    def keep(self, total: Part) -> None:
        """A checkpoint: the values as they are, and the objective there."""
        before = self._flat.detach() if self._before is None else self._before
        self._snapshots.append(self._evaluation.scales.model(before).to(CPU, copy=True))
        self._values.append(total.loss.to(CPU, copy=self._before is not None))
        share = self._objective.unconverged(self._population, self._state())
        if share is not None:
            self._unconverged = torch.maximum(self._unconverged, torch.where(self.alive, share, 0))

    def step(self, epoch: int, total: Part | None) -> None:
        """One pass of the optimiser over all subjects, where a graph has not taken it."""
        if self._before is not None:
            return
        evaluation, flat = self._evaluation, self._flat
        rate = None if self._watch is None else self._watch.rate
        if evaluation.whole:
            assert total is not None
            self._last = total.loss, total.gradient
            for stepper in self._shared:
                stepper.step(flat, self._clipped(total.gradient), self.moving, rate)
            return
        gradient, loss = torch.zeros_like(flat), torch.zeros_like(self._lost)
        for minibatch in evaluation.minibatches:
            part = evaluation.part(flat, self._carried, minibatch)
            active = self.moving & minibatch.there
            self._take(epoch, part, active, minibatch)
            for stepper in self._shared:
                one = self._clipped(part.gradient / minibatch.share, slice(evaluation.shared))
                stepper.step(flat, one, active & self.moving, rate)
            evaluation.add(gradient, part.gradient, minibatch)
            loss = loss + part.loss
        for stepper in self._own:
            rows = slice(evaluation.shared, None)
            stepper.step(flat, self._clipped(gradient, rows), self.moving, rate)
        self._last = loss, gradient

    def _clipped(self, gradient: Tensor, rows: slice = slice(None)) -> Tensor:
        """As the history allows, of an objective with noise."""
        noisy = self._watch is not None and self._watch.rule.noise
        return self._watch.clipped(gradient, rows) if noisy and self._watch else gradient

    def _take(
        self, epoch: int | Tensor, part: Part, active: Tensor, minibatch: Minibatch | None = None
    ) -> None:
        """What an evaluation leaves behind: failures of fits that are ``active``, (B,), what is carried, and
        values that the objective has moved, of fits that are alive."""
        self._carried = part.carried
        if self._watch is not None:
            active = active & ~self._watch.done
        self._unsound = active & ~self._evaluation.sound(part)
        failed = self._unsound if self._watch is None else self._watch.lost(self._unsound)
        if not nowhere(failed):
            self._lost.copy_(torch.where(failed, part.loss, self._lost))
            self._failed.copy_(torch.where(failed, epoch, self._failed))
            self.alive.logical_and_(~failed)
        if self._evaluation.moves:
            with torch.no_grad():
                moving = self.moving
                if minibatch is None:
                    self._flat.copy_(torch.where(moving, part.values, self._flat))
                    return
                there = torch.where(moving, part.values, self._evaluation.at(self._flat, minibatch))
                self._evaluation.put(self._flat, there, minibatch)

    def over(self, due: bool) -> bool:
        """Whether no fit moves any more. Another device than the CPU, whose answer has to be waited for, is
        asked at checkpoints, which are ``due``."""
        if not due and self.alive.device != CPU:
            return False
        return not bool((self.alive if self._watch is None else self.alive & ~self._watch.done).any())

    def _settle(self) -> None:
        """The causes of failures."""
        failed, lost, limit = (of.cpu() for of in (self._failed, self._lost, self._evaluation.limit))
        values = {name: value.cpu() for name, value in self._state().trained.items()}
        for fit in failed.nonzero().flatten().tolist():
            if self._failures[fit] is None:
                cause = cause_of(self._model, self._objective, values, lost, limit, fit)
                self._failures[fit] = Failure(int(failed[fit]), cause)

    def keep_all(self, kept: Kept, epoch: int, seconds: float) -> None:
        """Everything that the epochs after ``epoch`` depend on, to a file; of an optimiser whose memory is
        more than tensors and numbers, nothing."""
        self._settle()
        numbers: dict[str, Any] = {
            "epoch": epoch,
            "seconds": seconds,
            "failures": [failure and asdict(failure) for failure in self._failures],
        }
        tensors = {f"carried.{name}": value for name, value in self._carried.items()}
        tensors |= {"flat": self._flat.detach(), "alive": self.alive, "unconverged": self._unconverged}
        if self._watch is not None:
            tensors |= {f"watch.{name}": value for name, value in self._watch.memory().items()}
        for name, values in (("snapshots", self._snapshots), ("values", self._values)):
            tensors |= {name: torch.stack(values)} if values else {}
        for number, stepper in enumerate((*self._shared, *self._own)):
            for name, value in stepper.memory.items():
                if not isinstance(value, Tensor | int | float):
                    return
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{name}"] = value
                else:
                    numbers[f"optimizer.{number}.{name}"] = value
        arrays = {name: value.cpu().numpy() for name, value in tensors.items()}
        arrays |= {f"position.{name}": value for name, value in self._evaluation.position().items()}
        kept.write(Reached(numbers, arrays))

    def resumed(self, kept: Kept | None) -> tuple[int, float]:
        """The epoch and the seconds that ``kept`` had reached, which these fits then are at; both 0, and they
        as they were, where it holds nothing of use."""
        found = kept and kept.read()
        if not found or found.arrays["flat"].shape != self._flat.shape:
            return 0, 0.0
        numbers, arrays = found.numbers, found.arrays
        # Copies, since torch aligns its own memory, and sums may depend on that.
        tensors = {
            name: torch.from_numpy(array).clone()
            for name, array in arrays.items()
            if not name.startswith(("position.", "about"))
        }
        self._evaluation.move_to(_below("position.", arrays))
        with torch.no_grad():
            self._flat.copy_(tensors["flat"])
        self._carried = {n: v.to(self._flat.device) for n, v in _below("carried.", tensors).items()}
        self.alive.copy_(tensors["alive"])
        self._unconverged.copy_(tensors["unconverged"])
        if self._watch is not None:
            self._watch.remember(_below("watch.", tensors))
        self._failures = [failure and Failure(**failure) for failure in numbers["failures"]]
        self._failed.copy_(
            torch.tensor([failure.epoch if failure else 0 for failure in self._failures], device="cpu")
        )
        self._snapshots = list(tensors.get("snapshots", ()))
        self._values = list(tensors.get("values", ()))
        for number, stepper in enumerate((*self._shared, *self._own)):
            stepper.set(self._flat, _below(f"optimizer.{number}.", {**numbers, **tensors}))
        return int(numbers["epoch"]), float(numbers["seconds"])

    def _state(self) -> State:
        trained = self._evaluation.layout.unpack(self._evaluation.scales.model(self._flat.detach()))
        return replace(self._begun.state, trained=trained, carried=self._carried)

    def ends(self, course: Course, streams: Sequence[Stream]) -> Ends | None:
        """Where they have ended; None where that is after all epochs, whatever comes of it. Of an objective
        with noise at the mean of their last values, of which a fit's own draws say what it is there."""
        if (watch := self._watch) is None:
            return None
        if watch.rule.noise and not watch.rule.brief:
            with torch.no_grad():
                there = self.alive & (watch.mean != 0).any(0)
                self._flat.copy_(torch.where(there, watch.mean, self._flat))
        value, error = self._evaluation.at_rest(self._flat.detach(), self._carried, streams)
        epoch = torch.where(watch.done, watch.ended, course.epochs)
        values = self._evaluation.scales.model(self._flat.detach())
        parts = values, value, error, epoch, watch.done & self.alive
        values, value, error, epoch, done = (part.cpu() for part in parts)
        return Ends(values, value, error, epoch, done, (watch.rule.words,) * len(done))

    def trained(self, labels: Sequence[int], seconds: float, ends: Ends | None) -> Trained:
        """What has become of them; ``labels`` of the checkpoints, as many as were reached."""
        self._settle()
        flat, count = self._flat.detach().cpu(), len(self._failures)
        return Trained(
            epochs=tuple(labels[: len(self._snapshots)]),
            layout=self._evaluation.layout,
            checkpoints=torch.stack(self._snapshots) if self._snapshots else flat.new_zeros((0, *flat.shape)),
            objective=torch.stack(self._values) if self._values else flat.new_zeros((0, count)),
            failures=tuple(self._failures),
            state=self._state().to(CPU),
            unconverged=self._unconverged.cpu(),
            redraws=self._begun.redraws,
            seconds=seconds,
            replayed=self._replayed,
            ends=ends,
        )


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}
