"""Occasions of an event table: by a column, at times, after a gap; regimes that part with them; and the
occasion that a new regimen begins."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medcm_cli.data import EventTable, Format, Population, Rule, describe, read_events, with_occasions
from medcm_cli.data.edit import copies, moved, part, with_doses
from medcm_cli.errors import InputError

COLUMNS = ("ID", "TIME", "EVID", "AMT", "DV", "WT", "OCC")
ROWS: list[tuple[Any, ...]] = [
    ("a", 0, 1, 100, np.nan, 70, 1),
    ("a", 4, 0, np.nan, 5, 70, 1),
    ("a", 24, 2, np.nan, np.nan, 70, 1),
    ("a", 30, 1, 100, np.nan, 71, 2),
    ("a", 34, 0, np.nan, 5, 71, 2),
    ("a", 80, 1, 100, np.nan, 72, 5),
    ("a", 90, 0, np.nan, 5, 72, 5),
    ("b", 10, 1, 50, np.nan, 60, 3),
    ("b", 12, 0, np.nan, 5, 60, 3),
]
FRAME = pd.DataFrame(ROWS, columns=list(COLUMNS))
PLAIN: dict[str, str] = {}


def read(frame: pd.DataFrame, rule: Rule | None = None, covariates: bool = False) -> EventTable:
    rule = rule or Rule()
    over_time = {"weight": "record"} if covariates else {}
    how = Format(over_time=over_time, by_occasion=rule.by_column)
    columns = {"weight": "WT"} if covariates else PLAIN
    return with_occasions(read_events(frame, columns, how), rule)


def occasion_of(table: EventTable) -> list[int]:
    """From 0, of each row, by way of its regime."""
    assert table.regimes is not None
    assert table.regimes.occasion is not None
    starts = np.searchsorted(table.regimes.subject, table.subject)
    found = table.regimes.occasion[starts + table.regime]
    return [int(number) for number in found]


def test_a_column_parts_regimes_as_a_covariate_does() -> None:
    """A record's occasion holds since the record before it, of other events too, as in NONMEM; numbers that
    are not there are left out."""
    table = read(FRAME)
    assert table.regimes is not None
    assert occasion_of(table) == [0, 0, 1, 1, 2, 2, 0, 0]
    assert table.regimes.end.tolist() == [24, 34, np.inf, np.inf]
    assert describe(table)["occasions_per_subject"] == [2, 1, 3]
    population = Population.from_events(table, torch.float64)
    assert population.occasions == 3
    assert population.there[:, 0, :, 0].tolist() == [[1, 1], [1, 0], [1, 0]]


def test_without_occasions_nothing_is_parted() -> None:
    table = read_events(FRAME, PLAIN, Format())
    assert table.regimes is None
    population = Population.from_events(table, torch.float64)
    assert population.occasion is None
    assert population.there.shape == (1, 1, 2, 1)


@pytest.mark.parametrize(
    ("rule", "occasions", "ends"),
    [
        # What happens at the very time belongs to the new occasion; one without a record is one too.
        (Rule(times=(30.0, 50.0, 90.0)), [0, 0, 1, 1, 2, 3, 0, 0], [30, 50, 90, np.inf, np.inf]),
        (Rule(times=(2.0, 11.0)), [0, 1, 2, 2, 2, 2, 0, 1], [2, 11, np.inf, 11, np.inf]),
        (Rule(gap=40.0), [0, 0, 0, 0, 1, 1, 0, 0], [80, np.inf, np.inf]),
        (Rule(gap=30.0), [0, 0, 1, 1, 2, 2, 0, 0], [30, 80, np.inf, np.inf]),
    ],
)
def test_rules_on_time(rule: Rule, occasions: list[int], ends: list[float]) -> None:
    table = read(FRAME.drop(columns="OCC"), rule)
    assert occasion_of(table) == occasions
    assert table.regimes is not None
    assert table.regimes.end.tolist() == ends
    assert table.occasion.tolist() == [number + 1 for number in occasions]


@pytest.mark.parametrize("rule", [Rule(), Rule(times=(4.0, 34.0, 60.0)), Rule(gap=30.0)])
def test_covariates_keep_their_own_regimes(rule: Rule) -> None:
    """Every row has its weight and its occasion, whatever else parts its subject's record."""
    frame = FRAME.assign(WT=[70, 71, 71, 71, 72, 72, 73, 60, 61])
    table, alone = read(frame, rule, covariates=True), read(frame, rule)
    assert table.regimes is not None
    starts = np.searchsorted(table.regimes.subject, table.subject)
    weights = table.regimes.covariates["weight"][starts + table.regime]
    assert weights.tolist() == [70, 71, 71, 72, 72, 73, 60, 61]
    assert occasion_of(table) == occasion_of(alone)
    assert (np.diff(table.regimes.end)[np.diff(table.regimes.subject) == 0] >= 0).all()


