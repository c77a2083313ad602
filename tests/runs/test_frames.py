"""What fits wrote as data frames: every row of every fit, in its place, with units."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.runs import frames
from medcm_cli.runs.walk import Fit, walk
from tests.report.fits import History, invent, write_fit


def found(root: Path) -> list[Fit]:
    return [one for one in walk([root]) if isinstance(one, Fit)]


def written(root: Path, history: History | None = None, **address: object) -> None:
    write_fit(root, invent(1, epochs=50) if history is None else history, **address)  # type: ignore[arg-type]


def test_the_history_has_every_checkpoint_of_every_fit(tmp_path: Path) -> None:
    histories = {
        (fold, replicate): invent(10 * fold + replicate, 50) for fold in (1, 2) for replicate in (1, 2)
    }
    for (fold, replicate), history in histories.items():
        written(tmp_path, history, fold=fold, replicate=replicate)
    frame = frames.history(found(tmp_path))
    assert frame.index.names == ["objective", "fold", "replicate", "epoch"]
    assert len(frame) == 4 * 3
    for (fold, replicate), history in histories.items():
        one = frame.xs(fold, level="fold").xs(replicate, level="replicate").xs("vi", level="objective")
        assert list(one.index) == [0, 25, 50]
        np.testing.assert_allclose(one["rmse"], history["rmse"])
        np.testing.assert_allclose(one["sigma_additive"], 100 * history["sigma_additive"])  # as reported
    units = frame.attrs["units"]
    assert set(units) == {*frame.index.names, *frame.columns}
    assert (units["rmse"], units["sigma_additive"], units["kl"]) == ("IU/dL", "IU/dL", "nats")
    assert (units["epoch"], units["omega_1"]) == ("-", "-")


def test_what_tells_configurations_apart_is_in_the_index(tmp_path: Path) -> None:
    written(tmp_path)
    for change in ({"objective": "fo"}, {"learning_rate": 0.2}, {"variant": "own"}, {"dataset": "other"}):
        written(tmp_path, **change)
    names = ["dataset", "objective", "learning_rate", "variant", "fold", "replicate"]
    for frame in (frames.summary(found(tmp_path)), frames.history(found(tmp_path))):
        assert [name for name in frame.index.names if name != "epoch"] == names
        assert not set(frame) & {"study", "error", "outer", "inner", *names}
        assert frame.index.is_unique


def test_a_nested_split_has_outer_and_inner(tmp_path: Path) -> None:
    for inner in (1, 2):
        written(tmp_path, fold=inner, outer=1, inner=inner)
    assert frames.summary(found(tmp_path)).index.names == ["objective", "outer", "inner", "replicate"]


def test_the_summary_is_that_of_the_command(tmp_path: Path) -> None:
    for replicate in (1, 2):
        written(tmp_path, invent(replicate, 100), replicate=replicate)
    frame = frames.summary(found(tmp_path))
    assert len(frame) == 2
    expected = [fit.estimates() for fit in found(tmp_path)]
    np.testing.assert_allclose(frame["rmse"], [one["rmse"] for one in expected])
    units = frame.attrs["units"]
    assert units["rmse"] == units["sigma_mae"] == units["sigma_additive"] == "IU/dL"
    assert (units["cv_1"], units["seconds"], units["kl"]) == ("%", "s", "nats")


def test_units_that_differ_between_fits_are_each_named(tmp_path: Path) -> None:
    for objective, unit in (("vi", "-"), ("mse", "(IU/mL)²")):
        written(tmp_path, objective=objective)
        (fit,) = (fit for fit in found(tmp_path) if fit.record.address.objective == objective)
        table = runs.with_units(pa.table(invent(1, 50)), {"objective_value": unit, "rmse": "IU/dL"})
        runs.write_table(fit.folder / "history.parquet", table)
        hashes = runs.hashes_of(fit.folder, ["history"])
        runs.write_record(tmp_path, replace(fit.record, hashes=hashes))
    units = frames.history(found(tmp_path)).attrs["units"]
    assert units["objective_value"] == "(IU/mL)² (mse), - (vi)"
    assert units["rmse"] == "IU/dL"


def test_effects_of_all_fits(tmp_path: Path) -> None:
    rows = {"epoch": [0, 0, 50], "covariate": ["w", "v", "w"], "parameter": ["CL"] * 3, "x": [1.0, 2.0, 3.0]}
    for replicate in (1, 2):
        written(tmp_path, replicate=replicate)
    for fit in found(tmp_path):
        table = pa.table(rows | {"value": [0.5, 0.6, 0.7]})
        runs.write_table(fit.folder / "effects.parquet", table, {"x": "kg (w)", "value": "L/h (CL)"})
    frame = frames.effects(found(tmp_path))
    assert frame.index.names == ["objective", "fold", "replicate", "epoch"]
    places = frame.reset_index()
    last = places[(places["epoch"] == 50) & (places["replicate"] == 2)]
    assert last[["covariate", "parameter", "x", "value"]].to_numpy().tolist() == [["w", "CL", 3.0, 0.7]]
    assert {name: frame.attrs["units"][name] for name in ("x", "value", "covariate")} == {
        "x": "kg (w)",
        "value": "L/h (CL)",
        "covariate": "-",
    }


def test_a_damaged_table_is_named_and_not_left_out(tmp_path: Path) -> None:
    for replicate in (1, 2):
        written(tmp_path, replicate=replicate)
    broken = found(tmp_path)[1].folder / "history.parquet"
    broken.write_bytes(b"broken")
    for read in (frames.history, frames.summary):
        with pytest.raises(InputError, match=str(broken)):
            read(found(tmp_path))


def test_units_stay_when_rows_are_chosen(tmp_path: Path) -> None:
    written(tmp_path)
    frame = frames.history(found(tmp_path))
    assert isinstance(frame, pd.DataFrame)
    assert frame[frame["rmse"] > 0].attrs["units"]["rmse"] == "IU/dL"
