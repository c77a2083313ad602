"""What follows from the units of a data set, and what contradicts them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medcm_cli.errors import InputError
from medcm_cli.runs import Units
from medcm_cli.study.identity import identity
from medcm_cli.study.options import complete_problem
from medcm_cli.study.problem import model_of
from medcm_cli.study.units import threshold_of, thresholds_of, without_derived
from tests.helpers import STREAMS, configuration

OWN = ("dataset=table", "dataset.path=events.csv", "network=none")


def complete(*options: str) -> dict[str, Any]:
    return complete_problem(configuration(None, Path("outputs"), *OWN, *options))


def units(time: str, amount: str, level: str) -> str:
    return f"dataset.units={{time: {time}, amount: {amount}, level: {level}}}"


@pytest.mark.parametrize(
    ("options", "shown", "scale", "per_level"),
    [
        ([], "IU/dL", 100, 1000),
        ([units("h", "mg", "mg/L")], "mg/L", 1, 1),
        ([units("h", "mg", "ng/mL")], "ng/mL", 1, 0.001),
        ([units("d", "ug", "ng/mL"), "dataset.level_unit=ug/dL"], "ug/dL", 0.1, 1),
        ([units("h", "mg", "nmol/L"), "pk.amount_per_level=0.0003"], "nmol/L", 1, 0.0003),
        (["dataset.level_unit=%", "dataset.level_scale=100"], "%", 100, 1000),
        (
            ["dataset.level_unit=IU/L", "dataset.level_scale=1000", "pk.amount_per_level=1000"],
            "IU/L",
            1000,
            1000,
        ),
        ([units("min", "copies", "copies/mL")], "copies/mL", 1, 1000),
    ],
)
def test_what_follows_from_units(options: list[str], shown: str, scale: float, per_level: float) -> None:
    config = complete(*options)
    dataset = config["dataset"]
    assert (dataset["level_unit"], dataset["level_scale"]) == (shown, pytest.approx(scale))
    assert config["pk"]["amount_per_level"] == pytest.approx(per_level)
    assert complete_problem(without_derived(config)) == config
    assert Units.of(dataset).reported == shown


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ([], ()),
        (["dataset=simulated"], (1, 5, 50)),
        (["dataset=prophylaxis", "network=real_data", "dataset.level_unit=IU/mL"], (0.01, 0.05, 0.5)),
        ([units("h", "mg", "ng/mL"), "dataset.thresholds=[5 mg/L,0.5ug/L]"], (5000, 0.5)),
        (["dataset.thresholds=null"], ()),
        (
            [units("h", "mg", "ng/mL"), "dataset.thresholds=[1 IU/dL,5 IU/dL,50 IU/dL]"],
            (),
        ),  # of another choice
    ],
)
def test_thresholds_are_those_that_the_data_state(options: list[str], levels: tuple[float, ...]) -> None:
    config = complete(*options)
    assert thresholds_of(config["dataset"]) == pytest.approx(levels)
    assert "thresholds" not in identity(config)["dataset"]


@pytest.mark.parametrize("said", ["[5]", "[5 h]", "5 mg/L", "[0 mg/L]", "[1e300 mg/L]", "[1..2 mg/L]"])
def test_what_is_no_threshold_is_refused(said: str) -> None:
    with pytest.raises(InputError, match=r"dataset\.thresholds .* expected .*\[5 mg/L\]"):
        complete(units("h", "mg", "mg/L"), f"dataset.thresholds={said}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([units("h", "mg", "mg/L"), "pk.amount_per_level=1000"], "is 1000, but one mg/L is 1 mg/L"),
        (
            [units("h", "mg", "mg/L"), "dataset.level_unit=ng/mL", "dataset.level_scale=1"],
            "one mg/L is 1000 ng/mL",
        ),
        ([units("h", "mg", "IU/mL")], "pk.amount_per_level must be given"),
        ([units("h", "mg", "nmol/L")], "pk.amount_per_level must be given"),
        (["dataset.level_unit=mg/L"], "dataset.level_scale must be given"),
        (["pk.amount_per_level=1"], "one IU/mL is 1000 IU/L"),
        ([units("fortnight", "mg", "mg/L")], "dataset.units.time is 'fortnight'; expected a unit of time"),
        ([units("mg", "mg", "mg/L")], "dataset.units.time is 'mg'"),
        ([units("h", "h", "mg/L")], "dataset.units.amount is 'h'; expected an amount"),
        ([units("h", "mg", "mgg/L")], "dataset.units.level is 'mgg/L', which is not known"),
        ([units("h", "mg", "3")], "dataset.units.level is 3"),
        (["+dataset.units.levels=mg/L"], "expected time, amount and level"),
    ],
)
def test_contradictions_are_refused_in_a_line(options: list[str], words: str) -> None:
    with pytest.raises(InputError) as found:
        complete(*options)
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def test_made_patients_have_their_units() -> None:
    config = configuration(None, Path("outputs"), "dataset.units.time=min")
    with pytest.raises(InputError, match=r"without dataset\.path patients are made whose units are"):
        complete_problem(config)


def test_units_that_say_nothing_new_are_no_part_of_what_identifies_a_result() -> None:
    own = complete()
    before = {**own, "dataset": {key: value for key, value in own["dataset"].items() if key != "units"}}
    assert identity(own) == identity(before)
    assert own["dataset"]["level_scale"] == 100
    assert all(isinstance(n, int) for n in (own["dataset"]["level_scale"], own["pk"]["amount_per_level"]))
    assert identity(complete("dataset.units.time=min")) != identity(own)


def test_a_fit_begins_where_it_does_in_hours_and_with_levels_of_a_usual_size() -> None:
    given = ("+network.initial={CL: 3}",)
    one = model_of(complete(units("h", "mg", "mg/L"), *given))
    other = model_of(complete(units("d", "mg", "ng/mL"), "+network.initial={CL: 72}"))
    values = one.init(STREAMS, torch.float64)
    assert all(
        torch.allclose(value, other.init(STREAMS, torch.float64)[name]) for name, value in values.items()
    )
    typical, of_days = one.network.typical(values, {}), other.network.typical(values, {})
    assert float(typical["CL"][0]) == pytest.approx(3)
    assert float(of_days["CL"][0]) == pytest.approx(72)
    assert torch.allclose(of_days["Q"], 24 * typical["Q"])
    assert torch.equal(of_days["V1"], typical["V1"])
    sigma, in_ng = (model.error.reported(values)["sigma_additive"] for model in (one, other))
    assert torch.allclose(in_ng, 1000 * sigma)


@pytest.mark.parametrize(
    ("said", "level"), [(5, 5), ("5", 5), (" 0.05 IU/mL", 5), ("5 IU/dL", 5), ("50 IU/L", 5)]
)
def test_a_threshold_with_or_without_a_unit(said: object, level: float) -> None:
    assert threshold_of("--threshold", said, Units("IU/dL", 100.0, "IU/mL", "IU")) == pytest.approx(level)


@pytest.mark.parametrize("said", ["5 mg/L", "high", "-1", 0, True, None, "nan", ""])
def test_no_threshold(said: object) -> None:
    with pytest.raises(InputError, match=r"--threshold has .*expected levels above 0"):
        threshold_of("--threshold", said, Units("IU/dL", 100.0, "IU/mL", "IU"))
