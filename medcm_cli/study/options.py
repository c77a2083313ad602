"""Options of a problem and of a job: composed by Hydra, completed and checked. Loads no torch."""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medcm_cli.checks import flag, name, number, one_of, shown, whole
from medcm_cli.errors import InputError
from medcm_cli.files import check_depth
from medcm_cli.study.covariates import LARGEST, check_covariates
from medcm_cli.study.endpoints import complete_endpoints
from medcm_cli.study.identity import KNOWN, LATER, LATER_OF, PROTOCOLS, RENAMED, Config, with_names
from medcm_cli.study.kinds import check_kinds, check_made, check_plain, check_target
from medcm_cli.study.occasions import check_occasions
from medcm_cli.study.units import thresholds_of, with_units

# Hydra logs what it raises, too, as a line of its own.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)

DTYPES = ("float32", "float64")
DEVICES = ("cpu", "cuda", "mps", "auto")
"""Names of torch's; auto is cuda where there is one, and else cpu."""

_PLAIN = ("dataset", "batch")
_PROBLEM_GROUPS = ("dataset", "split", "network", "pk", "error")
_JOB_GROUPS = ("objective", "optimizer", "batch")
PROBLEM = (
    *_PROBLEM_GROUPS,
    *(
        "study",
        "outputs",
        "fold",
        "outer",
        "inner",
        "seed",
        "random_effects",
        "given",
        "endpoints",
        "omega",
        "occasions",
        "distributions",
        "priors",
        "fixed",
        "initial",
        "dtype",
    ),
    "overwrite",
)
"""The options that a problem has, whatever is done about it: those of conf/problem.yaml, and its groups."""

JOB = (
    *PROBLEM,
    *_JOB_GROUPS,
    *("replicate", "epochs", "checkpoint_every", "learning_rate", "redraws", "tail", "device", "variant"),
    "training",
)
"""Those of a training job: of conf/config.yaml."""


_INTEGRATED = "medcm_cli.pk.OdeModel"


def as_config(composed: DictConfig, options: Sequence[str] = JOB) -> dict[str, Any]:
    """A composed configuration with every reference resolved; omegaconf's error for one that leads nowhere.

    :param options: that it has.
    :raises InputError: an option that does not exist, or one or its value that is not there.
    """
    unknown = sorted({str(key) for key in composed} - set(options))
    if unknown:
        raise InputError(f"{unknown[0]}: no such option; `--help` lists them")
    absent = sorted(set(options) - {str(key) for key in composed})
    if absent:
        raise InputError(f"{absent[0]}: is missing; `--help` lists the options")
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise InputError(f"{missing[0]} must be given: {missing[0]}=...")
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    check_depth(config, "the configuration")
    return {str(key): value for key, value in with_method(config, "auto").items()}


def with_method(config: Mapping[Any, Any], method: str) -> dict[Any, Any]:
    """A configuration with the method of a model that is integrated and says of none."""
    pk = config["pk"]
    if not isinstance(pk, Mapping) or pk.get("_target_") != _INTEGRATED:
        return dict(config)
    return {**config, "pk": {"method": method, **pk}}


def conf_dir() -> Path:
    """The configuration folder: the checkout's, or the one inside an installed package."""
    here = Path(__file__).resolve().parents[1]
    beside = here.parent / "conf"
    return beside if (beside / "config.yaml").is_file() else here / "conf"


def complete(config: Config) -> dict[str, Any]:
    """A job's configuration that has every option, each of its kind.

    :raises InputError: an option of another kind than expected.
    """
    _check_groups(config, _JOB_GROUPS)
    config = with_protocol({**LATER, **complete_problem(config)})
    _check_limits(config, (option for option in _LIMITS if option.split(".")[0] not in PROBLEM))
    if config["epochs"] // config["checkpoint_every"] > _CHECKPOINTS:
        raise InputError(
            f"checkpoint_every is {config['checkpoint_every']}; expected at most {_CHECKPOINTS} checkpoints"
        )
    batch = {
        "processes": "auto",
        "fits": None,
        "graph": True,
        "compile": False,
        **config["batch"],
    }  # a restored fit needs none of them
    if batch["processes"] != "auto":
        whole("batch.processes", batch["processes"], 1, 1024, other="auto")
    _whole_or_null("batch.fits", batch["fits"], 1)
    flag("batch.graph", batch["graph"])
    flag("batch.compile", batch["compile"])
    _whole_or_null("tail", config["tail"], 0)
    one_of("device", config["device"], DEVICES)
    if batch["compile"] and config["device"] != "cpu":
        raise InputError("batch.compile=true is of device=cpu; leave it out")
    if config["device"] == "mps" and config["dtype"] == "float64":
        raise InputError("dtype=float64: device=mps has no such numbers; choose dtype=float32 or device=cpu")
    if config["variant"] is not None:
        name("variant", config["variant"])
    for key, value in config["optimizer"].items():
        if isinstance(value, float):
            number(f"optimizer.{key}", value)
    return config


