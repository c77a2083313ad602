"""What a cohort holds, against numbers counted by hand."""

from pathlib import Path

import pytest

from medcm_cli.data import describe, read_plain
from medcm_cli.errors import InputError

TABLE = """\
ID,TIME,EVID,AMT,RATE,ADDL,II,SS,OCC,DV,CENS,WT,VWF,NOTE
a,0,1,1000,,2,12,,1,,,70,100,first
a,12,0,,,,,,1,0.5,0,70,120,
a,30,0,,,,,,1,0.1,1,70,120,
a,0,4,500,250,,,,2,,,70,90,
a,5,0,,,,,,2,0.3,0,70,90,
b,0,1,800,200,,24,1,1,,,,150,
b,6,0,,,,,,1,0.4,0,,150,
c,0,1,600,,,,,1,,,60,80,
c,8,0,,,,,,1,0.7,0,60,80,
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "events.csv"
    file.write_text(TABLE)
    return file


def test_counts_and_spreads(path: Path) -> None:
    held = describe(read_plain(path))
    assert held["subjects"] == 3
    # a: 1000 three times and 500; b: 800, and not the earlier doses of its steady state; c: 600.
    assert held["doses"] == 6
    assert held["doses_per_subject"] == [1, 1, 4]
    assert held["amount_given"] == [800, 600, 3500]
    assert held["infusions_over_an_hour"] == 2
    assert held["modelled_durations"] == 0
    assert held["steady_states"] == 1
    assert held["resets"] == 1
    assert held["occasions"] == 2
    assert held["observations"] == 5
    assert held["observations_per_subject"] == [1, 1, 3]
    assert held["below_limit"] == 1
    assert held["level"] == pytest.approx([0.45, 0.3, 0.7])
    assert held["follow_up"] == [8, 6, 30]


def test_covariates_are_the_columns_with_numbers_that_have_no_other_use(path: Path) -> None:
    held = describe(read_plain(path))
    assert set(held["covariates"]) == {"WT", "VWF"}  # NOTE holds text
    assert held["covariates"]["WT"] == {"missing": pytest.approx(1 / 3), "values": [65, 60, 70]}
    assert held["covariates"]["VWF"]["missing"] == 0
    assert held["changing"] == ["VWF"]


def test_only_the_covariates_asked_for(path: Path) -> None:
    with pytest.raises(InputError, match="'WT'"):  # as a fit would read it: one is missing
        read_plain(path, wanted=["WT"])
    path.write_text(TABLE.replace(",,150,", ",65,150,"))
    assert list(read_plain(path, wanted=["wt"]).covariates) == ["WT"]
