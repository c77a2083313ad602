"""Every scalar option of conf/ with values that make no sense: refused in one line, or taken as they are."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from medcm_cli.errors import InputError
from medcm_cli.haemophilia.preparation import Preparation
from medcm_cli.study.axes import axis, folds_of
from medcm_cli.study.dataset import format_of, true_values_of, with_stand_in
from medcm_cli.study.job import objective_of, optimizer_of
from medcm_cli.study.options import complete, conf_dir, made
from medcm_cli.study.problem import model_of
from tests.helpers import configuration, needs_of_models

TEXTS = ("-1", "0", "1e9", "1000000000", "nan", "inf", "null", "''", "[1,2]", "abc")
VALUES = {text: OverridesParser.create().parse_override(f"option={text}").value() for text in TEXTS}
PARTNERS = {
    "dataset=table": ("dataset.path=events.csv",),
    "dataset=events": ("dataset.path=events.csv", "network=none"),
    "split=column": ("split.column=set",),
    "error=endpoints": ("endpoints={level: {error: additive}}",),
    "network=real_data": ("dataset=prophylaxis",),
    "network=equations": (
        "network.equations={CL: {typical: 0.2, weight: {power: 0.75}, vwf: {power: {initial: -0.5}}}, "
        "V1: {typical: 2}, Q: {typical: 0.1}, V2: {typical: 0.5}}",
    ),
    "dataset=prophylaxis": ("network=real_data",),
    "dataset=perioperative": ("network=real_data",),
    **{f"pk={name}": needs for name, needs in needs_of_models().items()},
    **{
        f"pk=dose_response_{form}": (
            "network=none",
            f"network.global_parameters=[{names}]",
            "random_effects=[E0]",
        )
        for form, names in (("linear", "E0,SLOPE"), ("emax", "E0,EMAX,ED50"), ("hill", "E0,EMAX,ED50,GAMMA"))
    },
}
ADDED = {  # entries of groups that are empty
    "": ("fixed.omega", "fixed.sigma.additive", "initial.CL", "initial.omega_CL", "initial.rho_CL_V1"),
    "dataset=simulated": ("dataset.columns.dv", "dataset.keep.DVID", "dataset.over_time.weight"),
    "network=multi_branch": ("network.initial.Q",),
    "pk=two_compartment": ("pk.lag.1", "pk.bioavailability.1", "pk.durations.1"),
}
OF_WHAT = dict.fromkeys(
    ("random_effects", "given", "omega", "occasions", "distributions", "fixed", "initial"), "network"
) | {
    "seed": "split",
    "priors": "objective",
    "fold": "split",
}
CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in conf_dir().glob("*/[!_]*.yaml"))


def checked(config: Mapping[str, Any], folder: Path, group: str = "") -> None:
    """What `medcm fit` does before it reads any data.

    :param folder: where split=files finds its files. :param group: what is changed in; what has nothing to do
        with it takes long and is left out.
    """
    config = with_stand_in(complete(config))
    axis("replicate", config["replicate"])
    dataset = config["dataset"]
    true_values_of(dataset, tuple(config["random_effects"]))
    columns = {name: str(entry["column"]) for name, entry in dataset["covariates"].items()}
    format_of(columns, dataset, list(columns), patients=False, until=0.0)
    if dataset["preparation"] is not None:
        Preparation.build(dataset["preparation"])
    folds = folds_of(config)
    if group in ("", "split"):
        for fold in folds.values():
            made(config["split"], "split", **fold, n_subjects=200, folder=folder, groups=["1"] * 200)
    if group in ("", "network", "pk", "error"):
        model_of(config)
    if group in ("", "objective"):
        objective_of(config)
    if group in ("", "optimizer"):
        optimizer_of(config["optimizer"])


def scalars(options: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from scalars(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def base(choice: str) -> dict[str, Any]:
    return configuration(None, Path("outputs"), *([choice] if choice else []), *PARTNERS.get(choice, ()))


def walked(choice: str, config: Mapping[str, Any]) -> list[str]:
    """The options that a choice has, without those of the groups that it does not choose; and of some groups
    that are empty, an entry."""
    group = choice.partition("=")[0]
    names = [name for name in scalars(config) if not name.startswith("labels.")]
    if group:
        return [name for name in names if name.startswith(f"{group}.")] + list(ADDED.get(choice, ()))
    return [name for name in names if "." not in name or name.startswith(("batch.", "training."))] + list(
        ADDED[""]
    )


def given(config: Mapping[str, Any], option: str, value: object) -> dict[str, Any]:
    """A configuration with another value, as an override gives it."""
    changed = copy.deepcopy(dict(config))
    *above, last = option.split(".")
    group = changed
    for key in above:
        if not isinstance(group.get(key), dict):
            group[key] = {}
        group = group[key]
    group[last] = copy.deepcopy(value)
    return changed


def group_of(option: str) -> str:
    """What ``checked`` has to make for it."""
    first = option.partition(".")[0]
    return OF_WHAT.get(first, first)


def taken(config: Mapping[str, Any], option: str, folder: Path) -> str:
    """Those of the values that are."""
    found = []
    group = group_of(option)
    for text, value in VALUES.items():
        said = ""
        try:
            checked(given(config, option, value), folder, group)
        except InputError as error:
            said = str(error)
        else:
            found.append(text)
        assert "\n" not in said
        assert len(said) < 500
    return " ".join(found)


# What each option takes of the values; one that is not here takes none of them. A number of any size, and a
# name that is a number or a word, have a meaning; what only the data or a file can tell is said when they are
# read.
LARGE, NAMES = "1e9 1000000000", "-1 0 1e9 1000000000 nan inf abc"
TAKEN = {
    **dict.fromkeys(("outer", "inner", "fixed", "endpoints", "occasions", "dataset.thresholds"), "null"),
    **dict.fromkeys(("batch.fits", "dataset.batch_subjects"), "1000000000 null"),
    **dict.fromkeys(("seed", "split.seed"), "0 1000000000"),
    "redraws": "0",
    "tail": "0 1000000000 null",
    "replicate": "1000000000 [1,2]",
    "study": NAMES,
    "variant": f"{NAMES} null",
    "outputs": "abc",
    **dict.fromkeys(("split.column", "pk.column", "pk.x_unit"), "abc"),
    **dict.fromkeys(("pk.amount_per_level", "dataset.level_scale", "dataset.level_unit"), "null"),
    **dict.fromkeys(("fixed.sigma.additive", "dataset.truth.sigma.additive", "network.initial.Q"), LARGE),
    **dict.fromkeys(("dataset.truth", "dataset.preparation", "fixed.omega"), "null"),
    "dataset.bolus_duration": "0",
    **dict.fromkeys(("dataset.columns.dv", "dataset.preparation.baseline", "split.validation"), "null abc"),
    "dataset.keep.DVID": "[1,2]",
    **dict.fromkeys(("dataset.units.amount", "dataset.units.level"), "null"),
    "optimizer.fused": "null",
    "network.initial": "null",
    **dict.fromkeys((f"network.equations.{name}.typical" for name in ("CL", "V1", "Q", "V2")), LARGE),
    "network.equations.CL.weight.power": f"-1 0 {LARGE}",
    "network.equations.CL.vwf.power.initial": f"-1 0 {LARGE}",
    **dict.fromkeys(("initial.CL", "initial.omega_CL"), LARGE),
    "initial.rho_CL_V1": "0",
    **dict.fromkeys((f"training.{name}" for name in ("start", "scale", "stop", "polish")), "null"),
    **dict.fromkeys(("objective.mode_gradient", "objective.initial_sd"), "null"),
    "dataset.protocol": "null",
    "dataset.cohort": "null",
    "dataset.name": NAMES,
    **dict.fromkeys(("dataset.path", "dataset.events"), "null abc"),
}
OF_A_CHOICE = {
    **{
        f"objective={name}": {"objective.mode_gradient": "null"}
        for name in ("foce", "focei", "laplace", "agq")
    },
    "objective=saem": {"objective.exploration": "0"},
    "dataset=perioperative": {"dataset.preparation.impute": "null"},
    "split=bootstrap": {"split.size": "null"},
    # null: as the rate function says
    "pk=michaelis_menten": {"pk.compartments": "null"},
    "pk=two_compartment_ode": {"pk.compartments": "null"},
    "pk=neural_ode": {
        "pk.compartments": "null",
        "pk.terms.elimination.inputs.concentration": LARGE,
        "pk.terms.elimination.hidden": "[1,2]",
        "pk.terms.elimination.least": "-1 0 null",  # below what it begins as
        "pk.terms.elimination.most": f"null {LARGE}",
        "pk.terms.elimination.initial": LARGE,
    },
    **{
        f"pk={size}_compartment{oral}": dict.fromkeys(
            ("pk.lag", "pk.bioavailability", "pk.durations"), "null"
        )
        for size in ("one", "two", "three")
        for oral in ("", "_oral")
    },
}
OF_A_COVARIATE = {"scale": LARGE, "reference": f"-1 0 {LARGE}", "unit": "'' abc", "column": NAMES}


# These take a second each; the others of their groups have the same options.
QUICK = ("pk=one_compartment", "pk=two_compartment", "pk=absorption_parallel")
LONG = (
    *(choice for choice in CHOICES if choice.startswith("pk=") and choice not in QUICK),
    *("dataset=perioperative", "dataset=prophylaxis"),
)


@pytest.mark.parametrize(
    "choice",
    ["", *(pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in CHOICES)],
)
def test_values_that_make_no_sense_are_refused(tmp_path: Path, choice: str) -> None:
    """No training, no data: what the checking step says of each option with each of ``VALUES``."""
    (tmp_path / "train_set_1.csv").write_text("idxs\n1\n2\n")
    config = base(choice)
    checked(config, tmp_path)
    for option in walked(choice, config):
        last = option.rpartition(".")[2]
        expected = TAKEN.get(option, "")
        expected = OF_A_CHOICE.get(choice, {}).get(option, expected)
        if ".covariates." in option:
            expected = OF_A_COVARIATE[last]
        if ".preparation.columns." in option:
            expected = "abc" if last == "age" else "null abc"
        assert set(taken(config, option, tmp_path).split()) == set(expected.split()), option


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
        ("", "learning_rate=1e9", "learning_rate is 1000000000.0; expected a number above 0 to 1000"),
        ("", "objective.lkj=1e9", "objective.lkj is 1000000000.0; expected a number above 0 to 1000"),
        (
            "",
            "dataset.bolus_duration=1e9",
            "dataset.bolus_duration is 1000000000.0; expected a number from 0 to",
        ),
        (
            "",
            "dataset.covariates.weight.column=null",
            "dataset.covariates.weight.column is None; expected a name",
        ),
        (
            "",
            "dataset.truth=abc",
            "dataset.truth is 'abc'; expected null, or random_effects, omega and sigma",
        ),
        ("pk=two_compartment_ode", "pk.rate.path=''", "pk.rate.path is ''; expected the name of a function"),
        ("", "epochs=1000000000", "epochs is 1000000000; expected a whole number from 1 to"),
        ("pk=one_compartment_oral", "pk.absorption=[1,2]", "pk.absorption is [1, 2]; expected true or false"),
        (
            "pk=two_compartment_ode",
            "pk.compartments=1000000000",
            "pk.compartments is 1000000000; medcm_cli.pk.equations.two_compartment_rate gives 2",
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
    config = configuration(None, Path("outputs"), *options)
    with pytest.raises(InputError) as caught:
        checked(config, Path(), group_of(given.partition("=")[0]))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("text", ["range(1,1000000000000)", "range(1,2000000)"])
def test_more_fits_than_anybody_can_mean_are_refused_at_once(text: str) -> None:
    with pytest.raises(InputError, match="expected at most 1000000"):
        axis("replicate", text)
