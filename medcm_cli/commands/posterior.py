"""``medcm posterior``: Hydra composes the configuration, NUTS samples, a folder keeps the draws.

``medcm_cli.runs.draws`` says what lies in the folder. ArviZ reads the draws as

    draws = pd.read_parquet("draws.parquet").set_index(["chain", "draw", "position"])
    arviz.convert_to_dataset(draws.filter(like="eta").to_xarray())
"""

from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from medcm_cli.checks import flag, fraction, name, number, one_of, whole
from medcm_cli.commands.compose import Steps, run
from medcm_cli.commands.terminal import show
from medcm_cli.errors import InputError
from medcm_cli.study.options import DTYPES

if TYPE_CHECKING:
    from medcm_cli.report.section import Section

POPULATIONS = ("known", "joint")
_MOST_DRAWS = 10_000_000  # of a subject, of all chains
SUBJECTS = ("train", "test", "all")
# Options that describe a model and its data, which a run has its own of.
_OF_MODEL = (
    *("dataset", "split", "network", "pk", "error", "fold", "outer", "inner"),
    *("random_effects", "given", "omega", "occasions", "distributions", "priors", "fixed", "initial"),
)


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: a flag, override, group or choice that does not
    exist."""
    posterior(arguments, show)


def posterior(arguments: list[str], show: Callable[["Section"], None]) -> None:
    """Hydra composes the configuration, and the posterior that it describes is sampled unless it is there.

    :param show: prints a table.
    :raises InputError: a flag, override, group or choice that does not exist.
    """
    arguments = [as_one_value(argument) for argument in arguments]
    given = {argument.partition("=")[0].lstrip("+~") for argument in arguments}

    def check_composed(composed: DictConfig) -> None:
        check(_own(composed), given)

    def job(composed: DictConfig) -> None:
        from medcm_cli.commands import posterior_job  # torch and NUTS take seconds

        posterior_job.run(composed, _own(composed), given, show)

    run("posterior", "posterior", arguments, Steps(check_composed, job))


def _own(composed: DictConfig) -> dict[str, Any]:
    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def as_one_value(argument: str) -> str:
    """``run=FOLDER`` with the quotes that Hydra needs: a run folder's name holds ``=``."""
    option, _, value = argument.partition("=")
    if option != "run" or "=" not in value or value[0] in "'\"":
        return argument
    escaped = value.replace("'", "\\'")
    return f"run='{escaped}'"


def check(own: Mapping[str, Any], given: Set[str]) -> None:
    """:raises InputError: a value that an option cannot have, or an option of the model beside ``run``."""
    for option, choices in (("population", POPULATIONS), ("subjects", SUBJECTS), ("dtype", DTYPES)):
        one_of(option, own[option], choices)
    whole("seed", own["seed"], 0)
    whole("chains", own["chains"], 1, 1000)
    whole("warmup", own["warmup"], 1, 1_000_000)
    most = _MOST_DRAWS // own["chains"]
    whole("draws", own["draws"], 4, most, limit=f"{_MOST_DRAWS} of all chains")
    number("lkj", own["lkj"], above=0, most=1000)
    for option in ("run", "name", "study"):
        if own[option] is not None:
            name(option, own[option])
    if not isinstance(own["outputs"], str) or not own["outputs"]:
        raise InputError(f"outputs is {own['outputs']!r}; expected the name of a folder")
    fraction("target_accept", own["target_accept"])
    for option in ("overwrite", "trust"):
        flag(option, own[option])
    foreign = sorted(key for key in given if key.split(".")[0] in _OF_MODEL)
    if own["run"] is not None and foreign:
        raise InputError(f"{foreign[0]} and run=...: the run has its own; leave one of them out")
