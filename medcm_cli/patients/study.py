"""A fitted study, loaded to be used on patients that it has not seen."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from medcm_cli.checks import whole
from medcm_cli.data import EventTable, Population
from medcm_cli.data.dialect import Dialect
from medcm_cli.data.edit import dose_corners
from medcm_cli.data.sheet import FloatArray
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.units import THRESHOLDS
from medcm_cli.model import Values
from medcm_cli.patients.notes import note_table
from medcm_cli.patients.ranges import Ranges, ranges_of
from medcm_cli.pk import check_schedule
from medcm_cli.posteriors.individual import Posterior, posterior
from medcm_cli.runs import ALIKE, Record, Units, frames
from medcm_cli.runs.description import converged
from medcm_cli.runs.sweeps import finished, grouped
from medcm_cli.runs.walk import Fit
from medcm_cli.study.dataset import Also, check_observations, read_dataset
from medcm_cli.study.identity import KNOWN
from medcm_cli.study.restore import Ensemble, ensemble
from medcm_cli.study.units import level_of, thresholds_of

Patients = Path | str | pd.DataFrame
_CHOICES = 4  # that advice names
FEW = 100  # patients; a file of more has fewer draws of each
MOST_DRAWS = 100_000
DRAWS = 1000, 200  # of a patient of few, and of more


@dataclass(frozen=True, repr=False)
class Study:
    """Finished fits of all folds and replicates: what they wrote, as data frames, and, where they are of one
    configuration with random effects, ready to predict."""

    runs: tuple[Fit, ...]
    ensemble: Ensemble | None
    unfit: str = ""  # why they cannot predict, where ``ensemble`` is None

    def __repr__(self) -> str:
        return f"<{self.label}; .summary, .history, .effects>"

    @property
    def fits(self) -> Ensemble:
        """The fits that predict. :raises InputError: they are of several configurations, or have no random
        effects."""
        if self.ensemble is None:
            raise InputError(self.unfit)
        return self.ensemble

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row per fit and checkpoint, indexed by objective, fold, replicate and epoch; read when it is
        asked for, as the two below are. ``attrs["units"]`` has the unit of each column."""
        return frames.history(self.runs)

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Learned covariate effects: a row per fit, checkpoint, covariate, parameter and value ``x``."""
        return frames.effects(self.runs)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row per fit, indexed by objective, fold and replicate: its estimates, means over its last
        checkpoints."""
        return frames.summary(self.runs)

    @cached_property
    def ranges(self) -> Ranges:
        """What the fits were trained on."""
        return ranges_of(self.fits)

    @property
    def dataset(self) -> dict[str, Any]:
        """The options of its data."""
        options: dict[str, Any] = self.fits.config["dataset"]
        return options

    @cached_property
    def units(self) -> Units:
        """Of its data and results. Times, rates and intervals are in ``units.time``, h by default."""
        return Units.of_config(self.fits.config)

    @property
    def unit(self) -> str:
        """Of levels as they are reported, which are ``scale`` times those of the model."""
        return self.units.reported

    @property
    def dose_unit(self) -> str:
        """Of doses."""
        return self.units.amount

    @property
    def scale(self) -> float:
        """See ``unit``."""
        return self.units.scale

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The levels of interest that the study's data set states, in the reported unit."""
        if self.dataset["thresholds"] is None:  # a record of before there were any
            levels = (level_of(text, self.units) for text in THRESHOLDS)
            return tuple(level for level in levels if level is not None)
        return thresholds_of(self.dataset)

    @property
    def label(self) -> str:
        """The study, its data and its fits in a line."""
        records = [fit.record for fit in self.runs]
        a, number = records[0].address, len(records)
        objectives = " and ".join(dict.fromkeys(record.address.objective for record in records))
        configurations = len({record.address.alike for record in records})
        several = f" of {configurations} configurations" if configurations > 1 else ""
        return (
            f"study {a.study}, data {a.dataset} ({records[0].data['subjects']} subjects), {objectives}, "
            f"{a.error} error, {number} {'fit' if number == 1 else 'fits'}{several}"
        )

    @cached_property
    def single(self) -> Values:
        """Name -> the fits' values (..., B) in single precision, for levels."""
        return {name: value.float() for name, value in self.fits.estimates.items()}

    def with_dialect(self, said: Mapping[str, object]) -> "Study":
        """The same for files of patients that are written otherwise than the study's, and frames of text.

        :param said: what is said of them beside, or in the place of, ``dataset.dialect``, such as
            ``{"decimal": "comma", "dates": "dmy"}``.
        :raises InputError: no such option, or another value than expected.
        """
        if not said:
            return self
        Dialect.build(said)
        dataset = {**self.dataset, "dialect": {**self.dataset["dialect"], **said}}
        return replace(self, ensemble=replace(self.fits, config={**self.fits.config, "dataset": dataset}))

    def read(self, patients: Patients, until: float = np.inf) -> EventTable:
        """Patients in the format of the study's data.

        :param until: in the file's time, after a patient's last record, that additional doses are given
            for; all of them by default.
        :raises InputError: a fault in the file.
        """
        return self.read_with_origins(patients, until)[0]

    def read_with_origins(
        self, patients: Patients, until: float = np.inf
    ) -> tuple[EventTable, pa.Table | None]:
        """The same, and of covariates that were prepared or may be missing how each patient's value came
        about, None of others."""
        if not isinstance(patients, pd.DataFrame | Path | str):
            raise InputError(f"patients: is a {type(patients).__name__}; expected a file or a data frame")
        path = patients if isinstance(patients, pd.DataFrame) else Path(patients)
        needed = self.fits.model.network.inputs
        known = self.fits.records[0].data.get("characteristics", {})
        if self.fits.model.pk.abscissa is not None:
            raise InputError(
                f"{self.label}: has no doses over time to predict; `medcm plot` shows its curves"
            )
        config = self.fits.config
        also = Also(config["endpoints"], occasions=config["occasions"], values=config.get(KNOWN) or {})
        events, _, origins = read_dataset(path, self.dataset, needed, True, until, known, also)
        check_observations(events, self.fits.model, self.dataset)
        self.check(events, events.source)
        return events, origins

    @property
    def notes(self) -> pd.DataFrame:
        """What has to be known of all its levels, as a table of notes (``medcm_cli.patients.notes``)."""
        steps = self.dataset["preparation"] or {}
        words = (
            "levels and targets are above the patient's baseline, which is subtracted from those in the file"
        )
        rows = [("", "baseline", words)] if steps.get("baseline") else []
        if self.fits.config.get(KNOWN):
            words = "parameters of each subject that another fit found are known here, and intervals narrower"
            rows.append(("", "known", words))
        still = sum(converged(fit.record) is False for fit in self.runs)
        if still:
            words = f"{still} of {len(self.runs)} fits have not converged: they ended at no optimum"
            rows.append(("", "convergence", words))
        return note_table(rows)

    def check(self, events: EventTable, what: str) -> None:
        """:raises InputError: doses, of ``what``, that the model cannot take."""
        try:
            check_schedule(self.fits.model.pk, self.population(events).schedule)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error

    def corners(self, events: EventTable) -> FloatArray:
        """``data.edit.dose_corners`` (2, doses) at typical parameters, medians over fits."""
        spans = self.fits.model.spans(self.fits.estimates, self.population(events))
        return dose_corners(events, None if spans is None else spans.numpy())

    def population(self, events: EventTable, dtype: torch.dtype = torch.float64) -> Population:
        """N patients as tensors with a fit dimension of 1, but for covariates, in which it is B; with an
        occasion that none of them has had, where parameters vary between occasions."""
        alone = Population.from_events(events, dtype, not self.fits.model.pk.needs_double)
        size = len(self.fits.records)
        spread = {name: v.expand(*v.shape[:-1], size) for name, v in alone.covariates.items()}
        more = 0 if self.fits.model.occasions is None else 1
        return replace(alone, covariates=spread, occasions=alone.occasions + more)

    def posterior(self, events: EventTable, method: str = "importance", draws: int = 1000) -> Posterior:
        """The posterior of patients; ``draws`` of all fits together, equally many of each."""
        each = -(-draws // len(self.fits.records))
        return posterior(
            self.fits.model, self.fits.estimates, self.population(events), self.fits.streams, method, each
        )

    @torch.no_grad()
    def levels(self, events: EventTable, eta: Sequence[Tensor] | None) -> Tensor:
        """Levels at the table's observations, in the reported unit; of a model of differential equations
        computed in double precision, since single is too coarse for the steps of an adaptive solver.

        :param eta: K of (S, N, B); None for typical ones. :returns: (T, S, N, B), float32.
        """
        double = self.fits.model.pk.needs_double
        dtype, estimates = (torch.float64, self.fits.estimates) if double else (torch.float32, self.single)
        population = self.population(events, dtype)
        zeta = self.fits.model.typical(estimates, population)
        given = None if eta is None else [values.to(dtype) for values in eta]
        level = self.fits.model.predict(zeta, population, given) * self.scale
        shape = (*level.shape[:2], len(events.ids), len(self.fits.records))
        return level.float().expand(shape)


def load_study(run: Path | str, objective: str | None = None, trust: bool = False) -> Study:
    """A fitted study: every complete fit below a folder.

    Fits of several configurations, or without random effects, can be looked at and cannot predict.

    :param objective: of the folder's fits, those of this one.
    :param trust: the origin of the fits is known, so that classes and functions may be run which their
        run.json names and which are not medcm's own.
    :raises InputError: no complete fit, one that is damaged or, without ``trust``, that has such classes.
    """
    if not isinstance(run, Path | str):
        raise InputError(f"run: is a {type(run).__name__}; expected the folder of a study or of its fits")
    complete = finished([Path(run)])
    chosen = [fit for fit in complete if objective in (None, fit[1].address.objective)]
    if not chosen:
        names = sorted({record.address.objective for _, record in complete})
        raise InputError(f"{run}: no fit by {objective}; there are fits by {', '.join(names)}")
    found = tuple(Fit(*fit) for fit in chosen)
    groups = grouped(chosen)
    if len(groups) > 1:
        return Study(found, None, f"{run}: {_several(groups, objective)}")
    fits = ensemble(groups[0], trust)
    if not fits.mixed:
        words = "have no random effects and so no individual predictions; choose fits by fo, foce or vi"
        return Study(found, None, f"{run}: fits by {fits.records[0].address.objective} {words}")
    return Study(found, fits)


def studied(study: Study | Path | str) -> Study:
    """The study itself, or the one in a folder."""
    return study if isinstance(study, Study) else load_study(study)


def _several(groups: Sequence[Sequence[tuple[Path, Record]]], objective: str | None) -> str:
    """In which of their names configurations differ, and what chooses one of them: an objective, where none
    is chosen and each has its own, or else a folder.

    :param groups: of each configuration, the folder and record of its fits.
    """
    addresses = [group[0][1].address for group in groups]
    differ = [name for name in ALIKE if len({getattr(a, name) for a in addresses}) > 1]
    kinds = ["/".join(str(getattr(a, name)) for name in differ) for a in addresses]
    shown = ", ".join(kinds[:6]) + (" ..." if len(kinds) > 6 else "")
    what = f"that differ in {' and '.join(differ).replace('_', ' ')}: {shown}" if differ else "that differ"
    objectives = sorted({a.objective for a in addresses})
    if objective is None and len(objectives) == len(groups):
        choices = [f"--objective {name}" for name in objectives]
    else:
        choices = [f"--run {_shared(group)}" for group in groups]
    advice = f"{' or '.join(choices[:_CHOICES])}{' ...' if len(choices) > _CHOICES else ''}"
    return f"holds fits of {len(addresses)} configurations {what}; choose one by {advice}"


def _shared(group: Sequence[tuple[Path, Record]]) -> Path:
    """The deepest folder that all fits of a configuration are in."""
    return Path(os.path.commonpath([folder for folder, _ in group]))


def draws_of(draws: int | None, patients: int) -> int:
    """How many draws of a posterior, by default as many as the number of patients lets.

    :raises InputError: too few, or more than memory holds.
    """
    if draws is not None:
        whole("draws", draws, 20, MOST_DRAWS)
    return DRAWS[patients > FEW] if draws is None else draws
