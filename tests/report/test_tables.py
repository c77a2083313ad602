"""Run folders to the comparison of methods: groups of fits, and the files that are written."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medcm_cli.commands.summarize import command as summarize_command
from medcm_cli.report.tables import sections, write
from medcm_cli.runs.summary import summarize
from tests.report.fits import invent, only, write_fit


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


def test_the_command_says_what_it_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In its usual place, what was made with other options; the same again is no news."""
    write_fit(tmp_path, invent(1))
    said = []
    for more in ([], [], ["--tail", "100"], ["--tail", "100"], ["--out", str(tmp_path / "other")], []):
        summarize_command([str(tmp_path), *more])
        said.append(capsys.readouterr().err.count("replaced what was made with another --tail; --out keeps"))
    assert said == [0, 0, 1, 0, 0, 1]
    assert not (tmp_path / "other" / "summary.json").exists()
