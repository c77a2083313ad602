"""Run folders -> what figures show of them: histories, learned effects, and medians and bands over fits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.report.figures import style

METHOD = ("objective", "error", "learning_rate", "variant")
BAND = (0.025, 0.5, 0.975)


@dataclass(frozen=True)
class Fit:
    """A finished fit: its record and folder, its history with a row per checkpoint, in which sigma and RMSE
    are in the reported unit, and ``objective``, the mean of its objective value over the tail."""

    folder: Path
    record: runs.Record
    history: pd.DataFrame
    objective: float

    @property
    def failed_at(self) -> float | None:
        """The epoch at which it failed."""
        failure = self.record.failure
        return float(failure["epoch"]) if self.record.status == "failed" and failure else None

    @property
    def name(self) -> str:
        """Its place among the fits of its method."""
        return ", ".join(f"{key} {int(value)}" for key, value in self.record.address.where.items())


@dataclass(frozen=True)
class Method:
    """Fits that differ in their data rows and random numbers only. ``label`` tells it from the others of its
    study and data set; ``line`` tells it from those with the same colour."""

    label: str
    objective: str
    line: Any
    fits: tuple[Fit, ...]

    @property
    def complete(self) -> list[Fit]:
        """Its fits that did not fail."""
        return [fit for fit in self.fits if fit.record.status == "complete"]

    @property
    def colour(self) -> str:
        """Of its objective."""
        return style.colour_of(self.objective)

    @property
    def marker(self) -> str:
        """Of its objective."""
        return style.marker_of(self.objective)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of its fits."""
        return self.fits[0].record.config

    @property
    def kind(self) -> str:
        """The class of its objective, such as Vi."""
        return str(self.config["objective"]["_target_"]).rpartition(".")[2]

    @property
    def mixed(self) -> bool:
        """Whether it estimates random effects."""
        return any("omega_1" in fit.history for fit in self.fits)


@dataclass(frozen=True)
class Sweep:
    """The methods of one study and data set. ``unfinished``: how many fits have neither finished nor
    failed."""

    study: str
    dataset: str
    methods: tuple[Method, ...]
    unfinished: int

    @property
    def described(self) -> Mapping[str, Any]:
        """The data set's part of the configuration."""
        described: Mapping[str, Any] = self.methods[0].config["dataset"]
        return described

    @property
    def unit(self) -> str:
        """Of levels."""
        return str(self.described["level_unit"])

    @property
    def scale(self) -> float:
        """From the unit of the model to that of levels."""
        return float(self.described["level_scale"])

    @property
    def random_effects(self) -> list[str]:
        """Of the first method that has any; they are numbered in the results."""
        return list(
            map(str, next((m for m in self.methods if m.mixed), self.methods[0]).config["random_effects"])
        )

    @property
    def truth(self) -> Mapping[str, Any] | None:
        """``omega``, where the fits have its random effects, and ``sigma``."""
        return self.methods[0].fits[0].record.truth


@dataclass(frozen=True)
class Found:
    """``missing``: what could not be read or is not there, one line each."""

    sweeps: list[Sweep]
    missing: list[str]


def collect(roots: Sequence[Path], progress: Callable[[int], None] | None = None) -> Found:
    """Read the record and history of every run folder below ``roots``. A folder without any fit is no error.

    :param progress: told the number of folders read so far.
    :raises InputError: a root does not exist.
    """
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder")
    missing: list[str] = []
    groups: dict[tuple[str, str], dict[tuple[Any, ...], list[Fit]]] = {}
    unfinished: dict[tuple[str, str], int] = {}
    folders = {folder.resolve(): folder for root in roots for folder in runs.find(root)}
    for count, folder in enumerate(folders.values(), 1):
        try:
            record = runs.read_record(folder)
            if record is None:
                continue
            address = record.address
            sweep = address.study, address.dataset
            if record.status not in runs.FINISHED:
                unfinished[sweep] = unfinished.get(sweep, 0) + 1
            else:
                key = tuple(getattr(address, name) for name in METHOD)
                fit = _fit(folder, record)  # first: a group of none is no method
                groups.setdefault(sweep, {}).setdefault(key, []).append(fit)
        except InputError as error:
            missing.append(str(error))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            missing.append(f"{folder}: does not have the contents of a run ({type(error).__name__}: {error})")
        if progress is not None:
            progress(count)
    if not folders:
        missing.append(f"{', '.join(map(str, roots))}: no run folder below it; `medcm fit` writes them")
    for (study, dataset), number in sorted(unfinished.items()):
        if (study, dataset) not in groups:
            missing.append(f"{study}, {dataset}: none of {number} fits has finished")
    sweeps = [
        Sweep(study, dataset, _methods(group), unfinished.get((study, dataset), 0))
        for (study, dataset), group in sorted(groups.items())
    ]
    return Found(sweeps, missing)


