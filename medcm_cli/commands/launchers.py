"""Jobs of a multirun that one of Hydra's launchers spreads over processes and machines (docs/clusters.md)."""

import os
import platform
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medcm_cli.errors import InputError, JobError

_OF_EXTRA = re.compile(r"hydra_plugins\.hydra_(?:joblib|submitit|ray)_launcher\b")
_BASIC = "BasicLauncher"  # Hydra's own: one job after another, in this process
# Options of launchers that say how many cores a job has to itself.
_CORES = ("cpus_per_task", "ray.remote.num_cpus")


def launched(hydra: Any) -> bool:
    """Whether jobs are handed to a launcher. :param hydra: Hydra's part of a job's configuration."""
    several = str(OmegaConf.select(hydra, "mode")).endswith("MULTIRUN")
    return several and not str(hydra.launcher.get("_target_")).endswith(f".{_BASIC}")


def cores_of(hydra: Any) -> int | None:
    """How many cores a job has to itself; None where that is for the machine to say."""
    if not launched(hydra):
        return None
    for option in _CORES:
        found = OmegaConf.select(hydra.launcher, option)
        if isinstance(found, int | float) and found >= 1:
            return int(found)
    return 1 if "n_jobs" in hydra.launcher else None  # joblib: as many jobs as cores


def go_home(hydra: Any) -> None:
    """Work in the folder where the command was given, as jobs elsewhere do not by themselves.

    :raises InputError: it is not there.
    """
    folder = str(hydra.runtime.cwd)
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: is not on {platform.node()}; the machines of a launcher share the folder that the "
            "command is given in"
        ) from error


def not_installed(fault: str) -> str:
    """What to do about a launcher that is not installed; nothing where ``fault`` is another."""
    if not _OF_EXTRA.search(fault):
        return ""
    return "hydra/launcher: is not installed; the extra `cluster` has it: pip install -e '.[cluster]'"


def lost(launcher: str, error: Exception) -> JobError:
    """What ended a multirun on the launcher's side, in one line. :param launcher: its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -=")]
    said = lines[0] if lines else type(error).__name__
    return JobError(
        f"{launcher.rpartition('.')[2]}: {said[:300]}; what is finished is kept, jobs that run or wait "
        "elsewhere go on, and the same command does what is left"
    )


def without_hydra(composed: DictConfig) -> DictConfig:
    """A job's own options."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
