"""The report: a whole page from any run folders, with the numbers of the summary, which a browser shows
without a network, on a phone and on paper."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from medcm_cli import cli, runs
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.report import pictures, tables
from medcm_cli.report.figures import catalogue, style, training
from medcm_cli.report.figures.catalogue import figures
from medcm_cli.report.page import write
from medcm_cli.runs.summary import summarize
from medcm_cli.runs.sweeps import Sweep, collect
from medcm_cli.study.job import Job
from tests.helpers import SMALL, configuration
from tests.report.pages import Page

STUDY = "<b>&\"study' ü"
QUESTION = "Is 1 < 2 & \"so\" on? <script>document.title='run'</script>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four fits by each of three objectives, under a name full of markup; one of fo failed, one of vi is not
    finished and one record is damaged."""
    root = tmp_path_factory.mktemp("report")
    write_study(root / "data", SMALL)
    for objective in ("mse", "fo", "vi"):
        choices = (f"objective={objective}", "epochs=8", "tail=4", "fold=[1,2]", "replicate=[1,2]")
        config = configuration(root / "data", root / "outputs", *choices)
        job = Job.build({**config, "study": STUDY})
        job.run(list(job.plan().records.values()))
    folder = root / "outputs" / STUDY
    _change(folder, "fo", 0, status="failed", failure={"epoch": 5, "cause": "a < b & c"}, redraws=2)
    _change(folder, "fo", 1, unconverged_modes=0.25)
    _change(folder, "vi", 0, status="running", failure=None)
    next(runs.find(folder / "dataset=simulated" / "objective=mse")).joinpath(runs.RECORD).write_text("{")
    return folder


def _change(folder: Path, objective: str, place: int, **values: object) -> None:
    path = sorted(folder.glob(f"*/objective={objective}/**/{runs.RECORD}"))[place]
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def drawn() -> list[style.Drawn]:
    """The figures that the report got, once there is one: the first of each kind."""
    return []


def one_of_each_kind(sweep: Sweep, missing: list[str]) -> Iterator[style.Drawn]:
    """Of the figures, as drawing all of them takes long."""
    kinds = set()
    for figure in figures(sweep, missing):
        kind = figure.stem.partition("_")[0]
        if kind not in kinds:
            yield figure
        kinds.add(kind)


