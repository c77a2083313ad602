"""The tail of importance weights: a generalised Pareto distribution."""

import math

import torch
from torch import Tensor

_PRIOR_SCALE, _PRIOR_SIZE = 3.0, 10.0


def tail_index(log_weight: Tensor) -> Tensor:
    """k of the largest of S weights (Vehtari et al. 2024, JMLR 25:72), from their logarithms (S, ...): (...).

    Above 0.7 the mean of the weights is not to be trusted. The largest are min(S / 5, 3 sqrt(S)) of them, and
    k is estimated as by Zhang and Stephens (2009, Technometrics 51:316), drawn a little towards 0.5; -inf
    where they are all equal.
    """
    count = len(log_weight)
    size = math.ceil(min(0.2 * count, 3 * math.sqrt(count)))
    if size < 5:
        raise ValueError(f"{count} weights are too few to have a tail")
    largest = (log_weight - log_weight.amax(0)).topk(size + 1, 0).values
    excess = (largest[:-1].exp() - largest[-1].exp()).flip(0).reshape(size, -1)  # rising
    flat = excess[-1] <= 0
    excess = torch.where(flat, 1.0, excess)
    number = 30 + int(math.sqrt(size))
    place = torch.arange(1, number + 1, dtype=excess.dtype, device=excess.device)[:, None]
    quartile = excess[int(size / 4 + 0.5) - 1].clamp(min=torch.finfo(excess.dtype).tiny)
    theta = (1 - torch.sqrt(number / (place - 0.5))) / (_PRIOR_SCALE * quartile) + 1 / excess[-1]
    k = torch.stack([torch.log1p(-row * excess).mean(0) for row in theta])
    likelihood = size * (torch.log(-theta / k) - k - 1)
    mean = (torch.softmax(likelihood, 0) * theta).sum(0)
    found = torch.log1p(-mean * excess).mean(0)
    shrunk = (size * found + 0.5 * _PRIOR_SIZE) / (size + _PRIOR_SIZE)
    return torch.where(flat, -torch.inf, shrunk).view(log_weight.shape[1:])
