"""How a fit meets its data: observed against predicted, residuals, the visual predictive check, and random
effects. All of it from what ``medcm_cli.analysis.diagnostics`` computes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.special import ndtri

from medcm_cli.analysis import bins
from medcm_cli.report.figures import style
from medcm_cli.runs.sweeps import Method, Sweep
from medcm_cli.runs.walk import Fit

if TYPE_CHECKING:  # it needs torch, figures do not
    from medcm_cli.analysis.diagnostics import Diagnosis

Chosen = Sequence[tuple[Method, Fit, "Diagnosis"]]
"""Of each method the fit that stands for it."""

_POINT: dict[str, Any] = {"s": 7, "alpha": 0.5, "linewidths": 0}
_BIN = 0.4  # width of a histogram's bins, of omega
_PER_TREND, _TRENDS = 10, 8  # observations in a bin of a trend, about; bins
_DECADES = 30  # the highest over the lowest level, from which on an axis is logarithmic
_RASTER = 4000  # points from which on a vector file holds them as an image


def observed_and_predicted(sweep: Sweep, method: Method, fit: Fit, diagnosis: "Diagnosis") -> style.Drawn:
    """Observed against typical and individual predictions; CWRES against time and typical prediction. Without
    random effects there are no individual predictions, and residuals are plain."""
    seen = diagnosis.observations
    seen = seen[~seen["censored"]]
    mixed = diagnosis.mixed
    unit, own = diagnosis.unit, f", {diagnosis.endpoint}" if diagnosis.endpoint else ""
    residual = "CWRES (-)" if mixed else f"residual, {unit}"
    typical = f"typical prediction, {unit}"
    seen_as = " ".join(filter(None, ["observed", diagnosis.endpoint])) + f", {unit}"
    plots = [("typical", "dv", typical, seen_as)]
    plots += [("individual", "dv", f"individual prediction, {unit}", seen_as)] if mixed else []
    plots += [
        ("time", "residual", sweep.units.along, residual),
        ("typical", "residual", typical, residual),
    ]
    with style.styled():
        figure, axes = style.panels(len(plots), 2 if mixed else 3, 1.9)
        for axis, (x, y, xlabel, ylabel) in zip(axes, plots, strict=True):
            _scatter(axis, method, seen[x], seen[y])
            if y == "dv":
                most = float(max(seen[x].max(), seen[y].max()))
                axis.plot([0, most], [0, most], color="black", lw=0.8)
            else:
                _around_zero(axis, seen[y], mixed)
            trend = _trend(seen[x], seen[y])
            axis.plot(trend.index, trend, color="black", lw=1.2, ls=(0, (5, 1.5)))
            axis.set_xlabel(xlabel)
            axis.set_ylabel(ylabel)
        style.legend(figure, _scatter_handles(method, mixed))
    words = _residuals_said(seen["residual"], mixed, unit)
    left_out = int(diagnosis.observations["censored"].sum())
    censored = f" {left_out} observations beyond a limit are left out." if left_out else ""
    return style.Drawn(
        f"goodness_{style.slug(method.label + own)}",
        f"Goodness of fit, {method.label}{own}",
        figure,
        f"Goodness of fit of {method.label}{own} ({sweep.study}, {sweep.dataset}; "
        f"{fit.record.address.place}), training subjects. {words}.{censored}",
        f"Scatter plots of {len(seen)} observations of {seen['subject'].nunique()} subjects against "
        "predictions, and of their residuals against time and prediction. Correlation with the typical "
        f"prediction {np.corrcoef(seen['typical'], seen['dv'])[0, 1]:z.2f}. {words}.",
        diagnosis.observations,
    )


def _scatter(axis: Axes, method: Method, x: pd.Series, y: pd.Series) -> None:
    axis.scatter(
        x,
        y,
        color=style.colour_of(method.described.rank),
        marker=style.marker_of(method.described.rank),
        rasterized=len(x) > _RASTER,
        **_POINT,
    )


def _around_zero(axis: Axes, residual: pd.Series, mixed: bool) -> None:
    """Where residuals should lie."""
    axis.axhline(0, color="black", lw=0.8)
    if mixed:
        for bound in (-1.96, 1.96):
            axis.axhline(bound, color="black", lw=0.6, ls=(0, (1, 2)))
        most = max(4.0, 1.05 * float(residual.abs().max()))
        axis.set_ylim(-most, most)


def _scatter_handles(method: Method, mixed: bool) -> list[Artist]:
    colour, marker = style.colour_of(method.described.rank), style.marker_of(method.described.rank)
    handles: list[Artist] = [
        Line2D([], [], color=colour, marker=marker, ls="none", ms=4, label=method.label),
        Line2D([], [], color="black", lw=0.8, label="agreement"),
        Line2D([], [], color="black", lw=1.2, ls=(0, (5, 1.5)), label="median in bins"),
    ]
    if mixed:
        handles.append(Line2D([], [], color="black", lw=0.6, ls=(0, (1, 2)), label="±1.96"))
    return handles


def _residuals_said(residual: pd.Series, mixed: bool, unit: str) -> str:
    what = f"mean {residual.mean():z.2f}, sd {residual.std():.2f}"
    return (
        "Conditional weighted residuals (CWRES; Hooker 2007): the model is linearised at each subject's "
        f"empirical Bayes estimate; {what}; of a right model 0 and 1"
        if mixed
        else f"Residuals from the typical prediction, as the method has no random effects; {what} {unit}"
    )


def _trend(x: pd.Series, y: pd.Series) -> pd.Series:
    """Medians in bins of x; equal x are in one, so that the line through them is nowhere vertical."""
    number = bins.numbers(x.to_numpy(np.float64), _PER_TREND, _TRENDS)
    grouped = pd.DataFrame({"x": x.to_numpy(), "y": y.to_numpy()}).groupby(number).median()
    return grouped.set_index("x")["y"]


def of_method(sweep: Sweep, method: Method, fit: Fit, diagnosis: "Diagnosis") -> list[style.Drawn]:
    """The figures that each method has for itself."""
    errors = _prediction_errors(sweep, method, fit, diagnosis)
    return [observed_and_predicted(sweep, method, fit, diagnosis), *([errors] if errors else [])]


def _prediction_errors(sweep: Sweep, method: Method, fit: Fit, diagnosis: "Diagnosis") -> style.Drawn | None:
    """Npde against the quantiles of a standard normal, time and typical prediction, with the tests of their
    distribution in the caption; None where there are none."""
    from medcm_cli.analysis.npde import verdict

    seen = diagnosis.observations[diagnosis.observations["npde"].notna()]
    if len(seen) < 3:
        return None
    own = f", {diagnosis.endpoint}" if diagnosis.endpoint else ""
    ordered = np.sort(seen["npde"].to_numpy(np.float64))
    normal = ndtri((np.arange(len(ordered)) + 0.5) / len(ordered))
    with style.styled():
        figure, axes = style.panels(3, 3, 1.9)
        panels: list[tuple[Any, Any, str]] = [
            (pd.Series(normal), pd.Series(ordered), "standard normal quantile (-)"),
            (seen["time"], seen["npde"], sweep.units.along),
            (seen["typical"], seen["npde"], f"typical prediction, {diagnosis.unit}"),
        ]
        for axis, (x, y, label) in zip(axes, panels, strict=True):
            _scatter(axis, method, x, y)
            axis.set_xlabel(label)
            axis.set_ylabel("npde (-)")
        most = float(max(np.abs(ordered).max(), normal[-1])) * 1.05
        axes[0].plot([-most, most], [-most, most], color="black", lw=0.8)
        for axis in axes[1:]:
            _around_zero(axis, seen["npde"], True)
        for axis, x in zip(axes[1:], (seen["time"], seen["typical"]), strict=True):
            trend = _trend(x, seen["npde"])
            axis.plot(trend.index, trend, color="black", lw=1.2, ls=(0, (5, 1.5)))
        style.legend(figure, _scatter_handles(method, True))
    found = verdict(ordered)
    words = (
        f"mean {seen['npde'].mean():z.2f} (Wilcoxon p {found.mean:.2g}), variance {seen['npde'].var():.2f} "
        f"(chi-squared p {found.variance:.2g}), normal (Shapiro-Wilk p {found.normality:.2g}); the three "
        f"together p {found.together:.2g}"
    )
    return style.Drawn(
        f"npde_{style.slug(method.label + own)}",
        f"Prediction distribution errors, {method.label}",
        figure,
        f"Normalised prediction distribution errors (npde; Brendel et al. 2006) of {method.label}{own} "
        f"({sweep.study}, {sweep.dataset}; {fit.record.address.place}), {len(seen)} observations of "
        f"{seen['subject'].nunique()} training subjects, from {diagnosis.simulations} simulated data sets. "
        f"Of a right model they are standard normal: {words}.",
        f"Quantiles of npde against a normal's, and npde against time and typical prediction: {words}.",
        seen,
    )


def predictive_check(sweep: Sweep, chosen: Chosen) -> style.Drawn | None:
    """Prediction-corrected visual predictive check, a panel per method with random effects, all of the same
    observations; None where no method has any. Methods whose fit is of other subjects than the first's are
    left out, which the caption says."""
    mixed = [(method, fit, diagnosis) for method, fit, diagnosis in chosen if diagnosis.mixed]
    shown = [one for one in mixed if _same_observations(one[2], mixed[0][2])]
    if not shown:
        return None
    every = pd.concat([diagnosis.check.assign(method=method.label) for method, _, diagnosis in shown])
    outside = []
    with style.styled():
        per_row = 2 if len(shown) in (2, 4) else 3
        height = style.row_height(-(-len(shown) // per_row), 1.9, 1.6)
        figure, axes = style.panels(len(shown), per_row, height, sharex=True, sharey=True)
        handles: list[Artist] = []
        for axis, (method, _, diagnosis) in zip(axes, shown, strict=True):
            handles += _check_panel(axis, diagnosis.check, method)
            axis.set_title(method.label)
            axis.set_xlabel(sweep.units.along)
            axis.set_ylabel(f"{diagnosis.quantity}, {diagnosis.unit}")
            axis.tick_params(labelbottom=True, labelleft=True)
            out = (diagnosis.check["observed"] < diagnosis.check["low"]) | (
                diagnosis.check["observed"] > diagnosis.check["high"]
            )
            outside.append(f"{method.label}: {int(out.sum())} of {len(out)}")
        _check_limits(axes, every)
        style.legend(figure, handles)
    fits = "; ".join(f"{method.label}: {fit.record.address.place}" for method, fit, _ in shown)
    said = f"Observed percentiles outside their 90 % interval: {'; '.join(outside)}."
    others = [method.label for method, _, _ in mixed if method not in [one for one, _, _ in shown]]
    left_out = f" Of other subjects, so not shown: {', '.join(others)}." if others else ""
    first = shown[0][2]
    bins = first.check["time"].nunique()
    bins_said = f"{bins} bin{'s' if bins > 1 else ''} of time"
    own = f" of {first.endpoint}" if first.endpoint else ""
    return style.Drawn(
        "_".join(filter(None, ["predictive_check", style.slug(first.endpoint) if own else ""])),
        f"Prediction-corrected visual predictive check{own}",
        figure,
        f"Prediction-corrected visual predictive check{own} (Bergstrand et al. 2011) of {sweep.study}, "
        f"{sweep.dataset} ({fits}): 5, 50 and 95 % percentiles of {len(first.observations)} observations of "
        f"{first.observations['subject'].nunique()} subjects in {bins_said} (points, at the median time of a "
        f"bin), and 90 % intervals of the same of {first.simulations} simulated data sets (shaded). "
        f"{said}{left_out}",
        f"Observed percentiles over simulated intervals against time, a panel per method. {said}",
        every,
    )


def _same_observations(one: "Diagnosis", other: "Diagnosis") -> bool:
    columns = ["subject", "time"]
    return one.observations[columns].equals(other.observations[columns])


def _check_panel(axis: Axes, check: pd.DataFrame, method: Method) -> list[Artist]:
    """Intervals as areas through the bins, which leave no gap and are as wide as the data, whatever the times
    are; of a single bin, as wide as it. Their handles, for a legend."""
    colour = style.colour_of(method.described.rank)
    for percentile, part in check.groupby("percentile"):
        middle = percentile == 50
        x, low, high = part["time"].to_numpy(), part["low"].to_numpy(), part["high"].to_numpy()
        if len(part) == 1:
            space = 0.1 * abs(x[0]) or 1.0
            x = np.array([min(part["from"].iloc[0], x[0] - space), max(part["to"].iloc[0], x[0] + space)])
            low, high = np.repeat(low, 2), np.repeat(high, 2)
        style.band(axis, x, low, high, colour, 0.4 if middle else 0.14)
        line = "-" if middle else (0, (3, 1.5))
        axis.plot(part["time"], part["observed"], color="black", ls=line, lw=1.0, marker="o", ms=2.5)
    black: dict[str, Any] = {"color": "black", "marker": "o", "ms": 2.5}
    return [
        Line2D([], [], **black, ls="-", label="observed median"),
        Line2D([], [], **black, ls=(0, (3, 1.5)), label="observed 5 and 95 %"),
        style.band_handle("0.35", "simulated median", 0.4),
        style.band_handle("0.35", "simulated 5 and 95 %", 0.14),
    ]


def _check_limits(axes: Sequence[Axes], check: pd.DataFrame) -> None:
    """Levels of more than one and a half decades are on a logarithmic axis, whose end is that of what was
    observed: an interval's may lie anywhere near 0."""
    least, most = float(check["observed"].min()), float(check["observed"].max())
    if least > 0 and most > _DECADES * least:
        for axis in axes:
            style.plain_log(axis)
            axis.set_ylim(bottom=least / 3)


