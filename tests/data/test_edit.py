"""Event tables made from others: what is kept, what is moved, and the observations that are put in."""

import numpy as np
import pandas as pd
import pytest
import torch

from medcm_cli.data import EventTable, Format, Population, read_events
from medcm_cli.data.edit import copies, dose_corners, moved, observed_at, part, with_doses
from tests.helpers import make_events


@pytest.fixture
def events() -> EventTable:
    """Two subjects with a covariate that changes; one of them begins again."""
    frame = pd.DataFrame(
        {
            "id": ["a", "a", "a", "a", "b", "b"],
            "time": [0.0, 5.0, 30.0, 40.0, 0.0, 6.0],
            "evid": [1, 0, 4, 0, 1, 0],
            "amt": [10.0, 0.0, 20.0, 0.0, 30.0, 0.0],
            "dv": [np.nan, 1.0, np.nan, 2.0, np.nan, 3.0],
            "wt": [60.0, 60.0, 65.0, 65.0, 80.0, 80.0],
        }
    )
    return read_events(frame, {"weight": "wt"}, Format(over_time={"weight": "record"}))


def test_times_and_the_corners_of_doses_are_looked_at() -> None:
    events = make_events(2, doses=2)  # infusions of half an hour at 0 and 12 h
    times = np.array([0.0, 6.0, 20.0])
    found, place = observed_at(events, times, dose_corners(events))
    for subject in range(2):
        seen = found.clock[~found.is_dose & (found.subject == subject)]
        assert (np.diff(seen) >= 0).all()
        for wanted in (0, 0.5, 0.75, 1, 4.5, 6, 12, 12.5, 12.75, 18.5, 20):
            assert np.abs(seen - wanted).min() < 1e-5
        np.testing.assert_array_equal(seen[place[:, subject]], times)
    np.testing.assert_allclose(np.unique(dose_corners(found)), [0, 0.5, 12, 12.5], atol=1e-5)


def test_times_after_a_reset_belong_to_what_was_given_after_it() -> None:
    frame = pd.DataFrame(
        {
            "id": "a",
            "time": [0.0, 5.0, 30.0, 40.0],
            "evid": [1, 0, 4, 0],
            "amt": [10.0, 0.0, 20.0, 0.0],
            "dv": [np.nan, 1.0, np.nan, 2.0],
        }
    )
    events = read_events(frame, {}, Format(patients=True))
    times = np.array([0.0, 29, 30, 31])
    found, place = observed_at(events, times, dose_corners(events))
    seen = ~found.is_dose
    np.testing.assert_array_equal(found.time[seen][place[:, 0]], times)
    assert found.segment[seen][place[:, 0]].tolist() == [0, 0, 1, 1]
    # At the reset the first segment ends, and the second has begun.
    assert set(found.segment[seen & (found.time == 30)].tolist()) == {0, 1}
    assert (np.diff(found.clock[seen]) >= 0).all()


def test_some_subjects_are_as_they_were() -> None:
    events = make_events(5, ragged=True)
    some = part(events, np.array([1, 4]))
    assert some.ids == ("1", "4")
    for new, old in enumerate((1, 4)):
        np.testing.assert_array_equal(some.dv[some.subject == new], events.dv[events.subject == old])
        assert some.covariates["weight"][new] == events.covariates["weight"][old]


def test_copies_are_subjects_like_the_first(events: EventTable) -> None:
    """Each copy, cut out again, is the table that it was made of; so are its tensors."""
    several = copies(events, 3)
    assert len(several.ids) == len(set(several.ids)) == 6
    first = Population.from_events(events, torch.float64)
    for number in range(3):
        again = part(several, np.array([0, 1]) + 2 * number)
        np.testing.assert_array_equal(again.clock, events.clock)
        np.testing.assert_array_equal(again.reset_subject, events.reset_subject)
        assert again.regimes is not None
        assert events.regimes is not None
        np.testing.assert_array_equal(again.regimes.end, events.regimes.end)
        same = Population.from_events(again, torch.float64)
        torch.testing.assert_close(same.covariates["weight"], first.covariates["weight"])
        torch.testing.assert_close(same.dv, first.dv)


def test_all_of_a_subject_is_moved(events: EventTable) -> None:
    """Times between records stay; the other subject stays where it was."""
    later = moved(events, np.array([7.0, 0.0]))
    shift = np.where(events.subject == 0, 7.0, 0.0)
    np.testing.assert_allclose(later.time - events.time, shift)
    np.testing.assert_allclose(later.clock - events.clock, shift)
    np.testing.assert_allclose(later.reset_clock, events.reset_clock + 7)
    assert later.regimes is not None
    assert events.regimes is not None
    finite = np.isfinite(events.regimes.end)
    np.testing.assert_allclose(later.regimes.end[finite], events.regimes.end[finite] + 7)


def test_doses_take_the_place_of_others_or_come_on_top() -> None:
    """In order of subject and time, without the observations, and with the subject's own covariates."""
    events, others = make_events(2, doses=2), moved(make_events(2), np.array([6.0, 30.0]))
    for added, clock in ((False, [[6], [30]]), (True, [[0, 6, 12], [0, 12, 30]])):
        table = with_doses(events, others, added)
        doses = table.is_dose
        assert [table.clock[doses & (table.subject == number)].tolist() for number in (0, 1)] == clock
        np.testing.assert_array_equal(table.covariates["weight"], events.covariates["weight"])
