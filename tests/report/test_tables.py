"""Run folders to the comparison of methods: every figure recomputed here from the invented histories."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.report import tables
from medcm_cli.report.tables import compare, sections, write
from medcm_cli.runs.summary import Summary, summarize

TRUTH = {"omega": [[0.037, 0.0113], [0.0113, 0.017]], "sigma": {"additive": 0.03}}
History = dict[str, np.ndarray]


def invent(seed: int, epochs: int = 2000, every: int = 25) -> History:
    """A history with a row at epoch 0 and at every ``every``-th."""
    g = np.random.default_rng(seed)
    epoch = np.arange(0, epochs + 1, every, dtype=np.int32)
    n = len(epoch)
    return {
        "epoch": epoch,
        "objective_value": g.normal(-500, 20, n),
        "rmse": g.uniform(7, 9, n),
        "omega_1": g.uniform(0.15, 0.25, n),
        "omega_2": g.uniform(0.1, 0.2, n),
        "rho_21": g.uniform(0.2, 0.6, n),
        "sigma_additive": g.uniform(0.02, 0.05, n),
        "kl": np.full(n, 99.0),  # of each checkpoint; the reported one is that of the averaged estimates
    }


def write_fit(
    root: Path, history: History | None, status: str = "complete", tail: int | None = None, **fields: Any
) -> Path:
    """One run folder, as a finished fit leaves it; an unfinished one has no tables. ``fields`` are the fit's
    address, or of its record."""
    given: dict[str, Any] = {
        "study": "s",
        "dataset": "d",
        "objective": "vi",
        "error": "additive",
        "learning_rate": 0.1,
        "variant": "default",
        "fold": 1,
        "replicate": 1,
    }
    places = {field.name for field in dataclasses.fields(runs.Address)} & set(fields)
    address = runs.Address(**given | {name: fields.pop(name) for name in places})
    levels = {"level_unit": fields.pop("unit", "IU/dL"), "level_scale": 100}
    written: dict[str, Any] = {
        "status": status,
        "address": address,
        "config_hash": "0",
        "config": {"dataset": levels} | ({} if tail is None else {"tail": tail}),
        "data": {},
        "truth": TRUTH,
        "seed": 0,
        "versions": {},
        "failure": {"epoch": 41, "cause": "objective is not finite"} if status == "failed" else None,
        "seconds": 2.0,
    }
    record = runs.Record(**written | fields)
    if history is None:
        runs.start(root, record)
    else:
        runs.finish(root, record, {"history": pa.table(history)})
    return record.address.folder(root)


def only(frame: pd.DataFrame) -> pd.Series:
    assert len(frame) == 1
    return frame.iloc[0]


# -- one fit ---------------------------------------------------------------------------------------


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
    assert shown["CV% 3"] == f"{100 * np.sqrt(np.exp(0.09) - 1):.1f}"
    assert (shown["rho 31"], shown["rho 32"]) == ("0.100", "-0.200")


def test_fits_that_were_drawn_again_are_counted(tmp_path: Path) -> None:
    for replicate, redraws in ((1, 0), (2, 3), (3, 1)):
        write_fit(tmp_path, invent(replicate), replicate=replicate, redraws=redraws)
    summary = summarize([tmp_path])
    assert only(summary.table)["redrawn"] == 2
    section = sections(summary)[0]
    assert dict(zip(section.headers, section.cells[0], strict=True))["redrawn"] == "2"


# -- groups ----------------------------------------------------------------------------------------


def test_median_mean_and_sd_over_fits(tmp_path: Path) -> None:
    rmse, seconds = [], []
    for fold in (1, 2):
        for replicate in (1, 2, 3):
            history = invent(10 * fold + replicate)
            seconds.append(fold + replicate / 10)
            rmse.append(history["rmse"][-21:].mean())
            write_fit(tmp_path, history, fold=fold, replicate=replicate, seconds=seconds[-1])
    row = only(summarize([tmp_path]).table)
    assert row["complete"] == 6
    for name, values in (("rmse", rmse), ("seconds", seconds)):
        assert row[f"{name}_median"] == pytest.approx(np.median(values))
        assert row[f"{name}_mean"] == pytest.approx(np.mean(values))
        assert row[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1))


def test_one_fit_has_no_sd(tmp_path: Path) -> None:
    write_fit(tmp_path, invent(1))
    summary = summarize([tmp_path])
    assert np.isnan(only(summary.table)["rmse_sd"])
    for section in sections(summary):
        assert not any("(" in cell or "nan" in cell for cell in section.cells[0])


def test_failed_and_unfinished_fits_are_counted_and_lend_no_number(tmp_path: Path) -> None:
    kept = invent(1)
    write_fit(tmp_path, kept, replicate=1)
    write_fit(tmp_path, invent(2), status="failed", replicate=2, seconds=1e6)
    write_fit(tmp_path, invent(3), status="failed", replicate=3)
    write_fit(tmp_path, None, status="running", replicate=4)
    summary = summarize([tmp_path])
    row = only(summary.table)
    assert (row["complete"], row["failed"], row["unfinished"]) == (1, 2, 1)
    assert row["rmse_median"] == pytest.approx(kept["rmse"][-21:].mean())
    assert row["seconds_mean"] == 2
    failed = summary.fits[summary.fits["status"] == "failed"]
    assert set(failed["failed_epoch"]) == {41}
    assert set(failed["cause"]) == {"objective is not finite"}
    section = sections(summary)[0]
    shown = dict(zip(section.headers, section.cells[0], strict=True))
    assert (shown["complete"], shown["failed"], shown["unfinished"]) == ("1", "2", "1")


def test_studies_datasets_and_the_rest_are_rows_of_their_own(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"study": "other"},
        {"dataset": "e"},
        {"objective": "fo"},
        {"error": "combined"},
        {"learning_rate": 0.01},
        {"variant": "samples-1"},
    ]
    for number, address in enumerate(variants):
        for replicate in range(1, number + 2):
            write_fit(tmp_path, invent(number), replicate=replicate, **address)
    table = summarize([tmp_path]).table
    assert sorted(table["complete"]) == [1, 2, 3, 4, 5, 6, 7]
    for number, address in enumerate(variants[1:], 2):
        ((key, value),) = address.items()
        assert table.loc[table[key] == value, "complete"].tolist() == [number]


def test_columns_that_do_not_vary_are_left_out(tmp_path: Path) -> None:
    write_fit(tmp_path, invent(1))
    write_fit(tmp_path, invent(2), learning_rate=0.01)
    write_fit(tmp_path, invent(2), objective="fo")
    for section in sections(summarize([tmp_path])):
        assert section.headers[:2] == ["objective", "learning rate"]
        assert [row[:2] for row in section.cells] == [["fo", "0.1"], ["vi", "0.01"], ["vi", "0.1"]]


def test_a_rate_of_its_own_for_each_objective_is_not_worth_a_column(tmp_path: Path) -> None:
    write_fit(tmp_path, invent(1))
    write_fit(tmp_path, invent(2), objective="foce", learning_rate=0.01)
    comparison, estimates = sections(summarize([tmp_path]))
    assert comparison.headers[:2] == ["objective", "complete"]
    assert estimates.headers[:2] == ["objective", "omega 1"]


def test_a_study_and_a_dataset_have_sections_of_their_own(tmp_path: Path) -> None:
    write_fit(tmp_path, invent(1))
    write_fit(tmp_path, invent(1), study="b")
    write_fit(tmp_path, invent(1), dataset="e")
    titles = [section.title for section in sections(summarize([tmp_path]))]
    assert titles == [f"{name}{what}" for name in ("b, d", "s, d", "s, e") for what in ("", ": estimates")]


def test_several_roots(tmp_path: Path) -> None:
    write_fit(tmp_path / "a", invent(1))
    write_fit(tmp_path / "b", invent(2), replicate=2)
    assert only(summarize([tmp_path / "a", tmp_path / "b"]).table)["complete"] == 2


def test_roots_that_overlap_count_each_fit_once(tmp_path: Path) -> None:
    write_fit(tmp_path, invent(1))
    write_fit(tmp_path, invent(2), replicate=2)
    assert only(summarize([tmp_path, tmp_path / "s"]).table)["complete"] == 2


def test_units_of_levels(tmp_path: Path) -> None:
    write_fit(tmp_path, invent(1))
    assert "RMSE, IU/dL" in sections(summarize([tmp_path]))[0].headers
    write_fit(tmp_path, invent(1), dataset="e", unit="mg/L")
    shown = {section.title: section.headers for section in sections(summarize([tmp_path]))}
    assert "RMSE, IU/dL" in shown["s, d"]
    assert "RMSE, mg/L" in shown["s, e"]
    write_fit(tmp_path, invent(1), replicate=2, unit="mg/L")  # not one number that can be compared
    headers = sections(summarize([tmp_path]))[0].headers
    assert not any(name.endswith(("IU/dL", "mg/L")) for name in headers)


# -- nested splits, error models and patients ------------------------------------------------------


def test_nested_fits_count_by_their_shuffles(tmp_path: Path) -> None:
    """Median and sd over outer shuffles of the mean over inner folds."""
    of_outer: dict[int, list[float]] = {}
    for outer in (1, 2, 3):
        for inner in range(1, 5):
            history = invent(10 * outer + inner, 1000)
            write_fit(tmp_path, history, fold=4 * (outer - 1) + inner, outer=outer, inner=inner)
            of_outer.setdefault(outer, []).append(history["omega_1"][-11:].mean())
    write_fit(tmp_path, invent(1), status="failed", fold=13, outer=4, inner=1)
    summary = summarize([tmp_path])
    row = only(summary.table)
    means = [np.mean(values) for values in of_outer.values()]
    assert (row["complete"], row["failed"]) == (12, 1)
    assert row["omega_1_median"] == pytest.approx(np.median(means))
    assert row["omega_1_sd"] == pytest.approx(np.std(means, ddof=1))
    assert row["omega_1_mean"] == pytest.approx(np.mean(means))
    comparison = sections(summary)[0]
    assert "outer shuffles" in comparison.title
    assert dict(zip(comparison.headers, comparison.cells[0], strict=True))["epochs"] == "1000"


def test_without_a_complete_fit_there_are_no_epochs(tmp_path: Path) -> None:
    write_fit(tmp_path, None, status="running", outer=1, inner=1)
    section = sections(summarize([tmp_path]))[0]
    assert dict(zip(section.headers, section.cells[0], strict=True))["epochs"] == "-"


def test_a_shuffle_without_some_of_its_folds_is_the_mean_of_the_others(tmp_path: Path) -> None:
    kept = []
    for outer, inners in ((1, (1, 2, 3)), (2, (2,))):
        histories = [invent(10 * outer + inner) for inner in inners]
        kept.append(np.mean([history["rmse"][-21:].mean() for history in histories]))
        for inner, history in zip(inners, histories, strict=True):
            write_fit(tmp_path, history, fold=3 * (outer - 1) + inner, outer=outer, inner=inner)
    row = only(summarize([tmp_path]).table)
    assert row["rmse_median"] == pytest.approx(np.mean(kept))


def test_combined_beside_additive_error(tmp_path: Path) -> None:
    values: dict[str, list[float]] = {"additive": [], "combined": []}
    for error, level in (("additive", -100.0), ("combined", -130.0)):
        for replicate in (1, 2, 3):
            history = invent(replicate)
            history["objective_value"][:] = level + replicate**2
            values[error].append(level + replicate**2)
            write_fit(tmp_path, history, objective="fo", error=error, replicate=replicate)
    plain = {name: invent(2)[name] for name in ("epoch", "objective_value", "rmse")}
    for error in values:
        write_fit(tmp_path, plain, objective="mse", error=error)  # has no error model
    write_fit(tmp_path, invent(1), objective="vi", error="combined")
    (section,) = (part for part in sections(summarize([tmp_path])) if "error model" in part.title)
    assert section.headers[:3] == ["objective", "additive error", "combined error"]
    assert section.cells == [["fo", "-96.0 (4.0)", "-126.0 (4.0)", "-30.0 (0.0)"]]


def test_error_models_are_compared_on_the_same_shuffles(tmp_path: Path) -> None:
    for error, outers in (("additive", (1, 2)), ("combined", (2, 3))):
        for outer in outers:
            for inner in (1, 2):
                history = invent(1)
                history["objective_value"][:] = 100.0 * outer + inner - (25 if error == "combined" else 0)
                write_fit(tmp_path, history, error=error, fold=2 * outer + inner, outer=outer, inner=inner)
    (section,) = (part for part in sections(summarize([tmp_path])) if "error model" in part.title)
    assert section.cells[0][-1] == "-25.0"


HELD = {
    "subjects": 69,
    "doses": 70,
    "doses_per_subject": [1.0, 1.0, 2.0],
    "infusions_over_an_hour": 3,
    "modelled_durations": 0,
    "steady_states": 0,
    "amount_given": [2000.0, 500.0, 18000.0],
    "resets": 0,
    "occasions": 1,
    "observations": 210,
    "observations_per_subject": [3.0, 3.0, 3.0],
    "below_limit": 0,
    "level": [0.25, 0.01, 1.5],
    "follow_up": [44.0, 20.0, 55.0],
    "covariates": {
        "vwf": {"missing": 0.652, "values": [120.0, 36.0, 231.0]},
        "ffm": {"missing": 0.0, "values": None},
    },
    "changing": ["ffm"],
}


def test_patients_of_a_study_stand_side_by_side(tmp_path: Path) -> None:
    write_fit(tmp_path, invent(1), data={"characteristics": HELD})
    other = {**HELD, "subjects": 66, "resets": 2, "covariates": {}}
    write_fit(tmp_path, invent(2), dataset="e", data={"characteristics": other})
    write_fit(tmp_path, invent(2), dataset="f")  # of a time before records had them
    (section,) = (part for part in sections(summarize([tmp_path])) if part.title == "s: patients")
    assert section.headers[1:] == ["d", "e"]
    rows = {label: cells for label, *cells in section.cells}
    assert rows["subjects"] == ["69", "66"]
    assert rows["doses per subject"] == ["1 (1 to 2)"] * 2
    assert rows["observations per subject"] == ["3"] * 2
    assert rows["level, IU/dL"] == ["25 (1 to 150)"] * 2
    assert rows["amount per subject"] == ["2000 (500 to 18000)"] * 2
    assert rows["resets"] == ["", "2"]
    assert rows["covariate vwf"] == ["120 (36 to 231), missing 65.2 %", ""]
    assert rows["covariate ffm"] == ["-, changes in time", ""]
    assert "steady states" not in rows


def test_characteristics_of_one_table() -> None:
    section = tables.characteristics("mine.csv", HELD, "mg", "mg/L")
    assert section.title == "mine.csv"
    rows = dict(section.cells)
    assert rows["amount per subject, mg"] == "2000 (500 to 18000)"
    assert rows["level, mg/L"] == "0.25 (0.01 to 1.5)"
    assert all(len(row) == len(section.headers) for row in section.cells)


# -- damage ----------------------------------------------------------------------------------------


def _truncated(folder: Path) -> None:
    path = folder / "history.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def _edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(content | changes))

    return edit


def _history(table: dict[str, object]) -> Callable[[Path], None]:
    return lambda folder: pa.parquet.write_table(pa.table(table), folder / "history.parquet")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "history cut off": _truncated,
    "history empty": lambda folder: (folder / "history.parquet").write_bytes(b""),
    "history absent": lambda folder: (folder / "history.parquet").unlink(),
    "history without rows": _history({"epoch": [], "objective_value": [], "rmse": []}),
    "history without rmse": _history({"epoch": [0, 2], "objective_value": [1.0, 2.0]}),
    "history of words": _history({"epoch": ["a", "b"], "objective_value": ["a", "b"], "rmse": ["a", "b"]}),
    "record of garbage": lambda folder: (folder / "run.json").write_text("garbage"),
    "record empty": lambda folder: (folder / "run.json").write_text(""),
    "record of another program": lambda folder: (folder / "run.json").write_text('{"name": "x"}'),
    "record without dataset": _edited(config={}),
    "record with a list for configuration": _edited(config=[1]),
    "record with a wrong truth": _edited(truth={"omega": [[1, 2, 3]], "sigma": {}}),
    "record with words for seconds": _edited(seconds="soon"),
    "record with a number for sigma": _edited(truth={"omega": None, "sigma": 3}),
    "record with nonsense for a scale": _edited(config={"dataset": {"level_unit": "x", "level_scale": [1]}}),
    "history with an epoch that is no number": _history(
        {"epoch": [0.0, float("nan")], "objective_value": [1.0, 2.0], "rmse": [1.0, 2.0]}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder_is_named_and_the_rest_counted(tmp_path: Path, damage: str) -> None:
    write_fit(tmp_path, invent(1), replicate=1)
    folder = write_fit(tmp_path, invent(2), replicate=2)
    write_fit(tmp_path, invent(3), replicate=3)
    DAMAGE[damage](folder)
    summary = summarize([tmp_path])
    assert only(summary.table)["complete"] == 2
    (reason,) = summary.skipped
    assert str(folder) in reason
    assert "\n" not in reason


def test_nothing_below_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        summarize([tmp_path])
    with pytest.raises(InputError, match="no such folder"):
        summarize([tmp_path / "absent"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no such folder"):
        summarize([tmp_path / "file"])


def test_only_damaged_folders_are_no_internal_fault(tmp_path: Path) -> None:
    """Either nothing is written, or tables without rows."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("garbage")
    with contextlib.suppress(InputError):
        summary = summarize([tmp_path])
        assert len(summary.skipped) == 2
        assert summary.table.empty
        write(summary, tmp_path / "out")


