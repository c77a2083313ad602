"""Bootstrap and jackknife from fits of resampled subjects, beside what the information says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli.analysis.resampling import resampled
from medcm_cli.analysis.uncertainty import AT_BOUNDARY, estimate, intervals
from medcm_cli.commands.standard_errors import report
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import Settings, write_study
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.job import Job
from medcm_cli.study.restore import Restored, restore
from tests.helpers import configuration

SUBJECTS = 40
SPLITS = {"split=all": 1, "split=deletion": SUBJECTS, "split=bootstrap": 60}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fit of everyone, one without each subject, and 60 of as many subjects drawn with replacement."""
    folder = tmp_path_factory.mktemp("resampled")
    write_study(folder / "data", Settings(n=SUBJECTS, folds=0, seed=2))
    for split, folds in SPLITS.items():
        more = ["split.size=null"] if split == "split=bootstrap" else []
        choices = [
            split,
            f"fold={list(range(1, folds + 1))}",
            "objective=fo",
            "network=truth",
            "epochs=60",
            f"variant={split[6:]}",
            *more,
        ]
        job = Job.build(configuration(folder / "data", folder / "outputs", *choices))
        job.run(list(job.plan().records.values()))
    return folder / "outputs"


def batch(outputs: Path, split: str) -> Restored:
    (found,) = restore(
        [fit for fit in finished([outputs]) if fit[1].config["split"]["_target_"].endswith(split)]
    )
    return found


@pytest.fixture(scope="module")
def by_information(outputs: Path) -> pd.DataFrame:
    whole = batch(outputs, "all_subjects")
    (frame,) = intervals(whole, estimate(whole), 0.95)
    assert isinstance(frame, pd.DataFrame)
    return frame[frame["method"] == "sandwich"].set_index("name")


@pytest.mark.parametrize(("method", "split"), [("jackknife", "deletion"), ("bootstrap", "bootstrap")])
def test_standard_errors_are_near_those_of_the_information(
    outputs: Path, by_information: pd.DataFrame, method: str, split: str
) -> None:
    """60 resamples know an sd to 9 %; 40 subjects are few for the sandwich."""
    found = resampled(batch(outputs, split), method, 0.95)
    rows = found.intervals.set_index("name").loc[by_information.index]
    np.testing.assert_allclose(rows["se"], by_information["se"], rtol=0.35)
    np.testing.assert_allclose(rows["estimate"], by_information["estimate"], rtol=0.15)
    assert ((rows["lower"] < rows["estimate"]) & (rows["estimate"] < rows["upper"])).all()
    assert found.used + found.dropped == {"jackknife": SUBJECTS, "bootstrap": 60}[method]
    assert found.dropped <= 3


def test_influence_is_cooks_distance(outputs: Path) -> None:
    """By numpy from the fits' own optima, log and Fisher's z; their squares add up to what they must."""
    fits = batch(outputs, "deletion")
    influence = resampled(fits, "jackknife", 0.95).influence
    assert influence is not None
    values = estimate(fits).quantities.value.numpy()
    steps = values - values.mean(1, keepdims=True)
    covariance = (SUBJECTS - 1) / SUBJECTS * steps @ steps.T
    expected = np.sqrt(np.diag(steps.T @ np.linalg.inv(covariance) @ steps))
    ids = [fits.problem.events.ids[record.address.fold - 1] for record in fits.records]
    by_id = influence.set_index("subject").loc[ids]
    np.testing.assert_allclose(by_id["cook"], expected, rtol=1e-8)
    np.testing.assert_allclose(by_id["omega_1"], steps[0] / np.sqrt(covariance[0, 0]), rtol=1e-8)
    total = len(values) * SUBJECTS / (SUBJECTS - 1)
    assert (influence["cook"] ** 2).sum() == pytest.approx(total)
    assert influence["cook"].is_monotonic_decreasing


def test_bootstrap_intervals_are_percentiles(outputs: Path) -> None:
    fits = batch(outputs, "bootstrap")
    rows = resampled(fits, "bootstrap", 0.9).intervals
    at = estimate(fits).quantities
    values = at.back(at.value).numpy()
    kept = [fault in ("", AT_BOUNDARY) for fault in estimate(fits).faults]
    np.testing.assert_allclose(rows["se"][:2], values[:2, kept].std(1, ddof=1))
    # Quantiles between two resamples lie between them on either scale.
    low = np.quantile(values[:2, kept], 0.05, axis=1)
    np.testing.assert_allclose(rows["lower"][:2], low, rtol=0.02)


def test_a_report_writes_one_table_for_all(outputs: Path) -> None:
    found = report([outputs], "jackknife", 0.95)
    shown, influential = found.sections
    assert "jackknife" in shown.title
    assert len(influential.cells) == 10
    (table,) = outputs.rglob("influence.csv")
    assert len(pd.read_csv(table)) == SUBJECTS
    assert len(found.skipped) == 61  # of the other splits
    assert all("--method jackknife is of fits with split=deletion" in line for line in found.skipped)


def test_few_fits_are_refused(outputs: Path) -> None:
    fits = [fit for fit in finished([outputs]) if fit[1].config["split"]["_target_"].endswith("deletion")]
    (few,) = restore(fits[:5])
    with pytest.raises(InputError, match="5 fits of other subjects that have an optimum: expected 20"):
        resampled(few, "jackknife", 0.95)
