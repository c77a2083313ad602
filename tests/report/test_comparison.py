"""Methods compared: intervals and paired differences against scipy's, over what is independent."""

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medcm_cli.report import comparison, findings, intervals
from medcm_cli.report.comparison import Comparison, Measure, compare
from medcm_cli.report.section import decimals
from medcm_cli.runs import Address, Record

RMSE = Measure("rmse", "RMSE", "ng/mL")
KL = Measure("kl", "KL", "nats", ratio=True)
DATASET: dict[str, Any] = {"level_unit": "ng/mL", "level_scale": 1}


def invented(folds: int, replicates: int, seed: int = 0, nested: bool = False) -> pd.DataFrame:
    """Fits by a, b and c, of which b is a little and c far worse than a in each fold."""
    g = np.random.default_rng(seed)
    rows = []
    for fold in range(1, folds + 1):
        difficulty = g.normal(0, 5)
        for replicate in range(1, replicates + 1):
            for label, worse in (("a", 0.0), ("b", 0.1), ("c", 4.0)):
                rmse = 20 + difficulty + worse + g.normal(0, 0.3)
                outer = {"outer": (fold - 1) // 2 + 1 if nested else None}
                place = {"label": label, "fold": fold, "replicate": replicate} | outer
                rows.append(place | {"rmse": rmse, "kl": math.exp(g.normal(worse, 1)), "level_unit": "ng/mL"})
    return pd.DataFrame(rows)


def compared(fits: pd.DataFrame, measure: Measure = RMSE) -> Comparison:
    found = compare(fits, measure)
    assert found is not None
    return found


def cells(fits: pd.DataFrame, label: str, measure: str, by: str) -> np.ndarray:
    return fits[fits["label"] == label].groupby(by)[measure].mean().to_numpy()


@pytest.mark.parametrize(
    ("folds", "replicates", "nested", "by", "base"),
    [
        (6, 3, False, "fold", "6 folds"),
        (1, 4, False, "replicate", "4 replicates"),
        (6, 1, True, "outer", "3 outer shuffles"),
    ],
)
def test_intervals_are_those_of_scipy_over_what_is_independent(
    folds: int, replicates: int, nested: bool, by: str, base: str
) -> None:
    fits = invented(folds, replicates, nested=nested)
    found = compared(fits)
    assert [mean.label for mean in found.means] == ["a", "b", "c"]
    for mean in found.means:
        values = cells(fits, mean.label, "rmse", by)
        ends = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (mean.low, mean.high) == pytest.approx((ends.low, ends.high))
        assert mean.value == pytest.approx(fits[fits["label"] == mean.label]["rmse"].mean())
        assert mean.base == base
        assert mean.fits == folds * replicates
    best = found.best.label
    assert found.pairs == 3
    for label, apart in found.differences.items():
        ours, others = cells(fits, label, "rmse", by), cells(fits, best, "rmse", by)
        ends = stats.ttest_rel(ours, others).confidence_interval(1 - 0.05 / 3)
        assert (apart.low, apart.high) == pytest.approx((ends.low, ends.high))
        assert apart.value == pytest.approx(ours.mean() - others.mean())


def test_pairing_finds_what_the_spread_between_folds_hides() -> None:
    found = compared(invented(6, 2))
    assert found.best.label in ("a", "b")
    assert found.differences["c"].distinguishable is True
    other = "b" if found.best.label == "a" else "a"
    assert found.differences[other].distinguishable is False
    worst = next(mean for mean in found.means if mean.label == "c")
    assert worst.low < found.best.high  # the intervals of the means overlap


def test_what_spreads_over_powers_of_ten_is_compared_by_ratios() -> None:
    fits = invented(8, 1)
    found = compared(fits, KL)
    logs = {label: np.log(cells(fits, label, "kl", "fold")) for label in "abc"}
    for mean in found.means:
        assert mean.value == pytest.approx(stats.gmean(cells(fits, mean.label, "kl", "fold")))
    ratio = found.differences["c"]
    ends = stats.ttest_rel(logs["c"], logs[found.best.label]).confidence_interval(1 - 0.05 / 3)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
    fits.loc[0, "kl"] = 0.0  # has no logarithm
    assert not compared(fits, KL).ratio


def test_one_fit_has_no_interval_and_no_verdict() -> None:
    found = compared(invented(1, 1))
    assert all(math.isnan(mean.low) and mean.base == "1 fit" for mean in found.means)
    assert [apart.distinguishable for apart in found.differences.values()] == [None, None]
    section = intervals.table(found)
    assert section.headers[4:] == [
        "95 % interval, ng/mL",
        f"Difference from {found.best.label}, ng/mL",
        "Joint 95 % interval, ng/mL",
        "Distinguishable",
    ]
    assert all(row[4] == row[6] == "-" and row[2] == "1 fit" for row in section.cells)
    said = findings.verdict(found)
    assert "there is no interval" in said
    assert "Without an interval, so that it cannot be told: " in said
    assert " to " not in said


def test_fits_that_only_one_method_completed_make_no_difference() -> None:
    fits = invented(4, 2)
    lone = fits[~((fits["label"] == "c") & (fits["fold"] > 2))]
    apart = compared(lone).differences["c"]
    both = fits[fits["fold"] <= 2]
    assert apart.units == 2
    best = compared(lone).best.label
    expected = cells(both, "c", "rmse", "fold") - cells(both, best, "rmse", "fold")
    assert apart.value == pytest.approx(expected.mean())
    none = fits[(fits["label"] != "c") == (fits["fold"] <= 2)]  # no fold of both
    assert compared(none).differences["c"].units == 0
    assert "no fit of the same fold" in findings.verdict(compared(none))


def test_the_best_alone_and_nothing_at_all() -> None:
    fits = invented(3, 1)
    said = findings.verdict(compared(fits[fits["label"] == "b"]))
    assert said.startswith("Only b has it")
    assert compare(fits, Measure("sigma_mae", "", "")) is None
    assert compare(fits.assign(rmse=np.nan), RMSE) is None


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("rmse", [6.81, 7.2], 2),
        ("objective_value", [-905.3, -15812.0], 1),
        ("objective_value", [0.00302, 0.011], 5),  # a mean squared error in the data's unit
        ("objective_value", [0.00302, 111.0], 1),
        ("kl", [2.0, 3000.0], 1),
        ("omega_1", [0.1, math.nan], 3),
        ("rho_21", [0.0], 3),
    ],
)
def test_numbers_have_the_decimals_of_the_tables(name: str, values: list[float], expected: int) -> None:
    assert decimals(name, *values) == expected


