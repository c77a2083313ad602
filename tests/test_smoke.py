"""Every command once, each in an interpreter of its own: what `.ci/run lowest` tries old dependencies with.
That results are right is for the other tests, which do the same work with the pinned versions."""

import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import ran

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
SHORT = ("epochs=4", "checkpoint_every=2", "dataset.path=data", "fold=1,2")


def medcm(folder: Path, *arguments: str) -> str:
    """What a command prints; a warning of Python's is no failure here."""
    done = ran([sys.executable, "-m", "medcm_cli", *arguments], folder, ENVIRONMENT, 600)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fits by each objective, by a spline flow and by torchdiffeq, and a patient."""
    folder = tmp_path_factory.mktemp("smoke")
    medcm(folder, "simulate", "--n", "30", "--folds", "2", "--fold-size", "12", "--out", "data")
    medcm(folder, "fit", "-m", "objective=mse,fo,foce,vi", *SHORT)
    medcm(folder, "fit", "objective=vi", "objective.family=flow", "variant=flow", *SHORT[:3])
    medcm(folder, "fit", "objective=fo", "pk=two_compartment_ode", "study=ode", *SHORT[:3])
    truth = ("network=truth", "split=all", "epochs=300", "dataset.path=data", "study=optimum")
    medcm(folder, "fit", "objective=fo", *truth)  # standard errors are of an optimum
    events = pd.read_parquet(folder / "data" / "simulation.parquet")
    events[events["id"] == events["id"].iloc[0]].to_csv(folder / "patient.csv", index=False)
    return folder


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("data check data/simulation.parquet", "data/simulation.parquet"),
        ("summarize outputs", "outputs/summary/*.parquet"),
        ("plot outputs/default --format png", "outputs/default/figures/**/*.png"),
        ("report outputs/default", "outputs/default/report.html"),
        ("uncertainty outputs/optimum", "outputs/optimum/**/uncertainty.parquet"),
        ("score outputs/optimum", "outputs/optimum/**/score.parquet"),
        (
            "predict --run outputs/default --objective fo --patient patient.csv",
            "outputs/default/predictions/**/*.parquet",
        ),
        (
            "dose --run outputs/default --objective fo --patient patient.csv --target trough>=0.01IU/mL",
            "outputs/default/doses/**/*.parquet",
        ),
        (
            "posterior network=truth fixed=truth warmup=20 draws=20 chains=1 dataset.path=data fold=1",
            "outputs/default/posterior/**/draws.parquet",
        ),
    ],
)
def test_a_command_works(place: Path, arguments: str, written: str) -> None:
    medcm(place, *arguments.split())
    assert list(place.glob(written)), sorted(place.rglob("*"))
