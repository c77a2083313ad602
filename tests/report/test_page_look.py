"""What a report answers, and how it looks: on a screen of any width, in the dark and on paper."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from medcm_cli.report import provenance
from medcm_cli.report.figures import catalogue, dark, style
from medcm_cli.report.page import _upright, write
from medcm_cli.report.pictures import Picture
from medcm_cli.report.section import Section
from medcm_cli.report.sheets import sheets
from medcm_cli.runs.summary import summarize
from tests.report.fits import invent, write_fit
from tests.report.pages import Page
from tests.report.test_dark import contrast

CSS = Path(provenance.__file__).parent / "templates" / "report.css"
QUESTION = "Which method is best?"
FITS = {"vi": 0.0, "fo": 0.2, "foce": 3.0}  # how much worse the RMSE of each is


def config(objective: str) -> dict[str, Any]:
    options = {"_target_": "medcm_cli.objectives.Other", "name": objective}
    return {
        "dataset": {"level_unit": "ng/mL", "level_scale": 1, "name": "d"},
        "objective": options,
        "split": {"_target_": "x"},
        "epochs": 2000,
        "text": "long " * 40,
    }


def study(root: Path, folds: int, methods: dict[str, float]) -> Path:
    for objective, worse in methods.items():
        for fold in range(1, folds + 1):
            history = invent(fold)
            history["rmse"] = history["rmse"] + worse + 0.01 * fold * len(objective)
            write_fit(root, history, objective=objective, fold=fold, config=config(objective))
    return root


def drawing(*_: Any, **__: Any) -> Iterator[style.Drawn]:
    figure = Figure(figsize=(3.5, 2))
    figure.subplots().plot([1, 2], [1, 2], color="black")
    yield style.Drawn("line", "Line", figure, "A line.", "A rising line of two points.", pd.DataFrame())


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of folds -> the page of a study of three methods; with one figure, and without commands, which
    take long."""
    result = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(catalogue, "figures", drawing)
        patched.setattr(provenance, "reproduction", lambda *_: [])
        for folds in (1, 5):
            root = study(tmp_path_factory.mktemp("study"), folds, FITS)
            result[folds] = root / "report.html"
            write([root], result[folds], QUESTION if folds == 5 else None)
    return result


def answers(page: Page) -> dict[str, str]:
    asked = [text for tag, text in page.texts if tag == "dt"]
    return dict(zip(asked, [text for tag, text in page.texts if tag == "dd"], strict=True))


# -- the answer ------------------------------------------------------------------------------------


def test_the_question_is_answered_first_with_the_numbers_of_the_summary(pages: dict[int, Path]) -> None:
    page = Page(pages[5])
    assert [text for tag, text in page.texts if tag == "h2" and text.strip()][1] == "Answer"
    assert QUESTION in page.text("p")
    said = answers(page)["Which method predicts test subjects best from their covariates?"]
    table = summarize([pages[5].parent]).table.set_index("objective")
    fits = summarize([pages[5].parent]).fits
    assert table["rmse_mean"].idxmin() == "vi"
    values = {name: fits[fits["objective"] == name].sort_values("fold")["rmse"].to_numpy() for name in FITS}
    ends = stats.ttest_1samp(values["vi"], 0).confidence_interval()
    means = table["rmse_mean"].astype(float).to_dict()
    mean = means["vi"]
    assert said.startswith("VI has the lowest mean RMSE of typical predictions for test subjects: ")
    assert f"{mean:.2f} ng/mL (95 % interval {ends.low:.2f} to {ends.high:.2f}; 5 fits over 5 folds)" in said
    apart = stats.ttest_rel(values["foce"], values["vi"]).confidence_interval(1 - 0.05 / 3)
    difference = means["foce"] - mean
    found = re.search(r"Distinguishable from it: .*FOCE \(([\d.]+) ng/mL more, ([\d.]+) to ([\d.]+)\)", said)
    assert found
    assert [float(number) for number in found.groups()] == pytest.approx(
        [difference, apart.low, apart.high], abs=0.01
    )


