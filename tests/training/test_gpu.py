"""Training on a CUDA device, where there is one: the CPU's numbers to rounding, replayed as graphs or not."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medcm_cli.model import Model
from medcm_cli.study.job import Job
from medcm_cli.training import replay
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from medcm_cli.training.trained import Trained
from tests.helpers import STREAMS, configuration, make_population
from tests.training.test_replay import Failing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
ADDED = "network.global_parameters="
CASES: dict[str, tuple[str, ...]] = {
    "mse": ("objective=mse",),
    "fo": ("objective=fo", "error=combined"),
    "foce": ("objective=foce",),
    "foce, implicit": ("objective=foce", "objective.mode_gradient=implicit"),
    "vi": ("objective=vi", "error=combined"),
    "vi, mixture": ("objective=vi", "objective.family=mixture"),
    "vi, flow": ("objective=vi", "objective.family=flow"),
    "vi, population": ("objective=vi", "objective.population=variational"),
    "vi, minibatches": ("objective=vi", "dataset.batch_subjects=3"),
    "vi, three": ("objective=vi", "network=none", "pk=three_compartment", ADDED + "[CL,V1,Q,V2,Q3,V3]"),
    "vi, oral": ("objective=vi", "network=none", "pk=one_compartment_oral", ADDED + "[CL,V1,KA]"),
}
REPLAYED = {"mse", "fo", "vi", "vi, mixture", "vi, flow", "vi, population", "vi, three", "vi, oral"}
EPOCHS = 12


def job(data: Path, outputs: Path, *choices: str) -> Job:
    fixed = ("replicate=[1,2,3]", f"epochs={EPOCHS}", "checkpoint_every=4", "dtype=float64")
    return Job.build(configuration(data, outputs, *fixed, *choices))


def trained(data: Path, outputs: Path, *choices: str) -> Trained:
    return job(data, outputs, "fold=[1,2]", *choices).train([(1, 1), (1, 2), (2, 3)])


def close(one: Trained, other: Trained) -> None:
    assert one.failures == other.failures
    for name in ("checkpoints", "objective", "unconverged"):
        a, b = getattr(one, name), getattr(other, name)
        a, b = (torch.where(torch.isfinite(of), of, 0) for of in (a, b))  # of a fit that has failed
        assert a.device.type == "cpu"
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_cpu_to_rounding(name: str, data: Path, tmp_path: Path) -> None:
    here = trained(data, tmp_path, *CASES[name])
    there = trained(data, tmp_path, *CASES[name], "device=cuda")
    close(there, here)
    eager = trained(data, tmp_path, *CASES[name], "device=cuda", "batch.graph=false")
    close(eager, here)
    assert eager.replayed == 0
    assert there.replayed == (EPOCHS - replay.WARM - 1 if name in REPLAYED else 0)


def test_a_solver_that_chooses_its_steps_is_not_captured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial = "network.initial={CL: 0.2, V1: 3, Q: 0.2, V2: 1}"
    choices = (
        "objective=mse",
        "network=none",
        initial,
        "pk=two_compartment_ode",
        "epochs=6",
        "pk.rtol=0.001",
    )
    here = trained(data, tmp_path, *choices)
    close(trained(data, tmp_path, *choices, "device=cuda"), here)
    # Where it is tried all the same, training goes on without.
    monkeypatch.setattr(replay, "repeats", lambda *_: True)
    tried = trained(data, tmp_path, *choices, "device=cuda")
    assert tried.replayed == 0
    close(tried, here)


def test_a_fit_that_fails_fails_as_on_the_cpu(model: Model) -> None:
    adam = functools.partial(torch.optim.Adam, lr=0.1, fused=True)
    population, course = make_population(5, 2), Course(EPOCHS, 4)
    here, there = (
        train(model, Failing(), population, STREAMS, adam, course, torch.float64, device=torch.device(name))
        for name in ("cpu", "cuda")
    )
    assert here.failures[1] is not None
    assert there.replayed > 0
    close(there, here)


def test_run_folders_are_read_wherever_they_were_trained(data: Path, tmp_path: Path) -> None:
    here, there = (job(data, tmp_path / name, "objective=vi", f"device={name}") for name in ("cpu", "cuda"))
    for made in (here, there):
        records = made.run(list(made.plan().records.values()))
        assert ("device" in records[0].batch) == (made is there)
    (one, other) = (sorted((tmp_path / name).rglob("history.parquet")) for name in ("cpu", "cuda"))
    for a, b in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(a), pd.read_parquet(b), rtol=1e-5)
    # Done is done, on whatever device.
    assert replace(there, device=torch.device("cpu")).plan().todo == ()
    assert np.isfinite(pd.read_parquet(one[0])["objective_value"]).all()
