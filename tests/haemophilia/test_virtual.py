"""Simulated patients: same seed same bytes, the published distributions, and levels against scipy."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.csv
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from medcm_cli.data import Population, bootstrap, from_files, read_events
from medcm_cli.errors import InputError
from medcm_cli.haemophilia import virtual as simulate
from medcm_cli.haemophilia.virtual import Settings, Truth, settings_of, typical_parameters, write_study
from medcm_cli.pk import solve, two_compartment
from medcm_cli.study.job import Job
from tests.helpers import configuration

N = 20_000
COVARIATES = {"weight": "wt", "vwf": "vwf", "age": "age"}
OMEGA = np.array([[0.037, 0.0113], [0.0113, 0.017]])
SMALL = Settings(n=40, seed=3, folds=2, fold_size=10)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "study"
    write_study(folder, Settings(n=N, seed=1, folds=1))
    return folder


@pytest.fixture(scope="module")
def rows(large: Path) -> pd.DataFrame:
    return pd.read_parquet(large / "simulation.parquet")


@pytest.fixture(scope="module")
def patients(large: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """A row per patient: truth beside the dose row."""
    doses = rows[rows["mdv"] == 1].set_index("id")
    truth = pd.read_parquet(large / "truth.parquet").set_index("id")
    joined = truth.join(doses, validate="one_to_one")
    assert len(joined) == N
    return joined


def samples(rows: pd.DataFrame, column: str) -> np.ndarray:
    return rows[rows["mdv"] == 0][column].to_numpy().reshape(-1, 3)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- files -----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_study(tmp_path / name, SMALL)
    first, second = (bytes_of(tmp_path / name) for name in ("first", "second"))
    expected = {"simulation.csv", "simulation.parquet", "truth.json", "truth.parquet"}
    assert set(first) == expected | {"train_set_1.csv", "train_set_2.csv"}
    assert first == second


def test_another_seed_changes_every_file(tmp_path: Path) -> None:
    write_study(tmp_path / "3", SMALL)
    write_study(tmp_path / "4", Settings(n=40, seed=4, folds=2, fold_size=10))
    first, second = (bytes_of(tmp_path / name) for name in ("3", "4"))
    assert set(first) == set(second)
    for name, content in first.items():
        assert content != second[name], name


@pytest.mark.parametrize(("n", "chunk"), [(40, 15), (40, 40), (40, 20), (40, 39), (1, 15)])
def test_patients_made_in_several_chunks_are_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, chunk: int
) -> None:
    monkeypatch.setattr(simulate, "CHUNK", chunk)
    done: list[int] = []
    write_study(tmp_path / "study", Settings(n=n, seed=3, folds=0), done.append)
    assert done == [*range(chunk, n, chunk), n]
    names = [f"virtual_{number}" for number in range(1, n + 1)]
    truth = pd.read_parquet(tmp_path / "study" / "truth.parquet")
    assert truth["id"].tolist() == names
    assert truth["eta_CL"].nunique() == n  # no chunk repeats another
    for name in ("simulation.csv", "simulation.parquet"):
        events = read_events(tmp_path / "study" / name, COVARIATES)
        assert events.ids == tuple(names)
        assert len(events.time) == 4 * n
        assert np.unique(events.covariates["weight"]).size == n


def test_both_formats_hold_the_same_table_in_the_published_columns(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    csv = pyarrow.csv.read_csv(tmp_path / "simulation.csv").to_pandas()
    parquet = pd.read_parquet(tmp_path / "simulation.parquet")
    columns = "id time dv mdv amt rate duration age ht wt bgo vwf pred ipred"
    assert csv.columns.tolist() == parquet.columns.tolist() == columns.split()
    pd.testing.assert_frame_equal(csv, parquet, check_dtype=False, check_exact=True)
    for name in ("simulation.csv", "simulation.parquet"):
        events = read_events(tmp_path / name, COVARIATES)
        observations = parquet[parquet["mdv"] == 0]
        np.testing.assert_array_equal(events.dv[~events.is_dose], observations["dv"])
        np.testing.assert_array_equal(events.time, parquet["time"])


def test_training_sets_are_read_back_as_they_were_drawn(tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    for number in (1, 2):
        fold = from_files(number, SMALL.n, tmp_path, "train_set_{fold}.csv", "validation_set_{fold}.csv")
        drawn = bootstrap(number, SMALL.n, SMALL.fold_size, SMALL.seed)
        assert len(fold.train) == SMALL.fold_size
        np.testing.assert_array_equal(fold.train, drawn.train)
        np.testing.assert_array_equal(fold.test, drawn.test)


def test_the_folder_tells_its_settings_and_its_truth(tmp_path: Path) -> None:
    write_study(tmp_path / "study", SMALL)
    assert settings_of(tmp_path / "study") == SMALL
    truth = json.loads((tmp_path / "study" / "truth.json").read_text())
    np.testing.assert_array_equal(truth["omega"], OMEGA)
    assert (truth["sigma"], truth["q"], truth["v2"]) == (0.03, 0.15, 0.75)


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"settings": {"patients": 3}}', '{"settings": 3}']
)
def test_a_folder_without_a_simulation_has_no_settings(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "truth.json").write_text(content)
    assert settings_of(tmp_path) is None
    assert settings_of(tmp_path / "absent") is None


@pytest.mark.parametrize("old", [False, True], ids=["new folder", "over old content"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    monkeypatch.setattr(simulate, "CHUNK", 15)
    folder = tmp_path / "study"
    if old:
        write_study(folder, SMALL)
    before = bytes_of(folder) if old else {}

    def full_disk(done: int) -> None:
        if done > 15:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_study(folder, Settings(n=40, seed=9, folds=2), full_disk)
    assert [path.name for path in tmp_path.iterdir()] == (["study"] if old else [])
    if old:
        assert bytes_of(folder) == before


@pytest.mark.parametrize(
    "options", [{"n": 0}, {"n": -5}, {"seed": -1}, {"folds": -1}, {"fold_size": 0}], ids=str
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    (name, value) = next(iter(options.items()))
    with pytest.raises(InputError, match=f"{name} is {value}"):
        Settings(**options)


# -- distributions ---------------------------------------------------------------------------------


def test_random_effects_have_the_true_covariance(patients: pd.DataFrame) -> None:
    eta = patients[["eta_CL", "eta_V1"]].to_numpy()
    variance = np.diag(OMEGA)
    assert (np.abs(eta.mean(0)) < 4.5 * np.sqrt(variance / N)).all()
    error = np.sqrt((np.outer(variance, variance) + OMEGA**2) / N)  # of a covariance of normal numbers
    assert (np.abs(np.cov(eta.T) - OMEGA) < 4.5 * error).all()
    for effect, sd in zip(eta.T, np.sqrt(variance), strict=True):
        assert stats.kstest(effect / sd, stats.norm.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(eta.T, patients[["wt", "vwf", "age"]].to_numpy().T)[:2, 2:]).max() < (
        4.5 / math.sqrt(N)
    )


@pytest.mark.parametrize(("sample", "mean", "sd"), [(0, 4, 1.5), (1, 24, 4), (2, 48, 4)])
def test_sample_times(rows: pd.DataFrame, sample: int, mean: float, sd: float) -> None:
    time = samples(rows, "time")
    assert (time > 0).all()
    assert (np.diff(time) >= 0).all()
    law = stats.truncnorm(-mean / sd, np.inf, mean, sd)
    assert stats.kstest(time[:, sample], law.cdf).pvalue > 1e-3


def test_residual_error(rows: pd.DataFrame) -> None:
    dv, level = samples(rows, "dv").ravel(), samples(rows, "ipred").ravel()
    assert (dv >= 0).all()
    clear = level > 0.2  # more than six sd above the floor
    assert clear.sum() > N
    assert stats.kstest(dv[clear] - level[clear], stats.norm(0, 0.03).cdf).pvalue > 1e-3
    chance = stats.norm.cdf(-level / 0.03)  # of a value below zero, which becomes zero
    spread = math.sqrt((chance * (1 - chance)).sum())
    assert abs((dv == 0).sum() - chance.sum()) < 4.5 * spread
    assert chance.sum() > 100


def test_dose_rule(rows: pd.DataFrame, patients: pd.DataFrame) -> None:
    dose, target = patients["amt"], 25 * patients["wt"]
    assert (dose % 250 == 0).all()
    assert (dose >= 250).all()
    assert ((dose - target).abs().le(125) | (dose.eq(250) & target.lt(250))).all()
    np.testing.assert_allclose(patients["duration"], 1 / 60, rtol=1e-15)
    np.testing.assert_allclose(patients["rate"] * patients["duration"], dose, rtol=1e-14)
    assert (patients["time"] == 0).all()
    assert (rows[rows["mdv"] == 0]["amt"] == 0).all()


def test_covariates_do_not_change_within_a_patient(rows: pd.DataFrame) -> None:
    grouped = rows.groupby("id")[["age", "ht", "wt", "bgo", "vwf"]]
    assert (grouped.min() == grouped.max()).all(axis=None)
    share = rows[rows["mdv"] == 1]["bgo"].mean()
    assert abs(share - 0.45) < 4.5 * math.sqrt(0.45 * 0.55 / N)


@pytest.mark.parametrize("column", ["age", "ht", "wt", "vwf"])
def test_covariates_are_distributed_as_the_published_ones(
    published: Path, patients: pd.DataFrame, column: str
) -> None:
    frame = pd.read_csv(published / "simulation.csv").drop_duplicates("id")
    assert stats.ks_2samp(frame[column], patients[column]).pvalue > 1e-3


# -- parameters and levels -------------------------------------------------------------------------


def true_clearance(weight: float, vwf: float) -> float:
    """docs/methods.md, "Truth of the simulation study"."""
    x = 100 - vwf
    leaky = 0.05 * x + 0.95 * math.log1p(math.exp(0.1 * x)) / 0.1
    return float(0.1 * (weight / 70) ** 0.75 * (leaky / 55 + 0.9))


@pytest.mark.parametrize(
    ("weight", "vwf"), [(70, 100), (70, 0), (70, 350), (10, 60), (150, 200), (35.5, 99.5), (70, 900)]
)
def test_typical_parameters(weight: float, vwf: float) -> None:
    zeta = typical_parameters(np.array([float(weight)]), np.array([float(vwf)]), Truth())
    assert set(zeta) == {"CL", "V1", "Q", "V2"}
    assert zeta["CL"][0] == pytest.approx(true_clearance(weight, vwf), rel=1e-12)
    assert zeta["V1"][0] == pytest.approx(2 * weight / 70, rel=1e-14)
    assert (zeta["Q"][0], zeta["V2"][0]) == (0.15, 0.75)


def test_the_typical_patient() -> None:
    """At 70 kg and 100 IU/dL: CL = 0.1 (9.5 ln 2 / 55 + 0.9) = 0.10197 L/h, V1 = 2 L."""
    zeta = typical_parameters(np.array([70.0]), np.array([100.0]), Truth())
    assert zeta["CL"][0] == pytest.approx(0.1 * (9.5 * math.log(2) / 55 + 0.9), rel=1e-14)
    assert zeta["CL"][0] == pytest.approx(0.10197, rel=1e-4)
    assert zeta["V1"][0] == 2


def test_individual_parameters_are_typical_ones_times_their_effects(patients: pd.DataFrame) -> None:
    typical = [true_clearance(*pair) for pair in zip(patients["wt"], patients["vwf"], strict=True)]
    np.testing.assert_allclose(patients["CL"], typical * np.exp(patients["eta_CL"]), rtol=1e-12)
    v1 = 2 * patients["wt"] / 70 * np.exp(patients["eta_V1"])
    np.testing.assert_allclose(patients["V1"], v1, rtol=1e-13)
    assert (patients["Q"] == 0.15).all()
    assert (patients["V2"] == 0.75).all()


def levels(times: np.ndarray, dose: float, cl: float, v1: float, q: float, v2: float) -> np.ndarray:
    """IU/mL after a dose given over one minute, by scipy; the end of the infusion is a step of its own."""

    def change(t: float, amount: np.ndarray, rate: float) -> list[float]:
        del t
        out, back = (cl + q) / v1 * amount[0], q / v2 * amount[1]
        return [rate - out + back, q / v1 * amount[0] - back]

    options: dict[str, Any] = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-10}
    minute = 1 / 60
    during = solve_ivp(change, (0, minute), [0.0, 0.0], args=(dose / minute,), **options)
    after = solve_ivp(change, (minute, times[-1]), during.y[:, -1], args=(0.0,), t_eval=times, **options)
    return np.asarray(after.y[0] / v1 / 1000)


@pytest.mark.parametrize("patient", [0, 1, 77, N - 1])
def test_levels_equal_scipy(rows: pd.DataFrame, patients: pd.DataFrame, patient: int) -> None:
    of = patients.iloc[patient]
    time = samples(rows, "time")[patient]
    zeta = (true_clearance(of["wt"], of["vwf"]), 2 * of["wt"] / 70, 0.15, 0.75)
    for column, z in (("pred", zeta), ("ipred", (of["CL"], of["V1"], of["Q"], of["V2"]))):
        expected = levels(time, of["amt"], *z)
        np.testing.assert_allclose(samples(rows, column)[patient], expected, rtol=1e-10)


def test_true_parameters_give_the_published_levels(published: Path) -> None:
    """The published levels come from a numerical integration: they agree to a thousandth."""
    frame = pd.read_csv(published / "simulation.csv")
    table = read_events(published / "simulation.csv", {"weight": "wt", "vwf": "vwf"})
    population = Population.from_events(table, torch.float64)
    zeta = typical_parameters(table.covariates["weight"], table.covariates["vwf"], Truth())
    z = {name: torch.tensor(values)[None, :, None] for name, values in zeta.items()}
    got = solve(two_compartment(), population.schedule, z)[:, 0, :, 0].numpy()
    np.testing.assert_allclose(got.T, samples(frame, "pred"), rtol=1e-3)


def test_true_parameters_stand_in_for_a_network(tmp_path: Path) -> None:
    """The predictions of a model with them are the true typical levels that the simulator wrote."""
    data = tmp_path / "data"
    write_study(data, Settings(n=25, folds=1, fold_size=5))
    choices = ("network=truth", "split=all", "dtype=float64", "fixed=truth")
    job = Job.build(configuration(data, tmp_path, *choices))
    population, _ = job.problem.populations([(1, 1), (1, 2)])
    zeta = job.problem.model.typical({}, population)
    predicted = job.problem.model.predict(zeta, population)
    events = pd.read_parquet(data / "simulation.parquet")
    expected = events.loc[events["mdv"] == 0, "pred"].to_numpy().reshape(25, 3).T
    for fit in range(2):
        np.testing.assert_allclose(predicted[:, 0, :, fit % predicted.shape[-1]], expected, rtol=1e-10)
    assert job.problem.model.network.effects == (("weight", "CL"), ("weight", "V1"), ("vwf", "CL"))