def test_comparisons_have_intervals_where_there_are_several_fits_alone(pages: dict[int, Path]) -> None:
    for folds, path in pages.items():
        page = Page(path)
        tables = [rows for rows in page.rows if "Distinguishable" in rows[0]]
        assert len(tables) == 4
        for rows in tables:
            place = [name.startswith("95 % interval") for name in rows[0]].index(True)
            held = [row[place] for row in rows[1:]]
            assert len(held) == len(FITS)
            whole = r"-" if folds == 1 else r"-?[\d.]+ to [\d.]+"
            assert all(re.fullmatch(whole, cell) for cell in held)
        sentences = " ".join(answers(page).values())
        assert ("95 % interval" in sentences) == (folds > 1)
    assert "Findings" in Page(pages[1]).text("h2")
    assert "a single fit" in Page(pages[1]).text("li")


def test_every_number_of_a_comparison_has_its_unit(pages: dict[int, Path]) -> None:
    units = []
    for rows in Page(pages[5]).rows:
        if "Distinguishable" in rows[0]:
            units.append({name.rpartition(", ")[2] for name in rows[0][3:7]})
        if rows[0][0] == "Method" and any("omega" in name for name in rows[0]):
            assert {name.rpartition(", ")[2] for name in rows[0][1:]} == {"log scale", "-", "ng/mL"}
    assert units == [{"ng/mL"}, {"nats", "-"}, {"log scale"}, {"ng/mL"}]


# -- the look --------------------------------------------------------------------------------------


def test_every_table_scrolls_by_itself_and_names_its_rows_and_columns(pages: dict[int, Path]) -> None:
    page = Page(pages[5])
    assert len(page.rows) > 5
    for around in page.around:
        (tag, attributes) = around[-1]
        assert tag == "div"
        assert "scroll" in str(attributes["class"]).split()
        assert attributes["tabindex"] == "0"
        assert attributes["aria-labelledby"]
    heads = [attributes.get("scope") for tag, attributes in page.elements if tag == "th"]
    assert set(heads) == {"col", "row"}
    assert all(table["aria-labelledby"] for table in page.all("table"))


def test_a_table_of_many_columns_stands_on_its_side() -> None:
    headers = [f"h{n}" for n in range(14)]
    few, many = ([[f"{row}.{n}" for n in range(14)] for row in range(rows)] for rows in (3, 20))
    turned = _upright(Section("t", headers, few))
    assert np.array_equal(np.array([turned.headers, *turned.cells]).T, np.array([headers, *few]))
    assert _upright(Section("t", headers, many)).headers == headers


def blocks(css: str) -> dict[str, str]:
    """At-rule -> what stands in it, all of it where there are several."""
    found: dict[str, str] = {}
    for match in re.finditer(r"(@[^{;]+)\{", css):
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(css[end], 0)
            end += 1
        name = match.group(1).strip()
        found[name] = found.get(name, "") + css[match.end() : end - 1]
    return found


def variables(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))


DARK = "@media screen and (prefers-color-scheme: dark)"


def test_colours_can_be_read_in_the_light_the_dark_and_on_paper() -> None:
    css = CSS.read_text(encoding="utf-8")
    rules = blocks(css)
    light = variables(css[: css.index("@media")])
    night = light | variables(rules[DARK])
    paper = light | variables(rules["@media print"])
    assert night["paper"] == dark.PAGE
    assert paper["paper"] == "#ffffff"
    for colours in (light, night, paper):
        for background in ("paper", "shade", "warn"):
            for ink in ("ink", "link", "soft"):
                assert contrast(colours[ink], colours[background]) >= 4.5, (ink, background)


def test_a_figure_has_one_image_for_each_scheme_and_paper_takes_the_light_one(pages: dict[int, Path]) -> None:
    page = Page(pages[5])
    assert [image["class"] for image in page.all("img")] == ["on-light", "on-dark"]
    assert len({image["alt"] for image in page.all("img")}) == 1
    rules = blocks(CSS.read_text(encoding="utf-8"))
    assert ".picture img.on-dark { display: block; }" in rules[DARK]
    assert ".picture img.on-light { display: none; }" in rules[DARK]
    assert "prefers-color-scheme" not in rules["@media print"]
    assert all(name.startswith("@media screen") for name in rules if "color-scheme" in name)


