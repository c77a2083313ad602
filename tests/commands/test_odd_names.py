"""Subjects whose ids are mathematics, formulas, commands to a terminal, or very long: everything is drawn and
written all the same, and shows them for what they are."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.commands.program import Quick

IDS = ["$\\frac{", "a$b$c", "x\x1b]0;gone\x07y", "=1+1", "L" * 300, "L" * 299 + "M", "<b>&amp;</b>"]


def table(ids: list[str]) -> str:
    rows = ["id,time,evid,amt,duration,dv,wt,vwf"]
    for number, name in enumerate(ids):
        rows += [f'"{name}",0,1,2000,0.1,.,{60 + number},100']
        rows += [f'"{name}",{time},0,.,.,{level + 0.01 * number},{60 + number},100' for time, level in LEVELS]
    return "\n".join(rows) + "\n"


LEVELS = ((6, 0.45), (24, 0.2), (48, 0.08))


@pytest.fixture(scope="module")
def odd(place: Path, quick: Quick) -> Path:
    (place / "odd.csv").write_text(table([*IDS, "plain", "other"]))
    choices = ("dataset.path=odd.csv", "split=all", "objective=fo", "network=none", "epochs=4", "study=odd")
    assert quick(place, "fit", *choices).returncode == 0
    return place


def written(folder: Path) -> None:
    """Every SVG is XML, and no cell of a CSV a formula."""
    assert list(folder.rglob("*.svg"))
    for path in folder.rglob("*.svg"):
        ElementTree.parse(path)
    for path in folder.rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        for cell in cells:
            assert "\x1b" not in cell
            assert not cell.startswith(("=", "@", "+")), cell


@pytest.mark.slow
def test_figures(odd: Path, quick: Quick) -> None:
    said = quick(odd, "plot", "outputs/odd", "--format", "svg", "--out", "figures")
    assert (said.returncode, said.stderr) == (0, "")
    assert list((odd / "figures").rglob("individuals_*.svg"))
    written(odd / "figures")


@pytest.mark.slow
def test_a_page(odd: Path, quick: Quick) -> None:
    said = quick(odd, "report", "outputs/odd", "--out", "page.html")
    assert (said.returncode, said.stderr) == (0, "")
    assert "not drawn" not in (odd / "page.html").read_text(encoding="utf-8").lower()


@pytest.mark.slow
def test_predictions(odd: Path, quick: Quick) -> None:
    words = ("--run", "outputs/odd", "--patient", "odd.csv", "--draws", "50", "--out", "predicted")
    said = quick(odd, "predict", *words)
    assert said.returncode == 0, said.stderr
    assert "\x1b" not in said.stdout + said.stderr
    assert len(list((odd / "predicted").glob("patient_*.svg"))) == len(IDS) + 2
    written(odd / "predicted")
