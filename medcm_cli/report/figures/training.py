"""Objective value, error, Omega and sigma over epochs: median and 95 % band over fits (the paper's Figures 3,
S2, S3 and S5)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from medcm_cli.report.figures import style
from medcm_cli.runs import SIGMAS
from medcm_cli.runs.bands import bands
from medcm_cli.runs.sweeps import Method, Sweep
from medcm_cli.runs.units import NONE
from medcm_cli.runs.walk import Fit

MEASURES = ("objective", "rmse", "kl", "omega", "rho", "sigma")
TITLES = {
    "objective": "Objective value over epochs",
    "rmse": "Error of typical predictions over epochs",
    "kl": "Distance of Omega from the truth over epochs",
    "omega": "Standard deviations of the random effects over epochs",
    "rho": "Correlations of the random effects over epochs",
    "sigma": "Residual error over epochs",
}
_OTHERS, _ALIKE, _FAILED = "the other methods", "others of the same objective", "failed fit"
_PER_ROW = 4  # panels, at most
_SETTLED = 0.1  # of the epochs; what lies before them does not set an axis's range


@dataclass(frozen=True)
class _Panel:
    """A ``column`` of the histories of some methods; ``factor`` to the unit of ``label``."""

    column: str
    label: str
    methods: Sequence[Method]
    truth: float | None = None
    logarithmic: bool = False
    factor: float = 1.0


def over_epochs(sweep: Sweep, measure: str) -> style.Drawn | None:
    """One of ``MEASURES``, None where no fit has it. Each method has a panel of its own, for each random
    effect, pair of them or component of the error, with the medians of the others in grey: bands of several
    methods over one another cannot be read."""
    described = [
        replace(panel, methods=[method for method in panel.methods if _has(method, panel.column)])
        for panel in _panels(sweep, measure)
    ]
    described = [panel for panel in described if panel.methods]
    if not described:
        return None
    parts: list[pd.DataFrame] = []
    handles: list[Artist] = []
    sentences = []
    with style.styled():
        figure, rows = _grid([len(panel.methods) for panel in described], measure == "objective")
        for axes, panel in zip(rows, described, strict=True):
            data, said = _draw(axes, panel, handles)
            parts.append(data)
            sentences.append(said)
        style.legend(figure, handles)
    where = f"{sweep.study}, {sweep.dataset}"
    labels = {str(handle.get_label()) for handle in handles}
    caption = f"{TITLES[measure]} ({where})"
    if style.BAND in labels:
        caption += (
            ": median (line) and 2.5 to 97.5 % quantiles (band) over the fits that have reached an epoch"
        )
        caption += "; where there is one fit, its line" if style.ONE_FIT in labels else ""
    else:
        caption += ": each line is one fit"
    caption += f". {_counts(sweep, described)}"
    caption += " Grey: the other methods." if _OTHERS in labels else ""
    caption += " Grey, in panels of the same objective: the others." if _ALIKE in labels else ""
    caption += " Dashed: truth." if any(panel.truth is not None for panel in described) else ""
    caption += " Crosses: where a fit failed." if _FAILED in labels else ""
    caption += " Values of the first epochs may lie beyond the axes."
    return style.Drawn(
        f"epochs_{measure}",
        TITLES[measure],
        figure,
        caption,
        f"Line charts against epochs, {where}. " + " ".join(sentences),
        pd.concat(parts, ignore_index=True),
    )


def _grid(counts: Sequence[int], apart: bool) -> tuple[Figure, list[list[Axes]]]:
    """Axes for so many methods of each panel: those of one method, or ``apart``, side by side; else panels
    below one another, each with as many rows as it needs."""
    ends = np.cumsum([0, *counts])
    if max(counts) == 1 or apart:
        per_row = 2 if ends[-1] in (2, 4) else 3
        height = style.row_height(-(-int(ends[-1]) // per_row), 1.9 if ends[-1] > 3 else 1.7, 1.5)
        figure, axes = style.panels(int(ends[-1]), per_row, height)
        for axis in axes:
            axis.set_xlabel("epoch")
        return figure, [axes[first:end] for first, end in pairwise(ends)]
    rows = -(-max(counts) // _PER_ROW)
    columns = -(-max(counts) // rows)
    needed = [-(-count // columns) for count in counts]
    height = style.row_height(sum(needed), 1.55, 1.2) * sum(needed) + 0.4
    figure = Figure(figsize=(style.DOUBLE, height), layout="constrained")
    grid = figure.subplots(sum(needed), columns, squeeze=False, sharex="col")
    result = []
    for first, number, count in zip(np.cumsum([0, *needed]), needed, counts, strict=False):
        axes = list(grid[first : first + number].ravel())
        for empty in axes[count:]:
            empty.remove()
        result.append(axes[:count])
    lowest = {place % columns: axis for axes in result for place, axis in enumerate(axes)}.values()
    for axis in (axis for axes in result for axis in axes):
        axis.tick_params(labelbottom=axis in lowest)  # which the others of a column share
    for axis in lowest:
        axis.set_xlabel("epoch")
    return figure, result


def _panels(sweep: Sweep, measure: str) -> list[_Panel]:
    every = sweep.methods
    if measure == "objective":
        return [
            _objective(sweep, [m for m in every if m.objective == name])
            for name in dict.fromkeys(m.objective for m in every)
        ]
    if measure == "rmse" and (own := sweep.units.by_endpoint):
        return [
            _Panel(name, f"RMSE of {name.removeprefix('rmse_')}, typical, {unit}", every)
            for name, unit in own.items()
            if name.startswith("rmse_")
        ]
    if measure == "rmse":
        return [_Panel("rmse", f"RMSE, typical, {sweep.units.reported}", every)]
    if measure == "kl":
        return [_Panel("kl", "KL of Omega, nats", every, logarithmic=True)]
    return _errors(sweep) if measure == "sigma" else _omega(sweep, measure)


def _omega(sweep: Sweep, measure: str) -> list[_Panel]:
    """The sds of the random effects, or their correlations."""
    names, truth = sweep.random_effects, (sweep.truth or {}).get("omega")
    sd = None if truth is None else np.sqrt(np.array(truth).diagonal())
    scales = sweep.effect_scales
    if measure == "omega":
        return [
            _Panel(
                f"omega_{i + 1}",
                f"{style.symbol('omega', name)}, sd {style.of(scales[name])}",
                sweep.methods,
                None if sd is None else float(sd[i]),
            )
            for i, name in enumerate(names)
        ] + [
            _Panel(f"pi_{name}", f"{style.symbol('pi', name)}, sd {style.of(scale)}", sweep.methods)
            for name, scale in sweep.occasion_scales.items()
        ]
    omega = None if truth is None else np.array(truth)
    return [
        _Panel(
            f"rho_{i + 1}{j + 1}",
            f"{style.symbol('rho', names[j], names[i])}, correlation (-)",
            sweep.methods,
            None if omega is None else float(omega[i, j] / np.sqrt(omega[i, i] * omega[j, j])),
        )
        for i in range(len(names))
        for j in range(i)
    ]


def _errors(sweep: Sweep) -> list[_Panel]:
    """The components of the residual error."""
    units = {part: (unit.format(reported=sweep.units.reported), 1.0) for part, unit in SIGMAS.items()}
    units |= {
        "additive": (sweep.units.reported, sweep.units.scale),
        "proportional": ("fraction of level", 1.0),
    }
    known = (sweep.truth or {}).get("sigma", {})
    if own := sweep.units.by_endpoint:
        named = {name.removeprefix("sigma_"): unit for name, unit in own.items() if name.startswith("sigma_")}
        units |= {part: (unit, 1.0) for part, unit in named.items()}
    return [
        _Panel(
            f"sigma_{part}",
            style.symbol("sigma", *part.rsplit("_", 1)) + ("" if unit == NONE else f", {unit}"),
            sweep.methods,
            known[part] * factor if part in known else None,
        )
        for part, (unit, factor) in units.items()
    ]


def _objective(sweep: Sweep, methods: Sequence[Method]) -> _Panel:
    """The objectives of different methods are different functions, so each has its own axis."""
    described = methods[0].described
    label = described.label(sweep.units.reported)
    return _Panel("objective_value", label, methods, factor=sweep.units.scale**described.power)


def _has(method: Method, column: str) -> bool:
    return any(column in fit.history and np.isfinite(fit.history[column]).any() for fit in method.fits)


def _counts(sweep: Sweep, panels: Sequence[_Panel]) -> str:
    """Of the methods that have a panel."""
    shown = [method for method in sweep.methods if any(method in panel.methods for panel in panels)]
    parts = []
    for method in shown:
        failed = len(method.fits) - len(method.complete)
        said = f", {failed} failed" if failed else ""
        parts.append(f"{method.label} (n = {len(method.fits)}{said})")
    waiting = f" {sweep.unfinished} not finished." if sweep.unfinished else ""
    return f"Fits: {'; '.join(parts)}.{waiting}"


def _draw(axes: Sequence[Axes], panel: _Panel, handles: list[Artist]) -> tuple[pd.DataFrame, str]:
    """Draw a panel, a method on each of the axes, which have the same limits; its numbers, and what it shows
    in words."""
    found = {method.label: _band(method, panel) for method in panel.methods}
    parts = [
        band.assign(method=label, measure=panel.column, truth=panel.truth) for label, band in found.items()
    ]
    for place, (axis, method) in enumerate(zip(axes, panel.methods, strict=True)):
        handles += style.median_and_band(axis, "epoch", found[method.label], method.described.rank)
        others = [band for label, band in found.items() if label != method.label and len(band)]
        for band in others:
            axis.plot(band["epoch"], band["median"], color="0.6", lw=0.7, zorder=1)
        if others:
            label = _ALIKE if panel.column == "objective_value" else _OTHERS
            handles.append(Line2D([], [], color="0.6", lw=0.7, label=label))
        if panel.truth is not None:
            axis.axhline(panel.truth, **style.TRUTH)
            handles.append(Line2D([], [], **style.TRUTH, label="truth"))
        if panel.logarithmic:
            style.plain_log(axis)
        _limit(axis, pd.concat(parts), panel)
        for fit in method.fits:
            if fit.failed_at is not None:
                parts.append(_cross(axis, method, fit, panel))
                handles.append(Line2D([], [], color="0.35", marker="x", ls="none", ms=4, label=_FAILED))
        axis.set_title(method.label)
        spec = axis.get_subplotspec()
        beside = panel.column != "objective_value" and spec is not None and not spec.is_first_col()
        axis.set_ylabel("" if beside and place else ",\n".join(panel.label.rsplit(", ", 1)))
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.margins(x=0.04)
    said = [_said(label, band) for label, band in found.items() if len(band)]
    if panel.truth is not None:
        said.append(f"The truth is {panel.truth:.3g}.")
    return pd.concat(parts, ignore_index=True), style.spoken(f"{panel.label}: ") + " ".join(said)


def _band(method: Method, panel: _Panel) -> pd.DataFrame:
    """``bands``, in the unit of the panel."""
    band = bands(method, panel.column)
    if len(band):
        band[["low", "median", "high"]] *= panel.factor
    return band


def _said(label: str, band: pd.DataFrame) -> str:
    """Where a method ends."""
    last = band.iloc[-1]
    if last["fits"] == 1:
        return f"{label}: {last['median']:.3g} (one fit) at epoch {last['epoch']:g}."
    around = f"({last['low']:.3g} to {last['high']:.3g})"
    return f"{label}: median {last['median']:.3g} {around} at epoch {last['epoch']:g}."


def _limit(axis: Axes, band: pd.DataFrame, panel: _Panel) -> None:
    """An axis shows all of what is left after the first epochs."""
    settled = band[band["epoch"] >= _SETTLED * band["epoch"].max()]
    low, high = settled["low"].min(), settled["high"].max()
    if panel.truth is not None:
        low, high = min(low, panel.truth), max(high, panel.truth)
    if panel.logarithmic and low > 0:
        space = (high / low) ** 0.06 if high > low else 1.2
        axis.set_ylim(low / space, high * space)
    elif not panel.logarithmic:
        space = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axis.set_ylim(low - space, high + space)


def _cross(axis: Axes, method: Method, fit: Fit, panel: _Panel) -> pd.DataFrame:
    """At the epoch where a fit failed, at its last value, or at the axis's end nearest to it."""
    known = fit.history[panel.column].dropna() if panel.column in fit.history else pd.Series(dtype=float)
    last = float(known.iloc[-1]) * panel.factor if len(known) else np.nan
    bottom, top = axis.get_ylim()
    shown = float(np.clip(last, bottom, top)) if np.isfinite(last) else bottom
    assert fit.failed_at is not None
    axis.plot(
        [fit.failed_at],
        [shown],
        marker="x",
        color=style.colour_of(method.described.rank),
        markersize=5,
        mew=1.2,
        clip_on=False,
        zorder=5,
    )
    row = {"epoch": fit.failed_at, "median": last, "method": method.label, "measure": panel.column}
    return pd.DataFrame([row | {"failed": fit.record.address.place}])
