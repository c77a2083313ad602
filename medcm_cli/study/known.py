"""Option ``fixed`` with another fit's parameters: sequential PK-PD, whose kinetics were fitted before (Zhang,
Beal and Sheiner, J Pharmacokinet Pharmacodyn 2003, 30:387-404)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcm_cli import runs
from medcm_cli.checks import shown
from medcm_cli.errors import InputError
from medcm_cli.model import Model
from medcm_cli.model.random_effects import SIGMA
from medcm_cli.numerics.triangular import covariance
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.identity import KNOWN, KNOWN_NETWORK, STARTS, Config
from medcm_cli.study.options import complete_problem, names_a_fit
from medcm_cli.study.restore import Ensemble, ensemble, restore


def with_known(config: Config) -> dict[str, Any]:
    """A configuration in which what another fit has found is written out, where ``fixed`` names one: values
    of population parameters among ``initial`` (PPP&D), or the individual parameters of each subject as
    covariates (IPP), under ``KNOWN``.

    :raises InputError: not one complete fit, or one that does not fit to this model.
    """
    given = config["fixed"]
    if not names_a_fit(given) or KNOWN in config:
        return dict(config)
    config = complete_problem(config)
    ((way, folder), *others) = given.items()
    if others or not isinstance(folder, str) or not folder:
        raise InputError(
            f"fixed is {shown(given)}; expected the folder of one fit, as in fixed={{population: outputs/pk}}"
        )
    fits = finished([Path(folder)])
    if len(fits) > 1:
        raise InputError(f"fixed.{way}: {folder} has {len(fits)} fits; expected the folder of one of them")
    record = fits[0][1]
    where = f"fixed.{way}: {folder}"
    if not isinstance(config["network"].get("equations"), Mapping):
        raise InputError(
            f"fixed.{way}: expected network=equations here, which say the other parameters, networks "
            "among them, as in E0: {typical: 1, age: {network: [12]}}; the other fit may have any network"
        )
    _check_units(where, config, record.config)
    found = _population(where, config, fits[0]) if way == "population" else _individual(where, config, fits)
    return {**config, **found}


def _check_units(where: str, config: Config, other: Config) -> None:
    """Parameters are numbers in the units of the data."""
    here, there = (runs.Units.of_config(of) for of in (config, other))
    for kind in ("time", "amount", "level"):
        one, two = getattr(here, kind), getattr(there, kind)
        if config["dataset"]["units"].get(kind) is not None and one != two:
            raise InputError(
                f"{where} has {two} as its unit of {kind}; expected {one} (dataset.units.{kind})"
            )


def _population(where: str, config: Config, fit: tuple[Path, runs.Record]) -> dict[str, Any]:
    """``initial`` with all that the fit has estimated or known of its population."""
    of = ensemble([fit])
    model, values = of.model, of.estimates
    if not of.mixed:
        raise InputError(f"{where} has no Omega and sigma, as its objective has no random effects")
    _check_random_effects(where, config, model, of.config)
    known: dict[str, Tensor | float] = dict(model.network.values_of(values))
    written = set(model.network.parameters) <= set(known)
    network = {} if written else _network(where, config, of)
    if written:
        _check_equations(where, config, model)
    else:
        known = {}
    for group in model.groups:
        own = covariance(group.cholesky(values))
        sds = [own[place][place].sqrt() for place in range(len(own))]
        known |= {f"{group.of}_{name}": sd for name, sd in zip(group.names, sds, strict=True)}
        for i, j in group.pairs:
            known[group.correlation(i, j)] = own[i][j] / (sds[i] * sds[j])
    ending = _ending(config, of.config)
    known |= {f"{name}{ending}": value for name, value in model.error.reported(values).items()}
    said = config["initial"]
    for name in said:
        if name in known:
            raise InputError(f"initial.{name}: fixed.population says it, too; leave one out")
    initial = {name: {"fixed": float(value)} for name, value in known.items()}
    shapes = model.random_effects.shapes(values)
    spread = dict(config["distributions"])
    for name in model.random_effects.distributions:
        if f"{name}_boxcox" in shapes:
            spread[name] = {"boxcox": {"fixed": float(shapes[f"{name}_boxcox"])}}
    return {"fixed": None, "initial": {**initial, **said}, "distributions": spread, **network}


def _network(where: str, config: Config, of: Ensemble) -> dict[str, Any]:
    """The network of the other fit as it is, in the place of equations of its parameters."""
    covariates, model = config["dataset"]["covariates"], of.model
    for name in model.network.inputs:
        entry = of.config["dataset"]["covariates"][name]
        for kind in ("unit", "values"):
            if name not in covariates or covariates[name].get(kind) != entry.get(kind):
                raise InputError(f"{where} is by {name}; expected dataset.covariates.{name} as it is there")
    for name in config["initial"]:
        if name in model.network.named:
            raise InputError(f"initial.{name}: fixed.population says it, too; leave one out")
    equations = config["network"]["equations"]
    left = {name: given for name, given in equations.items() if name not in model.network.parameters}
    if not left:
        raise InputError(f"{where}: no parameter is left; expected equations of some others")
    names = set(model.network.init(of.streams, torch.float64))
    values = {name: value[..., 0].tolist() for name, value in of.estimates.items() if name in names}
    kept = {key: of.config[key] for key in (*_OF_A_MODEL, STARTS, KNOWN_NETWORK) if key in of.config}
    dataset = {key: value for key, value in of.config["dataset"].items() if key != "path"}
    return {
        "network": {**config["network"], "equations": left},
        KNOWN_NETWORK: {"config": {**kept, "dataset": dataset}, "values": values},
    }


_OF_A_MODEL = (
    *("network", "pk", "error", "random_effects", "given", "endpoints", "omega", "occasions"),
    *("distributions", "fixed", "initial", "dtype"),
)


def _check_equations(where: str, config: Config, model: Model) -> None:
    """Whether the typical parameters of the other fit are equations here."""
    for name in model.network.parameters:
        if name not in config["network"]["equations"]:
            raise InputError(f"{where} has {name}; expected an equation of it here, too")


def _check_random_effects(where: str, config: Config, model: Model, other: Config) -> None:
    """Whether what varies between subjects does so here."""
    for name in model.random_effects.names:
        if name not in config["random_effects"]:
            raise InputError(f"{where}: {name} varies between subjects; expected it among random_effects")
        if config["distributions"].get(name) != other["distributions"].get(name):
            raise InputError(f"{where}: expected distributions.{name} as it is there")


def _ending(config: Config, other: Config) -> str:
    """What sigmas of a fit without endpoints are called here: those of the first."""
    endpoints = config["endpoints"] or {}
    return f"_{next(iter(endpoints))}" if endpoints and not other["endpoints"] else ""


def _individual(where: str, config: Config, fits: list[tuple[Path, runs.Record]]) -> dict[str, Any]:
    """Individual parameters as covariates, which typical parameters without random effects are equal to."""
    (batch,) = restore(fits)
    model, population = batch.problem.model, batch.population
    if model.occasions is not None:
        raise InputError(f"{where} has other individual parameters on each occasion; expected a fit without")
    (folder, record), *_ = fits
    if "random_effects" not in record.tables:
        raise InputError(f"{where} has no random effects; expected another objective than mse")
    table = runs.read_table(folder, record, "random_effects").to_pandas()
    means = [table[f"eta_{place + 1}"] for place in range(len(model.random_effects.names))]
    eta = [torch.from_numpy(mean.to_numpy(copy=True))[None, :, None] for mean in means]
    with torch.no_grad():
        z = model.individual(model.typical(batch.estimates, population), eta, population)
    ids = [batch.problem.events.ids[number - 1] for number in table["subject"]]
    values = dict[str, dict[str, float]]()
    covariates, equations = dict(config["dataset"]["covariates"]), dict(config["network"]["equations"])
    units = runs.Units.of_config(config).of_parameters(model.pk.units)
    for name in model.pk.parameters:
        if z[name].ndim > 3:
            raise InputError(f"{where}: {name} changes in time; expected one value of each subject")
        of_each = z[name].expand(1, len(ids), 1)[0, :, 0].double()
        column = f"known_{name}"
        if not bool((of_each > 0).all()):
            raise InputError(f"{where}: {name} is not above 0 of every subject, as expected here")
        values[column] = dict(zip(ids, of_each.tolist(), strict=True))
        covariates[column] = {
            "column": column,
            "scale": max(1.0, float(of_each.max())),
            "reference": 1.0,
            "unit": units.get(name, "-"),
        }
        equations[name] = {"typical": {"fixed": 1.0}, column: {"power": 1.0}}
    kept = [name for name in config["random_effects"] if name not in model.pk.parameters]
    spread = {name: of for name, of in config["distributions"].items() if name not in model.pk.parameters}
    if not [name for name in kept if name != SIGMA]:
        raise InputError(f"{where}: no random effect is left; expected some of the other parameters")
    return {
        "dataset": {**config["dataset"], "covariates": covariates},
        "network": {**config["network"], "equations": equations},
        "random_effects": kept,
        "distributions": spread,
        KNOWN: values,
    }
