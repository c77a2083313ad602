"""Predictions of patients that a study has not seen: as numbers, and as a person asks for them."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch

from medcm_cli import load_study, predict
from medcm_cli.commands.parser import Parser
from medcm_cli.commands.predict import add_options
from medcm_cli.commands.predictions import run
from medcm_cli.errors import InputError
from medcm_cli.patients.measures import BOUNDS
from medcm_cli.patients.study import Study
from medcm_cli.pk import one_compartment, solve
from medcm_cli.posteriors.individual import METHODS
from medcm_cli.report.section import Section
from medcm_cli.study.job import Job
from tests.helpers import configuration, schedule_of
from tests.patients.known import certain

COLUMNS = ["id", "time", "dv", "mdv", "amt", "rate", "duration", "wt", "vwf"]


@pytest.fixture(scope="module")
def outputs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three fits by fo of the true typical parameters, and two by mse."""
    folder = tmp_path_factory.mktemp("prediction") / "outputs"
    choices = ("fold=[1,2,3]", "learning_rate=0.02", "epochs=60", "checkpoint_every=20")
    for objective, network in (("fo", "truth"), ("mse", "multi_branch")):
        config = configuration(data, folder, f"objective={objective}", f"network={network}", *choices)
        job = Job.build(config)
        job.run(list(job.plan().records.values()))
    return folder


@pytest.fixture(scope="module")
def study(outputs: Path) -> Study:
    return load_study(outputs, "fo")


@pytest.fixture(scope="module")
def patients(data: Path) -> pd.DataFrame:
    """Four patients, the first without a level."""
    frame = pd.read_parquet(data / "simulation.parquet")[COLUMNS]
    frame = frame[frame["id"].isin(frame["id"].unique()[:4])]
    shown = (frame["id"] != frame["id"].iloc[0]) | (frame["mdv"] == 1)
    chosen: pd.DataFrame = frame.loc[shown].reset_index(drop=True)
    return chosen


def test_half_life_is_that_of_the_rate_matrix(study: Study) -> None:
    z = {"CL": 0.2, "V1": 3.0, "Q": 0.15, "V2": 0.75}
    k10, k12, k21 = z["CL"] / z["V1"], z["Q"] / z["V1"], z["Q"] / z["V2"]
    slowest = np.linalg.eigvals(np.array([[-k10 - k12, k21], [k12, -k21]])).max()
    found = study.fits.model.pk.half_life(
        {name: torch.tensor([[[value]]], dtype=torch.float64) for name, value in z.items()}
    )
    assert found is not None
    assert float(found) == pytest.approx(-np.log(2) / slowest, rel=1e-9)


@pytest.mark.parametrize(
    ("fraction", "keeps", "hours"), [(1.5, "rate", 15), (0.6, "rate", 6), (0.6, "duration", 10)]
)
def test_a_curve_has_the_end_of_an_infusion_that_f_stretches(
    study: Study, fraction: float, keeps: str, hours: float
) -> None:
    """1000 IU at 100 IU/h after a lag of 2.137 h, where the curve is highest."""
    pk = one_compartment(lag={1: "LAG"}, bioavailability={1: "F"}, bioavailability_keeps=keeps)
    known = certain(study, pk, CL=0.2, V1=3.0, LAG=2.137, F=fraction)
    rows = {"id": ["a", "a"], "time": [0.0, 70.0], "evid": [1, 0], "amt": [1000.0, 0], "rate": [100.0, 0]}
    frame = pd.DataFrame({**rows, "dv": [np.nan, 0.1], "wt": 70.0, "vwf": 100.0})
    curve = predict(known, frame, draws=20).curve
    highest = curve.iloc[int(curve["typical"].argmax())]
    assert highest["time"] == pytest.approx(2.137 + hours, abs=1e-5)
    k = 0.2 / 3
    peak = 1000 * fraction / 3 / 10 * -np.expm1(-k * hours) / (k * hours)
    assert highest["typical"] == pytest.approx(peak, rel=1e-5)


def test_estimates_of_an_ensemble_are_those_of_the_fits(study: Study) -> None:
    tables = [pd.read_parquet(folder / "history.parquet") for folder in study.fits.folders]
    assert len(tables) == 3
    lower = study.fits.model.omega_cholesky(study.fits.estimates)
    first = [table["omega_1"].iloc[-1] for table in tables]  # the tail is the last checkpoint
    np.testing.assert_allclose(lower[0][0].numpy(), first, rtol=1e-5)
    assert load_study(study.fits.folders[1].parent).fits.records == study.fits.records[1:2]
    assert "3 fits" in study.label


