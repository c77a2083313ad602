"""Observations above an upper limit of quantification, and those below the lower one left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medcm_cli.data import Format, read_events
from medcm_cli.errors import InputError


def write(path: Path, **columns: list[Any]) -> Path:
    frame = pd.DataFrame({"id": ["a"] * 5 + ["b"] * 2, "time": [0, 1, 2, 3, 4, 0, 1], "amt": 0, "evid": 0})
    frame.loc[[0, 5], ["amt", "evid"]] = [10, 1]
    frame["dv"] = ["", "9", "5", "1", "0.2", "", "4"]
    for name, values in columns.items():
        frame[name] = values
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    "columns",
    [
        {"cens": [0, -1, 0, 0, 1, 0, 0]},
        {"cens": [0, -1, 0, 0, 1, 0, 0], "lloq": [""] * 4 + ["0.2", "", ""]},
        {"lloq": [0.2001] * 7, "uloq": [8.9999] * 7},
        {"dv": ["", "> 9", "5", "1", "<0.2", "", "4"]},
    ],
)
def test_limits_of_both_sides_are_read(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    table = read_events(write(tmp_path / "t.csv", **columns), {})
    seen = ~table.is_dose
    assert table.censored[seen].tolist() == [True, False, False, True, False]
    assert table.above[seen].tolist() == [True, False, False, False, False]
    np.testing.assert_allclose(table.dv[seen], [9, 5, 1, 0.2, 4], rtol=1e-3)


def test_an_upper_limit_needs_no_column_of_kinds(tmp_path: Path) -> None:
    """Neither EVID nor MDV: rows with an amount are doses, and one above a limit may have it in ULOQ."""
    path = tmp_path / "t.csv"
    path.write_text("id,time,amt,dv,cens,uloq\na,0,10,,0,9\na,1,,,-1,9\na,2,,5,0,9\n")
    table = read_events(path, {})
    seen = ~table.is_dose
    assert table.above[seen].tolist() == [True, False]
    assert table.dv[seen].tolist() == [9, 5]


def test_m1_leaves_out_those_below_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", cens=[0, -1, 0, 0, 1, 0, 1])
    table = read_events(path, {}, Format(blq="M1"))
    assert table.ids == ("a",)
    assert table.censored[~table.is_dose].tolist() == [True, False, False]
    said = "2 of 5 observations lie below a limit of quantification, and are left out (dataset.blq=M1)"
    assert any(said in note for note in table.notes)
    assert table.left_out == ("b",)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"cens": [0, 2, 0, 0, 0, 0, 0]}, "is 2; expected -1, 0 or 1"),
        (
            {"cens": [0, -1, 0, 0, 0, 0, 0], "dv": ["", "", "5", "1", "0.2", "", "4"]},
            "or in ULOQ|there or in",
        ),
        ({"cens": [0, 1, 0, 0, 0, 0, 0], "dv": ["", ">9", "5", "1", "0.2", "", "4"]}, "above a limit"),
        ({"uloq": [-1] * 7}, "is -1; expected a level above 0"),
        ({"dv": ["", ">9", "5", "1", "0.2", "", "4"], "uloq": [8] * 7}, "is another limit"),
    ],
)
def test_what_is_refused(tmp_path: Path, columns: dict[str, list[Any]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_events(write(tmp_path / "t.csv", **columns), {})


def test_another_way_is_refused() -> None:
    with pytest.raises(InputError, match=r"dataset.blq is 'M2'"):
        Format(blq="M2")
