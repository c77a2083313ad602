"""One job: from a resolved configuration to finished run folders."""

import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from medcm_cli import __version__, runs
from medcm_cli.data import EventTable, Fold, Format, Population, describe, read_events
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.cohorts import made_cohort, truth_of
from medcm_cli.haemophilia.preparation import (
    DERIVED,
    RAW,
    Preparation,
    check_baseline,
    prepare,
    subtract_baseline,
)
from medcm_cli.haemophilia.preparation import table as preparation_table
from medcm_cli.haemophilia.virtual import Settings, write_study
from medcm_cli.model import ErrorModel, Model, RandomEffects
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Objective
from medcm_cli.pk import check_schedule
from medcm_cli.study.options import (
    AXES,
    DTYPES,
    Config,
    axis,
    complete,
    difference,
    fixed,
    folds_of,
    identity,
    made,
)
from medcm_cli.training import results
from medcm_cli.training.loop import Course, MakeOptimizer, Trained, train

Fit = tuple[int, int]
"""(fold, replicate)"""


@dataclass(frozen=True)
class Plan:
    """A job's fits: ``done`` were finished before, ``todo`` remain."""

    records: dict[Fit, runs.Record]
    done: tuple[Fit, ...]
    todo: tuple[Fit, ...]
    previously_failed: int


@dataclass(frozen=True)
class Setup:
    """Everything a batch needs, built from the configuration; the same in every process."""

    config: Config
    events: EventTable
    everyone: Population
    data: dict[str, Any]
    preparation: pa.Table | None
    folds: dict[int, Fold]
    truth: dict[str, Any] | None
    model: Model
    objective: Objective
    make_optimizer: MakeOptimizer
    dtype: torch.dtype

    @classmethod
    def build(cls, config: Config) -> "Setup":
        """:raises InputError: bad data, or options that are unknown or do not fit together."""
        config = _with_stand_in(complete(config))
        dataset = config["dataset"]
        truth = _truth(dataset, tuple(config["random_effects"]))
        events_path = dataset_path(config)
        events, held, preparation = read_dataset(events_path, dataset)
        n = len(events.ids)
        folds = {
            number: made(config["split"], "split", **name, n_subjects=n, folder=events_path.parent)
            for number, name in folds_of(config).items()
        }
        for number, subjects in folds.items():
            if not len(subjects.test):
                raise InputError(
                    f"fold={number}: leaves no subject to test; every one is trained on or held out"
                )
        model = model_of(config)
        check_predose(events, model.error)
        everyone = Population.from_events(events, DTYPES[config["dtype"]])
        check_schedule(model.pk, everyone.schedule, changing=events.regimes is not None)
        options = {key: value for key, value in config["objective"].items() if key != "learning_rate"}
        objective: Objective = made(options, "objective")
        # What an objective cannot take of these data it says when it begins; here nothing is written yet.
        begun = objective.init(model, everyone, [Stream(int(config["seed"]), 1, 1)], DTYPES[config["dtype"]])
        if not begun.trained:
            raise InputError("nothing to train: the network, Omega and sigma are known (network, fixed)")
        return cls(
            config=config,
            events=events,
            everyone=everyone,
            data={
                "source": str(events_path),
                "fingerprint": runs.fingerprint([events_path]),
                "subjects": n,
                "characteristics": held,
            },
            preparation=preparation,
            folds=folds,
            model=model,
            truth=truth,
            objective=objective,
            make_optimizer=_optimizer(config["optimizer"]),
            dtype=DTYPES[config["dtype"]],
        )

    def plan(self) -> Plan:
        """Which fits of the job remain. :raises InputError: a folder holds a fit of another configuration."""
        root = Path(self.config["outputs"])
        described = identity(self.config)
        records: dict[Fit, runs.Record] = {}
        done: dict[Fit, None] = {}
        failed = 0
        for fold, name in folds_of(self.config).items():
            subjects = {"train": self.folds[fold].train.tolist(), "test": self.folds[fold].test.tolist()}
            data = {key: self.data[key] for key in ("fingerprint", "subjects")} | subjects
            digest = runs.config_hash(described, data)
            for replicate in axis("replicate", self.config["replicate"]):
                record = self._record({"fold": fold, **name, "replicate": replicate}, digest)
                records[fold, replicate] = record
                folder = record.address.folder(root)
                try:
                    found = runs.read_record(folder)
                except InputError:
                    found = None  # damaged: train it again
                if found is None or found.status not in runs.FINISHED or self.config["overwrite"]:
                    continue
                if found.config_hash == digest and not runs.is_whole(folder, found):
                    continue  # a file was damaged or lost: train it again
                if found.config_hash != digest:
                    what = difference(found.config, self.config) or "its data or folds differ"
                    raise InputError(
                        f"{folder}: holds a fit with another configuration ({what}); "
                        "give this one its own name with study=... or variant=..., or overwrite=true"
                    )
                done[fold, replicate] = None
                failed += found.status == "failed"
        todo = tuple(fit for fit in records if fit not in done)
        return Plan(records, tuple(done), todo, failed)

    def _record(self, fit: dict[str, int], digest: str) -> runs.Record:
        config = self.config
        address = runs.Address(
            study=runs.check_name("study", str(config["study"])),
            dataset=runs.check_name("dataset.name", str(config["dataset"]["name"])),
            objective=config["labels"]["objective"],
            error=config["labels"]["error"],
            learning_rate=float(config["learning_rate"]),
            variant=runs.check_name(
                "variant", str(config["variant"] or config["labels"]["variant"] or "default")
            ),
            **fit,
        )
        return runs.Record(
            status="running",
            address=address,
            config_hash=digest,
            config={key: value for key, value in config.items() if key not in (*AXES, "batch", "overwrite")},
            data=self.data,
            truth=self.truth,
            seed=int(config["seed"]),
            versions=dict(versions()),
        )

    def train(self, fits: Sequence[Fit], progress: Callable[[int, Tensor], None] | None = None) -> Trained:
        """Train fits as one batch, without writing anything."""
        population, _ = self.populations(fits)
        streams = [Stream(int(self.config["seed"]), fold, replicate) for fold, replicate in fits]
        return train(
            self.model,
            self.objective,
            population,
            streams,
            self.make_optimizer,
            Course(
                self.config["epochs"],
                self.config["checkpoint_every"],
                self.config["dataset"]["batch_subjects"],
                self.config["redraws"],
            ),
            self.dtype,
            progress,
        )

    def populations(self, fits: Sequence[Fit]) -> tuple[Population, Population]:
        """Training and test subjects of a batch."""
        train_rows = [self.folds[fold].train for fold, _ in fits]
        test_rows = [self.folds[fold].test for fold, _ in fits]
        return self.everyone.select(train_rows), self.everyone.select(test_rows)

    def run(
        self, records: Sequence[runs.Record], progress: Callable[[int, Tensor], None] | None = None
    ) -> list[runs.Record]:
        """Train the fits of ``records`` as one batch and write their folders; returns the finished
        records."""
        root = Path(self.config["outputs"])
        if self.preparation is not None:
            runs.write_preparation(root, records[0], self.preparation)
        for record in records:
            runs.start(root, record)
        fits = [(record.address.fold, record.address.replicate) for record in records]
        trained = self.train(fits, progress)
        population, test = self.populations(fits)
        dataset = self.config["dataset"]
        covariates = {
            name: results.Covariate(float(entry["scale"]), float(entry["reference"]), str(entry["unit"]))
            for name, entry in dataset["covariates"].items()
        }
        known = self.truth and self.truth["omega"]
        omega = torch.tensor(known, dtype=self.dtype) if known else None
        tables = results.tables(
            self.model,
            self.objective,
            population,
            test,
            trained,
            covariates,
            omega,
            float(dataset["level_scale"]),
        )
        finished = []
        for fit, (record, of_fit) in enumerate(zip(records, tables, strict=True)):
            failure = trained.failures[fit]
            finished.append(
                replace(
                    record,
                    status="failed" if failure else "complete",
                    failure={"epoch": failure.epoch, "cause": failure.cause} if failure else None,
                    tables=list(of_fit),
                    batch={"fits": len(fits), "seconds": trained.seconds},
                    unconverged_modes=float(trained.unconverged[fit]),
                    redraws=int(trained.redraws[fit]),
                    seconds=trained.seconds / len(fits),
                )
            )
            runs.finish(root, finished[-1], of_fit)
        return finished


