"""Distances of fits from draws of NUTS, with draws made so that the distances are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wasserstein_distance
from test_study import SMALL, configuration

from medcm_cli.distances import distances, section
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.study.restore import finished, restore
from medcm_cli.study.setup import Setup

SHIFT = np.array([0.3, -0.4])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distances") / "data"
    write_study(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def fitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("distances") / "outputs"
    for choices in (
        ("objective=vi", "objective.population=variational", "variant=full"),
        ("objective=foce",),
        ("objective=mse",),
    ):
        setup = Setup.build(configuration(data, outputs, *choices, "network=none", "replicate=[1,2]"))
        setup.run(list(setup.plan().records.values()))
    return outputs


def write_draws(folder: Path, outputs: Path, count: int = 400) -> dict[str, np.ndarray]:
    """Draws with the very mean and covariance of replicate 1 of VI at its last epoch, but for ``SHIFT``."""
    (run,) = outputs.glob("default/*/objective=vi/*/*/*/fold=01/replicate=1")
    q = pd.read_parquet(run / "random_effects.parquet")
    generator = np.random.default_rng(0)
    z = generator.standard_normal((count, len(q), 2))
    z -= z.mean(0)
    for n in range(len(q)):  # exactly white
        z[:, n] = np.linalg.solve(np.linalg.cholesky(np.cov(z[:, n].T)), z[:, n].T).T
    cov = q[["cov_11", "cov_21", "cov_21", "cov_22"]].to_numpy(np.float64).reshape(-1, 2, 2)
    eta = q[["eta_1", "eta_2"]].to_numpy(np.float64) + SHIFT
    eta = eta + np.einsum("nij,snj->sni", np.linalg.cholesky(cov), z)
    chain, draw, position = (a.ravel() for a in np.indices((2, count // 2, len(q))) + 1)
    table = {"chain": chain, "draw": draw, "position": position, "subject": np.tile(q["subject"], count)}
    table |= {"eta_1": eta[..., 0].ravel(), "eta_2": eta[..., 1].ravel()}
    folder.mkdir(parents=True)
    # In another order of rows: a reader is not to depend on it.
    shuffled = pd.DataFrame(table).sample(frac=1, random_state=1)
    shuffled.to_parquet(folder / "draws.parquet")
    population = {
        "sigma_additive": generator.lognormal(-3, 0.1, count),
        "omega_1": generator.lognormal(-2, 0.2, count),
    }
    pd.DataFrame(population).to_parquet(folder / "population.parquet")
    record = json.loads((run / "run.json").read_text())
    (folder / "posterior.json").write_text(json.dumps({"data": record["data"]}))
    return population


def test_a_shifted_gaussian_is_as_far_as_the_shift(fitted: Path, tmp_path: Path) -> None:
    write_draws(tmp_path / "draws", fitted)
    found = distances(tmp_path / "draws", [fitted]).set_index(["objective", "replicate"])
    assert sorted(found.index) == [("foce", 1), ("foce", 2), ("vi", 1), ("vi", 2)]  # mse has no eta
    assert found.loc[("vi", 1), "eta_last"] == pytest.approx((SHIFT**2).sum(), rel=1e-4)
    assert found.loc[("vi", 2), "eta_last"] != pytest.approx((SHIFT**2).sum(), rel=1e-4)
    assert found["eta_sliced"].isna().tolist() == [name != "vi" for name, _ in found.index]
    table = section(found.reset_index())
    assert [row[:1] for row in table.cells] == [["foce"], ["vi"]]


def test_population_parameters_by_draws_of_q(fitted: Path, tmp_path: Path) -> None:
    nuts = write_draws(tmp_path / "draws", fitted)
    found = distances(tmp_path / "draws", [fitted])
    row = found[(found["objective"] == "vi") & (found["replicate"] == 2)].iloc[0]
    (batch,) = restore([f for f in finished([fitted]) if f[1].address.objective == "vi"])
    mean = batch.state.trained["population.mean"][:, 1].double().numpy()
    sd = torch.nn.functional.softplus(batch.state.trained["population.sd"][:, 1].double()).numpy()
    generator = np.random.default_rng(3)
    for place, name in enumerate(("sigma_additive", "omega_1")):
        own = np.exp(mean[place] + sd[place] * generator.standard_normal(200_000))
        assert row[name] == pytest.approx(wasserstein_distance(own, nuts[name]), rel=0.03)
    assert "rho_21" not in found  # the draws have none


def test_other_subjects_are_refused(data: Path, fitted: Path, tmp_path: Path) -> None:
    write_draws(tmp_path / "draws", fitted)
    setup = Setup.build(configuration(data, tmp_path / "other", "objective=fo", "network=none", "fold=2"))
    setup.run(list(setup.plan().records.values()))
    with pytest.raises(InputError, match="other subjects"):
        distances(tmp_path / "draws", [tmp_path / "other"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no complete fit"):
        distances(tmp_path / "draws", [tmp_path / "empty"])
    with pytest.raises(InputError, match="holds no draws"):
        distances(tmp_path / "empty", [fitted])
    mse = [folder for folder, record in finished([fitted]) if record.address.objective == "mse"]
    with pytest.raises(InputError, match="no complete fit with random effects"):
        distances(tmp_path / "draws", mse)


def test_fits_of_other_data_are_refused(fitted: Path, tmp_path: Path) -> None:
    write_draws(tmp_path / "draws", fitted)
    other = tmp_path / "data"
    write_study(other, replace(SMALL, seed=SMALL.seed + 1))
    setup = Setup.build(configuration(other, tmp_path / "outputs", "objective=fo", "network=none"))
    setup.run(list(setup.plan().records.values()))
    with pytest.raises(InputError, match="other subjects"):
        distances(tmp_path / "draws", [tmp_path / "outputs"])
