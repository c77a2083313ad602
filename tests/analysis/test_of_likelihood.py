"""Standard errors of fits by saem, whose objective is the likelihood itself, against its closed form in a
model that is linear in eta."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from medcm_cli.analysis.uncertainty import estimate, intervals
from medcm_cli.objectives import Agq, Laplace, Saem
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.job import Job
from medcm_cli.study.restore import Restored, restore
from tests.helpers import configuration

DOSES = np.array([0.0, 1.0, 2.0, 4.0])
NAMES = ["omega_1", "omega_2", "sigma_additive", "E0", "SLOPE"]
OPTIONS = (
    *("dataset=table", "dataset.name=lines", "dataset.covariates={}", "dataset.columns={dv: y}"),
    *("pk=dose_response_linear", "network=none", "network.global_parameters=[E0,SLOPE]", "split=all"),
    *("random_effects=[E0,SLOPE]", "distributions={E0: additive, SLOPE: additive}", "omega=diagonal"),
    *("error=additive", "objective=saem", "objective.exploration=60", "epochs=120"),
    "dataset.units={time: h, amount: mg, level: mg/L}",
    "initial={E0: 6, SLOPE: 2, omega_E0: 1, omega_SLOPE: 1, sigma_additive: 1}",
)


def levels(subjects: int = 40) -> np.ndarray:
    """Of each subject at each of the doses, (N, T), on a line of its own."""
    generator = np.random.default_rng(11)
    eta = generator.standard_normal((subjects, 2, 1)) * np.array([[1.5], [0.6]])
    noise = generator.standard_normal((subjects, len(DOSES)))
    return np.asarray(8 + eta[:, 0] + (3 + eta[:, 1]) * DOSES + noise)


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Restored:
    folder = tmp_path_factory.mktemp("lines")
    rows = [
        {"id": i, "dose": dose, "y": y}
        for i, of in enumerate(levels())
        for dose, y in zip(DOSES, of, strict=True)
    ]
    pd.DataFrame(rows).to_csv(folder / "events.csv", index=False)
    job = Job.build(configuration(folder / "events.csv", folder / "outputs", *OPTIONS))
    (record,) = job.run(list(job.plan().records.values()))
    assert record.status == "complete"
    (found,) = restore(finished([folder / "outputs"]))
    return found


def log_marginals(natural: Tensor) -> Tensor:
    """Of omegas, sigma and the line's typical values (5,), the log likelihood of each subject, (N,)."""
    x = torch.from_numpy(np.stack([np.ones_like(DOSES), DOSES], -1))
    omega, sigma, line = natural[:2], natural[2], natural[3:]
    covariance = x @ torch.diag(omega**2) @ x.T + sigma**2 * torch.eye(len(DOSES), dtype=x.dtype)
    density: Tensor = MultivariateNormal(x @ line, covariance).log_prob(torch.from_numpy(levels()))
    return density


def test_they_are_those_of_the_exact_likelihood_at_its_optimum(restored: Restored) -> None:
    found = estimate(restored)
    (frame,) = intervals(restored, found, 0.95)
    assert isinstance(frame, pd.DataFrame)
    at = frame[frame["method"] == "sandwich"].set_index("name").loc[NAMES, "estimate"].to_numpy()
    natural = torch.from_numpy(at.copy())
    scores = torch.autograd.functional.jacobian(log_marginals, natural)
    hessian = torch.autograd.functional.hessian(lambda x: -log_marginals(x).sum(), natural)
    score = scores.sum(0)
    assert float(score @ torch.linalg.solve(hessian, score)) < 1e-5  # squared decrement
    inverse = torch.linalg.inv(hessian)
    want = {"hessian": inverse, "sandwich": inverse @ scores.T @ scores @ inverse}
    for method, matrix in want.items():
        se = frame[frame["method"] == method].set_index("name").loc[NAMES, "se"].to_numpy()
        np.testing.assert_allclose(se, matrix.diagonal().sqrt().numpy(), rtol=5e-3)
    assert "the optimum of the likelihood (adaptive Gauss-Hermite)" in found.note


def test_the_likelihood_is_found_by_quadrature_of_few_random_effects() -> None:
    for effects in (1, 2, 3):
        chosen = Saem().criterion(effects)
        assert isinstance(chosen.objective, Agq)
        assert 500 <= chosen.places <= 2000 or effects == 1
    assert isinstance(Saem().criterion(4).objective, Laplace)
