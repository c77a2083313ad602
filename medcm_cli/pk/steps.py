"""An interval between events, in steps of a Runge-Kutta pair whose error is controlled; no gradients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from medcm_cli.numerics.square import inverse, times
from medcm_cli.pk.change import Parts, Right, Where, slopes
from medcm_cli.pk.tableaux import Tableau, coefficients

MOST = 2000
"""Steps that are tried in one interval until trajectories whose equations are stiff, and need as many for
their stability alone, are given up."""

EXTREME = "the model's equations cannot be solved at some of its parameter values, which are extreme"
_STIFF = (
    f"the model's equations take more than {MOST} steps from one event to the next, as stiff ones do; "
    "choose pk.method=kvaerno5 or larger pk.rtol and pk.atol"
)

_SAFETY, _LEAST, _LARGEST = 0.9, 0.2, 10.0  # of the next step, as a multiple of the last
_STANDSTILL = 1e-12  # of an interval: a step that leads nowhere
_DECAY = 1e-4  # the error of a step h of a decay with rate r, by (r h)^5
KEPT = 2**28  # bytes of stages that are kept in an interval; of further steps they are found again
_AHEAD, _BLOCK = 8, 2**21  # steps, and bytes of their stages, that memory is asked for at once
_NEWTON = 10  # iterations of an implicit stage
_CLOSE = 1e-2  # of the tolerance, that such a stage is solved to
# Of the changes in these, each to the last: what is supposed, and the power of what stages before it had.
_SLOW, _TRUST = 0.9, 0.8
_SINGLE = 1.5  # tolerances: the largest error of a trajectory, where their mean is kept within one


@dataclass(frozen=True)
class Control:
    """A method, its tolerances (``atol`` in amounts), and what is kept within them: in every fit the root
    mean square over its trajectories and compartments, and the error of each within 1.5 of them, or, with
    ``largest``, the error of each."""

    tableau: Tableau
    rtol: float
    atol: float
    largest: bool = False


class Path(NamedTuple):
    """Amounts at the ``end`` (C, S, N, B), not a number where there is no way; the accepted ``steps``,
    (begin, length) in [0, 1], and of each, where they are kept, the ``stages`` (I, C, S, N, B) on which the
    end depends, or the amounts that it begins with."""

    end: Tensor
    steps: list[tuple[float, float]]
    stages: list[Tensor]


Way = tuple["March", Path]
"""How an interval is gone through."""


class _Room(NamedTuple):
    """Where a step's stages go: (I, C, S, N, B), each of them, and each flat."""

    stages: Tensor
    each: Sequence[Parts]
    flat: Sequence[Tensor]

    @classmethod
    def several(cls, k: Tensor, rooms: int) -> list["_Room"]:
        """New ones, each as large as ``k``, side by side."""
        whole = k.new_empty(rooms, *k.shape)
        each, rows = whole.flatten(0, 1).unbind(0), whole.flatten(0, 2).unbind(0)
        flat = whole.flatten(2).flatten(0, 1).unbind(0)
        stages, states = k.shape[:2]
        parts = [Parts(of, rows[i * states : (i + 1) * states]) for i, of in enumerate(each)]
        return [
            cls(of, parts[first : first + stages], flat[first : first + stages])
            for of, first in zip(whole.unbind(0), range(0, len(each), stages), strict=True)
        ]


