"""Files and folders appear whole or not at all."""

import csv
import errno
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from medcm_cli.errors import InputError
from medcm_cli.files import (
    check_depth,
    folder_name,
    from_json,
    locked,
    one_line,
    remove,
    remove_partial,
    replaced,
    write_csv,
    write_text,
)
from tests.helpers import ROOT, ran


class Killed(BaseException):
    """What is no ordinary error, like an interrupt from the keyboard."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "table.csv"
    with replaced(target) as partial:
        partial.write_text("whole")
        assert partial != target
        assert partial.parent == target.parent  # the same file system: moving it is one step
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["table.csv"]


def test_a_folder_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with replaced(target) as partial:
        partial.mkdir()
        (partial / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    assert names(tmp_path) == ["run"]


def test_an_old_file_is_whole_until_the_new_one_is(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with replaced(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_nothing_of_an_old_folder_stays_in_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "run"
    (target / "deep").mkdir(parents=True)
    (target / "deep" / "old").write_text("old")
    with replaced(target) as partial:
        partial.mkdir()
        (partial / "new").write_text("new")
        assert (target / "deep" / "old").exists()
    assert names(target) == ["new"]


@pytest.mark.parametrize("old", ["file", "folder"])
def test_a_file_can_take_the_place_of_a_folder_and_the_other_way_round(tmp_path: Path, old: str) -> None:
    target = tmp_path / "target"
    if old == "folder":
        (target / "deep").mkdir(parents=True)
    with replaced(target) as partial:
        if old == "folder":
            partial.write_text("file now")
        else:
            partial.mkdir()
    assert target.is_file() == (old == "folder")
    assert names(tmp_path) == ["target"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    target.symlink_to(elsewhere)
    with replaced(target) as partial:
        partial.mkdir()
    assert not target.is_symlink()
    assert names(elsewhere) == ["kept"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Killed])
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("old", [True, False], ids=["over old content", "new"])
def test_an_error_leaves_what_was_there(
    tmp_path: Path, kind: str, error: type[BaseException], old: bool
) -> None:
    target = tmp_path / "target"
    if old and kind == "file":
        target.write_text("old")
    elif old:
        target.mkdir()
        (target / "old").write_text("old")
    with pytest.raises(error), replaced(target) as partial:  # noqa: PT012
        if kind == "file":
            partial.write_text("half of it")
        else:
            partial.mkdir()
            (partial / "half").write_text("half of it")
        raise error
    assert names(tmp_path) == (["target"] if old else [])
    if old:
        assert (target if kind == "file" else target / "old").read_text() == "old"


def test_a_block_that_writes_nothing_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(FileNotFoundError), replaced(target):
        pass
    assert names(tmp_path) == ["run"]
    assert names(target) == ["old"]


def test_what_a_killed_process_left_does_not_get_into_the_new_folder(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with replaced(target) as partial:
        leftover = partial
        partial.mkdir()
    leftover.mkdir()
    (leftover / "stale").write_text("left by a killed process")
    with replaced(target) as partial:
        partial.mkdir()
        (partial / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["run"]


def test_writing_a_text_replaces_it_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run.json"
    write_text(target, "a long first text, µ = 3\n")
    assert target.read_bytes() == "a long first text, µ = 3\n".encode()
    write_text(target, "short")
    assert target.read_bytes() == b"short"
    assert names(target.parent) == ["run.json"]


def ended() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = []
    for name in ("run", "table.csv"):
        with replaced(tmp_path / name) as partial:
            partial.mkdir()
        left.append(partial.with_name(partial.name.replace(f"-{os.getpid()}-", f"-{ended()}-")))
    for number, partial in enumerate(left):  # as a kill inside the block leaves them
        partial.mkdir() if number else partial.write_text("half")
    (left[1] / "half").write_text("half")
    (tmp_path / "partial-notes.txt").write_text("mine")
    (tmp_path / ".hidden").write_text("mine")
    assert len(names(tmp_path)) == 6
    remove_partial(tmp_path)
    assert names(tmp_path) == [".hidden", "partial-notes.txt", "run", "table.csv"]


def test_what_others_are_writing_is_not_removed(tmp_path: Path) -> None:
    """By a process that lives, here this one, and on another machine, where its number means nothing."""
    with replaced(tmp_path / "run") as mine:
        mine.write_text("half")
        elsewhere = mine.with_name(f".partial-00000000-{ended()}-run")
        elsewhere.write_text("half")
        remove_partial(tmp_path)
        assert mine.exists()
        assert elsewhere.exists()
        os.utime(elsewhere, (0, 0))  # long ago: nobody writes for so long
        remove_partial(tmp_path)
        assert not elsewhere.exists()
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("keep", [True, False])
def test_a_folder_that_another_process_has_made_meanwhile(tmp_path: Path, keep: bool) -> None:
    target = tmp_path / "data"
    with replaced(target, keep) as partial:
        partial.mkdir()
        (partial / "mine").write_text("second")
        target.mkdir()
        (target / "theirs").write_text("first")
    assert names(target) == (["theirs"] if keep else ["mine"])
    assert names(tmp_path) == ["data"]


def write_again_and_again(target: Path, times: int) -> None:
    for number in range(times):
        with replaced(target) as partial:
            partial.mkdir()
            for name in "ab":
                (partial / name).write_text(f"{os.getpid()} {number}")
        remove_partial(target.parent)


@pytest.mark.slow
def test_a_folder_that_several_processes_write_is_always_one_of_theirs(tmp_path: Path) -> None:
    target = tmp_path / "run"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_again_and_again, args=(target, 200)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert names(tmp_path) == ["run"]
    assert names(target) == ["a", "b"]
    assert (target / "a").read_text() == (target / "b").read_text()


def test_there_may_be_nothing_to_remove(tmp_path: Path) -> None:
    remove_partial(tmp_path)
    remove_partial(tmp_path / "absent")
    remove(tmp_path / "absent")
    assert names(tmp_path) == []


def test_removing_a_link_to_a_folder_keeps_the_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert names(tmp_path) == ["folder"]


# -- a full disk -----------------------------------------------------------------------------------

WRITERS = """
import resource, signal, sys
from pathlib import Path
import numpy as np, pandas as pd, pyarrow as pa
from matplotlib.figure import Figure
from medcm_cli import files, runs
from medcm_cli.report.figures import style
from medcm_cli.runs import draws

