"""Every column names its unit; a history is in reported units whether its file names them or not."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from medcm_cli import runs
from medcm_cli.haemophilia.preparation import Prepared, table
from medcm_cli.report.tables import write
from medcm_cli.runs import draws
from medcm_cli.runs.summary import summarize
from medcm_cli.runs.units import NONE, amount
from medcm_cli.runs.walk import Fit

UNITS = runs.Units("IU/dL", 100.0, "IU/mL", "IU")


def units_in(path: Path) -> dict[str, str | None]:
    return {field.name: runs.unit_of(field) for field in pyarrow.parquet.read_schema(path)}


@pytest.fixture(scope="module")
def study(mixed_fits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished fits with a posterior and the tables of ``medcm summarize``."""
    root = tmp_path_factory.mktemp("units") / "outputs"
    shutil.copytree(mixed_fits, root)
    write(summarize([root]), root / "summary")
    sampled = {
        "draws": pa.table({"chain": [0], "eta_1": [0.1], "diverging": [False]}),
        "population": pa.table({"sigma_additive": [0.03], "omega_1": [0.2], "lp": [-3.0]}),
        "diagnostics": pa.table({"quantity": ["omega_1"], "mean": [0.2], "r_hat": [1.0], "ess_bulk": [9.0]}),
    }
    draws.write(root / "default" / "posterior" / "joint", sampled, {"data": {}}, UNITS)
    record = replace(next(fit for fit in fits(root)).record)
    prepared = Prepared({"vwf": np.array([90.0])}, {"vwf": np.array(["measured"])})
    runs.write_preparation(root, record, table(["a"], prepared, np.array([0.01])))
    return root


def fits(root: Path) -> list[Fit]:
    found = [Fit(folder, record) for folder in runs.find(root) if (record := runs.read_record(folder))]
    assert found
    return found


def test_a_value_in_a_sentence_has_its_unit() -> None:
    assert [amount(70.0, "kg"), amount(0.5, NONE)] == ["70 kg", "0.5"]


def test_every_column_of_a_study_names_its_unit(study: Path) -> None:
    tables = sorted(study.rglob("*.parquet"))
    assert {path.stem for path in tables} == {
        *("history", "parameters", "random_effects", "effects", "table", "fits"),
        *("draws", "population", "diagnostics", "preparation"),
    }
    for path in tables:
        for column, unit in units_in(path).items():
            assert unit, f"{path.name}: {column}"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("objective=vi/**/history", {"objective_value": "-", "rmse": "IU/dL", "sigma_additive": "IU/mL"}),
        ("objective=vi/**/history", {"epoch": "-", "omega_1": "-", "kl": "nats"}),
        ("objective=mse/**/history", {"objective_value": "(IU/mL)²"}),
        ("summary/fits", {"sigma_additive": "IU/dL", "rmse": "IU/dL", "cv_1": "%", "seconds": "s"}),
        ("summary/table", {"sigma_additive_sd": "IU/dL", "kl_median": "nats", "complete": "-"}),
        ("posterior/*/population", {"sigma_additive": "IU/mL", "lp": "nats"}),
        ("preparation", {"vwf": "IU/dL", "vwf_origin": "-", "baseline_subtracted": "IU/mL"}),
    ],
)
def test_units_are_those_of_the_numbers(study: Path, file: str, expected: dict[str, str]) -> None:
    path = next(study.rglob(f"{file}.parquet"))
    assert expected.items() <= units_in(path).items()


def test_old_and_new_histories_are_read_alike(study: Path, tmp_path: Path) -> None:
    new = next(fit for fit in fits(study) if fit.record.address.objective == "vi")
    shutil.copytree(new.folder, tmp_path / "old")
    path = tmp_path / "old" / "history.parquet"
    bare = pyarrow.parquet.read_table(path)
    bare = pa.table({name: bare[name] for name in bare.column_names})
    pyarrow.parquet.write_table(bare, path)
    assert set(units_in(path).values()) == {None}
    old = Fit(tmp_path / "old", replace(new.record, hashes={}))
    assert old.history.equals(new.history)
    assert old.estimates() == new.estimates()
    np.testing.assert_array_equal(new.history["rmse"], np.asarray(bare["rmse"], dtype=np.float64))
    np.testing.assert_array_equal(
        new.history["sigma_additive"], 100 * np.asarray(bare["sigma_additive"], dtype=np.float64)
    )


@pytest.mark.parametrize(
    ("reported", "scale", "model"),
    [("IU/dL", 100.0, "IU/mL"), ("mg/L", 1.0, "mg/L"), ("ng/mL", 1000.0, "1000 ng/mL")],
)
def test_the_unit_of_the_model_in_a_record_that_says_none(reported: str, scale: float, model: str) -> None:
    assert runs.Units.of({"level_unit": reported, "level_scale": scale}).level == model


def test_the_first_pattern_counts_and_a_column_may_have_none() -> None:
    made = runs.with_units(pa.table({"a_x": [1], "a": [2], "b": [3]}), {"a_*": "h", "a*": "kg"})
    assert [runs.unit_of(field) for field in made.schema] == ["h", "kg", None]
