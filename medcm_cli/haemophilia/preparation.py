"""From the covariates that a file has to those that a model needs: what is missing is imputed, what follows
from others is derived, and of every value it is kept how it came about (docs/methods.md, "Imputation").

Raw covariates are one value per subject, NaN where missing: age y, height cm, weight kg, blood_group_o (1
for O, 0 for another), and VWF:Ag IU/dL or fraction of normal: vwf, vwf_historic (from another setting) and
vwf_prophylaxis (of a patient who now has surgery, before it).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from medcm_cli.checks import flag, one_of
from medcm_cli.data.sheet import BoolArray, FloatArray, IntArray
from medcm_cli.errors import InputError
from medcm_cli.haemophilia.covariates import bmi, fat_free_mass, height_mode, vwf_mode, weight_median
from medcm_cli.haemophilia.ranges import VWF_UNITS, check_ranges
from medcm_cli.runs import with_units
from medcm_cli.runs.units import resolved

RAW = ("age", "height", "weight", "blood_group_o", "vwf", "vwf_historic", "vwf_prophylaxis")
IMPUTED = ("height", "weight", "vwf")
DERIVED = ("bmi", "ffm")
SURGERY = 1.3  # VWF:Ag around surgery, relative to that of the same patient on prophylaxis
# Of the columns of ``table``, by patterns.
_UNITS = {
    "id": "-",
    "*_origin": "-",
    "age": "y",
    "height": "cm",
    "weight": "kg",
    "bmi": "kg/m²",
    "ffm": "kg",
    "vwf*": "IU/dL",
    "*": "-",
}
_HIGHEST_BASELINE = 0.5  # IU/mL; beyond mild haemophilia, and a level in IU/dL

_WHERE = "dataset.preparation"

Origins = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Preparation:
    """The steps of a preparation.

    ``columns`` raw name -> column of the file; ``impute``: covariates whose missing values become their
    conditional mode; ``surgery``: whether VWF:Ag is that around surgery; ``baseline``: the column of the
    level before the first dose (IU/mL), None for none; ``vwf_unit``: of every VWF:Ag of the file, ``IU/dL``
    or ``fraction``.
    """

    columns: Mapping[str, str]
    impute: tuple[str, ...] = ()
    surgery: bool = False
    baseline: str | None = None
    vwf_unit: str = "IU/dL"

    @classmethod
    def build(cls, options: object) -> "Preparation":
        """From configuration, ``dataset.preparation``. :raises InputError: options that do not exist, are of
        another kind than expected, or would have no effect."""
        known = ("columns", "impute", "surgery", "baseline", "vwf_unit")
        if not isinstance(options, Mapping):
            raise InputError(f"{_WHERE} is {options!r}; expected {', '.join(known)}, or null for none")
        unknown = [key for key in options if key not in known]
        if unknown:
            raise InputError(f"{_WHERE}.{unknown[0]}: no such option; expected {', '.join(known)}")
        columns = _columns(options.get("columns"))
        impute = _impute([] if options.get("impute") is None else options["impute"])
        surgery, baseline = flag(f"{_WHERE}.surgery", options.get("surgery", False)), options.get("baseline")
        if baseline is not None and (not isinstance(baseline, str) or not baseline):
            raise InputError(f"{_WHERE}.baseline is {baseline!r}; expected a column of the file, or null")
        unit = one_of(f"{_WHERE}.vwf_unit", options.get("vwf_unit", "IU/dL"), VWF_UNITS)
        if "vwf_prophylaxis" in columns and not surgery:
            raise InputError(f"{_WHERE}.columns.vwf_prophylaxis: has no effect without {_WHERE}.surgery=true")
        if "vwf_historic" in columns and "vwf" not in impute:
            raise InputError(f"{_WHERE}.columns.vwf_historic: has no effect without vwf in {_WHERE}.impute")
        if impute and "age" not in columns:
            raise InputError(f"{_WHERE}.impute: {impute[0]} needs {_WHERE}.columns.age")
        return cls(columns, impute, surgery, baseline, unit)


def _columns(columns: object) -> dict[str, str]:
    """Raw covariate -> column of the file, without those that have none."""
    raw = ", ".join(RAW)
    if not isinstance(columns, Mapping) or not columns:
        raise InputError(f"{_WHERE}.columns is {columns!r}; expected a column for some of {raw}")
    for name, column in columns.items():
        if name not in RAW:
            raise InputError(f"{_WHERE}.columns.{name}: no such covariate; expected some of {raw}")
        if column is not None and (not isinstance(column, str) or not column):
            raise InputError(f"{_WHERE}.columns.{name} is {column!r}; expected a column, null for none")
    return {name: column for name, column in columns.items() if column is not None}


def _impute(names: object) -> tuple[str, ...]:
    """The covariates to impute."""
    if not isinstance(names, list | tuple):
        raise InputError(f"{_WHERE}.impute is {names!r}; expected a list of {', '.join(IMPUTED)}")
    for name in names:
        if name not in IMPUTED:
            raise InputError(f"{_WHERE}.impute: {name!r}; expected some of {', '.join(IMPUTED)}")
    return tuple(names)


@dataclass(frozen=True)
class Prepared:
    """Covariates (subjects,), NaN where missing and not imputed, and how each value came about.

    ``origin``: ``measured``; ``mean``, of the subject's values around surgery; ``imputed``, the conditional
    mode; ``averaged``, the mean of a historic value and the mode; ``prophylaxis x 1.3``, ``averaged x 1.3``
    and ``imputed x 1.3``, around surgery; ``derived``; ``missing``.
    """

    covariates: dict[str, FloatArray]
    origin: dict[str, Origins]

    def need(self, names: Sequence[str], ids: Sequence[str], source: str) -> dict[str, FloatArray]:
        """The covariates ``names``, (subjects,) each, of the subjects ``ids`` of the file ``source``.

        :raises InputError: one that is not there, or missing in a subject.
        """
        for name in names:
            if name not in self.covariates:
                known = ", ".join(self.covariates)
                raise InputError(f"{source}: no covariate {name!r} after preparation, which gives {known}")
            missing = np.isnan(self.covariates[name])
            if missing.any():
                hint = f"; dataset.preparation.impute can have {name}" if name in IMPUTED else ""
                raise InputError(f"{source}: subject {ids[int(np.argmax(missing))]!r} has no {name}{hint}")
        return {name: self.covariates[name] for name in names}


def prepare(
    raw: Mapping[str, FloatArray], steps: Preparation, ids: Sequence[str], source: str = "covariates"
) -> Prepared:
    """Prepare the covariates of all subjects at once.

    :param raw: the names of ``steps.columns`` -> (subjects,), NaN where missing; around surgery ``vwf`` is
        the mean of the subject's values.
    :param ids: the subjects, for what is said of them.
    :returns: the raw covariates but for the other VWF:Ag; ``bmi`` and ``ffm`` where weight and height, and
        age, are among them. VWF:Ag is in IU/dL.
    :raises InputError: impossible values; an age that is missing where an imputation needs it.

    A missing height is the mode given age; a missing weight the mode given height, measured or imputed; a
    missing VWF:Ag the mode given age and blood group, averaged with a historic value where there is one.
    Around surgery a missing VWF:Ag is the one on prophylaxis times 1.3, and where that is missing too, what
    it would be imputed as, times 1.3: a mode of the graph is that of a patient without surgery.
    """
    check_ranges(raw, steps.columns, steps.vwf_unit, ids, source)
    scale = VWF_UNITS[steps.vwf_unit]
    values = {name: v * scale if name.startswith("vwf") else v for name, v in raw.items()}
    file = _Raw(values, steps, ids, source)
    prepared = Prepared({}, {})
    for name in ("age", "blood_group_o"):
        if name in values:
            _settle(prepared, name, [(values[name], "measured")])
    if "height" in values or "height" in steps.impute:
        _settle(prepared, "height", _heights(file))
    if "weight" in values or "weight" in steps.impute:
        _settle(prepared, "weight", _weights(file, prepared.covariates.get("height", file.missing)))
    if {"vwf", "vwf_historic", "vwf_prophylaxis"} & set(values) or "vwf" in steps.impute:
        _settle(prepared, "vwf", _vwf(file))
    _derive(prepared)
    return prepared


Choice = tuple[FloatArray, str]
"""Values of a covariate (subjects,), NaN where missing, and their origin."""


@dataclass(frozen=True)
class _Raw:
    """The raw ``values``, VWF:Ag in IU/dL, of the subjects ``ids`` of a file, and what is to become of
    them."""

    values: Mapping[str, FloatArray]
    steps: Preparation
    ids: Sequence[str]
    source: str

    @property
    def missing(self) -> FloatArray:
        """A covariate that the file does not have."""
        return np.full(len(self.ids), np.nan)

    def of(self, name: str) -> FloatArray:
        """A raw covariate, missing in every subject where the file does not have it."""
        return self.values.get(name, self.missing)

    def age_for(self, name: str, needed: BoolArray) -> FloatArray:
        """Age, by which the covariate ``name`` is imputed in the subjects ``needed``. :raises InputError:
        missing in one of them."""
        age = self.of("age")
        absent = needed & np.isnan(age)
        if absent.any():
            subject, column = self.ids[int(np.argmax(absent))], self.steps.columns.get("age", "age")
            raise InputError(
                f"{self.source}: subject {subject!r}, column {column!r}: is missing; "
                f"{name} is imputed given age"
            )
        return age


def _settle(prepared: Prepared, name: str, choices: Sequence[Choice]) -> None:
    """Add the covariate: the first choice that is not missing, subject by subject."""
    known = [~np.isnan(value) for value, _ in choices]
    labels = [np.full(len(value), label) for value, label in choices]
    prepared.covariates[name] = np.select(known, [value for value, _ in choices], np.nan)
    prepared.origin[name] = np.select(known, labels, "missing")


def _heights(file: _Raw) -> list[Choice]:
    height = file.of("height")
    choices = [(height, "measured")]
    if "height" in file.steps.impute:
        choices.append((height_mode(file.age_for("height", np.isnan(height))), "imputed"))
    return choices


def _weights(file: _Raw, height: FloatArray) -> list[Choice]:
    """``height`` as it was prepared."""
    weight = file.of("weight")
    choices = [(weight, "measured")]
    if "weight" in file.steps.impute:
        unknown = np.isnan(weight) & np.isnan(height)
        typical = height_mode(file.age_for("weight", unknown))
        choices.append((weight_median(np.where(np.isnan(height), typical, height)), "imputed"))
    return choices


def _vwf(file: _Raw) -> list[Choice]:
    vwf, prophylaxis = file.of("vwf"), file.of("vwf_prophylaxis")
    mode = averaged = file.missing
    if "vwf" in file.steps.impute:
        age = file.age_for("vwf", np.isnan(vwf) & np.isnan(prophylaxis))
        mode = vwf_mode(age, file.of("blood_group_o"))
        averaged = (file.of("vwf_historic") + mode) / 2
    if not file.steps.surgery:
        return [(vwf, "measured"), (averaged, "averaged"), (mode, "imputed")]
    before = ((prophylaxis, "prophylaxis"), (averaged, "averaged"), (mode, "imputed"))
    return [(vwf, "mean"), *((SURGERY * value, f"{label} x {SURGERY}") for value, label in before)]


def _derive(prepared: Prepared) -> None:
    """Add body mass index and fat-free mass, where what they follow from is there."""
    covariates = prepared.covariates
    if not {"weight", "height"} <= set(covariates):
        return
    weight, height = covariates["weight"], covariates["height"]
    _settle(prepared, "bmi", [(bmi(weight, height), "derived")])
    if "age" in covariates:
        _settle(prepared, "ffm", [(fat_free_mass(covariates["age"], weight, height), "derived")])


def check_baseline(baseline: FloatArray, column: str, ids: Sequence[str], source: str) -> FloatArray:
    """Whether the baseline of every subject is there and plausible.

    :param baseline: (subjects,), IU/mL. :param column: its column in the file ``source``.
    :returns: the baseline as it is.
    :raises InputError: one that is missing, or out of range.
    """
    bad = ~((baseline >= 0) & (baseline <= _HIGHEST_BASELINE))
    if bad.any():
        subject = int(np.argmax(bad))
        value = "is missing" if np.isnan(baseline[subject]) else f"is {baseline[subject]:g}"
        raise InputError(
            f"{source}: subject {ids[subject]!r}, column {column!r}: {value}; expected the level before the "
            f"first dose, 0 to {_HIGHEST_BASELINE} IU/mL, 0 where there is none to subtract"
        )
    return baseline


def subtract_baseline(dv: FloatArray, subject: IntArray, baseline: FloatArray) -> FloatArray:
    """Concentrations less the baseline of their subject.

    :param dv: (rows,), IU/mL; on a censored row a limit, which moves likewise, and NaN on a dose.
    :param subject: number of the row's subject, (rows,).
    :param baseline: (subjects,), IU/mL.
    :returns: (rows,), IU/mL; what lies below the baseline becomes negative, and stays so.
    """
    return dv - baseline[subject]


def raw_units(steps: Preparation, level: str) -> dict[str, str]:
    """The units of what the file has for ``steps``; the baseline is in ``level``."""
    units = resolved([*steps.columns], _UNITS)
    if steps.vwf_unit == "fraction":
        units |= {name: "-" for name in units if name.startswith("vwf")}
    return {**units, "baseline": level}


def table(
    ids: Sequence[str], prepared: Prepared, baseline: FloatArray | None = None, level: str = "IU/mL"
) -> pa.Table:
    """What was done, a row per subject: id, each covariate and its origin, and the baseline subtracted, which
    is in ``level``."""
    columns: dict[str, pa.Array] = {"id": pa.array(list(ids), pa.string())}
    for name, values in prepared.covariates.items():
        columns[name] = pa.array(values, mask=np.isnan(values))
        columns[f"{name}_origin"] = pa.array(prepared.origin[name].tolist(), pa.string())
    if baseline is not None:
        columns["baseline_subtracted"] = pa.array(baseline)
    return with_units(pa.table(columns), {"baseline_subtracted": level, **_UNITS})