# -- files -----------------------------------------------------------------------------------------


def test_files_agree_with_the_table(tmp_path: Path) -> None:
    for number, objective in enumerate(("fo", "vi_1")):
        for replicate in (1, 2):
            write_fit(tmp_path, invent(number + replicate), objective=objective, replicate=replicate)
    summary = summarize([tmp_path])
    out = tmp_path / "out"
    paths = write(summary, out)
    assert sorted(out.iterdir()) == sorted(paths)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "table.parquet"), summary.table)
    pd.testing.assert_frame_equal(pd.read_csv(out / "table.csv"), summary.table)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "fits.parquet"), summary.fits)
    shown = sections(summary)
    assert len(shown) == 2
    parts = (out / "table.md").read_text().split("### ")[1:]
    for part, section in zip(parts, shown, strict=True):
        title, _, *lines = part.strip().splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert title == section.title
        assert rows[0] == section.headers
        assert set("".join(rows[1])) <= set("-:")
        assert rows[2:] == section.cells
    parts = (out / "table.tex").read_text().split("\\toprule")[1:]
    for part, section in zip(parts, shown, strict=True):
        body = part.split("\\midrule")[1].split("\\bottomrule")[0]
        found = [[c.strip() for c in line.rstrip("\\ ").split("&")] for line in body.strip().splitlines()]
        assert found == [[cell.replace("_", "\\_") for cell in row] for row in section.cells]


