"""What an editor looks for in a figure: the same subjects and limits wherever figures are compared, a legend
for all that is drawn, and no words that are not so, as of a band of a single fit."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D

from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.report.figures import style, training
from medcm_cli.report.figures.catalogue import figures
from medcm_cli.report.figures.goodness import _trend as trend
from medcm_cli.runs.sweeps import Sweep, collect, common_fold, final_objective
from medcm_cli.study.job import Job
from tests.helpers import SMALL, configuration

EDGE = 0.5  # points
NEGATIVE_ZERO = re.compile(r"(?<![\d.e])-0(\.0*)?(?![\d.])")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("contents")
    write_study(root / "data", SMALL)
    for objective in ("fo", "vi"):
        choices = (f"objective={objective}", "epochs=8", "tail=4", "fold=[1,2,3]")
        job = Job.build(configuration(root / "data", root / "outputs", *choices))
        job.run(list(job.plan().records.values()))
    return root / "outputs"


@pytest.fixture(scope="module")
def sweep(outputs: Path) -> Sweep:
    return collect([outputs]).sweeps[0]


@pytest.fixture(scope="module")
def drawn(sweep: Sweep) -> dict[str, style.Drawn]:
    return {one.stem: one for one in figures(sweep, [], epochs=(2, 4))}


@pytest.fixture(scope="module")
def single(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, style.Drawn]:
    """The same of one fit of each method."""
    root = tmp_path_factory.mktemp("single") / "outputs"
    shutil.copytree(outputs, root)
    for path in list(root.rglob("run.json")):
        if "fold=01" not in str(path):
            shutil.rmtree(path.parent)
    return {one.stem: one for one in figures(collect([root]).sweeps[0], [])}


def test_every_method_shows_the_same_patients_in_the_same_bins(
    sweep: Sweep, drawn: dict[str, style.Drawn]
) -> None:
    seen = [drawn[f"goodness_{name}"].data[["subject", "time", "dv"]] for name in ("fo", "vi")]
    pd.testing.assert_frame_equal(seen[0], seen[1])
    check = drawn["predictive_check"].data
    same = ["from", "to", "time", "observations", "percentile", "observed"]
    of_method = [part[same[:5]].reset_index(drop=True) for _, part in check.groupby("method")]
    assert len(of_method) == 2
    pd.testing.assert_frame_equal(of_method[0], of_method[1])
    for part in of_method:
        median = part[part["percentile"] == 50]
        assert median["observations"].sum() == len(seen[0])
        assert (np.diff(median["time"]) > 0).all()
        held = [seen[0]["time"].between(row["from"], row["to"]).sum() for _, row in median.iterrows()]
        assert held == median["observations"].tolist()
    fold = common_fold(sweep.methods)
    assert drawn["predictive_check"].caption.count(f"fold {fold}, ") == 2


def test_the_fold_that_all_show_is_near_the_middle_of_every_method(sweep: Sweep) -> None:
    """Of three folds none that is the best or the worst of both methods."""
    fold = common_fold(sweep.methods)
    assert fold is not None
    places = []
    for method in sweep.methods:
        ranked = sorted(method.complete, key=final_objective)
        places.append([fit.record.address.fold for fit in ranked].index(fold))
    assert set(places) not in ({0}, {2})
    assert common_fold([]) is None


def test_effects_have_one_logarithmic_axis_at_every_epoch(drawn: dict[str, style.Drawn]) -> None:
    limits = set()
    for stem, words in (("effects", "epoch 8"), ("effects_epoch_2", "poch 2"), ("effects_epoch_4", "poch 4")):
        figure = drawn[stem].figure
        figure.draw_without_rendering()
        ratios = [axis for axis in figure.axes if axis.get_yscale() == "log"]
        assert len(ratios) == 2 * 3  # a row for each method
        limits |= {axis.get_ylim() for axis in ratios}
        labels = [label.get_text() for label in ratios[0].get_yticklabels()]
        assert {"0.5", "1", "2"} <= set(labels)
        assert words in figure.legends[0].get_title().get_text()
        assert words in drawn[stem].caption
    assert len(limits) == 1


def test_captions_count_the_fits_of_what_has_a_panel_and_name_grey_where_it_is(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods are told apart though a label has a comma."""
    fo, vi = sweep.methods
    twice = replace(sweep, methods=(fo, vi, replace(vi, label="VI, other")))
    both = "Fits: FO (n = 3); VI (n = 3)"
    check_caption(training.over_epochs(sweep, "objective"), f"{both}.", False)
    check_caption(training.over_epochs(twice, "objective"), f"{both}; VI, other (n = 3).", True)
    check_caption(training.over_epochs(sweep, "omega"), f"{both}.", True)
    monkeypatch.setattr(training, "_has", lambda method, _: method is vi)
    check_caption(training.over_epochs(sweep, "omega"), "Fits: VI (n = 3).", False)


