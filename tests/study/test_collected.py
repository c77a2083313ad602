"""Urine beside plasma: a sample is what was excreted over the time that it took, as a column says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli import load_study, predict
from medcm_cli.commands.predictions import sections
from medcm_cli.data.edit import dose_corners, observed_at, of_endpoint
from medcm_cli.errors import InputError
from medcm_cli.report.figures import individual
from medcm_cli.study.job import Job
from tests.helpers import configuration

CL, V1, FE, DOSE = 2.0, 20.0, 0.4, 100.0
URINE = ((4.0, 4.0), (8.0, 4.0), (24.0, 12.0))  # h: end of a sample, and how long it took


def excreted(end: float, over: float) -> float:
    """Of a bolus, with one compartment."""
    rate = CL / V1
    return float(FE * DOSE * (np.exp(-rate * (end - over)) - np.exp(-rate * end)))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = []
    for patient in range(1, 5):
        rows.append({"ID": patient, "TIME": 0.0, "AMT": DOSE})
        shift = 1 + 0.1 * np.sin(patient)
        for time in (1.0, 6.0, 12.0):
            level = DOSE / V1 * np.exp(-CL / V1 * time) * shift
            rows.append({"ID": patient, "TIME": time, "DV": level, "DVID": 1})
        for end, over in URINE[: 2 + patient % 2]:
            rows.append(
                {"ID": patient, "TIME": end, "DV": excreted(end, over) / shift, "DVID": 2, "COLLECTED": over}
            )
    path = tmp_path_factory.mktemp("urine") / "urine.csv"
    pd.DataFrame(rows).sort_values(["ID", "TIME"], kind="stable").to_csv(path, index=False)
    return path


def built(table: Path, outputs: Path, *options: str, over: str = "COLLECTED") -> Job:
    urine = f"urine: {{dvid: 2, output: excreted, over: {over}, error: additive, unit: mg, size: 10}}"
    given = [
        *("dataset=table", "dataset.name=urine", "dataset.units={time: h, amount: mg, level: mg/L}"),
        *("dataset.covariates={}", "split=all", "pk=one_compartment", "+pk.excreted=FE", "error=endpoints"),
        *("network=equations", "random_effects=[CL,FE]", "omega=diagonal", "dtype=float64"),
        f"+network.equations={{CL: {{typical: {CL}}}, V1: {{typical: {V1}}}, FE: {{typical: {FE}}}}}",
        "+distributions={FE: {logit: [0, 1]}}",
        f"endpoints={{plasma: {{dvid: 1, error: proportional, unit: mg/L, size: 2}}, {urine}}}",
        "training.protocol=paper",
    ]
    return Job.build(configuration(table, outputs, *given, *options))


@pytest.mark.parametrize("objective", ["fo", "foce"])
def test_a_sample_is_what_was_excreted_meanwhile(table: Path, tmp_path: Path, objective: str) -> None:
    problem = (job := built(table, tmp_path, f"objective={objective}")).problem
    events = problem.events
    own = ~events.is_dose & (events.endpoint == 1)
    assert events.over[own].tolist() == [over for p in range(1, 5) for _, over in URINE[: 2 + p % 2]]
    assert not events.over[~own].any()
    found = job.train([(1, 1)])
    assert found.failures == (None,)
    model = problem.model
    population, _ = problem.populations([(1, 1)])
    zeta = {name: population.dv.new_full((1,), value) for name, value in (("CL", CL), ("V1", V1), ("FE", FE))}
    prediction = model.predict(zeta, population)[:, 0, :, 0]
    assert population.endpoint is not None
    for row, subject in zip(
        *np.nonzero((population.observed * population.endpoint)[:, 0, :, 0].numpy()), strict=True
    ):
        end = float(population.time[row, 0, subject, 0])
        assert float(prediction[row, subject]) == pytest.approx(excreted(end, dict(URINE)[end]), rel=1e-9)


def test_over_may_be_the_same_for_all(table: Path, tmp_path: Path) -> None:
    events = built(table, tmp_path, over="4").problem.events
    own = ~events.is_dose & (events.endpoint == 1)
    assert set(events.over[own]) == {4.0}
    assert not events.over[~own].any()


def test_a_curve_shows_what_there_is_of_a_sample_so_far(table: Path, tmp_path: Path) -> None:
    """Of the first subject, with samples that end at 4, 8 and 24 h and that begin at 0, 4 and 12 h."""
    events = built(table, tmp_path).problem.events
    grid = observed_at(
        events, np.array([0.0, 1.0, 4.0, 5.0, 10.0, 14.0, 24.0, 30.0]), dose_corners(events), ()
    )[0]
    curve = of_endpoint(grid, events, 1)
    assert set(curve.endpoint) == {1}
    assert not curve.over[curve.is_dose].any()
    own = (curve.subject == 0) & ~curve.is_dose
    found = dict(zip(curve.time[own], curve.over[own], strict=True))
    wanted = {1.0: 1.0, 4.0: 4.0, 5.0: 1.0, 14.0: 2.0, 24.0: 12.0}
    assert {time: found[time] for time in wanted} == pytest.approx(wanted)
    assert 0 < found[0.0] < 1e-6  # nothing yet
    assert found[10.0] == found[30.0] == 4.0  # of none: the median of 4, 4 and 12 h
    assert not of_endpoint(grid, events, 0).over.any()


@pytest.mark.parametrize(("over", "otherwise"), [("COLLECTED", " so far"), ("4", " over 4 h")])
def test_predictions_say_over_what_time_they_are(
    table: Path, tmp_path: Path, over: str, otherwise: str
) -> None:
    """A patient without samples beside one with two of 4 h, whose curve is the same without the other."""
    job = built(table, tmp_path, "objective=fo", "study=urine", over=over)
    job.run(list(job.plan().records.values()))
    study = load_study(tmp_path / "urine")
    frame = pd.read_csv(table).query("ID == 2")
    blood = frame[frame["DVID"] != 2].assign(ID=9)
    times = [2.0, 4.0, 30.0]
    both, alone = (predict(study, of, times=times, draws=20) for of in (pd.concat([frame, blood]), frame))
    (_, plasma), (name, urine) = both.of_endpoints
    assert (name, plasma.over(["2"]), urine.over(["2"])) == ("urine", "", " of each sample")
    assert (urine.over(["9"]), urine.over(["2", "9"])) == (otherwise, f" of each sample, or{otherwise}")
    curve = urine.curve.set_index(["patient", "time"])["typical"]
    np.testing.assert_array_equal(curve["2"], alone.of_endpoints[1][1].curve["typical"])
    z = both.parameters.set_index(["patient", "parameter"])["typical"]["9"]
    left = [float(np.exp(-z["CL"] / z["V1"] * max(t, 0))) for t in (-2.0, 0.0, 26.0, 2.0, 4.0, 30.0)]
    for place, time in enumerate(times):
        before = left[place] if over == "4" else 1.0
        assert curve["9"][time] == pytest.approx(DOSE * z["FE"] * (before - left[3 + place]), rel=1e-4)
    drawn = individual.patient(urine, "9", name)
    assert drawn.figure.axes[0].get_ylabel() == f"urine{otherwise}, mg"
    titles = [section.title for section in sections(both)]
    assert f"urine of each sample, or{otherwise}, mg" in titles


@pytest.mark.parametrize(
    ("options", "words"),
    {
        ("endpoints.urine.over=MINUTES",): "column 'MINUTES' is missing",
        ("endpoints.urine.over=0",): "endpoints.urine.over is 0; expected a number above 0",
        (
            "+endpoints.plasma.over=COLLECTED",
        ): "column 'COLLECTED': is missing; expected how long was collected",
        (
            "endpoints.urine.output=central",
        ): "pk.excreted is FE; expected an endpoint whose output is excreted",
        (
            "endpoints.urine.output=depot",
        ): "endpoints.urine.output is 'depot'; expected central or central_amount",
    }.items(),
)
def test_what_makes_no_sense_is_refused(
    table: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        built(table, tmp_path, *options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
