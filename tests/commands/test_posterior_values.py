"""Every option of conf/posterior.yaml with values that make no sense: refused in one line, or taken."""

from collections.abc import Mapping
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from medcm_cli.commands.posterior import check
from medcm_cli.errors import InputError
from medcm_cli.model.priors import PopulationPrior
from medcm_cli.runs import check_name
from medcm_cli.study.axes import folds_of
from medcm_cli.study.options import PROBLEM, as_config, complete_problem, conf_dir
from medcm_cli.study.problem import model_of
from tests.study.test_values import NAMES, VALUES, given

TAKEN = {
    "run": f"{NAMES} null",
    "study": f"{NAMES} null",
    "name": f"{NAMES} null",
    "seed": "0 1000000000",
    "fold": "1000000000 [1,2]",
    **dict.fromkeys(("outer", "inner"), "null"),
    **dict.fromkeys(("fixed", "endpoints", "occasions"), "null"),
    "outputs": "abc",
}


def checked(own: Mapping[str, Any]) -> None:
    """What `medcm posterior` does before it reads any data or run."""
    check(own, set())
    posed = {key: own[key] for key in own if key in PROBLEM}
    config = complete_problem({**posed, "study": own["study"] or "default"})
    folds_of(config)
    check_name("name", str(own["name"] or "known"))
    PopulationPrior(model_of(config), own["lkj"])


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("posterior", ["network=truth"])
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def test_values_that_make_no_sense_are_refused(own: dict[str, Any]) -> None:
    """No data: of those that a fit has, the groups apart, for what it does not do itself."""
    checked(own)
    options = [name for name, value in own.items() if not isinstance(value, Mapping)]
    assert {"run", "lkj", "chains", "warmup", "draws", "target_accept", "subjects", "population"} <= set(
        options
    )
    for option in options:
        taken = []
        for text, value in VALUES.items():
            said = option
            try:
                checked(given(own, option, value))
            except InputError as error:
                said = str(error)
            else:
                taken.append(text)
            assert option in said
            assert len(said) < 500
        assert taken == [text for text in VALUES if text in TAKEN.get(option, "").split()], option


def test_there_is_a_limit_to_all_draws_together(own: dict[str, Any]) -> None:
    checked({**own, "chains": 1000, "draws": 10_000})
    with pytest.raises(
        InputError, match=r"draws is 10001; expected a whole number from 4 to 10000 \(10000000 of all"
    ):
        checked({**own, "chains": 1000, "draws": 10_001})


def test_a_configuration_has_the_options_of_a_problem_and_of_a_posterior(own: dict[str, Any]) -> None:
    """A test of the test above: what is walked is all that the command composes."""
    posed = OmegaConf.create({key: value for key, value in own.items() if key in PROBLEM})
    assert set(as_config(posed, PROBLEM)) == set(PROBLEM)
