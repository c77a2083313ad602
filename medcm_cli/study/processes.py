"""How many processes train, and what they load while jobs are still being composed. None of it loads
torch."""

from medcm_cli import processes
from medcm_cli.checks import whole
from medcm_cli.study.axes import axis, folds_of
from medcm_cli.study.identity import Config

_FITS_PER_PROCESS = 8  # a process of its own costs seconds of imports: not worth it for fewer
_LOADED = ("medcm_cli.study.workers", "torch._dynamo")  # which the first optimiser loads


def count(option: object, fits: int, cores: int | None = None) -> int:
    """From ``batch.processes``: a number, or ``auto`` for one per core where there are fits enough.

    :param cores: that the job has; None: all that this process may use.
    """
    if option == "auto":
        return max(1, min(cores or processes.cores(), fits // _FITS_PER_PROCESS))
    return whole("batch.processes", option, 1, other="auto")


def load_ahead() -> None:
    """Begin to load in the background what processes that train are made of."""
    processes.foresee(_LOADED)


def foresee_training(config: Config) -> None:
    """``load_ahead`` where a job, with its options complete, has fits enough for several processes."""
    fits = len(folds_of(config)) * len(axis("replicate", config["replicate"]))
    if config["device"] == "cpu" and count(config["batch"]["processes"], fits) > 1:
        load_ahead()
