"""Doses cut at the observations: what each of them adds to what is there at the next one.

Between two observations a superposition is a sum; from one to the next it only decays. A subject with E doses
and T observations thus costs about E + T, however many of each, and in no more than T steps one after
another.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Pieces(NamedTuple):
    """Pieces P of doses, between two observations each: ``width`` (P, 1, N, B), how long it is given, 0 at
    once; ``inflow`` (P, 1, N, B), the amount given in it, 0 for padding; ``until`` (P, 1, N, B), time from
    its end to the observation ``of`` (P, 1, N, B) that is the next; ``gap`` (T, 1, N, B), time since the
    observation before, 0 for the first."""

    width: Tensor
    inflow: Tensor
    until: Tensor
    of: Tensor
    gap: Tensor


def pieces_of(time: Tensor, start: Tensor, duration: Tensor, amount: Tensor) -> Pieces:
    """Of observation times (T, 1, N, B), in order, and doses (E, 1, N, B), both on the clock. An observation
    sees what is given at its very time, and what comes after the last does not matter."""
    doses, _, subjects, fits = start.shape
    observed, begin, length, dose = (_by_subject(values) for values in (time, start, duration, amount))
    end = begin + length
    # Of an infusion nothing has come when it begins; a dose given at once is there.
    later = torch.searchsorted(observed, begin, right=True)
    first = torch.where(length > 0, later, torch.searchsorted(observed, begin))
    last = torch.searchsorted(observed, end).clamp(max=len(time) - 1)
    count = torch.where(dose > 0, (last - first + 1).clamp(min=0), 0)
    owner = torch.repeat_interleave(torch.arange(count.numel(), device=count.device), count.flatten())
    number = _within(count.flatten(), owner)
    subject = owner // doses
    of = first.flatten()[owner] + number
    here, one, other, share = (values.flatten()[owner] for values in (length, begin, end, dose))
    at = observed[subject, of]
    before = torch.where(number > 0, observed[subject, (of - 1).clamp(min=0)], one)
    left, right = torch.maximum(one, before), torch.minimum(other, at)
    width = right - left
    inflow = share * torch.where(here > 0, width / torch.where(here > 0, here, 1), 1)
    total = count.sum(1)
    place = _within(total, subject)

    def padded(values: Tensor) -> Tensor:
        room = values.new_zeros((len(total), max(1, int(total.max()))))
        room[subject, place] = values
        return room.view(subjects, fits, 1, -1).permute(3, 2, 0, 1).contiguous()

    gap = torch.diff(time, dim=0, prepend=time[:1])
    return Pieces(padded(width), padded(inflow), padded(at - right), padded(of), gap)


def _by_subject(values: Tensor) -> Tensor:
    """(X, 1, N, B) -> (N B, X)."""
    return values[:, 0].flatten(1).T.contiguous()


def _within(counts: Tensor, owner: Tensor) -> Tensor:
    """The number of each row among those of its owner, who have ``counts`` each, in order."""
    return torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
