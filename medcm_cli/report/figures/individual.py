"""A patient's predicted levels: a panel for each regimen, with what was measured and what is typical."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from medcm_cli.patients.results import GIVEN, Prediction
from medcm_cli.report.figures import style

_MEASURED: dict[str, Any] = {"lw": 0.7, "ls": (0, (1, 1.2))}
_MEDIUM = 120 / 25.4  # inches, one and a half columns of a journal
_HEIGHT, _NEAREST = 150.0, 9.0  # points: of an axis, about, and between labels of thresholds
_WARNINGS = 4  # that are written out
# Of levels that a panel shows, from the highest down: of curves and thresholds, and of what was measured.
_DECADES, _DECADES_MEASURED = 3.5, 6.0


def patient(prediction: Prediction, name: str, quantity: str = "level") -> style.Drawn:
    """One patient's figure: median and 50 and 90 % bands of the level, the 90 % band of a measured one,
    the typical curve, doses along the bottom and thresholds across.

    :param quantity: what the prediction is of, "level" or an endpoint's name.
    """
    what, ending = ("levels", "") if quantity == "level" else (quantity, f"_{style.slug(quantity)}")
    curve = _shape(prediction, name)
    regimens = list(dict.fromkeys(curve["regimen"]))
    seen = prediction.observations[prediction.observations["patient"] == name]
    every = sorted(prediction.thresholds["threshold"].unique()) if len(prediction.thresholds) else []
    floor, top, thresholds = _range(curve, seen, every)
    colour = style.colour_of(prediction.rank)
    with style.styled():
        width = style.DOUBLE if len(regimens) > 1 else _MEDIUM
        figure, axes = style.panels(len(regimens), 2, 2.5 if len(regimens) > 1 else 3.0, width, sharey=True)
        for axis, regimen in zip(axes, regimens, strict=True):
            _curve(axis, curve[curve["regimen"] == regimen], floor, colour)
            if regimen == GIVEN and len(seen):
                _points(axis, seen[seen["on_curve"]], floor)
            doses = prediction.doses.query("patient == @name and regimen == @regimen and on_curve")["time"]
            inside = doses[(doses >= prediction.times[0]) & (doses <= prediction.times[-1])]
            if len(inside):
                axis.plot(inside, [floor] * len(inside), "^", color="black", ms=4, clip_on=False, zorder=5)
            _thresholds(axis, thresholds, floor, top)
            axis.set_ylim(floor, top)
            style.plain_log(axis)
            axis.set_xlim(prediction.times[0], prediction.times[-1])
            _days(axis, prediction.units.hours)
            axis.set_xlabel(f"time, {prediction.units.time}")
            axis.set_title("as given" if regimen == GIVEN else style.named(regimen))
        axes[0].set_ylabel(f"{quantity}{prediction.over([name])}, {prediction.unit}")
        style.legend(figure, _handles(seen[seen["on_curve"]], floor, bool(thresholds), colour))
        figure.supxlabel(_said(prediction, name, width), fontsize=6, color="0.35", x=0.01, ha="left")
        figure.suptitle(style.named(name, 60), fontsize=9, x=0.01, ha="left")
    words = (
        f"Predicted {what} of {name} ({prediction.label}): median, 50 and 90 % bands over the patient's "
        "posterior and the fits (shaded), 90 % band of a measured level (dotted), typical patient of the "
        f"same covariates (dashed). {prediction.disclaimer}"
    )
    last = curve.groupby("regimen", sort=False).tail(1)
    alt = f"Line chart of {quantity} against time for {name}. " + " ".join(
        f"Regimen {row.regimen}: {row.median:.3g} {prediction.unit} at {row.time:g} {prediction.units.time}."
        for row in last[["regimen", "median", "time"]].itertuples()
    )
    numbers = curve.assign(study=prediction.label, disclaimer=prediction.disclaimer)
    title = f"{what[0].upper()}{what[1:]}" if quantity == "level" else what
    return style.Drawn(
        f"patient_{style.slug(name)}{ending}", f"{title} of {name}", figure, words, alt, numbers
    )


def _range(
    curve: pd.DataFrame, seen: pd.DataFrame, thresholds: Sequence[float]
) -> tuple[float, float, list[float]]:
    """The ends of the axis of levels, and the thresholds on it: not those far above all levels. Troughs are
    on it, and what was measured, but for what is next to nothing."""
    highest = float(max(curve["measured_upper_90"].max(), seen["level"].max() if len(seen) else 0.0))
    shown = [float(threshold) for threshold in thresholds if threshold <= 10 * highest]
    top = 1.3 * max([highest, *shown])
    measured = seen["level"][(seen["level"] > top * 10**-_DECADES_MEASURED) & ~seen["censored"]]
    far = top * 10**-_DECADES
    troughs = [max(far, _trough(of)) for _, of in curve.groupby("regimen")]
    floor = min([*troughs, *(threshold for threshold in shown if threshold > far), *measured]) / 1.5
    return floor, top, [threshold for threshold in shown if threshold >= floor]


def _trough(curve: pd.DataFrame) -> float:
    """The lowest that a regimen's curve falls to after its first rise, the lower end of half of it."""
    level = curve["lower_50"].to_numpy(np.float64)
    fallen = level[np.argmax(level >= 0.1 * level.max()) :]
    return float(fallen[fallen > 0].min(initial=np.inf))


