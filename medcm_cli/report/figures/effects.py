"""Learned covariate effects beside the truth, over the covariates that the subjects have (the paper's Figures
4, S4, S6 and S7)."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from medcm_cli.report.figures import style
from medcm_cli.runs.sweeps import Method, Sweep
from medcm_cli.runs.units import amount

FloatArray = npt.NDArray[np.float64]
_BINS = 25
_OCTAVES = 10  # that ratios are shown in, up and down, at most
_LETTERS = 15  # of a label, in an inch
_TICKS = 7  # of an axis of ratios, at most


def covariate_effects(
    sweep: Sweep,
    learned: Mapping[str, pd.DataFrame],
    epoch: float | None = None,
    truth: pd.DataFrame | None = None,
    covariates: Mapping[str, FloatArray] | None = None,
) -> style.Drawn | None:
    """A row of panels per method and a column per effect, None where nothing was learned.

    Ratios are on a logarithmic axis, whose limits are those of the means over the tail, so that figures of
    all epochs can be compared.

    :param learned: method's label -> ``bands.effects`` of it. :param epoch: one of its epochs, None for
        the mean over the tail.
    :param truth: ``covariate``, ``parameter``, ``x``, ``relative``, where it is known.
    :param covariates: name -> the values that subjects have, for the histograms, where the data are there.
    """
    at = {
        label: frame[frame["epoch"].isna() if epoch is None else frame["epoch"] == epoch]
        for label, frame in learned.items()
        if len(frame)
    }
    rows, pairs = _shown(sweep, at)
    if not rows:
        return None
    known = {pair: _of(truth, pair) for pair in pairs} if truth is not None else {}
    limits = _limits(learned, known, covariates or {})
    when = _when(rows, epoch)
    figure = _figure(sweep, at, known, covariates, limits, when)
    return style.Drawn(
        "effects" if epoch is None else f"effects_epoch_{epoch:g}",
        "Covariate effects" if epoch is None else f"Covariate effects at epoch {epoch:g}",
        figure,
        _caption(sweep, rows, when, bool(known), bool(covariates)),
        f"Curves of {', '.join(f'{p} against {c}' for c, p in pairs)}, a row of panels for each of "
        f"{', '.join(m.label for m in rows)}. " + " ".join(_said(m.label, at[m.label], known) for m in rows),
        _numbers(at, known),
    )


def _shown(sweep: Sweep, at: Mapping[str, pd.DataFrame]) -> tuple[list[Method], list[tuple[str, str]]]:
    """The methods that learned something, and the pairs of covariate and parameter."""
    rows = [method for method in sweep.methods if len(at.get(method.label, ()))]
    every = pd.concat(at.values()) if rows else pd.DataFrame(columns=["covariate", "parameter"])
    pairs = every[["covariate", "parameter"]].drop_duplicates().itertuples(index=False, name=None)
    return rows, list(pairs)


def _figure(
    sweep: Sweep,
    at: Mapping[str, pd.DataFrame],
    known: Mapping[tuple[str, str], pd.DataFrame],
    covariates: Mapping[str, FloatArray] | None,
    limits: tuple[float, float],
    when: str,
) -> Figure:
    """Panels of the effects ``at`` one epoch; see ``covariate_effects``."""
    rows, pairs = _shown(sweep, at)
    named = {pair: (covariates or {}).get(pair[0]) for pair in pairs}
    with style.styled():
        figure, grid, under = _grid(len(rows), len(pairs), bool(covariates))
        handles: list[Artist] = []
        for method, axes in zip(rows, grid, strict=True):
            last = method is rows[-1] and not under
            for pair, axis in zip(pairs, axes, strict=True):
                handles += _panel(axis, method, _of(at[method.label], pair), known.get(pair))
                axis.tick_params(labelbottom=last, labelleft=axis is axes[0])
            letters = max(8, int(axes[0].get_position().height * figure.get_figheight() * _LETTERS))
            label = "\n".join(textwrap.wrap(method.label, letters, break_long_words=False)[:2])
            axes[0].set_ylabel(f"{label}\nratio (-)")
        _ratios(grid[0][0], limits)
        for column, pair in enumerate(pairs):
            below = [] if named[pair] is None else [under[column]]
            _column(sweep, [*(axes[column] for axes in grid), *below], pair, named[pair])
        if under:
            under[0].set_ylabel("subjects")
        style.legend(figure, handles, when[0].upper() + when[1:])
    return figure


def _panel(axis: Axes, method: Method, curve: pd.DataFrame, truth: pd.DataFrame | None) -> list[Artist]:
    """The handles of what is drawn, for a legend."""
    axis.axhline(1, color="0.75", lw=0.6, zorder=0)
    handles = [
        *style.median_and_band(axis, "x", curve, method.described.rank),
        Line2D([], [], color="0.75", lw=0.6, label="no effect"),
    ]
    if truth is not None:
        axis.plot(truth["x"], truth["relative"], **style.TRUTH)
        handles.append(Line2D([], [], **style.TRUTH, label="truth"))
    return handles


def _column(sweep: Sweep, axes: list[Axes], pair: tuple[str, str], values: FloatArray | None) -> None:
    """What a column of panels says of its effect: a title, the covariate below, and its histogram."""
    entry = sweep.described["covariates"][pair[0]]
    # In two lines, so that neighbours of five columns do not touch.
    texts: dict[float, str] = {}
    for text, number in (entry.get("values") or {}).items():
        texts.setdefault(float(number), str(text))
    reference = float(entry["reference"])
    words = texts.get(reference) or amount(reference, str(entry["unit"]))
    axes[0].set_title(f"{pair[1]}\nrelative to {words}")
    if values is not None:
        _histogram(axes[-1], values, max((float(entry["scale"]), *texts)))
    axes[-1].set_xlabel(pair[0] if texts else f"{pair[0]}, {entry['unit']}")
    if texts:
        axes[-1].set_xlim(min(texts) - 0.5, max(texts) + 0.5)
        axes[-1].set_xticks(sorted(texts), [texts[number] for number in sorted(texts)])


def _when(methods: Sequence[Method], epoch: float | None) -> str:
    """Of which epochs the effects are."""
    if epoch is not None:
        return f"epoch {epoch:g}"
    last = sorted({int(fit.history["epoch"].max()) for method in methods for fit in method.complete})
    to = f"{last[0]}" if len(last) == 1 else f"{last[0]} to {last[-1]}"
    return f"mean over the last checkpoints, up to epoch {to}"


def _caption(sweep: Sweep, methods: Sequence[Method], when: str, known: bool, histograms: bool) -> str:
    fits = "; ".join(f"{method.label} (n = {len(method.complete)})" for method in methods)
    several = any(len(method.complete) > 1 for method in methods)
    one = any(len(method.complete) == 1 for method in methods)
    caption = (
        f"Learned covariate effects ({sweep.study}, {sweep.dataset}; {when}), relative to the reference "
        "value, on a logarithmic axis that is the same at every epoch; curves may leave it. "
    )
    if several:
        caption += "Median (line) and 2.5 to 97.5 % quantiles (band) over complete fits"
        caption += "; where there is one, its line" if one else ""
    else:
        caption += "Each line is one fit"
    caption += f". Fits: {fits}. Grey line: no effect."
    caption += " Dashed: truth." if known else ""
    return caption + (" Below: the subjects' covariates." if histograms else "")


def _grid(rows: int, columns: int, histogram: bool) -> tuple[Figure, list[list[Axes]], list[Axes]]:
    width = style.SINGLE if columns == 1 else style.DOUBLE
    height = style.row_height(rows + 0.6, 1.35, 0.75) if rows > 1 else 1.9  # and the histogram
    figure = Figure(figsize=(width, rows * height + 0.95), layout="constrained")
    ratios = [height] * rows + ([0.45] if histogram else [])
    axes = figure.subplots(len(ratios), columns, sharex="col", height_ratios=ratios, squeeze=False)
    for axis in axes[:rows].ravel()[1:]:
        axis.sharey(axes[0][0])  # so that effects can be compared
    grid = [list(row) for row in axes]
    return figure, grid[:rows], grid[rows] if histogram else []


def _of(frame: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    return frame[(frame["covariate"] == pair[0]) & (frame["parameter"] == pair[1])]


def _limits(
    learned: Mapping[str, pd.DataFrame],
    known: Mapping[tuple[str, str], pd.DataFrame],
    covariates: Mapping[str, FloatArray],
) -> tuple[float, float]:
    """Of the axis of ratios, at every epoch: powers of 2 around the medians of the means over the tail, and
    around the truth, at all covariates that subjects have."""
    frames = [frame[frame["epoch"].isna()] for frame in learned.values() if len(frame)]
    curves = [frame.rename(columns={"median": "ratio"}) for frame in frames]
    curves += [frame.rename(columns={"relative": "ratio"}) for frame in known.values()]
    inside: list[FloatArray] = [np.ones(1)]
    for curve in curves:
        for (name, _), part in curve.groupby(["covariate", "parameter"]):
            x, ratio = part["x"].to_numpy(), part["ratio"].to_numpy(np.float64)
            seen = covariates.get(str(name), x)
            ends = np.clip([seen.min(), seen.max()], x.min(), x.max())
            inside += [ratio[(x >= ends[0]) & (x <= ends[1])], np.interp(ends, x, ratio)]
    every = np.concatenate(inside)
    every = every[np.isfinite(every) & (every > 0)]
    powers = np.log2([every.min(), every.max()])
    least, most = np.clip([np.floor(powers[0]), np.ceil(powers[1])], -_OCTAVES, _OCTAVES)
    return 2.0 ** min(least, -1), 2.0 ** max(most, 1)


def _ratios(axis: Axes, limits: tuple[float, float]) -> None:
    """A logarithmic axis of ratios, with powers of 2 as one reads them, 1 among them."""
    style.plain_log(axis)
    least, most = np.log2(limits).round().astype(int)
    step = -(-(most - least + 1) // _TICKS)
    powers = np.arange(-(-least // step), most // step + 1) * step
    axis.yaxis.set_major_locator(FixedLocator((2.0**powers).tolist()))
    axis.yaxis.set_major_formatter(_ratio)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(limits)


def _histogram(axis: Axes, values: FloatArray, scale: float) -> None:
    axis.hist(values, bins=_BINS, range=(0, max(scale, float(values.max()))), color="0.6", lw=0)
    axis.set_xlim(0, scale)
    axis.yaxis.set_major_locator(MaxNLocator(2, integer=True))


def _said(label: str, curves: pd.DataFrame, known: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    """The ends of the median, and how far it is from the truth in the worst place."""
    parts = []
    pairs = curves[["covariate", "parameter"]].drop_duplicates().itertuples(index=False, name=None)
    for pair in pairs:
        curve = _of(curves, pair)
        ends = curve["median"].iloc[[0, -1]]
        text = f"{pair[1]} goes from {ends.iloc[0]:.2f} to {ends.iloc[1]:.2f} with {pair[0]}"
        if pair in known:
            ends = known[pair]["relative"].iloc[[0, -1]]
            text += f" (truth {ends.iloc[0]:.2f} to {ends.iloc[1]:.2f})"
        parts.append(text)
    return f"{label}: {'; '.join(parts)}."


def _numbers(at: Mapping[str, pd.DataFrame], known: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    parts = [frame.assign(method=label) for label, frame in at.items()]
    parts += [frame.rename(columns={"relative": "median"}).assign(method="truth") for frame in known.values()]
    return pd.concat(parts, ignore_index=True)


def _ratio(value: float, _: float) -> str:
    return f"{value:.3g}"