def test_additional_doses_and_resets_begin_occasions() -> None:
    """Of a gap: a dose of ADDL after it, a dose after a reset; time since the end of an infusion."""
    frame = pd.DataFrame(
        [
            ("a", 0, 1, 100, 0, 2, 48, np.nan),
            ("a", 100, 0, 0, 0, 0, 0, 5),
            ("b", 0, 1, 100, 2.5, 0, 0, np.nan),  # over 40 h
            ("b", 60, 1, 100, 0, 0, 0, np.nan),
            ("b", 61, 0, 0, 0, 0, 0, 5),
            ("b", 62, 4, 100, 0, 0, 0, np.nan),
            ("b", 63, 0, 0, 0, 0, 0, 5),
        ],
        columns=["ID", "TIME", "EVID", "AMT", "RATE", "ADDL", "II", "DV"],
    )
    table = read(frame, Rule(gap=40.0))
    assert occasion_of(table) == [0, 1, 2, 2, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (FRAME.drop(columns="OCC"), r"column 'OCC' is missing; .*occasions.column, times or gap"),
        (FRAME.assign(OCC=[1, 1, 1, 2, 1, 3, 3, 1, 1]), r"column 'OCC': 1 comes after a later occasion"),
        (FRAME.assign(OCC=[1, 1, 1, 2, np.nan, 3, 3, 1, 1]), r"column 'OCC': is missing; expected the occ"),
        (FRAME.assign(OCC=1.5), r"column 'OCC': is 1.5; expected a whole number from 1"),
    ],
)
def test_a_column_that_makes_no_sense_is_refused(frame: pd.DataFrame, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(frame)


def test_times_of_a_file_that_begins_again_are_refused() -> None:
    rows = [("a", 0, 1, 100, np.nan), ("a", 30, 0, 0, 5), ("a", 0, 4, 100, np.nan), ("a", 5, 0, 0, 5)]
    frame = pd.DataFrame(rows, columns=["ID", "TIME", "EVID", "AMT", "DV"])
    with pytest.raises(InputError, match=r"time begins again at a reset of subject 'a'"):
        read(frame, Rule(times=(24.0,)))
    assert occasion_of(read(frame, Rule(gap=24.0))) == [0, 0, 1, 1]


def test_tables_that_are_edited_keep_their_occasions() -> None:
    table = read(FRAME, covariates=True)
    assert occasion_of(part(table, np.array([1]))) == [0, 0]
    assert occasion_of(copies(table, 2)) == 2 * occasion_of(table)
    assert occasion_of(moved(table, np.array([3.0, 1.0]))) == occasion_of(table)


@pytest.mark.parametrize("covariates", [False, True])
def test_a_new_regimen_begins_an_occasion(covariates: bool) -> None:
    """Of each subject, after all that it has had: from its first dose on top of the others, or alone."""
    table = read(FRAME, covariates=covariates)
    doses = read_events(
        pd.DataFrame({"ID": ["a", "a", "b"], "TIME": [100.0, 124, 100], "AMT": 10.0, "DV": np.nan}),
        PLAIN,
        Format(patients=True),
    )
    added = with_doses(table, doses, added=True)
    assert occasion_of(added) == [0, 1, 2, 3, 3, 0, 1]
    alone = with_doses(table, doses, added=False)
    population = Population.from_events(alone, torch.float64)
    assert population.occasions == 4
    assert population.occasion is not None
    assert population.occasion[:, 0, :, 0].tolist() == [[3, 1]]


def test_patients_have_the_occasions_that_are_to_come() -> None:
    table = read_events(FRAME.drop(columns="OCC"), PLAIN, Format())
    later = with_occasions(table, Rule(times=(50.0, 200.0)), patients=True)
    assert later.regimes is not None
    assert later.regimes.end.tolist() == [50, 200, np.inf, 50, 200, np.inf]
    assert occasion_of(later) == [0, 0, 0, 0, 1, 1, 0, 0]


def test_too_many_occasions_are_refused() -> None:
    rows = 1200
    frame = pd.DataFrame({"ID": "a", "TIME": np.arange(rows) * 2.0, "AMT": 1.0, "DV": np.nan, "EVID": 1})
    frame.loc[rows - 1, ["EVID", "AMT", "DV"]] = [0, np.nan, 1.0]
    with pytest.raises(InputError, match="has 1199 occasions; expected at most 1000"):
        read(frame, Rule(gap=1.0))


def test_a_column_may_have_another_name() -> None:
    frame = FRAME.rename(columns={"OCC": "VISIT"})
    events = read_events(frame, PLAIN, Format(columns={"occ": "VISIT"}, by_occasion=True))
    assert occasion_of(events) == occasion_of(read(FRAME))
