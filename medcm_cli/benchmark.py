"""Speed on this machine, as ratios within one run: absolute times say more about the machine than about the
program."""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir

from medcm_cli.pk import OdeModel, solve, two_compartment, two_compartment_rate
from medcm_cli.study import Setup, as_config, conf_dir
from medcm_cli.tables import Section
from medcm_cli.workers import prepare

FITS = 100
ODE_FITS = 10


def measure(epochs: int, repeats: int, report: Callable[[str], None]) -> Section:
    """Time training and prediction in one process and thread; a table of medians and ratios.

    Every repeat measures everything once, in turn, so that a machine that changes its speed changes all of
    them.
    """
    prepare(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        setups = {name: _setup(name, epochs, folder) for name in ("mse", "fo", "foce", "vi")}
        tasks: dict[str, Callable[[], float]] = {
            "vi, 1 fit": lambda: _train(setups["vi"], 1, epochs),
            **{
                f"{name}, {FITS} fits": functools.partial(_train, setup, FITS, epochs)
                for name, setup in setups.items()
            },
            "closed form": lambda: _predict(setups["vi"], closed=True),
            "torchdiffeq": lambda: _predict(setups["vi"], closed=False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        for task in tasks.values():  # warm up
            task()
        for repeat in range(1, repeats + 1):
            report(f"measurement {repeat} of {repeats}")
            for name, task in tasks.items():
                seconds[name].append(task())
    median = {name: statistics.median(values) for name, values in seconds.items()}
    hundred = f"vi, {FITS} fits"
    ratios = {
        hundred: ("vi, 1 fit", 8.0),
        f"fo, {FITS} fits": (hundred, 2.0),
        f"foce, {FITS} fits": (hundred, 4.0),
        f"mse, {FITS} fits": (hundred, 1.0),
        "torchdiffeq": ("closed form", None),
    }
    cells = []
    for name in tasks:
        unit = "ms per epoch" if "fit" in name else f"ms, prediction and gradient, {ODE_FITS} fits"
        row = [name, f"{median[name] * 1e3:.2f} {unit}", "", ""]
        if name in ratios:
            base, most = ratios[name]
            row[2] = f"{median[name] / median[base]:.2f} x {base}"
            row[3] = f"at most {most:g}" if most else "at least 50"
        cells.append(row)
    title = f"One process, one thread, {epochs} epochs, median of {repeats}"
    return Section(title, ["what", "median", "ratio", "aim"], cells)


def _setup(objective: str, epochs: int, folder: str) -> Setup:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", [f"objective={objective}", f"outputs={folder}", f"epochs={epochs}"])
    return Setup.build(as_config(composed))


def _train(setup: Setup, fits: int, epochs: int) -> float:
    """Seconds per epoch of the training loop."""
    return setup.train([(1, replicate) for replicate in range(1, fits + 1)]).seconds / epochs


def _predict(setup: Setup, closed: bool) -> float:
    """Seconds of one prediction with its gradient, at three samples of the true random effects around
    typical values."""
    population, _ = setup.populations([(1, replicate) for replicate in range(1, ODE_FITS + 1)])
    _, subjects, fits = population.shape
    eta = torch.randn(2, 3, subjects, fits, generator=torch.Generator().manual_seed(0)) * 0.15
    base = torch.tensor([0.1, 2.0, 0.15, 0.75])
    pk = two_compartment() if closed else OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), 2)
    started = time.perf_counter()
    log_z = base.log()[:, None, None, None].repeat(1, *eta.shape[1:])
    log_z[:2] += eta
    log_z.requires_grad_()
    z = dict(zip(("CL", "V1", "Q", "V2"), log_z.exp().unbind(0), strict=True))
    solve(pk, population.schedule, z).sum().backward()
    return time.perf_counter() - started
