"""Objective value, error, Omega and sigma over epochs: median and 95 % band over fits (the paper's Figures 3,
S2, S3 and S5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from medcm_cli.report.figures import style
from medcm_cli.runs.bands import bands
from medcm_cli.runs.sweeps import Method, Sweep, name_of
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
    """One of ``MEASURES``, None where no fit has it. Panels are objectives, random effects, their pairs or
    the components of the error."""
    described = [panel for panel in _panels(sweep, measure) if _has(panel)]
    if not described:
        return None
    looks = _looks(sweep)
    with style.styled():
        figure, axes = style.panels(len(described), 3, 2.1)
        parts: list[pd.DataFrame] = []
        handles: list[Artist] = []
        sentences = []
        for axis, panel in zip(axes, described, strict=True):
            data, said = _draw(axis, panel, looks, handles)
            parts.append(data)
            sentences.append(said)
            if measure == "objective":
                axis.set_title(name_of(panel.methods[0].objective))
        plain = measure == "objective" and all(len(panel.methods) == 1 for panel in described)
        # Panels that each show one method say so in their titles.
        style.legend(figure, [h for h in handles if not plain or h.get_label() == "failed fit"])
    where = f"{sweep.study}, {sweep.dataset}"
    crosses = any(fit.failed_at is not None for panel in described for m in panel.methods for fit in m.fits)
    caption = (
        f"{TITLES[measure]} ({where}): median (line) and 2.5 to 97.5 % quantiles (band) over the fits that "
        "have reached an epoch. " + _counts(sweep)
    )
    caption += " Dashed black: truth." if any(panel.truth is not None for panel in described) else ""
    caption += " Crosses: where a fit failed." if crosses else ""
    caption += " Values of the first epochs may lie beyond the axes."
    return style.Drawn(
        f"epochs_{measure}",
        TITLES[measure],
        figure,
        caption,
        f"Line chart against epochs, {where}. " + " ".join(sentences),
        pd.concat(parts, ignore_index=True),
    )


def _panels(sweep: Sweep, measure: str) -> list[_Panel]:
    every = sweep.methods
    if measure == "objective":
        return [
            _objective(sweep, [m for m in every if m.objective == name])
            for name in dict.fromkeys(m.objective for m in every)
        ]
    if measure == "rmse":
        return [_Panel("rmse", f"RMSE, typical, {sweep.units.reported}", every)]
    if measure == "kl":
        return [_Panel("kl", "KL divergence of Omega, nats", every, logarithmic=True)]
    return _errors(sweep) if measure == "sigma" else _omega(sweep, measure)


def _omega(sweep: Sweep, measure: str) -> list[_Panel]:
    """The sds of the random effects, or their correlations."""
    names, truth = sweep.random_effects, (sweep.truth or {}).get("omega")
    sd = None if truth is None else np.sqrt(np.array(truth).diagonal())
    if measure == "omega":
        return [
            _Panel(
                f"omega_{i + 1}",
                f"{style.symbol('omega', name)}, sd on log scale",
                sweep.methods,
                None if sd is None else float(sd[i]),
            )
            for i, name in enumerate(names)
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
    units = {
        "additive": (sweep.units.reported, sweep.units.scale),
        "proportional": ("fraction of level", 1.0),
    }
    known = (sweep.truth or {}).get("sigma", {})
    return [
        _Panel(
            f"sigma_{part}",
            f"{style.symbol('sigma', part)}, {unit}",
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


def _has(panel: _Panel) -> bool:
    return any(
        panel.column in fit.history and np.isfinite(fit.history[panel.column]).any()
        for method in panel.methods
        for fit in method.fits
    )


def _counts(sweep: Sweep) -> str:
    parts = []
    for method in sweep.methods:
        failed = len(method.fits) - len(method.complete)
        parts.append(f"{method.label} {len(method.fits)}" + (f" ({failed} failed)" if failed else ""))
    waiting = f"; {sweep.unfinished} not finished" if sweep.unfinished else ""
    return f"Fits: {', '.join(parts)}{waiting}."


def _looks(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Label of a method -> colour, line and marker."""
    lines = style.lines_of([method.described.rank for method in sweep.methods])
    return {
        method.label: {
            "color": style.colour_of(method.described.rank),
            "linestyle": line,
            "marker": style.marker_of(method.described.rank),
        }
        for method, line in zip(sweep.methods, lines, strict=True)
    }


def _draw(
    axis: Axes, panel: _Panel, looks: Mapping[str, dict[str, Any]], handles: list[Artist]
) -> tuple[pd.DataFrame, str]:
    """Draw a panel; its numbers, and what it shows in words."""
    parts, said, crosses = [], [], []
    for number, method in enumerate(panel.methods):
        band = bands(method, panel.column)
        if band.empty:
            continue
        band[["low", "median", "high"]] *= panel.factor
        step = max(1, len(band) // 6)
        every = step * number // len(panel.methods), step  # so that markers do not hide one another
        look = looks[method.label]
        axis.fill_between(band["epoch"], band["low"], band["high"], color=look["color"], alpha=0.18, lw=0)
        axis.plot(band["epoch"], band["median"], **look, markevery=every, markersize=3)
        handles.append(Line2D([], [], **look, markersize=3, label=method.label))
        last = band.iloc[-1]
        said.append(
            f"{method.label}: median {last['median']:.3g} "
            f"({last['low']:.3g} to {last['high']:.3g}) at epoch {last['epoch']:g}."
        )
        parts.append(band.assign(method=method.label, measure=panel.column, truth=panel.truth))
        crosses += [(method, fit) for fit in method.fits if fit.failed_at is not None]
    if panel.truth is not None:
        axis.axhline(panel.truth, **style.TRUTH)
        handles.append(Line2D([], [], **style.TRUTH, label="truth"))
        said.append(f"The truth is {panel.truth:.3g}.")
    if panel.logarithmic:
        axis.set_yscale("log")
    _limit(axis, pd.concat(parts), panel)
    for method, fit in crosses:
        parts.append(_cross(axis, method, fit, panel))
        handles.append(Line2D([], [], color="black", marker="x", ls="none", markersize=4, label="failed fit"))
    axis.set_xlabel("epoch")
    axis.set_ylabel(panel.label)
    axis.margins(x=0.02)
    head = f"{panel.label}: " if len(said) else ""
    return pd.concat(parts, ignore_index=True), style.spoken(head) + " ".join(said)


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
