"""What several test files build: a small model and a population made by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.data import EventTable, Population
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.pk import two_compartment

SHARED = Path(__file__).resolve().parents[2] / "shared"
COVARIATES = {
    "weight": {"column": "wt", "scale": 150, "reference": 70, "unit": "kg"},
    "vwf": {"column": "vwf", "scale": 350, "reference": 100, "unit": "IU/dL"},
}
MULTI_BRANCH = [
    {"inputs": ["weight"], "hidden": [12], "heads": ["CL", "V1"]},
    {"inputs": ["vwf"], "hidden": [12], "heads": ["CL"]},
]


@pytest.fixture
def published() -> Path:
    """Folder of the published simulated study."""
    folder = SHARED / "data" / "me-dcm"
    if not folder.is_dir():
        pytest.skip("the published data set is not beside this checkout (../shared/data/me-dcm)")
    return folder


@pytest.fixture
def model() -> Model:
    """The simulation study's model."""
    network = CovariateNetwork.build(MULTI_BRANCH, ["Q", "V2"], COVARIATES)
    return Model(network, two_compartment(), RandomEffects(("CL", "V1")), ResidualError(("additive",)))


def make_events(subjects: int, seed: int = 0, ragged: bool = False, doses: int = 1) -> EventTable:
    """Subjects with one dose at time 0 and more 12 h apart, about three observations each, plausible
    levels."""
    generator = np.random.default_rng(seed)
    rows = []
    for subject in range(subjects):
        for dose in range(doses):
            rows.append((subject, 12.0 * dose, True, 2000.0 / 0.5, 0.5, np.nan))
        for number in range(1 + subject % 3 if ragged else 3):
            time = 12.0 * doses + (4, 24, 48)[number] + generator.uniform(-1, 1)
            level = (0.5, 0.2, 0.08)[number] * np.exp(0.2 * generator.standard_normal())
            rows.append((subject, time, False, np.nan, np.nan, level))
    covariates = {
        "weight": generator.uniform(40, 110, subjects),
        "vwf": generator.uniform(50, 200, subjects),
    }
    return table_of([str(number) for number in range(subjects)], rows, covariates)


def table_of(
    ids: Sequence[str], rows: Sequence[tuple[float, ...]], covariates: dict[str, np.ndarray]
) -> EventTable:
    """From rows of subject, time, whether a dose, rate, duration, dv."""
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    subject, time, is_dose = columns[0].astype(np.int64), columns[1], columns[2].astype(bool)
    nothing = np.zeros(len(rows), dtype=np.int64)
    return EventTable(
        source="made by hand",
        ids=tuple(ids),
        subject=subject,
        time=time,
        clock=time,
        is_dose=is_dose,
        amount=columns[3] * columns[4],
        duration=columns[4],
        since=np.where(is_dose, time, np.nan),
        added=nothing.astype(bool),
        interval=np.where(is_dose, np.inf, np.nan),
        dv=columns[5],
        censored=nothing.astype(bool),
        compartment=nothing - 1,
        segment=nothing,
        occasion=nothing + 1,
        reset_subject=np.zeros(0, dtype=np.int64),
        reset_clock=np.zeros(0),
        covariates=covariates,
    )


def make_population(
    subjects: int, fits: int, dtype: torch.dtype = torch.float64, **options: int
) -> Population:
    """The same subjects in every fit."""
    everyone = Population.from_events(make_events(subjects, **options), dtype)
    return everyone.select([np.arange(subjects)] * fits)


def dense_omega(values: dict[str, Tensor], fit: int) -> np.ndarray:
    """Omega of one fit with two random effects, from the raw values by numpy."""
    sd = np.log1p(np.exp(values["omega"][:, fit].detach().numpy()))
    rho = np.tanh(float(values["correlation"][0, fit]))
    return np.array([[sd[0] ** 2, rho * sd[0] * sd[1]], [rho * sd[0] * sd[1], sd[1] ** 2]])
