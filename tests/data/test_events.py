"""Event tables: what good ones mean, and how each kind of bad one is refused."""

import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from medcm_cli.data import EventTable, Format, read_events
from medcm_cli.errors import InputError

WEIGHT = {"weight": "wt"}
MINUTE = 1 / 60
FORMATS = [".csv", ".parquet"]

# Line 1 is the header; subjects a and b have one dose row each.
LINES = (
    "id,time,amt,rate,duration,dv,evid,wt",
    "a,0,1000,,,,1,70",
    "a,4,,,,0.5,0,70",
    "a,24,,,,0.2,0,70",
    "b,0,2000,,,,1,80",
    "b,5,,,,0.4,0,80",
)


def edited(edits: Mapping[int, str | None], lines: tuple[str, ...] = LINES) -> str:
    """The lines with some of them (counted from 1) replaced, or left out where None."""
    kept = [edits.get(number, line) for number, line in enumerate(lines, 1)]
    return "".join(f"{line}\n" for line in kept if line is not None)


def write(folder: Path, text: str, suffix: str = ".csv") -> Path:
    """The table as a file of either format."""
    path = folder / f"events{suffix}"
    if suffix == ".csv":
        path.write_text(text)
    else:
        pd.read_csv(io.StringIO(text)).to_parquet(path)
    return path


def refusal(path: Path, covariates: Mapping[str, str] = WEIGHT, how: Format | None = None) -> str:
    """The message that refuses a file: one line that begins with the file."""
    with pytest.raises(InputError) as caught:
        read_events(path, covariates, how)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))
    return message


def columns_of(table: EventTable) -> dict[str, list[float]]:
    names = ("subject", "time", "is_dose", "rate", "duration", "dv")
    return {name: getattr(table, name).tolist() for name in names}


# -- good tables -----------------------------------------------------------------------------------

DOSING = """\
id,time,amt,rate,duration,dv,{kind},wt
b,0,1000,,,,{dose},70
b,1,,,,0.9,{observation},70
b,5,,,,0.5,{observation},70
b,9,0,0,0,0.3,{observation},70
b,10,,,,,{neither},70
a,0,4000,120000,0.25,,{dose},82.5
a,6,,,,0.4,{observation},82.5
a,6,600,,2,,{dose},82.5
a,24,500,250,,,{dose},82.5
a,24.5,,100,0.5,,{dose},82.5
a,30,,,,0.2,{observation},82.5
"""
KINDS = {
    "mdv": {"kind": "mdv", "dose": "1", "observation": "0", "neither": "1"},
    "evid and mdv": {"kind": "evid,mdv", "dose": "1,1", "observation": "0,0", "neither": "0,1"},
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_write_a_dose(tmp_path: Path, suffix: str, kind: str) -> None:
    path = write(tmp_path, DOSING.format(**KINDS[kind]), suffix)
    table = read_events(path, WEIGHT)
    assert table.source == str(path)
    assert table.ids == ("b", "a")  # first appearance, not the alphabet
    np.testing.assert_array_equal(table.covariates["weight"], [70, 82.5])
    nan = np.nan
    # The row that is neither a dose nor an observation is gone.
    expected: dict[str, list[Any]] = {
        "subject": [0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
        "time": [0, 1, 5, 9, 0, 6, 6, 24, 24.5, 30],
        "is_dose": [True, False, False, False, True, False, True, True, True, False],
        # bolus; then rate and duration although the amount disagrees; amount over duration; amount and rate
        "rate": [60_000, nan, nan, nan, 120_000, nan, 300, 250, 100, nan],
        "duration": [MINUTE, nan, nan, nan, 0.25, nan, 2, 2, 0.5, nan],
        "dv": [nan, 0.9, 0.5, 0.3, nan, 0.4, nan, nan, nan, 0.2],
    }
    for name, values in columns_of(table).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-15, err_msg=name)


@pytest.mark.parametrize("suffix", FORMATS)
def test_evid_alone_tells_doses_from_observations(tmp_path: Path, suffix: str) -> None:
    table = read_events(write(tmp_path, edited({}), suffix), WEIGHT)
    assert table.is_dose.tolist() == [True, False, False, True, False]
    assert table.subject.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(table.dv, [np.nan, 0.5, 0.2, np.nan, 0.4])
    np.testing.assert_allclose((table.rate * table.duration)[table.is_dose], [1000, 2000], rtol=1e-15)


@pytest.mark.parametrize("missing", ["", "NA", "NaN", "nan", "."])
def test_cells_that_mean_nothing_is_there(tmp_path: Path, missing: str) -> None:
    lines = tuple(",".join(cell or missing for cell in line.split(",")) for line in LINES)
    table = read_events(write(tmp_path, edited({}, lines)), WEIGHT)
    assert columns_of(table)["time"] == [0, 4, 24, 0, 5]
    np.testing.assert_array_equal(table.dv, [np.nan, 0.5, 0.2, np.nan, 0.4])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (edited({}).replace("\n", "\r\n"), "events.csv"),
        ("\ufeff" + edited({}), "events.csv"),
        (edited({}), "EVENTS.CSV"),
        (edited({}).removesuffix("\n"), "events.csv"),
    ],
    ids=["windows line ends", "byte order mark", "upper case name", "no line end at the end"],
)
def test_the_same_table_however_the_file_was_saved(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    expected = read_events(write(tmp_path, edited({}), ".parquet"), WEIGHT)
    table = read_events(tmp_path / name, WEIGHT)
    assert table.ids == expected.ids
    np.testing.assert_equal(columns_of(table), columns_of(expected))


def test_columns_may_come_in_any_order_and_others_are_ignored(tmp_path: Path) -> None:
    frame = pd.read_csv(io.StringIO(edited({}))).assign(note="text", empty=np.nan)
    path = tmp_path / "events.csv"
    frame[sorted(frame.columns)].to_csv(path, index=False)
    shuffled = read_events(path, WEIGHT)
    straight = read_events(write(tmp_path, edited({}), ".parquet"), WEIGHT)
    np.testing.assert_equal(columns_of(shuffled), columns_of(straight))


@pytest.mark.parametrize("column", ["rate", "duration"])
def test_dose_columns_that_are_not_needed_may_be_absent(tmp_path: Path, column: str) -> None:
    path = tmp_path / "events.csv"
    pd.read_csv(io.StringIO(edited({}))).drop(columns=column).to_csv(path, index=False)
    table = read_events(path, WEIGHT)
    np.testing.assert_allclose(table.duration[table.is_dose], MINUTE, rtol=1e-15)
    np.testing.assert_allclose(table.rate[table.is_dose], [60_000, 120_000], rtol=1e-15)


def test_covariates_are_only_those_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, edited({2: "a,0,1000,,,,1,", 3: "a,4,,,,0.5,0,heavy"}))
    assert read_events(path, {}).covariates == {}


