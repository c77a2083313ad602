"""Patients whose records begin again: every time is the file's, whatever clock the computation has."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from medcm_cli import dose, load_study, predict
from medcm_cli.errors import InputError
from medcm_cli.patients.results import Prediction
from medcm_cli.patients.retrospective import check
from medcm_cli.patients.study import Study
from medcm_cli.pk import one_compartment
from medcm_cli.report.figures import individual
from medcm_cli.study.job import Job
from tests.helpers import configuration
from tests.patients.known import certain

CL, V1 = 1.18, 1.04
K = CL / V1
COLUMNS = ["id", "time", "evid", "amt", "ss", "ii", "dv"]
ROWS: dict[str, list[tuple[float, ...]]] = {
    "ss": [
        (0, 1, 2000, 0, 0, np.nan),
        (24, 0, 0, 0, 0, 0.15),
        (48, 1, 1000, 1, 12, np.nan),
        (50, 0, 0, 0, 0, 0.6),
    ],
    "evid3": [
        *[(0, 1, 2000, 0, 0, np.nan), (24, 0, 0, 0, 0, 0.15), (48, 3, 0, 0, 0, np.nan)],
        *[(60, 1, 1000, 0, 0, np.nan), (62, 0, 0, 0, 0, 0.3)],
    ],
    "again": [
        *[(0, 1, 2000, 0, 0, np.nan), (24, 0, 0, 0, 0, 0.15)],
        *[(0, 4, 1000, 0, 0, np.nan), (10, 0, 0, 0, 0, 0.3)],
    ],
}


def given(name: str, patient: str = "a") -> pd.DataFrame:
    """The table of that name, of a patient of the covariates that the study has."""
    frame = pd.DataFrame([(patient, *row) for row in ROWS[name]], columns=COLUMNS)
    return frame.assign(wt=70.0, vwf=100.0)


def level(name: str, times: Sequence[float] | np.ndarray) -> np.ndarray:
    """IU/dL by hand, at a reset that after it: A = sum of D exp(-k t) since the last reset, doses at once."""
    times = np.asarray(times, dtype=float)

    def one(amount: float, at: float) -> np.ndarray:
        return np.where(times >= at, amount / V1 / 10 * np.exp(-K * np.maximum(times - at, 0)), 0.0)

    if name == "again":
        return one(1000, 0)
    if name == "ss":
        return np.where(times >= 48, one(1000, 48) / -np.expm1(-K * 12), one(2000, 0))
    return np.where(times >= 48, one(1000, 60), one(2000, 0))


@pytest.fixture(scope="module")
def study(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One compartment of known parameters, doses at once."""
    folder = tmp_path_factory.mktemp("reset") / "outputs"
    job = Job.build(configuration(data, folder, "objective=fo", "network=truth", "epochs=2"))
    job.run(list(job.plan().records.values()))
    known = certain(load_study(folder), one_compartment(), CL=CL, V1=V1)
    config = {**known.fits.config, "dataset": {**known.dataset, "bolus_duration": 0}}
    return replace(known, ensemble=replace(known.fits, config=config))


def typical(found: Prediction, regimen: str = "given") -> np.ndarray:
    return found.curve[found.curve["regimen"] == regimen]["typical"].to_numpy()


@pytest.mark.parametrize("name", ROWS)
def test_levels_are_those_of_the_times_in_the_file(study: Study, name: str) -> None:
    """Before, at and after the reset, between records, and after the last one."""
    times = np.array([0.0, 1, 24, 40, 47.5, 48, 49, 50, 59, 60, 61, 62, 70])
    found = predict(study, given(name), times=times, draws=20)
    np.testing.assert_array_equal(found.curve["time"], times)
    np.testing.assert_allclose(typical(found), level(name, times), rtol=1e-5, atol=1e-12)
    if name == "ss":
        assert typical(found)[[6, 7]] == pytest.approx([30.9, 9.94], rel=2e-3)


