"""The unit of every column of every table (``COLUMNS``), which the schema of each Parquet file names: a
field's metadata ``unit``, such as h, IU/dL or -, which stands for none. Only a disease's covariates have
theirs where they are prepared."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from medcm_cli.files import replaced

UNIT = b"unit"
NONE = "-"
_ONE_OF_EACH = "{reported} (sigma_additive), - (omega_*, rho_*, sigma_proportional), of parameter (others)"
_DRAWS = {"sigma_additive": "{model}", "lp": "nats", "ess_*": "draws"}
_BOUNDS = ("typical", "median", "lower_*", "upper_*")
_CANDIDATES = {"above_*": "h", "auc_*": "{reported} h", "trough_*": "{reported}", "peak_*": "{reported}"}
_DOSE = {
    "every": "h",
    "dose": "{amount}",
    "best_dose": "{amount}",
    "per_kg": "{amount}/kg",
    "weekly": "{amount}/week",
}
# Table -> the unit of each column, by patterns, of which the first that fits counts; - for every other. In
# braces: reported and model, the units of a data set's concentrations; amount, that of doses; what only the
# table's writer knows.
COLUMNS: dict[str, dict[str, str]] = {
    "history": {
        "objective_value": "{objective}",
        "rmse": "{reported}",
        "sigma_additive": "{model}",
        "kl": "nats",
    },
    "parameters": {},
    "random_effects": {},
    "effects": {"x": "{covariate}", "value": "of parameter"},
    "uncertainty": {"name": "-", "method": "-", "rse": "%", "*": _ONE_OF_EACH},
    "draws": _DRAWS,
    "population": _DRAWS,
    "diagnostics": {**_DRAWS, **dict.fromkeys(("mean", "sd"), "{model} (sigma_additive), - (others)")},
    "summary": {
        "kl*": "nats",
        "cv_*": "%",
        "seconds*": "s",
        "objective_value*": "of objective",
        **dict.fromkeys(("rmse*", "sigma_additive*", "sigma_mae*"), "{reported}"),
    },
    "predictions/parameters": dict.fromkeys(_BOUNDS, "see unit"),
    "predictions/curve": {"time": "h", **dict.fromkeys((*_BOUNDS, "measured_*"), "{reported}")},
    "predictions/thresholds": {"threshold": "{reported}", **dict.fromkeys(_BOUNDS, "h")},
    "predictions/above": {"time": "h", "threshold": "{reported}"},
    "predictions/doses": {"time": "h", "amount": "{amount}", "duration": "h"},
    "predictions/observations": {"time": "h", "level": "{reported}"},
    "predictions/check": {"rmse*": "{reported}", "bias": "{reported}"},
    "predictions/check_levels": {
        "time": "h",
        **dict.fromkeys((*_BOUNDS, "observed", "sd"), "{reported}"),
    },
    "doses/doses": _DOSE,
    "doses/candidates": {**_DOSE, **_CANDIDATES},
}


class Units(NamedTuple):
    """In which units a data set's concentrations are: ``reported``, of which one of the model's, that of its
    event table, is ``scale``."""

    reported: str
    scale: float

    @classmethod
    def of(cls, dataset: Mapping[str, Any]) -> "Units":
        """As the configuration of a data set has it."""
        return cls(str(dataset["level_unit"]), float(dataset["level_scale"]))

    @property
    def names(self) -> tuple[str, str]:
        """The reported unit and the model's."""
        return self.reported, self.model

    @property
    def model(self) -> str:
        """The model's unit: by its name where that is known, else as a multiple of the reported one."""
        if self.scale == 1:
            return self.reported
        factor_levels = (self.reported, self.scale) == ("IU/dL", 100.0)
        return "IU/mL" if factor_levels else f"{self.scale:g} {self.reported}"


def columns(table: str, reported: str, model: str = "", **others: str) -> dict[str, str]:
    """The units of a table's columns by patterns, for ``with_units``.

    :param table: of ``COLUMNS``; the columns of any other have none.
    :param others: what stands in braces there, beside the units of concentrations.
    """
    known = {"reported": reported, "model": model, **others}
    units = {name: unit.format_map(known) for name, unit in COLUMNS.get(table, {}).items()}
    return {**units, "*": units.get("*", NONE)}


def with_units(table: pa.Table, units: Mapping[str, str]) -> pa.Table:
    """A table whose columns name their units.

    :param units: of a column's name, or of a pattern such as ``omega_*``; the first that fits counts, and one
        that none fits has no unit named.
    """
    fields = []
    for field in table.schema:
        unit = next((unit for name, unit in units.items() if fnmatchcase(field.name, name)), None)
        named = field if unit is None else field.with_metadata({**(field.metadata or {}), UNIT: unit})
        fields.append(named)
    return pa.Table.from_arrays(table.columns, schema=pa.schema(fields, metadata=table.schema.metadata))


def by_row(units: Mapping[str, str]) -> str:
    """The unit of a column that depends on what its row is of, as in kg (weight), IU/dL (vwf)."""
    return ", ".join(f"{unit} ({name})" for name, unit in units.items()) or NONE


def unit_of(field: pa.Field) -> str | None:
    """A column's unit, None where it names none, as in files of before."""
    found = (field.metadata or {}).get(UNIT)
    return None if found is None else str(found.decode())


def write_table(path: Path, table: pa.Table | pd.DataFrame, units: Mapping[str, str] | None = None) -> None:
    """Write a whole Parquet file whose columns name their units.

    :param table: a data frame loses its index.
    :param units: see ``with_units``; beside those that the columns name already.
    """
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    with replaced(path) as partial:
        pyarrow.parquet.write_table(
            with_units(table, units or {}), partial, compression="zstd", write_page_checksum=True
        )
