"""What is said of patients, regimens and fits that are not as others: on numbers made by hand."""

from dataclasses import replace

import numpy as np
import torch

from medcm_cli.patients.plausibility import odd_fits
from medcm_cli.patients.ranges import Ranges, outside
from tests.helpers import make_events


def test_what_lies_outside_is_named_once_for_each_patient() -> None:
    events = make_events(3, doses=2)  # 2000 IU at 0 and 12 h
    events.covariates["weight"][:] = [50.0, 90.0, 120.0]
    events.covariates["vwf"][:] = 100.0
    ranges = Ranges(
        {"weight": (60.0, 100.0), "vwf": (50.0, 200.0)}, (500.0, 1500.0), (1.0, 2.0), (24.0, 48.0)
    )
    ranges = replace(ranges, units={"weight": "kg", "vwf": "-", "dose": "mg"})
    found = outside(ranges, events, None, 0.0)
    assert found["patient"].tolist() == ["0", "2"]
    assert found["message"][0] == "weight 50 kg lies outside the 60 to 100 kg trained on"
    found = outside(ranges, events, "daily", 72.0)
    assert found["patient"].tolist() == ["0", "1", "2", ""]
    assert found["message"][0] == "daily: a dose of 2000 mg lies outside the 500 to 1500 mg trained on"
    assert "72 h is longer than any follow-up trained on, 48 h" in found["message"][3]
    single = outside(replace(ranges, dose=(100.0, 100.0)), events, "daily", 0.0)
    assert single["message"][0].endswith("lies outside the 100 mg trained on")
    found = outside(ranges, events, "daily", np.array([20.0, 72.0, 96.0]))
    late = found[found["message"].str.contains("follow-up")]
    assert late["patient"].tolist() == ["1", "2"]  # nothing of another's is said of the first
    assert late["message"].str.contains("72 h|96 h").all()
    unknown = Ranges({}, None, None, None)
    assert outside(unknown, events, None, 0.0).empty
    assert outside(unknown, events, "daily", 1e6).empty


def test_fits_that_went_astray_are_counted() -> None:
    cl = torch.from_numpy(np.tile([0.2, 0.21, 0.19, 1e-8, 0.2], (1, 4, 1)))
    found = odd_fits({"CL": cl, "V1": torch.ones(1, 4, 5)})
    assert len(found) == 1
    assert found["message"][0].startswith("1 of 5 fits have a CL more than 10 times off")
