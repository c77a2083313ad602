"""What the report says of where results come from, from invented records."""

import dataclasses
from typing import Any

import pytest

from medcm_cli.report import provenance
from medcm_cli.runs import Address, Record

CONFIG: dict[str, Any] = {
    "epochs": 10,
    "dataset": {"name": "d", "covariates": {}, "keep": {}},
    "objective": {"_target_": "Vi", "samples": 3},
}


def record(status: str = "complete", **values: Any) -> Record:
    address = Address("s", "d", "vi", "additive", 0.1, "default", 1, 1)
    of = {name: values.pop(name) for name in list(values) if hasattr(address, name)}
    held = Record(status, dataclasses.replace(address, **of), "0", CONFIG, {}, None, 0, {})
    return dataclasses.replace(held, **values)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (1.26, "1.3 s"),
        (59.4, "59.4 s"),
        (61, "1 min 1 s"),
        (3599.6, "1 h 0 min"),
        (7320, "2 h 2 min"),
    ],
)
def test_times_read_well(seconds: float, text: str) -> None:
    (row,) = provenance.overview([record(seconds=seconds)]).cells
    assert row[-1] == text


def test_the_lead_counts_every_fit_once() -> None:
    held = [record(replicate=n) for n in (1, 2)]
    held += [record("failed", objective="fo", replicate=n, dataset="e") for n in (1, 2, 3)]
    held += [record("running", variant="slow")]
    assert provenance.lead(held) == "VI and FO on d and e: 6 fits, 2 complete, 3 failed, 1 unfinished."
    assert provenance.lead(held[:1]) == "VI on d: 1 fit, 1 complete."
    assert provenance.lead([]) == "No fits."


def test_columns_that_tell_nothing_apart_are_left_out() -> None:
    one, two = record(), record(study="t", learning_rate=0.01)
    assert "Study" not in provenance.overview([one]).headers
    several = provenance.overview([one, two])
    assert several.headers[:3] == ["Method", "Study", "Fits"]
    assert [row[:3] for row in several.cells] == [["VI", "s", "1"], ["VI", "t", "1"]]


def test_options_are_either_shared_or_different() -> None:
    """Also where the fits of one method were not all configured alike."""
    other = CONFIG | {"epochs": 20, "objective": {"_target_": "Vi", "samples": 1}}
    blocks = provenance.configuration([record(), record(replicate=2, config=other)])
    different, shared = (section for _, section in blocks)
    assert different.headers == ["Option", "VI (1)", "VI (2)"]
    assert different.cells == [["epochs", "10", "20"], ["objective.samples", "3", "1"]]
    assert ["dataset.keep", "{}"] in shared.cells
    assert ["objective._target_", "Vi"] in shared.cells


def test_many_failures_are_counted_and_the_first_are_named() -> None:
    causes = ("no positive definite Omega", "loss is not finite")
    held = [
        record("failed", replicate=n, failure={"epoch": n, "cause": causes[n % 2]}) for n in range(1, 131)
    ]
    blocks = provenance.failures([*held, record(replicate=131)])
    (counted, named) = (section for kind, section in blocks if kind == "table")
    assert sorted(row[1:3] for row in counted.cells) == [[causes[1], "65"], [causes[0], "65"]]
    assert ["VI", causes[0], "65", "66 (2 to 130)"] in counted.cells
    assert len(named.cells) == 100
    assert ("text", "And 30 more failed fits.") in blocks


def test_data_that_differ_between_fits_are_pointed_out() -> None:
    held = [record(data={"source": "a.csv", "fingerprint": digest}) for digest in ("1", "2")]
    assert ("warning", "The fits are not all of the same data.") in provenance.data(held, None)
    assert "warning" not in dict(provenance.data(held[:1], None))


def test_what_was_taken_for_missing_covariates_is_said() -> None:
    """Of those that anybody lacks, with the value of each category."""
    filled = {
        "weight": {"rule": "median", "by": "sex", "values": {"F": 61.5, "M": 80.0}},
        "age": {"rule": "mean", "by": None, "values": {"": 40.0}},
        "male": {"rule": "mode", "by": None, "values": {"": 1.0}},
    }
    origins = {
        "weight": {"measured": 7, "median of sex F": 2, "median of sex M": 1},
        "age": {"measured": 10},
        "male": {"measured": 9, "mode": 1},
        "ffm": {"derived": 10},
        "vwf": {"measured": 4, "imputed": 6},
    }
    units = {name: {"unit": unit} for name, unit in {"weight": "kg", "age": "y", "male": "-"}.items()}
    held = {"filled": filled, "origins": origins, "covariates": units}
    blocks = provenance.data([record(data={"characteristics": held})], None)
    (section,) = (of for kind, of in blocks if kind == "table")
    assert section.cells == [
        ["weight", "measured", "7", "-"],
        ["weight", "median of sex F", "2", "61.5 kg"],
        ["weight", "median of sex M", "1", "80 kg"],
        ["male", "measured", "9", "-"],
        ["male", "mode", "1", "1"],
        ["vwf", "imputed", "6", "-"],
        ["vwf", "measured", "4", "-"],
    ]
    assert [kind for kind, _ in provenance.data([record()], None)] == ["text"]  # nothing of older records