def random_effects(sweep: Sweep, chosen: Chosen) -> style.Drawn | None:
    """Histograms of the subjects' random effects with the density N(0, omega^2) and shrinkage, a row per
    method; None where no method has any."""
    shown = [one for one in chosen if one[2].mixed]
    if not shown:
        return None
    figure, said, data = _spread(shown, "eta", sweep.random_effects, sweep.effect_scales)
    return style.Drawn(
        "random_effects",
        "Random effects and shrinkage",
        figure,
        "Posterior means or modes of the random effects of the training subjects "
        f"({sweep.study}, {sweep.dataset}) and the density that the fit gives to the population. Shrinkage "
        "is 1 - sd(eta) / omega.",
        f"Histograms with a normal density. Shrinkage: {'; '.join(said)}.",
        data,
    )


def between_occasions(sweep: Sweep, chosen: Chosen) -> style.Drawn | None:
    """The same of what varies between the occasions of a subject, of the methods that have it."""
    scales = sweep.occasion_scales
    shown = [one for one in chosen if one[2].mixed and set(one[2].pi) == set(scales)]
    if not shown or not scales:
        return None
    figure, said, data = _spread(shown, "kappa", list(scales), scales)
    return style.Drawn(
        "between_occasions",
        "Variability between occasions and shrinkage",
        figure,
        "Posterior means or modes of what differs between the occasions of the training subjects "
        f"({sweep.study}, {sweep.dataset}), a value per subject and occasion, and the density that the fit "
        "gives to it. Shrinkage is 1 - sd(kappa) / pi.",
        f"Histograms with a normal density. Shrinkage: {'; '.join(said)}.",
        data,
    )


