"""Expected values beside the measured ones."""

from pathlib import Path

import pytest

from medcm_cli.errors import InputError
from medcm_cli.report.tables import compare
from medcm_cli.runs.summary import Summary, summarize
from tests.report.fits import invent, write_fit

HEADER = "objective,measure,statistic,value,tolerance,source"


def expect(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    path = tmp_path / "expected.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


@pytest.fixture
def measured(tmp_path: Path) -> Summary:
    """vi with an RMSE of 8 in one fit and 9 in another; fo without a complete fit."""
    for replicate, level in ((1, 8.0), (2, 9.0)):
        history = invent(replicate)
        history["rmse"][:] = level
        write_fit(tmp_path / "runs", history, replicate=replicate)
    write_fit(tmp_path / "runs", invent(1), status="failed", objective="fo")
    return summarize([tmp_path / "runs"])


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("vi,rmse,median,8.5,0,x", "within"),
        ("vi,rmse,median,8.25,0.25,x", "within"),
        ("vi,rmse,median,8.25,0.2,x", "outside"),
        ("vi,rmse,median,8.75,0.2,x", "outside"),
        ("vi,rmse,mean,8.5,0.001,x", "within"),
        ("vi,rmse,sd,0.7071,0.001,x", "within"),
        ("vi,rmse,median,8.5,,x", ""),
        ("foce,rmse,median,8.5,1,x", "not run"),
        ("fo,rmse,median,8.5,1,x", "not run"),  # every fit of it failed
        ("vi,complete,count,2,0,x", "within"),
        ("fo,failed,count,0,0,x", "outside"),
    ],
)
def test_verdict(measured: Summary, tmp_path: Path, line: str, verdict: str) -> None:
    section = compare(measured, expect(tmp_path, line))
    cells = section.cells
    assert len(cells) == 1
    assert len(cells[0]) == len(section.headers)
    assert cells[0][0] == line.split(",")[0]
    assert cells[0][5] == verdict
    assert cells[0][-1] == "x"


def test_measured_value_is_shown(measured: Summary, tmp_path: Path) -> None:
    cells = compare(measured, expect(tmp_path, "vi,rmse,median,8.4,0.2,Table 1")).cells
    assert cells == [["vi", "rmse median, IU/dL", "8.4", "0.2", "8.5", "within", "Table 1"]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vi,omega_1,median,0.1,,x", "omega 1 median"),
        ("vi,kl,mean,0.1,,x", "kl mean, nats"),
        ("vi,sigma_additive,sd,0.1,,x", "sigma additive sd, IU/dL"),
        ("vi,seconds,median,1,,x", "seconds median, s"),
        ("vi,cv_2,median,1,,x", "cv 2 median, %"),
        ("vi,complete,count,2,,x", "complete count"),
    ],
)
def test_a_measure_has_its_name_and_unit(measured: Summary, tmp_path: Path, line: str, words: str) -> None:
    assert compare(measured, expect(tmp_path, line)).cells[0][1] == words


def test_expected_values_choose_their_group(tmp_path: Path) -> None:
    for rate, level in ((0.1, 8.0), (0.01, 9.0)):
        history = invent(1)
        history["rmse"][:] = level
        write_fit(tmp_path / "runs", history, learning_rate=rate, study="7")
    summary = summarize([tmp_path / "runs"])
    path = expect(
        tmp_path,
        "7,vi,0.01,rmse,median,9,0.1,x",
        "7,vi,0.1,rmse,median,9,0.1,x",
        "7,vi,,rmse,median,9,0.1,x",
        "8,vi,0.1,rmse,median,9,0.1,x",
        header="study,objective,learning_rate,measure,statistic,value,tolerance,source",
    )
    cells = compare(summary, path).cells
    assert [row[5] for row in cells[:2]] == ["within", "outside"]
    assert sorted(row[5] for row in cells[2:4]) == ["outside", "within"]  # no rate given: both groups
    assert [row[5] for row in cells[4:]] == ["not run"]


@pytest.mark.parametrize(
    ("header", "line", "word"),
    [
        ("objective,measure,statistic,value,source", "vi,rmse,median,8,x", "tolerance"),
        ("measure,statistic,value,tolerance,source", "rmse,median,8,1,x", "objective"),
        (HEADER, "vi,rsme,median,8,1,x", "rsme"),
        (HEADER, "vi,rmse,mode,8,1,x", "mode"),
        (HEADER, "vi,rmse,count,8,1,x", "count"),
        (HEADER, "vi,study,count,8,1,x", "study"),
        (HEADER, "vi,rmse,median,eight,1,x", "value"),
        (HEADER, "vi,rmse,median,8,one,x", "tolerance"),
        ("", "", "expected.csv"),
    ],
)
def test_expected_values_that_cannot_be_used(
    measured: Summary, tmp_path: Path, header: str, line: str, word: str
) -> None:
    path = expect(tmp_path, line, header=header)
    with pytest.raises(InputError) as caught:
        compare(measured, path)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_expected_values_that_are_not_there(measured: Summary, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        compare(measured, tmp_path / "absent.csv")
