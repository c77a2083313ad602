"""One job: from a resolved configuration to finished run folders."""

import functools
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from medcm_cli import __version__, results, runs
from medcm_cli.data import EventTable, Fold, Population, read_events
from medcm_cli.errors import InputError
from medcm_cli.fit import MakeOptimizer, Trained, train
from medcm_cli.model import Model
from medcm_cli.objectives import Objective
from medcm_cli.simulate import Settings, write_study
from medcm_cli.streams import Stream
from medcm_cli.variability import RandomEffects, ResidualError

Config = Mapping[str, Any]
Fit = tuple[int, int]
"""(fold, replicate)"""

# What a result does not depend on.
_NOT_IDENTITY = ("study", "outputs", "fold", "replicate", "variant", "overwrite", "batch", "labels")
# The options of conf/config.yaml: groups of them, and values.
_GROUPS = ("dataset", "split", "network", "pk", "error", "objective", "optimizer", "batch")
_VALUES = (
    *("study", "outputs", "fold", "replicate", "seed", "epochs", "checkpoint_every", "learning_rate"),
    *("random_effects", "dtype", "variant", "overwrite"),
)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Plan:
    """A job's fits: ``done`` were finished before, ``todo`` remain."""

    records: dict[Fit, runs.Record]
    done: tuple[Fit, ...]
    todo: tuple[Fit, ...]
    previously_failed: int


