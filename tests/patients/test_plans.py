"""Regimens to try: what their files mean."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli.errors import InputError
from medcm_cli.patients.plans import read_plan, with_plan
from tests.helpers import make_events

DATASET = {"columns": {}, "bolus_duration": 1 / 60}


def test_a_plan_means_the_doses_of_an_event_table(tmp_path: Path) -> None:
    """ADDL and II written out by hand, in YAML, as a mapping and as an event table."""
    text = (
        "name: mine\ndoses:\n  - {time: 24, amount: 500, duration: 2}\n  - {amount: 1000, ii: 12, addl: 2}\n"
    )
    (tmp_path / "plan.yaml").write_text(text)
    table = pd.DataFrame({"time": [0.0, 24.0], "amt": [1000.0, 500.0], "duration": [np.nan, 2.0]})
    table = table.assign(evid=1, addl=[2, 0], ii=[12.0, 0.0])
    doses = [{"time": 24, "amount": 500, "duration": 2}, {"amount": 1000, "ii": 12, "addl": 2}]
    events = make_events(3)
    for given, name in ((tmp_path / "plan.yaml", "mine"), (table, "regimen"), ({"doses": doses}, "regimen")):
        plan = read_plan(given, DATASET)
        found = with_plan(events, plan)
        assert (plan.name, found.ids, bool(found.is_dose.all())) == (name, events.ids, True)
        assert found.covariates is events.covariates
        for subject in range(3):
            rows = found.subject == subject
            order = np.lexsort((found.amount[rows], found.clock[rows]))
            np.testing.assert_allclose(found.clock[rows][order], [0, 12, 24, 24])
            np.testing.assert_allclose(found.amount[rows][order], [1000, 1000, 500, 1000])
            np.testing.assert_allclose(found.duration[rows][order], [1 / 60, 1 / 60, 2, 1 / 60])


def test_each_patient_can_have_a_regimen_of_its_own() -> None:
    table = pd.DataFrame({"id": ["2", "0"], "time": [5.0, 0.0], "amt": [10.0, 20.0], "evid": 1})
    found = with_plan(make_events(3), read_plan(table, DATASET))
    assert found.ids == ("0", "1", "2")
    assert found.subject.tolist() == [0, 2]
    assert found.amount.tolist() == [20, 10]
    assert found.clock.tolist() == [0, 5]
    with pytest.raises(InputError, match="'9', who is not among the patients"):
        with_plan(make_events(3), read_plan(table.assign(id=["0", "9"]), DATASET))


def test_a_plan_continues_what_was_given() -> None:
    events = make_events(2, doses=2)
    plan = read_plan({"start": "continue", "doses": [{"time": 60, "amount": 7}]}, DATASET)
    found = with_plan(events, plan)
    for subject in range(2):
        assert found.clock[found.subject == subject].tolist() == [0, 12, 60]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "expected doses"),
        ({"doses": []}, "expected a list"),
        ({"doses": [{"amount": 1}], "dose": 3}, "expected doses"),
        ({"doses": [{"amount": -5}]}, "dose 1: amount is -5; expected a number from 0"),
        ({"doses": [{"amount": 5}, {"amonut": 5}]}, "dose 2: is"),
        ({"doses": [{"amount": 5, "rate": 5, "duration": 2}]}, "amount is not rate times duration"),
        ({"doses": [{"amount": 5}], "start": "later"}, "expected fresh or continue"),
        ({"doses": [{"amount": 5, "addl": 2}]}, "dose 1: has addl without ii"),
        ({"doses": [{"time": 3}]}, "dose 1: gives nothing"),
    ],
)
def test_bad_plans_are_refused(content: dict[str, object], words: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(str(content))
    with pytest.raises(InputError, match=words) as caught:
        with_plan(make_events(1), read_plan(path, DATASET))
    assert "plan" in str(caught.value)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("doses: [")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        read_plan(path, DATASET)
    with pytest.raises(InputError, match="no such file"):
        read_plan(tmp_path / "absent.yml", DATASET)
    with pytest.raises(InputError, match="holds no dose"):
        read_plan(pd.DataFrame({"time": [0.0], "evid": 0, "amt": 0.0}), DATASET)