@pytest.fixture(scope="module")
def written(study: Path, drawn: list[style.Drawn], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, with some of its figures."""
    expected = tmp_path_factory.mktemp("expected") / "expected.csv"
    expected.write_text(
        "objective,measure,statistic,value,tolerance,source\nfo,failed,count,1,0,invented\n"
        "vi,rmse,median,0.001,0.0001,nowhere\n"
    )
    out = study.parent / "page.html"
    out.write_text("an older one")

    def noted(sweep: Sweep, missing: list[str], **_: bool) -> Iterator[style.Drawn]:
        for figure in one_of_each_kind(sweep, missing):
            drawn.append(figure)
            yield figure

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(catalogue, "figures", noted)
        patched.setattr(training, "MEASURES", training.MEASURES[:1])
        assert write([study], out, QUESTION, expected) == 11
    assert not list(out.parent.glob(".partial*"))
    return out


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written)


def test_the_page_says_what_it_is_about(page: Page) -> None:
    """Names and questions are text, whatever they hold."""
    assert page.text("h1") == STUDY
    assert QUESTION in page.text("p")
    assert not page.all("script")
    assert not page.all("b")
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    text = page.text("p")
    assert "MSE, FO and VI on simulated: 11 fits, 9 complete, 1 failed, 1 unfinished." in text
    assert "is not a run record" in page.text("li")


def test_headings_and_references_hold_together(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [str(link["href"]) for link in page.all("a")]
    assert len(links) > 10
    assert {link[1:] for link in links if link.startswith("#")} == {link[1:] for link in links} <= set(ids)
    labels = {
        attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes
    }
    assert labels <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_tables_are_those_of_the_summary(study: Path, page: Page) -> None:
    shown = [(rows[0], rows[1:]) for rows in page.rows]
    sections = tables.sections(summarize([study]))
    assert len(sections) == 4
    for section in sections:
        assert shown.count((section.headers, section.cells)) == 1
    overview = [dict(zip(shown[0][0], row, strict=True)) for row in shown[0][1]]
    counts = [
        (row["Method"], row["Fits"], row["Complete"], row["Failed"], row["Unfinished"]) for row in overview
    ]
    assert counts == [("MSE", "3", "3", "0", "0"), ("FO", "4", "3", "1", "0"), ("VI", "4", "3", "0", "1")]
    (compared,) = (cells for headers, cells in shown if "tolerance" in headers)
    assert [row[5] for row in compared] == ["within", "outside"]


def test_failures_and_warnings_are_listed(page: Page) -> None:
    rows = [row for table in page.rows for row in table[1:]]
    assert ["FO", "fold 1, replicate 1", "5", "a < b & c"] in rows
    assert ["FO", "a < b & c", "1", "5 (5 to 5)"] in rows
    assert ["FO", "4", "1 (at most 2 times)", "1 (at most 25.0 % of subjects)"] in rows


def test_configuration_is_what_the_records_say(page: Page) -> None:
    (shared,) = (dict(table[1:]) for table in page.rows if table[0] == ["Option", "Value"])
    assert shared["epochs"] == "8"
    assert shared["network.global_parameters"] == '["Q", "V2"]'
    (different,) = (table for table in page.rows if table[0] == ["Option", "MSE", "FO", "VI"])
    assert ["objective.samples", "-", "-", "3"] in different
    assert not set(shared) & {row[0] for row in different}
    (versions,) = (dict(table[1:]) for table in page.rows if table[0] == ["What", "Value"])
    assert versions["seed"] == "0"
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    commands = [text for tag, text in page.texts if tag == "code"]
    assert commands
    assert all(command.startswith("medcm fit ") for command in commands)


def test_every_figure_is_there_with_words(page: Page, drawn: list[style.Drawn]) -> None:
    assert len(drawn) == 7
    check_images(page, drawn)


@pytest.mark.slow  # every figure is drawn twice
def test_a_page_has_every_figure(study: Path, tmp_path: Path) -> None:
    assert write([study], tmp_path / "page.html") == 11
    page = Page(tmp_path / "page.html")
    (sweep,) = collect([study]).sweeps
    every = list(figures(sweep, []))
    assert len(every) > 10
    check_images(page, every)


def check_images(page: Page, drawn: list[style.Drawn]) -> None:
    """Each figure is there in the light and the dark, in its size and with its words."""
    images = page.all("img")
    light, dark = ([image for image in images if image["class"] == f"on-{on}"] for on in ("light", "dark"))
    for drawings in (light, dark):
        assert [image["alt"] for image in drawings] == [figure.alt for figure in drawn]
    assert not {image["src"] for image in light} & {image["src"] for image in dark}
    assert all(len(str(image["alt"])) > 40 for image in images)
    captions = page.text("figcaption")
    for number, figure in enumerate(drawn, 1):
        assert figure.caption in captions
        assert f"Figure {number}." in page.text("strong")
        width = float(figure.figure.get_figwidth()) * 96
        assert (
            float(str(light[number - 1]["width"]))
            == float(str(dark[number - 1]["width"]))
            == pytest.approx(width, abs=1)
        )


def test_nothing_comes_from_elsewhere(written: Path, page: Page) -> None:
    sources = [a[name] for _, a in page.elements for name in ("src", "href", "srcset", "data") if name in a]
    assert all(str(source).startswith(("data:", "#")) for source in sources)
    style = page.text("style")
    assert "url(" not in style
    assert "@import" not in style
    for image in page.all("img"):
        kind, _, body = str(image["src"]).partition(",")
        assert kind == "data:image/svg+xml"
        root = ElementTree.fromstring(unquote(body))
        for element in root.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:"))
                if "url(" in value:
                    assert value.startswith("url(#")
    assert written.stat().st_size < 5e6


@pytest.mark.parametrize(
    ("points", "largest", "kind"),
    [
        (10, 400_000, "data:image/svg+xml,"),
        (600, 40_000, "data:image/png;base64,"),
        pytest.param(6000, 400_000, "data:image/png;base64,", marks=pytest.mark.slow),
    ],
)
def test_a_large_figure_becomes_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: int, largest: int, kind: str
) -> None:
    monkeypatch.setattr(pictures, "_LARGEST_SVG", largest)
    figure = Figure(figsize=(2, 2))
    x, y = np.random.default_rng(0).random((2, points))
    figure.subplots().scatter(x, y, s=np.linspace(1, 2, points))
    for dark_page in (False, True) if points < 100 else (False,):
        drawn = style.Drawn("cloud", "", figure, "", "", pd.DataFrame())
        address = pictures.source(drawn, tmp_path, dark_page)
        assert address.startswith(kind)
        assert len(address) < 400_000


# -- what is not whole -----------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``medcm report``."""
    monkeypatch.setattr(sys, "argv", ["medcm", "report", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(str(left.value.code))


def _failed(folder: Path) -> None:
    for place in range(4):
        _change(folder, "vi", place, status="failed", failure={"epoch": 1, "cause": "all at once"})


def _waiting(folder: Path) -> None:
    for place in range(4):
        _change(folder, "vi", place, status="running", failure=None)
    for path in folder.rglob("*.parquet"):
        path.unlink()


def _damaged(folder: Path) -> None:
    for path in folder.rglob(runs.RECORD):
        path.write_text("[]")


def _truncated(folder: Path) -> None:
    for path in folder.rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:50])


def _strange(folder: Path) -> None:
    for place in range(4):
        _change(folder, "vi", place, config={})


def _removed(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_removed, "There are no fits here"),
        (_failed, "No fit is complete"),
        (_waiting, "No fit is complete"),
        (_damaged, "is not a run record"),
        (_truncated, "cannot be read"),
        (_strange, "does not have the contents of a run"),
    ],
)
def test_sweeps_that_are_not_whole_have_a_page(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None], says: str
) -> None:
    folder = tmp_path / "s"
    shutil.copytree(study, folder, ignore=shutil.ignore_patterns("objective=mse", "objective=fo"))
    harm(folder)
    monkeypatch.setattr(training, "MEASURES", ("rmse",))  # one figure is enough
    assert command(monkeypatch, str(folder)) == 0
    assert says in Page(folder / "report.html").text()


