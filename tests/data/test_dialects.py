"""One table, written as clinics write tables: each file reads equal to the plain one, or is refused in one
line that names the option which reads it, and with that option it reads equal."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml

from medcm_cli.data import EventTable, Format, read_events
from medcm_cli.errors import InputError

COLUMNS = {"weight": "wt", "male": "sex"}
TEXTS = {"male": {"M": 1.0, "F": 0.0}}
START = datetime(2021, 1, 14, 8, 30)
DOUBTFUL = datetime(2001, 1, 1, 8, 30)
# Numbers that leave no doubt and such that do: 1.234 may be a thousand in another country.
ROWS = (
    ("Å1", 0.0, 1000.0, None, False, 71.5, "M"),
    ("Å1", 4.5, None, 0.625, False, 71.5, "M"),
    ("Å1", 30.0, None, 0.01, True, 71.5, "M"),
    ("b", 0.0, 2000.0, None, False, 80.25, "F"),
    ("b", 6.75, None, 1.234, False, 80.25, "F"),
    ("b", 240.0, 1500.0, None, False, 80.25, "F"),
    ("b", 264.5, None, 0.375, False, 80.25, "F"),
)


class Case(NamedTuple):
    """How a file is written."""

    separator: str
    decimal: str
    encoding: str
    time: str
    below: str
    kinds: str
    extra: str = ""


SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "blank": "   ", "bar": "|"}
PAIRS = [("comma", "."), ("semicolon", ","), ("semicolon", "."), ("tab", ","), ("blank", ".")]
STYLES = [("hours", "cens", "evid"), ("clock", "<", "none"), ("stamp", "<", "mdv"), ("slashes", "<", "evid")]
ENCODINGS = {"utf-8": "utf-8", "windows": "cp1252", "bom": "utf-8-sig", "utf-16": "utf-16"}
PLAIN = Case("comma", ".", "utf-8", "hours", "cens", "evid")
EXCEL = Case("semicolon", ",", "windows", "hours", "cens", "evid")
CASES = [
    Case(separator, decimal, list(ENCODINGS)[(2 * half + pair + style) % 4], *STYLES[style])
    for pair, (separator, decimal) in enumerate(PAIRS)
    for style in range(4)
    for half in range(2)
] + [
    PLAIN._replace(extra="# comments"),
    PLAIN._replace(extra="C rows"),
    PLAIN._replace(extra="# header"),
    PLAIN._replace(extra="$TABLE", separator="blank"),
    PLAIN._replace(extra="no header", separator="blank", encoding="windows", kinds="none"),
    PLAIN._replace(extra="bars", separator="bar"),
    PLAIN._replace(extra="quoted", decimal=","),
    PLAIN._replace(extra="three digits", separator="semicolon"),
    EXCEL._replace(extra="short years", time="slashes"),
    EXCEL._replace(extra="thousands"),
    EXCEL._replace(extra="doubtful thousands"),
    EXCEL._replace(extra="blank thousands"),
    EXCEL._replace(extra="apostrophes", decimal="."),
    EXCEL._replace(extra="emptied columns", time="stamp", below="<"),
    EXCEL._replace(extra="sep=", time="clock", encoding="utf-16"),
    EXCEL._replace(extra="doubtful days", time="slashes"),
    PLAIN._replace(extra="month first", time="month first"),
    PLAIN._replace(extra="names of months", time="names of months", kinds="none"),
    PLAIN._replace(extra="dates of eight digits", time="eight digits", below="<"),
    PLAIN._replace(extra="old Macintosh", kinds="mdv"),
]


THOUSANDS = {"thousands": ".", "doubtful thousands": ".", "blank thousands": "\u00a0", "apostrophes": "'"}


def number(value: float | None, case: Case) -> str:
    if value is None:
        return "."
    if case.extra in THOUSANDS and value >= 1000:
        decimals = 1 if case.extra == "thousands" else 0
        text = f"{value:,.{decimals}f}".replace(".", case.decimal)
        return f"{value:,.0f}".replace(",", THOUSANDS[case.extra]) + text[5:]
    text = f"{value:.3f}" if case.extra == "three digits" and value > 1 else f"{value:g}"
    text = text.replace(".", case.decimal)
    return f'"{text}"' if case.extra == "quoted" else text


def cells(row: tuple[Any, ...], case: Case) -> dict[str, str]:
    """A row as the file has it."""
    name, hours, amount, level, below, weight, sex = row
    when = (DOUBTFUL if case.extra == "doubtful days" else START) + timedelta(hours=hours)
    times = {
        "hours": {"TIME": number(hours, case)},
        "clock": {"DATE": f"{when:%d.%m.%Y}", "TIME": f"{when:%H:%M}"},
        "stamp": {"Datetime": f"{when:%Y-%m-%dT%H:%M:%S}"},
        "slashes": {
            "DATE": f"{when:{'%d/%m/%y' if case.extra == 'short years' else '%d/%m/%Y'}}",
            "TIME": f"{when:%H:%M}",
        },
        "month first": {"TIME": f"{when:%m/%d/%Y %I:%M %p}"},
        "names of months": {"TIME": f"{when:%d%b%Y:%H:%M:%S}".upper()},
        "eight digits": {"DATE": f"{when:%Y%m%d}", "TIME": f"{when:%H:%M}"},
    }
    dose = amount is not None
    kinds = {"evid": {"EVID": str(int(dose))}, "mdv": {"MDV": str(int(dose))}, "none": {}}
    dv = number(level, case)
    limit = {"CENS": "." if dose else str(int(below))} if case.below == "cens" else {}
    return {
        "ID": name,
        **times[case.time],
        **kinds[case.kinds],
        "AMT": number(amount, case),
        "DV": f"<{dv}" if below and case.below == "<" else dv,
        **limit,
        "wt": number(weight, case),
        "sex": sex,
    }


def written(folder: Path, case: Case) -> Path:
    table = [cells(row, case) for row in ROWS]
    mark = SEPARATORS[case.separator]
    text = [mark.join(line) for line in [list(table[0]), *([*row.values()] for row in table)]]
    if case.extra == "# comments":
        text = ["# exported", text[0], *text[1:3], "#" + text[3], *text[3:]]
    elif case.extra == "C rows":
        text = ["C," + text[0], *("," + line for line in text[1:3]), "C," + text[3]]
        text += ["," + mark.join(row.values()) for row in table[2:]]
    elif case.extra == "# header":
        text[0] = "#" + text[0]
    elif case.extra == "$TABLE":
        text = ["TABLE NO.  1", *(f" {line}" for line in text)]
    elif case.extra == "no header":
        del text[0]
    elif case.extra == "emptied columns":
        text = [f"{line};;" for line in text]
    elif case.extra == "sep=":
        text = ["sep=;", *text]
    path = folder / ("events.dat" if case.separator == "blank" else "events.csv")
    end = "\r" if case.extra == "old Macintosh" else "\r\n"
    path.write_bytes((end.join(text) + end).encode(ENCODINGS[case.encoding]))
    return path


def plain() -> EventTable:
    """The table as a frame of numbers."""
    frame = pd.DataFrame(ROWS, columns=["id", "time", "amt", "dv", "cens", "wt", "sex"])
    frame = frame.assign(evid=frame["amt"].notna().astype(int), cens=frame["cens"].astype(int))
    frame["sex"] = frame["sex"].map(TEXTS["male"])
    return read_events(frame, COLUMNS)


def option_of(message: str, path: Path) -> dict[str, Any]:
    """The first option that a refusal of one line names."""
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))
    found = re.search(r"dataset\.dialect=(\{[^}]*\})", message)
    assert found is not None, message
    options: dict[str, Any] = yaml.safe_load(found[1])
    return options


def same(one: EventTable, other: EventTable) -> None:
    assert one.ids == other.ids
    for name in ("subject", "time", "amount", "dv", "censored", "is_dose"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name, values in other.covariates.items():
        np.testing.assert_array_equal(one.covariates[name], values)


REFUSED = ("no header", "doubtful thousands", "doubtful days", "short years")


def test_there_are_sixty() -> None:
    assert len(set(CASES)) == 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(filter(None, case)))
def test_a_file_reads_equal_or_names_the_option_that_reads_it(tmp_path: Path, case: Case) -> None:
    path = written(tmp_path, case)
    said: dict[str, Any] = {}
    try:
        events = read_events(path, COLUMNS, Format(texts=TEXTS))
    except InputError as error:
        said = option_of(str(error), path)
        if "names" in said:
            said["names"] = list(cells(ROWS[0], case))
        events = read_events(path, COLUMNS, Format(dialect=said, texts=TEXTS))
    same(events, plain())
    assert len(events.notes) <= 1
    assert bool(said) == (case.extra in REFUSED)


HEADER = "ID;TIME;EVID;AMT;DV"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("1;0;1;1.000;.", "1;5;0;.;300"), "line 2, column 'AMT': '1.000' may be 1.000 or 1000"),
        (("1;0;1;1,000;.", "1;5;0;.;300"), "line 2, column 'AMT': '1,000' may be 1.000 or 1000"),
        (("1;0;1;1000;.", "1;1.5;0;.;0,3"), "line 3, column 'DV': '0,3' has another decimal mark than '1.5'"),
        (("1;0;1;1.234,5;.", "1;1;0;.;1'000"), "column 'DV': \"1'000\" has another mark between thousands"),
        (("1;0;1;1000;.", "C;5;0;.;3", "1;6;0;.;3"), "line 3: begins with C"),
        (("1;08:00;1;1000;.", "1;07:00;0;.;3"), "comes after a later clock time"),
        (("1;01.02.2021;1;1000;.", "1;31.02.2021;0;.;3"), "line 3, column 'TIME': '31.02.2021' is no date"),
        (("1;01/02/2021;1;1000;.", "1;03/02/2021;0;.;3"), "'01/02/2021' may be day, month, year or month"),
        (("1;08:00;1;1000;.", "1;9;0;.;3"), "line 2, column 'TIME': '08:00' is not a number"),
        (("1;2021-01-01 08:00;1;1000;.", "1;2021-01-03;0;.;3"), "'2021-01-03' has no clock time"),
        (("1;2021-01-03;1;1000;.", "1;2021-01-01;0;.;3"), "2021-01-01 comes after a later time"),
        (("1;0;1;1000;.", "1;5;0;.;BLQ"), "line 3, column 'DV': 'BLQ' is not a number"),
    ],
)
def test_what_is_in_doubt_is_refused(tmp_path: Path, rows: tuple[str, ...], words: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text("\n".join([HEADER, *rows]))
    with pytest.raises(InputError) as caught:
        read_events(path, {})
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("said", "rows", "dv"),
    [
        ({"thousands": "point"}, ("1;0;1;1.000;.", "1;5;0;.;1.300"), 1300),
        ({"decimal": "point"}, ("1;0;1;1.000;.", "1;5;0;.;1.300"), 1.3),
        ({"ignore": "C"}, ("1;0;1;1000;.", "C;5;0;.;3", "1;6;0;.;4"), 4),
        ({"ignore": "@"}, (HEADER, "1;0;1;1000;.", HEADER, "1;6;0;.;4"), 4),
        ({"dates": "mdy"}, ("1;01/02/2021;1;1000;.", "1;01/03/2021;0;.;3"), 3),
        ({"separator": "semicolon", "encoding": "latin-1"}, ("1;0;1;1000;.", "1;5;0;.;3"), 3),
    ],
)
def test_what_is_said_counts(tmp_path: Path, said: dict[str, Any], rows: tuple[str, ...], dv: float) -> None:
    path = tmp_path / "events.csv"
    path.write_text("\n".join([HEADER, *rows]))
    events = read_events(path, {}, Format(dialect=said))
    assert events.dv[~events.is_dose].tolist() == [dv]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"decimals": "comma"}, "dataset.dialect.decimals: no such option"),
        ({"decimal": ","}, "dataset.dialect.decimal is ','; expected one of point, comma"),
        ({"encoding": "klingon"}, "dataset.dialect.encoding is 'klingon'"),
        ({"ignore": "IGN"}, "dataset.dialect.ignore is 'IGN'"),
        ({"names": []}, "dataset.dialect.names is []"),
        ({"decimal": "comma", "thousands": "comma"}, "dataset.dialect.thousands is 'comma'"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, said: dict[str, Any], words: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text("\n".join([HEADER, "1;0;1;1000;.", "1;5;0;.;3"]))
    with pytest.raises(InputError) as caught:
        read_events(path, {}, Format(dialect=said))
    assert str(caught.value).startswith(words)


def test_numbers_in_time_beside_a_date_may_be_clock_times() -> None:
    frame = pd.DataFrame(
        {"id": 1, "DATE": ["2021-01-01", "2021-01-02"], "time": [8.0, 9.0], "amt": [5, None], "dv": [None, 1]}
    )
    with pytest.raises(InputError, match=r"columns=\{date: null\}' or '\+dataset\.columns=\{date: DATE\}'"):
        read_events(frame, {})
    for column, hours in ((None, 9.0), ("DATE", 25.0)):
        assert read_events(frame, {}, Format(columns={"date": column})).time[1] == hours


@pytest.mark.parametrize(("unit", "hour"), [("min", 60.0), ("h", 1.0), ("d", 1 / 24)])
@pytest.mark.parametrize(
    "columns",
    [
        {"time": ["2021-01-01 08:00", "2021-01-02 09:30"]},
        {"date": ["1.1.2021", "2.1.2021"], "time": ["8:00", "9:30"]},
        {"date": ["1.1.2021", "2.1.2021"], "time": [8.0, 9.5]},  # clock times by column date
        {"time": ["00:00", "25:30"]},  # hours and minutes that have passed
    ],
)
def test_dates_and_clock_times_become_times_in_the_unit_of_the_data(
    columns: dict[str, list[str]], unit: str, hour: float
) -> None:
    frame = pd.DataFrame({"id": 1, "amt": [5, None], "dv": [None, 1], **columns})
    how = Format(columns={"date": "date"} if "date" in columns else {}, time_unit=unit)
    read = read_events(frame, {}, how)
    assert read.time[1] == pytest.approx(25.5 * hour, rel=1e-12)
    assert f"as {unit} since the subject's first record" in read.notes[0] or columns["time"][0] == "00:00"


def test_days_that_have_passed_beside_a_date_are_no_clock_times() -> None:
    frame = pd.DataFrame({"id": 1, "DATE": ["2021-01-01", "2021-01-05"], "amt": [5, None], "dv": [None, 1]})
    assert read_events(frame.assign(time=[0.0, 4.0]), {}, Format(columns={"date": None}, time_unit="d")).time[
        1
    ]
    with pytest.raises(InputError, match="may be d that have passed or clock times"):
        read_events(frame.assign(time=[0.0, 4.0]), {}, Format(time_unit="d"))
    assert read_events(frame.assign(time=[0.0, 96.0]), {}, Format(time_unit="h")).time[1] == 96


def test_numbers_in_time_that_dates_contradict_are_refused() -> None:
    frame = pd.DataFrame({"id": 1, "DATE": ["2021-01-01", "2021-01-01"], "amt": [5, None], "dv": [None, 1]})
    with pytest.raises(InputError, match="may be h that have passed or clock times"):
        read_events(frame.assign(time=[800, 1200]), {})  # 8:00 and 12:00
    assert read_events(frame.assign(time=[0.5, 7.5]), {}).time.tolist() == [0.5, 7.5]


@pytest.mark.parametrize(
    ("dates", "times", "words"),
    [
        (
            ["2021-01-01", "2021-01-02"],
            ["1899-12-30 08:00", "1899-12-30 09:00"],
            "'1899-12-30 08:00' has another",
        ),
        (
            ["2021-01-01 00:00", "2021-01-01 07:00"],
            ["08:00", "09:00"],
            "'2021-01-01 07:00' has another clock",
        ),
        (["2021-01-01 00:00", "2021-01-02 00:00"], ["08:00", "09:00"], ""),
        (["2021-01-01", "2021-01-02"], ["2021-01-01 08:00", "2021-01-02 09:00"], ""),
    ],
)
def test_two_columns_of_dates_or_clock_times_agree(dates: list[str], times: list[str], words: str) -> None:
    frame = pd.DataFrame({"id": 1, "DATE": dates, "time": times, "amt": [5, None], "dv": [None, 1]})
    if not words:
        assert read_events(frame, {}).time.tolist() == [0, 25]
        return
    with pytest.raises(InputError, match=words):
        read_events(frame, {})


def test_zones_of_time_count(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    rows = ("1;2021-01-01T08:00:00+01:00;1;1000;.", "1;2021-01-01T08:00:00Z;0;.;3")
    path.write_text("\n".join([HEADER, *rows]))
    assert read_events(path, {}).time.tolist() == [0, 1]


def test_numbers_of_dates_are_told_from_hours() -> None:
    frame = pd.DataFrame({"id": 1, "time": [44210.5, 44211.75], "amt": [5, None], "dv": [None, 1]})
    with pytest.raises(InputError, match=r"may be Excel's number of a date.*dialect=\{dates: none\}"):
        read_events(frame, {})
    assert read_events(frame, {}, Format(dialect={"dates": "excel"})).time.tolist() == [0, 30]
    assert read_events(frame, {}, Format(dialect={"dates": "none"})).time.tolist() == [44210.5, 44211.75]


def test_a_censored_row_without_a_level_is_an_observation_without_evid_too() -> None:
    frame = pd.DataFrame(
        {"id": 1, "time": [0, 5], "amt": [5, None], "dv": None, "cens": [None, 1], "lloq": 0.1}
    )
    events = read_events(frame, {})
    assert events.dv[~events.is_dose].tolist() == [0.1]
    assert events.censored.sum() == 1


@pytest.mark.parametrize(
    ("cells", "expected"), [(["yes", "yes", "No"], 1.0), ([True, True, False], 1.0), (["1", "1", "0"], 1.0)]
)
def test_yes_is_one(cells: list[Any], expected: float) -> None:
    frame = pd.DataFrame({"id": [1, 1, 2], "time": [0, 1, 0], "amt": [5, None, 5], "dv": [None, 1, None]})
    events = read_events(frame.assign(smokes=cells), {"smoker": "smokes"})
    assert events.covariates["smoker"].tolist() == [expected]


def test_other_texts_are_refused_until_numbers_are_said() -> None:
    frame = pd.DataFrame({"id": 1, "time": [0, 1], "amt": [5, None], "dv": [None, 1], "sex": ["M", "F"]})
    with pytest.raises(InputError, match=r"covariates\.male=\{values: \{F: 0, M: 1\}\}' says which numbers"):
        read_events(frame, {"male": "sex"})
    with pytest.raises(InputError, match=r"'F'; expected M, W \(values of dataset.covariates.male\)"):
        read_events(frame, {"male": "sex"}, Format(texts={"male": {"M": 1, "W": 0}}))


def test_a_table_of_nonmem_names_subjects_as_the_data_do(tmp_path: Path) -> None:
    path = tmp_path / "sdtab.tab"
    dose = " 2.0000E+00  0.0000E+00  1.0000E+03  0.0000E+00"
    level = " 2.0000E+00  1.2500E+01  0.0000E+00  3.1250E-01"
    path.write_text("\n".join(["TABLE NO.  1", " ID  TIME  AMT  DV", dose, level]))
    events = read_events(path, {})
    assert events.ids == ("2",)
    assert events.time.tolist() == [0, 12.5]
    assert events.dv[1] == 0.3125


@pytest.mark.parametrize("separator", [";", ",", "\t"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_file_of_two_decimal_marks_is_read_by_the_option_that_is_offered(
    tmp_path: Path, separator: str, quote: str
) -> None:
    """As where a laboratory writes <0.05 and the others decimal commas."""
    if separator == "," and not quote:
        return
    levels = ["", "0,61", "<0,05", "", "0,5", "<0.05"]
    rows = [["id", "time", "amt", "dv", "wt"]]
    rows += [[i, t, "1000" if t == "0" else "", "", "70,5"] for i in "ab" for t in ["0", "4", "24"]]
    rows = [[*row[:3], level, row[4]] for row, level in zip(rows, ["dv", *levels], strict=True)]
    path = tmp_path / "events.csv"
    path.write_text("\n".join(separator.join(f"{quote}{cell}{quote}" for cell in row) for row in rows))
    with pytest.raises(InputError, match=r"'\+dataset\.dialect=\{decimal: either\}'"):
        read_events(path, {"weight": "wt"})
    events = read_events(path, {"weight": "wt"}, Format(dialect={"decimal": "either"}))
    assert events.dv[~events.is_dose].tolist() == [0.61, 0.05, 0.5, 0.05]
    assert events.censored[~events.is_dose].tolist() == [False, True, False, True]
    assert events.covariates["weight"].tolist() == [70.5, 70.5]


def test_where_the_date_is_both_commands_are_told(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("ID;Tag;TIME;EVID;AMT;DV\n1;08.03.2024;08:00;1;100;.\n1;09.03.2024;07:00;0;.;3\n")
    with pytest.raises(InputError) as caught:
        read_events(path, {})
    assert "dataset.columns={date: Tag}" in str(caught.value)
    assert "--column date=Tag of `medcm data check`" in str(caught.value)
