"""Each subject's observations and curves, a page of panels at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from medcm_cli.report.figures import style
from medcm_cli.runs import Units
from medcm_cli.runs.sweeps import Method, Sweep
from medcm_cli.runs.walk import Fit

if TYPE_CHECKING:  # it needs torch, figures do not
    from medcm_cli.analysis.diagnostics import Diagnosis

PER_PAGE, _COLUMNS = 15, 5
_DECADES = 6  # of levels that an axis shows, at most
_ALPHA = {"90": 0.2, "50": 0.35}  # of the bands, the inner one over the outer
_SEEN: dict[str, Any] = {"color": "black", "marker": "o", "ms": 3, "mew": 0.7, "ls": "none"}
_BELOW = _SEEN | {"marker": "v", "mfc": "none"}
_ABOVE = _SEEN | {"marker": "^", "mfc": "none"}
_BANDS = (
    "median and 50 and 90 % credible bands of the level, given the fit's estimates; dashed: typical curve"
)


def pages(diagnosis: "Diagnosis") -> int:
    """How many pages ``subjects`` has, none without random effects."""
    if not diagnosis.mixed:
        return 0
    return -(-diagnosis.observations["subject"].nunique() // PER_PAGE)


def limits(diagnoses: Sequence["Diagnosis"]) -> tuple[float, float]:
    """Of the axis of levels of all pages and methods, so that a subject looks alike in each: around all that
    was measured, and around curves, but for those that lie far from it."""
    seen = pd.concat([of.observations for of in diagnoses])
    curves = pd.concat([of.curves for of in diagnoses if of.mixed])
    measured = seen["dv"][(seen["dv"] > 0) & ~seen["censored"]]
    levels = curves["median"][curves["median"] > 0]
    known = measured if len(measured) else levels
    low = min(known.min(), max(levels.min(), known.min() / 3)) if len(levels) else known.min()
    high = max(known.max(), min(curves[["high_90", "typical"]].max(axis=None), 2 * known.max()))
    return max(float(low) / 1.3, float(high) * 10.0**-_DECADES), 1.2 * float(high)


def subjects(
    sweep: Sweep, method: Method, fit: Fit, diagnosis: "Diagnosis", page: int, ends: tuple[float, float]
) -> style.Drawn:
    """A page (from 1) of subjects: their observations, the individual curve with its 50 and 90 % credible
    bands, and the typical curve.

    :param ends: of the axis of levels (``limits``).
    """
    everyone = list(dict.fromkeys(diagnosis.observations["subject"]))
    shown = everyone[(page - 1) * PER_PAGE : page * PER_PAGE]
    curves = diagnosis.curves[diagnosis.curves["subject"].isin(shown)]
    seen = diagnosis.observations[diagnosis.observations["subject"].isin(shown)]
    floor = ends[0]
    colour = style.colour_of(method.described.rank)
    with style.styled():
        figure, axes = _page(len(shown))
        _limits(axes, [*seen["time"], *curves["time"]], ends)
        for axis, subject in zip(axes, shown, strict=True):
            _curves(axis, curves[curves["subject"] == subject], colour, floor)
            _points(axis, seen[seen["subject"] == subject], floor)
            axis.set_title(style.named(subject, 28), pad=2, fontsize=7)
        _label(axes, sweep.units, diagnosis)
        low, high = (bool(rows.any()) for rows in style.beyond(seen, "dv", floor))
        handles = _handles(method.label, colour, low, high)
        figure.legend(handles=handles, loc="upper center", ncols=len(handles), columnspacing=1.2)
    triangles = f" Open triangles: below {floor:.3g} {diagnosis.unit} or a limit." if low else ""
    triangles += " Open triangles that point up: above a limit." if high else ""
    own = f", {diagnosis.endpoint}" if diagnosis.endpoint else ""
    where = f"page {page} of {pages(diagnosis)}" if pages(diagnosis) > 1 else ""
    return style.Drawn(
        f"individuals_{style.slug(method.label + own)}_{page:02d}",
        ", ".join(filter(None, ["Individual fits", method.label, diagnosis.endpoint, where])),
        figure,
        f"Individual fits of {method.label}{own} ({sweep.study}, {sweep.dataset}; {fit.record.address.place})"
        f"{', ' if where else ''}{where}: {_BANDS}.{triangles}",
        f"{len(shown)} panels of level against time, one per subject, with {len(seen)} observations: "
        f"{_BANDS}.",
        pd.concat([curves.assign(what="curve"), seen.assign(what="observation")], ignore_index=True),
    )


def _page(count: int) -> tuple[Figure, list[Axes]]:
    """Places are given, not found: with so many axes, finding them takes longer than drawing."""
    rows = -(-count // _COLUMNS)
    height = 1.18 * rows + 0.65
    figure = Figure(figsize=(style.DOUBLE, height))
    margins = {"left": 0.08, "right": 0.99, "bottom": 0.42 / height, "top": 1 - 0.5 / height}
    grid = figure.add_gridspec(rows, _COLUMNS, **margins, wspace=0.1, hspace=0.26)
    return figure, [figure.add_subplot(grid[divmod(place, _COLUMNS)]) for place in range(count)]


def _limits(axes: list[Axes], times: list[float], ends: tuple[float, float]) -> None:
    """The same of all panels, and given before anything is drawn: axes that find and share them take long."""
    first, last = min(times), max(times)
    space = 0.05 * (last - first) or 1.0
    for axis in axes:
        axis.set_xlim(first - space, last + space)
        style.plain_log(axis)
        axis.yaxis.set_major_locator(FixedLocator(style.levels_between(*ends)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(ends)


def _curves(axis: Axes, curves: pd.DataFrame, colour: str, floor: float) -> None:
    """Curves begin where ``style.from_first`` has it. What lies below the axis later is drawn there: lines
    leave it and come from it."""
    below = floor / 2
    for _, part in curves.groupby("segment"):
        time = part["time"]
        axis.plot(time, style.from_first(time, part["typical"], below), color="black", lw=0.8, ls=(0, (4, 2)))
        for bounds, alpha in _ALPHA.items():
            high = style.from_first(time, part[f"high_{bounds}"], below)
            low = part[f"low_{bounds}"].clip(lower=below).where(high.notna())
            style.band(axis, time, low, high, colour, alpha)
        axis.plot(time, style.from_first(time, part["median"], below), color=colour, lw=1)


def _points(axis: Axes, points: pd.DataFrame, floor: float) -> None:
    """What was observed; beyond a limit or the axis an open triangle."""
    low, high = style.beyond(points, "dv", floor)
    for rows, look in ((~(low | high), _SEEN), (low, _BELOW), (high, _ABOVE)):
        some = points[rows]
        if len(some):
            axis.plot(some["time"], some["dv"].clip(lower=floor), **look, clip_on=False, zorder=4)


def _label(axes: list[Axes], units: Units, diagnosis: "Diagnosis") -> None:
    """Labels and numbers at the edges of the page, of panels that are alike."""
    for place, axis in enumerate(axes):
        lowest, first = place + _COLUMNS >= len(axes), place % _COLUMNS == 0
        axis.tick_params(labelbottom=lowest, labelleft=first)
        if lowest:
            axis.set_xlabel(units.along)
        if first:
            axis.set_ylabel(f"{diagnosis.quantity}, {diagnosis.unit}")


def _handles(label: str, colour: str, low: bool, high: bool) -> list[Artist]:
    return [
        Line2D([], [], **_SEEN, label="observed"),
        *([Line2D([], [], **_BELOW, label="below axis or limit")] if low else []),
        *([Line2D([], [], **_ABOVE, label="above limit")] if high else []),
        Line2D([], [], color="black", lw=0.8, ls=(0, (4, 2)), label="typical"),
        Line2D([], [], color=colour, lw=1, label=f"individual, {label}"),
        style.band_handle(colour, "50 % credible", 0.5),
        style.band_handle(colour, "90 % credible", _ALPHA["90"]),
    ]
