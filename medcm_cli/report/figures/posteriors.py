"""Posteriors of random effects: ellipses of fits over draws of NUTS (the paper's Figures 2 and S1)."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from medcm_cli.errors import InputError
from medcm_cli.report.figures import style
from medcm_cli.report.figures.collected import Method, Sweep

SUBJECTS = 4  # shown, evenly spaced among the training subjects
POINTS = 600  # draws shown of each
RADIUS = float(np.sqrt(-2 * np.log(0.05)))  # of a 95 % ellipse, in sds
Array = npt.NDArray[np.float64]


def folders(sweep: Sweep) -> list[Path]:
    """Folders of draws that `medcm posterior` wrote for a study."""
    fit = sweep.methods[0].fits[0]
    study = fit.folder.parents[len(fit.record.address.where) + 4]
    return sorted(path.parent for path in study.glob("posterior/*/posterior.json"))


def ellipses(sweep: Sweep, folder: Path) -> style.Drawn | None:
    """95 % ellipses of every complete fit of the subjects that a folder has draws of, a row of panels for
    each method; None where there is no such fit, or a single random effect.

    :raises InputError: the folder cannot be read.
    """
    try:
        record = json.loads((folder / "posterior.json").read_text(encoding="utf-8"))
        draws = pd.read_parquet(folder / "draws.parquet")
        fingerprint = record["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: cannot be read ({' '.join(str(error).split())})") from error
    if "eta_2" not in draws:
        return None
    # Positions count from 1 in the order of the training set, as the rows of a fit's random effects stand.
    subjects = draws.drop_duplicates("position").set_index("position")["subject"].sort_index()
    of_methods = [
        (method, found)
        for method in sweep.methods
        if (found := list(_fits(method, fingerprint, subjects.to_numpy())))
    ]
    if not of_methods:
        return None
    shown = subjects.iloc[np.unique(np.linspace(0, len(subjects) - 1, SUBJECTS).round().astype(int))]
    names = sweep.random_effects[:2]
    parts: list[pd.DataFrame] = []
    with style.styled():
        figure, axes = style.panels(len(of_methods) * len(shown), len(shown), 1.7, sharex="col", sharey="col")
        for number, (axis, (method, found, position)) in enumerate(
            zip(axes, ((m, f, p) for m, f in of_methods for p in shown.index), strict=True)
        ):
            of_subject = draws.loc[draws["position"] == position, ["eta_1", "eta_2"]].to_numpy(np.float64)
            parts.append(_panel(axis, method, found, of_subject, int(position)))
            if number < len(shown):
                axis.set_title(f"subject {shown[position]}")
            if number % len(shown) == len(shown) - 1:
                label = method.label.removeprefix("VI, objective.")
                where = axis.transAxes
                axis.text(1.04, 0.5, label, rotation=270, va="center", fontsize=7.5, transform=where)
            if number % len(shown) == 0:
                axis.set_ylabel(f"{style.symbol('eta', names[1])}, log scale (-)")
            if number >= len(axes) - len(shown):
                axis.set_xlabel(f"{style.symbol('eta', names[0])}, log scale (-)")
        style.legend(figure, _handles())
    replicates = ", ".join(f"{method.label}: {len(found)} fits" for method, found in of_methods)
    data = pd.concat(parts, ignore_index=True)
    return style.Drawn(
        f"posteriors_{style.slug(folder.name)}",
        "Posteriors of random effects",
        figure,
        f"Posteriors of random effects ({sweep.study}, {sweep.dataset}): draws of NUTS (points, "
        f"{folder.name}), the 95 % ellipse of the Gaussian with their mean and covariance (dashed black), "
        "and that of each fit of a method (a row) at its last epoch (coloured). Subjects evenly spaced among "
        f"those trained on. {replicates}.",
        f"Scatter plots of two random effects for {len(shown)} subjects, with ellipses of fits. "
        + _said(data, [method for method, _ in of_methods]),
        data,
    )


def _fits(method: Method, fingerprint: str, subjects: npt.NDArray[np.int64]) -> Iterator[pd.DataFrame]:
    """random_effects of the method's complete fits of these subjects."""
    for fit in method.complete:
        path = fit.folder / "random_effects.parquet"
        if fit.record.data.get("fingerprint") == fingerprint and path.is_file():
            table = pd.read_parquet(path)
            if np.array_equal(table["subject"].to_numpy(), subjects):
                yield table


def _panel(
    axis: Axes, method: Method, found: list[pd.DataFrame], draws: Array, position: int
) -> pd.DataFrame:
    kept = draws[:: max(1, len(draws) // POINTS)]
    axis.plot(*kept.T, ".", color="0.75", markersize=1.5, rasterized=True)
    rows = []
    for number, table in enumerate(found, 1):
        row = table.iloc[position - 1]
        mean = row[["eta_1", "eta_2"]].to_numpy(np.float64)
        cov = row[["cov_11", "cov_21", "cov_21", "cov_22"]].to_numpy(np.float64).reshape(2, 2)
        axis.plot(*_outline(mean, cov), color=method.colour, linewidth=0.6, alpha=0.7)
        rows.append((method.label, number, *mean, cov[0, 0], cov[1, 0], cov[1, 1]))
    mean, cov = draws.mean(0), np.cov(draws.T)
    axis.plot(*_outline(mean, cov), **style.TRUTH)
    rows.append(("NUTS", 0, *mean, cov[0, 0], cov[1, 0], cov[1, 1]))
    columns = ["method", "fit", "eta_1", "eta_2", "cov_11", "cov_21", "cov_22"]
    return pd.DataFrame(rows, columns=columns).assign(position=position)


def _outline(mean: Array, cov: Array) -> Array:
    """(2, points) of the 95 % ellipse of a Gaussian."""
    angle = np.linspace(0, 2 * np.pi, 73)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return np.asarray(mean[:, None] + RADIUS * np.linalg.cholesky(cov) @ circle, dtype=np.float64)


def _handles() -> list[Artist]:
    points = Line2D([], [], color="0.6", marker=".", linestyle="", label="draws of NUTS")
    fitted = Line2D([], [], **style.TRUTH, label="their Gaussian")
    return [points, fitted]


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
