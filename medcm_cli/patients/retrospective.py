"""How good individual predictions would have been: each subject's later levels predicted from the first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcm_cli.data import EventTable
from medcm_cli.data.edit import part
from medcm_cli.errors import InputError
from medcm_cli.patients.measures import BOUNDS, pooled_quantiles, pooled_sd
from medcm_cli.patients.results import DISCLAIMER
from medcm_cli.patients.study import Patients, Study, draws_of
from medcm_cli.posteriors.individual import posterior, residual_noise
from medcm_cli.runs import Units
from medcm_cli.study.restore import restore

_DRAWS = 1000
_CHUNK = 200_000  # patients' draws at once


@dataclass(frozen=True)
class Check:
    """``levels``: a row per subject, number of levels used and later level, in the reported unit:
    ``typical``, bounds and ``sd`` of the level as it would be measured, and ``observed``. ``summary``: a row
    per number used: ``subjects``, ``levels``, ``rmse`` and ``bias`` (predicted less observed) of the median,
    ``rmse_expected`` that the predictions' own sds imply, ``rmse_typical`` of typical predictions of the
    same levels, ``coverage_50`` and ``coverage_90``; ``rmse_last`` is that of each subject's last level where
    it has more than any number used, so that the same levels are compared. ``note`` says which fits predicted
    whom."""

    label: str
    units: Units
    summary: pd.DataFrame
    levels: pd.DataFrame
    note: str
    disclaimer: str = DISCLAIMER

    @property
    def unit(self) -> str:
        """Of levels."""
        return self.units.reported


def check(
    study: Study,
    patients: Patients | None = None,
    uses: Sequence[int] = (0, 1, 2, 3),
    method: str = "importance",
    draws: int = _DRAWS,
    progress: Callable[[int], None] | None = None,
) -> Check:
    """Predict what comes after each subject's first 0, 1, 2, 3 levels.

    :param patients: an event table in the format of the study's data; None for those data themselves, of
        which every subject is predicted by the fits that were not trained on it.
    :raises InputError: a fault in the file, or nobody has a level after the first ones.
    """
    if not uses or min(uses) < 0:
        raise InputError("uses: expected numbers of levels, from 0")
    draws = draws_of(draws, 1)
    if patients is None:
        events, keep, note = _training_data(study)
    else:
        events, keep = study.read(patients, until=-np.inf), None
        note = "every fit predicts every subject"
    fits = len(study.fits.records)
    each = -(-draws // fits)
    size = max(1, _CHUNK // (each * fits))
    frames = []
    for start in range(0, len(events.ids), size):
        some = part(events, np.arange(start, min(start + size, len(events.ids))))
        if (~some.is_dose).any():
            kept = None if keep is None else keep[start : start + size]
            frames += [_predicted(study, some, number, kept, method, each) for number in sorted(set(uses))]
        if progress:
            progress(min(start + size, len(events.ids)))
    levels = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if levels.empty:
        raise InputError(f"{events.source}: nobody has a level after the first {min(uses)}")
    if study.units.endpoints:
        note += f"; later levels are those of {study.units.endpoints[0][0]}"
    return Check(study.label, study.units, summarise(levels), levels, note)


def _training_data(study: Study) -> tuple[EventTable, Tensor | None, str]:
    """The study's subjects, which fits count for whom, (N, B), and the words for it."""
    (restored,) = restore(list(zip(study.fits.folders, study.fits.records, strict=True)), study.fits.trust)
    problem, events = restored.problem, restored.problem.events
    seen = np.zeros((len(events.ids), len(restored.records)), dtype=bool)
    for fit, record in enumerate(restored.records):
        seen[problem.folds[record.address.fold].train, fit] = True
    others = ~seen.all(1)
    if not others.any():
        return events, None, "every fit was trained on every subject: it predicts what it has seen"
    if others.all():
        return (
            events,
            torch.from_numpy(~seen),
            "a subject is predicted by the fits that were not trained on it",
        )
    numbers = np.flatnonzero(others)
    note = (
        "a subject is predicted by the fits that were not trained on it; left out are "
        f"{int((~others).sum())} that all of them were"
    )
    return part(events, numbers), torch.from_numpy(~seen[numbers]), note


@torch.no_grad()
def _predicted(
    study: Study, events: EventTable, used: int, keep: Tensor | None, method: str, draws: int
) -> pd.DataFrame:
    """What follows the first ``used`` levels of subjects who have more."""
    model, values, streams = study.fits.model, study.fits.estimates, study.fits.streams
    population = study.population(events)
    rank = torch.arange(len(population.observed)).view(-1, 1, 1, 1)
    first = replace(population, observed=population.observed * (rank < used), ragged=True)
    with torch.enable_grad():
        known = posterior(model, values, first, streams, method, draws)
    level = study.levels(events, known.draws)
    noise = residual_noise(streams, draws, torch.float32)
    own = model.of_subjects(study.single, [eta.to(level) for eta in known.draws])
    measured = model.error.draw(own, level, noise, study.scale).clamp(min=0)
    bounds = pooled_quantiles(measured, keep)  # (5, T, N)
    sd = pooled_sd(measured, keep)
    of_fits = study.levels(events, None)[:, 0]
    if keep is not None:
        of_fits = torch.where(keep, of_fits, torch.nan)
    typical = np.asarray(of_fits.nanquantile(0.5, dim=-1).numpy())
    future = ((population.observed > 0) & (rank >= used))[:, 0, :, 0]
    if population.endpoint is not None:  # of levels, the first endpoint
        future &= population.endpoint[:, 0, :, 0] == 0
    if population.censored is not None:
        future &= population.censored[:, 0, :, 0] == 0
    time, number = torch.nonzero(future, as_tuple=True)
    observations = population.observed.sum((0, 1))[:, 0]
    return pd.DataFrame(
        {
            "patient": np.asarray(events.ids)[number.numpy()],
            "used": used,
            "time": population.time[time, 0, number, 0].numpy(),
            "observed": population.dv[time, 0, number, 0].numpy() * study.scale,
            "typical": typical[time, number],
            **{name: bound[time, number].numpy() for name, bound in zip(BOUNDS, bounds, strict=True)},
            "sd": sd[time, number].numpy(),
            "last": (time + 1 == observations[number]).numpy(),
            "levels_of_patient": observations[number].long().numpy(),
        }
    )


def summarise(levels: pd.DataFrame) -> pd.DataFrame:
    """The ``summary`` of a ``Check`` from its ``levels``."""
    error = levels["median"] - levels["observed"]
    inside = {
        f"coverage_{percent}": (levels["observed"] >= levels[f"lower_{percent}"])
        & (levels["observed"] <= levels[f"upper_{percent}"])
        for percent in (50, 90)
    }
    most = int(levels["used"].max())
    comparable = levels["last"] & (levels["levels_of_patient"] > most)
    typical = levels["typical"] - levels["observed"]
    parts = pd.DataFrame(
        {
            "rmse": error**2,
            "bias": error,
            "rmse_expected": levels["sd"] ** 2,
            "rmse_typical": typical**2,
            **inside,
            "rmse_last": (error**2).where(comparable),
        }
    )
    grouped = levels.groupby("used")
    summary = parts.groupby(levels["used"]).mean()
    for name in ("rmse", "rmse_expected", "rmse_typical", "rmse_last"):
        summary[name] = np.sqrt(summary[name])
    summary.insert(0, "levels", grouped.size())
    summary.insert(0, "subjects", grouped["patient"].nunique())
    return summary.reset_index()
