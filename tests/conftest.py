"""Fixtures that several test files use."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.pk import two_compartment
from medcm_cli.study.job import Job
from tests.helpers import COVARIATES, MULTI_BRANCH, SHARED, SMALL, configuration

# One thread for each process that runs tests, and for those that they start: several of each, on as many
# cores, take twice as long.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A command that is done ignores signals, and what a test starts after it would inherit that."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def _one_saver() -> Iterator[None]:
    """Figures are saved in this process: of a few, others take longer to start than to save them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("medcm_cli.report.figures.saved.cores", lambda: 1)
        yield


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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small simulated study."""
    folder = tmp_path_factory.mktemp("simulated") / "data"
    write_study(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def mixed_fits(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fits by vi with a q of the population, by foce and by mse, of which ``write_draws`` invents draws."""
    outputs = tmp_path_factory.mktemp("distances") / "outputs"
    for choices in (
        ("objective=vi", "objective.population=variational", "variant=full"),
        ("objective=foce",),
        ("objective=mse",),
    ):
        job = Job.build(configuration(data, outputs, *choices, "network=none", "replicate=[1,2]"))
        job.run(list(job.plan().records.values()))
    return outputs