def test_writing_again_replaces(tmp_path: Path) -> None:
    write_fit(tmp_path, invent(1))
    write(summarize([tmp_path]), tmp_path / "out")
    write_fit(tmp_path, invent(2), replicate=2)
    write(summarize([tmp_path]), tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "table.csv")["complete"].tolist() == [2]


def test_small_values_keep_a_digit(tmp_path: Path) -> None:
    history = invent(1)
    history["objective_value"][:] = 0.00321  # a mean squared error, (IU/mL)^2
    write_fit(tmp_path, history)
    section = sections(summarize([tmp_path]))[0]
    shown = dict(zip(section.headers, section.cells[0], strict=True))
    assert float(shown["objective value"]) == pytest.approx(0.00321)


# -- expected values -------------------------------------------------------------------------------

HEADER = "objective,measure,statistic,value,tolerance,source"


def expect(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    path = tmp_path / "expected.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


@pytest.fixture
def measured(tmp_path: Path) -> Summary:
    """vi with an RMSE of 8 in one fit and 9 in another; fo without a complete fit."""
    for replicate, level in ((1, 8.0), (2, 9.0)):
        history = invent(replicate)
        history["rmse"][:] = level
        write_fit(tmp_path / "runs", history, replicate=replicate)
    write_fit(tmp_path / "runs", invent(1), status="failed", objective="fo")
    return summarize([tmp_path / "runs"])


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("vi,rmse,median,8.5,0,x", "within"),
        ("vi,rmse,median,8.25,0.25,x", "within"),
        ("vi,rmse,median,8.25,0.2,x", "outside"),
        ("vi,rmse,median,8.75,0.2,x", "outside"),
        ("vi,rmse,mean,8.5,0.001,x", "within"),
        ("vi,rmse,sd,0.7071,0.001,x", "within"),
        ("vi,rmse,median,8.5,,x", ""),
        ("foce,rmse,median,8.5,1,x", "not run"),
        ("fo,rmse,median,8.5,1,x", "not run"),  # every fit of it failed
        ("vi,complete,count,2,0,x", "within"),
        ("fo,failed,count,0,0,x", "outside"),
    ],
)
def test_verdict(measured: Summary, tmp_path: Path, line: str, verdict: str) -> None:
    section = compare(measured, expect(tmp_path, line))
    cells = section.cells
    assert len(cells) == 1
    assert len(cells[0]) == len(section.headers)
    assert cells[0][0] == line.split(",")[0]
    assert cells[0][5] == verdict
    assert cells[0][-1] == "x"


