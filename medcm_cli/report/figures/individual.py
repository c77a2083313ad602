"""A patient's predicted levels: a panel for each regimen, with what was measured and what is typical."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from medcm_cli.patients.results import GIVEN, Prediction
from medcm_cli.report.figures import style

_COLOUR = "#0072B2"
_TYPICAL: dict[str, Any] = {"color": "#D55E00", "lw": 1.1, "ls": (0, (5, 1.5))}
_MEASURED: dict[str, Any] = {"color": _COLOUR, "lw": 0.7, "ls": (0, (1, 1.2))}
_WARNINGS = 4  # that are written out
_DECADES = 3.5  # of levels that a panel shows, from the highest down


def patient(prediction: Prediction, name: str) -> style.Drawn:
    """One patient's figure: median and 50 and 90 % bands of the level, the 90 % band of a measured one,
    the typical curve, doses along the bottom and thresholds across."""
    curve = prediction.curve[prediction.curve["patient"] == name]
    regimens = list(dict.fromkeys(curve["regimen"]))
    thresholds = sorted(prediction.thresholds["threshold"].unique()) if len(prediction.thresholds) else []
    seen = prediction.observations[prediction.observations["patient"] == name]
    top = float(max(curve["measured_upper_90"].max(), seen["level"].max() if len(seen) else 0.0)) * 1.3
    floor = max(top * 10**-_DECADES, min([*thresholds, top]) / 3)
    with style.styled():
        width = style.DOUBLE if len(regimens) > 1 else 4.6
        figure, axes = style.panels(len(regimens), 2, 2.5 if len(regimens) > 1 else 3.0, width, sharey=True)
        for axis, regimen in zip(axes, regimens, strict=True):
            of_regimen = curve[curve["regimen"] == regimen]
            _curve(axis, of_regimen, floor)
            if regimen == GIVEN and len(seen):
                _points(axis, seen[seen["on_curve"]], floor)
            doses = prediction.doses.query("patient == @name and regimen == @regimen and on_curve")["time"]
            inside = doses[(doses >= prediction.times[0]) & (doses <= prediction.times[-1])]
            axis.plot(inside, np.full(len(inside), floor), "^", color="black", ms=4, clip_on=False, zorder=5)
            _thresholds(axis, thresholds)
            axis.set_yscale("log")
            axis.set_ylim(floor, top)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_xlim(prediction.times[0], prediction.times[-1])
            _days(axis, prediction.units.hours)
            axis.set_xlabel(f"time, {prediction.units.time}")
            axis.set_title("as given" if regimen == GIVEN else style.named(regimen))
        axes[0].set_ylabel(f"level, {prediction.unit}")
        style.legend(figure, _handles(bool(len(seen))))
        figure.supxlabel(_said(prediction, name, width), fontsize=6, color="0.35", x=0.01, ha="left")
        figure.suptitle(style.named(name, 60), fontsize=9, x=0.01, ha="left")
    words = (
        f"Predicted levels of {name} ({prediction.label}): median, 50 and 90 % bands over the patient's "
        "posterior and the fits (shaded), 90 % band of a measured level (dotted), typical patient of the "
        f"same covariates (dashed). {prediction.disclaimer}"
    )
    last = curve.groupby("regimen", sort=False).tail(1)
    alt = f"Line chart of level against time for {name}. " + " ".join(
        f"Regimen {row.regimen}: {row.median:.3g} {prediction.unit} at {row.time:g} {prediction.units.time}."
        for row in last[["regimen", "median", "time"]].itertuples()
    )
    numbers = curve.assign(study=prediction.label, disclaimer=prediction.disclaimer)
    return style.Drawn(f"patient_{style.slug(name)}", f"Levels of {name}", figure, words, alt, numbers)


def _curve(axis: Axes, curve: pd.DataFrame, floor: float) -> None:
    shown = curve.assign(**{name: curve[name].clip(lower=floor / 2) for name in curve.columns[3:]})
    for bound, alpha in ((90, 0.18), (50, 0.32)):
        axis.fill_between(
            shown["time"],
            shown[f"lower_{bound}"],
            shown[f"upper_{bound}"],
            color=_COLOUR,
            alpha=alpha,
            lw=0,
        )
    for name in ("measured_lower_90", "measured_upper_90"):
        axis.plot(shown["time"], shown[name], **_MEASURED)
    axis.plot(shown["time"], shown["median"], color=_COLOUR)
    axis.plot(shown["time"], shown["typical"], **_TYPICAL)


def _thresholds(axis: Axes, thresholds: Sequence[float]) -> None:
    for threshold in thresholds:
        axis.axhline(threshold, color="0.6", lw=0.6, zorder=0)
        axis.annotate(
            f"{threshold:g}",
            (1.0, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color="0.4",
        )


def _points(axis: Axes, seen: pd.DataFrame, floor: float) -> None:
    """Levels that were measured; those below a limit, or below the axis, as triangles that point down."""
    low = seen["censored"] | (seen["level"] < floor)
    for rows, marker in ((~low, "o"), (low, "v")):
        at = seen[rows]
        axis.plot(at["time"], at["level"].clip(lower=floor * 1.1), marker, color="black", ms=4, zorder=4)


def _days(axis: Axes, hours: float) -> None:
    """Ticks at whole hours, days or weeks. :param hours: that a unit of time is."""
    low, high = axis.get_xlim()
    steps = (s / hours for s in (1, 2, 4, 6, 12, 24, 48, 72, 168, 336))
    step = next((s for s in steps if (high - low) / s <= 8), None)
    if step is not None:
        axis.set_xticks(np.arange(np.ceil(low / step) * step, high + 1e-9, step))


def _handles(measured: bool) -> list[Any]:
    handles: list[Any] = [
        Line2D([], [], color=_COLOUR, label="median"),
        Patch(color=_COLOUR, alpha=0.45, lw=0, label="50 %"),
        Patch(color=_COLOUR, alpha=0.18, lw=0, label="90 %"),
        Line2D([], [], **_MEASURED, label="90 %, as measured"),
        Line2D([], [], **_TYPICAL, label="typical"),
    ]
    handles.append(Line2D([], [], marker="^", color="black", ls="none", ms=4, label="dose"))
    if measured:
        handles.append(Line2D([], [], marker="o", color="black", ls="none", ms=4, label="measured"))
    return handles


def _said(prediction: Prediction, name: str, width: float) -> str:
    """The study, what predictions are for and what there is to be wary of, in lines that fit."""
    own = prediction.warnings[prediction.warnings["patient"].isin(["", name])]["message"]
    study = f"{prediction.label[0].upper()}{prediction.label[1:]}. {prediction.disclaimer}"
    lines = [study, *(f"Warning: {message}." for message in own.head(_WARNINGS))]
    if len(own) > _WARNINGS:
        lines.append(f"And {len(own) - _WARNINGS} more warnings.")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, round(width * 21)))
