"""How a fit meets its data: observed against predicted, residuals, the visual predictive check, random
effects, and each subject's curve. All of it from what ``medcm_cli.analysis.diagnostics`` computes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from medcm_cli.report.figures import style
from medcm_cli.report.figures.collected import Fit, Method, Sweep

if TYPE_CHECKING:  # it needs torch, figures do not
    from medcm_cli.analysis.diagnostics import Diagnosis

Chosen = Sequence[tuple[Method, Fit, "Diagnosis"]]
"""Of each method the fit that stands for it."""

PER_PAGE, _COLUMNS = 16, 4
_POINT: dict[str, Any] = {"s": 7, "alpha": 0.5, "linewidths": 0}
_BIN = 0.4  # width of a histogram's bins, of omega
_RASTER = 4000  # points from which on a vector file holds them as an image


def observed_and_predicted(sweep: Sweep, method: Method, fit: Fit, diagnosis: "Diagnosis") -> style.Drawn:
    """Observed against typical and individual predictions; CWRES against time and typical prediction. Without
    random effects there are no individual predictions, and residuals are plain."""
    seen = diagnosis.observations
    seen = seen[~seen["censored"]]
    mixed = diagnosis.mixed
    unit = sweep.unit
    residual = "CWRES (-)" if mixed else f"residual, {unit}"
    typical = f"typical prediction, {unit}"
    plots = [("typical", "dv", typical, f"observed, {unit}")]
    plots += [("individual", "dv", f"individual prediction, {unit}", f"observed, {unit}")] if mixed else []
    plots += [("time", "residual", "time, h", residual), ("typical", "residual", typical, residual)]
    with style.styled():
        figure, axes = style.panels(len(plots), 2 if mixed else 3, 2.3)
        for axis, (x, y, xlabel, ylabel) in zip(axes, plots, strict=True):
            axis.scatter(
                seen[x],
                seen[y],
                color=method.colour,
                marker=method.marker,
                rasterized=len(seen) > _RASTER,
                **_POINT,
            )
            if y == "dv":
                most = float(max(seen[x].max(), seen[y].max()))
                axis.plot([0, most], [0, most], color="black", lw=0.8)
            else:
                axis.axhline(0, color="black", lw=0.8)
                if mixed:
                    for bound in (-1.96, 1.96):
                        axis.axhline(bound, color="black", lw=0.6, ls=(0, (1, 2)))
                    most = max(4.0, 1.05 * float(seen[y].abs().max()))
                    axis.set_ylim(-most, most)
            trend = _trend(seen[x], seen[y])
            axis.plot(trend.index, trend, color="black", lw=1.2, ls=(0, (5, 1.5)))
            axis.set_xlabel(xlabel)
            axis.set_ylabel(ylabel)
        handles = [
            Line2D([], [], color=method.colour, marker=method.marker, ls="none", ms=4, label=method.label),
            Line2D([], [], color="black", lw=0.8, label="agreement"),
            Line2D([], [], color="black", lw=1.2, ls=(0, (5, 1.5)), label="median in bins"),
        ]
        if mixed:
            handles.append(Line2D([], [], color="black", lw=0.6, ls=(0, (1, 2)), label="±1.96"))
        style.legend(figure, handles)
    what = f"mean {seen['residual'].mean():.2f}, sd {seen['residual'].std():.2f}"
    words = (
        "Conditional weighted residuals (CWRES; Hooker 2007): the model is linearised at each subject's "
        f"empirical Bayes estimate; {what}; of a right model 0 and 1"
        if mixed
        else f"Residuals from the typical prediction, as the method has no random effects; {what} {unit}"
    )
    subjects = seen["subject"].nunique()
    left_out = int(diagnosis.observations["censored"].sum())
    censored = f" {left_out} observations below the limit are left out." if left_out else ""
    return style.Drawn(
        f"goodness_{style.slug(method.label)}",
        f"Goodness of fit, {method.label}",
        figure,
        f"Goodness of fit of {method.label} ({sweep.study}, {sweep.dataset}; {fit.name}), training subjects. "
        f"{words}.{censored}",
        f"Scatter plots of {len(seen)} observations of {subjects} subjects against predictions, and of their "
        "residuals against time and prediction. Correlation with the typical prediction "
        f"{np.corrcoef(seen['typical'], seen['dv'])[0, 1]:.2f}. {words}.",
        diagnosis.observations,
    )


def _trend(x: pd.Series, y: pd.Series) -> pd.Series:
    """Medians in bins of x with equally many points."""
    bins = pd.qcut(x, min(8, max(1, len(x) // 10)), duplicates="drop")
    grouped = pd.DataFrame({"x": x, "y": y}).groupby(bins, observed=True).median()
    return grouped.set_index("x")["y"]


def predictive_check(sweep: Sweep, chosen: Chosen) -> style.Drawn | None:
    """Prediction-corrected visual predictive check, a panel per method with random effects; None where no
    method has any."""
    shown = [(method, fit, diagnosis) for method, fit, diagnosis in chosen if diagnosis.mixed]
    if not shown:
        return None
    every = pd.concat([diagnosis.check.assign(method=method.label) for method, _, diagnosis in shown])
    logarithmic = bool((every[["observed", "low"]] > 0).all(axis=None))
    outside = []
    with style.styled():
        figure, axes = style.panels(len(shown), 3, 2.3, sharex=True, sharey=True)
        for axis, (method, _, diagnosis) in zip(axes, shown, strict=True):
            _check_panel(axis, diagnosis.check, method)
            axis.use_sticky_edges = False
            axis.set_title(method.label)
            axis.set_xlabel("time, h")
            axis.set_ylabel(f"level, {sweep.unit}")
            axis.tick_params(labelbottom=True, labelleft=True)
            if logarithmic:
                _plain_log(axis)
            out = (diagnosis.check["observed"] < diagnosis.check["low"]) | (
                diagnosis.check["observed"] > diagnosis.check["high"]
            )
            outside.append(f"{method.label}: {int(out.sum())} of {len(out)}")
        black: dict[str, Any] = {"color": "black", "marker": "o", "ms": 2.5}
        handles = [
            Line2D([], [], **black, ls="-", label="observed median"),
            Line2D([], [], **black, ls=(0, (3, 1.5)), label="observed 5 and 95 %"),
            Patch(color="0.35", alpha=0.6, lw=0, label="simulated median"),
            Patch(color="0.6", alpha=0.5, lw=0, label="simulated 5 and 95 %"),
        ]
        style.legend(figure, handles)
    fits = "; ".join(f"{method.label}: {fit.name}" for method, fit, _ in shown)
    said = f"Observed percentiles outside their 90 % interval: {'; '.join(outside)}."
    return style.Drawn(
        "predictive_check",
        "Prediction-corrected visual predictive check",
        figure,
        f"Prediction-corrected visual predictive check (Bergstrand et al. 2011) of {sweep.study}, "
        f"{sweep.dataset} ({fits}): 5, 50 and 95 % percentiles of the observations in bins of time, and 90 % "
        f"intervals of the same of {shown[0][2].simulations} simulated data sets. {said}",
        f"Observed percentiles over simulated intervals against time, a panel per method. {said}",
        every,
    )


def _check_panel(axis: Axes, check: pd.DataFrame, method: Method) -> None:
    for percentile, part in check.groupby("percentile"):
        width = (part["to"] - part["from"]).clip(lower=0.01 * float(check["to"].max()))
        middle = percentile == 50
        axis.bar(
            part["from"],
            part["high"] - part["low"],
            width,
            part["low"],
            align="edge",
            color=method.colour,
            alpha=0.45 if middle else 0.22,
            lw=0,
        )
        line = "-" if middle else (0, (3, 1.5))
        axis.plot(part["time"], part["observed"], color="black", ls=line, lw=1.0, marker="o", ms=2.5)


def _plain_log(axis: Axes) -> None:
    """A logarithmic axis with numbers as one reads them."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axis.get_ylim()
    if np.log10(high / low) < 1.5:
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def random_effects(sweep: Sweep, chosen: Chosen) -> style.Drawn | None:
    """Histograms of the subjects' random effects with the density N(0, omega^2) and shrinkage, a row per
    method; None where no method has any."""
    shown = [(method, fit, diagnosis) for method, fit, diagnosis in chosen if diagnosis.mixed]
    if not shown:
        return None
    names = sweep.random_effects
    data, said = [], []
    with style.styled():
        figure, axes = style.panels(len(shown) * len(names), len(names), 1.55, style.DOUBLE, sharex="col")
        for row, (method, _, diagnosis) in enumerate(shown):
            for column, name in enumerate(names):
                axis = axes[row * len(names) + column]
                eta, omega = diagnosis.etas[name], diagnosis.omega[name]
                bins = np.arange(eta.min(), eta.max() + _BIN * omega, _BIN * omega).tolist()
                axis.hist(eta, bins=bins, density=True, color=method.colour, alpha=0.45, lw=0)
                x = np.linspace(-3.2 * omega, 3.2 * omega, 121)
                axis.plot(
                    x, np.exp(-0.5 * (x / omega) ** 2) / (omega * np.sqrt(2 * np.pi)), color="black", lw=1
                )
                shrinkage = 100 * (1 - eta.std() / omega)
                axis.set_title(f"{method.label}: shrinkage {shrinkage:.0f} %")
                axis.set_ylabel("density (-)")
                axis.set_xlabel(f"{style.symbol('eta', name)}, log scale" if row == len(shown) - 1 else "")
                said.append(f"{method.label}, {name}: {shrinkage:.0f} %")
                data.append(
                    pd.DataFrame(
                        {
                            "method": method.label,
                            "subject": diagnosis.etas["subject"],
                            "parameter": name,
                            "eta": eta,
                            "omega": omega,
                            "shrinkage": shrinkage / 100,
                        }
                    )
                )
        density = Line2D([], [], color="black", lw=1, label=r"$N(0, \omega^2)$")
        style.legend(figure, [Patch(color="0.5", alpha=0.45, lw=0, label="subjects"), density])
    return style.Drawn(
        "random_effects",
        "Random effects and shrinkage",
        figure,
        "Posterior means or modes of the random effects of the training subjects "
        f"({sweep.study}, {sweep.dataset}) and the density that the fit gives to the population. Shrinkage "
        "is 1 - sd(eta) / omega.",
        f"Histograms with a normal density. Shrinkage: {'; '.join(said)}.",
        pd.concat(data, ignore_index=True),
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


def individual_pages(diagnosis: "Diagnosis") -> int:
    """How many pages ``individuals`` has, none without random effects."""
    if not diagnosis.mixed:
        return 0
    return -(-diagnosis.observations["subject"].nunique() // PER_PAGE)


def individuals(sweep: Sweep, method: Method, fit: Fit, diagnosis: "Diagnosis", page: int) -> style.Drawn:
    """A page (from 1) of subjects: their observations, the individual curve with its 50 and 90 % credible
    bands, and the typical curve."""
    subjects = list(dict.fromkeys(diagnosis.observations["subject"]))
    shown = subjects[(page - 1) * PER_PAGE : page * PER_PAGE]
    curves = diagnosis.curves[diagnosis.curves["subject"].isin(shown)]
    seen = diagnosis.observations[diagnosis.observations["subject"].isin(shown)]
    positive = pd.concat([seen["dv"], curves["typical"]])
    floor = 0.6 * float(positive[positive > 0].quantile(0.01))
    with style.styled():
        figure, axes = _page(len(shown))
        for axis, subject in zip(axes, shown, strict=False):
            for _, part in curves[curves["subject"] == subject].groupby("segment"):
                part = part[part["typical"] > 0]  # from the first dose on
                axis.plot(part["time"], part["typical"], color="black", lw=0.8, ls=(0, (4, 2)))
                for level, alpha in (("90", 0.2), ("50", 0.35)):
                    ends = part[f"low_{level}"], part[f"high_{level}"]
                    axis.fill_between(part["time"], *ends, color=method.colour, alpha=alpha, lw=0)
                axis.plot(part["time"], part["median"], color=method.colour, lw=1)
            points = seen[seen["subject"] == subject]
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
            axis.set_title(str(subject), pad=2, fontsize=7)
        for empty in axes[len(shown) :]:
            empty.set_visible(False)
        _plain_log(axes[0])
        axes[0].yaxis.set_minor_locator(NullLocator())
        axes[0].set_ylim(bottom=floor)
        for axis in axes[: len(shown)][-_COLUMNS:]:  # the last of each column
            axis.set_xlabel("time, h")
            axis.tick_params(labelbottom=True)
        for axis in axes[: len(shown) : _COLUMNS]:
            axis.set_ylabel(f"level, {sweep.unit}")
        handles = [
            Line2D([], [], color="black", marker="o", ms=3, ls="none", label="observed"),
            Line2D([], [], color="black", lw=0.8, ls=(0, (4, 2)), label="typical"),
            Line2D([], [], color=method.colour, lw=1, label=f"individual, {method.label}"),
            Patch(color=method.colour, alpha=0.5, lw=0, label="50 %"),
            Patch(color=method.colour, alpha=0.2, lw=0, label="90 % credible"),
        ]
        figure.legend(handles=handles, loc="upper center", ncols=len(handles))
    pages = individual_pages(diagnosis)
    bands = (
        "median and 50 and 90 % credible bands of the level, given the fit's estimates; dashed: typical curve"
    )
    triangles = (
        f" Open triangles: below {floor:.3g} {sweep.unit} or a limit."
        if ((seen["censored"] | (seen["dv"] < floor)).any())
        else ""
    )
    return style.Drawn(
        f"individuals_{style.slug(method.label)}_{page:02d}",
        f"Individual fits, {method.label}, page {page} of {pages}",
        figure,
        f"Individual fits of {method.label} ({sweep.study}, {sweep.dataset}; {fit.name}), page {page} of "
        f"{pages}: {bands}.{triangles}",
        f"{len(shown)} panels of level against time, one per subject, with {len(seen)} observations: "
        f"{bands}.",
        pd.concat([curves.assign(what="curve"), seen.assign(what="observation")], ignore_index=True),
    )
