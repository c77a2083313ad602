"""What an OFV costs in parameters: AIC, BICc and likelihood-ratio tests."""

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import Model, Values
from medcm_cli.numerics.streams import Stream


class Counts(NamedTuple):
    """Estimated parameters of a fit: ``random``, those of typical parameters that vary between subjects, and
    of Omega; ``fixed``, all others. ``weights``: how many of them are weights of a network, whose number is
    no honest one of parameters; ``variances``: how many omegas there are."""

    random: int
    fixed: int
    weights: int
    variances: int

    @property
    def all(self) -> int:
        """p."""
        return self.random + self.fixed


def count(model: Model, values: Values, population: Population) -> Counts:
    """Of estimates ``values`` with Omega and sigma among them, as the model lays them out.

    A value of the network belongs to random effects where a typical parameter that has one moves with it, at
    the covariates of ``population``; sigma does where the residual error has one.
    """
    effects = model.random_effects
    of_effects = {n for group in model.groups for n in group.init([Stream(0, 1, 1)], torch.float64)}
    if effects.place_of_sigma is not None:
        of_effects.add("sigma")
    own = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    with torch.enable_grad():
        zeta = model.typical(own, population)
        varies = dict.fromkeys(name for group in model.groups for name in group.parameters)
        varying = sum((zeta[name].sum() for name in varies), torch.zeros(()))
    slopes: tuple[Tensor, ...] = tuple(map(torch.zeros_like, own.values()))
    if varying.requires_grad:
        slopes = torch.autograd.grad(varying, list(own.values()), allow_unused=True, materialize_grads=True)
    random = fixed = weights = 0
    for (name, value), slope in zip(own.items(), slopes, strict=True):
        size = value[..., 0].numel()
        own_size = size if name in of_effects else int((slope != 0).reshape(size, -1).any(1).sum())
        random, fixed = random + own_size, fixed + size - own_size
        named = name in of_effects or name == "sigma" or name.startswith("global.")
        weights += 0 if named else size
    variances = sum(len(values[group.of]) for group in model.groups if group.of in values)
    return Counts(random, fixed, weights, variances)


def aic(ofv: Tensor, counts: Counts) -> Tensor:
    """OFV + 2 p, (B,)."""
    return ofv + 2 * counts.all


def bicc(ofv: Tensor, counts: Counts, population: Population) -> Tensor:
    """OFV + random log N + fixed log n, of N subjects and n observations (Delattre, Lavielle and Poursat
    2014, Electron J Stat 8:456): (B,)."""
    subjects, observations = population.present.sum(0), population.observation_count
    return ofv + counts.random * torch.log(subjects) + counts.fixed * torch.log(observations)


def likelihood_ratio(difference: float, more: int, variances: int) -> float:
    """p of an OFV that is lower by ``difference`` with so many ``more`` parameters, of which some are
    ``variances`` that are 0 in the smaller model, and so on their boundary there.

    Of one variance, alone or with its covariances, half chi-squared of ``more`` - 1 and half of ``more``
    degrees of freedom (Stram and Lee 1994, Biometrics 50:1171); of several the binomial mixture that holds
    where these are independent, with the covariances that come with them counted as other parameters.
    """
    ends = [
        (math.comb(variances, number) / 2**variances, more - variances + number)
        for number in range(variances + 1)
    ]
    lower = max(difference, 0.0)
    return float(sum(weight * (stats.chi2.sf(lower, df) if df else lower <= 0) for weight, df in ends))
