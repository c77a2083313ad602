"""Results of several machines, put together: each fit once, and none that is of something else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medcm_cli import runs
from medcm_cli.runs.walk import Fault, Fit
from medcm_cli.study.mixture import unmixed

FIRST = runs.Address("default", "simulated", "vi", "additive", 0.1, "default", 1, 1)


def fit(machine: str, fold: int, status: str = "complete", data: str = "a", **config: Any) -> Fit:
    options = {"epochs": 100, "dataset": {"name": "simulated"}, "outputs": machine, **config}
    address = replace(FIRST, fold=fold)
    record = runs.Record(status, address, "x", options, {"fingerprint": data}, None, 0, {})
    return Fit(address.folder(Path(machine)), record)


def kept(*found: Fit | Fault) -> tuple[list[tuple[str, int]], list[str]]:
    """Machine and fold of the fits that count, and what is said of the others."""
    judged = list(unmixed(found))
    fits = [(one.folder.parts[0], one.record.address.fold) for one in judged if isinstance(one, Fit)]
    return fits, [one.reason for one in judged if isinstance(one, Fault)]


def test_folds_of_two_machines_are_one_study() -> None:
    fits, faults = kept(fit("a", 1), fit("a", 2), fit("b", 3), fit("b", 4, "failed"))
    assert fits == [("a", 1), ("a", 2), ("b", 3), ("b", 4)]
    assert faults == []


def test_what_both_have_counts_once() -> None:
    fits, (fault,) = kept(fit("a", 1), fit("b", 1), fit("b", 2))
    assert fits == [("a", 1), ("b", 2)]
    assert fault == f"{fit('b', 1).folder}: is counted once, in {fit('a', 1).folder}"


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_finished_anywhere_is_finished(order: int) -> None:
    found = [fit("a", 1, "running"), fit("b", 1), fit("a", 2, "running"), fit("b", 2, "running")]
    fits, faults = kept(*found[::order])
    assert fits == [("b", 1), ("a" if order == 1 else "b", 2)]
    assert faults == []


@pytest.mark.parametrize(
    ("other", "why"),
    [({"epochs": 200}, "epochs is 100 there and 200 here"), ({"data": "b"}, "its data are others")],
)
def test_what_is_of_something_else_is_left_out(other: dict[str, Any], why: str) -> None:
    fits, (fault,) = kept(fit("a", 1), fit("b", 2, **other), fit("b", 3))
    assert fits == [("a", 1), ("b", 3)]
    assert fault == f"{fit('b', 2).folder}: is not of the same study as {fit('a', 1).folder} ({why})"


def test_methods_are_judged_apart_and_faults_go_through() -> None:
    one = fit("b", 2, epochs=200)
    other = replace(one, record=replace(one.record, address=replace(one.record.address, variant="long")))
    fault = Fault(Path("x"), "x: is damaged")
    assert list(unmixed([fit("a", 1), fault, other]))[1:] == [fault, other]
