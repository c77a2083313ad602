"""Where a prediction is not to be trusted: levels that do not fit the patient, posteriors that are not well
known, and fits that are not as the others."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from scipy.special import gammaincinv
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import Model, Values
from medcm_cli.numerics.triangular import Lower, multiply_lower, solve_lower, total
from medcm_cli.patients.notes import Note, note_table
from medcm_cli.posteriors.individual import Posterior, misfit
from medcm_cli.runs import Units
from medcm_cli.study.restore import Ensemble

_FACTOR = 10.0  # beyond the plausible: another unit, rather than an unusual patient
_MISFIT, _EFFECTIVE = 5.0, 0.1
_SURPRISING = 1e-4  # of a random effect so far from zero
_DRAWS, _EACH = 64, 8  # of plausible patients, at least; of each fit


@torch.no_grad()
def surprises(
    fits: Ensemble, population: Population, posterior: Posterior, ids: Sequence[str], units: Units
) -> pd.DataFrame:
    """Levels far from anything that the model expects of the patient, random effects far from zero, and
    posteriors that are not well known.

    A level is implausible where it is ten times the largest, or a tenth of the least, of ``_DRAWS`` patients
    of the same covariates, four residual sd further away. A patient is surprising where eta' Omega^-1 eta at
    the mode, on average over fits, is what one in 10 000 has, or where a level lies ``_MISFIT`` residual sds
    from what it is there, in half of the fits. Of importance sampling, less than ``_EFFECTIVE`` of the
    proposals, likewise, is too little.

    :param units: of the file. :returns: a table of notes (``medcm_cli.patients.notes``).
    """
    model, values = fits.model, fits.estimates
    highest, lowest = _plausible(model, values, population, posterior.mode)
    dv, time = population.dv[:, 0, :, 0], population.time[:, 0, :, 0]
    known = population.observed[:, 0, :, 0] > 0
    if population.censored is not None:
        known = known & (population.censored[:, 0, :, 0] == 0)
    above, below = known & (dv > _FACTOR * highest), known & (dv > 0) & (dv * _FACTOR < lowest)
    wrong = (above | below).any(0)
    notes: list[Note] = []
    for number in torch.nonzero(wrong).flatten().tolist():
        row = int(torch.nonzero((above | below)[:, number])[0])
        high = bool(above[row, number])
        ratio, word = (dv / highest, "times the highest") if high else (dv / lowest, "of the lowest")
        words = (
            f"the level {float(dv[row, number]):g} at {float(time[row, number]):g} {units.time} "
            f"is {float(ratio[row, number]):.2g} {word} plausible; the file's levels are to be in "
            f"{units.level}, and the dose before it has to be there"
        )
        notes.append((ids[number], "level", words))
    notes += _far_from_zero(model.prior_cholesky(values, population), posterior.mode, ids, wrong)
    off = misfit(model, values, population, posterior.mode)[:, 0].quantile(0.5, dim=-1)  # (T, N)
    notes += _far_from_the_curve(off, dv, time, units, ids, wrong)
    notes += _rough(posterior.effective.quantile(0.5, dim=-1), ids, wrong)
    return note_table(notes)


def _plausible(
    model: Model, values: Values, population: Population, mode: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The highest and the lowest level that may be measured in a patient of these covariates, (T, N) each."""
    count = max(_EACH, _DRAWS // mode[0].shape[-1])
    points = torch.quasirandom.SobolEngine(len(mode), scramble=True, seed=1).draw(count, dtype=mode[0].dtype)
    normal = torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9)).T[:, :, None, None]
    eta = multiply_lower(model.prior_cholesky(values, population), list(normal.unbind(0)))
    level = model.predict(model.typical(values, population), population, eta)
    error, own = model.error.of_endpoint(population.endpoint), model.of_subjects(values, eta)
    high, low = (error.draw(own, level, far) for far in (4.0, -4.0))
    return high.amax((1, 3)), low.amin((1, 3))


def _far_from_zero(omega: Lower, mode: Sequence[Tensor], ids: Sequence[str], wrong: Tensor) -> list[Note]:
    """Of patients whose random effects are far from zero; not of those who have a ``wrong`` (N,) level."""
    distance = total([x * x for x in solve_lower(omega, list(mode))])[0].mean(-1)
    limit = 2 * float(gammaincinv(len(mode) / 2, 1 - _SURPRISING))
    return [
        (
            ids[number],
            "patient",
            f"the levels ask for random effects {float(distance[number]) ** 0.5:.1f} sd from the typical "
            "patient, further than one in 10 000: check levels, doses and their times",
        )
        for number in torch.nonzero((distance > limit) & ~wrong).flatten().tolist()
    ]


def _far_from_the_curve(
    off: Tensor, dv: Tensor, time: Tensor, units: Units, ids: Sequence[str], wrong: Tensor
) -> list[Note]:
    """Of patients with a level, of ``dv`` (T, N), that lies ``off`` (T, N) residual sd from the curve."""
    notes: list[Note] = []
    for number in torch.nonzero((off.amax(0) > _MISFIT) & ~wrong).flatten().tolist():
        row = int(off[:, number].argmax())
        words = (
            f"the level {float(dv[row, number]):g} {units.level} at {float(time[row, number]):g} "
            f"{units.time} is {float(off[row, number]):.0f} residual sd from what the most likely "
            "parameters give: check levels, doses and their times"
        )
        notes.append((ids[number], "level", words))
    return notes


def _rough(effective: Tensor, ids: Sequence[str], wrong: Tensor) -> list[Note]:
    """Of patients of whose proposals few count, ``effective`` (N,) of them."""
    return [
        (
            ids[number],
            "posterior",
            f"only {100 * float(effective[number]):.2g} % of the draws of importance sampling count, and "
            "intervals are rough: compare another method",
        )
        for number in torch.nonzero((effective < _EFFECTIVE) & ~wrong).flatten().tolist()
    ]


def odd_fits(typical: Mapping[str, Tensor]) -> pd.DataFrame:
    """Fits whose typical parameters are ten times the ensemble's median, or a tenth of it. They count
    like the others.

    :param typical: parameter -> (1, N, B). :returns: a table of notes (``medcm_cli.patients.notes``).
    """
    notes: list[Note] = []
    for name, values in typical.items():
        ratio = (values[0] / values[0].quantile(0.5, dim=-1, keepdim=True)).quantile(0.5, dim=0)
        number = int(((ratio > _FACTOR) | (ratio < 1 / _FACTOR)).sum())
        if number:
            words = f"{number} of {len(ratio)} fits have a {name} more than {_FACTOR:g} times off the median"
            notes.append(("", "fits", f"{words} of all; they may not have converged, and widen the bands"))
    return note_table(notes)
