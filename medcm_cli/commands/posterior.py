"""``medcm posterior``: Hydra composes the configuration, NUTS samples, a folder keeps the draws.

What lies in the folder, ``medcm_cli.runs.draws`` says. ArviZ reads the draws as

    draws = pd.read_parquet("draws.parquet").set_index(["chain", "draw", "position"])
    arviz.convert_to_dataset(draws.filter(like="eta").to_xarray())
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from medcm_cli import runs
from medcm_cli.checks import flag, fraction, one_of, whole
from medcm_cli.commands.compose import check_flags, run
from medcm_cli.commands.terminal import ERR, OUT, job_bar
from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model
from medcm_cli.model.priors import PopulationPrior
from medcm_cli.numerics.streams import Stream
from medcm_cli.posteriors.sampling import JointPopulation, KnownPopulation, Target, complaints, sample, tables
from medcm_cli.report.section import Section
from medcm_cli.runs import draws
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.identity import identity, versions
from medcm_cli.study.options import DTYPES, PROBLEM, as_config
from medcm_cli.study.problem import Problem
from medcm_cli.study.restore import restore

POPULATIONS = ("known", "joint")
SUBJECTS = ("train", "test", "all")
# Options of a posterior; the others describe its model and data, as those of a fit do.
_OWN = ("run", "population", "lkj", "subjects", "chains", "warmup", "draws", "target_accept", "name")
# Options that describe a model and its data, which a run has its own of.
_OF_MODEL = (
    *("dataset", "split", "network", "pk", "error", "fold", "outer", "inner"),
    *("random_effects", "omega", "fixed"),
)
# Part of a result's identity with the model's and the data's.
_IDENTITY = ("population", "lkj", "subjects", "chains", "warmup", "draws", "target_accept", "seed", "dtype")


def posterior(arguments: list[str], show: Callable[[Section], None]) -> None:
    """Hydra composes the configuration, and the posterior that it describes is sampled unless it is there.

    :param show: prints a table.
    :raises InputError: a flag, override, group or choice that does not exist.
    """
    check_flags("posterior", arguments)
    given = {argument.partition("=")[0].lstrip("+~") for argument in arguments}
    run("posterior", arguments, lambda config: _job(config, given, show))


@dataclass(frozen=True)
class Source:
    """Of what a posterior is: a model with the estimates (..., 1) of what is not fixed in it, and data."""

    problem: Problem
    model: Model
    estimates: dict[str, torch.Tensor]
    fold: int
    replicate: int
    study: str
    outputs: Path
    identity: dict[str, Any]  # what a result depends on: its model's options, or the fit it comes from
    label: str  # how a posterior is called after it


def _job(composed: DictConfig, given: set[str], show: Callable[[Section], None]) -> None:
    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    own = {str(key): value for key, value in config.items()}
    _check(own)
    torch.set_num_threads(1)  # more lose time on tensors of this size
    source = _of_run(own, given) if own["run"] is not None else _of_configuration(composed)
    fold = source.problem.folds[source.fold]
    rows = {"train": fold.train, "test": fold.test, "all": np.arange(len(source.problem.events.ids))}
    chosen = rows[own["subjects"]]
    target = _target(source, own, chosen)
    name = own["name"] if own["name"] is not None else own["population"] + source.label
    folder = source.outputs / source.study / "posterior" / runs.check_name("name", str(name))
    described = {"model": source.identity} | {key: own[key] for key in _IDENTITY}
    data = {key: source.problem.data[key] for key in ("fingerprint", "subjects")} | {"rows": chosen.tolist()}
    digest = runs.config_hash(described, data)
    if not own["overwrite"] and draws.is_done(folder, digest, described):
        OUT.print(f"posterior: done already, in {folder}; overwrite=true repeats it")
        return
    begun = time.perf_counter()
    with _bar(own) as progress:
        sampled = sample(
            target,
            (own["seed"], source.fold, source.replicate),
            own["warmup"],
            own["draws"],
            own["target_accept"],
            progress,
        )
    seconds = time.perf_counter() - begun
    made = tables(sampled, chosen, [source.problem.events.ids[row] for row in chosen])
    found = made["diagnostics"].to_pandas()
    poor = complaints(found)
    record = {
        "status": "complete",
        "config": described,
        "config_hash": digest,
        "run": None if own["run"] is None else str(own["run"]),
        "data": {**data, "source": source.problem.data["source"]},
        "seed": own["seed"],
        "seconds": seconds,
        "gradient_calls": sampled.calls,
        "warnings": poor,
        "versions": {**versions(), **{name: version(name) for name in ("numpyro", "jax", "arviz-stats")}},
    }
    draws.write(folder, made, record, runs.Units.of(source.problem.config["dataset"]))
    show(_summary(found, f"{folder.name}: {own['chains']} chains of {own['draws']} draws"))
    OUT.print(f"posterior: {len(chosen)} subjects in {seconds:.1f} s -> {folder}")
    for complaint in poor:
        ERR.print(f"warning: {complaint}")
    if poor:
        ERR.print("these draws are not to be relied on: more warmup, more draws or a higher target_accept")


def _check(own: Mapping[str, Any]) -> None:
    """:raises InputError: a value that an option of a posterior cannot have."""
    for option, choices in (("population", POPULATIONS), ("subjects", SUBJECTS), ("dtype", DTYPES)):
        one_of(option, own[option], choices)
    for option, least in (("chains", 1), ("warmup", 1), ("draws", 4), ("seed", 0)):
        whole(option, own[option], least)
    fraction("target_accept", own["target_accept"])
    flag("overwrite", own["overwrite"])


def _of_configuration(composed: DictConfig) -> Source:
    """The model that the options describe, in which nothing is left to be trained."""
    posed = {key: composed._get_node(key) for key in composed if key not in _OWN}
    config = as_config(OmegaConf.create(posed), PROBLEM)
    config["study"] = "default" if config["study"] is None else config["study"]
    problem = Problem.build(config)
    if len(problem.folds) > 1:
        raise InputError("fold: a posterior is of one fold; give one number")
    (fold,) = problem.folds
    if problem.model.network.init([Stream(0, fold, 1)], problem.dtype):
        raise InputError(
            "network: this one is trained, and untrained it has no posterior; give a finished fit, run=..., "
            "or network=truth"
        )
    own = {key: value for key, value in identity(config).items() if key not in _IDENTITY}
    study = runs.check_name("study", str(config["study"]))
    return Source(problem, problem.model, {}, fold, 1, study, Path(config["outputs"]), own, "")


def _of_run(own: Mapping[str, Any], given: set[str]) -> Source:
    """A finished fit's model at its estimates."""
    foreign = sorted(key for key in given if key.split(".")[0] in _OF_MODEL)
    if foreign:
        raise InputError(f"{foreign[0]} and run=...: the run has its own; leave one of them out")
    fits = finished([Path(str(own["run"]))])
    if len(fits) > 1:
        raise InputError(f"run={own['run']}: {len(fits)} complete fits here; give the folder of one")
    (folder, record), (back,) = fits[0], restore(fits)
    model, where = back.problem.model, record.address
    wanted = model.init([Stream(0, where.fold, where.replicate)], torch.float64)
    if own["population"] == "joint":
        wanted = model.network.init([Stream(0, where.fold, where.replicate)], torch.float64)
    missing = sorted(set(wanted) - set(back.state.trained))
    if missing:
        raise InputError(
            f"{folder}: objective {where.objective} estimates no {missing[0]}; choose population=joint, or "
            "the run of another objective"
        )
    values = {name: back.state.trained[name].double() for name in wanted}
    root = folder.resolve().parents[len(where.folder(Path()).parts) - 1]
    return Source(
        back.problem,
        model,
        values,
        where.fold,
        where.replicate,
        runs.check_name("study", str(own["study"] or where.study)),
        Path(own["outputs"]) if "outputs" in given else root,
        {"config_hash": record.config_hash, "estimates": runs.fingerprint([folder / "parameters.parquet"])},
        "-"
        + "-".join(
            [where.objective, where.variant, *(f"{key}={value}" for key, value in where.where.items())]
        ),
    )


