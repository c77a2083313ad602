"""Newton's method for a batch of fits at once, each as if it were alone.

The Hessian is that of finite differences of the gradient where a search begins and where it seems to be over,
and is brought up to date by each step in between (BFGS with Powell's damping; Nocedal and Wright 2006,
sections 6.1 and 18.3). A direction of negative curvature is taken as if it were positive (Dauphin et al.
2014), no step is longer than 1 in all, and one that does not lower the objective is halved. Modes are looked
for near where they were last, so that the objective is smooth; where a search begins and ends, further off.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medcm_cli.numerics.square import inverse_of_saddle, made_positive
from medcm_cli.training.coordinates import Coordinates
from medcm_cli.training.loss import Evaluation

LEAST = 1e-3
"""OFV that a step of Newton's method would still gain where a fit has converged, at most."""
TURNS = 5  # how often better modes are found where a search has ended
STEPS = 200
SOON = 40
"""Steps at most of a search for a place that is near enough."""
_DIFFERENCE = 1e-4
_HALVINGS = 15
_FEWER = 0.8  # of the fits of an evaluation, below which it is worth one of its own
_ASIDE = 0.3  # how far it is gone from a saddle
_ENOUGH = 1e-4  # of the fall that the gradient foretells


@dataclass(frozen=True)
class Found:
    """Where the search has ended: ``x`` (P, B), its ``loss`` (B,), the ``gain`` (B,) in OFV that one more
    step would have, by a Hessian at or near that place, and what is ``carried`` there."""

    x: Tensor
    loss: Tensor
    gain: Tensor
    carried: dict[str, Tensor]


def joined(found: Found, again: Found, fits: Tensor) -> Found:
    """With what a second search of some ``fits`` (n,) has brought to its end."""
    here = (again.gain < LEAST).nonzero()[:, 0]
    there = fits[here]

    def those(first: Tensor, second: Tensor) -> Tensor:
        return first.index_copy(-1, there, second[..., here])

    return Found(
        those(found.x, again.x),
        those(found.loss, again.loss),
        those(found.gain, again.gain),
        {name: those(value, again.carried[name]) for name, value in found.carried.items()},
    )


