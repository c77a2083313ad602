"""Intervals by profiles and by importance sampling, beside scipy's and those of the curvature."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize

from medcm_cli.analysis.likelihood import Around, more_intervals
from medcm_cli.analysis.likelihood import _around as around_of
from medcm_cli.analysis.likelihood import _weighted_quantiles as weighted_quantiles
from medcm_cli.analysis.uncertainty import estimate, intervals
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import Settings, write_study
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.job import Job
from medcm_cli.study.restore import Restored, restore
from tests.helpers import configuration


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shaped")
    write_study(folder / "data", Settings(n=60, folds=0, seed=2))
    for name, *choices in (
        ("few", "split=blocks", "split.size=15", "fold=[1,2]", "objective=fo"),
        ("many", "split=all", "objective=fo"),
        ("vi", "split=all", "objective=vi", "epochs=3"),
        ("network", "split=all", "objective=fo", "epochs=3", "network=multi_branch"),
    ):
        job = Job.build(
            configuration(
                folder / "data", folder / "outputs", "epochs=60", "network=truth", f"variant={name}", *choices
            )
        )
        job.run(list(job.plan().records.values()))
    return folder / "outputs"


def batch(outputs: Path, variant: str) -> Restored:
    (found,) = restore([fit for fit in finished([outputs]) if fit[1].address.variant == variant])
    return found


def rows(restored: Restored, method: str, fit: int = 0, level: float = 0.95) -> pd.DataFrame:
    estimates = estimate(restored)
    if method == "hessian":
        found = intervals(restored, estimates, level)[fit]
    else:
        found = more_intervals(restored, estimates, level, method)[fit]
    assert isinstance(found, pd.DataFrame)
    return found[found["method"] == method].set_index("name")


def least(around: Around, place: int, fit: int, omega: float) -> float:
    """The loss of a fit where one omega is known."""
    others = [i for i in range(len(around.theta)) if i != place]

    def loss(free: np.ndarray) -> float:
        at = around.theta.clone()
        at[others, fit], at[place, fit] = torch.from_numpy(free), np.log(np.expm1(omega))
        own = at.new_zeros(0, len(around.subjects.fit))
        return float(around.subjects.losses(at, own, around.carried)[fit])

    start = around.theta[others, fit].numpy()
    return float(optimize.minimize(loss, start, method="Nelder-Mead", tol=1e-7).fun)


@pytest.mark.slow
def test_a_profile_rises_by_the_quantile_at_its_ends(outputs: Path) -> None:
    """omega_1 of a few subjects, of whom intervals are far from symmetric: the rest maximised by scipy."""
    restored = batch(outputs, "few")
    around = around_of(restored, estimate(restored), "profile")
    for fit in (0, 1):
        found = rows(restored, "profile", fit).loc["omega_1"]
        place = int(around.layout.rows(["omega"]).nonzero()[0, 0])

        for omega in found[["lower", "upper"]].to_numpy(np.float64):
            rise = least(around, place, fit, float(omega)) - float(around.loss[fit])
            assert rise == pytest.approx(3.8415, abs=0.02)


@pytest.mark.slow
def test_of_many_subjects_they_are_near_those_of_the_curvature(outputs: Path) -> None:
    restored = batch(outputs, "many")
    by_curvature = rows(restored, "hessian")
    for method in ("profile", "sir"):
        found = rows(restored, method).loc[by_curvature.index]
        np.testing.assert_allclose(found["estimate"], by_curvature["estimate"], rtol=1e-6)
        width = by_curvature["upper"] - by_curvature["lower"]
        for end in ("lower", "upper"):
            assert (abs(found[end] - by_curvature[end]) < 0.15 * width).all(), method
    np.testing.assert_allclose(rows(restored, "sir")["se"], by_curvature["se"], rtol=0.2)


def test_profile_and_sir_see_the_same_skewness(outputs: Path) -> None:
    restored = batch(outputs, "few")
    profile, sir = (rows(restored, method).loc["omega_1"] for method in ("profile", "sir"))
    ratio = [(of["upper"] - of["estimate"]) / (of["estimate"] - of["lower"]) for of in (profile, sir)]
    assert min(ratio) > 1.05


@pytest.mark.parametrize(
    ("variant", "message"),
    [("vi", "is for fo, foce and their like"), ("network", "the weights of a network")],
)
def test_what_has_no_profile_is_refused(outputs: Path, variant: str, message: str) -> None:
    restored = batch(outputs, variant)
    estimates = estimate(restored)
    for method in ("profile", "sir"):
        with pytest.raises(InputError, match=message):
            more_intervals(restored, estimates, 0.95, method)


def test_weighted_quantiles_are_those_of_repeated_values() -> None:
    """Of whole weights, those of the values as often as they count, midpoints on the line between."""
    values = torch.tensor([[[3.0, 1.0, 2.0, 5.0]]])
    weight = torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    low, high = weighted_quantiles(values, weight, (0.375, 0.625))[:, 0, 0].tolist()
    assert (low, high) == (2.0, 3.0)
    heavy = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    assert weighted_quantiles(values, heavy, (0.3, 0.9))[1, 0, 0] == 5.0