def with_protocol(config: Config) -> dict[str, Any]:
    """A job's configuration whose options of ``training`` say what its protocol stands for; and what else
    follows from that.

    :raises InputError: another protocol, or an option that is none.
    """
    given = config["training"]
    if not isinstance(given, Mapping) or set(given) - {"protocol", *PROTOCOLS["paper"]}:
        expected = ", ".join(("protocol", *PROTOCOLS["paper"]))
        raise InputError(f"training is {shown(given)}; expected a group of {expected}")
    protocol = given.get("protocol", "paper")
    one_of("training.protocol", protocol, tuple(PROTOCOLS))
    training = {**PROTOCOLS[protocol], **{k: v for k, v in given.items() if v is not None}}
    training.pop("protocol", None)
    one_of("training.start", training["start"], ("drawn", "data"))
    one_of("training.scale", training["scale"], ("softplus", "log"))
    one_of("training.stop", training["stop"], ("epochs", "converged", "start"))
    flag("training.polish", training["polish"])
    if training["stop"] == "start":
        training["polish"] = False
    ends = training["stop"] == "converged" or training["polish"]
    # Where training ends at the estimate, the last checkpoint is that.
    tail = 0 if ends and config["tail"] is None else config["tail"]
    objective = dict(config["objective"])
    if objective.get("mode_gradient", "") is None:
        objective["mode_gradient"] = "implicit" if training["polish"] else None
    return {**config, "training": training, "tail": tail, "objective": objective}


# What nobody means, and a machine would choke on: whole numbers from and to, and numbers above 0 to.
_LIMITS: Mapping[str, tuple[int, int] | float] = {
    "epochs": (1, 10_000_000),
    "checkpoint_every": (1, 10_000_000),
    "redraws": (0, 1000),
    "batch.threads": (1, 1024),
    "objective.samples": (1, 10_000),
    "objective.components": (1, 1000),
    "objective.mode_iterations": (1, 100_000),
    "pk.steady_state_doses": (1, 10_000),
    "split.size": (1, 1_000_000),
    "split.inner_folds": (2, 1_000_000),
    "learning_rate": 1000.0,
    "objective.learning_rate": 1000.0,
    "optimizer.lr": 1000.0,
    "objective.mode_tolerance": 1.0,
    "objective.lkj": 1000.0,
    "pk.rtol": 1.0,
    "pk.atol": 1e6,
    **dict.fromkeys(("pk.amount_per_level", "dataset.level_scale"), LARGEST),
}
_ALL = ("split.size",)  # null: all that there are
_CHECKPOINTS = 1_000_000


def _check_limits(config: Config, options: Iterable[str]) -> None:
    """:raises InputError: one of the ``options`` of ``_LIMITS`` that a configuration has is beyond them."""
    for option in options:
        group, _, key = option.rpartition(".")
        given = config[group] if group else config
        limit = _LIMITS[option]
        if key in given and isinstance(limit, float):
            number(option, given[key], above=0, most=limit)
        elif key in given and isinstance(limit, tuple) and not (option in _ALL and given[key] is None):
            whole(option, given[key], *limit)


def complete_problem(config: Config) -> dict[str, Any]:
    """A configuration that has every option of a problem, each of its kind; others are left as they are.

    :raises InputError: an option of another kind than expected.
    """
    _check_groups(config, _PROBLEM_GROUPS)
    later = {option: value for option, value in LATER.items() if option in PROBLEM}
    absent = sorted({"name", "path", "events"} - set(config["dataset"]))
    if absent:
        raise InputError(f"dataset.{absent[0]}: is missing; `--help` lists the options")
    config = {**later, **config, "dataset": {**_DATASET, **LATER_OF["dataset"], **config["dataset"]}}
    config = complete_endpoints(with_units(config), _error_choices())
    config = {key: with_names(value, RENAMED) for key, value in config.items()}
    if config["pk"].get("bioavailability"):
        rule = {"bioavailability_keeps": LATER_OF["pk"]["bioavailability_keeps"]}
        config["pk"] = {**rule, **config["pk"]}
    flag("overwrite", config["overwrite"])
    name("study", config["study"])
    if not isinstance(config["outputs"], str) or not config["outputs"]:
        raise InputError(f"outputs is {config['outputs']!r}; expected the name of a folder")
    effects = config["random_effects"]
    if not isinstance(effects, list) or not all(isinstance(effect, str) for effect in effects):
        raise InputError(f"random_effects is {effects!r}; expected a list of parameters, as in [CL,V1]")
    check_occasions(config["occasions"])
    whole("seed", config["seed"], 0)
    one_of("dtype", config["dtype"], DTYPES)
    _check_limits(config, (option for option in _LIMITS if option.split(".")[0] in PROBLEM))
    _check_dataset(config["dataset"])
    return config


