"""What is reported of one fit, recomputed from its invented history."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from medcm_cli import runs
from medcm_cli.report import intervals
from medcm_cli.report.comparison import comparable
from medcm_cli.report.tables import sections
from medcm_cli.runs.summary import columns_units, label_of, numbers_of, summarize
from medcm_cli.runs.sweeps import finished
from medcm_cli.runs.units import resolved
from tests.report.fits import TRUTH, invent, only, write_fit


@pytest.mark.parametrize(
    ("epochs", "tail", "first", "count"),
    [
        (2000, None, 1500, 21),  # the protocol of the simulation study
        (1000, None, 750, 11),  # and of the real data
        (4000, None, 3500, 21),
        (2000, 0, 2000, 1),
        (2000, 100, 1900, 5),
        (2000, 10**6, 0, 81),
    ],
)
def test_estimate_is_the_mean_over_the_tail(
    tmp_path: Path, epochs: int, tail: int | None, first: int, count: int
) -> None:
    history = invent(3, epochs)
    write_fit(tmp_path, history)
    row = only(summarize([tmp_path], tail).fits)
    chosen = history["epoch"] >= first
    assert chosen.sum() == count
    assert row["rmse"] == pytest.approx(history["rmse"][chosen].mean())
    assert row["objective_value"] == pytest.approx(history["objective_value"][chosen].mean())
    assert row["omega_2"] == pytest.approx(history["omega_2"][chosen].mean())
    assert row["sigma_additive"] == pytest.approx(100 * history["sigma_additive"][chosen].mean())


def test_kl_of_the_averaged_estimates(tmp_path: Path) -> None:
    history = invent(5)
    write_fit(tmp_path, history)
    sd1, sd2, rho = (history[name][-21:].mean() for name in ("omega_1", "omega_2", "rho_21"))
    estimated = torch.tensor([[sd1**2, rho * sd1 * sd2], [rho * sd1 * sd2, sd2**2]], dtype=torch.float64)
    true = torch.tensor(TRUTH["omega"], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    expected = kl_divergence(MultivariateNormal(zero, true), MultivariateNormal(zero, estimated))
    assert only(summarize([tmp_path]).fits)["kl"] == pytest.approx(float(expected), rel=1e-9)


def test_kl_is_zero_at_the_truth(tmp_path: Path) -> None:
    history = invent(5)
    true = np.array(TRUTH["omega"])
    history["omega_1"][:], history["omega_2"][:] = np.sqrt(np.diag(true))
    history["rho_21"][:] = true[0, 1] / np.sqrt(true[0, 0] * true[1, 1])
    history["sigma_additive"][:] = 0.03
    write_fit(tmp_path, history)
    row = only(summarize([tmp_path]).fits)
    assert row["kl"] == pytest.approx(0, abs=1e-12)
    assert row["omega_mae"] == pytest.approx(0, abs=1e-12)
    assert row["sigma_mae"] == pytest.approx(0, abs=1e-12)


def test_kl_with_three_random_effects(tmp_path: Path) -> None:
    history = invent(6)
    n = len(history["epoch"])
    history |= {name: np.full(n, v) for name, v in (("omega_3", 0.3), ("rho_31", 0.1), ("rho_32", -0.2))}
    g = np.random.default_rng(1)
    half = g.normal(size=(3, 3)) * 0.2
    true = half @ half.T + 0.02 * np.eye(3)
    write_fit(tmp_path, history, truth={"omega": true.tolist(), "sigma": {"additive": 0.03}})
    tail = {name: values[-21:].mean() for name, values in history.items()}
    sd = np.array([tail[f"omega_{i}"] for i in (1, 2, 3)])
    estimated = np.diag(sd**2)
    for i, j in ((2, 1), (3, 1), (3, 2)):
        covariance = tail[f"rho_{i}{j}"] * sd[i - 1] * sd[j - 1]
        estimated[i - 1, j - 1] = estimated[j - 1, i - 1] = covariance
    zero = torch.zeros(3, dtype=torch.float64)
    expected = kl_divergence(
        *(MultivariateNormal(zero, torch.from_numpy(matrix)) for matrix in (true, estimated))
    )
    row = only(summarize([tmp_path]).fits)
    assert row["kl"] == pytest.approx(float(expected), rel=1e-9)
    assert row["omega_mae"] == pytest.approx(np.abs(sd - np.sqrt(np.diag(true))).mean())


def test_errors_of_omega_and_sigma(tmp_path: Path) -> None:
    history = invent(8)
    write_fit(tmp_path, history)
    row = only(summarize([tmp_path]).fits)
    tail = {name: values[-21:].mean() for name, values in history.items()}
    omega = (abs(tail["omega_1"] - np.sqrt(0.037)) + abs(tail["omega_2"] - np.sqrt(0.017))) / 2
    assert row["omega_mae"] == pytest.approx(omega)
    assert row["sigma_mae"] == pytest.approx(100 * abs(tail["sigma_additive"] - 0.03))  # IU/dL


def test_correlation_that_is_no_correlation_has_no_kl(tmp_path: Path) -> None:
    history = invent(8)
    history["rho_21"][:] = 1.0
    write_fit(tmp_path, history)
    summary = summarize([tmp_path])
    assert np.isnan(only(summary.fits)["kl"])
    assert only(summary.table)["complete"] == 1
    assert np.isnan(only(summary.table)["kl_median"])


def test_without_truth_or_random_effects(tmp_path: Path) -> None:
    write_fit(tmp_path, invent(1), truth=None, objective="fo")
    plain = {name: invent(2)[name] for name in ("epoch", "objective_value", "rmse")}
    write_fit(tmp_path, plain, objective="mse")
    summary = summarize([tmp_path])
    assert summary.skipped == []
    assert summary.table["complete"].tolist() == [1, 1]
    assert summary.table["kl_median"].isna().all()
    comparison, estimates = sections(summary)
    assert not any("KL" in header for header in comparison.headers)
    assert [row[0] for row in comparison.cells] == ["fo", "mse"]
    assert [row[0] for row in estimates.cells] == ["fo"]
    assert "omega 1" in estimates.headers


@pytest.mark.parametrize(
    ("own", "asked", "first"),
    [(250, None, 1750), (0, None, 2000), (250, 500, 1500), (500, 0, 2000), (None, None, 1500)],
)
def test_a_tail_that_fits_were_configured_with(
    tmp_path: Path, own: int | None, asked: int | None, first: int
) -> None:
    history = invent(3)
    write_fit(tmp_path, history, tail=own)
    row = only(summarize([tmp_path], asked).fits)
    assert row["rmse"] == pytest.approx(history["rmse"][history["epoch"] >= first].mean())


@pytest.mark.parametrize("epochs", [1000, 1250, 2000])
def test_the_tail_of_the_real_data_is_eleven_checkpoints(tmp_path: Path, epochs: int) -> None:
    history = invent(4, epochs)
    write_fit(tmp_path, history, tail=250)
    row = only(summarize([tmp_path]).fits)
    assert row["omega_1"] == pytest.approx(history["omega_1"][-11:].mean())
    assert row["epochs"] == epochs


def test_variation_in_percent(tmp_path: Path) -> None:
    """The coefficient of variation of exp(eta), which is log-normal, from its moments."""
    history = invent(5)
    write_fit(tmp_path, history)
    row = only(summarize([tmp_path]).fits)
    for place in (1, 2):
        variance = history[f"omega_{place}"][-21:].mean() ** 2
        mean, square = np.exp(variance / 2), np.exp(2 * variance)
        assert row[f"cv_{place}"] == pytest.approx(100 * np.sqrt(square - mean**2) / mean)


def test_random_effects_without_correlations_have_a_kl(tmp_path: Path) -> None:
    history = {name: values for name, values in invent(6).items() if name != "rho_21"}
    write_fit(tmp_path, history)
    sd1, sd2 = (history[name][-21:].mean() for name in ("omega_1", "omega_2"))
    zero, true = torch.zeros(2, dtype=torch.float64), torch.tensor(TRUTH["omega"], dtype=torch.float64)
    estimated = torch.diag(torch.tensor([sd1**2, sd2**2], dtype=torch.float64))
    expected = kl_divergence(MultivariateNormal(zero, true), MultivariateNormal(zero, estimated))
    summary = summarize([tmp_path])
    assert only(summary.fits)["kl"] == pytest.approx(float(expected), rel=1e-9)
    assert "rho" not in sections(summary)[1].headers


def test_a_third_random_effect_has_its_columns(tmp_path: Path) -> None:
    history = invent(6)
    n = len(history["epoch"])
    history |= {name: np.full(n, v) for name, v in (("omega_3", 0.3), ("rho_31", 0.1), ("rho_32", -0.2))}
    write_fit(tmp_path, history, truth=None)
    estimates = sections(summarize([tmp_path]))[1]
    shown = dict(zip(estimates.headers, estimates.cells[0], strict=True))
    assert shown["omega 3"] == "0.300"
    assert shown["CV 3, %"] == f"{100 * np.sqrt(np.exp(0.09) - 1):.1f}"
    assert (shown["rho 31"], shown["rho 32"]) == ("0.100", "-0.200")


def test_estimates_are_named_after_the_parameters_that_records_name(tmp_path: Path) -> None:
    """In tables for people; columns of files keep their numbers."""
    history = invent(6)
    n = len(history["epoch"])
    history |= {name: np.full(n, v) for name, v in (("omega_3", 0.3), ("rho_31", 0.1), ("rho_32", -0.2))}
    config = {"dataset": {"level_unit": "mg/L", "level_scale": 1}, "random_effects": ["CL", "V1", "KA"]}
    write_fit(tmp_path, history, truth=None, config=config)
    summary = summarize([tmp_path])
    headers = sections(summary)[1].headers
    assert headers[1:4] == ["omega CL", "omega V1", "omega KA"]
    assert headers[4:10] == ["CV CL, %", "CV V1, %", "CV KA, %", "rho CL:V1", "rho CL:KA", "rho V1:KA"]
    assert summary.fits["random_effects"].tolist() == ["CL, V1, KA"]
    assert {"omega_3_median", "cv_3_sd", "rho_31_mean"} <= set(summary.table)
    fits = comparable(summary.fits, [record for _, record in finished([tmp_path])])[0]
    table = intervals.estimates(fits, {})
    assert table is not None
    assert table.headers[1] == "omega CL, log scale"


def test_twelve_random_effects_keep_their_names(tmp_path: Path) -> None:
    """rho_1110 is of the eleventh and the tenth, and omega_10 no pair."""
    names = [f"P{number}" for number in range(1, 13)]
    pairs = [(i, j) for i in range(1, 13) for j in range(1, i)]
    written = {f"rho_{i}{j}": f"rho P{j}:P{i}" for i, j in pairs}
    assert len(written) == len(pairs) == 66  # no two are written alike
    assert {name: label_of(name, names) for name in written} == written
    assert label_of("rho_1110", ["A", "B"]) == "rho 1110"
    assert [numbers_of(name) for name in ("omega_10", "cv_3", "rho_pi_CL_V1", "omega_mae")] == [
        (10,),
        (3,),
        (),
        (),
    ]
    history = invent(6)
    n = len(history["epoch"])
    history |= {f"omega_{number}": np.full(n, number / 20) for number in range(1, 13)}
    history |= {f"rho_{i}{j}": np.full(n, (i + j) / 100) for i, j in pairs}
    config = {"dataset": {"level_unit": "mg/L", "level_scale": 1}, "random_effects": names}
    write_fit(tmp_path, history, truth=None, config=config)
    estimates = sections(summarize([tmp_path]))[1]
    shown = dict(zip(estimates.headers, estimates.cells[0], strict=True))
    assert estimates.headers[1:13] == [f"omega {name}" for name in names]
    assert estimates.headers[13:25] == [f"CV {name}, %" for name in names]
    assert estimates.headers[25:91] == list(written.values())
    assert shown["omega P12"] == "0.600"
    assert all(shown[f"rho P{j}:P{i}"] == f"{(i + j) / 100:.3f}" for i, j in pairs)


def test_typical_parameters_stand_with_their_units_at_the_references(tmp_path: Path) -> None:
    """As far as a fit's file has them: a study of an older version beside it has none."""
    values = np.linspace(0.2, 0.3, len(invent(1)["epoch"]))
    for replicate in (1, 2):
        history = invent(1) | {"typical_CL": values * replicate, "typical_V1": 10 * values}
        folder = write_fit(tmp_path, history, replicate=replicate)
        table = pa.table(history, metadata={runs.REFERENCE: "weight 70 kg"})
        runs.write_table(folder / "history.parquet", table, {"typical_CL": "L/h", "typical_V1": "L"})
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"hashes": {}}))
    write_fit(tmp_path, invent(1), study="old")
    summary = summarize([tmp_path])
    old, new = (
        [section for section in sections(summary) if section.title.startswith(name)] for name in ("old", "s,")
    )
    assert not any("typical" in section.title for section in old)
    table = new[-1]
    assert table.title == "s, d: typical parameters at weight 70 kg"
    assert table.headers == ["objective", "CL, L/h", "V1, L"]
    mean = values[-21:].mean()
    sd = mean * np.std([1, 2], ddof=1)
    assert table.cells == [["vi", f"{1.5 * mean:.3f} ({sd:.3f})", f"{10 * mean:.2f} (0.00)"]]
    units = resolved(map(str, summary.table), columns_units(summary))
    assert (units["typical_CL_median"], units["typical_V1_sd"]) == ("L/h", "L")


def test_fits_that_were_drawn_again_are_counted(tmp_path: Path) -> None:
    for replicate, redraws in ((1, 0), (2, 3), (3, 1)):
        write_fit(tmp_path, invent(replicate), replicate=replicate, redraws=redraws)
    summary = summarize([tmp_path])
    assert only(summary.table)["redrawn"] == 2
    section = sections(summary)[0]
    assert dict(zip(section.headers, section.cells[0], strict=True))["redrawn"] == "2"
