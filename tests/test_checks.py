"""Checks of options: what passes is given back, what does not is said in one line."""

import math
import shlex
from collections.abc import Callable

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from medcm_cli.checks import as_option, flag, fraction, number, one_of, whole
from medcm_cli.errors import InputError

PASSES: list[tuple[Callable[..., object], dict[str, object], list[object]]] = [
    (number, {}, [0, -1.5, 3, 1e300]),
    (number, {"above": 0}, [1, 1e-12]),
    (number, {"least": 0}, [0, 0.0, 2.5]),
    (fraction, {}, [0.5, 1e-9]),
    (whole, {"least": 1}, [1, 10**20]),
    (whole, {"least": 0, "most": 3}, [0, 3]),
    (flag, {}, [True, False]),
    (one_of, {"choices": ("full", "diagonal")}, ["full", "diagonal"]),
]


@pytest.mark.parametrize(
    "names",
    [{"amt": "Dose (mg)"}, {"dv": None, "id": "it's"}, {"dv": "12", "id": "True"}, {"dv": 'a "b" \\ c'}],
)
def test_an_option_in_words_can_be_typed_as_it_stands(names: dict[str, str | None]) -> None:
    (typed,) = shlex.split(as_option("dataset.columns", **names))
    override = OverridesParser.create().parse_override(typed)
    assert (override.is_add(), override.key_or_group, override.value()) == (True, "dataset.columns", names)


@pytest.mark.parametrize(("check", "how", "values"), PASSES)
def test_what_passes_is_given_back(
    check: Callable[..., object], how: dict[str, object], values: list[object]
) -> None:
    for value in values:
        assert check("some.option", value, **how) is value


NO_NUMBER: list[object] = [True, False, None, "1", math.nan, math.inf, -math.inf, [1]]
REFUSED: list[tuple[Callable[..., object], dict[str, object], list[object], str]] = [
    (number, {}, NO_NUMBER, "a number"),
    (number, {"above": 0}, [*NO_NUMBER, 0, -1], "a number above 0"),
    (number, {"least": 0, "unit": "h"}, [*NO_NUMBER, -1e-9], "a number from 0, in h"),
    (fraction, {}, [*NO_NUMBER, 0, 1, 0.0, 1.0, -0.5, 2.5], "a number between 0 and 1"),
    (whole, {"least": 1}, [*NO_NUMBER, 0, -1, 1.0], "a whole number from 1"),
    (whole, {"least": 0, "other": "null"}, [*NO_NUMBER, -1], "null or a whole number from 0"),
    (whole, {"least": 1, "most": 3}, [*NO_NUMBER, 0, 4], "a whole number from 1 to 3"),
    (whole, {"least": 1, "most": 3, "limit": "half"}, [4], "a whole number from 1 to 3 (half)"),
    (flag, {}, [0, 1, None, "true"], "true or false"),
    (one_of, {"choices": ("full", "diagonal")}, [None, "", "block", ["full"]], "full or diagonal"),
    (one_of, {"choices": {"a": 1, "b": 2, "c": 3}}, ["d"], "one of a, b, c"),
]


@pytest.mark.parametrize(("check", "how", "values", "expected"), REFUSED)
def test_what_does_not_pass_is_said(
    check: Callable[..., object], how: dict[str, object], values: list[object], expected: str
) -> None:
    for value in values:
        with pytest.raises(InputError) as caught:
            check("some.option", value, **how)
        assert str(caught.value) == f"some.option is {value!r}; expected {expected}"
