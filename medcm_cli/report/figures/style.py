"""How figures look: one colour per objective, sizes of a journal's columns, units, files."""

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from medcm_cli.files import one_line, replaced, write_csv
from medcm_cli.report.figures import dark
from medcm_cli.runs.units import is_scale

MEDIAN, BAND, ONE_FIT = "median of fits", "95 % of fits", "one fit"  # in legends
_EDGE = 0.5  # points, of the lines around a band
_NARROW = 1 / 200  # of the times of a curve, about half the width of its line
_MOST_TICKS = 6  # minor ones of a logarithmic axis that all have numbers
_EVEN = 0.4  # decades, below which matplotlib has even ticks, so few that all can have numbers
_LONGEST_SLUG = 120  # bytes; the name of a file, which has more in it, holds 255
SINGLE, DOUBLE = 85 / 25.4, 180 / 25.4  # widths of one and of two columns of a journal, inches
_HALF = 3.8  # inches, of the rows of a figure of which two stand on a page
FORMATS = ("png", "svg", "pdf")
# Okabe and Ito's palette, which the colour-blind tell apart; truth and data are black. Colour and marker are
# those of an objective's rank, so that they do not depend on what else a study holds.
COLOURS = ("#CC79A7", "#D55E00", "#009E73", "#0072B2", "#56B4E9")
OTHER = "#E69F00"
MARKERS = ("D", "s", "^", "o", "v")
OTHER_MARKER = "P"
TRUTH: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1.0}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a figure is the same everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titley": 1.0,  # where it would be found too, for a third of the time that a figure takes
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.3,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "medcm",
    "path.simplify": True,
    "text.parse_math": False,  # what others call their subjects is none; ``_harmless`` finds our own
}


@dataclass(frozen=True)
class Drawn:
    """A figure. ``stem`` of its files; ``title``, ``caption`` and ``alt``, the text in its place for who does
    not see it; ``data``: the numbers that it shows."""

    stem: str
    title: str
    figure: Figure
    caption: str
    alt: str
    data: pd.DataFrame