def axis(name: str, value: object) -> list[int]:
    """The values of a batched axis: an int, a list, or Hydra's sweep syntax such as ``range(1,21)`` or
    ``1,2,5``."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        values = list(value)
    else:
        try:
            override = OverridesParser.create().parse_override(f"{name}={value}")
            given = override.sweep_iterator() if override.is_sweep_override() else override.value()
            values = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
        except HydraException as error:
            raise InputError(f"{name}={value}: {' '.join(str(error).split())}") from error
    try:
        numbers = [int(v) for v in values]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or any(str(n) != str(v) for n, v in zip(numbers, values, strict=True)) or min(numbers) < 1:
        raise InputError(
            f"{name}={value}: expected whole numbers from 1: {name}=3, {name}=[1,2] or {name}='range(1,21)'"
        )
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{name}={value}: a number stands there twice")
    return numbers


@dataclass(frozen=True)
class Setup:
    """Everything a batch needs, built from the configuration; the same in every process."""

    config: Config
    events: EventTable
    data: dict[str, Any]
    folds: dict[int, Fold]
    truth: dict[str, Any] | None
    model: Model
    objective: Objective
    make_optimizer: MakeOptimizer
    dtype: torch.dtype

    @classmethod
    def build(cls, config: Config) -> "Setup":
        """:raises InputError: bad data, or options that are unknown or do not fit together."""
        _check_options(config)
        dataset = config["dataset"]
        for option, least in (("epochs", 1), ("checkpoint_every", 1), ("seed", 0)):
            whole(option, config[option], least)
        whole("batch.threads", config["batch"]["threads"], 1)
        if config["batch"]["fits"] is not None:
            whole("batch.fits", config["batch"]["fits"], 1, "null")
        if config["dtype"] not in DTYPES:
            raise InputError(f"dtype is {config['dtype']!r}; expected one of {', '.join(DTYPES)}")
        for option, value in (
            ("learning_rate", config["learning_rate"]),
            ("dataset.level_scale", dataset["level_scale"]),
            ("pk.amount_per_level", config["pk"].get("amount_per_level", 1)),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
                raise InputError(f"{option} is {value!r}; expected a number above 0")
        truth = _truth(dataset, tuple(config["random_effects"]))
        events_path = dataset_path(config)
        folder = events_path.parent
        columns = {name: entry["column"] for name, entry in dataset["covariates"].items()}
        events = read_events(events_path, columns, dataset["predose_observations"])
        n = len(events.ids)
        folds = {
            fold: _made(config["split"], "split", fold=fold, n_subjects=n, folder=folder)
            for fold in axis("fold", config["fold"])
        }
        for fold, subjects in folds.items():
            if not len(subjects.test):
                raise InputError(
                    f"fold={fold}: leaves no subject to test; every one is trained on or held out"
                )
        network = _made(config["network"], "network", covariates=dataset["covariates"])
        model = Model(
            network,
            _made(config["pk"], "pk"),
            RandomEffects(tuple(config["random_effects"])),
            _made(config["error"], "error"),
        )
        _check_predose(events, model.error)
        objective = {key: value for key, value in config["objective"].items() if key != "learning_rate"}
        return cls(
            config=config,
            events=events,
            data={"source": str(events_path), "fingerprint": runs.fingerprint([events_path]), "subjects": n},
            folds=folds,
            model=model,
            truth=truth,
            objective=_made(objective, "objective"),
            make_optimizer=_optimizer(config["optimizer"]),
            dtype=DTYPES[config["dtype"]],
        )

    def plan(self) -> Plan:
        """Which fits of the job remain. :raises InputError: a folder holds a fit of another configuration."""
        root = Path(self.config["outputs"])
        identity = {key: value for key, value in self.config.items() if key not in _NOT_IDENTITY}
        records: dict[Fit, runs.Record] = {}
        done: dict[Fit, None] = {}
        failed = 0
        for fold in axis("fold", self.config["fold"]):
            subjects = {"train": self.folds[fold].train.tolist(), "test": self.folds[fold].test.tolist()}
            data = {key: value for key, value in self.data.items() if key != "source"} | subjects
            # Where the data lie is not what they are.
            described = {**identity, "dataset": {k: v for k, v in identity["dataset"].items() if k != "path"}}
            digest = runs.config_hash(described, data)
            for replicate in axis("replicate", self.config["replicate"]):
                record = self._record(fold, replicate, digest)
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
                    what = _difference(found.config, record.config)
                    raise InputError(
                        f"{folder}: holds a fit with another configuration ({what}); "
                        "give this one its own name with study=... or variant=..., or overwrite=true"
                    )
                done[fold, replicate] = None
                failed += found.status == "failed"
        todo = tuple(fit for fit in records if fit not in done)
        return Plan(records, tuple(done), todo, failed)

    def _record(self, fold: int, replicate: int, digest: str) -> runs.Record:
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
            fold=fold,
            replicate=replicate,
        )
        return runs.Record(
            status="running",
            address=address,
            config_hash=digest,
            config={
                key: value
                for key, value in config.items()
                if key not in ("fold", "replicate", "batch", "overwrite")
            },
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
            self.config["epochs"],
            self.config["checkpoint_every"],
            self.dtype,
            progress,
        )

    def populations(self, fits: Sequence[Fit]) -> tuple[Population, Population]:
        """Training and test subjects of a batch."""
        everyone = Population.from_events(self.events, self.dtype)
        train_rows = [self.folds[fold].train for fold, _ in fits]
        test_rows = [self.folds[fold].test for fold, _ in fits]
        return everyone.select(train_rows), everyone.select(test_rows)

    def run(
        self, records: Sequence[runs.Record], progress: Callable[[int, Tensor], None] | None = None
    ) -> list[runs.Record]:
        """Train the fits of ``records`` as one batch and write their folders; returns the finished
        records."""
        root = Path(self.config["outputs"])
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
                    seconds=trained.seconds / len(fits),
                )
            )
            runs.finish(root, finished[-1], of_fit)
        return finished


def _check_options(config: Config) -> None:
    """Whether the options of ``conf/config.yaml`` are each of its kind.

    :raises InputError: otherwise.
    """
    if not isinstance(config["overwrite"], bool):
        raise InputError(f"overwrite is {config['overwrite']!r}; expected true or false")
    for option in ("study", "outputs"):
        if config[option] is None or config[option] == "":
            raise InputError(f"{option} is {config[option]!r}; expected a name")
    for option in _GROUPS:
        if not isinstance(config[option], Mapping):
            raise InputError(f"{option} is {config[option]!r}; expected a group of options")
    effects = config["random_effects"]
    if not isinstance(effects, list) or not all(isinstance(name, str) for name in effects):
        raise InputError(f"random_effects is {effects!r}; expected a list of parameters, as in [CL,V1]")
    covariates = config["dataset"]["covariates"]
    if not isinstance(covariates, Mapping):
        raise InputError(f"dataset.covariates is {covariates!r}; expected a group, {{}} for none")
    for name, entry in covariates.items():
        where = f"dataset.covariates.{name}"
        if not isinstance(entry, Mapping) or set(entry) != {"column", "scale", "reference", "unit"}:
            raise InputError(f"{where} is {entry!r}; expected column, scale, reference and unit")
        if isinstance(entry["reference"], bool) or not isinstance(entry["reference"], int | float):
            raise InputError(f"{where}.reference is {entry['reference']!r}; expected a number")


def whole(option: str, value: object, least: int, other: str = "") -> int:
    """A whole number from ``least``. :raises InputError: otherwise; ``other`` is what else is allowed."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    choice = f"{other} or " if other else ""
    raise InputError(f"{option} is {value!r}; expected {choice}a whole number from {least}")


