"""Finished fits, brought back from their run folders to be used: with their model, data and estimates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcm_cli import runs
from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Objective, State
from medcm_cli.runs.sweeps import grouped
from medcm_cli.study.identity import AXES, KNOWN_NETWORK
from medcm_cli.study.job import objective_of
from medcm_cli.study.options import complete
from medcm_cli.study.problem import Problem, model_of
from medcm_cli.study.trust import check_recorded


@dataclass(frozen=True)
class Restored:
    """Fits of one configuration, B of them, as one batch.

    ``population`` holds the subjects they were trained on; ``state`` the estimates, which are the means of
    the unconstrained values over the checkpoints of a fit's tail, as everything reported of it is.
    """

    problem: Problem
    objective: Objective
    records: tuple[runs.Record, ...]
    folders: tuple[Path, ...]
    population: Population
    state: State

    @property
    def estimates(self) -> Values:
        """The estimates with Omega and sigma among them as the model has them, whatever the objective trains
        in their place."""
        return self.objective.estimates(self.problem.model, self.state.trained)

    @property
    def streams(self) -> list[Stream]:
        """The random numbers of each fit."""
        return _streams(self.records)


@dataclass(frozen=True)
class Ensemble:
    """The same without any data: the model of B fits of one configuration and their ``estimates``, by name
    (..., B), of the network and, but for objectives that have none (``mixed`` false), Omega and sigma;
    float64."""

    model: Model
    estimates: dict[str, Tensor]
    mixed: bool
    config: dict[str, Any]
    records: tuple[runs.Record, ...]
    folders: tuple[Path, ...]
    trust: bool = False  # see ``ensemble``

    @property
    def streams(self) -> list[Stream]:
        """The random numbers of each fit."""
        return _streams(self.records)


def data_of(folder: Path, record: runs.Record) -> Path:
    """The file of a fit's data: where its record says, seen from here or else, of a relative path, from the
    nearest folder above the fit where there is one."""
    source = Path(record.data["source"])
    above = () if source.is_absolute() or source.exists() else folder.resolve().parents
    return next((parent / source for parent in above if (parent / source).exists()), source)


def restore(fits: Sequence[tuple[Path, runs.Record]], trust: bool = False) -> list[Restored]:
    """Bring fits back, those of one configuration and data set as one batch.

    :param trust: run what their configurations name beside what is medcm's own (``study.trust``).
    :raises InputError: their data are gone or are not what they were trained on, a folder is damaged, or,
        without ``trust``, a configuration names what is not medcm's.
    """
    return [_restore(group, trust) for group in grouped(fits)]


def at_last_checkpoint(batch: Restored) -> State:
    """The state of fits at their last checkpoint, in place of their estimates."""
    found = [_estimate(*one, tail=0) for one in zip(batch.folders, batch.records, strict=True)]
    return _with(batch.state, found, batch.folders)


def _with(begun: State, estimates: Sequence[Mapping[str, Tensor]], folders: Sequence[Path]) -> State:
    """A state with the values of each fit."""
    shapes = {name: value.shape[:-1] for name, value in begun.trained.items()}
    stacked = _stacked(estimates, folders, shapes, begun.per_subject)
    trained = {name: value.to(begun.trained[name].dtype) for name, value in stacked.items()}
    return replace(begun, trained=trained)


def ensemble(fits: Sequence[tuple[Path, runs.Record]], trust: bool = False) -> Ensemble:
    """Fits of one configuration as one batch, without their data.

    :param trust: as in ``restore``.
    :raises InputError: a folder is damaged, or names what is not medcm's.
    """
    folders, records = zip(*fits, strict=True)
    config = complete(_config(records, folders[0], trust))
    model = model_of(config)
    objective = objective_of(config)
    begun = model.init(_streams(records), torch.float64, typical_only=not objective.mixed)
    found = list(map(_estimate, folders, records))
    # What a fit has of each of its own subjects, fits do not share.
    shared = {
        name: one.shape
        for name, one in found[0].items()
        if len({e[name].shape for e in found if name in e}) == 1
    }
    shapes = shared | {name: value.shape[:-1] for name, value in begun.items() if name in shared}
    estimates = objective.estimates(model, _stacked(found, folders, shapes))
    absent = sorted(set(begun) - set(estimates))
    if absent:
        raise InputError(f"{folders[0]}/parameters.parquet: holds no {absent[0]}")
    kept = {name: estimates[name] for name in begun}
    return Ensemble(model, kept, objective.mixed, config, tuple(records), tuple(folders), trust)


def _restore(fits: Sequence[tuple[Path, runs.Record]], trust: bool) -> Restored:
    folders, records = zip(*fits, strict=True)
    first = records[0]
    config, source = _config(records, folders[0], trust), data_of(folders[0], first)
    if not source.exists():
        raise InputError(f"{folders[0]}: its data, {source}, are not there any more")
    config = complete({**config, "dataset": {**config["dataset"], "path": str(source)}})
    problem, objective = Problem.build(config), objective_of(config)
    if problem.data["fingerprint"] != first.data["fingerprint"]:
        raise InputError(f"{folders[0]}: its data, {first.data['source']}, have changed since it was trained")
    numbers = [(record.address.fold, record.address.replicate) for record in records]
    population, _ = problem.populations(numbers)
    begun = objective.init(problem.model, population, _streams(records), problem.dtype)
    state = _with(begun, list(map(_estimate, folders, records)), folders)
    return Restored(problem, objective, tuple(records), tuple(folders), population, state)


def _stacked(
    estimates: Sequence[Mapping[str, Tensor]],
    folders: Sequence[Path],
    shapes: Mapping[str, torch.Size],
    per_subject: Sequence[str] = (),
) -> dict[str, Tensor]:
    """name -> the estimates of each fit, (..., B), float64."""
    return {
        name: torch.stack(
            [
                _filled(estimate, name, shape, name in per_subject, folder)
                for estimate, folder in zip(estimates, folders, strict=True)
            ],
            -1,
        )
        for name, shape in shapes.items()
    }


def _streams(records: Sequence[runs.Record]) -> list[Stream]:
    return [Stream(r.seed, r.address.fold, r.address.replicate) for r in records]


def _config(records: Sequence[runs.Record], folder: Path, trust: bool) -> dict[str, Any]:
    """The configuration of a batch: what its records share, and the folds and replicates of all.

    :param folder: of the first. :raises InputError: see ``check_recorded``.
    """
    check_recorded(records[0].config, folder, trust)
    config = dict(records[0].config)
    axes: dict[str, Any] = dict.fromkeys(AXES)
    nested = records[0].address.outer is not None
    axes["fold"] = 1
    for axis in ("outer", "inner", "replicate") if nested else ("fold", "replicate"):
        axes[axis] = sorted({getattr(record.address, axis) for record in records})
    batch = {"fits": None, "processes": 1, "threads": 1}
    return {**_with_numbers(config), **axes, "batch": batch, "overwrite": False}


def _with_numbers(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration from JSON, which has no keys but text, where those of ``pk.lag`` and such are numbers
    of compartments."""
    pk = {
        key: {int(k) if k.isdecimal() else k: v for k, v in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in config["pk"].items()
    }
    if KNOWN_NETWORK not in config:
        return {**config, "pk": pk}
    known = config[KNOWN_NETWORK]
    return {**config, "pk": pk, KNOWN_NETWORK: {**known, "config": _with_numbers(known["config"])}}


def _estimate(folder: Path, record: runs.Record, tail: int | None = None) -> dict[str, Tensor]:
    """name -> the mean of each of a fit's trained values over its last ``tail`` epochs, by default as many as
    it was configured with, in the order of their index."""
    table = runs.read_table(folder, record, "parameters")
    rows = runs.estimate_rows(folder, record, table["epoch"].to_numpy(), tail)
    # Every checkpoint holds the same values in the same order.
    mean = runs.tail_mean(table["value"].to_numpy(), rows)
    names = table["name"].combine_chunks().dictionary_decode().take(rows[0]).to_numpy(zero_copy_only=False)
    return {str(name): torch.from_numpy(mean[names == name]) for name in dict.fromkeys(names)}


def _filled(
    estimate: Mapping[str, Tensor], name: str, shape: torch.Size, per_subject: bool, folder: Path
) -> Tensor:
    """A fit's values as its batch has them: with zeros for subjects that others have and it has not."""
    if name not in estimate:
        raise InputError(f"{folder}/parameters.parquet: holds no {name}")
    values = estimate[name]
    if per_subject:
        values = values.reshape(*shape[:-1], -1)
        return torch.nn.functional.pad(values, (0, shape[-1] - values.shape[-1]))
    return values.reshape(shape)