def test_typical_curve_is_the_models_and_bands_hold_it(study: Study, patients: pd.DataFrame) -> None:
    times = np.arange(0.0, 73.0, 6.0)
    found = predict(study, patients, times=times, thresholds=[5.0], draws=300)
    events = study.read(patients)
    model, population = study.fits.model, study.population(events)
    zeta = {n: v[..., :1] for n, v in model.typical(study.fits.estimates, population).items()}
    schedule = replace(
        schedule_of(population),
        **vars(
            schedule_of(population).build(
                torch.from_numpy(times).view(-1, 1, 1, 1).expand(-1, -1, 4, -1),
                schedule_of(population).start,
                schedule_of(population).duration,
                schedule_of(population).amount,
            )
        ),
    )
    expected = 100 * solve(model.pk, schedule, zeta)[:, 0, :, 0].numpy()
    curve = found.curve.pivot_table(index="time", columns="patient", values="typical")[list(events.ids)]
    np.testing.assert_allclose(curve.to_numpy(), expected, rtol=1e-4, atol=1e-4)
    bounds = found.curve[list(BOUNDS)].to_numpy()
    assert (np.diff(bounds, axis=1) >= 0).all()
    measured = found.curve["measured_upper_90"] - found.curve["measured_lower_90"]
    assert (measured >= found.curve["upper_90"] - found.curve["lower_90"])[found.curve["time"] > 0].all()


def test_levels_narrow_a_patient_and_the_prior_has_none(study: Study, patients: pd.DataFrame) -> None:
    found = predict(study, patients, draws=3000)
    of_cl = found.parameters[found.parameters["parameter"] == "CL"].set_index("patient")
    width = np.log((of_cl["upper_90"] / of_cl["lower_90"]).to_numpy())
    assert width[0] > width[1:].max()
    # Without a level: lognormal around the typical value, with the fits' omega.
    omega = float(study.fits.model.omega_cholesky(study.fits.estimates)[0][0].mean())
    assert width[0] == pytest.approx(2 * 1.645 * omega, rel=0.05)
    assert of_cl["median"].iloc[0] == pytest.approx(of_cl["typical"].iloc[0], rel=0.01)
    assert set(found.observations["patient"]) == set(patients["id"].unique()[1:])


def test_a_patient_alone_is_as_among_others(study: Study, patients: pd.DataFrame) -> None:
    options: dict[str, Any] = {"times": [0.0, 24.0, 48.0], "draws": 60}
    together = predict(study, patients, **options)
    name = patients["id"].unique()[2]
    alone = predict(study, patients[patients["id"] == name], **options)
    for table in ("parameters", "curve", "thresholds", "above"):
        whole = getattr(together, table)
        pd.testing.assert_frame_equal(
            whole[whole["patient"] == name].reset_index(drop=True), getattr(alone, table), rtol=1e-5
        )


def test_the_ensemble_is_a_mixture_of_its_fits(study: Study, patients: pd.DataFrame) -> None:
    """Probabilities of the ensemble are the mean of those of its fits; each fit keeps its draws."""
    options: dict[str, Any] = {"times": [0.0, 24.0, 48.0], "thresholds": [10.0, 20.0]}
    together = predict(study, patients, draws=300, **options).above["probability"]
    singly = [
        predict(load_study(folder), patients, draws=100, **options).above["probability"]
        for folder in study.fits.folders
    ]
    np.testing.assert_allclose(together, np.mean(singly, axis=0), atol=1e-6)


