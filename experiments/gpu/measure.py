"""Training on a CUDA device against the CPU: tests, then time, memory and how far results are apart.

python experiments/gpu/measure.py [--data ../shared/data] [--seconds 300] [--device cuda] [--cases vi,fo]
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from hydra import compose, initialize_config_dir

from medcm_cli.numerics.devices import described
from medcm_cli.numerics.streams import Noise, Stream
from medcm_cli.study.job import Job
from medcm_cli.study.options import as_config, conf_dir
from medcm_cli.study.workers import prepare
from medcm_cli.training.trained import Trained

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROPOFOL = (
    "dataset=table",
    "dataset.name=propofol",
    "split=all",
    "network=none",
    "pk=three_compartment",
    "network.global_parameters=[CL,V1,Q,V2,Q3,V3]",
    "+network.initial={CL: 1.5, V1: 6, Q: 1.5, V2: 25, Q3: 1, V3: 250}",
    "error=proportional",
    "+dataset.columns={dv: CP}",
    "dataset.units={time: min, amount: mg, level: ug/mL}",
    "dataset.predose_observations=keep",
    "error=combined",
    "learning_rate=0.01",
)


@dataclass(frozen=True)
class Case:
    """``options`` of so many fits, trained for ``epochs``, and on the CPU for ``here`` of them."""

    name: str
    options: tuple[str, ...]
    fits: int
    epochs: int
    here: int


CASES = (
    *(Case(f"{name}, 100 fits", (f"objective={name}",), 100, 200, 60) for name in ("fo", "foce", "vi")),
    Case("vi, 1 sample, 100 fits", ("objective=vi", "objective.samples=1"), 100, 200, 60),
    Case("mse, 100 fits", ("objective=mse",), 100, 200, 60),
    *(Case(f"{name}, 10 000 fits", (f"objective={name}",), 10_000, 60, 8) for name in ("vi", "fo")),
    Case("vi, propofol, 747 patients", ("objective=vi", *PROPOFOL), 1, 60, 12),
    Case("vi, propofol, all", ("objective=vi", *PROPOFOL), 1, 60, 12),
    Case("foce, 10 000 fits", ("objective=foce",), 10_000, 60, 8),
)


@dataclass(frozen=True)
class Measured:
    """``epoch`` s of one, after the first; ``memory`` MiB at most; ``trained``."""

    epoch: float
    memory: float
    trained: Trained


def job_of(case: Case, data: Path, outputs: Path) -> Job:
    """A case's job, on the CPU."""
    given = [f"outputs={outputs}", "batch.processes=1", "checkpoint_every=4", *case.options]
    if "propofol" in case.name:
        frame = pd.read_csv(data / "propofol" / "propofol.csv.gz")
        if not case.name.endswith("all"):  # those whose records are not far longer than the others'
            frame = frame[(frame["EVID"] == 1).groupby(frame["ID"]).transform("sum") <= 86]
        frame.to_csv(outputs / "propofol.csv", index=False)
        given.append(f"dataset.path={outputs / 'propofol.csv'}")
    elif (data / "me-dcm").is_dir():
        given += ["dataset.name=me-dcm", f"dataset.path={data / 'me-dcm'}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = as_config(compose("config", given))
    return Job.build(config | {"labels": {"objective": "x", "error": "x", "variant": ""}})


def measured(job: Job, fits: int, epochs: int, device: str, graph: bool = True) -> Measured:
    """Train so many fits of fold 1."""
    batch = {**job.config["batch"], "graph": graph}
    job = replace(job, config={**job.config, "epochs": epochs, "batch": batch}, device=torch.device(device))
    times: list[tuple[int, float]] = []
    _reset(device)
    trained = job.train(
        [(1, replicate) for replicate in range(1, fits + 1)],
        lambda epoch, _: times.append((epoch, time.perf_counter())),
    )
    (first, begun), (last, ended) = times[1], times[-1]
    return Measured((ended - begun) / (last - first), _peak(device), trained)


def _reset(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # without, it is the peak since the program began
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def apart(one: Trained, other: Trained) -> float:
    """The largest relative difference of the objectives of fits at the last checkpoint that both have."""
    at = min(len(one.epochs), len(other.epochs)) - 1
    a, b = one.objective[at].double(), other.objective[at].double()
    there = torch.isfinite(a) & torch.isfinite(b)
    return float(((a - b).abs() / b.abs().clamp(min=1))[there].max())


def noise_of(job: Job, fits: int, device: str) -> float:
    """Seconds that an epoch's share of the random numbers for a device takes."""
    population, _ = job.problem.populations([(1, 1)])
    shape = job.objective.noise_shape(job.problem.model, population)
    if shape is None:
        return 0.0
    streams = [Stream(0, 1, replicate) for replicate in range(1, fits + 1)]
    noise = Noise(
        streams, shape, [population.shape[1]] * fits, job.problem.dtype, device=torch.device(device)
    )
    begun = time.perf_counter()
    float(noise.draw().sum())  # which waits for them
    return (time.perf_counter() - begun) / 25


def row(case: Case, data: Path, outputs: Path, device: str) -> list[str]:
    """One line of the table."""
    job = job_of(case, data, outputs)
    here = measured(job, case.fits, case.here, "cpu")
    there = measured(job, case.fits, case.epochs, device)
    eager = measured(job, case.fits, case.here, device, graph=False)
    return [
        case.name,
        f"{1000 * here.epoch:.2f}",
        f"{1000 * there.epoch:.3f}",
        f"{1000 * eager.epoch:.3f}",
        f"{here.epoch / there.epoch:.1f}",
        f"{1000 * noise_of(job, case.fits, device):.2f}",
        f"{here.memory:.0f}",
        f"{there.memory:.0f}",
        f"{there.trained.replayed}/{case.epochs}",
        f"{apart(there.trained, here.trained):.1e}",
        f"{sum(f is not None for f in there.trained.failures)}",
    ]


HEADER = (
    *("case", "CPU ms/epoch", "device ms/epoch", "without graph", "times faster", "of it noise, ms"),
    *("CPU MiB", "device MiB", "replayed", "largest rel. diff.", "failed"),
)


def tests() -> int:
    """The GPU tests' exit status."""
    options = ("-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib", "-q", "-rs")
    files = ("tests/training/test_gpu.py", "tests/training/test_replay.py")
    words = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the tests say and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--seconds", type=float, default=300.0, help="no case begins after so many")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="cpu: to try the script")
    parser.add_argument("--cases", default="", help="words, one of which a case's name begins with")
    parser.add_argument("--no-tests", action="store_true")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no CUDA device here; nothing to measure")
    data = given.data.resolve()
    print(f"torch {torch.__version__}, {described(torch.device(given.device))}, data: {data}", flush=True)
    if not given.no_tests:
        print(f"tests: exit status {tests()}", flush=True)
    prepare(1)
    begun = time.perf_counter()
    print(" | ".join(HEADER), flush=True)
    with tempfile.TemporaryDirectory() as outputs:
        for case in CASES:
            if given.cases and not case.name.startswith(tuple(given.cases.split(","))):
                continue
            if "propofol" in case.name and not (data / "propofol" / "propofol.csv.gz").is_file():
                print(f"{case.name}: skipped, {data}/propofol/propofol.csv.gz is not there", flush=True)
                continue
            if time.perf_counter() - begun > given.seconds:
                print(f"{case.name}: skipped, {given.seconds:.0f} s are over", flush=True)
                continue
            try:
                print(" | ".join(row(case, data, Path(outputs), given.device)), flush=True)
            except Exception as error:  # the others are still worth their time
                print(
                    f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True
                )


if __name__ == "__main__":
    main()