def model_of(config: Config) -> Model:
    """The model that a complete configuration describes.

    :raises InputError: options that are unknown or do not fit together.
    """
    network = made(config["network"], "network", covariates=config["dataset"]["covariates"])
    omega, sigma = fixed(config)
    return Model(
        network,
        made(config["pk"], "pk"),
        RandomEffects(tuple(config["random_effects"]), config["omega"], omega),
        made(config["error"], "error", fixed=sigma),
    )


def _with_stand_in(config: dict[str, Any]) -> dict[str, Any]:
    """Without a path, a cohort whose data are not public is a synthetic one, by name too, whose truth is
    known."""
    dataset = config["dataset"]
    if dataset["cohort"] is None or dataset["path"] is not None:
        return config
    truth = truth_of(dataset["cohort"])
    name = f"synthetic_{str(dataset['name']).removeprefix('synthetic_')}"
    return {**config, "dataset": {**dataset, "name": name, "truth": truth}}


def dataset_path(config: Config) -> Path:
    """The event table that a configuration names; the default simulated data set, or the stand-in for a
    cohort, is made where it does not exist yet."""
    dataset = config["dataset"]
    if dataset["path"] is None and dataset["cohort"] is not None:
        return made_cohort(config["outputs"], dataset["cohort"]) / "events.csv"
    if dataset["path"] is None:
        if dataset["events"] is None:
            raise InputError("dataset.path is null; expected the event table, a .csv or .parquet file")
        folder = default_data_folder(str(config["outputs"]))
        if not folder.exists():
            write_study(folder, Settings())
    else:
        folder = Path(str(dataset["path"]))
    if dataset["events"] is None or folder.is_file():
        return folder
    names = [dataset["events"]] if isinstance(dataset["events"], str) else list(map(str, dataset["events"]))
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"dataset.path={folder}: has neither {' nor '.join(names)}; `medcm simulate` writes such a folder"
    )


