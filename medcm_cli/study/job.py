"""A training job: the fits of one configuration, what remains of them, and their run folders."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.model.penalty import priors_of
from medcm_cli.numerics.devices import CPU, described, device_of
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Objective
from medcm_cli.objectives.penalised import Penalised
from medcm_cli.pk import Ragged
from medcm_cli.study.axes import axis, folds_of
from medcm_cli.study.identity import AXES, Config, difference, identity, versions
from medcm_cli.study.interrupted import kept_of
from medcm_cli.study.kinds import check_made
from medcm_cli.study.options import complete, made
from medcm_cli.study.plan import address_of
from medcm_cli.study.problem import Fit, Problem
from medcm_cli.study.starts import begun_by_data
from medcm_cli.training import results
from medcm_cli.training.absurd import with_absurd_failed
from medcm_cli.training.course import Course
from medcm_cli.training.kept import Kept
from medcm_cli.training.stages import fitted
from medcm_cli.training.steppers import MakeOptimizer
from medcm_cli.training.trained import Trained

# How a fit is trained, and not what it is.
_UNRECORDED = (*AXES, "batch", "overwrite", "device")


@dataclass(frozen=True)
class Plan:
    """A job's fits: ``done`` were finished before, ``todo`` remain; ``damaged``: what is wrong with files of
    those that had been finished and are done again."""

    records: dict[Fit, runs.Record]
    done: tuple[Fit, ...]
    todo: tuple[Fit, ...]
    previously_failed: int
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A problem and how it is trained: everything that a batch needs, the same in every process."""

    problem: Problem
    config: Config
    objective: Objective
    make_optimizer: MakeOptimizer
    device: torch.device = CPU

    @classmethod
    def build(cls, config: Config) -> "Job":
        """From the options of a job and its ``labels``: what objective, error and variant are called.

        :raises InputError: bad data, or options that are unknown or do not fit together.
        """
        config = complete(config)
        problem = Problem.build(config)
        if config["training"]["start"] == "data":
            problem = begun_by_data(problem)
        if config["batch"].get("compile", False):
            pk = problem.model.pk.with_compiled_steps()
            problem = replace(problem, model=replace(problem.model, pk=pk))
        objective, device = objective_of(config), device_of(config["device"])
        if device.type == "mps":
            check_single(problem)
        # What an objective cannot take of these data it says when it begins; here nothing is written yet.
        stream = Stream(int(config["seed"]), 1, 1)
        begun = objective.init(problem.model, problem.everyone, [stream], problem.dtype)
        if not begun.trained:
            raise InputError("nothing to train: the network, Omega and sigma are known (network, fixed)")
        whole, make_optimizer = {**config, **problem.config}, optimizer_of(config["optimizer"])
        return cls(problem, whole, objective, make_optimizer, device)

    def plan(self) -> Plan:
        """Which fits of the job remain. :raises InputError: a folder holds a fit of another configuration."""
        root = Path(self.config["outputs"])
        described = identity(self.config)
        records: dict[Fit, runs.Record] = {}
        done: dict[Fit, None] = {}
        failed = 0
        damaged: list[str] = []
        for fold, name in folds_of(self.config).items():
            of_fold = self.problem.folds[fold]
            subjects = {"train": of_fold.train.tolist(), "test": of_fold.test.tolist()}
            data = {key: self.problem.data[key] for key in ("fingerprint", "subjects")} | subjects
            digest = runs.config_hash(described, data)
            for replicate in axis("replicate", self.config["replicate"]):
                record = self._record({"fold": fold, **name, "replicate": replicate}, digest)
                records[fold, replicate] = record
                folder = record.address.folder(root)
                if self.config["overwrite"]:
                    continue
                try:
                    found = runs.read_finished(folder, digest)
                except InputError as error:
                    found = None  # train it again
                    damaged.append(str(error))
                if found is None:
                    continue
                if found.config_hash != digest:
                    what = difference(found.config, self.config) or "its data or folds differ"
                    raise InputError(
                        f"{folder}: holds a fit with another configuration ({what}); "
                        "give this one its own name with study=... or variant=..., or overwrite=true"
                    )
                done[fold, replicate] = None
                failed += found.status == "failed"
        todo = tuple(fit for fit in records if fit not in done)
        return Plan(records, tuple(done), todo, failed, tuple(damaged))

    def _record(self, fit: dict[str, int], digest: str) -> runs.Record:
        config = self.config
        return runs.Record(
            status="running",
            address=address_of(config, fit),
            config_hash=digest,
            config={key: value for key, value in config.items() if key not in _UNRECORDED},
            data=self.problem.data,
            truth=self.problem.truth,
            seed=int(config["seed"]),
            versions=dict(versions()),
            described=self._described(),
        )

    def _described(self) -> dict[str, Any]:
        """What the objective says of itself; of several endpoints a mean squared error has no unit."""
        description = self.objective.describe()
        return asdict(replace(description, power=0) if self.config["endpoints"] else description)

    def train(
        self,
        fits: Sequence[Fit],
        progress: Callable[[int, Tensor], None] | None = None,
        kept: Kept | None = None,
    ) -> Trained:
        """Train fits as one batch, without writing anything but how far it is."""
        population, _ = self.problem.populations(fits)
        streams = [Stream(int(self.config["seed"]), fold, replicate) for fold, replicate in fits]
        model, training = self.problem.model, self.config["training"]
        moves = training["stop"] != "start"  # else values are looked at as they begin
        trained = fitted(
            model,
            self.objective,
            population,
            lambda: self.problem.double([self.problem.folds[fold].train for fold, _ in fits]),
            streams,
            self.make_optimizer,
            Course(
                self.config["epochs"] if moves else 0,
                self.config["checkpoint_every"],
                self.config["dataset"]["batch_subjects"],
                self.config["redraws"],
                self.config["batch"].get("graph", True),
                training["scale"] == "log",
                training["stop"] == "converged",
                near=int(training["start"] == "data"),
            ),
            self.problem.dtype,
            training["polish"],
            progress,
            kept,
            self.device,
        )
        if trained.ends is None:
            return trained
        penalty = self.objective.of_priors(model, trained.layout.unpack(trained.ends.values))
        return with_absurd_failed(
            self.objective, population, trained, 0.0 if penalty is None else penalty.detach()
        )

    def run(
        self,
        records: Sequence[runs.Record],
        progress: Callable[[int, Tensor], None] | None = None,
        left: Sequence[runs.Record] | None = None,
    ) -> list[runs.Record]:
        """Train the fits of ``records`` as one batch, or go on where a process that ended has left it, and
        write the folders of those that are ``left``, by default all; returns their finished records."""
        left = records if left is None else left
        root = Path(self.config["outputs"])
        if self.problem.preparation is not None:
            runs.write_preparation(root, records[0], self.problem.preparation)
        for record in left:
            runs.start(root, record)
        fits = [(record.address.fold, record.address.replicate) for record in records]
        kept = kept_of(root, records)
        trained = self.train(fits, progress, kept)
        finished = []
        for fit, (record, tables) in enumerate(zip(records, self._tables(fits, trained), strict=True)):
            if record not in left:
                continue
            finished.append(
                runs.finish(root, _finished(record, trained, fit, list(tables), self.device), tables)
            )
        kept.remove()
        return finished

    def _tables(self, fits: Sequence[Fit], trained: Trained) -> Iterable[Mapping[str, pa.Table]]:
        """The tables of each fit's folder."""
        population, test = self.problem.populations(fits)
        dataset, truth = self.config["dataset"], self.problem.truth
        covariates = {
            name: results.Covariate(
                float(entry["scale"]),
                float(entry["reference"]),
                str(entry["unit"]),
                entry.get("values") or {},
            )
            for name, entry in dataset["covariates"].items()
        }
        known = truth and truth["omega"]
        return results.tables(
            self.problem.model,
            self.objective,
            population,
            test,
            trained,
            covariates,
            torch.tensor(known, dtype=self.problem.dtype) if known else None,
            results.Reported(runs.Units.of_config(self.config), self.config["tail"]),
        )


