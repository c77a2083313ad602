"""Covariates that subjects lack: what they have in the place of it, taken from the subjects of a study.

A rule has a statistic over the study's subjects who have the covariate, of all of them or of those of the
same category; what was found is kept, so that a patient who is predicted later gets the study's value.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from medcm_cli.data.events import EventTable
from medcm_cli.data.sheet import FloatArray
from medcm_cli.errors import InputError
from medcm_cli.runs import with_units

_ALL = ""  # the category of a statistic of all subjects
Origins = npt.NDArray[np.str_]
Found = Mapping[str, Mapping[str, Any]]
"""Covariate -> rule, by, and values: category (empty without any) -> the statistic. Ready for JSON."""


Rule = tuple[str, str | None]
"""A statistic, mean, median or mode, and the column of the category, None for all subjects together."""


def statistics(events: EventTable, rules: Mapping[str, Rule]) -> dict[str, dict[str, Any]]:
    """What the N subjects of a study give for ``rules``.

    :raises InputError: no subject has the covariate.
    """
    found: dict[str, dict[str, Any]] = {}
    for covariate, (statistic, by) in rules.items():
        values = pd.Series(_of_subjects(events, covariate))
        if values.isna().all():
            raise InputError(f"{events.source}: no subject has {covariate}, whose {statistic} is to be taken")
        kinds = np.full(len(values), _ALL, dtype=object) if by is None else events.labels[by]
        of_kind = values.groupby(kinds).agg(_mode if statistic == "mode" else statistic).dropna()
        found[covariate] = {
            "rule": statistic,
            "by": by,
            "values": {str(kind): float(value) for kind, value in of_kind.items() if by is None or kind},
        }
    return found


def _mode(values: "pd.Series[float]") -> float:
    """The most frequent value, the least of several."""
    most = values.mode()
    return float(most.iloc[0]) if len(most) else float("nan")


def filled(
    events: EventTable, found: Found, units: Mapping[str, str]
) -> tuple[EventTable, dict[str, Origins]]:
    """The table with a value for each subject who lacks a covariate of ``found``, and of each covariate how
    the values came about (N,).

    :param units: of covariates, for what is said.
    :raises InputError: a subject whose category is missing, or one that the study knows no value for.
    """
    stay, origins, notes = dict(events.covariates), {}, list(events.notes)
    regimes = events.regimes
    for covariate, rule in found.items():
        lacking = np.isnan(_of_subjects(events, covariate))
        new, words = _values(events, covariate, rule, lacking)
        origins[covariate] = np.where(lacking, words, "measured")
        if covariate in stay:
            stay[covariate] = np.where(lacking, new, stay[covariate])
        else:
            assert regimes is not None
            old = regimes.covariates[covariate]
            values = np.where(np.isnan(old), new[regimes.subject], old)
            regimes = replace(regimes, covariates={**regimes.covariates, covariate: values})
        if lacking.any():
            notes.append(_note(events, covariate, lacking, new, words, units.get(covariate, "")))
    return replace(events, covariates=stay, regimes=regimes, notes=tuple(notes)), origins


def _values(
    events: EventTable, covariate: str, rule: Mapping[str, Any], lacking: npt.NDArray[np.bool_]
) -> tuple[FloatArray, Origins]:
    """The statistic of each subject's category, NaN of one that does not lack the covariate and has none, and
    what it is called."""
    by, known = rule["by"], rule["values"]
    kinds = np.full(len(events.ids), _ALL, dtype=object) if by is None else events.labels[by]
    for number in np.flatnonzero(lacking):
        if kinds[number] not in known:
            whose = f"whose {by} is {kinds[number]!r}" if kinds[number] or by is None else f"and no {by}"
            raise InputError(
                f"{events.source}: subject {events.ids[number]!r} has no {covariate}, {whose}; the study's "
                f"{rule['rule']} is known of {by} {', '.join(map(repr, known))}"
            )
    values = np.array([known.get(kind, np.nan) for kind in kinds], dtype=np.float64)
    words = [rule["rule"] if by is None else f"{rule['rule']} of {by} {kind}" for kind in kinds]
    return values, np.array(words, dtype=np.str_)


def _note(
    events: EventTable,
    covariate: str,
    lacking: npt.NDArray[np.bool_],
    new: FloatArray,
    words: Origins,
    unit: str,
) -> str:
    first, count = int(np.argmax(lacking)), int(lacking.sum())
    beside = f" and {count - 1} more" if count > 1 else ""
    value = f"{new[first]:.4g} {unit}".rstrip(" -")
    return (
        f"{events.source}: {covariate} is missing in subject {events.ids[first]!r}{beside}; the study's "
        f"{words[first]}, {value}, is taken"
        + (", of each category its own" if len(set(words[lacking])) > 1 else "")
    )


def _of_subjects(events: EventTable, covariate: str) -> FloatArray:
    """One value per subject (N,), the first of a covariate that changes."""
    if covariate in events.covariates:
        return events.covariates[covariate]
    assert events.regimes is not None
    first = np.unique(events.regimes.subject, return_index=True)[1]
    return events.regimes.covariates[covariate][first]


def origin_table(events: EventTable, origins: Mapping[str, Origins], units: Mapping[str, str]) -> pa.Table:
    """A row per subject: id, each covariate that could be missing, and its origin, with their units."""
    columns: dict[str, pa.Array] = {"id": pa.array(list(events.ids), pa.string())}
    for covariate, origin in origins.items():
        columns[covariate] = pa.array(_of_subjects(events, covariate))
        columns[f"{covariate}_origin"] = pa.array(origin.tolist(), pa.string())
    return with_units(pa.table(columns), {**{name: units.get(name) or "-" for name in origins}, "*": "-"})
