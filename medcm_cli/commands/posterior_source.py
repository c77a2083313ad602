"""Of what ``medcm posterior`` samples a posterior: a model that the options describe, or that of a finished
fit, with its data."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from medcm_cli import runs
from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model
from medcm_cli.model.penalty import Priors, priors_of
from medcm_cli.model.priors import POPULATION, PopulationPrior
from medcm_cli.numerics.streams import Stream
from medcm_cli.posteriors.sampling import JointPopulation, KnownPopulation
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.identity import identity
from medcm_cli.study.known import with_known
from medcm_cli.study.options import PROBLEM, as_config
from medcm_cli.study.problem import Problem
from medcm_cli.study.restore import restore

# Options of a posterior; the others describe its model and data, as those of a fit do.
_OWN = ("run", "trust", "population", "lkj", "subjects", "chains", "warmup", "draws", "target_accept", "name")
IDENTITY = ("population", "lkj", "subjects", "chains", "warmup", "draws", "target_accept", "seed", "dtype")
"""Options that are part of a result's identity with the model's and the data's."""


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


def of_configuration(composed: DictConfig) -> Source:
    """The model that the options describe, in which nothing is left to be trained."""
    posed = {key: composed._get_node(key) for key in composed if key not in _OWN}
    config = as_config(OmegaConf.create(posed), PROBLEM)
    config["study"] = "default" if config["study"] is None else config["study"]
    problem = Problem.build(with_known(config))
    if len(problem.folds) > 1:
        raise InputError("fold: a posterior is of one fold; give one number")
    (fold,) = problem.folds
    if problem.model.network.init([Stream(0, fold, 1)], problem.dtype):
        raise InputError(
            "network: this one is trained, and untrained it has no posterior; give a finished fit, run=..., "
            "or network=truth"
        )
    own = {key: value for key, value in identity(config).items() if key not in IDENTITY}
    study = runs.check_name("study", str(config["study"]))
    return Source(problem, problem.model, {}, fold, 1, study, Path(config["outputs"]), own, "")


def of_run(own: Mapping[str, Any], given: Set[str]) -> Source:
    """A finished fit's model at its estimates."""
    fits = finished([Path(str(own["run"]))])
    if len(fits) > 1:
        raise InputError(f"run={own['run']}: {len(fits)} complete fits here; give the folder of one")
    (folder, record), (back,) = fits[0], restore(fits, own["trust"])
    model, where = back.problem.model, record.address
    wanted = model.init([Stream(0, where.fold, where.replicate)], torch.float64)
    if own["population"] == "joint":
        known = POPULATION
        wanted = {name: value for name, value in wanted.items() if name not in known}
    missing = sorted(set(wanted) - set(back.state.trained))
    if missing:
        raise InputError(
            f"{folder}: objective {where.objective} estimates no {missing[0]}; choose population=joint, or "
            "the run of another objective"
        )
    values = {name: back.state.trained[name].double() for name in wanted}
    above = runs.study_folder(folder, where)
    if above is None and "outputs" not in given:
        raise InputError(f"{folder}: is not in the folder of its study; give outputs=...")
    return Source(
        back.problem,
        model,
        values,
        where.fold,
        where.replicate,
        runs.check_name("study", str(own["study"] or where.study)),
        Path(own["outputs"]) if above is None or "outputs" in given else above.parent,
        {"config_hash": record.config_hash, "estimates": runs.fingerprint([folder / "parameters.parquet"])},
        "-"
        + "-".join(
            [where.objective, where.variant, *(f"{key}={value}" for key, value in where.where.items())]
        ),
    )


def _priors(source: Source) -> Priors | None:
    covariates = source.problem.config["dataset"]["covariates"]
    references = {name: float(entry["reference"]) for name, entry in covariates.items()}
    return priors_of(source.problem.config["priors"], references)


def target_of(source: Source, own: Mapping[str, Any], rows: Any) -> KnownPopulation | JointPopulation:
    """What is sampled, of the subjects in ``rows`` of the event table."""
    dtype, model = getattr(torch, own["dtype"]), source.model
    everyone = Population.from_events(source.problem.events, dtype, not model.pk.needs_double)
    population = everyone.select([rows] * own["chains"])
    values = {
        name: value.to(dtype).expand(*value.shape[:-1], own["chains"])
        for name, value in source.estimates.items()
    }
    zeta = model.typical(values, population)
    made = model.random_effects.init([Stream(0, 1, 1)], dtype)
    shapes = sorted(set(made) - set(POPULATION) - set(values))
    if shapes:
        raise InputError(
            f"distributions: {shapes[0].removeprefix('global.')} is estimated, and no fit is given that has; "
            "give run=..., or a number"
        )
    if own["population"] == "joint":
        return JointPopulation(
            model, values, population, zeta, PopulationPrior(model, own["lkj"], _priors(source))
        )
    unknown = (
        []
        if values
        else [
            name
            for name, estimated in (
                ("sigma", model.error.free),
                *((group.of.capitalize(), group.fixed is None) for group in model.groups),
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
