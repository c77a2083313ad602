"""The unit of every column, which the schema of each Parquet file names: a field's metadata ``unit``, such as
h, IU/dL or -, which stands for none."""

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
    def model(self) -> str:
        """The model's unit: by its name where that is known, else as a multiple of the reported one."""
        if self.scale == 1:
            return self.reported
        factor_levels = (self.reported, self.scale) == ("IU/dL", 100.0)
        return "IU/mL" if factor_levels else f"{self.scale:g} {self.reported}"


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
        pyarrow.parquet.write_table(with_units(table, units or {}), partial, compression="zstd")