def test_a_segment_lasts_until_the_next_begins(study: Study) -> None:
    """Long after its last record, too, when the clock of the next would have begun."""
    frame = given("evid3")
    frame.loc[frame["time"] >= 48, "time"] += 1000
    times = np.array([500.0, 1047.9, 1060])
    slow = certain(study, one_compartment(), CL=0.01, V1=V1)
    found = typical(predict(slow, frame, times=times, draws=20))
    expected = [2000 / V1 / 10 * np.exp(-0.01 / V1 * t) for t in times[:2]]
    np.testing.assert_allclose(found, [*expected, 1000 / V1 / 10], rtol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_doses_and_observations_are_listed_at_their_times(study: Study, name: str) -> None:
    found = predict(study, given(name), draws=20)
    rows = given(name)
    doses, seen = rows[rows["amt"] > 0], rows[rows["dv"].notna()]
    assert found.doses["time"].tolist() == doses["time"].tolist()
    assert found.doses["amount"].tolist() == doses["amt"].tolist()
    assert found.observations["time"].tolist() == seen["time"].tolist()
    # A day after the last event that counts, in whole days, and at least three days.
    assert found.times[-1] == {"ss": 96, "evid3": 96, "again": 72}[name]
    later = check(study, given(name), uses=[0], draws=20)
    assert later.levels["time"].tolist() == seen["time"].tolist()


@pytest.mark.parametrize("name", ROWS)
def test_hours_above_a_level_are_those_of_the_file(study: Study, name: str) -> None:
    """Against the closed form on a fine grid; no hour between two segments counts."""
    fine = np.linspace(0, 72, 720_001)
    found = predict(study, given(name), times=[0, 30, 72], thresholds=[1.0, 20.0], draws=20)
    expected = [(level(name, fine) > threshold).mean() * 72 for threshold in (1.0, 20.0)]
    np.testing.assert_allclose(found.thresholds["typical"], expected, rtol=1e-3)


def test_a_reset_at_the_last_of_the_times_hides_nothing(study: Study) -> None:
    slow = certain(study, one_compartment(), CL=0.01, V1=V1)
    found = predict(slow, given("evid3"), times=[0, 48], thresholds=[1.0], draws=20)
    assert found.thresholds["typical"].iloc[0] == pytest.approx(48)


def test_patients_with_and_without_a_reset_are_as_alone(study: Study) -> None:
    times = np.array([0.0, 12, 48, 49, 62])
    together = pd.concat([given(name, name) for name in ROWS])
    found = predict(study, together, times=times, draws=20)
    for name in ROWS:
        alone = predict(study, given(name, name), times=times, draws=20)
        for table in ("curve", "thresholds", "doses", "observations"):
            mine: Any = getattr(found, table)
            mine = mine[mine["patient"] == name].reset_index(drop=True)
            pd.testing.assert_frame_equal(mine, getattr(alone, table), rtol=1e-4)


@pytest.mark.parametrize("name", ROWS)
def test_a_plan_continues_after_the_last_reset(study: Study, name: str) -> None:
    """On top of what was given since, at the times of the file."""
    plan = {"name": "next", "start": "continue", "doses": [{"time": 63, "amount": 700}]}
    found = predict(study, given(name), plan, times=[62, 63, 66], draws=20)
    expected = level(name, [62, 63, 66]) + 700 / V1 / 10 * np.array([0, 1, np.exp(-3 * K)])
    np.testing.assert_allclose(typical(found, "next"), expected, rtol=1e-5)
    listed = found.doses[found.doses["regimen"] == "next"]["time"].tolist()
    assert listed == [*given(name).query("amt > 0")["time"], 63]
    assert not (found.warnings["kind"] == "regimen").any()


def test_a_plan_before_the_last_reset_is_refused(study: Study) -> None:
    plan = {"name": "next", "start": "continue", "doses": [{"time": 47, "amount": 700}]}
    with pytest.raises(InputError, match="continues at 47 h, before the last reset of patient 'a'"):
        predict(study, given("ss"), plan, draws=20)


@pytest.mark.parametrize("name", ROWS)
def test_a_dose_after_those_given_is_the_prediction_of_that_plan(study: Study, name: str) -> None:
    last = {"ss": 48.0, "evid3": 60.0, "again": 0.0}[name] + 12
    found = dose(study, given(name), "trough>=1 IU/dL", every=[12], draws=20, after="given")
    row = found.candidates.iloc[0]
    plan = {"name": "next", "start": "continue", "doses": [{"time": last, "amount": float(row["dose"])}]}
    curve = typical(predict(study, given(name), plan, times=[last, last + 12], draws=20), "next")
    assert row["trough_typical"] == pytest.approx(curve[-1], rel=1e-3)
    expected = level(name, [last + 12])[0] + row["dose"] / V1 / 10 * np.exp(-12 * K)
    assert row["trough_typical"] == pytest.approx(expected, rel=1e-3)


def test_a_figure_has_what_its_curve_has(study: Study) -> None:
    """Where the file's time begins again, neither the levels nor the doses before."""
    drawn = individual.patient(predict(study, given("again"), draws=20), "a")
    (axis,) = drawn.figure.axes
    points = {line.get_marker(): line.get_xdata() for line in axis.get_lines() if line.get_marker() != "None"}
    plt.close(drawn.figure)
    assert np.asarray(points["o"]).tolist() == [10]
    assert np.asarray(points["^"]).tolist() == [0]
