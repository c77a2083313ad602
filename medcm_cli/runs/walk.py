"""The fits below folders, each read once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from medcm_cli.errors import InputError
from medcm_cli.runs.checkpoints import tail_mean
from medcm_cli.runs.folder import Record, estimate_rows, find, read_record, read_table, separate
from medcm_cli.runs.units import REFERENCE, TYPICAL, Units, effect_scales, occasion_scales, unit_of

FloatArray = npt.NDArray[np.float64]
# Tables written before columns named their units have these in the model's unit.
_MODEL_UNIT_BEFORE = ("sigma_additive",)


class Fault(NamedTuple):
    """A folder of a fit that cannot be read, and why."""

    folder: Path
    reason: str


class Typical(NamedTuple):
    """``units``: column of a typical parameter -> its unit; ``reference``: the covariates that they are at,
    in words, empty of a model without any."""

    units: dict[str, str]
    reference: str


@dataclass(frozen=True)
class Fit:
    """A fit's folder and its record; its history is read where it is asked for."""

    folder: Path
    record: Record

    @property
    def units(self) -> Units:
        """In which units its concentrations are."""
        return Units.of_config(self.record.config)

    @property
    def failed_at(self) -> float | None:
        """The epoch at which it failed."""
        failure = self.record.failure
        return float(failure["epoch"]) if self.record.status == "failed" and failure else None

    @cached_property
    def _columns(self) -> tuple[dict[str, FloatArray], dict[str, float], Typical]:
        """The history's columns as the file has them, what turns some into the reported unit, and what is
        typical of them."""
        table, units = read_table(self.folder, self.record, "history"), self.units
        before = all(unit_of(field) is None for field in table.schema)
        models = (units.level, f"{units.scale:g} {units.reported}")  # the latter before units had names
        factors = {
            field.name: units.scale
            for field in table.schema
            if (field.name in _MODEL_UNIT_BEFORE if before else unit_of(field) in models)
        }
        typical = {f.name: f for f in table.schema if f.name.startswith(TYPICAL)}
        named = {name: units.reported if name in factors else str(unit_of(f)) for name, f in typical.items()}
        reference = (table.schema.metadata or {}).get(REFERENCE, b"").decode()
        columns = {name: np.asarray(table[name], dtype=np.float64) for name in table.column_names}
        return columns, factors, Typical(named, reference)

    @property
    def typical(self) -> Typical:
        """What its history says of typical parameters, nothing of one of older versions."""
        return self._columns[2]

    @property
    def random_effects(self) -> tuple[str, ...]:
        """The parameters that random effects belong to, in the order of their numbers."""
        return tuple(map(str, self.record.config.get("random_effects") or ()))

    @property
    def effect_scales(self) -> dict[str, str]:
        """Parameter -> what its random effect is on, as in log scale or mg/L."""
        return effect_scales(self.record.config, self._parameter_units)

    @property
    def occasion_scales(self) -> dict[str, str]:
        """The same of what varies between the occasions of a subject."""
        return occasion_scales(self.record.config, self._parameter_units)

    @property
    def _parameter_units(self) -> dict[str, str]:
        """Of those that a random effect may be added to."""
        typical = self.typical.units if self.record.config.get("distributions") else {}
        return {name.removeprefix(TYPICAL): unit for name, unit in typical.items()}

    @property
    def in_reported_unit(self) -> frozenset[str]:
        """Columns of ``history`` that the file has in the model's unit."""
        return frozenset(self._columns[1])

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row per checkpoint, what is a level in the reported unit; ``objective_value`` stays in the
        objective's own unit, which a mean squared error has from the levels of the model.

        :raises InputError: absent or damaged.
        """
        columns, factors, _ = self._columns
        return pd.DataFrame({name: values * factors.get(name, 1.0) for name, values in columns.items()})

    def estimates(self, tail: int | None = None) -> dict[str, float]:
        """The mean of each column of the history over the last ``tail`` epochs, by default as many as the fit
        was configured with (``medcm_cli.runs.checkpoints``), in the units of ``history``; and ``epoch``, the
        last one.

        :raises InputError: absent, damaged or of before training. :raises ValueError: no checkpoint.
        """
        columns, factors, _ = self._columns
        rows = estimate_rows(self.folder, self.record, columns["epoch"], tail)
        means = {name: float(tail_mean(values, rows).mean()) for name, values in columns.items()}
        found = {name: mean * factors.get(name, 1.0) for name, mean in means.items()}
        return found | {"epoch": float(columns["epoch"].max())}


def walk(roots: Sequence[Path], progress: Callable[[int], None] | None = None) -> Iterator[Fit | Fault]:
    """Every fit below ``roots`` once, in the order of paths, and the folders that cannot be read. One at a
    time, so that memory does not grow with their number.

    :param progress: told the number of folders read so far.
    :raises InputError: a root does not exist.
    """
    for count, folder in enumerate(find(*separate(roots)), 1):
        yield _read(folder)
        if progress is not None:
            progress(count)


def _read(folder: Path) -> Fit | Fault:
    try:
        record = read_record(folder)
    except InputError as error:
        return Fault(folder, str(error))
    if record is None:
        return Fault(folder, f"{folder}: vanished while it was read")
    return Fit(folder, record)


def damage(folder: Path, error: Exception) -> str:
    """Why a folder with a record is no fit after all: in words, of what went wrong as it was read."""
    if isinstance(error, InputError):
        return str(error)
    return f"{folder}: does not have the contents of a run ({type(error).__name__}: {error})"


DAMAGED = (InputError, AttributeError, KeyError, TypeError, ValueError)
"""What goes wrong with a record or table that is not what ``medcm fit`` writes."""
