"""Tables of nested splits, of several error models, and of patients side by side."""

from pathlib import Path

import numpy as np
import pytest

from medcm_cli.report import tables
from medcm_cli.report.tables import sections
from medcm_cli.runs.summary import summarize
from tests.report.fits import invent, only, write_fit


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
        "vwf": {"unit": "IU/dL", "missing": 0.652, "values": [120.0, 36.0, 231.0]},
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
    assert rows["amount per subject, IU"] == ["2000 (500 to 18000)"] * 2
    assert rows["resets"] == ["", "2"]
    assert rows["covariate vwf, IU/dL"] == ["120 (36 to 231), missing 65.2 %", ""]
    assert rows["covariate ffm, -"] == ["-, changes in time", ""]
    assert "steady states" not in rows


def test_characteristics_of_one_table() -> None:
    section = tables.characteristics("mine.csv", HELD, {"time": "min", "amount": "mg", "level": "mg/L"})
    assert section.title == "mine.csv"
    rows = dict(section.cells)
    assert rows["amount per subject, mg"] == "2000 (500 to 18000)"
    assert rows["level, mg/L"] == "0.25 (0.01 to 1.5)"
    assert all(len(row) == len(section.headers) for row in section.cells)