def _finished(
    record: runs.Record, trained: Trained, fit: int, tables: list[str], device: torch.device
) -> runs.Record:
    """The record of a batch's ``fit``-th fit, now that it is trained."""
    fits = len(trained.failures)
    where = {} if device == CPU else {"device": described(device)}
    failure = trained.failures[fit]
    return replace(
        record,
        status="failed" if failure else "complete",
        failure={"epoch": failure.epoch, "cause": failure.cause} if failure else None,
        tables=tables,
        batch={"fits": fits, "seconds": trained.seconds, **where},
        unconverged_modes=float(trained.unconverged[fit]),
        redraws=int(trained.redraws[fit]),
        seconds=trained.seconds / fits,
        convergence=trained.convergence(fit),
    )


def check_single(problem: Problem) -> None:
    """Whether a problem can do without float64, which mps does not have.

    :raises InputError: it cannot.
    """
    schedule, pk = problem.everyone.schedule, problem.model.pk
    cubic = "Q3" in pk.parameters  # whose roots are found in float64 (pk.compartments)
    parts = schedule.schedules if isinstance(schedule, Ragged) else (schedule,)
    plain = all(part.plain and part.change is None for part in parts)
    if pk.needs_double or cubic or not plain:
        raise InputError(
            "device=mps has no float64, which this model or its regimens need; choose device=cpu"
        )


def objective_of(config: Config) -> Objective:
    """The objective that a configuration names. :raises InputError: options that are unknown or do not
    fit."""
    options = {key: value for key, value in config["objective"].items() if key != "learning_rate"}
    objective: Objective = made(options, "objective")
    covariates = config["dataset"]["covariates"]
    priors = priors_of(config["priors"], {name: float(of["reference"]) for name, of in covariates.items()})
    return objective if priors is None else Penalised(objective, priors)


def optimizer_of(config: Config) -> MakeOptimizer:
    """:raises InputError: options that the optimiser refuses."""
    make: MakeOptimizer = made(config, "optimizer")
    try:
        optimizer = make([torch.zeros(1, requires_grad=True)])
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"optimizer: {error}") from error
    check_made("optimizer", config, optimizer)
    return make
