"""``medcm help``, and what ``--help`` says of modules that it does not import."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from medcm_cli.analysis.uncertainty import METHODS as OF_UNCERTAINTY
from medcm_cli.commands import data, dose, plot, predict, simulate, uncertainty
from medcm_cli.commands import help as manual
from medcm_cli.data.names import ROLES
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.cohorts import cohort_folder
from medcm_cli.haemophilia.virtual import Settings
from medcm_cli.patients.search import AFTER
from medcm_cli.patients.study import DRAWS, FEW
from medcm_cli.patients.targets import FORMS
from medcm_cli.posteriors.individual import METHODS
from medcm_cli.report.figures.style import FORMATS
from medcm_cli.study.dataset import default_data_folder

Said = pytest.CaptureFixture[str]
PAGE = """# Your data

How a table is laid out, in [units](units.md) of `dataset`. Then more.
Still the first paragraph.

## A heading

| column | unit |
|---|---|
| time | h |
"""


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manual of two pages."""
    (tmp_path / "data.md").write_text(PAGE)
    (tmp_path / "methods.md").write_text("# Methods\n\nEquations!\n")
    monkeypatch.setattr(manual, "PAGES", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("pages")
def test_the_topics_are_listed(capsys: Said) -> None:
    manual.command([])
    assert capsys.readouterr().out.splitlines() == [
        "data     Your data. How a table is laid out, in units of dataset.",
        "methods  Methods. Equations!",
        "",
        "medcm help TOPIC shows a page.",
    ]


@pytest.mark.usefixtures("pages")
def test_a_page_is_markdown_where_no_terminal_is(capsys: Said) -> None:
    manual.command(["data"])
    assert capsys.readouterr().out == PAGE


@pytest.mark.usefixtures("pages")
def test_a_page_is_set_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, color_system=None, width=60, soft_wrap=True)
    monkeypatch.setattr(manual, "OUT", terminal)
    manual.command(["data"])
    lines = shown.getvalue().splitlines()
    assert not any("##" in line or "|" in line for line in lines)
    assert any("A heading" in line for line in lines)
    assert max(map(len, lines)) <= 60


@pytest.mark.usefixtures("pages")
def test_a_topic_that_there_is_not() -> None:
    with pytest.raises(InputError, match=r"^dta: the manual has no such topic; did you mean data\?$"):
        manual.command(["dta"])
    with pytest.raises(InputError, match=r"^xyz: the manual has no such topic; there are data, methods$"):
        manual.command(["xyz"])


def test_no_manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manual, "PAGES", tmp_path / "none")
    with pytest.raises(InputError, match="none: the manual is not there"):
        manual.command([])


def test_every_page_has_a_title_and_says_what_it_is_about() -> None:
    pages = manual.topics()
    assert {"configuration", "data", "methods", "results"} <= set(pages)
    for page in pages.values():
        title, sentence = manual.summary(page.read_text(encoding="utf-8"))
        assert title
        assert sentence[-1] in ".?!"
        assert not set(title + sentence) & set("#`*[]")


# -- choices and defaults that --help has in words, for their modules import torch ------------------


def said(command: object, capsys: Said) -> str:
    """What ``--help`` says, on one line."""
    with pytest.raises(SystemExit):
        command(["--help"])  # type: ignore[operator]
    return " ".join(capsys.readouterr().out.split())


def test_choices_of_predictions_and_doses(capsys: Said) -> None:
    for command in (predict.command, dose.command):
        text = said(command, capsys)
        assert f"{', '.join(METHODS[:-1])} or {METHODS[-1]} (default: {METHODS[0]})" in text
        assert f"({DRAWS[0]}, or {DRAWS[1]} for more than {FEW} patients, if not given)" in text
    assert FORMS in text
    assert f"{{{','.join(AFTER)}}}" in text
    assert f"(default: {AFTER[0]})" in text


def test_roles_of_columns(capsys: Said) -> None:
    assert f"Roles: {', '.join(ROLES)}" in said(data.command, capsys)


def test_methods_of_standard_errors(capsys: Said) -> None:
    text = said(uncertainty.command, capsys)
    assert f"{' or '.join(OF_UNCERTAINTY)}; " in text
    assert f"(default: {OF_UNCERTAINTY[0]})" in text


def test_formats_of_figures(capsys: Said) -> None:
    assert f"(default: {','.join(FORMATS)})" in said(plot.command, capsys)


def test_what_is_simulated(capsys: Said) -> None:
    text, default = said(simulate.command, capsys), Settings()
    assert f"patients ({default.n}, or" in text
    assert f"training sets to draw, 0 for none ({default.folds} if not given)" in text
    assert f"with replacement ({default.fold_size} if not given)" in text
    assert f"(default: {default.seed})" in text
    cohort = str(cohort_folder("outputs", "prophylaxis")).replace("prophylaxis", "KIND")
    assert f"({default_data_folder('outputs')}, or {cohort} for a cohort" in text
