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
