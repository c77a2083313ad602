"""``medcm data check``: it says what was assumed, and with the options of a fit refuses what that refuses."""

from pathlib import Path

import pytest

from tests.commands.program import Quick

HEADER = "ID;DATE;TIME;AMT;DV;wt;vwf"
ROWS = (
    "1;14.01.2021;08:30;1000;;71,5;100",
    "1;14.01.2021;12:30;;0,5;71,5;100",
    "1;16.01.2021;08:30;;<0,01;71,5;100",
)
ASSUMED = (
    "events.csv: read separated by semicolons; decimal commas; 'DATE' and 'TIME' as h since the subject's "
    "first record (day, month, year); rows with an amount as doses, others with a level as observations; "
    "1 DV below a limit of quantification, such as '<0,01'"
)
UNITS = (
    "events.csv: TIME is taken as h, AMT as IU and DV as IU/mL; say others by dataset.units={time: ..., "
    "amount: ..., level: ...}, or --time-unit, --amount-unit and --level-unit of `medcm data check`"
)


def table(folder: Path, rows: tuple[str, ...] = ROWS) -> None:
    (folder / "events.csv").write_text("\n".join([HEADER, *rows]))


@pytest.mark.parametrize("options", [(), ("dataset=table",)])
def test_what_was_assumed_is_told_in_one_line(tmp_path: Path, quick: Quick, options: tuple[str, ...]) -> None:
    table(tmp_path)
    result = quick(tmp_path, "data", "check", "events.csv", *options)
    assert result.returncode == 0
    assert result.stderr.splitlines() == [ASSUMED, UNITS]
    assert "events.csv: no fault found" in result.stdout
    in_mg = "dataset.units={amount: mg, level: mg/L}"
    said = (in_mg,) if options else ("--amount-unit", "mg", "--level-unit", "mg/L")
    told = quick(tmp_path, "data", "check", "events.csv", *options, *said).stderr
    assert ASSUMED in told
    assert UNITS[:40] not in told
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("old", "new", "options"),
    [
        ("71,5", "", ()),
        ("<0,01", "<0,01", ("objective=fo",)),
        pytest.param("<0,01", "0,4", ("error=proportional", "seed=-1"), marks=pytest.mark.slow),
        pytest.param("vwf", "vwff", (), marks=pytest.mark.slow),
        pytest.param("16.01", "16.13", (), marks=pytest.mark.slow),
        pytest.param(";0,5", ";0.5", (), marks=pytest.mark.slow),
        pytest.param("0,5", "-", ("network=none",), marks=pytest.mark.slow),
    ],
)
def test_it_refuses_what_a_fit_refuses(
    tmp_path: Path, quick: Quick, old: str, new: str, options: tuple[str, ...]
) -> None:
    table(tmp_path)
    path = tmp_path / "events.csv"
    path.write_text(path.read_text().replace(old, new))
    checked = quick(tmp_path, "data", "check", "events.csv", "dataset=table", *options)
    fitted = quick(tmp_path, "fit", "dataset=table", "split=all", "dataset.path=events.csv", *options)
    assert (checked.returncode, fitted.returncode) == (2, 2)
    assert checked.stderr == fitted.stderr
    assert len(checked.stderr.splitlines()) == 1


def test_each_kind_of_observation_is_told_with_the_options_that_make_endpoints(
    tmp_path: Path, quick: Quick
) -> None:
    """Three subjects, each with two concentrations and three responses."""
    rows = ["ID,TIME,AMT,DVID,DV"]
    for patient in (1, 2, 3):
        rows += [f"{patient},0,100,,", f"{patient},1,,1,{patient}.5", f"{patient},2,,1,1"]
        rows += [f"{patient},{time},,2,{90 - time}" for time in (3, 5, 8)]
    (tmp_path / "events.csv").write_text("\n".join(rows) + "\n")
    done = quick(tmp_path, "data", "check", "events.csv", "--amount-unit", "mg", "--level-unit", "mg/L")
    assert done.returncode == 0, done.stderr
    hint = [line for line in done.stderr.splitlines() if "DVID" in line]
    assert len(hint) == 1
    endpoints = "'+endpoints={dvid_1: {dvid: 1}, dvid_2: {dvid: 2}}'"
    assert endpoints in hint[0]
    assert "'+dataset.keep={DVID: [1]}'" in hint[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()]
    shown = {row[1]: row[2] for row in cells if len(row) == 4}
    wanted = {"observations of DVID 1": "6", "observations of DVID 2": "9"}
    wanted |= {"DVID 1, mg/L": "1.25 (1 to 3.5)", "DVID 2, unit not said": "85 (82 to 87)"}
    assert wanted.items() <= shown.items()
    assert not any("covariate" in label for label in shown)
