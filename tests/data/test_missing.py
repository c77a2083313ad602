"""Covariates that subjects lack, against values by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from medcm_cli.data import Format, read_events
from medcm_cli.data.missing import filled, origin_table, statistics
from medcm_cli.errors import InputError

WEIGHTS = {"a": 60.0, "b": 60.0, "c": 90.0, "d": np.nan, "e": 100.0, "f": np.nan}
SEX = {"a": "F", "b": "F", "c": "M", "d": "M", "e": "M", "f": "F"}


def table(weights: dict[str, float] = WEIGHTS, sex: dict[str, str] = SEX) -> pd.DataFrame:
    ids = [name for name in weights for _ in range(2)]
    frame = pd.DataFrame({"id": ids, "time": [0.0, 4.0] * len(weights), "evid": [1, 0] * len(weights)})
    frame["amt"] = np.where(frame["evid"] == 1, 1000.0, np.nan)
    frame["dv"] = np.where(frame["evid"] == 0, 0.5, np.nan)
    return frame.assign(wt=frame["id"].map(weights), sex=frame["id"].map(sex))


OPTIONAL = Format(optional=frozenset({"weight"}), labels=("sex",))
UNITS = {"weight": "kg"}


@pytest.mark.parametrize(
    ("rule", "by", "expected"),
    [
        ("mean", None, [77.5, 77.5]),
        ("median", None, [75.0, 75.0]),
        ("mode", None, [60.0, 60.0]),
        ("mean", "sex", [95.0, 60.0]),
        ("median", "sex", [95.0, 60.0]),
        ("mode", "sex", [90.0, 60.0]),
    ],
)
@pytest.mark.parametrize("over_time", ["constant", "record"])
def test_what_is_missing_is_taken_from_other_subjects(
    rule: str, by: str | None, expected: list[float], over_time: str
) -> None:
    how = Format(optional=frozenset({"weight"}), labels=("sex",), over_time={"weight": over_time})
    events = read_events(table(), {"weight": "wt"}, how)
    whole, origins = filled(events, statistics(events, {"weight": (rule, by)}), UNITS)
    found = whole.covariates if whole.regimes is None else whole.regimes.covariates
    assert found["weight"].tolist() == [60, 60, 90, expected[0], 100, expected[1]]
    words = [rule, rule] if by is None else [f"{rule} of sex M", f"{rule} of sex F"]
    assert origins["weight"].tolist() == [*["measured"] * 3, words[0], "measured", words[1]]
    assert "weight is missing in subject 'd' and 1 more; the study's" in whole.notes[-1]
    written = origin_table(whole, origins, UNITS)
    assert written.column_names == ["id", "weight", "weight_origin"]
    assert written.schema.field("weight").metadata == {b"unit": b"kg"}
    assert written["weight"].to_pylist() == found["weight"].tolist()


def test_a_patient_gets_the_value_of_the_study() -> None:
    study = read_events(table(), {"weight": "wt"}, OPTIONAL)
    found = statistics(study, {"weight": ("median", "sex")})
    patients = read_events(table({"x": 40.0, "y": np.nan}, {"x": "M", "y": "M"}), {"weight": "wt"}, OPTIONAL)
    whole, _ = filled(patients, found, UNITS)
    assert whole.covariates["weight"].tolist() == [40, 95]


@pytest.mark.parametrize(
    ("weights", "sex", "words"),
    [
        (
            {"y": np.nan},
            {"y": "X"},
            "subject 'y' has no weight, whose sex is 'X'; the study's median is known",
        ),
        ({"y": np.nan}, {"y": None}, "subject 'y' has no weight, and no sex"),
    ],
)
def test_a_category_that_the_study_does_not_know_is_refused(
    weights: dict[str, float], sex: dict[str, Any], words: str
) -> None:
    study = read_events(table(), {"weight": "wt"}, OPTIONAL)
    found = statistics(study, {"weight": ("median", "sex")})
    patients = read_events(table(weights, sex), {"weight": "wt"}, OPTIONAL)
    with pytest.raises(InputError, match=words):
        filled(patients, found, UNITS)


def test_nothing_is_taken_of_nobody() -> None:
    events = read_events(table(dict.fromkeys("ab", np.nan)), {"weight": "wt"}, OPTIONAL)
    with pytest.raises(InputError, match="no subject has weight, whose mean is to be taken"):
        statistics(events, {"weight": ("mean", None)})


def test_a_value_is_carried_forward_only_where_it_is_said() -> None:
    frame = table({"a": 60.0, "b": 70.0})
    frame.loc[[1, 2], "wt"] = np.nan
    with pytest.raises(
        InputError, match=r"row 2, column 'wt': is missing; .*dataset.covariates.weight=\{missing: median"
    ):
        read_events(frame, {"weight": "wt"})
    forward = Format(forward=frozenset({"weight"}))
    assert read_events(frame, {"weight": "wt"}, forward).covariates["weight"].tolist() == [60, 70]
    with pytest.raises(InputError, match="is missing in every row of the subject"):
        read_events(frame.assign(wt=[60, 60, np.nan, np.nan]), {"weight": "wt"}, forward)
