"""What a terminal is shown of text that others wrote."""

import io
import os

import pytest

from medcm_cli.commands import terminal
from medcm_cli.errors import InputError
from medcm_cli.files import one_line
from medcm_cli.report.section import Section

ODD = "a\x1b]0;title\x07b\x9b31m\u202ec[bold]d[/]"
SHOWN = "a\\x1b]0;title\\x07b\\x9b31m\\u202ec[bold]d[/]"


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal that is wide enough."""
    text = io.StringIO()
    console = terminal._Plain(
        file=text,
        force_terminal=True,
        width=400,
        highlight=False,
        soft_wrap=True,
        markup=False,
        color_system=None,
    )
    monkeypatch.setattr(terminal, "OUT", console)
    monkeypatch.setattr(terminal, "ERR", console)
    return text


def test_control_characters_are_spelt_out(out: io.StringIO) -> None:
    terminal.OUT.print(f"study {ODD}\nsecond line")
    assert out.getvalue() == f"study {SHOWN}\nsecond line\n"


def test_those_of_tables_too(out: io.StringIO) -> None:
    terminal.show(Section(ODD, ["id", ODD], [[ODD, "1"], ["a\nforged", "2"]]))
    said = out.getvalue()
    assert said.count(SHOWN) == 3
    assert "a\\nforged" in said
    assert not any(c in said for c in "\x07\x9b\u202e\r")
    assert "\x1b]0;" not in said


def test_a_list_of_reasons_has_a_line_for_each(out: io.StringIO) -> None:
    terminal.complain("two:", [ODD, "a\nmedcm: all is well"])
    assert out.getvalue() == f"two:\n  {SHOWN}\n  a\\nmedcm: all is well\n"


def test_what_is_being_done_is_no_markup(out: io.StringIO) -> None:
    with terminal.saying("reading") as say:
        say(ODD)
    assert SHOWN in out.getvalue()


@pytest.mark.parametrize("error", [InputError(ODD), OSError(2, "No such file", ODD), KeyError(ODD)])
def test_errors_too(error: Exception) -> None:
    text, code = terminal.ending(error)
    assert code == (1 if isinstance(error, KeyError) else 2)
    assert text == one_line(text)
    assert isinstance(error, KeyError) or SHOWN in text


def test_a_long_name_is_broken_and_numbers_beside_it_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = terminal._Plain(file=text, force_terminal=True, width=80, markup=False, color_system=None)
    monkeypatch.setattr(terminal, "OUT", console)
    terminal.show(Section("t", ["id", "level"], [["x" * 300, "0.125"], ["y", "0.250"]]))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("0.125" in line for line in lines) == 1
    assert text.getvalue().count("x") == 300


def test_that_nobody_reads_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        console = terminal._Plain(file=closed)
        console.print("unread")
        assert console.quiet
        console.print("unread")


def folder(fold: int, replicate: int = 1) -> str:
    return f"outputs/s/objective=vi/variant=default/fold={fold:02d}/replicate={replicate}"


def test_one_failure_is_not_buried_under_many_of_another_kind(out: io.StringIO) -> None:
    reasons = [
        f"{folder(fold)}: no optimum found nearby (Newton decrement {fold / 8})" for fold in range(1, 31)
    ]
    reasons[17:17] = [f"{folder(40)}: Omega is on its boundary"]
    reasons += [f"{folder(fold)}: is no complete fit" for fold in (50, 51)]
    terminal.complain("33 without standard errors:", reasons)
    above = "outputs/s/objective=vi/variant=default"
    assert out.getvalue().splitlines() == [
        "33 without standard errors:",
        "  30 folders: no optimum found nearby (Newton decrement 0.125) (numbers of the first): "
        f"fold=01/replicate=1, fold=02/replicate=1, fold=03/replicate=1, and 27 more in {above}",
        f"  2 folders: is no complete fit: fold=50/replicate=1, fold=51/replicate=1 in {above}",
        f"  {folder(40)}: Omega is on its boundary",
    ]


@pytest.mark.parametrize(
    ("faults", "lines"),
    [
        ([], []),
        ([("", "no folder")], ["no folder"]),
        ([("fold 1", "is bad"), ("fold 2", "is bad")], ["2 fits: is bad: fold 1, fold 2"]),
        ([("a", "x 1"), ("b", "x 1"), ("c", "y")], ["2 fits: x 1: a, b", "c: y"]),
        ([("/a/b", "x"), ("c/d", "x")], ["2 fits: x: /a/b, c/d"]),
        ([("/a/b", "x"), ("/a/b", "x")], ["2 fits: x: /a/b"]),
        ([("", "x"), ("", "x")], ["2 fits: x"]),
        (
            [("1", "9 kg"), ("2", "9.5 kg"), ("3", "9e-5 kg")],
            ["3 fits: 9 kg (numbers of the first): 1, 2, 3"],
        ),
    ],
)
def test_faults_of_one_cause_are_a_line(faults: list[tuple[str, str]], lines: list[str]) -> None:
    assert terminal.by_cause(faults, "fits") == lines


@pytest.mark.parametrize("width", [40, 80, 120])
def test_sentences_go_on_between_words_and_never_in_a_number_with_its_unit(width: int) -> None:
    text = io.StringIO()
    console = terminal._Sentences(
        file=text, force_terminal=True, width=width, highlight=False, soft_wrap=True, markup=False
    )
    path = f"outputs/{'long/' * 30}figures"
    sentence = "doses of 25 to 1000 mg with a trough of 0.125 mg/L (0.1 to 0.2) at 12 h and 24 h. " * 4
    console.print(f"  {sentence.strip()}\nParquet -> {path}")
    *lines, last = text.getvalue().rstrip("\n").split("\n")
    assert max(map(len, lines)) <= width
    assert path in last
    said = " ".join(line.strip() for line in lines)
    assert said.startswith(sentence.strip())
    for line in lines:
        assert line.startswith(("  ", "Parquet"))
    assert said.count("0.125 mg/L") == said.count("(0.1 to 0.2)") == 4
    assert sum(line.count("0.125 mg/L") for line in lines) == 4
    assert sum(line.count("25 to 1000 mg") for line in lines) == 4