def _shape(prediction: Prediction, name: str) -> pd.DataFrame:
    """A patient's curve at times close enough to be joined by lines; where the file's time begins again, and
    lines would go back, at those that were asked for."""
    if len(prediction.shape):
        shape = prediction.shape[prediction.shape["patient"] == name]
        if all(of["time"].is_monotonic_increasing for _, of in shape.groupby("regimen")):
            return shape
    return prediction.curve[prediction.curve["patient"] == name]


def _curve(axis: Axes, curve: pd.DataFrame, floor: float, colour: str) -> None:
    """Where the level begins the band of a measured one does too: before it is noise alone."""
    time, below = curve["time"], floor / 2
    for bound, alpha in ((90, 0.18), (50, 0.32)):
        upper = style.from_first(time, curve[f"upper_{bound}"], below)
        lower = curve[f"lower_{bound}"].clip(lower=below).where(upper.notna())
        style.band(axis, time, lower, upper, colour, alpha)
    there = style.from_first(time, curve["upper_90"], below).notna()
    for name in ("measured_lower_90", "measured_upper_90"):
        axis.plot(time, curve[name].clip(lower=below).where(there), color=colour, **_MEASURED)
    axis.plot(time, style.from_first(time, curve["median"], below), color=colour)
    axis.plot(time, style.from_first(time, curve["typical"], below), **style.TRUTH)


def _thresholds(axis: Axes, thresholds: Sequence[float], floor: float, top: float) -> None:
    """Lines, with labels at the right that make room for one another."""
    before = -np.inf
    for threshold in thresholds:
        axis.axhline(threshold, color="0.6", lw=0.6, zorder=0)
        place = _HEIGHT * np.log(threshold / floor) / np.log(top / floor)
        before = max(place, before + _NEAREST)
        axis.annotate(
            f"{threshold:g}",
            (1.0, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(2, before - place),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color="0.4",
        )


def _points(axis: Axes, seen: pd.DataFrame, floor: float) -> None:
    """Levels that were measured; those beyond a limit, or below the axis, as open
    triangles that point there."""
    low, high = style.beyond(seen, "level", floor)
    for rows, marker in ((~(low | high), "o"), (low, "v"), (high, "^")):
        at = seen[rows]
        if len(at):  # an empty line that is not clipped would have room made for it
            level = at["level"].clip(lower=floor * 1.1)
            fill = "black" if marker == "o" else "none"
            axis.plot(at["time"], level, marker, color="black", mfc=fill, ms=4, zorder=4, clip_on=False)


def _days(axis: Axes, hours: float) -> None:
    """Ticks at whole hours, days or weeks. :param hours: that a unit of time is."""
    low, high = axis.get_xlim()
    steps = (s / hours for s in (1, 2, 4, 6, 12, 24, 48, 72, 168, 336))
    step = next((s for s in steps if (high - low) / s <= 8), None)
    if step is not None:
        axis.set_xticks(np.arange(np.ceil(low / step) * step, high + 1e-9, step))


def _handles(seen: pd.DataFrame, floor: float, thresholds: bool, colour: str) -> list[Any]:
    handles: list[Any] = [
        Line2D([], [], color=colour, label="median"),
        style.band_handle(colour, "50 %", 0.45),
        style.band_handle(colour, "90 %", 0.18),
        Line2D([], [], color=colour, **_MEASURED, label="90 %, as measured"),
        Line2D([], [], **style.TRUTH, label="typical"),
    ]
    mark: dict[str, Any] = {"color": "black", "ls": "none", "ms": 4}
    handles.append(Line2D([], [], marker="^", **mark, label="dose"))
    low, high = style.beyond(seen, "level", floor)
    if not (low | high).all():
        handles.append(Line2D([], [], marker="o", **mark, label="measured"))
    if low.any():
        handles.append(Line2D([], [], marker="v", mfc="none", **mark, label="below axis or limit"))
    if high.any():
        handles.append(Line2D([], [], marker="^", mfc="none", **mark, label="above limit"))
    if thresholds:
        handles.append(Line2D([], [], color="0.6", lw=0.6, label="threshold"))
    return handles


def _said(prediction: Prediction, name: str, width: float) -> str:
    """The study, what predictions are for and what there is to be wary of, in lines that fit."""
    own = prediction.warnings[prediction.warnings["patient"].isin(["", name])]["message"]
    study = f"{prediction.label[0].upper()}{prediction.label[1:]}. {prediction.disclaimer}"
    lines = [study, *(f"Warning: {message}." for message in own.head(_WARNINGS))]
    if len(own) > _WARNINGS:
        lines.append(f"And {len(own) - _WARNINGS} more warnings.")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, round(width * 21)))
