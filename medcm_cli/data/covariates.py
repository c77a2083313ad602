"""Covariates of an event table, per subject or, of those that change, per run of records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medcm_cli.checks import as_option
from medcm_cli.data.dialect import MISSING
from medcm_cli.data.format import Format
from medcm_cli.data.sheet import BoolArray, FloatArray, IntArray, Sheet, TextArray, label, opens_of


@dataclass(frozen=True)
class Regimes:
    """Runs of records in which covariates that change have one value, in the order of subjects and records.

    ``subject``; ``end`` h on the clock, of the run's last record, the last of a subject infinite;
    ``covariates`` name -> value; ``occasion`` of the subject, from 0, where occasions part regimes, too. As
    in NONMEM, a record's value holds from the record before it until the record itself; a run whose records
    have the time of the record before it holds at them alone.
    """

    subject: IntArray
    end: FloatArray
    covariates: dict[str, FloatArray]
    occasion: IntArray | None = None


_YES = ("yes", "y", "true", "ja", "j", "oui", "si", "sí")
_NO = ("no", "n", "false", "nein", "non")


def to_read(sheet: Sheet, covariates: Mapping[str, str], how: Format) -> tuple[dict[str, str], Format]:
    """The columns of covariates as the file calls them, without spare ones that are not there or hold no
    numbers; no value of a spare one is a fault."""
    found = {name: sheet.find(column) or column for name, column in covariates.items()}
    spare = {name for name in how.spare & found.keys() if how.over_time.get(name) is None}
    for name in how.spare & found.keys():
        there = found[name] in sheet.frame and name not in how.texts
        if not there or sheet.frame[found[name]].dtype.kind not in "iufb":
            del found[name]
    return found, replace(
        how,
        over_time={**how.over_time, **dict.fromkeys(spare, "first")},
        optional=how.optional | how.spare,
        limits={name: of for name, of in how.limits.items() if name not in how.spare},
    )


def numbers(
    sheet: Sheet, name: str, column: str, values: Mapping[str, float] | None, described: bool = True
) -> FloatArray:
    """A covariate's numbers, NaN where missing: those that its texts stand for where ``values`` says it, 1
    for yes and 0 for no where it holds nothing else, or else its numbers.

    :param described: by options of its own, to which what its texts stand for is to be added.
    :raises InputError: a text that stands for no number.
    """
    column = sheet.find(column) or column
    raw = sheet.frame[column]
    if raw.dtype.kind in "iuf" and values is None:
        return sheet.number(column)
    missing = raw.isna().to_numpy() | raw.astype(str).str.strip().isin(MISSING).to_numpy()
    texts = raw.map(label, na_action="ignore").astype(str).str.casefold()
    if values is None:
        if not texts[~missing].isin([*_YES, *_NO]).all():
            entry = {} if described else {"column": column, "scale": 1, "reference": 0, "unit": "-"}
            _refuse_text(sheet, name, column, missing, entry)
            return sheet.number(column)
        found = texts.isin(_YES).astype(float)
    else:
        found = texts.map({str(text).strip().casefold(): value for text, value in values.items()})
        words = ", ".join(map(str, values))
        what = f"is {{value!r}}; expected {words} (values of dataset.covariates.{name})"
        sheet.first(found.isna().to_numpy() & ~missing, column, what)
    return np.where(missing, np.nan, found.to_numpy(dtype=np.float64))


def _refuse_text(
    sheet: Sheet, name: str, column: str, missing: BoolArray, entry: Mapping[str, object]
) -> None:
    """:raises InputError: a column is of a few texts, none of which is a number."""
    texts = sheet.frame[column][~missing]
    kinds = [text for text in dict.fromkeys(texts) if isinstance(text, str)]
    if 2 <= len(kinds) <= 10 and not any(any(map(str.isdigit, text)) for text in kinds):
        example = {text: number for number, text in enumerate(sorted({text.strip() for text in kinds}))}
        says = as_option("dataset.covariates", name, **entry, values=example)
        sheet.first(~missing, column, f"is {{value!r}}, a text; {says} says which numbers texts stand for")


def labels_of(sheet: Sheet, how: Format, subject: IntArray, ids: Sequence[str]) -> dict[str, TextArray]:
    """Column -> the text of each of the N subjects, empty where missing; patients may lack the column.

    :raises InputError: a column that is not there, or that changes within a subject.
    """
    found = {}
    for name in how.labels:
        column = sheet.find(name) or name
        if column not in sheet.frame and how.patients:
            found[name] = np.full(len(ids), "", dtype=object)
            continue
        if column not in sheet.frame:
            raise sheet.absent(column)
        raw = sheet.frame[column]
        texts = raw.map(label, na_action="ignore").where(raw.notna())
        first = pd.Series(texts.to_numpy(dtype=object)).groupby(subject).first()
        of_subject = first.reindex(range(len(ids))).to_numpy(dtype=object)
        differs = texts.notna().to_numpy() & (texts.to_numpy(dtype=object) != of_subject[subject])
        sheet.first(differs, column, "{value!r} differs from the subject's first value")
        found[name] = np.array(["" if pd.isna(text) else str(text) for text in of_subject], dtype=object)
    return found


def _checked(sheet: Sheet, name: str, column: str, how: Format) -> FloatArray:
    """A covariate's numbers. :raises InputError: one that cannot be, or that is missing and must not be."""
    values = numbers(sheet, name, column, how.texts.get(name))
    low, high = how.limits.get(name, (-np.inf, np.inf))
    absurd = (values < low) | (values > high)
    sheet.first(absurd, column, f"is {{value}}; expected {low:g} to {high:g} (dataset.covariates)")
    changes = how.over_time.get(name, "constant") != "constant" or name in how.forward
    if name not in how.optional and not changes:
        way = "the study" if how.patients else as_option("dataset.covariates", name, missing="median")
        what = f"is missing; every row needs this covariate, or {way} says what to take"
        sheet.first(np.isnan(values), column, what)
    return values


