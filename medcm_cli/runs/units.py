"""The unit of every column of every table (``COLUMNS``), which the schema of each Parquet file names: a
field's metadata ``unit``, such as h, mg/L or -, which stands for none. Only a disease's covariates have
theirs where they are prepared."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from medcm_cli import quantities
from medcm_cli.files import replaced

UNIT = b"unit"
NONE = "-"
LOG = "log scale"
_SCALES = {"logit": "logit scale", "boxcox": "log scale before Box-Cox"}
TYPICAL = "typical_"
"""What columns of typical parameters begin with, at the covariates that a history's metadata name."""
REFERENCE = b"reference"
_ONE_OF_EACH = "{reported} (sigma_additive), - (omega_*, rho_*, sigma_proportional), {parameters}"
# Component of a residual error -> the unit of its sigma in results.
SIGMAS = {
    "additive": "{reported}",
    "proportional": NONE,
    "log": "log scale",
    "power": "{reported}^(1 - exponent)",
    "exponent": NONE,
}
_OTHERS = {f"sigma_{name}": SIGMAS[name] for name in ("log", "power")}
_OF_MODEL = {"sigma_additive": "{model}", "sigma_power": "{model}^(1 - exponent)"}
_DRAWS = {**_OTHERS, **_OF_MODEL, "lp": "nats", "ess_*": "draws"}
_BOUNDS = ("typical", "median", "lower_*", "upper_*")
_CANDIDATES = {
    "above_*": "{time}",
    "auc_*": "{reported} {time}",
    "trough_*": "{reported}",
    "peak_*": "{reported}",
}
_DOSE = {
    "every": "{time}",
    "dose": "{amount}",
    "best_dose": "{amount}",
    "per_kg": "{amount}/kg",
    "weekly": "{amount}/week",
}
# Table -> the unit of each column, by patterns, of which the first that fits counts; - for every other. In
# braces: time, amount and model, the units of a data set's event table, and reported, that of concentrations
# in results (``Units.named``); and what only the table's writer knows.
COLUMNS: dict[str, dict[str, str]] = {
    "history": {
        "objective_value": "{objective}",
        "penalty": "{objective}",
        "rmse": "{reported}",
        "sigma_additive": "{model}",
        **_OTHERS,
        "kl": "nats",
    },
    "parameters": {},
    "random_effects": {},
    "effects": {"x": "{covariate}", "value": "{parameters}"},
    "uncertainty": {"name": "-", "method": "-", "rse": "%", "*": _ONE_OF_EACH},
    "score": {},
    "draws": _DRAWS,
    "population": _DRAWS,
    "diagnostics": {**_DRAWS, **dict.fromkeys(("mean", "sd"), "{model} (sigma_additive), - (others)")},
    "summary": {
        "kl*": "nats",
        "cv_*": "%",
        "seconds*": "s",
        "objective_value*": "of objective",
        **dict.fromkeys(("rmse*", "sigma_additive*", "sigma_mae*"), "{reported}"),
        **{f"{name}*": unit for name, unit in _OTHERS.items()},
    },
    "predictions/parameters": dict.fromkeys(_BOUNDS, "see unit"),
    "predictions/curve": {"time": "{time}", **dict.fromkeys((*_BOUNDS, "measured_*"), "{reported}")},
    "predictions/thresholds": {"threshold": "{reported}", **dict.fromkeys(_BOUNDS, "{time}")},
    "predictions/above": {"time": "{time}", "threshold": "{reported}"},
    "predictions/doses": {"time": "{time}", "amount": "{amount}", "duration": "{time}"},
    "predictions/observations": {"time": "{time}", "level": "{reported}"},
    "predictions/check": {"rmse*": "{reported}", "bias": "{reported}"},
    "predictions/check_levels": {
        "time": "{time}",
        **dict.fromkeys((*_BOUNDS, "observed", "sd"), "{reported}"),
    },
    "doses/doses": _DOSE,
    "doses/candidates": {**_DOSE, **_CANDIDATES},
}