# Of a data set that says nothing of it.
_DATASET: Config = {
    "covariates": {},
    "truth": None,
    "predose_observations": "error",
}


@functools.cache
def _error_choices() -> Mapping[str, Any]:
    """Choice of the group ``error`` -> its options."""
    files = sorted((conf_dir() / "error").glob("*.yaml"))
    return {file.stem: OmegaConf.load(file) for file in files if file.stem != "endpoints"}


def _check_groups(config: Config, groups: Iterable[str]) -> None:
    for option in groups:
        if not isinstance(config[option], Mapping):
            raise InputError(f"{option} is {config[option]!r}; expected a group of options")
        if option in _PLAIN and "_target_" in config[option]:
            raise InputError(f"{option}._target_: no such option; {option} is made by no class or function")


def _whole_or_null(option: str, value: object, least: int) -> None:
    if value is not None:
        whole(option, value, least, other="null")


def names_a_fit(given: object) -> bool:
    """Whether option ``fixed`` says that what is known is what another fit has found (``study.known``)."""
    return isinstance(given, Mapping) and bool(set(given) & {"population", "individual"})


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
        if config["distributions"]:
            raise InputError("fixed=truth: the true parameters are log-normal; leave out distributions")
        if truth["random_effects"] != config["random_effects"]:
            raise InputError(
                f"fixed=truth: the true Omega is that of {truth['random_effects']}, "
                f"random_effects is {config['random_effects']}"
            )
        return truth["omega"], dict(truth["sigma"])
    if KNOWN in config and names_a_fit(given):  # which covariates say
        return None, {}
    if not isinstance(given, Mapping) or not given or set(given) - {"omega", "pi", "sigma"}:
        expected = f"null, truth, omega, sigma or both, as in {_FIXED}, or a fit, {{population: FOLDER}}"
        raise InputError(f"fixed is {given!r}; expected {expected}")
    if "pi" in given and config["occasions"] is None:
        raise InputError("fixed.pi: nothing varies between occasions (occasions is null)")
    sigma = given.get("sigma", {})
    if not isinstance(sigma, Mapping):
        raise InputError(f"fixed.sigma is {sigma!r}; expected components of the error, as in {_FIXED}")
    return given.get("omega"), dict(sigma)


_FIXED = "fixed='{omega: [[0.04, 0], [0, 0.02]], sigma: {additive: 0.03}}'"


def _check_dataset(dataset: Config) -> None:
    name("dataset.name", dataset["name"])
    for option in ("path", "cohort"):
        if dataset[option] is not None and (not isinstance(dataset[option], str) or not dataset[option]):
            raise InputError(f"dataset.{option} is {dataset[option]!r}; expected a name or null")
    names = dataset["events"] if isinstance(dataset["events"], list) else [dataset["events"]]
    if not names or not all(isinstance(file, str) and file for file in names if names != [None]):
        raise InputError(f"dataset.events is {dataset['events']!r}; expected the name of a file, or a list")
    _text("dataset.level_unit", dataset["level_unit"])
    thresholds_of(dataset)
    _whole_or_null("dataset.batch_subjects", dataset["batch_subjects"], 1)
    for option in ("columns", "keep", "dialect", "over_time"):
        if not isinstance(dataset[option], Mapping):
            raise InputError(f"dataset.{option} is {dataset[option]!r}; expected a group, {{}} for none")
    if dataset["protocol"] is not None:
        one_of("dataset.protocol", dataset["protocol"], tuple(PROTOCOLS))
    if dataset["truth"] is not None and not isinstance(dataset["truth"], Mapping):
        raise InputError(
            f"dataset.truth is {shown(dataset['truth'])}; expected null, or random_effects, omega and sigma"
        )
    check_covariates(dataset["covariates"], dataset["preparation"] is not None)


def _text(option: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{option} is {value!r}; expected a text")


def made(config: Config, where: str, **arguments: Any) -> Any:
    """Instantiate a configuration group. :raises InputError: with the group's name, for options that do not
    fit, or what is of another group."""
    check_plain(where, config)
    check_target(where, config)
    try:
        result = instantiate(OmegaConf.create(dict(config)), _convert_="all", **arguments)
    except (InstantiationException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        reason = error.__cause__ or error
        raise InputError(f"{where}: {' '.join(str(reason).split())}") from error
    check_kinds(where, config)
    if where != "optimizer":  # which is made later, of values
        check_made(where, config, result)
    return result