table = pd.DataFrame({"x": np.random.default_rng(0).standard_normal(100_000)})
noise = np.random.default_rng(0).uniform(size=(500, 500))
figure = Figure()
figure.subplots().imshow(noise)
units = runs.Units("IU/dL", 100.0, "IU/mL", "IU")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a file that grows longer cannot be written
writers = {
    "text": lambda target: files.write_text(target, "x" * 100_000),
    "csv": lambda target: files.write_csv(target, table),
    "parquet": lambda target: runs.write_table(target, table),
    "figure": lambda target: style.write(
        style.Drawn(target.stem, "", figure, "", "", table), target.parent, ["png"]
    ),
    "folder": lambda target: draws.write(target, {"draws": pa.Table.from_pandas(table)}, {}, units),
}
for kind, write in writers.items():
    try:
        write(Path(sys.argv[1], kind, "table.png"))
    except OSError as error:
        print(kind, error, sep=": ")
"""


def test_what_cannot_be_written_is_named_and_nothing_of_it_stays(tmp_path: Path) -> None:
    """Whichever package writes; here with a limit on the length of files in place of a full disk."""
    words = [sys.executable, "-c", WRITERS, str(tmp_path)]
    done = ran(words, ROOT, {**os.environ, "PYTHONPATH": str(ROOT)}, 120)
    kinds = ["text", "csv", "parquet", "figure", "folder"]
    assert done.stdout.splitlines() == [
        f"{kind}: [Errno 27] File too large: '{tmp_path / kind / 'table.png'}'" for kind in kinds
    ]
    assert [names(tmp_path / kind) for kind in kinds] == [[]] * 5


def test_the_name_in_an_error_of_something_else_stays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replaced(tmp_path / "target"):
        (tmp_path / "absent").read_text()
    assert caught.value.filename == str(tmp_path / "absent")


# -- JSON and YAML that others wrote ---------------------------------------------------------------


@pytest.mark.parametrize("levels", [51, 1000, 100_000])
@pytest.mark.parametrize("kind", ["[]", "{}"])
def test_json_has_a_limit_to_what_is_inside_what(kind: str, levels: int) -> None:
    begin, end = ("[", "]") if kind == "[]" else ('{"a": ', "}")
    with pytest.raises(InputError, match=r"^run\.json: is nested too deeply; expected at most 50"):
        from_json(begin * levels + "1" + end * levels, "run.json")
    assert from_json(begin * 50 + "1" + end * 50, "run.json") is not None


def test_what_is_there_twice_is_looked_at_once() -> None:
    """Of a list that doubles with each level there are 2^40 paths."""
    doubled: list[object] = [0]
    for _ in range(40):
        doubled = [doubled, doubled]
    check_depth(doubled, "plan.yaml")
    endless: list[object] = []
    endless.append({"again": endless})
    with pytest.raises(InputError, match=r"^plan\.yaml"):
        check_depth(endless, "plan.yaml")


# -- text that others wrote ------------------------------------------------------------------------


def test_a_line_stays_one_and_what_is_read_stays_as_it_is() -> None:
    for text in ("plain", "µ = 3, \u00e4\u4e2d\U0001f600", "a\u200db", "$x$ \\n =1"):
        assert one_line(text) == text
    assert one_line("a\nb\r\tc\x1b[0m\x00\x7f\x85\u2028\u202e") == (
        "a\\nb\\r\\tc\\x1b[0m\\x00\\x7f\\x85\\u2028\\u202e"
    )
    assert len(one_line("".join(map(chr, range(0x3000)))).splitlines()) == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0"])
@pytest.mark.parametrize("kind", ["object", "str", "category"])
def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path, kind: str, text: str) -> None:
    table = pd.DataFrame({"id": pd.Series([text, "a"], dtype=kind), text: [-1.5, 2.0], "n": [-3, 4]})
    write_csv(tmp_path / "t.csv", table)
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", f"'{text}", "n"],
            [f"'{text}", "-1.5", "-3"],
            ["a", "2.0", "4"],
        ]


def test_missing_text_stays_missing_in_a_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", pd.DataFrame({"id": ["a\nb", None], "x": [None, 1.0]}))
    assert (tmp_path / "t.csv").read_text() == "id,x\na\\nb,\n,1.0\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("epochs-4+objective.samples-1", "epochs-4+objective.samples-1"),
        ("network-power,mine", "network-power,mine"),
        ("network-mine/power", "network-mine~power"),
        ("network.branches-[{inputs:[weight],hidden:[3]}]", "network.branches-inputs-weight,hidden-3~"),
        ("dataset.keep-{DVID: [1, 2]}", "dataset.keep-DVID-1,-2~"),
        ("x-a b:c", "x-a-b-c~"),
        ("x-'größe <1'", "x-groe-1~"),
        ("x-1.", "x-1~"),
        ("x-50%", "x-50~"),
        ("x-a~b", "x-a-b~"),
        ("x-\\\\server", "x--server~"),
    ],
)
def test_a_name_of_a_folder_is_safe_and_readable(text: str, name: str) -> None:
    found = folder_name(text)
    assert found == name if not name.endswith("~") else re.fullmatch(re.escape(name) + "[0-9a-f]{8}", found)
    assert re.fullmatch(r"[A-Za-z0-9_.,+~-]+", found)
    assert not found.endswith((".", " "))
    assert found == folder_name(text)


def test_different_texts_have_different_names() -> None:
    texts = [
        "a-{b: c}",
        "a-{b:c}",
        "a-[b:c]",
        "a-b-c",
        "a-b/c",
        "a-b~c",
        "a-b c",
        "a-b:c",
        "é",
        "e",
        "e\u0301",
    ]
    texts += ["漢", "字", "v" * 101, "v" * 102, "[", "{", "a/b~c", "a~b/c"]
    assert len({folder_name(text) for text in texts}) == len(texts)
    assert max(len(folder_name(text)) for text in texts) <= 100
    # And none that is made with a hash is what another is without.
    assert all(
        folder_name(folder_name(text)) != folder_name(text) for text in texts if "~" in folder_name(text)
    )


def test_a_lock_is_there_while_it_is_held_and_tells_the_time(tmp_path: Path) -> None:
    path = tmp_path / "below" / ".lock"
    with locked(path) as now:
        assert path.exists()
        assert now == pytest.approx(time.time(), abs=5)
    assert not path.exists()
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    assert not path.exists()


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    with locked(tmp_path / ".lock"), locked(tmp_path / ".lock"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_waited_for_a_lock_that_was_removed_takes_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / ".lock", []

    def lockf(*_: object) -> None:
        asked.append(path.stat().st_ino)
        if len(asked) == 1:  # it is held, and given up with its file
            path.rename(tmp_path / "gone")

    monkeypatch.setattr("fcntl.lockf", lockf)
    with locked(path):
        assert path.stat().st_ino == asked[1] != asked[0]
