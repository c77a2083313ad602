"""Regimens to try: what their files mean."""

from itertools import pairwise
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


BOMB = (
    "[&a [0, 0], " + ", ".join(f"&{b} [*{a}, *{a}]" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz")) + "]"
)
ODD = {
    "lists inside one another": "doses: " + "[" * 20_000 + "]" * 20_000,
    "lists that are not closed": "doses: " + "[" * 20_000,
    "groups inside one another": "{a: " * 3000 + "1" + "}" * 3000,
    "lists inside one another, of lines": "- " * 3000 + "1",
    "more levels than a plan can have": "doses: " + "[" * 60 + "]" * 60,
    "a list inside itself": "doses: &a [*a]",
    "a dose inside itself": "doses: [&a {amount: *a}]",
    "a list that doubles with each of its parts": f"doses: {BOMB}",
    "such a name": f"{{doses: [{{amount: 1}}], name: {BOMB}}}",
    "a number of 5000 digits": f"doses: [{{amount: {'9' * 5000}}}]",
    "a number that no float holds": f"doses: [{{amount: {'9' * 400}}}]",
    "a day that there is not": "doses: [{time: 2024-02-31, amount: 1}]",
    "a class of Python": "doses: !!python/object/apply:os.getcwd []",
    "a key that is a list": "? [1, 2]\n: 3",
    "a byte that is no text": "doses: \x00",
    "nothing": "",
}


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_was_made_to_do_harm_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(ODD[name])
    with pytest.raises(InputError) as caught:
        read_plan(path, DATASET)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["time", "amount", "rate", "duration", "ii", "addl", "cmt"])
@pytest.mark.parametrize("value", ["-1", ".nan", ".inf", "null", "''", "[1, 2]", "abc", "true"])
def test_a_dose_is_made_of_numbers(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(f"doses: [{{amount: 1, {key}: {value}}}]")
    with pytest.raises(InputError, match=f"dose 1: {key} is .*; expected a number from 0$"):
        read_plan(path, DATASET)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("doses: [")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        read_plan(path, DATASET)
    with pytest.raises(InputError, match="no such file"):
        read_plan(tmp_path / "absent.yml", DATASET)
    with pytest.raises(InputError, match="holds no dose"):
        read_plan(pd.DataFrame({"time": [0.0], "evid": 0, "amt": 0.0}), DATASET)
