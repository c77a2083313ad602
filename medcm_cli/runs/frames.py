"""What finished fits wrote as data frames, for notebooks: one frame of all fits, whose index says which fit a
row is of, and whose ``attrs["units"]`` has the unit of each column."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import pyarrow.parquet

from medcm_cli.errors import InputError
from medcm_cli.runs.folder import ALIKE, read_table
from medcm_cli.runs.summary import columns_units, summary_of
from medcm_cli.runs.units import columns, named_in, resolved
from medcm_cli.runs.walk import Fit

_OF_BEFORE = "as older versions wrote it"


def history(fits: Sequence[Fit]) -> pd.DataFrame:
    """A row per fit and checkpoint, what is a level in the reported unit.

    :raises InputError: a file is absent or damaged.
    """

    def one(fit: Fit) -> tuple[pd.DataFrame, dict[str, str]]:
        frame, units = fit.history, _units(fit, "history")
        models = {name: fit.units.reported for name in frame if name in fit.in_reported_unit}
        return frame.assign(epoch=frame["epoch"].astype("int64")), units | models

    return _joined(fits, one, "epoch")


def effects(fits: Sequence[Fit]) -> pd.DataFrame:
    """A row per fit, checkpoint, covariate, parameter and value of the covariate; see ``history``."""

    def one(fit: Fit) -> tuple[pd.DataFrame, dict[str, str]]:
        frame = read_table(fit.folder, fit.record, "effects").to_pandas()
        texts = {name: frame[name].astype(object) for name in ("covariate", "parameter") if name in frame}
        return frame.assign(**texts), _units(fit, "effects")

    return _joined(fits, one, "epoch")


def summary(fits: Sequence[Fit]) -> pd.DataFrame:
    """A row per fit: its estimates, means over its last checkpoints, as ``medcm summarize`` has them.

    :raises InputError: a file is absent or damaged.
    """
    found = summary_of(fits, [fit.folder for fit in fits])
    if found.skipped:
        raise InputError(found.skipped[0])
    frame = found.fits.dropna(axis="columns", how="all").reset_index(drop=True)
    units = resolved(map(str, frame), columns_units(found))
    return _indexed(frame.drop(columns=["status"]), fits, units)


def _units(fit: Fit, table: str) -> dict[str, str]:
    """Column -> its unit, as the file says or, of older versions, as far as it is known."""
    known = dict.fromkeys(("objective", "covariate", "parameters"), _OF_BEFORE)
    patterns = columns(table, known | fit.units.named)
    schema = pyarrow.parquet.read_schema(fit.folder / f"{table}.parquet")
    return resolved(schema.names, patterns) | named_in(schema)


def _joined(
    fits: Sequence[Fit], one: Callable[[Fit], tuple[pd.DataFrame, dict[str, str]]], last: str
) -> pd.DataFrame:
    """The rows of all fits. :param last: a column that ends the index."""
    frames: list[pd.DataFrame] = []
    units: dict[str, dict[str, list[str]]] = {}
    for fit in fits:
        frame, of_fit = one(fit)
        address = fit.record.address
        places = {name: getattr(address, name) for name in (*ALIKE, "fold", "outer", "inner", "replicate")}
        frames.append(frame.assign(**places))
        for name, unit in of_fit.items():
            units.setdefault(name, {}).setdefault(unit, []).append(address.objective)
    whole = pd.concat(frames, ignore_index=True)
    return _indexed(whole, fits, {name: _of_all(found) for name, found in units.items()}, last)


def _of_all(found: Mapping[str, Sequence[str]]) -> str:
    """A column's unit; of fits that have several, each with its objectives."""
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{unit} ({', '.join(dict.fromkeys(which))})" for unit, which in found.items())


def _indexed(frame: pd.DataFrame, fits: Sequence[Fit], units: Mapping[str, str], *last: str) -> pd.DataFrame:
    """With the index of its fits: objective, what else tells their configurations apart, fold or outer and
    inner, and replicate."""
    addresses = [fit.record.address for fit in fits]
    differ = [name for name in ALIKE if len({getattr(a, name) for a in addresses}) > 1]
    levels = [name for name in ALIKE if name == "objective" or name in differ]
    nested = all(address.outer is not None for address in addresses)
    levels += [*(("outer", "inner") if nested else ("fold",)), "replicate", *last]
    rest = [name for name in (*ALIKE, "fold", "outer", "inner", "replicate") if name in frame]
    result = frame.set_index(levels).drop(columns=[name for name in rest if name not in levels])
    result.attrs["units"] = {str(name): units.get(str(name), "-") for name in (*levels, *result.columns)}
    return result


def name_units(result: object, table: str, units: Mapping[str, str]) -> None:
    """Give the frames that a result holds the units of their columns.

    :param table: of ``units.COLUMNS``, without the frame's own name. :param units: ``Units.named``.
    """
    for name, frame in vars(result).items():
        if isinstance(frame, pd.DataFrame):
            frame.attrs["units"] = resolved(map(str, frame), columns(f"{table}/{name}", units))
