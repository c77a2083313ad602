"""Options of a job: composed by Hydra, completed, checked, and which of them a result depends on."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from medcm_cli.errors import InputError

Config = Mapping[str, Any]

AXES = ("fold", "outer", "inner", "replicate")
"""Options with several values that are trained together, as one batch."""

DTYPES = ("float32", "float64")  # names of torch's, which is not imported to check a configuration
# What a result does not depend on.
_NOT_IDENTITY = ("study", "outputs", *AXES, "variant", "overwrite", "batch", "labels", "tail")
# The options of conf/config.yaml: groups of them, and values.
_GROUPS = ("dataset", "split", "network", "pk", "error", "objective", "optimizer", "batch")
_VALUES = (
    *("study", "outputs", *AXES, "seed", "epochs", "checkpoint_every", "learning_rate", "redraws", "tail"),
    *("random_effects", "omega", "fixed", "dtype", "variant", "overwrite"),
)
# Options that configurations of earlier results do not have, and what they mean then. At these values they
# are no part of what identifies a result, so that the earlier ones stay valid.
_LATER = {"outer": None, "inner": None, "omega": "full", "fixed": None, "redraws": 20, "tail": None}
_LATER_OF: dict[str, Config] = {
    "dataset": {
        "columns": {},
        "keep": {},
        "bolus_duration": 1 / 60,  # h
        "over_time": {},
        "preparation": None,
        "cohort": None,
        "batch_subjects": None,
    },
    "network": {"initial": {}},
    "objective": {"mode_gradient": "fixed", "components": 2, "population": "point", "lkj": 1},
    "pk": {"lag": {}, "bioavailability": {}, "durations": {}, "adjoint": False, "steady_state_doses": 50},
}
# What a configuration names (``_target_``) has moved since: the name that the first results recorded -> where
# it is now. Both are read; the first names are what identifies a result, so that the earlier ones stay valid.
_RENAMED = {
    "medcm_cli.variability.ResidualError": "medcm_cli.model.ResidualError",
    "medcm_cli.networks.CovariateNetwork.build": "medcm_cli.model.CovariateNetwork.build",
    "medcm_cli.simulate.TrueParameters": "medcm_cli.haemophilia.TrueParameters",
}
_FIRST_NAMES = {now: first for first, now in _RENAMED.items()}


def as_config(composed: DictConfig) -> dict[str, Any]:
    """A composed configuration with every reference resolved; omegaconf's error for one that leads nowhere.

    :raises InputError: an option that does not exist, or one or its value that is not there.
    """
    options = {*_GROUPS, *_VALUES}
    unknown = sorted({str(key) for key in composed} - options)
    if unknown:
        raise InputError(f"{unknown[0]}: no such option; `--help` lists them")
    absent = sorted(options - {str(key) for key in composed})
    if absent:
        raise InputError(f"{absent[0]}: is missing; `--help` lists the options")
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise InputError(f"{missing[0]} must be given: {missing[0]}=...")
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def conf_dir() -> Path:
    """The configuration folder: the checkout's, or the one inside an installed package."""
    here = Path(__file__).resolve().parents[1]
    beside = here.parent / "conf"
    return beside if (beside / "config.yaml").is_file() else here / "conf"