def test_measured_value_is_shown(measured: Summary, tmp_path: Path) -> None:
    cells = compare(measured, expect(tmp_path, "vi,rmse,median,8.4,0.2,Table 1")).cells
    assert cells == [["vi", "rmse median", "8.4", "0.2", "8.5", "within", "Table 1"]]


def test_expected_values_choose_their_group(tmp_path: Path) -> None:
    for rate, level in ((0.1, 8.0), (0.01, 9.0)):
        history = invent(1)
        history["rmse"][:] = level
        write_fit(tmp_path / "runs", history, learning_rate=rate, study="7")
    summary = summarize([tmp_path / "runs"])
    path = expect(
        tmp_path,
        "7,vi,0.01,rmse,median,9,0.1,x",
        "7,vi,0.1,rmse,median,9,0.1,x",
        "7,vi,,rmse,median,9,0.1,x",
        "8,vi,0.1,rmse,median,9,0.1,x",
        header="study,objective,learning_rate,measure,statistic,value,tolerance,source",
    )
    cells = compare(summary, path).cells
    assert [row[5] for row in cells[:2]] == ["within", "outside"]
    assert sorted(row[5] for row in cells[2:4]) == ["outside", "within"]  # no rate given: both groups
    assert [row[5] for row in cells[4:]] == ["not run"]


@pytest.mark.parametrize(
    ("header", "line", "word"),
    [
        ("objective,measure,statistic,value,source", "vi,rmse,median,8,x", "tolerance"),
        ("measure,statistic,value,tolerance,source", "rmse,median,8,1,x", "objective"),
        (HEADER, "vi,rsme,median,8,1,x", "rsme"),
        (HEADER, "vi,rmse,mode,8,1,x", "mode"),
        (HEADER, "vi,rmse,count,8,1,x", "count"),
        (HEADER, "vi,study,count,8,1,x", "study"),
        (HEADER, "vi,rmse,median,eight,1,x", "value"),
        (HEADER, "vi,rmse,median,8,one,x", "tolerance"),
        ("", "", "expected.csv"),
    ],
)
def test_expected_values_that_cannot_be_used(
    measured: Summary, tmp_path: Path, header: str, line: str, word: str
) -> None:
    path = expect(tmp_path, line, header=header)
    with pytest.raises(InputError) as caught:
        compare(measured, path)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_expected_values_that_are_not_there(measured: Summary, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        compare(measured, tmp_path / "absent.csv")