def _fit(folder: Path, record: runs.Record) -> Fit:
    table = runs.read_history(folder)
    history = pd.DataFrame({name: np.asarray(table[name], dtype=np.float64) for name in table.column_names})
    dataset = record.config["dataset"]
    scale = float(dataset["level_scale"])
    str(record.config["objective"]["_target_"]), dataset["level_unit"]  # damaged where these are not there
    if "sigma_additive" in history:
        history["sigma_additive"] *= scale
    objective = np.nan
    if len(history):
        start = runs.tail_start(float(history["epoch"].max()), record.config.get("tail"))
        objective = float(history["objective_value"][history["epoch"] >= start].mean())
    return Fit(folder, record, history, objective)


def labelled(keys: Iterable[tuple[Any, ...]]) -> dict[tuple[Any, ...], str]:
    """Methods (``METHOD``), in the order in which they are shown -> labels that say what tells those of one
    objective apart."""
    order = list(style.COLOURS)
    ranked = sorted(
        set(keys), key=lambda key: (order.index(key[0]) if key[0] in order else len(order), *map(str, key))
    )
    result = {}
    for key in ranked:
        alike = [other for other in ranked if other[0] == key[0]]
        parts = [style.name_of(key[0])]
        if len({other[1] for other in alike}) > 1:
            parts.append(str(key[1]))
        if len({other[2] for other in alike}) > 1:
            parts.append(f"lr {key[2]:g}")
        if len({other[3] for other in alike}) > 1 and key[3] != "default":
            parts.append(str(key[3]))
        result[key] = ", ".join(parts)
    return result


def _methods(group: Mapping[tuple[Any, ...], list[Fit]]) -> tuple[Method, ...]:
    """Those of one colour have different lines."""
    lines: dict[str, int] = {}
    methods = []
    for key, label in labelled(group).items():
        colour = style.colour_of(key[0])
        line = style.LINES[lines.get(colour, 0) % len(style.LINES)]
        lines[colour] = lines.get(colour, 0) + 1
        fits = sorted(group[key], key=lambda fit: (fit.record.address.fold, fit.record.address.replicate))
        methods.append(Method(label, str(key[0]), line, tuple(fits)))
    return tuple(methods)


def bands(method: Method, column: str) -> pd.DataFrame:
    """Median and 2.5 and 97.5 % quantiles of a column of the histories over all fits that have reached an
    epoch, a failed one until it fails: ``epoch``, ``low``, ``median``, ``high``, ``fits``."""
    values = [
        fit.history.set_index("epoch")[column]
        for fit in method.fits
        if column in fit.history and len(fit.history)
    ]
    return _quantiles(pd.concat(values), "epoch") if values else pd.DataFrame()


def _quantiles(values: pd.Series, by: str | list[str]) -> pd.DataFrame:
    finite = values.replace([np.inf, -np.inf], np.nan).dropna()
    if finite.empty:
        return pd.DataFrame()
    grouped = finite.groupby(level=by)
    named = zip(("low", "median", "high"), BAND, strict=True)
    columns = {name: grouped.quantile(quantile) for name, quantile in named}
    return pd.DataFrame(columns | {"fits": grouped.size()}).reset_index()


def effects(method: Method, epochs: Sequence[int] = ()) -> pd.DataFrame:
    """Median and band over complete fits of the learned effects relative to the reference covariates:
    ``epoch`` (NaN for the mean over a fit's tail), ``covariate``, ``parameter``, ``x``, ``low``, ``median``,
    ``high``, ``fits``.

    :raises InputError: a fit's effects cannot be read.
    """
    parts = []
    for fit in method.complete:
        path = fit.folder / "effects.parquet"
        try:
            file = pyarrow.parquet.ParquetFile(path)
            if "relative" not in file.schema_arrow.names:
                continue  # no covariate enters the model
            columns = ["epoch", "covariate", "parameter", "x", "relative"]
            table = file.read(columns=columns, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        epoch = np.asarray(table["epoch"])
        start = runs.tail_start(float(epoch.max()), fit.record.config.get("tail"))
        tail = table.filter(pa.array(epoch >= start)).to_pandas()
        keys = ["covariate", "parameter", "x"]
        mean = tail.groupby(keys, observed=True)["relative"].mean().reset_index().assign(epoch=np.nan)
        parts.append(mean)
        if len(epochs):
            parts.append(table.filter(pa.array(np.isin(epoch, epochs))).to_pandas())
    if not parts:
        return pd.DataFrame()
    every = pd.concat([part.astype({"covariate": str, "parameter": str, "epoch": float}) for part in parts])
    every["epoch"] = every["epoch"].fillna(-1.0)
    keys = ["epoch", "covariate", "parameter", "x"]
    result = _quantiles(every.set_index(keys)["relative"].astype(float), keys)
    result["epoch"] = result["epoch"].where(result["epoch"] >= 0)
    return result


def typical_fit(method: Method, fold: int | None = None, replicate: int | None = None) -> Fit | None:
    """The complete fit whose final objective value is the median (the lower of two), among those of a fold or
    replicate where one is given; None where there is none."""
    fits = [
        fit
        for fit in method.complete
        if fold in (None, fit.record.address.fold)
        and replicate in (None, fit.record.address.replicate)
        and np.isfinite(fit.objective)
    ]
    ranked = sorted(fits, key=lambda fit: fit.objective)
    return ranked[(len(ranked) - 1) // 2] if ranked else None
