"""What a model can be told of observations: their compartment, and what it predicts where they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medcm_cli.errors import InputError
from medcm_cli.study.problem import Problem
from tests.helpers import configuration, schedule_of

MG = "dataset.units={amount: mg, level: mg/L}"


def table(path: Path, **columns: Any) -> Path:
    """One dose at time 0 and two levels; what is given replaces columns or comes beside them."""
    frame: dict[str, Any] = {
        "id": "a",
        "time": [0.0, 5.0, 40.0],
        "evid": [1, 0, 0],
        "amt": [1000.0, np.nan, np.nan],
    }
    frame |= {"dv": [np.nan, 0.3, 0.2], "wt": 70.0, "vwf": 100.0}
    pd.DataFrame(frame | columns).to_csv(path, index=False)
    return path


def built(path: Path, *choices: str) -> Problem:
    options = ("dataset=table", "split=all", "network=none", *choices)
    return Problem.build(configuration(path, path.parent, *options))


@pytest.mark.parametrize(
    ("pk", "cmt", "refused"),
    [
        ("one_compartment", [1, 1, 1], None),
        ("one_compartment", [1, 0, np.nan], None),
        ("one_compartment", [1, 1, 2], "compartment 2 \\(CMT\\) at 40 h, and the model's is 1"),
        ("one_compartment_oral", [1, 2, 2], None),
        ("one_compartment_oral", [1, 2, 3], "compartment 3 \\(CMT\\) at 40 h, and the model's is 2"),
        ("one_compartment_oral", [1, 1, 1], "compartment 1 \\(CMT\\) at 5 h, and the model's is 2"),
        ("two_compartment_ode", [1, 2, 2], "compartment 2 \\(CMT\\) at 5 h, and the model's is 1"),
    ],
)
def test_observations_of_another_compartment_are_refused(
    pk: str, cmt: list[float], refused: str | None, tmp_path: Path
) -> None:
    path = table(tmp_path / "events.csv", CMT=cmt)
    choices = (f"pk={pk}", "network.global_parameters=[CL,V1,Q,V2,KA]", "random_effects=[CL]")
    names = "CL,V1,KA" if "oral" in pk else "CL,V1,Q,V2" if "two" in pk else "CL,V1"
    choices = (f"pk={pk}", f"network.global_parameters=[{names}]", "random_effects=[CL]")
    if refused is None:
        built(path, *choices)
        return
    with pytest.raises(InputError, match=refused):
        built(path, *choices)
    assert len(built(path, *choices, "+dataset.columns={cmt: null}").events.dv) == 3
    several = len({value for value in cmt[1:] if value}) > 1
    if several:
        with pytest.raises(InputError, match=refused):
            built(path, *choices, "+dataset.keep={cmt: [1,2,3]}")
    else:
        built(path, *choices, "+dataset.keep={cmt: [1,2,3]}")


ONE = ("pk=one_compartment", "network.global_parameters=[CL,V1]", "random_effects=[CL]", MG)
ORAL = ("pk=one_compartment_oral", "network.global_parameters=[CL,V1,KA]", "random_effects=[CL]", MG)


@pytest.mark.parametrize(
    ("choices", "columns", "accepted"),
    [
        (ONE, {}, True),
        (ONE, {"evid": [0, 1, 0], "amt": [np.nan, 1000.0, np.nan], "dv": [0.5, np.nan, 0.2]}, False),
        (ONE, {"rate": [500.0, np.nan, np.nan]}, False),
        ((*ONE, "+pk.lag={1: LAG}", "network.global_parameters=[CL,V1,LAG]"), {}, False),
        (ORAL, {}, False),
        (ORAL, {"cmt": [2, 2, 2]}, True),
    ],
    ids=["at once", "before the dose", "infused", "after a lag", "into a depot", "past the depot"],
)
def test_a_sample_at_a_dose_given_at_once_sees_it(
    choices: tuple[str, ...], columns: dict[str, Any], accepted: bool, tmp_path: Path
) -> None:
    """With a proportional error: what is there at once has a level, D / V1, and everything else none."""
    path = table(tmp_path / "events.csv", **({"time": [0.0, 0.0, 24.0]} | columns))
    options = (
        *choices,
        "error=proportional",
        "dataset.bolus_duration=0",
        "dataset.predose_observations=keep",
    )
    if not accepted:
        with pytest.raises(InputError, match="'a' has an observation no later than its first dose"):
            built(path, *options)
        return
    problem = built(path, *options)
    z = {name: torch.tensor([2.0], dtype=torch.float64) for name in problem.model.pk.parameters}
    level = problem.model.pk.predict(schedule_of(problem.everyone), z)[:, 0, 0, 0]
    assert level.tolist() == pytest.approx([500, 500 * np.exp(-24)], rel=1e-5)


@pytest.mark.parametrize(("missing", "refused"), [("mean", True), ("mode", False)])
def test_a_mean_of_categories_is_no_category(tmp_path: Path, missing: str, refused: bool) -> None:
    """It would have the effect of the reference without a word."""
    path = tmp_path / "events.csv"
    ids = np.repeat(["a", "b", "c", "d"], 2)
    sex = np.repeat(["F", "M", "M", ""], 2)
    columns = {"id": ids, "time": [0.0, 5.0] * 4, "evid": [1, 0] * 4, "amt": [10.0, ""] * 4}
    pd.DataFrame(columns | {"dv": ["", 0.3] * 4, "sex": sex}).to_csv(path, index=False)
    options = [
        "network=equations",
        "network.equations={CL: {typical: 1, sex: {category: {F: 0.8}}}, V1: {typical: 9}}",
        "pk=one_compartment",
        MG,
        "dataset.covariates={sex: {column: sex, scale: 1, reference: 1, unit: '-', "
        f"values: {{F: 0, M: 1}}, missing: {missing}}}}}",
    ]
    choices = ("dataset=table", "split=all", *options)
    if refused:
        with pytest.raises(InputError, match=r"sex of subject 'd' is 0\.667, which is no category"):
            Problem.build(configuration(path, tmp_path, *choices))
    else:
        Problem.build(configuration(path, tmp_path, *choices))