def test_regimens_superpose(study: Study, patients: pd.DataFrame) -> None:
    """Typical levels are linear in dose, and those of repeated doses add up."""
    regimens = [
        {"name": "one", "doses": [{"amount": 1000}]},
        {"name": "double", "doses": [{"amount": 2000}]},
        {"name": "twice", "doses": [{"amount": 1000, "ii": 24, "addl": 1}]},
    ]
    found = predict(study, patients, regimens, times=np.arange(0.0, 72.5, 12.0), draws=40)
    assert list(dict.fromkeys(found.curve["regimen"])) == ["given", "one", "double", "twice"]
    # A row per patient and a column per 12 h.
    typical = {
        name: curve.pivot_table(index="patient", columns="time", values="typical").to_numpy()
        for name, curve in found.curve.groupby("regimen")
    }
    one = typical["one"]
    np.testing.assert_allclose(typical["double"], 2 * one, rtol=1e-5)
    shifted = np.hstack([np.zeros((len(one), 2)), one[:, :-2]])
    np.testing.assert_allclose(typical["twice"], one + shifted, rtol=1e-4)
    assert found.doses.query("regimen == 'twice'").groupby("patient").size().tolist() == [2] * 4


def test_hours_above_miss_no_peak_between_times(study: Study, patients: pd.DataFrame) -> None:
    """The times that a large file has by default, 3 h apart, against a minute and a half."""
    coarse, fine = (
        predict(study, patients, times=np.linspace(0.0, 72.0, n), thresholds=[40.0], draws=40)
        for n in (25, 2881)
    )
    np.testing.assert_allclose(coarse.thresholds["typical"], fine.thresholds["typical"], atol=0.1)
    assert (fine.thresholds["typical"] > 0.5).all()
    high = fine.curve.groupby("patient", sort=False)["typical"].max()
    never = predict(study, patients, times=[0.0, 72.0], thresholds=[float(high.max()) * 1.01], draws=40)
    assert (never.thresholds["typical"] == 0).all()


def test_hours_above_do_not_depend_on_the_times_that_are_shown(study: Study, patients: pd.DataFrame) -> None:
    fine, coarse = (
        predict(study, patients, times=times, thresholds=(5.0, 20.0), draws=20).thresholds
        for times in (np.arange(0, 168.1, 0.25), [0.0, 168.0])
    )
    for name in ("typical", "median", "lower_90", "upper_90"):
        np.testing.assert_allclose(coarse[name], fine[name], atol=0.1)


def test_a_regimen_at_steady_state_is_that_of_many_doses(study: Study, patients: pd.DataFrame) -> None:
    """As an event table, where SS 1 begins anew: at the time that it is given for."""
    steady = pd.DataFrame({"time": [0.0], "amt": [1000.0], "ss": [1], "ii": [24.0], "addl": [2]})
    many = {"name": "many", "doses": [{"time": 0, "amount": 1000, "ii": 24, "addl": 52}]}
    times = np.array([0.0, 6.0, 23.0, 30.0, 70.0])
    one = predict(study, patients, regimen=steady, times=times, draws=20)
    other = predict(study, patients, regimen=many, times=times + 50 * 24, draws=20)
    columns = ["typical", "lower_90", "median", "upper_90"]
    first, second = (
        found.curve[(found.curve["regimen"] == name) & (found.curve["time"] > found.curve["time"].min())]
        for found, name in ((one, "regimen"), (other, "many"))
    )
    np.testing.assert_allclose(first[columns], second[columns], rtol=1e-3)
    assert sorted(one.doses.query("regimen == 'regimen'")["time"].unique()) == [0, 24, 48]


def test_doses_that_the_model_cannot_take_are_refused(study: Study, patients: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=r"regimen x: a dose goes into compartment 2 \(CMT\)"):
        predict(study, patients, regimen={"name": "x", "doses": [{"amount": 1000, "cmt": 2}]})
    with pytest.raises(InputError, match="compartment 2"):
        predict(study, patients.assign(cmt=2))
    with pytest.raises(InputError, match="has a reset"):
        predict(study, patients, regimen=pd.DataFrame({"time": [0.0], "amt": [1000.0], "evid": [4]}))


def test_files_and_frames_give_the_same(study: Study, patients: pd.DataFrame, tmp_path: Path) -> None:
    patients.to_csv(tmp_path / "p.csv", index=False)
    patients.to_parquet(tmp_path / "p.parquet")
    options: dict[str, Any] = {"times": [0.0, 24.0], "draws": 30}
    expected = predict(study, patients, **options).curve
    for name in ("p.csv", "p.parquet"):
        pd.testing.assert_frame_equal(predict(study, tmp_path / name, **options).curve, expected)
    patients.to_csv(tmp_path / "p.csv", index=False, sep=";", decimal=",")
    pd.testing.assert_frame_equal(predict(study, tmp_path / "p.csv", **options).curve, expected)
    with pytest.raises(InputError, match=r"dataset\.dialect=\{decimal: comma\}'? or .* reads it"):
        predict(study.with_dialect({"decimal": "point"}), tmp_path / "p.csv", **options)


