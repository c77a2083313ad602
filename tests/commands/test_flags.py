"""Every flag and argument of every command with values that make no sense: refused in one line that says what
is expected, or taken as they are."""

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import pytest
from hydra._internal.utils import get_args_parser

from medcm_cli.analysis.scores import METHODS as OF_SCORES
from medcm_cli.analysis.uncertainty import METHODS as OF_UNCERTAINTY
from medcm_cli.cli import COMMANDS
from medcm_cli.commands import parser as flags
from medcm_cli.commands.parser import Parser
from medcm_cli.errors import InputError
from medcm_cli.haemophilia import virtual
from medcm_cli.haemophilia.cohorts import TRUTHS
from medcm_cli.patients import search
from medcm_cli.patients.prediction import MOST_TIMES
from medcm_cli.patients.study import MOST_DRAWS
from medcm_cli.patients.targets import read_target
from medcm_cli.posteriors.individual import METHODS
from medcm_cli.report.figures.style import FORMATS
from medcm_cli.runs import Units
from medcm_cli.study.units import MOST_LEVEL

VALUES = ("-1", "0", "1e9", "1000000000", "1e308", "nan", "inf", "null", "", "1,2", "[1,2]", "abc")
COMPOSED = ("fit", "posterior")  # whose flags are Hydra's


class _ReadError(Exception):
    """In place of what a command does once its flags are read."""


def reads(command: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., argparse.Namespace]:
    """The checking step of a command: its flags, read by its parser. Without arguments, the parser alone."""
    found: list[Parser] = []

    def captured(parser: Parser, _: Sequence[str]) -> argparse.Namespace:
        found.append(parser)
        raise _ReadError

    with monkeypatch.context() as patched:
        patched.setattr(Parser, "read", captured)
        with pytest.raises(_ReadError):
            import_module(f"medcm_cli.commands.{command}").command([])
    return found[0].read


def actions(command: str) -> list[argparse.Action]:
    """Flags and arguments that take a value."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        parser = getattr(reads(command, monkeypatch), "__self__")  # noqa: B009 (of a bound method)
    return [action for action in parser._actions if action.nargs != 0]


ACTIONS = [
    pytest.param(
        command, action, id=f"{command} {action.option_strings[0] if action.option_strings else action.dest}"
    )
    for command in COMMANDS
    if command not in COMPOSED
    for action in actions(command)
]


def line(command: str, action: argparse.Action, value: str) -> list[str]:
    """A command with a value for one of its flags, and something for each that it needs."""
    words: list[str] = []
    for needed in actions(command):
        given = value if needed.dest == action.dest else next(iter(needed.choices or ["x"]))
        if needed.dest == action.dest and needed.option_strings:
            words.append(f"{needed.option_strings[0]}={given}")
        elif needed.dest == action.dest or (needed.required and not needed.option_strings):
            words.append(given)
        elif needed.required:
            words += [needed.option_strings[0], given]
    return words


# What each flag takes of the values. One that is not here takes none of them, but for a name or a text, which
# is anything that is something: what it is the name of is said when it is looked for.
TAKEN = {
    "simulate --seed": "0 1000000000",
    "simulate --folds": "0",
    "summarize --tail": "0 1000000000",
    "plot --epochs": "0 1000000000 1,2",
    **{
        f"{command} --{flag}": "1000000000"
        for command in ("plot", "calibrate")
        for flag in ("fold", "replicate")
    },
    "predict --times": "1,2",
    "predict --threshold": "1e9 1000000000 1,2",
    "predict --uses": "0 1000000000 1,2",
    "dose --every": "1,2",
    "dose --vial": "1e9 1000000000",
}
NAMES = (flags.path, flags.text)


@pytest.mark.parametrize(("command", "action"), ACTIONS)
def test_values_that_make_no_sense_are_refused(
    command: str, action: argparse.Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In process, before a file is read: a flag that is new is walked as well."""
    read = reads(command, monkeypatch)
    flag = action.option_strings[0] if action.option_strings else action.dest
    assert action.type is not None or action.choices, f"{flag} takes whatever it is given"
    taken = []
    for value in VALUES:
        try:
            options = read(line(command, action, value))
            for target in getattr(options, "target", []):
                if action.dest == "target":
                    read_target(target, Units("IU/dL", 100.0, "IU/mL", "IU"))
        except InputError as error:
            said = str(error)
            assert flag.lstrip("-") in said
            assert any(part in said for part in value.split(","))
            assert "expected" in said or "choose from" in said
            assert len(said) < 500
        else:
            taken.append(value)
    if action.type in NAMES and action.dest != "target":
        assert taken == [value for value in VALUES if value]
    else:
        assert " ".join(taken) == TAKEN.get(f"{command} {flag}", "")