def as_config(composed: DictConfig) -> dict[str, Any]:
    """A composed configuration with every reference resolved; omegaconf's error for one that leads nowhere.

    :raises InputError: an option that does not exist, or one or its value that is not there.
    """
    options = {*_GROUPS, *_VALUES}
    unknown = sorted({str(key) for key in composed} - options)
    if unknown:
        raise InputError(f"{unknown[0]}: no such option; `medcm fit --help` lists them")
    absent = sorted(options - {str(key) for key in composed})
    if absent:
        raise InputError(f"{absent[0]}: is missing; `medcm fit --help` lists the options")
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise InputError(f"{missing[0]} must be given: {missing[0]}=...")
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def conf_dir() -> Path:
    """The configuration folder: the checkout's, or the one inside an installed package."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "conf"
    return beside if (beside / "config.yaml").is_file() else here / "conf"


def dataset_path(config: Config) -> Path:
    """The event table that a configuration names; the default simulated data set is made where it does not
    exist yet."""
    dataset = config["dataset"]
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
    packages = ("torch", "torchdiffeq", "numpy", "scipy", "hydra-core")
    return {"medcm": __version__, "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


def _optimizer(config: Config) -> MakeOptimizer:
    """:raises InputError: options that the optimiser refuses."""
    make: MakeOptimizer = _made(config, "optimizer")
    try:
        make([torch.zeros(1, requires_grad=True)])
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"optimizer: {error}") from error
    return make


def _made(config: Config, where: str, **arguments: Any) -> Any:
    """Instantiate a configuration group. :raises InputError: with the group's name, for options that do not
    fit."""
    try:
        return instantiate(OmegaConf.create(dict(config)), _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        reason = error.__cause__ or error
        raise InputError(f"{where}: {' '.join(str(reason).split())}") from error


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


def _check_predose(events: EventTable, error: ResidualError) -> None:
    if "additive" in error.components:
        return
    first_dose = np.full(len(events.ids), np.inf)
    np.minimum.at(first_dose, events.subject[events.is_dose], events.time[events.is_dose])
    early = ~events.is_dose & (events.time <= first_dose[events.subject])
    if early.any():
        subject = events.ids[events.subject[int(np.argmax(early))]]
        raise InputError(
            f"{events.source}: subject {subject!r} has an observation no later than its first dose, where "
            "the prediction and so the sd of a proportional error are zero; choose error=additive or combined"
        )


def _difference(old: Config, new: Config, prefix: str = "") -> str:
    """The first option in which two configurations differ, in words."""
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if a == b or f"{prefix}{key}" in ("dataset.path", *_NOT_IDENTITY):
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            inner = _difference(a, b, f"{prefix}{key}.")
            if inner:
                return inner
            continue
        return f"{prefix}{key} is {a!r} there and {b!r} here"
    return "" if prefix else "its data or folds differ"