def _spread(
    shown: Chosen, kind: str, names: Sequence[str], scales: Mapping[str, str]
) -> tuple[Figure, list[str], pd.DataFrame]:
    """Histograms of ``kind``, eta or kappa, of each parameter, a row per method; the shrinkages in words; and
    the numbers."""
    data, said = [], []
    with style.styled():
        height = style.row_height(len(shown), 1.55, 0.95)
        figure, axes = style.panels(len(shown) * len(names), len(names), height, style.DOUBLE, sharex="col")
        places = [(row, name) for row in range(len(shown)) for name in names]
        for axis, (row, name) in zip(axes, places, strict=True):
            method, _, diagnosis = shown[row]
            part, percent = _shrinkage(method, diagnosis, kind, name)
            sd = (diagnosis.omega if kind == "eta" else diagnosis.pi)[name]
            _histogram(axis, method, part[kind], sd)
            axis.set_title(f"{method.label}: shrinkage {percent:z.0f} %")
            axis.set_ylabel("density (-)")
            label = f"{style.symbol(kind, name)}, {style.on(scales[name])}"
            axis.set_xlabel(label if row == len(shown) - 1 else "")
            said.append(f"{method.label}, {name}: {percent:z.0f} %")
            data.append(part)
        squared, whose = _OF_KIND[kind]
        density = Line2D([], [], color="black", lw=1, label=squared)
        style.legend(figure, [Patch(color="0.5", alpha=0.45, lw=0, label=whose), density])
    return figure, said, pd.concat(data, ignore_index=True)


