"""The figure of posteriors: which fits and draws it shows, and that its ellipses hold what they should."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli.errors import InputError
from medcm_cli.report.figures import posteriors
from medcm_cli.runs.sweeps import collect
from tests.helpers import SHIFT, write_draws


@pytest.fixture
def folder(mixed_fits: Path) -> Path:
    where = mixed_fits / "default" / "posterior" / "joint"
    if not where.exists():
        write_draws(where, mixed_fits)
    return where


def test_draws_are_found_beside_the_fits_of_their_study(mixed_fits: Path, folder: Path) -> None:
    found = collect([mixed_fits])
    assert not found.missing  # the draws are not taken for a damaged fit
    (sweep,) = found.sweeps
    assert posteriors.folders(sweep) == [folder]
    drawn = posteriors.ellipses(sweep, folder)
    assert drawn is not None
    assert set(drawn.data["method"]) == {"FOCE", "VI", "NUTS"}  # mse has no random effects
    for text in (drawn.caption, drawn.alt):
        assert "VI" in text
    labels = [axis.get_xlabel() + axis.get_ylabel() for axis in drawn.figure.axes]
    assert sum("log scale" in label for label in labels) > 4


def test_numbers_are_those_of_the_draws_and_of_the_fits(mixed_fits: Path, folder: Path) -> None:
    (sweep,) = collect([mixed_fits]).sweeps
    drawn = posteriors.ellipses(sweep, folder)
    assert drawn is not None
    draws = pd.read_parquet(folder / "draws.parquet").groupby("position")[["eta_1", "eta_2"]]
    nuts = drawn.data[drawn.data["method"] == "NUTS"].drop_duplicates("position").set_index("position")
    np.testing.assert_allclose(nuts[["eta_1", "eta_2"]], draws.mean().loc[nuts.index], rtol=1e-9)
    np.testing.assert_allclose(nuts["cov_11"], draws.var()["eta_1"].loc[nuts.index], rtol=1e-9)
    vi = drawn.data[(drawn.data["method"] == "VI") & (drawn.data["fit"] == 1)].set_index("position")
    gap = nuts[["eta_1", "eta_2"]] - vi.loc[nuts.index, ["eta_1", "eta_2"]]
    np.testing.assert_allclose(gap, np.tile(SHIFT, (len(gap), 1)), rtol=1e-5)  # as the draws were made


def test_an_ellipse_holds_95_percent() -> None:
    cov = np.array([[0.04, 0.01], [0.01, 0.09]])
    outline = posteriors._outline(np.array([1.0, -2.0]), cov) - np.array([[1.0], [-2.0]])
    squared = np.einsum("ip,ij,jp->p", outline, np.linalg.inv(cov), outline)
    draws = np.random.default_rng(0).multivariate_normal([0, 0], cov, 100_000)
    inside = np.einsum("pi,ij,pj->p", draws, np.linalg.inv(cov), draws) < squared.min()
    assert np.ptp(squared) < 1e-9
    assert inside.mean() == pytest.approx(0.95, abs=0.003)


def test_damaged_draws_are_named(mixed_fits: Path, tmp_path: Path) -> None:
    (sweep,) = collect([mixed_fits]).sweeps
    with pytest.raises(InputError, match="holds no draws"):
        posteriors.ellipses(sweep, tmp_path)
