"""What a job is to do, by its options alone: the addresses of its fits, and that they are planned. Loads no
torch."""

from collections.abc import Mapping
from pathlib import Path

from medcm_cli import runs
from medcm_cli.runs.planned import plan
from medcm_cli.study.axes import axis, folds_of
from medcm_cli.study.identity import Config, dataset_name


def address_of(config: Config, fit: Mapping[str, int]) -> runs.Address:
    """Where a fit lies. :param config: of a job, with its ``labels``. :param fit: its place among those that
    are alike.

    :raises InputError: a name that no folder can have.
    """
    labels = config["labels"]
    return runs.Address(
        study=runs.check_name("study", str(config["study"])),
        dataset=runs.check_name("dataset.name", dataset_name(config["dataset"])),
        objective=labels["objective"],
        error=labels["error"],
        learning_rate=float(config["learning_rate"]),
        variant=runs.check_name("variant", str(config["variant"] or labels["variant"] or "default")),
        **fit,
    )


def write_plan(config: Config) -> Path | None:
    """Write down the fits of a job; gives the file, None where it is there already.

    :param config: complete. :raises InputError: options that do not fit together.
    """
    first, axes = _first_of(config)
    return plan(Path(config["outputs"]), first, axes)


def place_of(config: Config) -> Path:
    """The folder that the fits of a job share.

    :param config: complete. :raises InputError: options that do not fit together.
    """
    first, _ = _first_of(config)
    return first.method_folder(Path(config["outputs"]))


def _first_of(config: Config) -> tuple[runs.Address, dict[str, list[int]]]:
    """Where the first of a job's fits lies, and the numbers of which it has every combination."""
    (fold, where), *_ = folds_of(config).items()
    axes = {name: axis(name, 1 if config[name] is None else config[name]) for name in (*where, "replicate")}
    return address_of(config, {"fold": fold, **where, "replicate": axes["replicate"][0]}), axes
