"""When a fit has converged, by the history of its own objective: it then stands still.

An objective is looked at in windows of epochs, by its median there, which a draw that goes astray does not
move. Where that no longer falls, steps become shorter; where it does not fall with the shortest either, the
fit has converged. Of an objective without noise, "falls" is by more than a small part of a log likelihood;
of one with noise, by more than the medians' own errors too.

At the end of each window the optimiser's memory of gradients is compared with those of the window. Where
huge ones in the first epochs have made its steps next to nothing, it is taken from the window.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SHORTER = 0.2  # what steps are multiplied by
SHORTEST = 0.01  # of the learning rate: no steps are shorter than about that
_NEAREST = 2  # of a course: nothing is left but to take the mean
_PATIENCE = 3  # windows in which an objective with noise has not fallen
_FALL = 0.02  # of a log likelihood, in a window
_BRIEF = 0.5  # likewise, where Newton's method goes on from there, ...
_MOST_BRIEF = 2  # ... after so many windows at most, since it takes far fewer steps
_RELATIVE = 1e-4  # of an objective that is no log likelihood
_ERRORS = 2.0  # standard errors of the difference of two medians
_STALE = 25.0  # times the window's squared gradients
_CLIP = 10.0  # times the root of the usual squared gradient: none is longer
_MEMORY = 0.9  # of what is usual, in an epoch
_ASTRAY = 10  # epochs on end whose objective makes no sense, after which a fit with noise has failed
_OF_LOGS = 3.56  # E g^2 / exp(E log g^2) of a normal g


class Moments(NamedTuple):
    """What an optimiser remembers of gradients, the mean of them and of their squares, (R, B') each, and
    where these are among all: rows (R,) and fits (B',). Of squares, ``share`` is what it has seen so far of
    all that it would take the mean of (Adam's bias correction)."""

    first: Tensor
    square: Tensor
    rows: Tensor
    fits: Tensor
    share: float


@dataclass(frozen=True)
class Rule:
    """What a history is judged by: whether an objective has ``noise``; its ``scale`` in log likelihoods, None
    of one that is none; whether the fit is ``brief``, since it is polished afterwards; and how ``near`` it
    begins (``Course``), from where an objective with noise needs short steps only."""

    noise: bool
    scale: float | None
    brief: bool
    near: int = 0

    @property
    def window(self) -> int:
        """Its length in epochs."""
        return 50 if self.noise else 25

    @property
    def shortest(self) -> float:
        """Of the learning rate, about its shortest steps: those it begins with at an optimum."""
        return SHORTEST if self.near < _NEAREST else self.longest

    @property
    def longest(self) -> float:
        """Likewise those that it begins with."""
        return SHORTER**self.near if self.noise else 1.0

    @property
    def words(self) -> str:
        """The rule in a sentence, as records have it."""
        least = f"{_FALL:g} log likelihoods" if self.scale else f"{_RELATIVE:g} of itself"
        if self.noise:
            least += f" and {_ERRORS:g} standard errors"
        windows = f"{_PATIENCE} windows" if self.noise else "a window"
        return (
            f"the median objective of {windows} of {self.window} epochs fell by less than {least}, with "
            f"steps of at most {self.shortest:g} times the learning rate"
        )


class Watch:
    """The histories of a batch of B fits, P numbers each. ``rate`` (B,): what steps are multiplied by;
    ``done`` (B,): who has converged, and at which epoch ``ended`` (B,), 0 where not; ``mean`` (P, B): of the
    values since steps were shortened, or the objective last fell; of those that are ``moved``, (P,), by steps
    of the objective's own, since steps were first shortened, or it last fell."""

    def __init__(self, rule: Rule, values: Tensor, moved: Tensor | None = None) -> None:
        count = values.shape[-1]
        self._moved = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        self._moved = (self._moved if moved is None else moved)[:, None]
        self.rule = rule
        flat = values.detach()
        nothing = flat.new_zeros(count)
        self._first = rule.longest
        self.rate = nothing + self._first
        self.done = torch.zeros_like(nothing, dtype=torch.bool)
        self.ended = torch.zeros_like(nothing, dtype=torch.long)
        self.mean, self._count = torch.zeros_like(flat), torch.zeros_like(flat)
        self._losses = flat.new_zeros(rule.window, count)
        self._logs, self._usual = torch.zeros_like(flat), torch.full_like(flat, math.nan)
        self._astray = torch.zeros_like(self.ended)
        self._filled = 0
        # Of the window that later ones are compared with: its median and that one's error.
        self._level, self._error = nothing + math.inf, nothing.clone()
        self._still = nothing.clone()

    def memory(self) -> dict[str, Tensor]:
        """Everything that later epochs depend on."""
        names = (
            "rate",
            "done",
            "ended",
            "mean",
            "_count",
            "_losses",
            "_logs",
            "_usual",
            "_astray",
            "_level",
            "_error",
        )
        found = {name: getattr(self, name) for name in (*names, "_still")}
        return {**found, "filled": torch.tensor(self._filled, device="cpu")}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Go on from there."""
        self._filled = int(memory["filled"])
        for name, value in memory.items():
            if name != "filled":
                getattr(self, name).copy_(value)

    def clipped(self, gradient: Tensor, rows: slice) -> Tensor:
        """Gradients (P, B), of which some ``rows`` are no longer than those of the last epochs, or
        minibatches, allow, which they are then among."""
        found, logs = gradient[rows], _log_square(gradient[rows])
        usual = torch.where(torch.isnan(self._usual[rows]), logs, self._usual[rows])
        most = _CLIP * (0.5 * usual + 0.5 * math.log(_OF_LOGS)).exp()
        self._usual[rows] = usual.lerp(torch.where(torch.isfinite(logs), logs, usual), 1 - _MEMORY)
        clipped = gradient.clone()
        clipped[rows] = torch.nan_to_num(torch.minimum(torch.maximum(found, -most), most))
        return clipped

    def lost(self, unsound: Tensor) -> Tensor:
        """Who has failed, (B,), of those whose objective or gradient is ``unsound`` in this epoch: with noise
        a single draw may be so."""
        if not self.rule.noise:
            return unsound
        self._astray = torch.where(unsound, self._astray + 1, 0)
        return self._astray >= _ASTRAY

    @torch.no_grad()
    def see(self, loss: Tensor, gradient: Tensor, values: Tensor) -> bool:
        """An epoch: its loss (B,) and gradient, and the values (P, B) after its step; whether a window ends
        with it."""
        self._losses[self._filled] = torch.nan_to_num(loss, nan=math.inf, posinf=math.inf)
        self._logs += torch.nan_to_num(_log_square(gradient))
        self._count += 1
        # Of who has converged the mean is what it is, however long others take.
        self.mean += torch.where(self.done, 0, (values - self.mean) / self._count)
        self._filled += 1
        return self._filled == self.rule.window

    @torch.no_grad()
    def judge(self, epoch: int, moments: Sequence[Moments], shared: Tensor) -> None:
        """The end of a window: who has converged, and whose steps become shorter.

        :param moments: of each optimiser that has such a memory, which is taken from the window, in place,
            where it is stale or steps become shorter. :param shared: (P,), what subjects share.
        """
        window = self._filled
        recent = _OF_LOGS * torch.exp(self._logs / window)
        stale = self._stale(moments, recent, shared)
        median = self._losses.median(0).values
        spread = 1.4826 * (self._losses - median).abs().median(0).values
        error = 1.2533 * spread / math.sqrt(window) if self.rule.noise else torch.zeros_like(median)
        fell = self._level - median > self._least(median, error)
        self._still = torch.where(fell | stale, 0, self._still + 1)
        again = stale | (fell & torch.isfinite(self._level)) | (self.rate >= self._first)
        over = self._still >= (_PATIENCE if self.rule.noise else 1)
        if (
            self.rule.brief
            and (not self.rule.noise or self.rule.near >= _NEAREST)
            and epoch >= _MOST_BRIEF * self.rule.window
        ):
            over = torch.ones_like(over)
        shortest = self.rate * SHORTER < self.rule.shortest * SHORTER**0.5
        ended = over & (shortest if not self.rule.brief else torch.ones_like(over)) & ~self.done
        self.done |= ended
        self.ended.copy_(torch.where(ended, epoch, self.ended))
        shorter = over & ~self.done
        self.rate = torch.where(shorter, self.rate * SHORTER, self.rate)
        new = fell | stale | shorter
        self._level = torch.where(shorter, math.inf, torch.where(new, median, self._level))
        self._error = torch.where(new, error, self._error)
        self._still = torch.where(shorter, 0, self._still)
        self._count = torch.where(torch.where(self._moved, again, new) & ~self.done, 0, self._count)
        self._logs = torch.zeros_like(self._logs)
        self._filled = 0
        fresh = stale | shorter
        for first, square, rows, fits, share in moments:
            square.copy_(torch.where(fresh[fits], share * recent[rows[:, None], fits], square))
            first.copy_(torch.where(fresh[fits], 0, first))

    def _least(self, median: Tensor, error: Tensor) -> Tensor:
        """By how much an objective has to fall, (B,)."""
        if self.rule.scale is None:
            least = _RELATIVE * median.abs()
        else:
            least = torch.full_like(median, self.rule.scale * (_BRIEF if self.rule.brief else _FALL))
        return least + _ERRORS * torch.hypot(error, self._error)

    def _stale(self, moments: Sequence[Moments], recent: Tensor, shared: Tensor) -> Tensor:
        """Whose optimiser remembers, of most of what subjects share, far longer gradients, (B,)."""
        ratio = torch.full_like(recent, math.nan)
        for _, square, rows, fits, share in moments:
            ratio[rows[:, None], fits] = square / (share * recent[rows[:, None], fits])
        return ratio[shared].nanmedian(0).values > _STALE


def _log_square(gradient: Tensor) -> Tensor:
    """log g^2 without overflow, of 0 that of the least number."""
    return 2 * torch.log(gradient.abs().clamp(min=torch.finfo(gradient.dtype).tiny))
