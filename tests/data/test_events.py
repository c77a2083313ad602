"""Event tables: what good ones mean."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medcm_cli.data import EventTable, Format, read_events
from medcm_cli.errors import InputError
from tests.data.tables import FORMATS, FULL, LINES, MINUTE, WEIGHT, edited, full_row, refusal, write


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
        "rate": [np.inf, nan, nan, nan, 120_000, nan, 300, 250, 100, nan],
        "duration": [0, nan, nan, nan, 0.25, nan, 2, 2, 0.5, nan],
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
    assert table.amount[table.is_dose].tolist() == [1000, 2000]


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
    np.testing.assert_allclose(table.duration[table.is_dose], 0)
    assert table.amount[table.is_dose].tolist() == [1000, 2000]


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


# -- what the field's columns mean -----------------------------------------------------------------


def dose_rows(table: EventTable) -> list[tuple[float, ...]]:
    """(subject, time, amount, duration, interval) of every dose given."""
    names = ("subject", "time", "amount", "duration", "interval")
    columns = (getattr(table, name)[table.is_dose].tolist() for name in names)
    return [tuple(row) for row in zip(*columns, strict=True)]


def test_additional_doses_and_steady_states_are_written_out(tmp_path: Path) -> None:
    table = read_events(write(tmp_path, edited({}, FULL)), {"weight": "WT"})
    inf = np.inf
    expected = [(0, time, 1000, 0, inf) for time in (0, 12, 24)]
    expected += [(1, 0, 2000, 4, 24)]  # with an endless series before it
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
    assert clock[2] > 4
    assert table.reset_clock.tolist() == [clock[2]]


def test_a_constant_infusion_at_steady_state_ends_at_its_record(tmp_path: Path) -> None:
    edits = full_row(5, AMT="0", RATE="40", II="0")
    table = read_events(write(tmp_path, edited(edits, FULL)), {"weight": "WT"})
    (_, start, amount, duration, interval) = next(row for row in dose_rows(table) if row[0] == 1)
    assert (start, amount / duration) == (0, 40)
    assert interval == duration
    assert table.rated[(table.subject == 1) & table.is_dose].tolist() == [2]
    assert not table.given[table.subject == 1].any()


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


def test_a_dose_with_an_amount_alone_is_given_at_once_or_as_the_data_set_says(tmp_path: Path) -> None:
    table = read_events(write(tmp_path, edited({})), WEIGHT)
    assert table.duration[table.is_dose].tolist() == [0, 0]
    longer = read_events(write(tmp_path, edited({})), WEIGHT, Format(bolus_duration=MINUTE))
    assert longer.duration[longer.is_dose].tolist() == [MINUTE, MINUTE]
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
