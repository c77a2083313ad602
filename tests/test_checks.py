"""Checks of options: what passes is given back, what does not is said in one line."""

import math
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

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


@pytest.mark.parametrize(
    ("path", "entries"),
    [
        (("weight",), {"missing": "median"}),
        (("Gewicht (kg)",), {"missing": "median", "by": "Sex [m/f]"}),
        (("a:b=c,d", "values"), {"F": 0, "M": 1.5}),
        (("weight",), {"values": {"F": 0}}),
        ((), {"DVID (x)": [1, "two", "3"]}),
    ],
)
def test_an_option_below_a_name_can_be_typed_as_it_stands(
    path: tuple[str, ...], entries: dict[str, object]
) -> None:
    """Laid over the options that are there, the names of the path lead to the entries."""
    (typed,) = shlex.split(as_option("dataset.covariates", *path, **entries))
    override = OverridesParser.create().parse_override(typed)
    config = OmegaConf.create({"dataset": {"covariates": {"weight": {"column": "wt"}}}})
    OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    found: Any = OmegaConf.to_container(config)
    for name in ("dataset", "covariates", *path):
        found = found[name]
    assert override.is_add()
    assert {name: found[name] for name in entries} == entries
    assert config.dataset.covariates.weight.column == "wt"


@pytest.mark.parametrize("name", ["Größe", "12", "null", "<65", "it's", "1st"])
def test_an_option_that_cannot_be_typed_is_said_as_in_a_file(name: str) -> None:
    said = as_option("dataset.covariates", name, missing="median")
    text, where = said.removeprefix("dataset.covariates: ").split(" in a ")
    assert yaml.safe_load(text) == {name: {"missing": "median"}}
    assert where == "file of options"


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