def test_bad_input_is_one_line(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, says in (
        ([str(tmp_path / "nowhere")], "no such folder"),
        ([str(study), "--out", str(tmp_path)], "is a folder"),
        ([str(study), "--out", f"{Path(__file__)}/report.html"], "test_page.py is a file, not a folder"),
        ([str(tmp_path), "--expected", str(tmp_path / "none.csv")], "none.csv"),
    ):
        assert command(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="is a folder"):
        write([study], tmp_path)


# -- in a browser ----------------------------------------------------------------------------------


def chromium(folder: Path, *arguments: str) -> str:
    """What a headless Chromium without a network prints."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}")
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--host-resolver-rules=MAP * ~NOTFOUND", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


MEASURED = """
<script>
addEventListener("load", () => {
  const images = [...document.images].filter(image => image.getClientRects().length > 0);
  const scrolls = [...document.querySelectorAll(".scroll, pre")];
  parent.postMessage(JSON.stringify({
    width: document.documentElement.clientWidth,
    needed: document.documentElement.scrollWidth,
    images: images.length,
    shown: images.filter(image => image.complete && image.naturalWidth > 0).length,
    named: images.filter(image => image.alt.length > 0).length,
    inside: scrolls.filter(one => one.getBoundingClientRect().right <= innerWidth).length,
    scrolls: scrolls.length,
    focusable: scrolls.filter(one => one.tabIndex === 0).length,
    fetched: performance.getEntriesByType("resource").map(one => one.name.slice(0, 5)),
    title: document.title,
  }), "*");
});
</script>
"""


@browser
def test_it_fits_a_phone_and_needs_no_network(written: Path, tmp_path: Path) -> None:
    """In frames as wide as a phone and a desktop, which tell the page around them what they measure."""
    text = written.read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</body>", MEASURED + "</body>"), encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        "<body><ul></ul><script>addEventListener('message', event => {"
        "const item = document.createElement('li'); item.textContent = event.data;"
        "document.querySelector('ul').append(item)})</script>"
        + "".join(f"<iframe src=page.html width={width} height=800></iframe>" for width in (360, 1200))
    )
    dom = chromium(tmp_path, "--virtual-time-budget=20000", "--dump-dom", f"file://{tmp_path}/frame.html")
    measured = [json.loads(unescaped) for unescaped in _items(dom)]
    # A frame has a border of 2 px; a scroll bar may take some of the width.
    assert [round(one["width"] / 40) for one in sorted(measured, key=lambda one: one["width"])] == [9, 30]
    for one in measured:
        assert one["needed"] <= one["width"]
        assert one["images"] == one["shown"] == one["named"] == 7
        assert one["inside"] == one["scrolls"] == one["focusable"] > 8
        assert set(one["fetched"]) <= {"data:"}
        assert one["title"].startswith(STUDY)  # the question's script did not run


class Texts(HTMLParser):
    """The texts between tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def _items(dom: str) -> list[str]:
    parser = Texts()
    parser.feed(dom[dom.index("<ul>") : dom.index("</ul>")])
    parser.close()
    return parser.found


@browser
def test_it_prints(written: Path, page: Page, tmp_path: Path) -> None:
    out = tmp_path / "page.pdf"
    chromium(tmp_path, f"--print-to-pdf={out}", f"file://{escape(str(written))}")
    pages = len(re.findall(rb"/Type\s*/Page\b", out.read_bytes()))
    figures = len(page.all("img")) / 2
    assert figures / 4 < pages < figures / 2 + 10
