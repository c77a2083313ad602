"""What an objective says of itself reaches those who read results, also of fits from before records kept
it."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from medcm_cli import runs
from medcm_cli.objectives import Fo, Foce, Mse, Objective, Vi
from medcm_cli.runs.description import Description, described
from medcm_cli.runs.sweeps import by_method

HOME = "medcm_cli.objectives"


def record(objective: dict[str, Any], name: str = "x", told: Description | None = None) -> runs.Record:
    return runs.Record(
        status="complete",
        address=runs.Address("s", "d", name, "additive", 0.1, "default", 1, 1),
        config_hash="0",
        config={"dataset": {}, "objective": objective},
        data={},
        truth=None,
        seed=0,
        versions={},
        described=None if told is None else asdict(told),
    )


@pytest.mark.parametrize("objective", [Mse(), Fo(), Foce("linearised"), Vi(), Vi(samples=1)])
def test_a_record_of_before_says_what_one_of_now_does(objective: Objective) -> None:
    options = {"_target_": f"{HOME}.{type(objective).__name__}", "learning_rate": 0.1, **vars(objective)}
    assert described(record(options)) == objective.describe()
    assert described(record({}, told=objective.describe())) == objective.describe()


@pytest.mark.parametrize(
    "options",
    [
        {"_target_": "subprocess.run", "args": "false", "check": True},
        {"_target_": f"{HOME}.Nothing"},
        {"_target_": f"{HOME}.Vi", "samples": 0},
        {"_target_": f"{HOME}.Vi", "another": 1},
        {"_target_": f"{HOME}.State", "trained": {}},
        {},
    ],
)
def test_what_cannot_be_asked_is_nothing_special(options: dict[str, Any]) -> None:
    assert described(record(options)) == Description()


def test_what_a_later_version_adds_is_no_obstacle() -> None:
    told = record({}, told=Description(rank=7))
    assert told.described is not None
    assert described(replace(told, described={**told.described, "colour": "red"})).rank == 7


def test_a_value_and_its_unit() -> None:
    assert Mse().describe().label("IU/dL") == "mean squared error, (IU/dL)²"
    assert Foce().describe().label("IU/dL") == "objective value, -2 log L"
    assert Vi().describe().label("IU/dL") == "-ELBO, nats"
    assert Description().label("IU/dL") == "objective value (-)"
    assert [Mse().describe().unit_in("mg/L"), Vi().describe().unit_in("mg/L")] == ["(mg/L)²", "-"]
    assert Description(power=1).unit_in("mg/L") == "mg/L"


def test_methods_are_shown_in_the_order_of_ranks() -> None:
    ranks = {"other": None, "b": 2, "c": 0, "a": 2, "d": 9}
    records = [record({}, name, Description(rank=rank)) for name, rank in ranks.items()]
    assert list(by_method(records)) == ["C", "A", "B", "D", "OTHER"]