def check_caption(one: style.Drawn | None, said: str, grey: bool) -> None:
    assert one is not None
    assert said in one.caption
    lines = [line for axis in one.figure.axes for line in axis.lines if line.get_color() == "0.6"]
    words = " ".join(text.get_text() for text in one.figure.legends[0].get_texts())
    assert (bool(lines), "Grey" in one.caption, "other" in words) == (grey,) * 3


@pytest.mark.parametrize("limits", [(0.21, 0.365), (0.285, 0.92), (0.12, 0.38), (0.5, 4.0), (0.1001, 0.1009)])
def test_a_logarithmic_axis_of_less_than_a_decade_has_numbers_along_all_of_it(
    limits: tuple[float, float],
) -> None:
    """Though limits are set after the axis was made logarithmic."""
    with style.styled():
        figure, (axis,) = style.panels(1, 1, 1.9)
        style.plain_log(axis)
        axis.set_ylim(limits)
        figure.draw_without_rendering()
    ticks = [*axis.yaxis.get_major_ticks(), *axis.yaxis.get_minor_ticks()]
    shown = sorted(
        t.get_loc() for t in ticks if t.label1.get_text() and limits[0] <= t.get_loc() <= limits[1]
    )
    assert 2 <= len(shown) <= 10
    spaces = np.diff(np.log([limits[0], *shown, limits[1]])) / np.log(limits[1] / limits[0])
    assert spaces.max() < 0.5


def test_a_curve_begins_at_its_first_level() -> None:
    """After none at all and a rise in a minute of two days; it is cut where it falls, not where it rises
    slowly or again."""
    time = pd.Series([0.0, 0.005, 0.015, 0.015, 1.0, 48.0, 48.015])
    given = style.from_first(time, pd.Series([0.0, 20.0, 90.0, 90.0, 60.0, 0.0, 90.0]), 0.1)
    np.testing.assert_equal(given.to_numpy(), [np.nan, np.nan, 90, 90, 60, 0.1, 90])
    slow = pd.Series([0.0, 0.5, 1.5, 1.5, 4.0, 48.0, 49.5])
    by_mouth = style.from_first(slow, pd.Series([0.0, 20.0, 90.0, 90.0, 60.0, 5.0, 90.0]), 0.1)
    np.testing.assert_equal(by_mouth.to_numpy(), [np.nan, 20, 90, 90, 60, 5, 90])
    assert style.from_first(time, time * 0, 0.1).isna().all()


def test_individual_curves_and_their_bands_begin_with_the_dose(drawn: dict[str, style.Drawn]) -> None:
    figure = drawn["individuals_vi_01"].figure
    lines = [line for axis in figure.axes for line in axis.lines if line.get_linestyle() != "None"]
    edges = [line for line in lines if line.get_linewidth() == EDGE]
    assert len(edges) == 4 * len(figure.axes)
    for line in lines:
        y = np.asarray(line.get_ydata(), dtype=float)
        assert np.isnan(y[0])  # before the dose
        assert np.nanargmax(y) == np.flatnonzero(np.isfinite(y))[0]


def test_a_subject_has_the_same_axis_in_every_method_and_on_every_page_with_all_that_was_measured(
    drawn: dict[str, style.Drawn],
) -> None:
    pages = [one for stem, one in drawn.items() if stem.startswith("individuals_")]
    (ends,) = {axis.get_ylim() for one in pages for axis in one.figure.axes}
    for one in pages:
        seen = one.data[one.data["what"] == "observation"]
        measured = seen["dv"][(seen["dv"] > 0) & ~seen["censored"].astype(bool)]
        assert ends[0] < measured.min() <= measured.max() < ends[1]
        figure = one.figure
        figure.draw_without_rendering()
        for place, axis in enumerate(figure.axes):
            labels = [t.label1.get_text() for t in axis.yaxis.get_major_ticks() if t.label1.get_visible()]
            assert len([label for label in labels if label]) == (0 if place % 5 else len(labels))
        assert len(figure.axes[0].get_yticks()) > 2