def covariates_of(
    sheet: Sheet,
    covariates: Mapping[str, str],
    how: Format,
    subject: IntArray,
    clock: FloatArray,
    occasion: IntArray,
) -> tuple[dict[str, FloatArray], Regimes | None, IntArray]:
    """Values per subject of those that stay, regimes of those that change, and which of its subject's regimes
    each row has, -1 without any.

    :param occasion: of each row, which parts regimes where ``how.by_occasion``.
    """
    opens = opens_of(subject)
    stay: dict[str, FloatArray] = {}
    change: dict[str, FloatArray] = {}
    for name, column in covariates.items():
        values = _checked(sheet, name, column, how)
        rule = how.over_time.get(name, "constant")
        # A record without a value has that of the record before it, or else of the first that has one.
        filled = pd.Series(values).groupby(subject)
        if np.isnan(values).any():
            values = np.asarray(filled.ffill().groupby(subject).bfill(), dtype=np.float64)
        if name not in how.optional:
            sheet.first(np.isnan(values), column, "is missing in every row of the subject")
        first = values[opens]
        if rule == "record":
            change[name] = values
        elif rule == "mean":
            stay[name] = np.asarray(filled.mean(), dtype=np.float64)
        else:
            if rule == "constant":
                differs = ~((values == first[subject]) | np.isnan(values))
                chooses = as_option("dataset.over_time", **{name: "record"}) + ", mean or first chooses"
                way = "expected one value" if how.patients else chooses
                sheet.first(differs, column, f"{{value}} differs from the subject's first value; {way}")
            stay[name] = first
    if not change and not how.by_occasion:
        return stay, None, np.broadcast_to(np.int64(-1), len(subject))
    new = np.r_[True, np.diff(subject) != 0]
    others = [occasion.astype(np.float64)] if how.by_occasion else []
    for values in (*change.values(), *others):
        same = (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
        new |= np.r_[True, ~same]
    last = np.r_[new[1:], True]
    end = np.where(np.r_[np.diff(subject) != 0, True], np.inf, clock)
    starts = np.flatnonzero(new)
    regimes = Regimes(subject[starts], end[last], {name: values[starts] for name, values in change.items()})
    if how.by_occasion:
        risen = np.cumsum(np.r_[False, np.diff(occasion) != 0])
        regimes = replace(regimes, occasion=(risen - risen[opens][subject])[starts])
    number = np.cumsum(new) - 1
    return stay, regimes, number - number[opens][subject]
