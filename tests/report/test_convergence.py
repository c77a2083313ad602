"""What has not converged is said: by the command, in tables, in the report and to who predicts with it."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from medcm_cli.commands.fit import _converged
from medcm_cli.report import provenance
from medcm_cli.runs import Address, Record
from medcm_cli.runs.description import converged
from medcm_cli.runs.summary import _table

RULE = "Newton's method would lower the OFV by less than 0.001"


def record(replicate: int, found: bool | None) -> Record:
    address = Address("s", "d", "fo", "additive", 0.1, "default", 1, replicate)
    said = None if found is None else {"converged": found, "epoch": 75, "rule": RULE, "error": 0.0}
    config: dict[str, Any] = {"objective": {}, "dataset": {}}
    return Record("complete", address, "x", config, {}, None, 0, {}, convergence=said)


def test_the_command_says_how_many_and_by_which_rule() -> None:
    lines = _converged([record(1, True), record(2, False), record(3, True)])
    assert lines == [
        f"  converged: 2 of 3; rule: {RULE}",
        "  not converged: fold 1, replicate 2: ended after all epochs, at no optimum",
    ]
    assert _converged([record(1, None)]) == []


def test_the_report_lists_them() -> None:
    blocks = provenance.failures([record(1, True), record(2, False)])
    (table,) = (content for kind, content in blocks if kind == "table")
    assert table.title == "Convergence"
    assert table.cells[0][1:] == ["2", "1", RULE]
    warnings = [content for kind, content in blocks if kind == "warning"]
    assert warnings == ["1 fit has not converged: training ended at no optimum."]
    before = provenance.failures([record(1, None)])
    assert "Convergence" not in str(before)


@pytest.mark.parametrize(("found", "count"), [((True, False, False), 2), ((True, True, True), 0)])
def test_tables_count_them(found: tuple[bool, ...], count: int) -> None:
    rows = [
        {
            "study": "s",
            "dataset": "d",
            "objective": "fo",
            "error": "e",
            "learning_rate": 0.1,
            "variant": "v",
            "fold": 1,
            "replicate": place,
            "outer": None,
            "inner": None,
            "status": "complete",
            "redraws": 0,
            "random_effects": "CL",
            "level_unit": "mg/L",
            "epochs": 75,
            "converged": one,
            "objective_value": 1.0,
        }
        for place, one in enumerate(found)
    ]
    assert _table(pd.DataFrame(rows))["not_converged"].tolist() == [count]


def test_a_record_of_before_says_nothing() -> None:
    assert converged(record(1, None)) is None
    assert converged(record(1, False)) is False
    assert converged(replace(record(1, True), convergence={})) is False