class Search:
    """See the module. ``evaluated``: some of the fits, by their numbers; ``unit`` (B,): OFV in one of the
    loss; ``free`` (P,): what moves; ``alive`` (B,): whose; ``turns``: how often other modes may be found."""

    def __init__(
        self,
        evaluated: Callable[[Tensor], Evaluation],
        coordinates: Coordinates,
        carried: dict[str, Tensor],
        unit: Tensor,
        free: Tensor,
        alive: Tensor,
        turns: int = TURNS,
    ) -> None:
        self._turns = turns
        self._evaluated, self._coordinates, self._unit = evaluated, coordinates, unit
        self._free = free.nonzero()[:, 0]
        everyone = torch.ones_like(alive)
        self._everyone = everyone.nonzero()[:, 0]
        self._some = self._everyone, evaluated(self._everyone)
        self._x = x = coordinates.begin
        self._carried = self._some[1].searched_widely(coordinates.trained(x, self._everyone), carried)
        self._loss, self._gradient = torch.zeros_like(unit), torch.zeros_like(x[self._free])
        self._loss, self._gradient, self._carried = self._at(x, self._carried, everyone)
        self._gain = torch.full_like(self._loss, torch.inf)
        self._hessian = torch.zeros(len(alive), *2 * [len(self._free)], dtype=x.dtype, device=x.device)
        self._hessian = self._differences(everyone)
        self._seen = self._hessian  # by differences, where it was last
        self._fresh = torch.ones_like(alive)
        self._elsewhere = torch.zeros_like(alive, dtype=torch.long)  # how often modes were found to be
        self._going = alive & torch.isfinite(self._loss)

    def run(self, enough: float | None = None) -> Found:
        """Until no fit goes on; with ``enough``, until none would gain so much OFV as far as is known, which
        nothing is asked anew for, or for ``SOON`` steps."""
        for _ in range(STEPS if enough is None else SOON):
            self._hessian = made_positive(self._hessian)
            inverse = inverse_of_saddle(self._hessian)
            step = -(inverse @ self._gradient.T[..., None])[..., 0].T  # (F, B)
            slope = (step * self._gradient).sum(0)
            gain = -0.5 * slope * self._unit
            self._gain = torch.where(self._going, gain, self._gain)
            over = ~(gain >= (LEAST / 1000 if enough is None else enough))
            self._going &= torch.isfinite(gain) & ~(over if enough is not None else torch.zeros_like(over))
            arrived = over & self._fresh & self._going
            left = self._look_around(arrived) if bool(arrived.any()) else arrived
            arrived &= ~left
            left = left | (self._leave_saddles(arrived) if bool(arrived.any()) else arrived)
            self._going &= ~arrived | left
            if not bool(self._going.any()):
                break
            wanted = self._going & ~over
            moved = self._along(_bounded(step), slope, wanted) if bool(wanted.any()) else wanted
            self._going &= moved | ~self._fresh | left
            again = self._going & (over | ~moved)
            if bool(again.any()):
                self._hessian = self._differences(again)
                self._seen = torch.where(again[:, None, None], self._hessian, self._seen)
            self._fresh = again
        x = self._coordinates.trained(self._x, self._everyone)
        return Found(x, self._loss, self._gain, self._carried)

    def _of(self, who: Tensor) -> tuple[Tensor, Evaluation]:
        """Some of the fits by their numbers, all ``who`` (B,) are wanted among them, and few others: an
        evaluation takes as long as its fits are many."""
        if int(who.sum()) < _FEWER * len(self._some[0]) or not bool(who[self._some[0]].sum() == who.sum()):
            fits = who.nonzero()[:, 0]
            self._some = fits, self._evaluated(fits)
        return self._some

    def _at(
        self, x: Tensor, carried: dict[str, Tensor], who: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss, gradient and what is carried of those ``who`` (B,) are wanted; of others as it was last."""
        fits, evaluation = self._of(who)
        own = {name: value[..., fits] for name, value in carried.items()}
        leaf = x[:, fits].detach().requires_grad_()
        trained = self._coordinates.trained(leaf, fits)
        part = evaluation.total(trained.detach(), own, differentiate=True)
        (gradient,) = torch.autograd.grad(trained, leaf, part.gradient)
        there = {
            name: value.index_copy(-1, fits, part.carried[name]) for name, value in self._carried.items()
        }
        loss = self._loss.index_copy(0, fits, part.loss)
        return loss, self._gradient.index_copy(1, fits, gradient[self._free]), there

    def _differences(self, who: Tensor) -> Tensor:
        """The Hessian, (B, F, F), in the numbers that move, of those ``who`` (B,) are wanted; of others as it
        was."""
        columns = []
        for place in self._free.tolist():
            there = self._x.detach().clone()
            there[place] += _DIFFERENCE
            columns.append((self._at(there, self._carried, who)[1] - self._gradient) / _DIFFERENCE)
        hessian = torch.stack(columns).permute(2, 0, 1)
        return torch.where(who[:, None, None], (hessian + hessian.mT) / 2, self._hessian)

    def _look_around(self, arrived: Tensor) -> Tensor:
        """Where modes are found that are better than those that led there, go on from these; who does, (B,).
        Who does so again and again has no optimum: on either side of a place others are the better."""
        fits, evaluation = self._of(arrived)
        own = {name: value[..., fits] for name, value in self._carried.items()}
        x = self._coordinates.trained(self._x[:, fits], fits)
        found = evaluation.searched_widely(x, own)
        wide = {name: value.index_copy(-1, fits, found[name]) for name, value in self._carried.items()}
        loss, gradient, carried = self._at(self._x, wide, arrived)
        other = arrived & ((loss - self._loss).abs() * self._unit > LEAST)
        self._elsewhere += other
        left = other & (self._elsewhere <= self._turns)
        self._gain = torch.where(other & ~left, torch.inf, self._gain)
        self._going &= ~other | left
        self._take(left, self._x, loss, gradient, carried)
        return left

    def _leave_saddles(self, arrived: Tensor) -> Tensor:
        """Where there is a direction along which the objective is lower on either side, go there; who has,
        (B,)."""
        identity = torch.eye(len(self._free), dtype=self._seen.dtype, device=self._seen.device)
        matrix = torch.where(arrived[:, None, None], self._seen, identity)
        value, vector = torch.linalg.eigh(matrix)
        fall = -0.5 * value[:, 0] * _ASIDE**2 * self._unit
        left = torch.zeros_like(arrived)
        if not bool((arrived & (fall > LEAST)).any()):
            return left
        for side in (_ASIDE, -_ASIDE):
            there = self._x.index_add(0, self._free, side * vector[:, :, 0].T)
            loss, gradient, carried = self._at(there, self._carried, arrived)
            lower = (self._loss - loss) * self._unit > LEAST
            taken = arrived & (fall > LEAST) & lower & torch.isfinite(gradient).all(0) & ~left
            self._take(taken, there, loss, gradient, carried)
            left = left | taken
        return left

    def _take(
        self, taken: Tensor, x: Tensor, loss: Tensor, gradient: Tensor, carried: dict[str, Tensor]
    ) -> None:
        """Go where ``x`` is, whose that is ``taken``."""
        self._x = torch.where(taken, x, self._x)
        self._loss = torch.where(taken, loss, self._loss)
        self._gradient = torch.where(taken, gradient, self._gradient)
        self._carried = {
            name: torch.where(taken, value, self._carried[name]) for name, value in carried.items()
        }

    def _along(self, step: Tensor, slope: Tensor, wanted: Tensor) -> Tensor:
        """Go along a step as far as the objective falls; who has moved, (B,)."""
        length = wanted.to(step.dtype)
        waiting, moved = wanted.clone(), torch.zeros_like(wanted)
        full = (step * self._gradient).sum(0)
        slope = torch.where(slope < 0, full, slope)
        for _ in range(_HALVINGS):
            there = self._x.index_add(0, self._free, length * step)
            loss, gradient, carried = self._at(there, self._carried, waiting)
            good = torch.isfinite(loss) & torch.isfinite(gradient).all(0)
            # Where rounding is all that is left of a fall, a gradient that has shrunk tells it.
            rounding = 1e-12 * self._loss.abs()
            lower = loss <= self._loss + _ENOUGH * length * slope + rounding
            taken = waiting & good & lower
            self._update(length * step, gradient, taken)
            self._take(taken, there, loss, gradient, carried)
            moved, waiting = moved | taken, waiting & ~taken
            if not bool(waiting.any()):
                break
            length = torch.where(waiting, length / 2, length)
        return moved

    def _update(self, step: Tensor, gradient: Tensor, taken: Tensor) -> None:
        """The Hessian after a step that is ``taken``."""
        s, y = step.T[..., None], (gradient - self._gradient).T[..., None]  # (B, F, 1)
        hs = self._hessian @ s
        curve, shown = (s * hs).sum((1, 2)), (s * y).sum((1, 2))
        damped = torch.where(shown < 0.2 * curve, 0.8 * curve / (curve - shown), 1.0)[:, None, None]
        y = damped * y + (1 - damped) * hs
        new = (
            self._hessian - hs @ hs.mT / curve[:, None, None] + y @ y.mT / (s * y).sum((1, 2))[:, None, None]
        )
        sound = torch.isfinite(new).all(-1).all(-1) & (curve > 0) & taken
        self._hessian = torch.where(sound[:, None, None], new, self._hessian)


def _bounded(step: Tensor) -> Tensor:
    """No longer than 1, as the sum of what each number moves by."""
    return step / step.abs().sum(0).clamp(min=1.0)
