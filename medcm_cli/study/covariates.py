"""The options of a data set's covariates. Loads no torch."""

from collections.abc import Collection, Mapping
from typing import Any

from medcm_cli.checks import name, number, one_of, shown
from medcm_cli.errors import InputError

MISSING = ("error", "mean", "median", "mode", "forward")
"""What is done where a covariate is missing."""
STATISTICS = ("mean", "median", "mode")
"""Those that take a value of the study's subjects."""
LARGEST = 1e12  # of what is in a unit of the data
_NEEDED = {"column", "scale", "reference", "unit"}
_OTHERS = {"values", "missing", "by"}


def check_covariates(covariates: object, prepared: bool) -> None:
    """Whether each is described as expected.

    :param prepared: by what has rules of its own for missing ones.
    :raises InputError: what is not.
    """
    if not isinstance(covariates, Mapping):
        raise InputError(f"dataset.covariates is {covariates!r}; expected a group, {{}} for none")
    for covariate, entry in covariates.items():
        where = f"dataset.covariates.{covariate}"
        if not isinstance(entry, Mapping) or _NEEDED - set(entry) or set(entry) - _NEEDED - _OTHERS:
            raise InputError(
                f"{where} is {entry!r}; expected column, scale, reference and unit, and values, missing "
                "or by if wanted"
            )
        name(f"{where}.column", entry["column"])
        number(f"{where}.reference", entry["reference"], least=-LARGEST, most=LARGEST)
        number(f"{where}.scale", entry["scale"], above=0, most=LARGEST)
        if not isinstance(entry["unit"], str):
            raise InputError(f"{where}.unit is {entry['unit']!r}; expected a text")
        _check_values(f"{where}.values", entry.get("values"))
        _check_missing(where, entry, prepared)


def _check_values(where: str, values: object) -> None:
    if values is None:
        return
    if not isinstance(values, Mapping) or not values:
        raise InputError(
            f"{where} is {shown(values)}; expected the number of each text, as in {{F: 0, M: 1}}"
        )
    for text, value in values.items():
        number(f"{where}.{text}", value, least=-LARGEST, most=LARGEST)
    if len({str(text).strip().casefold() for text in values}) < len(values):
        raise InputError(f"{where}: two texts differ in case or blanks alone, which do not count")


def _check_missing(where: str, entry: Mapping[str, Any], prepared: bool) -> None:
    rule = one_of(f"{where}.missing", entry.get("missing", "error"), MISSING)
    if prepared and rule != "error":
        raise InputError(
            f"{where}.missing: dataset.preparation says what is done where covariates are missing"
        )
    if entry.get("by") is None:
        return
    name(f"{where}.by", entry["by"])
    if rule not in STATISTICS:
        raise InputError(f"{where}.by: has no effect without {where}.missing={'|'.join(STATISTICS)}")


def rules_of(
    covariates: Mapping[str, Mapping[str, Any]], needed: Collection[str]
) -> dict[str, tuple[str, str | None]]:
    """Covariate -> what is done where it is missing, and the column of categories, of those that are needed
    and may be missing."""
    rules = {
        covariate: (str(entry.get("missing", "error")), entry) for covariate, entry in covariates.items()
    }
    return {
        covariate: (rule, None if entry.get("by") is None else str(entry["by"]))
        for covariate, (rule, entry) in rules.items()
        if rule != "error" and covariate in needed
    }


def texts_of(covariates: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Covariate -> text -> the number that it stands for, of those that say it."""
    return {
        covariate: {str(text): float(value) for text, value in entry["values"].items()}
        for covariate, entry in covariates.items()
        if entry.get("values") is not None
    }