def test_patients_without_a_dose_have_those_of_the_regimen(study: Study) -> None:
    only = pd.DataFrame({"id": ["a", "b"], "time": 0.0, "mdv": 1, "amt": 0.0, "dv": np.nan, "wt": [70, 60.0]})
    only = only.assign(vwf=100.0)
    found = predict(study, only, {"doses": [{"amount": 2000}]}, draws=40)
    assert set(found.curve["regimen"]) == {"regimen"}
    with pytest.raises(InputError, match="has no dose"):
        predict(study, only, draws=40)


def changed(frame: pd.DataFrame, row: int, **values: Any) -> pd.DataFrame:
    copy = frame.copy()
    for name, value in values.items():
        copy.loc[row, name] = value
    return copy


FAULTS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "negative level": (lambda p: changed(p, 3, dv=-0.1), "row 4, column 'dv': -0.1 is negative"),
    "missing covariate": (lambda p: changed(p, 3, wt=np.nan), "row 4, column 'wt': is missing"),
    "no such column": (lambda p: p.drop(columns="vwf"), "column 'vwf' is missing; the file has"),
    "dose after the level": (
        lambda p: changed(p, 1, time=5.0),
        "comes after a later time|before the subject",
    ),
    "no dose before the level": (
        lambda p: p[(p["id"] != p["id"].unique()[1]) | (p["mdv"] == 0)],
        "before the subject's first dose",
    ),
    "nobody": (lambda p: p.iloc[:0], "has no rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_a_file_are_one_line(fault: str, study: Study, patients: pd.DataFrame) -> None:
    change, words = FAULTS[fault]
    with pytest.raises(InputError, match=words):
        predict(study, change(patients), draws=30)


def test_what_does_not_fit_is_said_with_the_patients_name(study: Study, patients: pd.DataFrame) -> None:
    third = patients["id"].unique()[2]
    mine = patients["id"] == third
    seen = mine & (patients["mdv"] == 0)
    wrong_unit = patients.assign(dv=patients["dv"].where(~seen, 100 * patients["dv"]))
    before, found = (
        predict(study, frame, times=[0.0, 24.0], draws=30).warnings for frame in (patients, wrong_unit)
    )
    assert set(before["kind"]) <= {"range"}
    found = found[found["kind"] != "range"]
    assert found["patient"].tolist() == [third]
    assert "times the highest plausible" in found["message"].iloc[0]
    assert "IU/mL" in found["message"].iloc[0]
    heavy = patients.assign(wt=patients["wt"].where(~mine, 300.0))
    found = predict(study, heavy, times=[0.0, 24.0], draws=30).warnings
    assert third in found.loc[found["message"].str.contains("weight 300 kg lies outside"), "patient"].tolist()
    plan = {"name": "huge", "doses": [{"amount": 90000, "ii": 12, "addl": 3}]}
    found = predict(study, patients[mine], plan, times=[0.0, 400.0], draws=30).warnings
    assert found["message"].str.contains("huge: a dose of 90000 IU lies outside").any()
    assert found["message"].str.contains("huge: 4 doses are more than the 1 of any subject").any()
    assert found["message"].str.contains("longer than any follow-up trained on").any()
    odd = patients.assign(
        dv=patients["dv"].where(~seen, patients["dv"] * np.where(patients["time"] > 12, 6, 1))
    )
    found = predict(study, odd, times=[0.0, 24.0], draws=30).warnings
    assert third in found["patient"].tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"times": [5.0]}, "two or more times"),
        ({"times": [-1.0, 5.0]}, "from 0"),
        ({"thresholds": [0.0]}, "expected levels above 0"),
        ({"draws": 3}, "draws is 3; expected a whole number from 20 to 100000"),
        ({"draws": 10**9}, "draws is 1000000000; expected a whole number from 20"),
        ({"thresholds": [1e308]}, "threshold is 1e\\+308: expected levels above 0"),
        ({"method": "nuts"}, "expected one of importance"),
        ({"regimen": [{"name": "given", "doses": [{"amount": 1}]}]}, "two of this name"),
    ],
)
def test_options_are_checked(
    options: dict[str, object], words: str, study: Study, patients: pd.DataFrame
) -> None:
    with pytest.raises(InputError, match=words):
        predict(study, patients, **options)  # type: ignore[arg-type]