def test_an_observation_before_the_first_dose_can_be_kept(tmp_path: Path) -> None:
    path = write(tmp_path, edited({2: "a,1,,,,0.5,0,70", 3: "a,2,1000,,,,1,70"}))
    table = read_events(path, WEIGHT, Format(predose_observations="keep"))
    assert table.time.tolist() == [1, 2, 24, 0, 5]
    assert table.is_dose.tolist() == [False, True, False, True, False]


def test_an_observation_at_the_time_of_the_first_dose_is_not_before_it(tmp_path: Path) -> None:
    path = write(tmp_path, edited({2: "a,0,,,,0.01,0,70", 3: "a,0,1000,,,,1,70"}))
    assert read_events(path, WEIGHT).dv[0] == 0.01


def test_an_unknown_choice_for_early_observations_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, edited({}))
    with pytest.raises(InputError, match=r"^dataset.predose_observations is 'drop'; expected error or keep$"):
        read_events(path, WEIGHT, Format(predose_observations="drop"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_subjects_keep_the_names_that_the_file_gives_them(tmp_path: Path, suffix: str) -> None:
    frame = pd.read_csv(io.StringIO(edited({})), dtype={"id": str})
    frame["id"] = frame["id"].map({"a": "007", "b": "010"})
    path = tmp_path / f"events{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    assert read_events(path, WEIGHT).ids == ("007", "010")


@pytest.mark.parametrize("index", [["id"], ["id", "time"]], ids="+".join)
def test_parquet_columns_that_pandas_saved_as_its_index(tmp_path: Path, index: list[str]) -> None:
    path = tmp_path / "events.parquet"
    pd.read_csv(io.StringIO(edited({}))).set_index(index).to_parquet(path)
    table = read_events(path, WEIGHT)
    assert table.ids == ("a", "b")
    assert table.time.tolist() == [0, 4, 24, 0, 5]


def test_parquet_rows_are_counted_from_1_whatever_index_they_were_saved_with(tmp_path: Path) -> None:
    frame = pd.read_csv(io.StringIO(edited({3: "a,-4,,,,0.5,0,70"})))
    path = tmp_path / "events.parquet"
    frame.set_index(pd.Index([40, 10, 30, 20, 50])).to_parquet(path)
    assert refusal(path).startswith(f"{path}, row 2, column 'time': ")


# -- bad cells -------------------------------------------------------------------------------------

# edits of LINES -> line, column, words of the reason
BAD_CELLS: dict[str, tuple[dict[int, str | None], int, str, str]] = {
    "text in time": ({3: "a,soon,,,,0.5,0,70"}, 3, "time", "'soon' is not a number"),
    "text in dv": ({3: "a,4,,,,<0.01,0,70"}, 3, "dv", "'<0.01' is not a number"),
    "text in amt": ({5: "b,0,2000 IU,,,,1,80"}, 5, "amt", "'2000 IU' is not a number"),
    "text in rate": ({5: "b,0,2000,fast,,,1,80"}, 5, "rate", "'fast' is not a number"),
    "text in duration": ({5: "b,0,2000,,short,,1,80"}, 5, "duration", "'short' is not a number"),
    "text in evid": ({6: "b,5,,,,0.4,obs,80"}, 6, "evid", "'obs' is not a number"),
    "text in a covariate": ({6: "b,5,,,,0.4,0,heavy"}, 6, "wt", "'heavy' is not a number"),
    "decimal comma": ({3: 'a,4,,,,"0,5",0,70'}, 3, "dv", "'0,5' is not a number"),
    "text after a missing cell": ({2: "a,0,1000,,,,1,70", 4: "a,24,,,,low,0,70"}, 4, "dv", "'low'"),
    "time missing": ({4: "a,,,,,0.2,0,70"}, 4, "time", "missing"),
    "time negative": ({2: "a,-1,1000,,,,1,70"}, 2, "time", "-1 is negative"),
    "time infinite": ({4: "a,inf,,,,0.2,0,70"}, 4, "time", "not finite"),
    "time falls": ({4: "a,3.5,,,,0.2,0,70"}, 4, "time", "3.5 comes after a later time"),
    "dose after a later observation": ({5: "b,9,2000,,,,1,80"}, 6, "time", "5 comes after a later time"),
    "dv missing": ({6: "b,5,,,,,0,80"}, 6, "dv", "missing on an observation"),
    "dv infinite": ({6: "b,5,,,,-inf,0,80"}, 6, "dv", "not finite"),
    "observation before the dose": (
        {2: "a,1,,,,0.5,0,70", 3: "a,2,1000,,,,1,70"},
        2,
        "time",
        "observation at 1 h comes before the subject's first dose",
    ),
    "rows of a subject in two places": ({6: "a,30,,,,0.4,0,70"}, 6, "id", "'a' appears in more than one"),
    "id missing": ({4: ",24,,,,0.2,0,70"}, 4, "id", "missing"),
    "subject without observation": ({6: None}, 5, "dv", "subject 'b' has no observation"),
    "subject without dose": ({2: None}, 2, "amt", "subject 'a' has no dose"),
    "evid is no event": ({4: "a,24,,,,0.2,5,70"}, 4, "evid", "is 5; expected 0, 1, 2, 3 or 4"),
    "evid is a fraction": ({4: "a,24,,,,0.2,0.5,70"}, 4, "evid", "expected 0, 1, 2, 3 or 4"),
    "evid missing": ({5: "b,0,2000,,,,,80"}, 5, "evid", "is empty; expected 0, 1, 2, 3 or 4"),
    "amount on another event": (
        {4: "a,24,500,,,0.2,2,70"},
        4,
        "evid",
        "is 2 (no dose) on a row that has a dose",
    ),
    "amount on a reset": ({4: "a,24,500,,,0.2,3,70"}, 4, "evid", "is 3 (no dose) on a row that has a dose"),
    "reset and dose of nothing": ({4: "a,24,,,,,4,70"}, 4, "amt", "missing or zero"),
    "rate modelled": ({2: "a,0,1000,-1,,,1,70"}, 2, "rate", "is -1 (a rate that the model has)"),
    "time falls without a reset": ({4: "a,1,500,,,,1,70"}, 4, "time", "or begin again with EVID 3 or 4"),
    "amount on an observation": ({4: "a,24,500,,,0.2,0,70"}, 4, "evid", "a row that has a dose"),
    "rate on an observation": ({4: "a,24,,500,1,0.2,0,70"}, 4, "evid", "a row that has a dose"),
    "amount negative": ({2: "a,0,-1000,,,,1,70"}, 2, "amt", "-1000"),
    "rate negative": ({2: "a,0,1000,-50,,,1,70"}, 2, "rate", "negative"),
    "duration negative": ({2: "a,0,1000,,-2,,1,70"}, 2, "duration", "negative"),
    "dose of nothing": ({5: "b,0,0,,,,1,80"}, 5, "amt", "missing or zero"),
    "dose without amount or rate": ({5: "b,0,,,0.5,,1,80"}, 5, "amt", "missing or zero"),
    "rate without duration or amount": ({5: "b,0,,3000,,,1,80"}, 5, "duration", "missing on a dose row"),
    "amount infinite": ({5: "b,0,1e400,,,,1,80"}, 5, "amt", "not finite"),
    "rate infinite": ({5: "b,0,,inf,1,,1,80"}, 5, "rate", "not finite"),
    "duration infinite": ({5: "b,0,,100,inf,,1,80"}, 5, "duration", "not finite"),
    "covariate missing": ({4: "a,24,,,,0.2,0,"}, 4, "wt", "missing"),
    "covariate missing on the dose row": ({5: "b,0,2000,,,,1,"}, 5, "wt", "missing"),
    "covariate changes": ({4: "a,24,,,,0.2,0,71"}, 4, "wt", "71"),
    "covariate infinite": ({5: "b,0,2000,,,,1,inf"}, 5, "wt", "not finite"),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("case", BAD_CELLS)
def test_a_bad_cell_is_named(tmp_path: Path, case: str, suffix: str) -> None:
    edits, line, column, reason = BAD_CELLS[case]
    path = write(tmp_path, edited(edits), suffix)
    place = f"line {line}" if suffix == ".csv" else f"row {line - 1}"
    message = refusal(path)
    assert message.startswith(f"{path}, {place}, column {column!r}: ")
    assert reason in message.removeprefix(f"{path}, {place}")


MDV_LINES = tuple(line.replace("evid", "mdv") for line in LINES)
BAD_MDV: dict[str, tuple[dict[int, str | None], int, str, str]] = {
    "mdv is neither 0 nor 1": ({3: "a,4,,,,0.5,100,70"}, 3, "mdv", "expected 0 or 1"),
    "mdv missing": ({3: "a,4,,,,0.5,,70"}, 3, "mdv", "expected 0 or 1"),
    "dose on an observation": ({2: "a,0,1000,,,,0,70"}, 2, "mdv", "a row that has a dose"),
    "amount negative": ({2: "a,0,-1000,,,,1,70"}, 2, "amt", "negative"),
    "rate negative": ({2: "a,0,,-50,1,,1,70"}, 2, "rate", "negative"),
    "dose of nothing": ({2: "a,0,0,,,,1,70"}, 2, "amt", "subject 'a' has no dose"),
}


@pytest.mark.parametrize("case", BAD_MDV)
def test_a_bad_cell_is_named_where_mdv_tells_doses(tmp_path: Path, case: str) -> None:
    edits, line, column, reason = BAD_MDV[case]
    path = write(tmp_path, edited(edits, MDV_LINES))
    message = refusal(path)
    assert message.startswith(f"{path}, line {line}, column {column!r}: ")
    assert reason in message


def test_a_bad_mdv_beside_a_good_evid_is_named(tmp_path: Path) -> None:
    lines = tuple(f"{line},{mdv}" for line, mdv in zip(LINES, ["mdv", 1, 0, 3, 1, 0], strict=True))
    path = write(tmp_path, edited({}, lines))
    assert refusal(path).startswith(f"{path}, line 4, column 'mdv': is 3; expected 0 or 1")


# A table with every column that the field uses: two subjects, additional doses, a steady state, occasions.
FULL = (
    "ID,TIME,EVID,AMT,RATE,DURATION,ADDL,II,SS,CMT,OCC,DV,CENS,LLOQ,WT",
    "a,0,1,1000,.,.,2,12,.,1,1,.,.,.,70",
    "a,4,0,.,.,.,.,.,.,1,1,0.5,0,0.01,70",
    "a,30,0,.,.,.,.,.,.,1,2,0.01,1,.,70",
    "b,0,1,2000,500,.,.,24,1,1,1,.,.,.,80",
    "b,5,0,.,.,.,.,.,.,1,1,0.4,0,0.01,80",
)


def full_row(line: int, **cells: str) -> dict[int, str | None]:
    """A row of ``FULL`` with some cells replaced."""
    row = dict(zip(FULL[0].split(","), FULL[line - 1].split(","), strict=True))
    assert set(cells) <= set(row)
    return {line: ",".join({**row, **cells}.values())}


BAD_FULL: dict[str, tuple[dict[int, str | None], int, str, str]] = {
    "addl negative": (full_row(2, ADDL="-1"), 2, "ADDL", "is -1; expected a whole number from 0"),
    "addl a fraction": (full_row(2, ADDL="1.5"), 2, "ADDL", "is 1.5; expected a whole number"),
    "addl text": (full_row(2, ADDL="many"), 2, "ADDL", "'many' is not a number"),
    "addl without ii": (full_row(2, II="."), 2, "II", "is missing or zero on a dose row with additional"),
    "addl on an observation": (full_row(3, ADDL="2"), 3, "ADDL", "is 2 on a row that is not a dose"),
    "ii negative": (full_row(2, II="-12"), 2, "II", "-12 is negative"),
    "ii on an observation": (full_row(3, II="12"), 3, "II", "is 12 on a row that is not a dose"),
    "ss unknown": (full_row(5, SS="3"), 5, "SS", "is 3; expected 0, 1 or 2"),
    "ss without ii": (full_row(5, II="0"), 5, "II", "at steady state"),
    "ss on an observation": (full_row(6, SS="1"), 6, "SS", "is 1 on a row that is not a dose"),
    "cmt negative": (full_row(2, CMT="-1"), 2, "CMT", "is -1; expected a whole number from 0"),
    "cmt a fraction": (full_row(2, CMT="1.5"), 2, "CMT", "expected a whole number"),
    "occ zero": (full_row(2, OCC="0"), 2, "OCC", "is 0; expected a whole number from 1"),
    "occ missing": (full_row(4, OCC="."), 4, "OCC", "is empty; expected a whole number from 1"),
    "occ falls": (full_row(4, OCC="1") | full_row(3, OCC="2"), 4, "OCC", "1 comes after a later occasion"),
    "cens unknown": (full_row(4, CENS="-1"), 4, "CENS", "is -1; expected 0 or 1"),
    "cens without a limit": (full_row(4, DV="."), 4, "DV", "expected the limit, there or in LLOQ"),
    "limit of zero": (full_row(3, LLOQ="0"), 3, "LLOQ", "is 0; expected a level above 0"),
    "limit is text": (full_row(3, LLOQ="<1"), 3, "LLOQ", "'<1' is not a number"),
    "dv missing": (full_row(3, DV="NA"), 3, "DV", "is missing on an observation row"),
    "rate of nothing at steady state": (full_row(5, AMT=".", RATE="."), 5, "AMT", "missing or zero"),
}


@pytest.mark.parametrize("case", BAD_FULL)
def test_a_bad_cell_of_a_regimen_is_named(tmp_path: Path, case: str) -> None:
    edits, line, column, reason = BAD_FULL[case]
    path = write(tmp_path, edited(edits, FULL))
    message = refusal(path, {"weight": "WT"})
    assert message.startswith(f"{path}, line {line}, column {column!r}: ")
    assert reason in message


BAD_FORMATS: dict[str, tuple[dict[str, object], str]] = {
    "unknown role": ({"columns": {"weight": "WT"}}, "dataset.columns: 'weight'; expected some of id, time"),
    "column absent": ({"columns": {"time": "HOURS"}}, "column 'HOURS' is missing; the file has ID, TIME"),
    "optional column absent": ({"columns": {"lloq": "LIMIT"}}, "column 'LIMIT' is missing"),
    "keep of a column absent": ({"keep": {"DVID": [1]}}, "column 'DVID' is missing"),
    "keep is no list": ({"keep": {"CMT": 1}}, "dataset.keep.CMT is 1; expected a list"),
    "keep leaves nothing": ({"keep": {"CMT": [7]}}, "no row has CMT in [7]"),
    "bolus negative": (
        {"bolus_duration": -1},
        "dataset.bolus_duration is -1; expected a number from 0, in h",
    ),
    "bolus is text": ({"bolus_duration": "short"}, "dataset.bolus_duration is 'short'"),
    "over time unknown": ({"over_time": {"weight": "last"}}, "dataset.over_time.weight is 'last'; expected"),
    "over time of nothing": ({"over_time": {"vwf": "mean"}}, "dataset.over_time.vwf: no such covariate"),
}


@pytest.mark.parametrize("case", BAD_FORMATS)
def test_a_bad_way_to_read_is_refused(tmp_path: Path, case: str) -> None:
    options, reason = BAD_FORMATS[case]
    path = write(tmp_path, edited({}, FULL))
    with pytest.raises(InputError) as caught:
        read_events(path, {"weight": "WT"}, Format(**options))  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# -- what the field's columns mean -----------------------------------------------------------------


def dose_rows(table: EventTable) -> list[tuple[float, ...]]:
    """(subject, time, amount, duration, interval) of every dose given."""
    names = ("subject", "time", "amount", "duration", "interval")
    columns = (getattr(table, name)[table.is_dose].tolist() for name in names)
    return [tuple(row) for row in zip(*columns, strict=True)]


def test_additional_doses_and_steady_states_are_written_out(tmp_path: Path) -> None:
    table = read_events(write(tmp_path, edited({}, FULL)), {"weight": "WT"})
    inf = np.inf
    expected = [(0, time, 1000, MINUTE, inf) for time in (0, 12, 24)]
    # The steady state: an endless series, then one that may still run, then the dose itself.
    expected += [(1, -48, 2000, 4, 24), (1, -24, 2000, 4, inf), (1, 0, 2000, 4, inf)]
    np.testing.assert_allclose(dose_rows(table), expected)
    assert table.ids == ("a", "b")
    assert table.occasion[~table.is_dose].tolist() == [1, 2, 1]
    assert table.censored[~table.is_dose].tolist() == [False, True, False]
    assert set(table.compartment) == {0}


def test_additional_doses_end_with_what_is_observed_or_reset(tmp_path: Path) -> None:
    edits = full_row(2, ADDL="50") | {4: "a,0,4,500,.,.,.,.,.,1,2,.,.,.,70\na,8,0,.,.,.,.,.,.,1,2,0.1,0,.,70"}
    table = read_events(write(tmp_path, edited(edits, FULL)), {"weight": "WT"})
    assert [row[1] for row in dose_rows(table) if row[0] == 0] == [0, 0]  # 12 h comes after the last record
    own = table.subject == 0
    assert table.segment[own].tolist() == [0, 0, 1, 1]
    assert table.time[own].tolist() == [0, 4, 0, 8]
    clock = table.clock[own]
    assert (np.diff(clock) > 0).all()
    assert clock[2] > 4 + MINUTE
    assert table.reset_clock.tolist() == [clock[2]]


def test_an_infusion_longer_than_its_interval_at_steady_state(tmp_path: Path) -> None:
    edits = full_row(5, RATE="40")  # 50 h, every 24 h: two earlier ones still run, one more for a lag time
    table = read_events(write(tmp_path, edited(edits, FULL)), {"weight": "WT"})
    assert [(row[1], row[4]) for row in dose_rows(table) if row[0] == 1] == [
        (-96, 24),
        *((-hours, np.inf) for hours in (72, 48, 24, 0)),
    ]


def test_a_constant_infusion_at_steady_state_ends_at_its_record(tmp_path: Path) -> None:
    edits = full_row(5, AMT="0", RATE="40", II="0")
    table = read_events(write(tmp_path, edited(edits, FULL)), {"weight": "WT"})
    (_, start, amount, duration, interval) = next(row for row in dose_rows(table) if row[0] == 1)
    assert start + duration == 0
    assert amount / duration == 40
    assert duration >= 1e5
    assert interval == np.inf


@pytest.mark.parametrize(
    ("cells", "duration"), [({"DURATION": "3"}, 3.0), ({}, np.nan)], ids=["given", "modelled"]
)
def test_rate_minus_two_has_a_duration_given_or_modelled(
    tmp_path: Path, cells: dict[str, str], duration: float
) -> None:
    table = read_events(write(tmp_path, edited(full_row(2, RATE="-2", **cells), FULL)), {"weight": "WT"})
    np.testing.assert_array_equal(table.duration[table.is_dose][:3], [duration] * 3)
    assert table.amount[0] == 1000


def test_a_level_below_its_limit_is_censored_where_no_column_says_so(tmp_path: Path) -> None:
    lines = tuple(",".join((*line.split(",")[:12], *line.split(",")[13:])) for line in FULL)
    edits = {3: lines[2].replace("0.5,0.01", "0.005,0.01")}
    table = read_events(write(tmp_path, edited(edits, lines)), {"weight": "WT"})
    seen = ~table.is_dose
    assert table.censored[seen].tolist() == [True, False, False]
    assert table.dv[seen].tolist() == [0.01, 0.01, 0.4]  # the limit in place of the level


def test_columns_of_other_names_and_rows_that_are_not_wanted(tmp_path: Path) -> None:
    text = (
        "patient;x\n".replace(";x", ",hours,event,iu,level,what\n").strip()
        + "\n1,0,1,1000,,dose\n1,4,0,,0.5,fviii\n1,4,0,,88,vwf\n"
    )
    columns = {"id": "patient", "time": "hours", "evid": "event", "amt": "iu", "dv": "level"}
    table = read_events(write(tmp_path, text), {}, Format(columns=columns, keep={"what": ["dose", "fviii"]}))
    assert table.dv[~table.is_dose].tolist() == [0.5]
    message = refusal(
        write(tmp_path, text.replace("88", "high").replace(",vwf", ",fviii")),
        {},
        Format(columns=columns, keep={"what": ["dose", "fviii"]}),
    )
    assert "line 4, column 'level': 'high' is not a number" in message


def test_a_dose_given_at_once(tmp_path: Path) -> None:
    table = read_events(write(tmp_path, edited({})), WEIGHT, Format(bolus_duration=0))
    assert table.duration[table.is_dose].tolist() == [0, 0]
    assert table.amount[table.is_dose].tolist() == [1000, 2000]


CHANGING = (
    "id,time,amt,dv,evid,wt,vwf",
    "a,0,1000,,1,70,100",
    "a,4,,0.5,0,70,",
    "a,10,,,2,70,150",
    "a,24,,0.2,0,70,200",
    "b,0,2000,,1,80,",
    "b,5,,0.4,0,80,90",
)
BOTH = {"weight": "wt", "vwf": "vwf"}


def test_a_covariate_in_force_at_each_record(tmp_path: Path) -> None:
    """Until a record its own value holds, as in NONMEM; a record without one has the last before it, or the
    first."""
    table = read_events(write(tmp_path, edited({}, CHANGING)), BOTH, Format(over_time={"vwf": "record"}))
    assert set(table.covariates) == {"weight"}
    assert table.regimes is not None
    assert table.regimes.subject.tolist() == [0, 0, 0, 1]
    assert table.regimes.end.tolist() == [4, 10, np.inf, np.inf]
    assert table.regimes.covariates["vwf"].tolist() == [100, 150, 200, 90]


@pytest.mark.parametrize(("rule", "values"), [("mean", [150, 90]), ("first", [100, 90])])
def test_one_value_for_a_subject_whose_covariate_changes(
    tmp_path: Path, rule: str, values: list[float]
) -> None:
    table = read_events(write(tmp_path, edited({}, CHANGING)), BOTH, Format(over_time={"vwf": rule}))
    assert table.regimes is None
    assert table.covariates["vwf"].tolist() == values


def test_a_covariate_that_may_be_missing(tmp_path: Path) -> None:
    edits: dict[int, str | None] = {3: "a,4,,,,0.5,0,", 5: "b,0,2000,,,,1,", 6: "b,5,,,,0.4,0,"}
    path = write(tmp_path, edited(edits))
    table = read_events(path, WEIGHT, Format(optional=frozenset({"weight"})))
    np.testing.assert_array_equal(table.covariates["weight"], [70, np.nan])
    assert "line 3, column 'wt': is missing" in refusal(path)


@pytest.mark.parametrize("blank_after", [1, 3, 4])
def test_blank_lines_do_not_shift_the_line_number(tmp_path: Path, blank_after: int) -> None:
    lines = edited({6: "b,-5,,,,0.4,0,80"}).splitlines()
    lines.insert(blank_after, "")
    path = write(tmp_path, "\n".join(lines) + "\n")
    assert refusal(path).startswith(f"{path}, line 7, column 'time': -5 is negative")


@pytest.mark.parametrize("row", ["a,24,,,,0.2,0", "a,24,,,,0.2,0,70,1"], ids=["too few", "too many"])
def test_a_line_with_another_number_of_cells_is_named(tmp_path: Path, row: str) -> None:
    path = write(tmp_path, edited({4: row}))
    message = refusal(path)
    assert "8 columns" in message
    assert row in message
    assert any(where in message for where in ("line 4", "Row #4"))


TIMES = ["2020-03-01 00:00:00", "2020-03-01 04:00:00", "2020-03-02 00:00:00"] * 2


def test_dates_and_clock_times_are_not_hours_in_csv(tmp_path: Path) -> None:
    frame = pd.read_csv(io.StringIO(edited({}))).assign(time=TIMES[:5])
    path = tmp_path / "events.csv"
    frame.to_csv(path, index=False)
    assert refusal(path).startswith(f"{path}, line 2, column 'time': ")


@pytest.mark.parametrize(
    "times",
    [pd.to_datetime(TIMES[:5]), pd.to_timedelta([0, 4, 24, 0, 5], unit="h")],
    ids=["timestamp", "duration"],
)
def test_timestamps_and_durations_are_not_hours_in_parquet(tmp_path: Path, times: pd.Index) -> None:
    frame = pd.read_csv(io.StringIO(edited({}))).assign(time=times)
    path = tmp_path / "events.parquet"
    frame.to_parquet(path)
    assert refusal(path).startswith(f"{path}, row 1, column 'time': ")


# -- bad files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("column", ["id", "time", "dv", "wt"])
def test_a_missing_column_is_named_with_those_that_are_there(
    tmp_path: Path, column: str, suffix: str
) -> None:
    frame = pd.read_csv(io.StringIO(edited({}))).drop(columns=column)
    path = tmp_path / f"events{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    message = refusal(path)
    assert f"column {column!r} is missing" in message
    assert ", ".join(frame.columns) in message


def test_a_table_needs_evid_or_mdv(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    pd.read_csv(io.StringIO(edited({}))).drop(columns="evid").to_csv(path, index=False)
    message = refusal(path)
    assert "'evid'" in message
    assert "'mdv'" in message


def test_a_table_without_any_dose_column_has_no_doses(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    pd.read_csv(io.StringIO(edited({}))).drop(columns=["amt", "rate", "duration"]).to_csv(path, index=False)
    assert refusal(path).startswith(f"{path}, line 2, column 'amt': ")


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty csv": ("events.csv", b"", "empty"),
    "only line ends": ("events.csv", b"\n\n", "empty"),
    "header only": ("events.csv", (LINES[0] + "\n").encode(), "no rows"),
    "other separator": ("events.csv", edited({}).replace(",", ";").encode(), "column 'id' is missing"),
    "column twice": ("events.csv", edited({1: LINES[0].replace("rate", "amt")}).encode(), "column 'amt'"),
    "not utf-8": ("events.csv", edited({}).replace("a,", "\xe4,").encode("latin-1"), ""),
    "another kind of file": ("events.xlsx", b"PK", ".csv or .parquet"),
    "no suffix": ("events", edited({}).encode(), ".csv or .parquet"),
    "csv called parquet": ("events.parquet", edited({}).encode(), "cannot be read as an event table"),
    "empty parquet": ("events.parquet", b"", "cannot be read as an event table"),
    "parquet cut short": ("events.parquet", b"PAR1" + bytes(60), "cannot be read as an event table"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused(tmp_path: Path, case: str) -> None:
    name, content, reason = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    assert reason.lower() in refusal(tmp_path / name).lower()


@pytest.mark.parametrize("name", ["absent.csv", "absent.parquet", "folder.csv"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert ("a folder" if name == "folder.csv" else "no such file") in refusal(tmp_path / name)


def test_a_damaged_parquet_table_is_refused(tmp_path: Path) -> None:
    """With its footer whole and its pages overwritten, which pyarrow calls an OSError."""
    path = tmp_path / "events.parquet"
    pd.read_csv(io.StringIO(edited({}))).to_parquet(path, compression=None)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    assert "cannot be read" in refusal(path)


def test_a_column_of_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    frame = pd.read_csv(io.StringIO(edited({})))
    frame["id"] = [[name] for name in frame["id"]]
    frame.to_parquet(path)
    assert "'id'" in refusal(path)


def test_a_parquet_table_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pd.read_csv(io.StringIO(edited({}))).iloc[:0].to_parquet(path)
    assert "no rows" in refusal(path)


def test_a_parquet_table_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pa.parquet.write_table(pa.table([["a"], [1.0], [2.0]], names=["id", "amt", "amt"]), path)
    assert "amt" in refusal(path)


def test_a_column_name_of_two_lines_does_not_make_the_message_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    frame = pd.read_csv(io.StringIO(edited({}))).rename(columns={"wt": "weight\n(kg)"})
    frame.to_parquet(path)
    assert "column 'wt' is missing" in refusal(path)


def test_a_large_table_is_read_whole_and_its_late_faults_are_found(tmp_path: Path) -> None:
    """Readers work in blocks of about a megabyte and guess a column's type from the first."""
    subjects = 30_000
    rows = itertools.chain.from_iterable(
        (f"{i},0,1000,,,,1,70\n", f"{i},4,,,,0.5,0,70\n") for i in range(1, subjects)
    )
    text = LINES[0] + "\n" + "".join(rows)
    path = tmp_path / "events.csv"
    path.write_text(text + "last,0,1000.5,2000.5,0.25,,1,70.5\nlast,4,,,,1,0,70.5\n")
    table = read_events(path, WEIGHT)
    assert len(table.ids) == subjects
    assert (table.ids[0], table.ids[-1]) == ("1", "last")
    assert (table.rate[-2], table.duration[-2], table.dv[-1]) == (2000.5, 0.25, 1)
    assert table.covariates["weight"].sum() == 70 * (subjects - 1) + 70.5
    path.write_text(text + "last,0,1000,,,,1,70\nlast,4,,,,low,0,70\n")
    assert refusal(path).startswith(f"{path}, line {2 * subjects + 1}, column 'dv': 'low' is not a number")


# -- published data --------------------------------------------------------------------------------


def test_the_published_table(published: Path) -> None:
    path = published / "simulation.csv"
    table = read_events(path, {"weight": "wt", "vwf": "vwf", "age": "age"})
    frame = pd.read_csv(path)
    assert table.ids == tuple(f"virtual_{number}" for number in range(1, 501))
    assert (~table.is_dose).sum() == 1500
    assert np.bincount(table.subject[~table.is_dose]).tolist() == [3] * 500
    assert np.bincount(table.subject[table.is_dose]).tolist() == [1] * 500
    np.testing.assert_allclose(table.duration[table.is_dose], MINUTE, rtol=1e-14)
    # The file's amounts are about twice what rate and duration give, and these two win.
    given, doses = (table.rate * table.duration)[table.is_dose], frame[frame["mdv"] == 1]
    np.testing.assert_allclose(given, doses["rate"] * doses["duration"], rtol=1e-14)
    assert (given < 0.7 * doses["amt"]).all()
    np.testing.assert_array_equal(table.dv[~table.is_dose], frame[frame["mdv"] == 0]["dv"])
    np.testing.assert_array_equal(table.covariates["vwf"], frame.groupby("id", sort=False)["vwf"].first())