@contextmanager
def styled() -> Iterator[None]:
    """What is drawn or saved inside looks alike."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # matplotlib lists the names, one by one
        yield


def colour_of(rank: int | None) -> str:
    """Of an objective, by its rank; a neutral one where it has none or the palette has no such place."""
    return COLOURS[rank] if rank is not None and rank < len(COLOURS) else OTHER


def marker_of(rank: int | None) -> str:
    """Likewise its marker."""
    return MARKERS[rank] if rank is not None and rank < len(MARKERS) else OTHER_MARKER


def slug(text: str) -> str:
    """What can stand in a file's name; of a long one the beginning, and a hash tells the rest."""
    name = re.sub(r"[\W_]+", "_", text.lower()).strip("_")
    if len(name.encode()) <= _LONGEST_SLUG:
        return name
    start = name.encode()[: _LONGEST_SLUG - 9].decode(errors="ignore")
    return f"{start}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def named(text: object, most: int = 40) -> str:
    """A name as a panel has room for it: of a long one both ends."""
    name = str(text)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}...{name[-(most // 2 - 2) :]}"


def symbol(letter: str, *names: str) -> str:
    r"""omega, CL -> $\omega_{\mathrm{CL}}$."""
    inside = ",".join(re.sub(r"[^A-Za-z0-9]", "", name) for name in names)
    return rf"$\{letter}_{{\mathrm{{{inside}}}}}$"


def beyond(seen: pd.DataFrame, column: str, floor: float) -> tuple[pd.Series, pd.Series]:
    """Which observations lie below a limit, or a ``column`` below the axis' ``floor``, and which above a
    limit."""
    above = seen["above"] if "above" in seen else pd.Series(False, index=seen.index)
    return (seen["censored"] & ~above) | (seen[column] < floor), above


def on(scale: str) -> str:
    """What a random effect is on, with its unit."""
    return f"{scale} (-)" if is_scale(scale) else scale


def of(scale: str) -> str:
    """What the sd of a random effect is on, or in."""
    return f"on {scale}" if is_scale(scale) else f"({scale})"


SQUARED_OMEGA, SQUARED_PI = r"$N(0, \omega^2)$", r"$N(0, \pi^2)$"
_POWER = r"\$\\mathdefault\{(?:\d\\times)?10\^\{-?\d+\}\}\$"  # matplotlib's, on a logarithmic axis
# Before a number or a name of capitals, or after a number and its blank.
_MINUS = re.compile(r"(?:^|(?<=[\s(=]))-(?=\d|\.\d|[A-Z]{2})|(?<=\d )-(?= )")
_DENSITIES = "|".join(map(re.escape, (SQUARED_OMEGA, SQUARED_PI)))
_SYMBOLS = re.compile(r"\$\\\w+_\{\\mathrm\{[A-Za-z0-9,]*\}\}\$|" + _DENSITIES + "|" + _POWER)


def typeset(text: str) -> str:
    """A text in which a minus is one, as matplotlib has it on its axes, and a percentage stays on a line."""
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", _MINUS.sub("\N{MINUS SIGN}", text))


def _harmless(figure: Figure) -> None:
    """Text in which dollar signs stand around our own symbols alone is read as mathematics; every line stays
    one; a minus is one, as matplotlib has it on its axes."""
    for text in figure.findobj(Text):
        words = text.get_text()
        if words:
            text.set_text(typeset("\n".join(map(one_line, words.split("\n")))))
            text.set_parse_math("$" in words and "$" not in _SYMBOLS.sub("", words))


def spoken(text: str) -> str:
    r"""A label as words, for alternative text: $\omega_{\mathrm{CL}}$ -> omega CL."""
    return re.sub(r"\$\\(\w+)_\{\\mathrm\{([^}]*)\}\}\$", r"\1 \2", text)


def panels(
    count: int, per_row: int, height: float, width: float | None = None, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels, at most ``per_row`` in a row and as many in each, ``height`` inches
    high."""
    rows = -(-count // per_row)
    columns = -(-count // rows)
    chosen = width or (SINGLE if columns == 1 else DOUBLE)
    figure = Figure(figsize=(chosen, rows * height + 0.35), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    axes = list(grid.ravel())
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def row_height(rows: float, most: float, least: float) -> float:
    """Inches of each of the rows of a figure: so many that two figures stand on a page.

    :param most: of a few rows. :param least: of very many, which take a page of their own."""
    return max(least, min(most, _HALF / rows))


def legend(figure: Figure, handles: Sequence[Artist], title: str | None = None) -> None:
    """One for all panels, above them, so that it covers no data. Of handles with the same label, the
    first. ``title``: what all panels show."""
    distinct: dict[str, Artist] = {}
    for handle in handles:
        distinct.setdefault(str(handle.get_label()), handle)
    if MEDIAN in distinct:
        distinct.pop(ONE_FIT, None)  # a line alike: the caption says which are of one fit
    if distinct:
        columns = _legend_columns([len(label) for label in distinct], figure.get_figwidth())
        figure.set_figheight(figure.get_figheight() + 0.16 * (-(-len(distinct) // columns) - 1))
        figure.legend(
            title=title,
            title_fontsize=STYLE["legend.fontsize"],
            handles=list(distinct.values()),
            loc="outside upper center",
            ncols=columns,
            handlelength=2.4,
            columnspacing=1.2,
        )


def _legend_columns(letters: Sequence[int], width: float) -> int:
    """The most columns, filled one after another, in which labels of so many letters fit so many inches."""
    for columns in range(len(letters), 1, -1):
        rows = -(-len(letters) // columns)
        widest = [max(letters[start : start + rows]) for start in range(0, len(letters), rows)]
        # A handle with its spaces, and a letter.
        if len(widest) == columns and sum(0.5 + 0.062 * most for most in widest) <= width:
            return columns
    return 1


def band(axis: Axes, x: Any, low: Any, high: Any, colour: str, alpha: float) -> None:
    """An area with thin edges, which tell it from others where they overlap, and in print without colour.

    :param x: (T,), likewise ``low`` and ``high``.
    """
    axis.fill_between(x, low, high, color=colour, alpha=alpha, lw=0)
    for edge in (low, high):
        axis.plot(x, edge, color=colour, lw=_EDGE, alpha=0.8)


def from_first(time: pd.Series, level: pd.Series, floor: float) -> pd.Series:
    """Levels for a logarithmic axis, over ascending times: none before the first above 0, as before a dose,
    nor while they rise from it faster than a line is wide, as in a short infusion; such a line would stand
    upright, like a second axis. Later ones are no lower than ``floor``."""
    at, values = time.to_numpy(np.float64), level.to_numpy(np.float64)
    if not (values > 0).any():
        return level.where(level > 0)
    start = at[np.argmax(values > 0)]
    narrow = (values > 0) & (at <= start + _NARROW * (at[-1] - at[0]))
    return level.clip(lower=floor).where(np.arange(len(at)) >= np.argmax(np.where(narrow, values, -np.inf)))


def median_and_band(axis: Axes, along: str, curve: pd.DataFrame, rank: int | None) -> list[Artist]:
    """Draw the median of fits and the band of 95 % of them, with the colour and marker of an objective's
    rank; of a single fit its line alone. Their handles, for a legend.

    :param curve: column ``along``, and ``low``, ``median``, ``high`` and ``fits``.
    """
    several = bool((curve["fits"] > 1).any())
    if several:
        band(axis, curve[along], curve["low"], curve["high"], colour_of(rank), 0.18)
    step = max(1, len(curve) // 5)
    axis.plot(
        curve[along],
        curve["median"],
        color=colour_of(rank),
        marker=marker_of(rank),
        markersize=3,
        markevery=(step // 2, step),
    )
    line = Line2D([], [], color="0.35", lw=1.3, label=MEDIAN if several else ONE_FIT)
    return [line, band_handle("0.35", BAND, 0.18)] if several else [line]


def band_handle(colour: str, label: str, alpha: float) -> Patch:
    """Of a ``band``, for a legend."""
    return Patch(facecolor=to_rgba(colour, alpha), edgecolor=to_rgba(colour, 0.8), lw=_EDGE, label=label)


def plain_log(axis: Axes) -> None:
    """A logarithmic axis with numbers as one reads them."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(_plain)
    axis.yaxis.set_minor_formatter(functools.partial(_minor, axis))


def _plain(value: float, _: float) -> str:  # functions of a module's, since figures are sent to processes
    return f"{value:g}"


def _minor(axis: Axes, value: float, _: float) -> str:
    return f"{value:g}" if _has_label(axis, value) else ""


def levels_between(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten where there are three, else 2 and 5 times
    them too, or more."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.zeros(0)
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = np.sort(np.outer(powers, digits).ravel())
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) > 2:
            break
    return [float(tick) for tick in ticks]


def _has_label(axis: Axes, value: float) -> bool:
    """Whether a minor tick has its number: the fewer decades there are, the more of them; all where they are
    few, as on an axis with no power of ten. Asked when a figure is drawn, as limits may be set late."""
    low, high = sorted(axis.get_ylim())
    decades = np.log10(high / low)
    digit = f"{value:e}"[0]
    if decades >= 1:
        powers = np.floor(np.log10(high)) - np.ceil(np.log10(low)) + 1
        return bool(decades < 1.5 or powers < 2) and digit in "25"
    if decades < _EVEN or digit in "2357":
        return True
    ticks = np.asarray(axis.yaxis.get_minorticklocs())  # takes longest
    return bool(((ticks >= low) & (ticks <= high)).sum() <= _MOST_TICKS)


def _lay_out(figure: Figure) -> None:
    """Give everything its place, once, whatever the format and the page, so that no drawing looks for it
    again."""
    engine = figure.get_layout_engine()
    if isinstance(engine, PlaceHolderLayoutEngine):  # it has its place
        return
    logarithmic = [
        axis
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatter)
    ]
    if logarithmic and engine is None:
        figure.draw_without_rendering()  # powers of ten are labels once they were drawn, or asked for
    elif logarithmic and engine is not None:
        engine.execute(figure)
        for axis in logarithmic:
            axis.get_ticklabels(which="both")
    _harmless(figure)
    if engine is not None:
        engine.execute(figure)  # all that drawing would do first
        figure.set_layout_engine("none")
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0.5, 0.5)


def write(drawn: Drawn, folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure in each format, and its numbers as CSV beside it; the same figure gives the same
    bytes."""
    paths = save(drawn, folder, formats)
    numbers = folder / f"{drawn.stem}.csv"
    write_csv(numbers, drawn.data)
    return [*paths, numbers]


def save(drawn: Drawn, folder: Path, formats: Sequence[str] = FORMATS, dark_page: bool = False) -> list[Path]:
    """Write a figure in each format, and nothing else: the files ``STEM.svg`` and so on.

    :param dark_page: write ``STEM_dark.svg`` and so on instead, in the colours of a dark page and without a
        background. The figure itself stays as it is, and is of the same size.
    """
    ending = "_dark" if dark_page else ""
    paths = [folder / f"{drawn.stem}{ending}.{kind}" for kind in formats]
    without_date: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with styled():
        _lay_out(drawn.figure)
        with dark.recoloured(drawn.figure) if dark_page else nullcontext():
            for path, kind in zip(paths, formats, strict=True):
                with replaced(path) as partial:
                    drawn.figure.savefig(
                        partial, format=kind, metadata=without_date.get(kind), transparent=dark_page
                    )
    return paths