def test_which_fits_are_meant_has_to_be_clear(outputs: Path) -> None:
    with pytest.raises(InputError, match=r"differ in objective.*by --objective fo or --objective mse"):
        predict(load_study(outputs), "patients.csv")
    with pytest.raises(InputError, match="no fit by vi; there are fits by fo, mse"):
        load_study(outputs, "vi")
    with pytest.raises(InputError, match="have no random effects"):
        predict(load_study(outputs, "mse"), "patients.csv")


def test_advice_leads_to_one_configuration(outputs: Path, data: Path, tmp_path: Path) -> None:
    """Where an objective does not tell them apart, a folder does, as it is printed."""
    for rate in ("0.1", "0.2"):
        config = configuration(
            data, tmp_path, "objective=fo", "network=truth", f"learning_rate={rate}", "epochs=2"
        )
        job = Job.build(config)
        job.run(list(job.plan().records.values()))
    for objective in (None, "fo"):
        with pytest.raises(InputError, match=r"differ in learning rate: .*choose one by --run ") as caught:
            predict(load_study(tmp_path, objective), "patients.csv")
        advised = str(caught.value).split("choose one by ")[1].split(" or ")
        assert len(advised) == 2
        rates = {load_study(way.removeprefix("--run ")).fits.config["learning_rate"] for way in advised}
        assert rates == {0.1, 0.2}
    with pytest.raises(InputError) as caught:
        predict(outputs, "patients.csv")
    (way, _) = str(caught.value).split("choose one by ")[1].split(" or ")
    assert load_study(outputs, way.removeprefix("--objective ")).fits.records[0].address.objective == "fo"


def test_ranges_without_the_training_data(outputs: Path, data: Path, study: Study) -> None:
    exact = study.ranges
    events = data / "simulation.parquet"
    moved = events.rename(data / "elsewhere.parquet")
    try:
        ranges = load_study(outputs, "fo").ranges
    finally:
        moved.rename(events)
    assert exact.note is None
    assert ranges.note is not None
    assert ranges.dose is None
    low, high = ranges.covariates["weight"]
    assert low <= exact.covariates["weight"][0] < exact.covariates["weight"][1] <= high


def command(study: Path, *arguments: str) -> list[Section]:
    parser = Parser("predict", "")
    add_options(parser)
    shown: list[Section] = []
    run(parser.read(["--run", str(study), "--objective", "fo", *arguments]), shown.append)
    return shown


