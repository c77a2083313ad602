"""Posteriors of random effects: ellipses of fits over draws of NUTS (the paper's Figures 2 and S1)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from medcm_cli.report.figures import style
from medcm_cli.runs import draws, read_table, study_folder
from medcm_cli.runs.checkpoints import is_averaged
from medcm_cli.runs.sweeps import Method, Sweep

SUBJECTS = 4  # shown, evenly spaced among the training subjects
POINTS = 600  # draws shown of each
RADIUS = float(np.sqrt(-2 * np.log(0.05)))  # of a 95 % ellipse, in sds
Array = npt.NDArray[np.float64]


def folders(sweep: Sweep) -> list[Path]:
    """Folders of draws that `medcm posterior` wrote for a study."""
    fit = sweep.methods[0].fits[0]
    study = study_folder(fit.folder, fit.record.address)
    return [] if study is None else draws.folders(study)


def ellipses(sweep: Sweep, folder: Path) -> style.Drawn | None:
    """95 % ellipses of every complete fit of the subjects that a folder has draws of, a row of panels for
    each method; None where there is no such fit, or a single random effect.

    :raises InputError: the folder cannot be read.
    """
    nuts = draws.read(folder)
    if nuts.eta.shape[-1] < 2:
        return None
    of_methods, when = _of_methods(sweep, nuts)
    if not of_methods:
        return None
    shown = np.unique(np.linspace(0, len(nuts.subjects) - 1, SUBJECTS).round().astype(int))
    parts: list[pd.DataFrame] = []
    with style.styled():
        count, height = len(of_methods) * len(shown), style.row_height(len(of_methods), 1.7, 1.2)
        figure, axes = style.panels(count, len(shown), height, sharex="col", sharey="col")
        panels = ((method, found, place) for method, found in of_methods for place in shown)
        for axis, (method, found, place) in zip(axes, panels, strict=True):
            parts.append(_panel(axis, method, found, nuts.eta[:, place, :2].copy(), int(place)))
        _labels(np.array(axes).reshape(len(of_methods), -1), sweep, [m.label for m, _ in of_methods])
        for axis, place in zip(axes, shown, strict=False):
            axis.set_title(style.named(f"subject {nuts.subjects[place]}", 22))
        style.legend(figure, _handles([method for method, _ in of_methods]))
    replicates = ", ".join(
        f"{method.label}: {len(found)} fit{'s' if len(found) > 1 else ''}" for method, found in of_methods
    )
    data = pd.concat(parts, ignore_index=True)
    return style.Drawn(
        f"posteriors_{style.slug(folder.name)}",
        "Posteriors of random effects",
        figure,
        f"Posteriors of random effects ({sweep.study}, {sweep.dataset}): draws of NUTS (points, "
        f"{folder.name}), the 95 % ellipse of the Gaussian with their mean and covariance (dashed), "
        f"and that of each fit of a method (a row) {when} (coloured). Subjects evenly spaced among those "
        f"trained on. {replicates}.",
        f"Scatter plots of two random effects for {len(shown)} subjects, with ellipses of fits. "
        + _said(data, [method for method, _ in of_methods]),
        data,
    )


def _of_methods(sweep: Sweep, nuts: draws.Draws) -> tuple[list[tuple[Method, list[pd.DataFrame]]], str]:
    """The methods that have such fits, with their random effects; and what these are of, in words."""
    tables = {method.label: list(_fits(method, nuts)) for method in sweep.methods}
    averaged = {is_averaged(table) for held in tables.values() for table in held}
    words = {True: "at its estimates", False: "at its last epoch"}
    frames = [(m, [table.to_pandas() for table in tables[m.label]]) for m in sweep.methods if tables[m.label]]
    return frames, " or ".join(words[one] for one in sorted(averaged, reverse=True))


def _fits(method: Method, nuts: draws.Draws) -> Iterator[pa.Table]:
    """random_effects of the method's complete fits of the very subjects, in the order of the draws."""
    for fit in method.complete:
        there = (fit.folder / "random_effects.parquet").is_file()
        if fit.record.data.get("fingerprint") == nuts.fingerprint and there:
            table = read_table(fit.folder, fit.record, "random_effects")
            if np.array_equal(table["subject"].to_numpy(), nuts.subjects):
                yield table


def _labels(grid: npt.NDArray[Any], sweep: Sweep, methods: list[str]) -> None:
    """A row of panels for each method: its name at the right, the random effects at the edges."""
    names, scales = sweep.random_effects[:2], sweep.effect_scales
    for row, label in zip(grid, methods, strict=True):
        right = row[-1]
        text = label.removeprefix("VI, objective.")
        right.text(1.04, 0.5, text, rotation=270, va="center", fontsize=7.5, transform=right.transAxes)
        row[0].set_ylabel(f"{style.symbol('eta', names[1])}, {style.on(scales[names[1]])}")
    for axis in grid[-1]:
        axis.set_xlabel(f"{style.symbol('eta', names[0])}, {style.on(scales[names[0]])}")


def _panel(axis: Axes, method: Method, found: list[pd.DataFrame], eta: Array, place: int) -> pd.DataFrame:
    kept = eta[:: max(1, len(eta) // POINTS)]
    axis.plot(*kept.T, ".", color="0.6", markersize=1.2, rasterized=True)
    rows = []
    for number, table in enumerate(found, 1):
        row = table.iloc[place]
        mean = row[["eta_1", "eta_2"]].to_numpy(np.float64)
        cov = row[["cov_11", "cov_21", "cov_21", "cov_22"]].to_numpy(np.float64).reshape(2, 2)
        axis.plot(
            *_outline(mean, cov), color=style.colour_of(method.described.rank), linewidth=0.7, alpha=0.8
        )
        rows.append((method.label, number, *mean, cov[0, 0], cov[1, 0], cov[1, 1]))
    mean, cov = eta.mean(0), np.cov(eta.T)
    axis.plot(*_outline(mean, cov), **style.TRUTH)
    rows.append(("NUTS", 0, *mean, cov[0, 0], cov[1, 0], cov[1, 1]))
    columns = ["method", "fit", "eta_1", "eta_2", "cov_11", "cov_21", "cov_22"]
    return pd.DataFrame(rows, columns=columns).assign(position=place + 1)


def _outline(mean: Array, cov: Array) -> Array:
    """(2, points) of the 95 % ellipse of a Gaussian."""
    angle = np.linspace(0, 2 * np.pi, 73)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return np.asarray(mean[:, None] + RADIUS * np.linalg.cholesky(cov) @ circle, dtype=np.float64)


def _handles(methods: list[Method]) -> list[Artist]:
    colours = dict.fromkeys((style.colour_of(method.described.rank), method.label) for method in methods)
    return [
        Line2D([], [], color="0.6", marker=".", linestyle="", label="draws of NUTS"),
        Line2D([], [], **style.TRUTH, label="95 % of their Gaussian"),
        *(Line2D([], [], color=c, linewidth=0.8, label=f"95 %, a fit by {label}") for c, label in colours),
    ]


def _said(data: pd.DataFrame, methods: list[Method]) -> str:
    """How far the means of the fits are from that of the draws, in words."""
    nuts = data[data["method"] == "NUTS"].drop_duplicates("position").set_index("position")
    said = []
    for method in methods:
        own = data[data["method"] == method.label]
        there = nuts.loc[own["position"]]
        gaps = [own[name].to_numpy() - there[name].to_numpy() for name in ("eta_1", "eta_2")]
        said.append(f"{method.label}: centres {np.hypot(*gaps).mean():.3f} from NUTS's on average.")
    return " ".join(said)
