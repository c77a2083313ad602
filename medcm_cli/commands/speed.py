"""Speed on this machine, as ratios within one run: absolute times say more about the machine than about the
program."""

import functools
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir

from medcm_cli.data import Population, read_events
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Vi
from medcm_cli.pk import OdeModel, Schedule, solve, two_compartment, two_compartment_rate
from medcm_cli.report.section import Section
from medcm_cli.study.job import Job
from medcm_cli.study.options import as_config, conf_dir
from medcm_cli.study.workers import prepare
from medcm_cli.training.course import Course
from medcm_cli.training.kept import Kept
from medcm_cli.training.loop import train

FITS = 100
FOLLOWING = "foce, implicit, combined"
FEW_FITS = 10
WRITTEN = "{CL: {typical: 0.1, weight: {power: 0.75}}, V1: {typical: 2, weight: {power: 1}}, " + (
    "Q: {typical: {fixed: 0.15}}, V2: {typical: {fixed: 0.75}}}"
)
ENDING = "vi", "saem"  # that converge at the same likelihood
LARGE = ((1250, None), (2500, None), (5000, None), (5000, 500))  # subjects, those of a minibatch
LARGE_DOSES, LARGE_OBSERVATIONS = 30, 20
RAGGED, SHORT_DOSES, LONG_DOSES = 200, 4, 400


