"""The retrospective check against predictions made one by one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli import load_study, predict
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.patients.retrospective import check, summarise
from medcm_cli.patients.study import Study
from medcm_cli.study.job import Job
from tests.helpers import SMALL, configuration


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("retrospective")
    write_study(folder / "data", SMALL)
    choices = ("objective=fo", "network=truth", "fold=[1,2]")
    job = Job.build(configuration(folder / "data", folder / "outputs", *choices))
    job.run(list(job.plan().records.values()))
    return load_study(folder / "outputs")


def patients(study: Study) -> pd.DataFrame:
    frame = pd.read_parquet(study.fits.records[0].data["source"])
    return frame[frame["id"].isin(frame["id"].unique()[:5])]


def test_it_is_what_predict_says_of_the_first_levels(study: Study) -> None:
    frame = patients(study)
    found = check(study, frame, draws=200).levels
    rank = frame.groupby("id").cumcount()  # 0 is the dose
    for used in (0, 1, 2):
        later = frame[rank > used]
        assert (found["used"] == used).sum() == len(later)
        one = later[later["id"] == later["id"].iloc[0]]
        first = frame[(frame["id"] == one["id"].iloc[0]) & (rank <= used)]
        times = np.r_[0.0, one["time"]]
        expected = predict(study, first, times=times, draws=200).curve.iloc[1:]
        mine = found[(found["used"] == used) & (found["patient"] == one["id"].iloc[0])]
        np.testing.assert_allclose(mine["observed"], 100 * one["dv"], rtol=1e-6)
        np.testing.assert_allclose(mine["typical"], expected["typical"], rtol=1e-4)
        np.testing.assert_allclose(mine["lower_90"], expected["measured_lower_90"], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(mine["median"], expected["measured_median"], rtol=1e-3, atol=1e-3)


def test_a_subject_is_predicted_by_fits_that_have_not_seen_it(study: Study) -> None:
    frame = pd.read_parquet(study.fits.records[0].data["source"])
    ids = frame["id"].unique()
    folder = Path(study.fits.records[0].data["source"]).parent
    drawn = [set(pd.read_csv(folder / f"train_set_{fold}.csv")["idxs"]) for fold in (1, 2)]
    found = check(study, draws=100)
    seen_by_all = {ids[number - 1] for number in drawn[0] & drawn[1]}
    assert set(found.levels["patient"]) == set(ids) - seen_by_all
    # One that only the second fit has not seen is predicted as by that fit alone.
    number = min(drawn[0] - drawn[1])
    mine = found.levels.query("patient == @ids[@number - 1]").reset_index(drop=True)
    alone = load_study(study.fits.folders[1])
    other = check(alone, frame[frame["id"] == ids[number - 1]], draws=50).levels
    pd.testing.assert_frame_equal(mine, other, rtol=1e-4)


def test_the_summary_counts() -> None:
    levels = pd.DataFrame(
        {
            "patient": ["a", "a", "b", "a"],
            "used": [0, 0, 0, 1],
            "observed": [10.0, 4.0, 8.0, 4.0],
            "typical": [12.0, 4.0, 8.0, 4.0],
            "lower_90": [5.0, 5.0, 5.0, 1.0],
            "lower_50": [9.0, 5.5, 6.0, 3.0],
            "median": [11.0, 7.0, 8.0, 5.0],
            "upper_50": [12.0, 8.0, 9.0, 6.0],
            "upper_90": [20.0, 9.0, 10.0, 7.0],
            "sd": [1.0, 2.0, 2.0, 3.0],
            "last": [False, True, True, True],
            "levels_of_patient": [2, 2, 1, 2],
        }
    )
    found = summarise(levels)
    assert found["levels"].tolist() == [3, 1]
    assert found["subjects"].tolist() == [2, 1]
    np.testing.assert_allclose(found["rmse"], [np.sqrt((1 + 9 + 0) / 3), 1])
    np.testing.assert_allclose(found["rmse_expected"], [np.sqrt(3), 3])
    np.testing.assert_allclose(found["bias"], [(1 + 3 + 0) / 3, 1])
    np.testing.assert_allclose(found["rmse_typical"], [np.sqrt(4 / 3), 0])
    np.testing.assert_allclose(found["coverage_90"], [2 / 3, 1])
    np.testing.assert_allclose(found["coverage_50"], [2 / 3, 1])
    np.testing.assert_allclose(found["rmse_last"], [3, 1])  # the same level, with none and with one used


def test_what_cannot_be_checked_is_said(study: Study) -> None:
    with pytest.raises(InputError, match="nobody has a level after the first 3"):
        check(study, patients(study), uses=[3])
    with pytest.raises(InputError, match="expected numbers of levels"):
        check(study, uses=[])