class Units(NamedTuple):
    """The units of a data set: ``time``, ``amount`` and ``level`` of its event table, which are the model's,
    and ``reported``, that of concentrations in results, of which one of ``level`` is ``scale``.
    ``stated``: the configuration says so, and a fit begins where it would in h and with levels of a usual
    size, whatever the units. ``endpoints``: name and unit in the event table of each, where there are
    several, of which the first is that of levels. ``axis``: what observations depend on in place of time.
    ``effect``: the unit of effects and responses, that of levels if it is empty."""

    reported: str
    scale: float
    level: str
    amount: str
    time: str = quantities.HOUR
    stated: bool = True
    endpoints: tuple[tuple[str, str], ...] = ()
    axis: str = ""
    effect: str = ""

    @classmethod
    def of(cls, dataset: Mapping[str, Any]) -> "Units":
        """As the configuration of a data set has them. Of records that say no units what is known of them is
        in the reported one."""
        reported, scale = str(dataset["level_unit"]), float(dataset["level_scale"])
        given = dataset.get("units")
        if given is None:
            level = _level_before(reported, scale)
            return cls(reported, scale, level, level.split("/")[0], stated=False)
        return cls(reported, scale, str(given["level"]), str(given["amount"]), str(given["time"]))

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Units":
        """As a whole configuration has them, its endpoints too."""
        units, endpoints = cls.of(config["dataset"]), config.get("endpoints") or {}
        pk = config.get("pk") or {}
        if pk.get("_target_") == "medcm_cli.pk.DirectModel":
            unit = str(pk.get("x_unit", "{amount}")).format_map(units.named)
            units = units._replace(axis=f"{pk.get('column', 'dose')}, {unit}")
        others = [str(of.get("unit") or "") for of in endpoints.values() if of.get("output") != "central"]
        return units._replace(
            endpoints=tuple((name, str(one.get("unit") or units.level)) for name, one in endpoints.items()),
            effect=next(iter(others), ""),
        )

    def endpoint(self, number: int) -> "Units":
        """Those of an endpoint, from 0, as those of levels: what is no level is reported as it is."""
        if not self.endpoints or self.endpoints[number][1] == self.level:
            return self
        unit = self.endpoints[number][1]
        return self._replace(reported=unit, scale=1.0, level=unit)

    @property
    def along(self) -> str:
        """The label of what observations depend on."""
        return self.axis or f"time, {self.time}"

    @property
    def of_each(self) -> dict[str, str]:
        """``named``, where a column holds values of all endpoints."""
        each = {name: self.endpoint(number).reported for number, (name, _) in enumerate(self.endpoints)}
        return {**self.named, "reported": by_row(each)} if each else self.named

    @property
    def by_endpoint(self) -> dict[str, str]:
        """Estimate -> its unit in results, of those that each of several endpoints has."""
        found = dict[str, str]()
        for number, (name, _) in enumerate(self.endpoints):
            own = self.endpoint(number).named
            found |= {f"rmse_{name}": own["reported"]}
            found |= {f"sigma_{part}_{name}": unit.format_map(own) for part, unit in SIGMAS.items()}
        return found

    @property
    def of_endpoints(self) -> dict[str, str]:
        """Column of a history -> the unit that it has there, likewise: that of the model for a sigma."""
        units = dict(self.by_endpoint)
        for name, unit in self.endpoints:
            units |= {f"sigma_{part}_{name}": said.format(reported=unit) for part, said in SIGMAS.items()}
        return units

    @property
    def named(self) -> dict[str, str]:
        """What stands in braces in ``COLUMNS``."""
        return {"reported": self.reported, "model": self.level, "amount": self.amount, "time": self.time}

    @property
    def of_sigmas(self) -> dict[str, str]:
        """The sigma of each component of residual errors -> its unit in results."""
        found = {f"sigma_{name}": unit.format_map(self.named) for name, unit in SIGMAS.items()}
        return found | self.by_endpoint

    def of_parameters(self, patterns: Mapping[str, str]) -> dict[str, str]:
        """Parameter -> its unit, of those that a compartment model names (``PkModel.units``)."""
        named = {**self.named, "model": self.effect or self.level}
        found = {name: pattern.format_map(named) for name, pattern in patterns.items()}
        return {name: f"1{unit[1:]}" if unit.startswith("-/") else unit for name, unit in found.items()}

    @property
    def hours(self) -> float:
        """How many hours a unit of time is."""
        return quantities.hours(self.time)

    @property
    def usual_level(self) -> float:
        """How many units of the event table a level of a usual size is: where a residual error begins."""
        return quantities.usual_level(self.amount, self.level) if self.stated else 1.0

    def level_in(self, unit: str) -> float | None:
        """How many of the reported unit a level of 1 ``unit`` is, None where that is not known."""
        quantities.define_amount(self.amount)
        if (reported := quantities.factor(unit, self.reported)) is not None:
            return reported
        in_file = quantities.factor(unit, self.level)
        return None if in_file is None else in_file * self.scale

    def area_in(self, unit: str) -> float | None:
        """How many of the reported unit times the unit of time an area of 1 ``unit`` is, likewise."""
        quantities.define_amount(self.amount)
        for level, scale in ((self.reported, 1.0), (self.level, self.scale)):
            if (found := quantities.factor(unit, f"{level}*{self.time}")) is not None:
                return found * scale
        return None

    def time_in(self, unit: str) -> float | None:
        """How many of the unit of time 1 ``unit`` is, None where it is no unit of time."""
        return quantities.factor(unit, self.time)