_OF_KIND = {"eta": (style.SQUARED_OMEGA, "subjects"), "kappa": (style.SQUARED_PI, "subjects' occasions")}


def _shrinkage(method: Method, diagnosis: "Diagnosis", kind: str, name: str) -> tuple[pd.DataFrame, float]:
    """A random effect of the subjects of a fit, and how much less it varies than the population's, in %."""
    of_eta = kind == "eta"
    rows, sds = (diagnosis.etas, diagnosis.omega) if of_eta else (diagnosis.kappas, diagnosis.pi)
    percent = 100 * (1 - rows[name].std() / sds[name])
    place = {} if of_eta else {"occasion": rows["occasion"]}
    found = pd.DataFrame(
        {
            "method": method.label,
            "subject": rows["subject"],
            **place,
            "parameter": name,
            kind: rows[name],
            "omega" if of_eta else "pi": sds[name],
            "shrinkage": percent / 100,
        }
    )
    return found, percent


def _histogram(axis: Axes, method: Method, eta: pd.Series, omega: float) -> None:
    """Of subjects, with the density of the population."""
    edges = np.arange(eta.min(), eta.max() + _BIN * omega, _BIN * omega).tolist()
    axis.hist(eta, bins=edges, density=True, color=style.colour_of(method.described.rank), alpha=0.45, lw=0)
    x = np.linspace(-3.2 * omega, 3.2 * omega, 121)
    axis.plot(x, np.exp(-0.5 * (x / omega) ** 2) / (omega * np.sqrt(2 * np.pi)), color="black", lw=1)