def _target(source: Source, own: Mapping[str, Any], rows: Any) -> Target:
    """What is sampled, of the subjects in ``rows`` of the event table."""
    dtype, model = getattr(torch, own["dtype"]), source.model
    population = Population.from_events(source.problem.events, dtype).select([rows] * own["chains"])
    values = {
        name: value.to(dtype).expand(*value.shape[:-1], own["chains"])
        for name, value in source.estimates.items()
    }
    zeta = model.typical(values, population)
    if own["population"] == "joint":
        return JointPopulation(model, values, population, zeta, PopulationPrior(model, own["lkj"]))
    unknown = (
        []
        if values
        else [
            name
            for name, estimated in (
                ("sigma", model.error.free),
                ("Omega", model.random_effects.fixed is None),
            )
            if estimated
        ]
    )
    if unknown:
        raise InputError(
            f"population=known: {' and '.join(unknown)} not known; give fixed=truth or values, or "
            "population=joint"
        )
    return KnownPopulation(model, values, population, zeta)


def _summary(found: pd.DataFrame, title: str) -> Section:
    """A row per parameter, of eta the worst subject's."""
    separate = found["position"].notna().all()  # with sigma and Omega, a transition is that of all subjects
    headers = [
        "quantity",
        "mean",
        "sd",
        "R-hat, largest",
        "bulk ESS, least",
        "tail ESS, least",
        "divergences",
    ]
    cells = []
    for name, rows in found.groupby("quantity", sort=False):
        one = rows.iloc[0] if rows["position"].isna().all() else None
        cells.append(
            [
                f"{name}" if one is not None else f"{name}, {len(rows)} subjects",
                "" if one is None else f"{one['mean']:.4g}",
                "" if one is None else f"{one['sd']:.3g}",
                f"{rows['r_hat'].max():.3f}",
                f"{rows['ess_bulk'].min():.0f}",
                f"{rows['ess_tail'].min():.0f}",
                f"{rows['divergences'].sum()}" if separate else f"{rows['divergences'].iloc[0]}",
            ]
        )
    return Section(title, headers, cells)


class _bar:
    """Progress on a terminal: transitions, divergences, time left. Silent where stderr is not a terminal."""

    def __init__(self, own: Mapping[str, Any]) -> None:
        self._bar = job_bar()
        self._warmup = own["warmup"]
        self._task = self._bar.add_task("posterior", total=self._warmup + own["draws"], state="starting")

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _update(self, done: int, divergences: int) -> None:
        state = "warm-up" if done <= self._warmup else f"draws, {divergences} divergences"
        self._bar.update(self._task, completed=done, state=state)
