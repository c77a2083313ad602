"""Patients whose parameters vary between occasions: what their levels tell of each, and that a new one draws
a new kappa."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from medcm_cli import dose, load_study, predict
from medcm_cli.errors import InputError
from medcm_cli.model import RandomEffects
from medcm_cli.model.random_effects import PI
from medcm_cli.patients.results import Prediction
from medcm_cli.patients.study import Study
from medcm_cli.pk import one_compartment
from medcm_cli.study.job import Job
from tests.helpers import configuration
from tests.patients.known import certain

CL, V1, SD, SIGMA = 0.2, 2.0, 0.4, 1e-3
SEEN = 0.5, -0.3  # kappas of the patient's occasions
PLAN = {"name": "next", "start": "continue", "doses": [{"time": 200, "amount": 1000}]}


def at(hours: float, kappa: float | np.ndarray, amount: float = 1000.0) -> float | np.ndarray:
    """IU/dL so long after a dose."""
    found: float | np.ndarray = amount / V1 / 10 * np.exp(-CL * np.exp(kappa) / V1 * hours)
    return found


def patients() -> pd.DataFrame:
    """One who had two occasions, and one who comes for the first time and has no level."""
    rows = []
    for occasion, kappa in enumerate(SEEN, 1):
        begin = 100.0 * (occasion - 1)
        rows.append(("a", begin, 1, 1000.0, np.nan, occasion))
        rows += [("a", begin + h, 0, 0.0, float(at(h, kappa)) / 100, occasion) for h in (2.0, 8.0, 20.0)]
    rows.append(("b", 0.0, 1, 1000.0, np.nan, 1))
    frame = pd.DataFrame(rows, columns=["id", "time", "evid", "amt", "dv", "occ"])
    return frame.assign(wt=70.0, vwf=100.0)


@pytest.fixture(scope="module")
def study(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One compartment; between subjects next to nothing varies, and CL between occasions."""
    folder = tmp_path_factory.mktemp("occasions") / "outputs"
    job = Job.build(configuration(data, folder, "objective=fo", "network=truth", "epochs=2"))
    job.run(list(job.plan().records.values()))
    found = certain(load_study(folder), one_compartment(), CL=CL, V1=V1)
    fits = found.fits
    model = replace(fits.model, occasions=RandomEffects(("CL",), "diagonal", of=PI))
    like = fits.estimates["omega"]
    raw = {"pi": SD, "sigma": SIGMA}
    known = {name: torch.full_like(like, value + np.log(-np.expm1(-value))) for name, value in raw.items()}
    config = {**fits.config, "dataset": {**found.dataset, "bolus_duration": 0}}
    config["occasions"] = {"parameters": ["CL"]}
    ensemble = replace(fits, model=model, estimates={**fits.estimates, **known}, config=config)
    return replace(found, ensemble=ensemble)


def curve(found: Prediction, patient: str, regimen: str) -> pd.DataFrame:
    rows = found.curve[(found.curve["patient"] == patient) & (found.curve["regimen"] == regimen)]
    return rows.set_index("time")


@pytest.mark.parametrize("method", ["laplace", "importance"])
def test_each_occasion_has_its_own_and_a_new_one_draws_anew(study: Study, method: str) -> None:
    times = [5.0, 15.0, 105.0, 115.0, 205.0, 215.0]
    found = predict(study, patients(), regimen=PLAN, times=times, draws=1000, method=method)
    seen = curve(found, "a", "next")
    for time, kappa in ((5.0, SEEN[0]), (15.0, SEEN[0]), (105.0, SEEN[1]), (115.0, SEEN[1])):
        assert seen["median"][time] == pytest.approx(float(at(time % 100, kappa)), rel=0.02)
        assert seen["upper_90"][time] < 1.1 * seen["lower_90"][time]
    for time in (205.0, 215.0):
        for bound, share in (("lower_90", 0.95), ("median", 0.5), ("upper_90", 0.05)):
            kappa = SD * float(stats.norm.ppf(share))
            assert seen[bound][time] == pytest.approx(float(at(time - 200, kappa)), rel=0.06), bound


def test_who_has_no_level_has_the_prior_on_the_first_occasion_too(study: Study) -> None:
    found = predict(study, patients(), times=[5.0, 15.0], draws=1000)
    band = curve(found, "b", "given")
    for bound, share in (("lower_90", 0.95), ("upper_90", 0.05)):
        kappa = SD * float(stats.norm.ppf(share))
        assert band[bound][15.0] == pytest.approx(float(at(15.0, kappa)), rel=0.05)


def test_parameters_are_those_of_the_last_occasion(study: Study) -> None:
    found = predict(study, patients(), times=[5.0, 15.0], draws=200)
    rows = found.parameters[found.parameters["parameter"] == "CL"].set_index("patient")
    assert rows["median"]["a"] == pytest.approx(CL * np.exp(SEEN[1]), rel=0.03)
    assert {"eta_CL"} == {name for name in found.posteriors if str(name).startswith("eta_")}


@pytest.mark.parametrize("after", ["given", "steady"])
def test_a_dose_is_for_a_new_occasion(study: Study, after: str) -> None:
    """Its probability counts draws of kappa."""
    found = dose(
        study, patients(), "trough>=20 IU/dL", 0.5, [12.0], vial=100.0, most=30, after=after, draws=1000
    )
    rows = found.candidates[found.candidates["patient"] == "a"]
    for amount, probability in rows[["dose", "probability"]].to_numpy():
        if after == "steady":
            # A / (1 - exp(-k 12)) exp(-k 12) / V1 / 10 >= 20
            k = np.log1p(amount / V1 / 10 / 20) / 12
            want = float(stats.norm.cdf(np.log(k * V1 / CL) / SD))
            assert probability == pytest.approx(want, abs=0.03)
    assert rows["probability"].is_monotonic_increasing


def test_a_file_without_occasions_is_refused(study: Study) -> None:
    with pytest.raises(InputError, match="column 'OCC' is missing"):
        predict(study, patients().drop(columns="occ"), times=[5.0, 15.0], draws=20)