def test_paper_breaks_no_row_and_no_figure_and_forces_no_page() -> None:
    paper = blocks(CSS.read_text(encoding="utf-8"))["@media print"]
    assert re.search(r"\btr\b[^{}]*\{ break-inside: avoid; \}", paper)
    assert re.search(r"figure\.picture \{ break-inside: avoid;", paper)
    assert re.search(r"h2, h3, h4[^{}]*\{ break-after: avoid; \}", paper)
    assert "break-before: page" not in paper
    assert ".scroll { overflow: visible; }" in paper
    assert "size:" not in blocks(CSS.read_text(encoding="utf-8"))["@page"].replace("font-size:", "")


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("-0.5 to -2, 95 % (-1)", "\u22120.5 to \u22122, 95\u00a0% (\u22121)"),
        ("-2 log L, -ELBO, eta=-1, 1 - x", "\u22122 log L, \u2212ELBO, eta=\u22121, 1 \u2212 x"),
        (
            "epochs-400, 1e-5, (-), a - b, -cd, x-y, 2024-01-02",
            "epochs-400, 1e-5, (-), a - b, -cd, x-y, 2024-01-02",
        ),
    ],
)
def test_a_minus_is_one_and_percentages_stay_on_a_line(typed: str, shown: str) -> None:
    assert style.typeset(typed) == shown


def test_paper_is_filled_by_figures_that_stand_together_and_stay_legible() -> None:
    """Halves and thirds of a page in any order: nothing is wider than drawn, or so small that text of 7
    points has less than 6, and no page but the last is a third empty."""
    generator = np.random.default_rng(4)
    heights = generator.choice([400, 197], 60)
    shapes = [(680, 197), *((680, int(height)) for height in heights), *[(321, 215)] * 5]
    figures = [
        Picture(n, f"Figure {n}", "w" * 190, "a", "", "", width, height)
        for n, (width, height) in enumerate(shapes, 1)
    ]
    found = sheets(figures)
    assert [one.number for sheet in found for one in sheet] == [one.number for one in figures]
    for sheet in found:
        assert all(6 / 7 < one.paper / (one.width * 25.4 / 96) < 1.001 for one in sheet)
        wide = [one for one in sheet if one.shape == "wide"]
        assert sum(one.paper * one.height / one.width for one in wide) < 250
    filled = [sum(one.paper * one.height / one.width + 25 for one in sheet) / 250 for sheet in found[:-3]]
    assert min(filled) > 0.7
    assert sheets([]) == []


def test_powers_of_ten_are_read_as_such_in_the_dark_too(tmp_path: Path) -> None:
    """A figure is saved twice; the second time its axis has labels already."""
    (drawn,) = drawing()
    (axis,) = drawn.figure.axes
    axis.set_yscale("log")
    axis.set_ylim(1, 1000)
    for dark_page in (False, True):
        (path,) = style.save(drawn, tmp_path, ["svg"], dark_page)
        assert "10^{2}" in path.read_text(encoding="utf-8")  # matplotlib's comment
        labels = [label for label in axis.get_yticklabels() if "10^{2}" in label.get_text()]
        assert all(label.get_parse_math() for label in labels)
        assert labels


# -- in a browser ----------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
def test_nothing_is_wider_than_paper_and_no_image_of_the_dark_is_printed(
    pages: dict[int, Path], tmp_path: Path
) -> None:
    """The page at the width of A4 with its rules of paper as those of the screen."""
    text = pages[5].read_text(encoding="utf-8").replace("@media print", "@media screen")
    measure = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify(["
        "document.documentElement.scrollWidth, innerWidth,"
        "[...document.images].filter(i => i.getClientRects().length).map(i => i.className)])})</script>"
    )
    page, out = tmp_path / "page.html", tmp_path / "dom.html"
    page.write_text(text.replace("</body>", f"{measure}</body>"), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    with out.open("w") as file:
        subprocess.run(
            [str(CHROMIUM), *flags, "--window-size=687,900", "--dump-dom", f"file://{escape(str(page))}"],
            stdout=file,
            stderr=subprocess.DEVNULL,
            timeout=180,
            check=True,
        )
    found = re.search(r"<title>\[(\d+),(\d+),\[(.*?)\]\]</title>", out.read_text(encoding="utf-8"))
    assert found
    assert int(found.group(1)) <= int(found.group(2))
    assert found.group(3).replace("&quot;", '"') == '"on-light"'