def complete(config: Config) -> dict[str, Any]:
    """A configuration that has every option, each of its kind.

    :raises InputError: an option of another kind than expected.
    """
    for option in _GROUPS:
        if not isinstance(config[option], Mapping):
            raise InputError(f"{option} is {config[option]!r}; expected a group of options")
    config = {**_LATER, **config, "dataset": {**_LATER_OF["dataset"], **config["dataset"]}}
    config = {key: _with_names(value, _RENAMED) for key, value in config.items()}
    dataset = config["dataset"]
    if not isinstance(config["overwrite"], bool):
        raise InputError(f"overwrite is {config['overwrite']!r}; expected true or false")
    for option in ("study", "outputs"):
        if config[option] is None or config[option] == "":
            raise InputError(f"{option} is {config[option]!r}; expected a name")
    effects = config["random_effects"]
    if not isinstance(effects, list) or not all(isinstance(name, str) for name in effects):
        raise InputError(f"random_effects is {effects!r}; expected a list of parameters, as in [CL,V1]")
    for option, least in (("epochs", 1), ("checkpoint_every", 1), ("seed", 0), ("redraws", 0)):
        whole(option, config[option], least)
    whole("batch.threads", config["batch"]["threads"], 1)
    for option, value, least in (
        ("batch.fits", config["batch"]["fits"], 1),
        ("dataset.batch_subjects", dataset["batch_subjects"], 1),
        ("tail", config["tail"], 0),
    ):
        if value is not None:
            whole(option, value, least, "null")
    if config["dtype"] not in DTYPES:
        raise InputError(f"dtype is {config['dtype']!r}; expected one of {', '.join(DTYPES)}")
    for option, value in (
        ("learning_rate", config["learning_rate"]),
        ("dataset.level_scale", dataset["level_scale"]),
        ("pk.amount_per_level", config["pk"].get("amount_per_level", 1)),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{option} is {value!r}; expected a number above 0")
    _check_dataset(dataset)
    return config


def fixed(config: Config) -> tuple[Any, dict[str, Any]]:
    """Omega (a matrix, None where it is estimated) and the sigmas that are known, from option ``fixed``.

    :raises InputError: neither null, truth nor values, or no truth to take them from.
    """
    given, truth = config["fixed"], config["dataset"]["truth"]
    if given is None:
        return None, {}
    if given == "truth":
        if truth is None:
            raise InputError("fixed=truth: the truth of this dataset is not known (dataset.truth is null)")
        if truth["random_effects"] != config["random_effects"]:
            raise InputError(
                f"fixed=truth: the true Omega is that of {truth['random_effects']}, "
                f"random_effects is {config['random_effects']}"
            )
        return truth["omega"], dict(truth["sigma"])
    if not isinstance(given, Mapping) or not given or set(given) - {"omega", "sigma"}:
        raise InputError(f"fixed is {given!r}; expected null, truth or omega, sigma or both, as in {_FIXED}")
    sigma = given.get("sigma", {})
    if not isinstance(sigma, Mapping):
        raise InputError(f"fixed.sigma is {sigma!r}; expected components of the error, as in {_FIXED}")
    return given.get("omega"), dict(sigma)


_FIXED = "fixed='{omega: [[0.04, 0], [0, 0.02]], sigma: {additive: 0.03}}'"


def _check_dataset(dataset: Config) -> None:
    for option in ("columns", "keep", "over_time"):
        if not isinstance(dataset[option], Mapping):
            raise InputError(f"dataset.{option} is {dataset[option]!r}; expected a group, {{}} for none")
    covariates = dataset["covariates"]
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


def folds_of(config: Config) -> dict[int, dict[str, int]]:
    """The folds that a configuration asks for: number, from 1, of a fold and of its random stream -> what it
    is called, ``fold`` or, in a nested split, ``outer`` and ``inner``.

    :raises InputError: an axis that the split has not.
    """
    if "inner_folds" not in config["split"]:
        for name in ("outer", "inner"):
            if config[name] is not None:
                raise InputError(f"{name}={config[name]}: this split has fold; only split=nested has {name}")
        return {fold: {"fold": fold} for fold in axis("fold", config["fold"])}
    if axis("fold", config["fold"]) != [1]:
        raise InputError(f"fold={config['fold']}: split=nested has outer and inner in place of fold")
    most = whole("split.inner_folds", config["split"]["inner_folds"], 2)
    outer, inner = (axis(name, 1 if config[name] is None else config[name]) for name in ("outer", "inner"))
    if max(inner) > most:
        raise InputError(f"inner={max(inner)}: expected 1 to {most}, the number of inner folds")
    return {(o - 1) * most + i: {"outer": o, "inner": i} for o, i in itertools.product(outer, inner)}


def made(config: Config, where: str, **arguments: Any) -> Any:
    """Instantiate a configuration group. :raises InputError: with the group's name, for options that do not
    fit."""
    try:
        return instantiate(OmegaConf.create(dict(config)), _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        reason = error.__cause__ or error
        raise InputError(f"{where}: {' '.join(str(reason).split())}") from error


def identity(config: Config) -> dict[str, Any]:
    """The options that a result depends on. Where the data lie is not what they are."""
    own = _own(config)
    own |= {group: _without(own[group], later) for group, later in _LATER_OF.items() if group in own}
    return _without(own, _LATER)


def difference(old: Config, new: Config) -> str:
    """The first option that matters in which two configurations differ, in words; empty where there is
    none."""
    return _first_difference(_filled(old), _filled(new))


def _filled(config: Config) -> dict[str, Any]:
    filled = {**_LATER, **_own(config)}
    return filled | {group: {**later, **filled.get(group, {})} for group, later in _LATER_OF.items()}


def _own(config: Config) -> dict[str, Any]:
    own = {key: _with_names(value, _FIRST_NAMES) for key, value in config.items() if key not in _NOT_IDENTITY}
    return own | {"dataset": {k: v for k, v in config.get("dataset", {}).items() if k != "path"}}


def _with_names(options: Any, names: Mapping[str, str]) -> Any:
    """Options in which every ``_target_`` of ``names`` has its other name."""
    if isinstance(options, list):
        return [_with_names(value, names) for value in options]
    if not isinstance(options, Mapping):
        return options
    named = {key: _with_names(value, names) for key, value in options.items()}
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
