"""Figures on a dark page: what is drawn can be seen there, and the figure on paper stays as it was."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.patches import Patch
from matplotlib.typing import ColorType
from PIL import Image

from medcm_cli.report.figures import dark, style


def luminance(colour: ColorType) -> float:
    """Relative luminance, as WCAG 2 has it."""
    channels = np.array(to_rgb(colour), dtype=np.float64)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: ColorType, other: ColorType) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", ["black", "0.35", *style.COLOURS, style.OTHER])
def test_lines_and_text_can_be_told_from_a_dark_page(colour: str) -> None:
    least = 4.5 if colour in ("black", "0.35") else 3.0  # of text and of graphics
    assert contrast(dark.on_dark(colour), dark.PAGE) >= least


@pytest.mark.parametrize("rank", range(len(style.COLOURS) + 1))
def test_faint_areas_their_edges_points_and_lines_can_be_seen(rank: int) -> None:
    """As they lie on the page, from what they are drawn with; and afterwards they are as they were."""
    colour = style.colour_of(rank)
    with style.styled():
        figure, (axis,) = style.panels(1, 1, 2.0)
        style.band(axis, [1, 2], [0, 1], [2, 3], colour, 0.14)
        axis.scatter([1, 2], [2, 1], color=colour, s=7, alpha=0.5, linewidths=0)
        axis.axhline(1, color="0.75", lw=0.6)
        style.legend(figure, [style.band_handle(colour, "band", 0.14)])
    (area, points), (handle,) = axis.collections, figure.legends[0].get_patches()

    def seen() -> list[tuple[float, float]]:
        faces = [(of.get_facecolor(), least) for of, least in ((area, 1.5), (points, 3.0))]
        drawn = [*faces, (handle.get_facecolor(), 1.5), (handle.get_edgecolor(), 3.0)]
        drawn += [(to_rgba(line.get_color(), line.get_alpha()), 3.0) for line in axis.lines]
        result = []
        for given, least in drawn:
            *channels, alpha = np.ravel(given)
            mixed = alpha * np.array(channels) + (1 - alpha) * np.array(to_rgb(dark.PAGE))
            result.append((contrast(tuple(mixed), dark.PAGE), least))
        return result

    before = seen()
    with dark.recoloured(figure):
        found = seen()
    assert len(found) == 7
    assert all(contrast >= least for contrast, least in found), found
    assert seen() == before


def test_greys_change_places_and_what_is_transparent_stays_so() -> None:
    greys = [dark.on_dark(grey)[0] for grey in ("0", "0.3", "0.6", "1")]
    assert greys == sorted(greys, reverse=True)
    assert dark.on_dark("none")[3] == 0
    assert dark.on_dark((0, 0, 0, 0.25))[3] == 0.25
    np.testing.assert_array_equal(dark.on_dark(np.zeros((0, 4))), np.zeros((0, 4)))


def test_a_figure_for_a_dark_page_is_of_the_same_size_and_leaves_the_other_alone(tmp_path: Path) -> None:
    with style.styled():
        figure, (axis,) = style.panels(1, 1, 2.0)
        axis.plot([1, 2], [1, 2], color="black", marker="o", markerfacecolor="none")
        axis.fill_between([1, 2], [0, 1], [2, 3], color=style.COLOURS[3], alpha=0.3)
        axis.scatter([1, 2], [2, 1], color="0.2")
        axis.set_xlabel("time, h")
        style.legend(figure, [Patch(color="0.5", label="band")])
    drawn = style.Drawn("one", "One", figure, "", "", pd.DataFrame({"x": [1.0]}))
    first = style.save(drawn, tmp_path, ["png", "svg"])
    before = [path.read_bytes() for path in first]
    on_dark = style.save(drawn, tmp_path, ["png", "svg"], dark_page=True)
    assert [path.name for path in on_dark] == ["one_dark.png", "one_dark.svg"]
    assert [path.read_bytes() for path in style.save(drawn, tmp_path, ["png", "svg"])] == before
    with Image.open(on_dark[0]) as image, Image.open(first[0]) as light:
        assert image.size == light.size
        pixels = np.asarray(image.convert("RGBA")) / 255
    assert pixels[0, 0, 3] == 0
    solid = pixels[pixels[..., 3] == 1][:, :3]
    assert len(solid) > 500
    # No black is left: the darkest that is opaque is still lighter than the page.
    assert solid.max(1).min() > max(to_rgb(dark.PAGE))
