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
