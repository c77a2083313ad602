"""``medcm score``: what it shows, writes and refuses, on fits by several objectives."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli.commands.scoring import report
from medcm_cli.errors import InputError
from medcm_cli.report.scores import notes
from medcm_cli.report.tables import sections
from medcm_cli.runs.summary import summarize
from medcm_cli.study.job import Job
from tests.helpers import configuration

DIAGONAL = "objective=fo,variant=diagonal:objective=fo,variant=full"


@pytest.fixture(scope="module")
def outputs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fits each by fo, of a full and of a diagonal Omega, by vi and by mse."""
    folder = tmp_path_factory.mktemp("scores") / "outputs"
    for choices in (
        ("objective=fo", "variant=full"),
        ("objective=fo", "omega=diagonal", "variant=diagonal"),
        ("objective=vi", "network=multi_branch"),
        ("objective=mse",),
    ):
        job = Job.build(configuration(data, folder, "network=none", *choices, "fold=[1,2]"))
        job.run(list(job.plan().records.values()))
    return folder


def test_every_fit_has_its_score_beside_it_and_in_the_summary(outputs: Path) -> None:
    found = report([outputs], "fo", 1000, [DIAGONAL])
    table, tests = found.sections
    assert [row[0].split(",")[0] for row in table.cells] == ["fo", "fo", "vi"]
    assert [row[1:3] for row in table.cells] == [["fo", "2"]] * 3
    assert len(found.skipped) == 2
    assert all("no likelihood" in reason for reason in found.skipped)
    assert any("weights of networks" in note for note in found.notes)
    (row,) = tests.cells
    assert row[:2] == [DIAGONAL, "2"]
    assert row[3:5] == ["1", "0"]

    # The loss of fo is its OFV: the checkpoint's, where that is the estimate.
    fits = summarize([outputs]).fits
    by_fo = fits[fits["objective"] == "fo"]
    assert bool(by_fo["ofv_fo"].notna().all())
    headers = sections(summarize([outputs]))[0].headers
    assert {"OFV by fo", "held-out OFV by fo"} <= set(headers)


def test_the_score_of_a_fit_by_fo_is_its_objective(data: Path, tmp_path: Path) -> None:
    job = Job.build(configuration(data, tmp_path, "objective=fo", "network=none", "fold=1", "tail=0"))
    job.run(list(job.plan().records.values()))
    report([tmp_path], "fo", 1000)
    (path,) = tmp_path.rglob("score.parquet")
    (score,) = pd.read_parquet(path).to_dict("records")
    history = pd.read_parquet(path.parent / "history.parquet")
    assert score["ofv"] == pytest.approx(history["objective_value"].iloc[-1], rel=1e-5)
    assert score["aic"] == pytest.approx(score["ofv"] + 2 * score["parameters"])
    assert score["parameters"] == 4 + 3 + 1
    assert score["random"] == 2 + 3
    want = 5 * np.log(score["subjects"]) + 3 * np.log(score["observations"])
    assert score["bicc"] == pytest.approx(score["ofv"] + want)
    assert np.isfinite(score["held_out_ofv"])

    report([tmp_path], "laplace", 1000)
    report([tmp_path], "fo", 1000)
    again = pd.read_parquet(path).set_index("method")
    assert sorted(again.index) == ["fo", "laplace"]
    assert again.loc["fo", "ofv"] == pytest.approx(score["ofv"])


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("variant=full", "expected SMALLER:LARGER"),
        ("full:variant=diagonal", "'full' is no NAME=VALUE"),
        ("variant=ful:variant=diagonal", "variant=ful is that of 0 configurations"),
        ("variant=full:variant=diagonal", "expected the smaller model first"),
    ],
)
def test_tests_that_cannot_be_made_are_refused(outputs: Path, test: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        report([outputs], "fo", 1000, [test])
    assert "\n" not in str(caught.value)


def test_what_a_reader_has_to_know_is_told() -> None:
    table = pd.DataFrame(
        {
            "transformation": [0.0, 12.5],
            "weights": [0, 7],
            "moved": [0.001, 0.5],
            "nodes": [8, 64],
            "tail": [0.2, 0.9],
            "unfound": [0, 3],
        }
    )
    said = " ".join(notes(table))
    for words in (
        "2 sum log y (to 12.500)",
        "7 weights",
        "64 nodes",
        "up to 0.5;",
        "up to 0.90",
        "3 subjects",
    ):
        assert words in said
    assert notes(0 * table) == ["OFV = -2 log L - n log(2 pi), without priors"]
