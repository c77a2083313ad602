"""From the covariates that a file has to those that a model needs: what is missing is imputed, what follows
from others is derived, and of every value it is kept how it came about (METHODS, "Protocol: real data").

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
from medcm_cli.haemophilia.covariates import bmi, fat_free_mass, height_mode, vwf_mode, weight_mode
from medcm_cli.runs import with_units

RAW = ("age", "height", "weight", "blood_group_o", "vwf", "vwf_historic", "vwf_prophylaxis")
IMPUTED = ("height", "weight", "vwf")
DERIVED = ("bmi", "ffm")
SURGERY = 1.3  # VWF:Ag around surgery, relative to that of the same patient on prophylaxis
VWF_UNITS = {"IU/dL": 1.0, "fraction": 100.0}

# Plausible values, in the units above; far enough apart that another unit falls outside.
_RANGES = {
    "age": (0.0, 120.0, "y"),
    "height": (30.0, 250.0, "cm"),
    "weight": (1.0, 400.0, "kg"),
    "vwf": (0.0, 1000.0, "IU/dL"),
    "vwf_historic": (0.0, 1000.0, "IU/dL"),
    "vwf_prophylaxis": (0.0, 1000.0, "IU/dL"),
}
# Of the columns of ``table``, by patterns.
_UNITS = {
    "id": "-",
    "*_origin": "-",
    "baseline_subtracted": "IU/mL",
    "age": "y",
    "height": "cm",
    "weight": "kg",
    "bmi": "kg/m²",
    "ffm": "kg",
    "vwf*": "IU/dL",
    "*": "-",
}
_FRACTION_BELOW = 5.0  # IU/dL: no cohort has all its VWF:Ag under it, but every one as a fraction
_HIGHEST_BASELINE = 0.5  # IU/mL; beyond mild haemophilia, and a level in IU/dL

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
        where = "dataset.preparation"
        known = ("columns", "impute", "surgery", "baseline", "vwf_unit")
        if not isinstance(options, Mapping):
            raise InputError(f"{where} is {options!r}; expected {', '.join(known)}, or null for none")
        unknown = [key for key in options if key not in known]
        if unknown:
            raise InputError(f"{where}.{unknown[0]}: no such option; expected {', '.join(known)}")
        columns, raw = options.get("columns"), ", ".join(RAW)
        if not isinstance(columns, Mapping) or not columns:
            raise InputError(f"{where}.columns is {columns!r}; expected a column for some of {raw}")
        for name, column in columns.items():
            if name not in RAW:
                raise InputError(f"{where}.columns.{name}: no such covariate; expected some of {raw}")
            if column is not None and (not isinstance(column, str) or not column):
                raise InputError(f"{where}.columns.{name} is {column!r}; expected a column, null for none")
        columns = {name: column for name, column in columns.items() if column is not None}
        impute = options.get("impute") or []
        if not isinstance(impute, list | tuple):
            raise InputError(f"{where}.impute is {impute!r}; expected a list of {', '.join(IMPUTED)}")
        for name in impute:
            if name not in IMPUTED:
                raise InputError(f"{where}.impute: {name!r}; expected some of {', '.join(IMPUTED)}")
        surgery, baseline = flag(f"{where}.surgery", options.get("surgery", False)), options.get("baseline")
        if baseline is not None and (not isinstance(baseline, str) or not baseline):
            raise InputError(f"{where}.baseline is {baseline!r}; expected a column of the file, or null")
        unit = one_of(f"{where}.vwf_unit", options.get("vwf_unit", "IU/dL"), VWF_UNITS)
        if "vwf_prophylaxis" in columns and not surgery:
            raise InputError(f"{where}.columns.vwf_prophylaxis: has no effect without {where}.surgery=true")
        if "vwf_historic" in columns and "vwf" not in impute:
            raise InputError(f"{where}.columns.vwf_historic: has no effect without vwf in {where}.impute")
        if impute and "age" not in columns:
            raise InputError(f"{where}.impute: {impute[0]} needs {where}.columns.age")
        return cls(dict(columns), tuple(impute), surgery, baseline, unit)


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
        """The covariates named. :raises InputError: one that is not there, or missing in a subject."""
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
    _check(raw, steps, ids, source)
    scale = VWF_UNITS[steps.vwf_unit]
    values = {n: v * scale if n.startswith("vwf") else v for n, v in raw.items()}
    n = len(ids)
    nothing = np.full(n, np.nan)
    found: dict[str, FloatArray] = {}
    origin: dict[str, Origins] = {}

    def age_for(name: str, needed: BoolArray) -> FloatArray:
        age = values.get("age", nothing)
        absent = needed & np.isnan(age)
        if absent.any():
            subject, column = ids[int(np.argmax(absent))], steps.columns.get("age", "age")
            raise InputError(
                f"{source}: subject {subject!r}, column {column!r}: is missing; {name} is imputed given age"
            )
        return age

    def settle(name: str, *choices: tuple[FloatArray, str]) -> None:
        """The first choice that is not missing, subject by subject."""
        known = [~np.isnan(value) for value, _ in choices]
        found[name] = np.select(known, [value for value, _ in choices], np.nan)
        origin[name] = np.select(known, [np.full(n, label) for _, label in choices], "missing")

    for name in ("age", "blood_group_o"):
        if name in values:
            settle(name, (values[name], "measured"))
    if "height" in values or "height" in steps.impute:
        height = values.get("height", nothing)
        choices = [(height, "measured")]
        if "height" in steps.impute:
            choices.append((height_mode(age_for("height", np.isnan(height))), "imputed"))
        settle("height", *choices)
    if "weight" in values or "weight" in steps.impute:
        weight = values.get("weight", nothing)
        choices = [(weight, "measured")]
        if "weight" in steps.impute:
            height = found.get("height", nothing)
            unknown = np.isnan(weight) & np.isnan(height)
            typical = height_mode(age_for("weight", unknown))
            choices.append((weight_mode(np.where(np.isnan(height), typical, height)), "imputed"))
        settle("weight", *choices)
    if {"vwf", "vwf_historic", "vwf_prophylaxis"} & set(values) or "vwf" in steps.impute:
        vwf, prophylaxis = (values.get(name, nothing) for name in ("vwf", "vwf_prophylaxis"))
        mode = averaged = nothing
        if "vwf" in steps.impute:
            age = age_for("vwf", np.isnan(vwf) & np.isnan(prophylaxis))
            mode = vwf_mode(age, values.get("blood_group_o", nothing))
            averaged = (values.get("vwf_historic", nothing) + mode) / 2
        if steps.surgery:
            others = ((prophylaxis, "prophylaxis"), (averaged, "averaged"), (mode, "imputed"))
            settle("vwf", (vwf, "mean"), *((SURGERY * v, f"{label} x {SURGERY}") for v, label in others))
        else:
            settle("vwf", (vwf, "measured"), (averaged, "averaged"), (mode, "imputed"))
    if {"weight", "height"} <= set(found):
        settle("bmi", (bmi(found["weight"], found["height"]), "derived"))
        if "age" in found:
            settle("ffm", (fat_free_mass(found["age"], found["weight"], found["height"]), "derived"))
    return Prepared(found, origin)


def check_baseline(baseline: FloatArray, column: str, ids: Sequence[str], source: str) -> FloatArray:
    """The baseline of each subject (IU/mL), as it is. :raises InputError: missing, or out of range."""
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
    """Levels less their subject's baseline (subjects,), all IU/mL. On a censored row ``dv`` is a limit, which
    moves likewise; what lies below the baseline becomes negative, and stays so. NaN (a dose) stays NaN."""
    return dv - baseline[subject]


def table(ids: Sequence[str], prepared: Prepared, baseline: FloatArray | None = None) -> pa.Table:
    """What was done, a row per subject: id, each covariate and its origin, and the baseline subtracted."""
    columns: dict[str, pa.Array] = {"id": pa.array(list(ids), pa.string())}
    for name, values in prepared.covariates.items():
        columns[name] = pa.array(values, mask=np.isnan(values))
        columns[f"{name}_origin"] = pa.array(prepared.origin[name].tolist(), pa.string())
    if baseline is not None:
        columns["baseline_subtracted"] = pa.array(baseline)
    return with_units(pa.table(columns), _UNITS)


def _check(raw: Mapping[str, FloatArray], steps: Preparation, ids: Sequence[str], source: str) -> None:
    """Refuse the first impossible value."""
    per_unit = VWF_UNITS[steps.vwf_unit]
    for name, values in raw.items():
        column = steps.columns.get(name, name)

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
            low, high, unit = low / per_unit, high / per_unit, steps.vwf_unit
            small = known & (values > 0)
            if steps.vwf_unit == "IU/dL" and small.any() and values[small].max() < _FRACTION_BELOW:
                refuse(small, "IU/dL; for a fraction of normal, dataset.preparation.vwf_unit=fraction")
        words = f"{low:g} to {high:g} {unit}"
        if name == "height":
            refuse(known & (values >= 0.3) & (values <= 2.5), f"{words}, not m")
        refuse(known & ~((values >= low) & (values <= high)), words)
