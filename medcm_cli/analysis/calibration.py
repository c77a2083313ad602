"""Whether posteriors of random effects are right: simulation-based calibration, given the population."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.analysis.diagnostics import simulated
from medcm_cli.data import Population
from medcm_cli.data.sheet import IntArray
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.numerics.streams import Noise, Stream
from medcm_cli.objectives import Objective, State
from medcm_cli.objectives.penalised import Penalised
from medcm_cli.objectives.vi import Vi
from medcm_cli.posteriors.individual import posterior
from medcm_cli.study.restore import Restored

BINS = 20
DRAWS = 10 * BINS - 1  # of each posterior: a rank is one of a multiple of the bins
_EPOCHS, _RATE = 1000, 0.05  # of a q, with Adam and a rate that falls to 0


@dataclass(frozen=True)
class Ranks:
    """Of each random effect in ``names``, how many of ``DRAWS`` draws of its posterior lie below its true
    value: (K, M), of M subjects of all data sets. ``posterior``: what these are draws of."""

    names: tuple[str, ...]
    ranks: IntArray
    posterior: str


def calibrate(restored: Restored, sets: int) -> Ranks:
    """See ``rank``, of a single fit, B = 1, as its own population."""
    values, stream = dict(restored.estimates), restored.streams[0]
    return rank(
        restored.objective,
        restored.problem.model,
        values,
        restored.population,
        replace(stream, attempt=0),
        sets,
    )


def rank(
    objective: Objective, model: Model, values: Values, population: Population, stream: Stream, sets: int
) -> Ranks:
    """Talts, Betancourt, Simpson, Vehtari and Gelman 2018 (arXiv:1804.06788), given the population: true
    random effects are drawn from N(0, Omega), data sets of the subjects from the model, and of each subject a
    posterior is found as the objective finds it, with everything else known. Where posteriors are right,
    ranks are uniform.

    ``vi`` and its like train their q anew; others have the Gaussian at the mode (Laplace).

    :param population: with one fit, B = 1, as ``values``; limits of it do not count.
    :param sets: how many data sets, which are a batch.
    :raises InputError: an objective without random effects.
    """
    if not objective.mixed:
        raise InputError("no random effects, so no posterior of them")
    population = replace(population, censored=None, above=None)
    eta, drawn = simulated(model, values, population, stream, sets)  # (S, N, 1), (T, S, N, 1)
    # Sets become fits: everything else has a fit dimension of 1, which stands for all.
    several = replace(population, dv=drawn.permute(0, 3, 2, 1))
    streams = [replace(stream, attempt=number + 1) for number in range(sets)]
    if isinstance(objective, Penalised):  # whose priors are of the population alone
        objective = objective.objective
    if isinstance(objective, Vi):
        own = replace(objective, population="point")
        draws, what = own_draws(own, model, values, several, streams), f"q, {own.family}"
    else:
        found = posterior(model, values, several, streams, "laplace", DRAWS)
        draws, what = torch.stack(found.draws), "Laplace's"
    truth = torch.stack(eta).permute(0, 3, 2, 1)  # (K, 1, N, S)
    ranks = (draws < truth).sum(1).flatten(1)
    names = model.random_effects.names  # and not the kappas of occasions
    return Ranks(names, ranks[: len(names)].numpy(), what)


def own_draws(
    objective: Vi, model: Model, values: Values, population: Population, streams: Sequence[Stream]
) -> Tensor:
    """Draws (K, ``DRAWS``, N, B) of q's that are trained while all else has its ``values``."""
    dtype, fits, subjects = population.dv.dtype, len(streams), population.shape[1]
    begun = objective.init(model, population, streams, dtype)
    q = {name: begun.trained[name].requires_grad_() for name in begun.per_subject if name in begun.trained}
    known = {name: value for name, value in values.items() if name not in q}
    noise = Noise(streams, objective.noise_shape(model, population), [subjects] * fits, dtype)
    optimizer = torch.optim.Adam(list(q.values()), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    for _ in range(_EPOCHS):
        optimizer.zero_grad()
        loss: Any = objective.loss(model, population, State(known | q), noise.draw()).sum()
        loss.backward()
        optimizer.step()
        schedule.step()
    return objective.draw(model, State({name: value.detach() for name, value in q.items()}), streams, DRAWS)


def table(found: Ranks) -> pd.DataFrame:
    """A row per random effect: ``parameter``; ``posterior``; how many ``ranks``; their ``mean`` as a part of
    1, 0.5 where posteriors are not biased; ``inside_50`` and ``inside_90``, how often the truth lies in these
    intervals; ``p`` of uniform ranks by chi-squared with ``BINS`` bins."""
    rows = []
    for name, ranks in zip(found.names, found.ranks, strict=True):
        counts = np.bincount(ranks * BINS // (DRAWS + 1), minlength=BINS)
        share = (ranks + 0.5) / (DRAWS + 1)
        rows.append(
            {
                "parameter": name,
                "posterior": found.posterior,
                "ranks": len(ranks),
                "mean": share.mean(),
                "inside_50": (abs(share - 0.5) < 0.25).mean(),
                "inside_90": (abs(share - 0.5) < 0.45).mean(),
                "p": float(stats.chisquare(counts).pvalue),
            }
        )
    return pd.DataFrame(rows)