def default_data_folder(outputs: str) -> Path:
    """Where the default simulated data set lies."""
    return Path(outputs) / "data" / "simulated"


@functools.cache  # reading packages' metadata takes milliseconds, and every fit's record has them
def versions() -> Mapping[str, str]:
    """Versions that a result may depend on."""
    packages = ("torch", "torchdiffeq", "zuko", "numpy", "scipy", "hydra-core")
    return {"medcm": __version__, "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


def _optimizer(config: Config) -> MakeOptimizer:
    """:raises InputError: options that the optimiser refuses."""
    make: MakeOptimizer = made(config, "optimizer")
    try:
        make([torch.zeros(1, requires_grad=True)])
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"optimizer: {error}") from error
    return make


def _truth(dataset: Config, random_effects: tuple[str, ...]) -> dict[str, Any] | None:
    """The dataset's true Omega, None where the fit has other random effects, and sigma."""
    truth = dataset["truth"]
    if truth is None:
        return None
    try:
        names = truth["random_effects"]
        omega = np.array(truth["omega"], dtype=np.float64)
        valid = omega.shape == (len(names), len(names)) and bool((omega == omega.T).all())
        valid = valid and float(np.linalg.eigvalsh(omega)[0]) > 0
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(
            f"dataset.truth is {truth!r}; expected sigma, random_effects (their names) and omega, a positive "
            "definite matrix with a row for each of them"
        )
    sigma = truth.get("sigma")
    if not isinstance(sigma, Mapping) or any(
        name not in ("additive", "proportional") or not isinstance(value, int | float) or not value > 0
        for name, value in sigma.items()
    ):
        raise InputError(
            f"dataset.truth.sigma is {sigma!r}; expected additive, proportional or both, each above 0"
        )
    same = tuple(names) == random_effects
    return {"omega": omega.tolist() if same else None, "sigma": sigma}


def read_dataset(
    path: Path | pd.DataFrame, dataset: Config, patients: bool = False
) -> tuple[EventTable, dict[str, Any], pa.Table | None]:
    """The events that fits see; what the file holds; and, of prepared covariates, what was done.

    :param patients: read for prediction (``Format.patients``).
    :raises InputError: a fault in the file, or options of ``dataset`` that do not fit it.
    """
    columns = {name: str(entry["column"]) for name, entry in dataset["covariates"].items()}
    how = Format(
        columns=dataset["columns"],
        keep=dataset["keep"],
        bolus_duration=dataset["bolus_duration"],
        predose_observations=dataset["predose_observations"],
        over_time=dataset["over_time"],
        patients=patients,
    )
    if dataset["preparation"] is None:
        events = read_events(path, columns, how)
        return events, describe(events), None
    steps = Preparation.build(dataset["preparation"])
    given = dict(steps.columns) | ({"baseline": steps.baseline} if steps.baseline else {})
    others = {column: column for column in columns.values() if column not in (*RAW, *DERIVED)}
    raw = read_events(path, {**others, **given}, replace(how, optional=frozenset(given)))
    if raw.regimes is not None:
        name = min(raw.regimes.covariates)
        raise InputError(f"dataset.over_time.{name}=record: a preparation has one value of each subject")
    prepared = prepare({name: raw.covariates[name] for name in steps.columns}, steps, raw.ids, raw.source)
    wanted = [column for column in columns.values() if column not in others]
    found = {**raw.covariates, **prepared.need(wanted, raw.ids, raw.source)}
    dv, baseline = raw.dv, None
    if steps.baseline:
        baseline = check_baseline(raw.covariates["baseline"], steps.baseline, raw.ids, raw.source)
        dv = subtract_baseline(dv, raw.subject, baseline)
    events = replace(raw, dv=dv, covariates={name: found[column] for name, column in columns.items()})
    return events, describe(raw), preparation_table(raw.ids, prepared, baseline)


def check_predose(events: EventTable, error: ErrorModel) -> None:
    """:raises InputError: an observation where the prediction is zero and with it the sd of the error."""
    if error.allows_zero:
        return
    # Of each segment: a reset empties the compartments too.
    part = events.subject * (events.segment.max() + 1) + events.segment
    first_dose = np.full(part.max() + 1, np.inf)
    np.minimum.at(first_dose, part[events.is_dose], events.clock[events.is_dose])
    early = ~events.is_dose & (events.clock <= first_dose[part])
    if early.any():
        subject = events.ids[events.subject[int(np.argmax(early))]]
        raise InputError(
            f"{events.source}: subject {subject!r} has an observation no later than its first dose, where "
            "the prediction and so the sd of a proportional error are zero; choose error=additive or combined"
        )
