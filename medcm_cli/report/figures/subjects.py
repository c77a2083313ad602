"""Each subject's observations and curves, a page of panels at a time."""

from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from medcm_cli.report.figures import style
from medcm_cli.runs import Units
from medcm_cli.runs.sweeps import Method, Sweep
from medcm_cli.runs.walk import Fit

if TYPE_CHECKING:  # it needs torch, figures do not
    from medcm_cli.analysis.diagnostics import Diagnosis

PER_PAGE, _COLUMNS = 16, 4
_ALPHA = {"90": 0.2, "50": 0.35}  # of the bands, the inner one over the outer
_BANDS = (
    "median and 50 and 90 % credible bands of the level, given the fit's estimates; dashed: typical curve"
)


def pages(diagnosis: "Diagnosis") -> int:
    """How many pages ``subjects`` has, none without random effects."""
    if not diagnosis.mixed:
        return 0
    return -(-diagnosis.observations["subject"].nunique() // PER_PAGE)


def subjects(sweep: Sweep, method: Method, fit: Fit, diagnosis: "Diagnosis", page: int) -> style.Drawn:
    """A page (from 1) of subjects: their observations, the individual curve with its 50 and 90 % credible
    bands, and the typical curve."""
    everyone = list(dict.fromkeys(diagnosis.observations["subject"]))
    shown = everyone[(page - 1) * PER_PAGE : page * PER_PAGE]
    curves = diagnosis.curves[diagnosis.curves["subject"].isin(shown)]
    seen = diagnosis.observations[diagnosis.observations["subject"].isin(shown)]
    positive = pd.concat([seen["dv"], curves["typical"]])
    floor = 0.6 * float(positive[positive > 0].quantile(0.01))
    colour = style.colour_of(method.described.rank)
    with style.styled():
        figure, axes = _page(len(shown))
        for axis, subject in zip(axes, shown, strict=False):
            _curves(axis, curves[curves["subject"] == subject], colour, floor)
            _points(axis, seen[seen["subject"] == subject], floor)
            axis.set_title(style.named(subject, 28), pad=2, fontsize=7)
        _share(axes, len(shown), floor, sweep.units)
        low = bool((seen["censored"] | (seen["dv"] < floor)).any())
        handles = _handles(method.label, colour, low)
        figure.legend(handles=handles, loc="upper center", ncols=len(handles), columnspacing=1.2)
    triangles = f" Open triangles: below {floor:.3g} {sweep.units.reported} or a limit." if low else ""
    where = f"page {page} of {pages(diagnosis)}"
    return style.Drawn(
        f"individuals_{style.slug(method.label)}_{page:02d}",
        f"Individual fits, {method.label}, {where}",
        figure,
        f"Individual fits of {method.label} ({sweep.study}, {sweep.dataset}; {fit.record.address.place}), "
        f"{where}: {_BANDS}.{triangles}",
        f"{len(shown)} panels of level against time, one per subject, with {len(seen)} observations: "
        f"{_BANDS}.",
        pd.concat([curves.assign(what="curve"), seen.assign(what="observation")], ignore_index=True),
    )


def _page(count: int) -> tuple[Figure, list[Axes]]:
    """Places are given, not found: with so many axes, finding them takes longer than drawing."""
    rows = -(-count // _COLUMNS)
    height = 1.68 * rows + 0.75
    figure = Figure(figsize=(style.DOUBLE, height))
    margins = {"left": 0.08, "right": 0.99, "bottom": 0.42 / height, "top": 1 - 0.5 / height}
    spaces = {"wspace": 0.1, "hspace": 0.26}
    axes = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, gridspec_kw={**margins, **spaces})
    return figure, list(axes.ravel())


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
    """What was observed; below a limit or the axis an open triangle."""
    for below in (False, True):
        some = points[(points["censored"] | (points["dv"] < floor)) == below]
        axis.scatter(
            some["time"],
            some["dv"].clip(lower=floor),
            s=9,
            color="black",
            marker="v" if below else "o",
            facecolors="none" if below else "black",
            linewidths=0.7,
            clip_on=False,
            zorder=4,
        )


def _share(axes: list[Axes], count: int, floor: float, units: Units) -> None:
    """The logarithmic axes that all panels share, with their labels at the edges of the page."""
    for empty in axes[count:]:
        empty.set_visible(False)
    style.plain_log(axes[0])
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].set_ylim(bottom=floor)
    for axis in axes[:count][-_COLUMNS:]:  # the last of each column
        axis.set_xlabel(f"time, {units.time}")
        axis.tick_params(labelbottom=True)
    for axis in axes[:count:_COLUMNS]:
        axis.set_ylabel(f"level, {units.reported}")


def _handles(label: str, colour: str, low: bool) -> list[Artist]:
    below: dict[str, Any] = {"marker": "v", "mfc": "none", "mew": 0.7, "ms": 3, "ls": "none"}
    return [
        Line2D([], [], color="black", marker="o", ms=3, ls="none", label="observed"),
        *([Line2D([], [], color="black", **below, label="below axis or limit")] if low else []),
        Line2D([], [], color="black", lw=0.8, ls=(0, (4, 2)), label="typical"),
        Line2D([], [], color=colour, lw=1, label=f"individual, {label}"),
        style.band_handle(colour, "50 % credible", 0.5),
        style.band_handle(colour, "90 % credible", _ALPHA["90"]),
    ]