def test_differences_have_the_decimals_of_the_means_and_words_that_do_not_contradict_them() -> None:
    """Also where there is no interval; of a method whose mean over more folds is higher, but which is lower
    in the folds of the best."""
    fits = invented(4, 1)
    best = compared(fits).best.label
    fits.loc[(fits["label"] == best) & (fits["fold"] == 1), "rmse"] = 1.0
    fits.loc[(fits["label"] != best) & (fits["fold"] == 1), "rmse"] = 0.5
    lone = fits[(fits["label"] != best) | (fits["fold"] == 1)]
    found = compared(lone)
    assert found.best.label == best
    said = findings.verdict(found)
    assert said.count("(0.50 ng/mL less in the same folds)") == 2
    assert [row[5] for row in intervals.table(found).cells if row[0] != best] == ["-0.50", "-0.50"]
    ratios = compared(lone.assign(kl=lone["rmse"]), KL)
    assert findings.verdict(ratios).count("(0.50 times as much in the same folds)") == 2
    assert [intervals.ratio_text(value) for value in (160778.0, 110.3, 0.0751)] == ["160000", "110", "0.075"]


# -- what can be compared --------------------------------------------------------------------------


def record(objective: str, fold: int = 1, **values: Any) -> Record:
    address = Address("s", "d", objective, "additive", 0.1, "default", fold, 1)
    config = {"dataset": DATASET, "split": {"_target_": "x"}, "objective": {"_target_": "y"}}
    held = Record("complete", address, "0", config, {"fingerprint": "1"}, None, 0, {}, described={})
    return dataclasses.replace(held, **values)


def rows(records: list[Record]) -> pd.DataFrame:
    frame = [dataclasses.asdict(one.address) | {"status": one.status, "rmse": 1.0} for one in records]
    return pd.DataFrame(frame)


def test_fits_of_other_data_or_folds_are_not_compared() -> None:
    alike = [record("vi"), record("fo"), record("fo", 2)]
    (one,) = comparison.comparable(rows(alike), alike)
    assert list(one["label"]) == ["FO", "FO", "VI"]
    config = alike[0].config
    for changed in (
        {"data": {"fingerprint": "2"}},
        {"config": config | {"split": {"_target_": "x", "size": 6}}},
        {"config": config | {"dataset": DATASET | {"keep": {"sex": "F"}}}},
        {"config": config | {"dataset": DATASET | {"level_unit": "mg/L"}}},
    ):
        other = [*alike, record("foce", **changed)]
        sets = comparison.comparable(rows(other), other)
        assert sorted(sorted(set(fits["label"])) for fits in sets) == [["FO", "VI"], ["FOCE"]]
        assert any("not compared with one another" in line for line in findings.limits(other, sets_of(other)))


def sets_of(records: list[Record]) -> list[pd.DataFrame]:
    return comparison.comparable(rows(records), records)


def test_values_are_compared_within_an_objective_with_its_options_alone() -> None:
    def fit(objective: str, error: str, **options: Any) -> Record:
        one = record(objective)
        config = one.config | {"objective": {"_target_": "y", "learning_rate": 0.1} | options}
        return dataclasses.replace(one, address=dataclasses.replace(one.address, error=error), config=config)

    held = [fit("fo", "additive"), fit("fo", "combined", learning_rate=0.2), fit("vi", "additive")]
    ((measure, labels),) = comparison.of_one_objective(held)
    assert labels == ["FO, additive", "FO, combined"]
    assert measure.title == "objective value of FO"
    held[1] = fit("fo", "combined", samples=2)
    assert comparison.of_one_objective(held) == []


def test_limits_are_those_of_the_fits() -> None:
    def said(records: list[Record]) -> str:
        return " ".join(findings.limits(records, sets_of(records)))

    one = [record("vi")]
    assert "a single fit" in said(one)
    assert "The truth is not known" in said(one)
    several = [record("vi", fold) for fold in (1, 2, 3)]
    assert "3 folds of the same subjects" in said(several)
    replicates = [
        dataclasses.replace(one[0], address=dataclasses.replace(one[0].address, replicate=n)) for n in (1, 2)
    ]
    assert "2 replicates" in said(replicates)
    failed = [*several, record("fo", status="failed")]
    assert "1 failed fit;" in said(failed)
    assert "different objectives" in said(failed)
    same = one[0].config | {"split": {"_target_": "medcm_cli.data.all_subjects"}}
    assert "those of the training" in said([record("vi", config=same)])