def _level_before(reported: str, scale: float) -> str:
    """The unit of the levels in an event table, of a record that says only what they are reported in: by its
    name where that is known, else as a multiple of the reported one."""
    if scale == 1:
        return reported
    of_a_ml = scale == 100 and reported.endswith("/dL")
    return f"{reported.removesuffix('/dL')}/mL" if of_a_ml else f"{scale:g} {reported}"


def effect_scales(config: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, str]:
    """Parameter that varies between subjects -> in words, what its random effect and the sd of that are on.

    :param config: of a record. :param parameters: parameter -> its unit, as far as it is known.
    """
    given = config.get("distributions") or {}
    found = {}
    for name in map(str, config.get("random_effects") or ()):
        kind = given.get(name, "exponential")
        kind = next(iter(kind)) if isinstance(kind, Mapping) else kind
        found[name] = {"additive": parameters.get(name, "in its unit"), **_SCALES}.get(str(kind), LOG)
    return found


def occasion_scales(config: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, str]:
    """The same of what varies between the occasions of a subject."""
    own = (config.get("occasions") or {}).get("parameters")
    return effect_scales({**config, "random_effects": own}, parameters)


def is_scale(scale: str) -> bool:
    """Whether it is no unit, of what ``effect_scales`` says."""
    return scale in (LOG, *_SCALES.values())


def columns(table: str, known: Mapping[str, str]) -> dict[str, str]:
    """The units of a table's columns by patterns, for ``with_units``.

    :param table: of ``COLUMNS``; the columns of any other have none.
    :param known: what stands in braces there (``Units.named``), as far as the table needs it.
    """
    units = {name: unit.format_map(known) for name, unit in COLUMNS.get(table, {}).items()}
    return {**units, "*": units.get("*", NONE)}


def resolved(names: Iterable[str], units: Mapping[str, str]) -> dict[str, str]:
    """Column -> its unit, of columns that one of the patterns fits, the first of which counts."""
    found = {name: next((u for p, u in units.items() if fnmatchcase(name, p)), None) for name in names}
    return {name: unit for name, unit in found.items() if unit is not None}


def with_units(table: pa.Table, units: Mapping[str, str]) -> pa.Table:
    """A table whose columns name their units.

    :param units: of a column's name, or of a pattern such as ``omega_*``; the first that fits counts, and one
        that none fits has no unit named.
    """
    found, fields = resolved(table.schema.names, units), []
    for field in table.schema:
        unit = found.get(field.name)
        named = field if unit is None else field.with_metadata({**(field.metadata or {}), UNIT: unit})
        fields.append(named)
    return pa.Table.from_arrays(table.columns, schema=pa.schema(fields, metadata=table.schema.metadata))


def amount(value: float, unit: str) -> str:
    """A value with its unit in a sentence, where one without a unit stands alone."""
    return f"{value:g}" if unit == NONE else f"{value:g} {unit}"


def by_row(units: Mapping[str, str]) -> str:
    """The unit of a column that depends on what its row is of, as in kg (weight), mL/min (crcl)."""
    return ", ".join(f"{unit} ({name})" for name, unit in units.items()) or NONE


def unit_of(field: pa.Field) -> str | None:
    """A column's unit, None where it names none, as in files of before."""
    found = (field.metadata or {}).get(UNIT)
    return None if found is None else str(found.decode())


def named_in(schema: pa.Schema) -> dict[str, str]:
    """Column -> its unit, of those that name one."""
    return {field.name: unit for field in schema if (unit := unit_of(field)) is not None}


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
