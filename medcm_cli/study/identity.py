"""What a result depends on: the options that identify it, those that came later, names that have moved, and
versions of packages."""

import functools
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from medcm_cli import __version__
from medcm_cli.haemophilia.units import UNITS

Config = Mapping[str, Any]

STARTS = "starts"
"""Where population parameters begin by the data, as a record has it beside its options: name -> value."""

KNOWN = "known"
"""Covariates of subjects that come from another fit (``study.known``), as a record has them beside its
options: column -> id -> value."""

KNOWN_NETWORK = "known_network"
"""Typical parameters that come from the network of another fit: its ``config`` as far as that says the
network, and the ``values`` of what it has trained, name -> (nested) lists."""

AXES: tuple[str, ...] = ("fold", "outer", "inner", "replicate")
"""Options with several values that are trained together, as one batch."""

# What a result does not depend on.
_NOT_IDENTITY = (
    "study",
    "outputs",
    *AXES,
    "variant",
    "overwrite",
    "batch",
    "device",
    "labels",
    "tail",
    STARTS,
)
_NOT_OF_DATA = ("path", "thresholds", "protocol")  # of ``dataset``
PROTOCOLS: Mapping[str, Config] = {
    "paper": {"start": "drawn", "scale": "softplus", "stop": "epochs", "polish": False},
    "field": {"start": "data", "scale": "log", "stop": "converged", "polish": True},
}
"""What ``training.protocol`` stands for (docs/methods.md, "Training"): the paper's, which was all that there
was before there were others, and one that ends where a fit has converged."""
# Options that configurations of earlier results do not have, and what was done before there were any: no
# defaults, which are those of conf/ and may change. At these values they are no part of what identifies a
# result, so that the earlier ones stay valid.
LATER: Config = {
    "outer": None,
    "inner": None,
    "omega": "full",
    "occasions": None,
    "given": {},
    "endpoints": None,
    "distributions": {},
    "priors": {},
    "fixed": None,
    "initial": {},
    "training": PROTOCOLS["paper"],
    "redraws": 20,
    "tail": None,
    "device": "cpu",
}
LATER_OF: Mapping[str, Config] = {
    "dataset": {
        "columns": {},
        "keep": {},
        "dialect": {},
        "bolus_duration": 1 / 60,  # h
        "over_time": {},
        "preparation": None,
        "cohort": None,
        "batch_subjects": None,
        "thresholds": None,
        "logged": False,
        "protocol": None,
        "blq": "M3",
    },
    "network": {"initial": {}},
    "objective": {
        "mode_gradient": "fixed",
        "components": 2,
        "population": "point",
        "lkj": 1,
        "initial_sd": None,
    },
    "pk": {
        "lag": {},
        "bioavailability": {},
        "durations": {},
        "bioavailability_keeps": "duration",
        "adjoint": False,
        "norm": "rms",
        "output": None,
        "start": None,
        "terms": {},
        "parameter_units": {},
        "steady_state_doses": 50,
    },
}
# What a configuration names (``_target_``) has moved since: the name that the first results recorded -> where
# it is now. Both are read; the first names are what identifies a result, so that the earlier ones stay valid.
RENAMED = {
    "medcm_cli.variability.ResidualError": "medcm_cli.model.ResidualError",
    "medcm_cli.networks.CovariateNetwork.build": "medcm_cli.model.CovariateNetwork.build",
    "medcm_cli.simulate.TrueParameters": "medcm_cli.haemophilia.TrueParameters",
}
_FIRST_NAMES = {now: first for first, now in RENAMED.items()}


def identity(config: Config) -> dict[str, Any]:
    """The options that a result depends on. Where the data lie is not what they are."""
    own = _own(config)
    own |= {group: _without(own[group], later) for group, later in LATER_OF.items() if group in own}
    return _without(own, LATER)


def difference(old: Config, new: Config) -> str:
    """The first option that matters in which two configurations differ, in words; empty where there is
    none."""
    return _first_difference(_filled(old), _filled(new))


def _filled(config: Config) -> dict[str, Any]:
    filled = {**LATER, **_own(config)}
    return filled | {group: {**later, **filled.get(group, {})} for group, later in LATER_OF.items()}


def _own(config: Config) -> dict[str, Any]:
    own = {key: with_names(value, _FIRST_NAMES) for key, value in config.items() if key not in _NOT_IDENTITY}
    if "pk" in own and not own["pk"].get("bioavailability"):  # then there is nothing to keep
        own["pk"] = {key: value for key, value in own["pk"].items() if key != "bioavailability_keeps"}
    if "objective" in own and own["objective"].get("mode_gradient", "") is None:
        usual = "implicit" if own["objective"].get("formulation") == "nonmem" else "fixed"
        own["objective"] = {**own["objective"], "mode_gradient": usual}
    dataset = {k: v for k, v in config.get("dataset", {}).items() if k not in _NOT_OF_DATA}
    if full_units(dataset.get("units")) in (None, UNITS):  # as of before, in h and with its level_unit
        dataset.pop("units", None)
    return own | {"dataset": dataset}


def full_units(given: Any) -> Any:
    """``dataset.units`` with those of ``UNITS`` where that of amounts or levels is null; what is no set of
    units as it is."""
    if not isinstance(given, Mapping):
        return given
    return {**UNITS, **{kind: unit for kind, unit in given.items() if unit is not None or kind == "time"}}


def dataset_name(dataset: Config) -> str:
    """What a data set is called in folders: of a cohort whose data are not given, that it is synthetic."""
    name = str(dataset["name"])
    stands_in = dataset["cohort"] is not None and dataset["path"] is None
    return f"synthetic_{name.removeprefix('synthetic_')}" if stands_in else name


def with_names(options: Any, names: Mapping[str, str]) -> Any:
    """Options in which every ``_target_`` of ``names`` has its other name."""
    if isinstance(options, list):
        return [with_names(value, names) for value in options]
    if not isinstance(options, Mapping):
        return options
    named = {key: with_names(value, names) for key, value in options.items()}
    target = named.get("_target_")
    return named | {"_target_": names[target]} if isinstance(target, str) and target in names else named


def _without(options: Config, later: Config) -> dict[str, Any]:
    """Options but for those that came later and have the value that says nothing."""
    return {key: value for key, value in options.items() if key not in later or value != later[key]}


def _first_difference(old: Config, new: Config, prefix: str = "") -> str:
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if a == b or f"{prefix}{key}" in _NOT_IDENTITY:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            return _first_difference(a, b, f"{prefix}{key}.")
        return f"{prefix}{key} is {a!r} there and {b!r} here"
    return ""


@functools.cache  # reading packages' metadata takes milliseconds, and every fit's record has them
def versions() -> Mapping[str, str]:
    """Versions that a result may depend on."""
    packages = ("torch", "torchdiffeq", "zuko", "numpy", "scipy", "hydra-core")
    return {"medcm": __version__, "python": platform.python_version()} | {
        name: version(name) for name in packages
    }
