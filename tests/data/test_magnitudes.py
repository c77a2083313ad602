"""Levels that hardly can be: told in one line, or refused where no unit could make them."""

from dataclasses import replace

import numpy as np
import pytest

from medcm_cli.data import apparent_volume, units_assumed, with_magnitudes
from medcm_cli.errors import InputError
from medcm_cli.runs import Units
from tests.helpers import make_events

IU = Units("IU/dL", 100.0, "IU/mL", "IU")
MG = Units("mg/L", 1.0, "mg/L", "mg")


@pytest.mark.parametrize(
    ("factor", "units", "words"),
    [
        (1, IU, ""),  # 2000 IU in 4 L
        (10, IU, ""),
        (1000, IU, "is that of less than 0.1 L with the 2000 IU given by then"),
        (1e-6, IU, "is that of more than 100000 L with the 2000 IU given by then"),
        (1, Units("ng/mL", 1.0, "ng/mL", "mg"), "is that of more than 100000 L with the 2000 mg given"),
        (1000, MG, ""),
        (1, Units("%", 1.0, "%", "mg"), ""),  # nothing is known of it
    ],
)
def test_levels_are_compared_with_what_was_given(factor: float, units: Units, words: str) -> None:
    events = make_events(4)
    told = with_magnitudes(replace(events, dv=events.dv * factor), units).notes
    assert len(told) == bool(words)
    if words:
        assert words in told[0]
        assert "(4 of 4 subjects)" in told[0]
        assert "dataset.units=" in told[0]
        assert "\n" not in told[0]


@pytest.mark.parametrize(("units", "volume"), [(IU, 4.0), (MG, 4000.0), (Units("%", 1.0, "%", "mg"), None)])
def test_the_volume_that_levels_are_those_of(units: Units, volume: float | None) -> None:
    events = make_events(3)  # each 2000 at once
    levels = np.array([0.1, 1.0, 0.5])[events.subject]
    found = apparent_volume(replace(events, dv=np.where(events.is_dose, np.nan, levels)), units)
    assert found == (pytest.approx(volume) if volume else pytest.approx(np.nan, nan_ok=True))


def test_units_of_which_nothing_was_said_are_told() -> None:
    told = units_assumed("a.csv", Units("ng/mL", 1.0, "ng/mL", "mg", "min"))
    assert told.startswith(
        "a.csv: TIME is taken as min, AMT as mg and DV as ng/mL; say others by dataset.units="
    )


def test_one_late_or_low_level_is_nothing_to_tell() -> None:
    events = make_events(5)
    low = events.dv.copy()
    low[-1] *= 1e-7
    assert with_magnitudes(replace(events, dv=low), IU).notes == ()


def test_a_single_level_that_is_too_high_is_told() -> None:
    events = make_events(5)
    high = events.dv.copy()
    high[-1] = 158
    (line,) = with_magnitudes(replace(events, dv=high), IU).notes
    assert "the level 158 IU/mL of '4'" in line
    assert "(1 of 5 subjects)" in line


def test_what_is_denser_than_matter_is_refused() -> None:
    events = make_events(2)
    with pytest.raises(InputError, match="denser than any matter"):
        with_magnitudes(replace(events, dv=events.dv * 1e9), MG)