def measure(epochs: int, repeats: int, report: Callable[[str], None]) -> Section:
    """Time training and prediction in one process and thread; a table of medians and ratios.

    Every repeat measures everything once, in turn, so that a machine that changes its speed changes all of
    them.
    """
    prepare(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        jobs = _jobs(epochs, folder)
        tasks: dict[str, Callable[[], float]] = {
            "vi, 1 fit": lambda: _train(jobs["vi"], 1, epochs),
            **{
                f"{name}, {FITS} fits": functools.partial(_train, job, FITS, epochs)
                for name, job in jobs.items()
            },
            **{
                f"{name}, {FEW_FITS} fits, to their ends": functools.partial(_train_to_ends, job)
                for name, job in _to_ends(10 * epochs, folder).items()
            },
            f"vi, {FITS} fits, kept on disk": lambda: _train(
                jobs["vi"], FITS, epochs, Kept(Path(folder, "kept.npz"), {})
            ),
            **{
                name: functools.partial(_train_alone, _ragged(grouped), max(1, epochs // 10))
                for name, grouped in (("vi, 1 fit, padded", False), ("vi, 1 fit, ragged", True))
            },
            "closed form": lambda: _predict(jobs["vi"], closed=True),
            "torchdiffeq": lambda: _predict(jobs["vi"], closed=False),
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
        f"iw, {FITS} fits": (hundred, 3.0),
        f"focei, {FITS} fits": (f"{FOLLOWING}, {FITS} fits", 1.3),
        f"laplace, {FITS} fits": (f"{FOLLOWING}, {FITS} fits", 3.0),
        f"saem, {FEW_FITS} fits, to their ends": (f"vi, {FEW_FITS} fits, to their ends", 3.0),
        f"vi, {FITS} fits, kept on disk": (hundred, 1.02),
        "vi, 1 fit, ragged": ("vi, 1 fit, padded", 0.5),
        "torchdiffeq": ("closed form", None),
    }
    cells = []
    for name in tasks:
        unit = "ms per epoch" if "fit" in name else f"ms, prediction and gradient, {FEW_FITS} fits"
        shown = f"{median[name]:.2f} s" if "ends" in name else f"{median[name] * 1e3:.2f} {unit}"
        row = [name, shown, "", ""]
        if name in ratios:
            base, most = ratios[name]
            row[2] = f"{median[name] / median[base]:.2f} x {base}"
            row[3] = f"at most {most:g}" if most else "at least 50"
        cells.append(row)
    title = f"One process, one thread, {epochs} epochs, median of {repeats}"
    return Section(title, ["what", "median", "ratio", "aim"], cells)


def _jobs(epochs: int, folder: str) -> dict[str, Job]:
    jobs = {name: _job(epochs, folder, f"objective={name}") for name in ("mse", "fo", "foce", "vi")}
    # Those that follow the modes, with an error whose sd moves with the prediction.
    implicit = "objective=foce", "objective.mode_gradient=implicit"
    following = {FOLLOWING: implicit, "focei": ("objective=focei",), "laplace": ("objective=laplace",)}
    jobs["iw"] = _job(epochs, folder, "objective=iw")
    return jobs | {name: _job(epochs, folder, "error=combined", *own) for name, own in following.items()}


def _job(epochs: int, folder: str, *options: str) -> Job:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", [*options, f"outputs={folder}", f"epochs={epochs}"])
    return Job.build(as_config(composed))


def _to_ends(epochs: int, folder: str) -> dict[str, Job]:
    """Fits, each of a fold of its own, that converge in so many epochs, by ``ENDING``."""
    field = "training.protocol=field", "network=equations", f"+network.equations={WRITTEN}"
    folds = f"fold={list(range(1, FEW_FITS + 1))}"
    return {name: _job(epochs, folder, f"objective={name}", folds, *field) for name in ENDING}


def _train_to_ends(job: Job) -> float:
    """Seconds of all stages of a training."""
    return job.train([(fold, 1) for fold in range(1, FEW_FITS + 1)]).seconds


def _train(job: Job, fits: int, epochs: int, kept: Kept | None = None) -> float:
    """Seconds per epoch of the training loop."""
    trained = job.train([(1, replicate) for replicate in range(1, fits + 1)], kept=kept)
    if kept is not None:
        kept.remove()
    return trained.seconds / epochs


def _ragged(grouped: bool) -> Population:
    """Records of very different lengths: a dose an hour for four hours, or, of one in twenty subjects, for
    four hundred, and five levels; in groups of like length, or all padded to the longest."""
    generator, rows = np.random.default_rng(0), []
    for subject in range(RAGGED):
        doses = LONG_DOSES if subject % 20 == 0 else SHORT_DOSES
        levels = np.round(generator.uniform(0.2, 1.0, 5), 3)
        times = np.sort(np.round(generator.uniform(0.5, doses + 12, len(levels)), 2))
        rows += [(subject, hour, 1, 1000.0, np.nan) for hour in range(doses)]
        rows += [(subject, hour, 0, np.nan, level) for hour, level in zip(times, levels, strict=True)]
    frame = pd.DataFrame(rows, columns=["ID", "TIME", "EVID", "AMT", "DV"]).sort_values(["ID", "TIME"])
    frame = frame.assign(weight=70.0 + frame["ID"] % 30, crcl=100.0)
    table = read_events(frame.reset_index(drop=True), {name: name for name in ("weight", "crcl")})
    return Population.from_events(table, torch.float32, grouped)


def _predict(job: Job, closed: bool) -> float:
    """Seconds of one prediction with its gradient, at three samples of the true random effects around
    typical values."""
    population, _ = job.problem.populations([(1, replicate) for replicate in range(1, FEW_FITS + 1)])
    _, subjects, fits = population.shape
    eta = torch.randn(2, 3, subjects, fits, generator=torch.Generator().manual_seed(0)) * 0.15
    base = torch.tensor([0.1, 2.0, 0.15, 0.75])
    names = ("CL", "V1", "Q", "V2")
    pk = two_compartment() if closed else OdeModel(two_compartment_rate, names, 2, method="dopri5")
    started = time.perf_counter()
    log_z = base.log()[:, None, None, None].repeat(1, *eta.shape[1:])
    log_z[:2] += eta
    log_z.requires_grad_()
    z = dict(zip(("CL", "V1", "Q", "V2"), log_z.exp().unbind(0), strict=True))
    solve(pk, population.schedule, z).sum().backward()
    return time.perf_counter() - started


def large_study(epochs: int, report: Callable[[str], None]) -> Section:
    """Time and memory of an epoch of vi on one fit of many subjects with many doses, as it grows with the
    number of subjects; each in a separate process, with a thread per core."""
    cells, threads = [], 0
    for subjects, batch_subjects in LARGE:
        what = f"{subjects} subjects" + (f", {batch_subjects} at a time" if batch_subjects else "")
        report(f"large study: {what}")
        # A fresh interpreter: a peak of memory is never forgotten.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, peak, threads = pool.submit(_large_epoch, subjects, batch_subjects, epochs).result()
        aim = "under 1 s and 4 GiB" if (subjects, batch_subjects) == (5000, None) else ""
        cells.append([what, f"{seconds:.2f} s per epoch", f"{peak:.2f} GiB", aim])
    title = (
        f"One fit by vi, {LARGE_OBSERVATIONS} observations and {LARGE_DOSES} doses each, "
        f"{threads} threads, mean of {epochs} epochs"
    )
    return Section(title, ["what", "time", "most memory", "aim"], cells)


def _large_epoch(subjects: int, batch_subjects: int | None, epochs: int) -> tuple[float, float, int]:
    """Seconds of an epoch, the most memory that the process had, GiB, and its threads."""
    torch.set_flush_denormal(True)  # and torch's own choice of threads: tensors are large here
    seconds = _train_alone(_large_population(subjects), epochs, batch_subjects)
    return seconds, _peak_memory(), torch.get_num_threads()


def _train_alone(population: Population, epochs: int, batch_subjects: int | None = None) -> float:
    """Seconds per epoch of one fit by vi."""
    network = CovariateNetwork.build(
        [
            {"inputs": ["weight"], "hidden": [12], "heads": ["CL", "V1"]},
            {"inputs": ["crcl"], "hidden": [12], "heads": ["CL"]},
        ],
        ["Q", "V2"],
        {"weight": {"scale": 150}, "crcl": {"scale": 350}},
    )
    model = Model(network, two_compartment(), RandomEffects(("CL", "V1")), ResidualError(("additive",)))
    trained = train(
        model,
        Vi(),
        population,
        [Stream(0, 1, 1)],
        functools.partial(torch.optim.Adam, lr=0.01, fused=True),
        Course(epochs, epochs, batch_subjects),
        torch.float32,
    )
    return trained.seconds / epochs


def _large_population(subjects: int) -> Population:
    """A dose every half day, and concentrations at any time between them."""
    g = torch.Generator().manual_seed(0)

    def uniform(count: int, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, subjects, 1, generator=g)

    start = 12.0 * torch.arange(LARGE_DOSES).view(-1, 1, 1, 1).expand(-1, 1, subjects, 1)
    dv = uniform(LARGE_OBSERVATIONS, 0.2, 1.0)
    at = uniform(LARGE_OBSERVATIONS, 0.5, 12.0 * LARGE_DOSES + 36).sort(0)[0]
    doses = torch.ones_like(start)
    return Population(
        subject=torch.arange(subjects)[:, None],
        present=torch.ones(subjects, 1),
        time=at,
        dv=dv,
        observed=torch.ones_like(at),
        schedule=Schedule.build(at, start.contiguous(), doses / 60, 1000 * doses),
        covariates={"weight": uniform(1, 40, 110)[0], "crcl": uniform(1, 50, 200)[0]},
        ragged=False,
    )


def _peak_memory() -> float:
    """GiB. Linux keeps a process's own peak; what ``getrusage`` tells includes the parent's at the fork."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
