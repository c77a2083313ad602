"""What a group makes is of the group, whatever its ``_target_`` names."""

import re
from pathlib import Path
from typing import Any

import pytest

from medcm_cli.errors import InputError
from medcm_cli.study.job import optimizer_of
from medcm_cli.study.options import complete, made
from medcm_cli.study.problem import model_of
from tests.helpers import configuration

WORDS = {
    "split": "a split",
    "network": "a network",
    "pk": "a pk model",
    "error": "a residual error",
    "objective": "an objective",
    "optimizer": "an optimiser",
}
TARGETS = {
    "split": ("medcm_cli.data.all_subjects", "medcm_cli.data.nested"),
    "network": ("medcm_cli.model.CovariateNetwork.build", "medcm_cli.haemophilia.TrueParameters"),
    "pk": ("medcm_cli.pk.two_compartment", "medcm_cli.pk.OdeModel"),
    "error": ("medcm_cli.model.ResidualError",),
    "objective": ("medcm_cli.objectives.Fo", "medcm_cli.objectives.Vi"),
    "optimizer": ("torch.optim.Adam", "torch.optim.SGD"),
}
PAIRS = [(group, other, target) for group in WORDS for other in TARGETS for target in TARGETS[other]]


@pytest.mark.parametrize(("group", "other", "target"), [pair for pair in PAIRS if pair[0] != pair[1]])
@pytest.mark.parametrize("options", [{}, {"_partial_": True}, {"samples": 3}], ids=str)
def test_what_is_of_another_group_is_refused(
    group: str, other: str, target: str, options: dict[str, Any]
) -> None:
    said = f"{group}._target_ is {target}: expected {WORDS[group]}, got {WORDS[other]}"
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        made({"_target_": target, **options}, group)


@pytest.mark.parametrize("group", [group for group in WORDS if group != "optimizer"])
@pytest.mark.parametrize("target", ["builtins.dict", "medcm_cli.data.read_events", "medcm_cli.model.Model"])
def test_what_is_of_no_group_is_refused(group: str, target: str) -> None:
    with pytest.raises(InputError, match=rf"^{group}\._target_ is {target}: expected {WORDS[group]}, got "):
        made({"_target_": target}, group)


def test_an_optimiser_that_optimises_nothing_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^optimizer\._target_ is builtins\.list: expected an optimiser, got"
    ):
        optimizer_of({"_target_": "builtins.list", "_partial_": True})


@pytest.mark.parametrize("group", WORDS)
def test_a_group_that_makes_nothing_is_refused(group: str) -> None:
    with pytest.raises(InputError, match=rf"^{group}\._target_: is missing"):
        made({}, group)


@pytest.mark.parametrize("group", ["dataset", "batch"])
def test_a_group_of_plain_options_is_made_by_nothing(tmp_path: Path, group: str) -> None:
    with pytest.raises(InputError, match=rf"^{group}\._target_: no such option"):
        complete(configuration(None, tmp_path, f"{group}._target_=torch.optim.Adam"))


def test_a_model_says_which_group_it_is(tmp_path: Path) -> None:
    config = complete(configuration(None, tmp_path, "network._target_=medcm_cli.pk.two_compartment"))
    with pytest.raises(InputError, match=r"^network\._target_ is .*: expected a network, got a pk model$"):
        model_of(config)
