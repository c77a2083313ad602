"""Tables of many rows: read in pieces, whatever their size, and in memory that each row takes little of."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medcm_cli.data import Format, lines, read_events
from medcm_cli.data.lines import Lines
from medcm_cli.errors import InputError
from tests.data.test_dialects import CASES, COLUMNS, REFUSED, TEXTS, Case, plain, same, written

SUBJECTS = 2500
ROWS = 20  # of each, half of them doses
READ = [case for case in CASES if case.extra not in REFUSED]


def large(folder: Path, separator: str = ",", name: str = "{}", date: bool = False) -> Path:
    """A plain table of 50 000 rows."""
    head = separator.join(["id", "time", "evid", "amt", "rate", "dv", "wt"])
    text = [head]
    for subject in range(SUBJECTS):
        for row in range(ROWS):
            time = f"2021-01-{row + 1:02}" if date else str(row)
            dose = ["1", "1000", "2000", "."] if row % 2 == 0 else ["0", ".", ".", f"0.{subject + row}"]
            text.append(separator.join([name.format(subject), time, *dose, "70.5"]))
    path = folder / "events.csv"
    path.write_text("\n".join(text) + "\n")
    return path


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lines were taken one by one, from now on."""
    count, each = [0], Lines.__iter__

    def counted(self: Lines) -> Iterator[str]:
        for line in each(self):
            count[0] += 1
            yield line

    monkeypatch.setattr(Lines, "__iter__", counted)
    return count


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_only_the_head_of_a_plain_file_is_looked_at_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    path = large(tmp_path, separator)
    count = looked_at(monkeypatch)
    assert len(read_events(path, {"weight": "wt"}).ids) == SUBJECTS
    assert count[0] < 1000


def test_names_of_subjects_that_may_be_comments_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(tmp_path, name="c{}")
    count = looked_at(monkeypatch)
    assert len(read_events(path, {"weight": "wt"}).ids) == SUBJECTS
    assert count[0] < 1.1 * SUBJECTS * ROWS


@pytest.mark.parametrize("date", [False, True])
def test_a_row_takes_little_memory(tmp_path: Path, date: bool) -> None:
    """What Python and numpy have, and what Arrow has beside it."""
    path, rows = large(tmp_path, date=date), SUBJECTS * ROWS
    read_events(path, {"weight": "wt"})  # what is loaded once
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    try:
        events = read_events(path, {"weight": "wt"})
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 220 * rows
    assert kept < 70 * rows
    assert pool.bytes_allocated() - before < rows
    assert len(events.subject) == rows


def test_what_is_alike_in_all_rows_takes_no_memory(tmp_path: Path) -> None:
    events = read_events(large(tmp_path), {"weight": "wt"})
    for name in ("segment", "occasion", "compartment", "regime", "added", "censored"):
        values = getattr(events, name)
        assert values.strides == (0,), name
        assert len(values) == len(events.subject)
    assert events.time is events.clock


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("case", READ[::7], ids=lambda case: " ".join(filter(None, case)))
def test_a_file_reads_the_same_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, size: int
) -> None:
    path = written(tmp_path, case)
    monkeypatch.setattr(lines, "_PIECE", size)
    same(read_events(path, COLUMNS, Format(texts=TEXTS)), plain())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 7, 60, 1 << 20])
def test_a_line_is_named_by_its_number_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, size: int
) -> None:
    text = ["", "# exported", "id,time,amt,dv", "1,0,5,.", "", "# a note", "1,4,.,x"]
    path = tmp_path / "events.csv"
    path.write_bytes(end.join(text).encode("utf-8-sig"))
    monkeypatch.setattr(lines, "_PIECE", size)
    with pytest.raises(InputError, match="line 7, column 'dv': 'x' is not a number"):
        read_events(path, {})


def test_levels_are_in_order_without_additional_doses_too(tmp_path: Path) -> None:
    """A table without any is not sorted, being so."""
    events = read_events(large(tmp_path), {"weight": "wt"})
    order = np.lexsort((events.clock, events.subject))
    assert (order == np.arange(len(order))).all()
