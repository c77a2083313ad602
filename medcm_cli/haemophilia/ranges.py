"""Ranges of the raw covariates, beyond which a value is impossible or in another unit."""

from collections.abc import Mapping, Sequence

import numpy as np

from medcm_cli.data.sheet import BoolArray, FloatArray
from medcm_cli.errors import InputError

VWF_UNITS = {"IU/dL": 1.0, "fraction": 100.0}

# Plausible values, in IU/dL for VWF:Ag; far enough apart that another unit falls outside.
_RANGES = {
    "age": (0.0, 120.0, "y"),
    "height": (30.0, 250.0, "cm"),
    "weight": (1.0, 400.0, "kg"),
    "vwf": (0.0, 1000.0, "IU/dL"),
    "vwf_historic": (0.0, 1000.0, "IU/dL"),
    "vwf_prophylaxis": (0.0, 1000.0, "IU/dL"),
}
_FRACTION_BELOW = 5.0  # IU/dL: no cohort has all its VWF:Ag under it, but every one as a fraction


def check_ranges(
    raw: Mapping[str, FloatArray], columns: Mapping[str, str], vwf_unit: str, ids: Sequence[str], source: str
) -> None:
    """Whether every value is possible.

    :param raw: raw covariate -> (subjects,), NaN where missing.
    :param columns: raw covariate -> its column in the file, for what is said of it.
    :param vwf_unit: that of every VWF:Ag of ``raw``, a key of ``VWF_UNITS``.
    :param ids: the subjects. :param source: the file.
    :raises InputError: the first value that is not.
    """
    per_unit = VWF_UNITS[vwf_unit]
    for name, values in raw.items():
        column = columns.get(name, name)

        def refuse(bad: BoolArray, expected: str, name: str = name, column: str = column) -> None:
            if bad.any():
                subject = int(np.argmax(bad))
                raise InputError(
                    f"{source}: subject {ids[subject]!r}, column {column!r}: {name} is "
                    f"{raw[name][subject]:g}; expected {expected}"
                )

        known = ~np.isnan(values)
        if name == "blood_group_o":
            refuse(known & (values != 0) & (values != 1), "1 for blood group O or 0 for another")
            continue
        low, high, unit = _RANGES[name]
        if name.startswith("vwf"):
            low, high, unit = low / per_unit, high / per_unit, vwf_unit
            small = known & (values > 0)
            if vwf_unit == "IU/dL" and small.any() and values[small].max() < _FRACTION_BELOW:
                refuse(small, "IU/dL; for a fraction of normal, dataset.preparation.vwf_unit=fraction")
        words = f"{low:g} to {high:g} {unit}"
        if name == "height":
            refuse(known & (values >= 0.3) & (values <= 2.5), f"{words}, not m")
        refuse(known & ~((values >= low) & (values <= high)), words)