class March:
    """From one end of an interval to the other. ``x``: amounts now; ``k`` (I, C, S, N, B): their change at
    the stages of a step.

    ``lost``: trajectories (S, N, B) that have no way, and ``notes`` on why. ``ahead``: the length of the step
    that would follow the last, None where no error told of one.

    :param amounts: (C, S, N, B). :param fit: of each of the B, where these are trajectories, and how many
        fits there are.
    """

    def __init__(
        self,
        right: Right,
        amounts: Tensor,
        where: Where,
        control: Control,
        fit: tuple[Tensor, int] | None = None,
    ) -> None:
        self.lost: Tensor | None = None
        self.notes = list[str]()
        self.ahead: float | None = None
        self.right, self.where, self.control, self.fit = right, where, control, fit
        self.tableau, self.x = control.tableau, amounts.detach().contiguous()
        of = coefficients(self.tableau, self.x.dtype, self.x.device)
        self.rows, self.error, self.guesses = of.rows, of.error, of.guesses
        self.k = self.x.new_empty(len(self.rows), *amounts.shape)
        self.changes, self.flat = self.k.unbind(0), self.k.flatten(1).t()
        self.change_parts = [Parts.of(change) for change in self.changes]
        self.sight = right.sight(where)
        self.evaluate = right.bound(where, self.sight)
        self.keep, self.rooms = False, list[_Room]()
        self.before = [self.flat[:, :i] for i in range(len(self.rows))]
        self.most_kept = KEPT // (self.k.nbytes + 1)
        self.size = self.x.abs()
        there = (where.width > 0).expand(amounts.shape[1:])
        self.count = (self._by_fit(there.to(self.x)[None]) * len(amounts)).clamp(min=1)

    @torch.no_grad()
    def path(self, keep: bool = False, first: float | None = None, begins: bool = False) -> Path:
        """From 0 to 1.

        :param keep: what derivatives need. :param first: the step that is tried first, where one is known.
        :param begins: what steps begin with is kept, where nothing else is.
        """
        path, s, refused, tried = Path(self.x, [], []), 0.0, False, 0
        self.keep, most = keep, self.most_kept if keep else 0
        self._change(0.0, self.x, 0)
        self._lose(torch.isfinite(self.k[0] + self.x).all(0))
        h, told = (self._first(), False) if first is None else (first, True)
        while s < 1:
            free, h = h, (1 - s if s + 1.01 * h >= 1 else h)
            stages, solved = self.step(s, h, self.x)
            size = self._size_at(stages[-1], h) if solved is None else math.inf
            if size <= 1:
                path.steps.append((s, h))
                if keep:
                    path.stages.append(self.x if len(path.steps) > most else stages[: self.tableau.used])
                elif begins:
                    path.stages.append(self.x.clone())
                s = 1.0 if h == 1 - s else s + h
                self.x, self.size = stages[-1], self.at_end
                self._leave()
                self.changes[0].copy_(self.changes[-1])
            elif h < _STANDSTILL:
                self._lose(self._ratios(stages[-1], h) <= 1 if solved is None else solved, EXTREME)
            if tried >= MOST:
                self._lose(self._steepest(s) <= MOST, _STIFF)
                tried = 0
            h *= min(self._growth(size), 1.0 if refused else _LARGEST)
            refused, tried = not size <= 1, tried + 1
            told = told or refused or s < 1
        # The last step is as short as what was left, and rounding hides how small its error is.
        self.ahead = max(free, h) if told else None
        end = self.x if self.lost is None else torch.where(self.lost, torch.nan, self.x)
        return path._replace(end=end)

    def step(self, s: float, h: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The stages (I, C, S, N, B) of a step from ``x``, whose change is known or, at its first stage, not
        needed; and where (S, N, B) they are solved, None for everywhere."""
        stages, each, flat = self._room((1 - s) / h)
        each[0].whole.copy_(x)
        if self.sight is not None:
            self.sight.look([s + node * h for node in self.tableau.nodes])
        solve = _Implicit(self, s, h, x) if self.tableau.diagonal else None
        for i in range(1, len(flat)):
            torch.addmv(flat[0], self.before[i], self.rows[i], alpha=h, out=flat[i])
            if solve is None:
                self._change_of(s + self.tableau.nodes[i] * h, each[i], i)
            else:
                solved = solve(i, each[i])
                if solved is not None:
                    return stages, solved
        return stages, None

    def _room(self, steps: float) -> _Room:
        """For the stages of a step, and of those that may follow it, so many in all; of a march that keeps
        none two take turns, where the system would give the memory anew, page by page, for every step."""
        if not self.rooms:
            ahead = min(math.ceil(min(_AHEAD, steps)), _BLOCK // (self.k.nbytes + 1))
            several = max(1, ahead) if self.keep else 2
            self.rooms = _Room.several(self.k, several)
        return self.rooms[0]

    def _leave(self) -> None:
        """The room of a step that is taken."""
        if self.keep:
            del self.rooms[:1]
        else:
            self.rooms.reverse()

    def reached(self, path: Path) -> Tensor:
        """Amounts after each of the n steps of ``path``, (n, C, S, N, B)."""
        begins = [kept[0] if kept.ndim == self.k.ndim else kept for kept in path.stages]
        after = torch.stack([*begins[1:], path.end])
        return after if self.lost is None else torch.where(self.lost, torch.nan, after)

    @torch.no_grad()
    def stages_of(self, path: Path, number: int) -> Tensor:
        """Those of a step of ``path``, again where they were not kept."""
        kept, step = path.stages[number], path.steps[number]
        if kept.ndim == self.k.ndim:
            return kept
        self._change(step[0], kept, 0)
        stages = March.step(self, *step, kept)[0][: self.tableau.used]
        self._leave()
        return stages

    def _change(self, s: float, amounts: Tensor, stage: int) -> None:
        self._change_of(s, Parts.of(amounts), stage)

    def _change_of(self, s: float, amounts: Parts, stage: int) -> None:
        self.evaluate(s, amounts, self.change_parts[stage])
        if self.lost is not None:
            self.changes[stage].masked_fill_(self.lost, 0)

    def _ratios(self, end: Tensor, h: float) -> Tensor:
        """The largest error of each trajectory, (S, N, B), in tolerances."""
        return self._errors(end, h).abs().amax(0)

    def _errors(self, end: Tensor, h: float) -> Tensor:
        error = torch.addmv(end.flatten(), self.flat, self.error, beta=0, alpha=h).view_as(end)
        self.at_end = end.abs()
        scale = torch.maximum(self.size, self.at_end).mul_(self.control.rtol).add_(self.control.atol)
        return error.div_(scale)

    def _size_at(self, end: Tensor, h: float) -> float:
        """The largest error of a fit, in tolerances."""
        return self.norm(self._errors(end, h).square_())

    def norm(self, squares: Tensor) -> float:
        """The largest size of a fit, (C, S, N, B), or of n sizes of all fits, (C, n, S, N, B)."""
        largest = math.sqrt(float(squares.amax()))
        return largest if self.control.largest else self._of_fits(squares, largest)

    def _of_fits(self, squares: Tensor, largest: float) -> float:
        """That of the root mean squares, or 2/3 of the largest of all."""
        if not math.isfinite(largest):
            return largest
        # A few whose elimination is no longer saturated, while others' is, do not show in a mean.
        mean = math.sqrt(float((self._by_fit(squares) / self.count).amax()))
        return max(mean, largest / _SINGLE)

    def _steepest(self, s: float) -> Tensor:
        """Of each trajectory, (S, N, B), how fast changes change, at most, in an interval."""
        slope = slopes(self.right, s, self.x, self.where).abs().sum(1).amax(0)
        return slope if self.lost is None else slope.masked_fill(self.lost, 0)

    def _by_fit(self, values: Tensor) -> Tensor:
        """Sums (B,), or (n, B)."""
        total = values.sum((0, -3, -2))
        if self.fit is None:
            return total
        return total.new_zeros(*total.shape[:-1], self.fit[1]).index_add_(-1, self.fit[0], total)

    def _growth(self, size: float) -> float:
        if not math.isfinite(size):
            return _LEAST
        return max(_SAFETY * math.pow(max(size, 1e-30), -1 / self.tableau.order), _LEAST)

    def _first(self) -> float:
        """A first step whose error should be the tolerance: that of a decay by exp(-r s) in a step h grows as
        (r h)^5, with a factor that is the method's, and r is how the change itself changes."""
        scale = self.size * self.control.rtol + self.control.atol
        size, slope = (self.norm((of / scale).square_()) for of in (self.x, self.k[0]))
        h = min(0.01 * size / slope, 0.01) if slope > 0 and size > 0 else 0.01
        h = max(h, 1e-12)
        self._change(h, self.x + h * self.k[0], 1)
        curve = self.norm(((self.k[1] - self.k[0]) / scale).square_()) / h
        if slope == 0 or curve == 0:
            return 1.0
        # What is at rest and begins to be driven changes as fast as it soon will.
        slope = max(slope, self.norm((self.k[1] / scale).square_()))
        first = (slope**3 / (_DECAY * curve**4)) ** (1 / 5) if math.isfinite(curve) else h
        return max(min(first, 1.0), 1e-9)

    def _lose(self, sound: Tensor, note: str | None = None) -> None:
        """Leave out the trajectories that are not ``sound``, (S, N, B): they stand still."""
        if bool(sound.all()):
            return
        self.lost = ~sound if self.lost is None else self.lost | ~sound
        self.notes += [note] if note else []
        self.x, self.size = self.x.masked_fill(self.lost, 0), self.size.masked_fill(self.lost, 0)
        self.k.masked_fill_(self.lost, 0)


class _Implicit:
    """Newton's method for the stages of one step, with the matrix of where it begins."""

    def __init__(self, march: March, s: float, h: float, x: Tensor) -> None:
        self.march, self.s, self.h, self.part = march, s, h, h * march.tableau.diagonal
        unit = torch.eye(len(x), dtype=x.dtype, device=x.device).view(len(x), len(x), 1, 1, 1)
        slope = slopes(march.right, s, x, march.where)
        if march.lost is not None:
            slope = slope.masked_fill(march.lost, 0)
        self.matrix = inverse(unit - self.part * slope)
        self.speed = _SLOW

    def __call__(self, stage: int, at: Parts) -> Tensor | None:
        """From the stage without its own change to the stage, in its place; where (S, N, B) it is solved,
        None for everywhere."""
        march, base, k = self.march, at.whole, self.march.changes[stage]
        known = base.clone()
        s = self.s + march.tableau.nodes[stage] * self.h
        flat = base.flatten()
        torch.addmv(flat, march.before[stage], march.guesses[stage], alpha=self.part, out=flat)
        size, last = torch.maximum(known.abs(), base.abs()), math.inf
        scale = size * march.control.rtol + march.control.atol
        for _ in range(_NEWTON):
            march._change_of(s, at, stage)
            change = times(self.matrix, torch.add(known - base, k, alpha=self.part))
            base.add_(change)
            far = (change / scale).abs_().amax(0)
            now = float(far.max())
            speed = now / last if last < math.inf else self.speed**_TRUST
            if now == 0 or (speed < 1 and now * speed / (1 - speed) <= _CLOSE):
                torch.sub(base, known, out=k).div_(self.part)
                return None
            if not now < 2 * last:
                break
            self.speed, last = (speed if last < math.inf else self.speed), now
        return far <= _CLOSE
