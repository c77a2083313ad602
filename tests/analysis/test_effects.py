"""The true effects of covariates, beside what is said of them."""

import numpy as np
import pytest

from medcm_cli.analysis.effects import true_effects
from medcm_cli.haemophilia import cohorts
from medcm_cli.training.results import GRID_POINTS


def test_true_effects_are_the_simulators() -> None:
    covariates = {"weight": {"scale": 150, "reference": 70}, "vwf": {"scale": 350, "reference": 100}}
    truth = {"omega": [[0.037, 0.0113], [0.0113, 0.017]], "sigma": {}}
    frame = true_effects({"dataset": {"covariates": covariates, "truth": truth}})
    assert frame is not None
    of = dict(list(frame.groupby(["covariate", "parameter"])))
    weight = of["weight", "CL"]
    # docs/methods.md, "Truth of the simulation study"
    np.testing.assert_allclose(weight["relative"], (weight["x"] / 70) ** 0.75)
    np.testing.assert_allclose(of["weight", "V1"]["relative"], weight["x"] / 70)
    np.testing.assert_allclose(of["vwf", "V1"]["relative"], 1)
    assert len(weight) == GRID_POINTS
    other = {"omega": [[0.1, 0], [0, 0.1]], "sigma": {}}
    assert true_effects({"dataset": {"covariates": covariates, "truth": other}}) is None
    assert true_effects({"dataset": {"covariates": covariates, "truth": None}}) is None


def test_true_effects_of_a_cohort_are_one_at_the_reference() -> None:
    covariates = {"ffm": {"scale": 150, "reference": 60}, "vwf": {"scale": 350, "reference": 100}}
    dataset = {"covariates": covariates, "cohort": "prophylaxis", "truth": cohorts.truth_of("prophylaxis")}
    frame = true_effects({"dataset": dataset})
    assert frame is not None
    for (covariate, _), curve in frame.groupby(["covariate", "parameter"]):
        reference = float(covariates[str(covariate)]["reference"])
        assert np.interp(reference, curve["x"], curve["relative"]) == pytest.approx(1, abs=2e-3)
