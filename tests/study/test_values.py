"""Every scalar option of conf/ with values that make no sense: refused in one line, or taken as they are."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf.errors import OmegaConfBaseException

from medcm_cli.errors import InputError
from medcm_cli.study.dataset import with_stand_in
from medcm_cli.study.job import objective_of, optimizer_of
from medcm_cli.study.options import axis, complete, conf_dir, folds_of, made
from medcm_cli.study.problem import model_of
from tests.helpers import configuration

VALUES = ("-1", "0", "1e9", "nan", "inf", "null", "''", "[1,2]", "abc")
PARTNERS = {
    "dataset=table": ("dataset.path=events.csv",),
    "network=real_data": ("dataset=prophylaxis",),
    "dataset=prophylaxis": ("network=real_data",),
    "dataset=perioperative": ("network=real_data",),
    "pk=one_compartment": ("network=none", "network.global_parameters=[CL,V1]"),
    "pk=one_compartment_oral": ("network=none", "network.global_parameters=[CL,V1,KA]"),
    "pk=two_compartment_oral": ("network=none", "network.global_parameters=[CL,V1,Q,V2,KA]"),
    "pk=three_compartment": ("network=none", "network.global_parameters=[CL,V1,Q,V2,Q3,V3]"),
    "pk=three_compartment_oral": ("network=none", "network.global_parameters=[CL,V1,Q,V2,Q3,V3,KA]"),
    "pk=michaelis_menten": (
        *("network=none", "network.global_parameters=[VM,KM,V1]", "random_effects=[VM,V1]"),
    ),
    "pk=neural_ode": (
        "network=none",
        "network.global_parameters=[CL,V1,UP1,DOWN1,SLOPE1,UP2,DOWN2,SLOPE2,UP3,DOWN3,SLOPE3]",
    ),
}
CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in conf_dir().glob("*/[!_]*.yaml"))


def checked(config: Mapping[str, Any]) -> None:
    """What `medcm fit` does before it reads any data."""
    config = with_stand_in(complete(config))
    axis("replicate", config["replicate"])
    for name in folds_of(config).values():
        if "train" not in config["split"]:  # which takes files
            made(config["split"], "split", **name, n_subjects=200, folder=Path())
    model_of(config)
    objective_of(config)
    optimizer_of(config["optimizer"])


def scalars(options: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from scalars(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def walked(choice: str) -> list[str]:
    """The options that a choice has, without those of the groups that it does not choose."""
    config = configuration(None, Path("outputs"), *([choice] if choice else []), *PARTNERS.get(choice, ()))
    checked(config)
    group = choice.partition("=")[0]
    left = ("labels.", "dataset.truth", *(("split.",) if choice in ("", "split=files") else ()))
    names = [name for name in scalars(config) if not name.startswith(left)]
    if group:
        return [name for name in names if name.startswith(f"{group}.")]
    return [name for name in names if "." not in name or name.startswith("batch.")]


def taken(choice: str, option: str) -> str:
    """Those of the values that are."""
    found = []
    for value in VALUES:
        given = [*([choice] if choice else []), *PARTNERS.get(choice, ()), f"{option}={value}"]
        try:
            config = configuration(None, Path("outputs"), *given)
        except (OmegaConfBaseException, InputError):
            continue  # Hydra's own composition refuses it
        said = ""
        try:
            checked(config)
        except InputError as error:
            said = str(error)
        else:
            found.append(value)
        assert "\n" not in said
        assert len(said) < 500
    return " ".join(found)


# What each option takes of the values; one that is not here takes none of them. A number of any size, and a
# name that is a number or a word, have a meaning; what only the data or a file can tell is said when they are
# read.
TAKEN = {
    **dict.fromkeys(("outer", "inner", "fixed", "batch.fits", "dataset.batch_subjects"), "null"),
    **dict.fromkeys(("seed", "split.seed", "redraws"), "0"),
    "tail": "0 null",
    **dict.fromkeys(("fold", "replicate"), "[1,2]"),
    "study": "-1 0 1e9 nan inf abc",
    "variant": "-1 0 1e9 nan inf null abc",
    "outputs": "abc",
    **dict.fromkeys(("learning_rate", "objective.learning_rate", "optimizer.lr"), "1e9"),
    **dict.fromkeys(("objective.mode_tolerance", "objective.lkj"), "1e9"),
    **dict.fromkeys(("pk.amount_per_level", "pk.rtol", "pk.atol"), "1e9"),
    "optimizer.fused": "null",
    "network.initial": "null",
    "dataset.cohort": "null",
    "dataset.name": "-1 0 1e9 nan inf abc",
    **dict.fromkeys(("dataset.path", "dataset.events"), "null abc"),
    "dataset.level_unit": "'' abc",
    "dataset.level_scale": "1e9",
}
OF_A_CHOICE = {
    **{
        f"pk={size}_compartment{oral}": dict.fromkeys(
            ("pk.lag", "pk.bioavailability", "pk.durations"), "null"
        )
        for size in ("one", "two", "three")
        for oral in ("", "_oral")
    },
}
OF_A_COVARIATE = {"scale": "1e9", "reference": "-1 0 1e9", "unit": "'' abc"}
WHEN_READ = ("bolus_duration", "predose_observations", "preparation", "column")


# These take seconds each; the others of their groups have the same options.
LONG = (
    *("pk=michaelis_menten", "pk=neural_ode", "pk=two_compartment_ode"),
    *("dataset=perioperative", "dataset=prophylaxis"),
)


@pytest.mark.parametrize(
    "choice",
    ["", *(pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in CHOICES)],
)
def test_values_that_make_no_sense_are_refused(choice: str) -> None:
    """No training, no data: what the checking step says of each option with each of ``VALUES``."""
    for option in walked(choice):
        last = option.rpartition(".")[2]
        if last in WHEN_READ or any(part in option for part in (".preparation.", ".over_time.")):
            continue
        expected = TAKEN.get(option, "")
        expected = OF_A_CHOICE.get(choice, {}).get(option, expected)
        if ".covariates." in option:
            expected = OF_A_COVARIATE[last]
        assert taken(choice, option) == expected, option


@pytest.mark.parametrize(
    ("choice", "given", "expected"),
    [
        ("", "fold=inf", "fold=inf: expected whole numbers from 1"),
        ("", "outputs=0", "outputs is 0; expected the name of a folder"),
        ("", "optimizer._partial_=abc", "optimizer._partial_ is 'abc'; expected true or false"),
        ("", "optimizer.lr=inf", "optimizer.lr is inf; expected a number"),
        ("", "optimizer.fused=abc", "optimizer.fused is 'abc'; expected true or false or null"),
        (
            "",
            "objective.samples=1000000000",
            "objective.samples is 1000000000; expected a whole number from 1 to",
        ),
        ("", "objective._convert_=all", "objective._convert_: no such option"),
        (
            "",
            "network.global_parameters=[1,2]",
            "network.global_parameters is [1, 2]; expected a list, each a text",
        ),
        (
            "",
            "dataset.covariates.weight.reference=nan",
            "dataset.covariates.weight.reference is nan; expected a number",
        ),
        ("", "epochs=1000000000", "epochs is 1000000000; expected a whole number from 1 to"),
        ("pk=one_compartment_oral", "pk.absorption=[1,2]", "pk.absorption is [1, 2]; expected true or false"),
        (
            "pk=two_compartment_ode",
            "pk.compartments=1000000000",
            "pk.compartments is 1000000000; expected a whole number",
        ),
        (
            "split=bootstrap",
            "split.size=1000000000",
            "split.size is 1000000000; expected a whole number from 1 to",
        ),
    ],
)
def test_a_refusal_names_the_option_and_what_it_takes(choice: str, given: str, expected: str) -> None:
    options = [*([choice] if choice else []), *PARTNERS.get(choice, ()), given]
    with pytest.raises(InputError) as caught:
        checked(configuration(None, Path("outputs"), *options))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("text", ["range(1,1000000000000)", "range(1,2000000)"])
def test_more_fits_than_anybody_can_mean_are_refused_at_once(text: str) -> None:
    with pytest.raises(InputError, match="expected at most 1000000"):
        axis("replicate", text)