@pytest.mark.parametrize("value", ["", "-1", "abc", "a/b", "x" * 5000])
@pytest.mark.parametrize("command", COMPOSED)
def test_values_of_hydras_flags_are_refused(
    command: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of its flags that take a value, with the configuration composed and printed."""
    run = import_module(f"medcm_cli.commands.{command}").command
    for action in get_args_parser()._actions:
        flag = action.option_strings[0] if action.option_strings else ""
        if not flag or action.nargs == 0:
            continue
        monkeypatch.setattr("sys.argv", ["medcm"])
        with pytest.raises((InputError, OSError)) as caught:
            run([flag, value, *([] if flag in ("--cfg", "--info") else ["--cfg", "job"])])
        assert len(str(caught.value).splitlines()) == 1, flag
        assert len(str(caught.value)) < 500 or len(value) > 500, flag
    assert capsys.readouterr() == ("", "")


def test_the_parsers_name_what_the_modules_that_they_do_not_import_know() -> None:
    """Words and limits that stand in the types of flags, for torch takes seconds."""

    def takes(command: str, flag: str, *values: object) -> list[bool]:
        (action,) = (one for one in actions(command) if flag in (*one.option_strings, one.dest))
        found = []
        for value in values:
            try:
                assert callable(action.type)
                action.type(str(value))
                found.append(True)
            except argparse.ArgumentTypeError:
                found.append(False)
        return found

    for command in ("predict", "dose"):
        assert takes(command, "--method", *METHODS) == [True] * len(METHODS)
        assert takes(command, "--draws", 19, 20, MOST_DRAWS, MOST_DRAWS + 1) == [False, True, True, False]
    assert takes("uncertainty", "--method", *OF_UNCERTAINTY) == [True] * len(OF_UNCERTAINTY)
    assert takes("score", "--by", *OF_SCORES) == [True] * len(OF_SCORES)
    assert takes("simulate", "--cohort", *TRUTHS) == [True] * len(TRUTHS)
    assert takes("plot", "--format", *FORMATS, ",".join(FORMATS)) == [True] * (len(FORMATS) + 1)
    for flag, least in (("--n", 1), ("--folds", 0), ("--fold-size", 1)):
        values = least - 1, least, virtual.MOST, virtual.MOST + 1
        assert takes("simulate", flag, *values) == [False, True, True, False]
    assert takes("predict", "--threshold", 0, MOST_LEVEL, MOST_LEVEL * 1.01) == [False, True, False]
    assert takes("dose", "--vial", 0, search.LARGEST, search.LARGEST * 1.01) == [False, True, False]
    assert takes("dose", "--most", 0, 1, search.MOST_VIALS, search.MOST_VIALS + 1) == [
        False,
        True,
        True,
        False,
    ]
    # In the study's unit of time, which is not known yet.
    for flag in ("--every", "--horizon"):
        assert takes("dose", flag, 0, 0.1, flags.LATEST, flags.LATEST + 1) == [False, True, True, False]
    assert flags.MOST_TIMES == MOST_TIMES


@pytest.mark.parametrize("text", ["0:72:1", "0:1:0.1", "3.3:77.7:0.7", "1:2:1", "0:10000:1.00001", "5:6:0.3"])
def test_times_are_those_of_numpy(text: str) -> None:
    start, stop, step = map(float, text.split(":"))
    assert flags.times(text) == np.arange(start, stop + 1e-9 * step, step).tolist()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("9:3:1", "expected FROM:TO:STEP, 0 <= FROM < TO <= 1e+06"),
        ("0:1", "expected FROM:TO:STEP"),
        ("0:inf:1", "expected FROM:TO:STEP"),
        ("0:nan:1", "expected FROM:TO:STEP"),
        ("0:1e6:1e-9", "expected at most 10000 times"),
        ("0:1e308:1", "expected FROM:TO:STEP"),
        ("24", "expected two or more times"),
        ("24,24", "expected two or more times"),
        (",".join(map(str, range(10_001))), "expected at most 10000 values"),
    ],
)
def test_times_that_make_no_sense_are_refused(given: str, words: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        flags.times(given)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
