"""Files that are no event tables: each is refused in one line that names the file and the place in it."""

import gzip
import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from medcm_cli.data import Format, read_events
from medcm_cli.errors import InputError
from tests.data.tables import FORMATS, LINES, edited, refusal, write


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


def test_durations_are_not_hours_in_parquet(tmp_path: Path) -> None:
    times = pd.to_timedelta([0, 4, 24, 0, 5], unit="h")
    path = tmp_path / "events.parquet"
    pd.read_csv(io.StringIO(edited({}))).assign(time=times).to_parquet(path)
    assert refusal(path).startswith(f"{path}, row 1, column 'time': ")


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


@pytest.mark.parametrize("absent", [["evid", "amt", "rate"], ["amt", "rate", "duration"]])
def test_a_table_needs_a_column_of_doses(tmp_path: Path, absent: list[str]) -> None:
    path = tmp_path / "events.csv"
    pd.read_csv(io.StringIO(edited({}))).drop(columns=absent).to_csv(path, index=False)
    assert refusal(path).startswith(f"{path}: column 'amt' is missing; ")


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty csv": ("events.csv", b"", "empty"),
    "only line ends": ("events.csv", b"\n\n", "empty"),
    "header only": ("events.csv", (LINES[0] + "\n").encode(), "no rows"),
    "gzip": ("events.csv", gzip.compress(edited({}).encode()), "is compressed (gzip)"),
    "gzip by name": ("events.csv.gz", gzip.compress(edited({}).encode()), "is compressed (gzip)"),
    "spreadsheet": ("events.csv", b"PK\x03\x04....", "is a spreadsheet or an archive"),
    "nothing but NUL": ("events.csv", bytes(100), ""),
    "column twice": ("events.csv", edited({1: LINES[0].replace("rate", "amt")}).encode(), "column 'amt'"),
    "another kind of file": ("events.xlsx", b"PK", "or .parquet file"),
    "no suffix": ("events", edited({}).encode(), "or .parquet file"),
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


def test_texts_with_braces_are_quoted_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    frame = pd.read_csv(io.StringIO(edited({})), dtype=str)
    frame.assign(wt=frame["wt"].map({"70": "{M}", "80": "{F}"})).to_csv(path, index=False)
    with pytest.raises(InputError) as caught:
        read_events(path, {"weight": "wt"}, Format())
    assert "column 'wt': is '{M}', a text" in str(caught.value)
    assert 'dataset.covariates: {weight: {values: {"{F}": 0, "{M}": 1}}} in a file' in str(caught.value)


@pytest.mark.parametrize("name", ["x\x1b]0;gone\x07y", "a\x1cb"])
def test_an_id_with_control_characters_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    """In Unicode: what is shown of it spells them out. A guess at another encoding takes none."""
    path = tmp_path / "events.csv"
    text = edited({}).replace("\na,", f"\n{name},")
    path.write_text(text, encoding="utf-8")
    assert read_events(path, {"weight": "wt"}, Format()).ids == (name, "b")
    path.write_bytes(text.replace(name, name + "\xfc").encode("cp1252"))
    assert "is no text in UTF-8, UTF-16 or Windows-1252" in refusal(path)
    path.write_text(text.replace(name, "\0"), encoding="utf-8")
    assert "is no text" in refusal(path)