def test_the_command_writes_tables_figures_and_what_they_are_for(
    outputs: Path, patients: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "patient one.csv"
    some = patients[patients["id"].isin(patients["id"].unique()[:2])]
    some.assign(height=170).to_csv(path, index=False)
    plan = tmp_path / "plan.yaml"
    plan.write_text("doses: [{amount: 1500, ii: 48, addl: 1}]")
    read, *shown = command(outputs, "--patient", str(path), "--regimen", str(plan), "--draws", "60")
    assert read.headers == ["patient", "doses", "in all, IU", "levels", "weight, kg", "vwf, IU/dL"]
    weight, vwf = some[["wt", "vwf"]].iloc[-1]
    assert read.cells[1][3:] == ["3", f"{weight:.4g}", f"{vwf:.4g}"]
    folder = outputs / "default" / "predictions" / "patient one_plan"
    assert [s.title.split(",")[0] for s in shown] == ["Parameters", "Levels", "Time above a level"]
    assert all(len(section.headers) == len(row) for section in shown for row in section.cells)
    assert [len(section.cells) for section in shown] == [2 * 5, 2 * 2 * 4, 2 * 2 * 3]
    said = capsys.readouterr()
    assert "For research use only, not for treatment decisions." in said.out
    assert "study default" in said.out
    assert "columns that were not used: height" in said.err
    for name in ("parameters", "curve", "thresholds", "above", "posteriors", "warnings"):
        metadata = pyarrow.parquet.read_schema(folder / f"{name}.parquet").metadata
        assert metadata[b"disclaimer"].startswith(b"For research use only")
        assert metadata[b"study"].startswith(b"study default")
    record = json.loads((folder / "predictions.json").read_text())
    assert len(record["fits"]) == 3
    assert record["trained_on"]["covariates"].keys() == {"weight", "vwf"}
    assert b"2 doses are more than the 1 of any subject" in metadata[b"warnings"]
    numbers = pd.read_csv(next(folder.glob("*.csv")))
    assert numbers["disclaimer"].str.startswith("For research use only").all()
    assert "doses are more than the 1 of any" in next(folder.glob("*.svg")).read_text()
    assert record["draws"] == 60
    figures = list(folder.glob("*.png"))
    assert len(figures) == 2
    assert all(f.read_bytes()[:4] == b"\x89PNG" for f in figures)
    # Without the regimen they go elsewhere; what holds something else is left alone. Titles have what rows
    # share.
    again = command(
        outputs, "--patient", str(path), "--draws", "60", "--times", "0:48:12", "--threshold", "2"
    )
    assert [s.title.split(",")[0] for s in again] == [
        "What was read",
        "Parameters",
        "doses as given: Levels",
        "doses as given: Time above a level",
    ]
    assert [len(s.headers) for s in again] == [len(s.cells[0]) for s in again]
    assert not any("regimen" in s.headers for s in again)
    curve = pd.read_parquet(folder.with_name("patient one") / "curve.parquet")
    assert sorted(curve["time"].unique()) == [0, 12, 24, 36, 48]
    assert json.loads((folder / "predictions.json").read_text()) == record
    with pytest.raises(InputError, match="holds no predictions"):
        command(outputs, "--patient", str(path), "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--patient is missing"),
        (
            ("--patient", "x.csv", "--times", "9:3:1"),
            "--times is '9:3:1'; expected FROM:TO:STEP, 0 <= FROM < TO",
        ),
        (("--patient", "x.csv"), "no such file"),
        (("--check", "--uses", "one"), "--uses is 'one'; expected a whole number from 0"),
        (("--check", "--uses", "-1"), "--uses is -1; expected a whole number from 0"),
        (("--check", "--times", "1,2"), "--times is not for --check"),
        (("--check", "--threshold", "1"), "--threshold is not for --check"),
        (("--patient", "x.csv", "--uses", "0,1"), "--uses is for --check alone"),
        (("--patient", "x.csv", "--draws", "1000000000"), "draws is 1000000000; expected a whole number"),
    ],
)
def test_the_command_says_what_it_needs(outputs: Path, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        command(outputs, *arguments)


def test_a_folder_is_a_study(outputs: Path, study: Study, patients: pd.DataFrame) -> None:
    folder = next((outputs / "default").rglob("objective=fo"))
    found = predict(folder, patients, draws=20)
    pd.testing.assert_frame_equal(found.curve, predict(study, patients, draws=20).curve)


def test_a_continued_regimen_that_levels_do_not_know_of_is_said(study: Study, patients: pd.DataFrame) -> None:
    for time, said in ((10, True), (300, False)):
        plan = {"name": "more", "start": "continue", "doses": [{"time": time, "amount": 1000}]}
        kinds = predict(study, patients, regimen=plan, draws=20).warnings["kind"]
        assert ("regimen" in set(kinds)) == said


def test_figures_of_names_that_files_cannot_hold(
    outputs: Path, patients: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "names.csv"
    names = dict(zip(patients["id"].unique(), ["Ωα", "a/1", "A-1", "Ωβ"], strict=True))
    patients.assign(id=patients["id"].map(names)).to_csv(path, index=False)
    command(outputs, "--patient", str(path), "--draws", "20", "--out", str(tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_a_notebook_shows_what_there_is(study: Study, patients: pd.DataFrame) -> None:
    found = predict(study, patients, draws=20, thresholds=())
    assert repr(study) == f"<{study.label}; .summary, .history, .effects>"
    assert repr(found).startswith(f"{study.label}. For research use only")
    assert f".curve: {len(found.curve)} rows" in repr(found)


@pytest.mark.slow
def test_the_interface_waits_for_torch_until_it_is_used() -> None:
    program = (
        "import sys, medcm_cli; assert 'torch' not in sys.modules; "
        "from medcm_cli import load_study, predict; assert 'torch' in sys.modules; print(predict.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "predict"
    assert "importance" in METHODS