def looks(line: Line2D) -> str:
    """By which a legend tells a line: its dashes, or its marker where it has none."""
    dashes = line.get_linestyle()
    return str(line.get_marker() if dashes == "None" else dashes)


@pytest.mark.parametrize("which", ["drawn", pytest.param("single", marks=pytest.mark.slow)])
def test_all_that_is_drawn_is_in_the_legend(which: str, request: pytest.FixtureRequest) -> None:
    for stem, one in request.getfixturevalue(which).items():
        (legend,) = one.figure.legends
        labels = [text.get_text() for text in legend.get_texts()]
        assert len(labels) == len(set(labels)), stem
        known = {looks(line) for line in legend.get_lines()}
        for axis in one.figure.axes:
            lines = [line for line in axis.lines if line.get_linewidth() > EDGE]  # others are a band's
            assert {looks(line) for line in lines} <= known, stem
            points = [of for of in axis.collections if isinstance(of, PathCollection)]
            areas = [of for of in axis.collections if of not in points]
            assert not areas or legend.get_patches(), stem
            hollow = [of for of in points if np.size(of.get_offsets()) and not len(of.get_facecolor())]
            assert not hollow or "below axis or limit" in labels, stem


def test_a_single_fit_has_no_band_and_no_words_of_one(
    single: dict[str, style.Drawn], drawn: dict[str, style.Drawn]
) -> None:
    for stem in ("effects", *(f"epochs_{measure}" for measure in training.MEASURES)):
        for one, several in ((single[stem], False), (drawn[stem], True)):
            labels = {text.get_text() for text in one.figure.legends[0].get_texts()}
            areas = [a for axis in one.figure.axes for a in axis.collections]
            assert (style.BAND in labels, bool(areas), "quantiles" in one.caption) == (several,) * 3, stem
            assert (style.ONE_FIT in labels) == (not several), stem


def test_no_number_is_minus_nothing(drawn: dict[str, style.Drawn], single: dict[str, style.Drawn]) -> None:
    assert NEGATIVE_ZERO.search("shrinkage -0 %")
    assert not NEGATIVE_ZERO.search("-0.4 and 2e-05 and 10-0.5")
    for one in (*drawn.values(), *single.values()):
        titles = [axis.get_title() for axis in one.figure.axes]
        for text in (one.caption, one.alt, *titles):
            assert not NEGATIVE_ZERO.search(text), text


@pytest.mark.slow  # every figure is drawn
def test_ticks_are_numbers_and_nothing_leaves_the_page(drawn: dict[str, style.Drawn]) -> None:
    """At print size: text of 6 points or more, all of it inside the figure."""
    for stem, one in drawn.items():
        one.figure.draw_without_rendering()
        page = one.figure.bbox.padded(3)
        for axis in one.figure.axes:
            ticks = [*axis.get_xticklabels(), *axis.get_yticklabels()]
            for text in (axis.title, axis.xaxis.label, axis.yaxis.label, *ticks):
                if not (text.get_visible() and text.get_text() and axis.get_visible()):
                    continue
                assert "mathdefault" not in text.get_text(), stem
                assert float(text.get_fontsize()) >= 6, stem
            for label in (axis.xaxis.label, axis.title):
                box = label.get_window_extent()
                assert not label.get_text() or page.contains(box.x0, box.y0), (stem, label.get_text())
                assert not label.get_text() or page.contains(box.x1, box.y1), (stem, label.get_text())


def test_a_trend_is_nowhere_vertical() -> None:
    """Times at which many observations tie."""
    generator = np.random.default_rng(2)
    x = pd.Series(np.repeat([0.25, 0.5, 1.0, 24.0], [40, 3, 55, 9]) + 0.0)
    found = trend(x, pd.Series(generator.standard_normal(len(x))))
    assert len(found) > 1
    assert (np.diff(found.index) > 0).all()
