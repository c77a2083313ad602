"""The figure of a patient: its curve between the times that are asked for, its axis and its legend."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli import load_study, predict
from medcm_cli.patients.study import Study
from medcm_cli.pk import one_compartment
from medcm_cli.report.figures import individual, style
from medcm_cli.study.job import Job
from tests.helpers import configuration
from tests.patients.known import certain

KA, CL, V1, EVERY = 1.2, 2.0, 30.0, 24.0
ROWS = {
    "id": "a",
    "time": [0.0, 24.0, 48.0, 50.0, 70.0],
    "evid": [1, 1, 1, 0, 0],
    "amt": [1000.0] * 3 + [0.0] * 2,
    "dv": [np.nan] * 3 + [0.5, 1e-9],
    "wt": 70.0,
    "vwf": 100.0,
}


@pytest.fixture(scope="module")
def oral(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("figure") / "outputs"
    choices = ("objective=fo", "network=truth", "fold=1", "epochs=4", "checkpoint_every=2", "tail=2")
    job = Job.build(configuration(data, folder, *choices))
    job.run(list(job.plan().records.values()))
    pk = one_compartment(absorption=True, amount_per_level=1.0)
    return certain(load_study(folder), pk, CL=CL, V1=V1, KA=KA)


def closed(time: np.ndarray) -> np.ndarray:
    """Three doses of 1000 by mouth, a day apart, in 1/100 of the amount per volume."""
    since = time[:, None] - EVERY * np.arange(3)
    k = CL / V1
    each = np.where(since >= 0, np.exp(-k * since.clip(0)) - np.exp(-KA * since.clip(0)), 0)
    return np.asarray(100 * 1000 / V1 * KA / (KA - k) * each.sum(1))


def test_a_curve_has_the_peaks_between_the_times_that_are_asked_for(oral: Study) -> None:
    found = predict(oral, pd.DataFrame(ROWS), times=[0, 24, 48, 72], thresholds=[100.0, 105.0, 1e7], draws=20)
    assert sorted(found.curve["time"].unique()) == [0, 24, 48, 72]
    drawn = individual.patient(found, "a")
    (axis,) = drawn.figure.axes
    line = next(of for of in axis.lines if of.get_linestyle() == "-" and np.size(of.get_xdata()) > 20)
    x, y = np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)
    for dose in (0, 24, 48):
        time = dose + np.linspace(0.5, 23.9, 1000)
        exact = closed(time)
        joined = np.interp(time, x, y)
        assert joined.max() == pytest.approx(exact.max(), rel=0.002)
        np.testing.assert_allclose(joined, exact, rtol=0.02)
        peak = (x > dose + 0.5) & (x < dose + 6)
        assert peak.sum() > 12  # so that it is round
    pd.testing.assert_series_equal(drawn.data["time"], found.shape["time"], check_index=False)


def test_labels_are_on_the_axis_and_apart_and_marks_are_explained(oral: Study) -> None:
    found = predict(oral, pd.DataFrame(ROWS), times=[0, 24, 72], thresholds=[100.0, 105.0, 1e7], draws=20)
    figure = individual.patient(found, "a").figure
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["100", "105"]
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not boxes[0].overlaps(boxes[1])
    low, high = axis.get_ylim()
    assert low < 100 < 105 < high
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"dose", "measured", "below axis or limit", "threshold", "typical", "median"} <= labels
    hollow = [line for line in axis.lines if line.get_marker() == "v"]
    assert [line.get_markerfacecolor() for line in hollow] == ["none"]
    assert figure.get_figwidth() <= style.DOUBLE


def test_troughs_and_what_was_measured_are_on_the_axis_whatever_the_thresholds(oral: Study) -> None:
    rows = pd.DataFrame(ROWS).assign(time=[0.0, 24.0, 48.0, 50.0, 140.0], dv=[np.nan] * 3 + [30.0, 0.01])
    found = predict(oral, rows, times=[0, 150], thresholds=[1000.0], draws=20)
    (axis,) = individual.patient(found, "a").figure.axes
    low, high = axis.get_ylim()
    trough = closed(np.array([150.0]))[0]
    assert high * 10**-3.5 < trough
    assert low < min(trough, 1.0)
    assert low < found.observations["level"].min()
    nothing = pd.DataFrame(ROWS)  # a level of 1e-9 does not set the axis
    found = predict(oral, nothing, times=[0, 72], thresholds=[1000.0], draws=20)
    (axis,) = individual.patient(found, "a").figure.axes
    assert axis.get_ylim()[0] > 1e-3
