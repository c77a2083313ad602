"""The columns of an event table: which there are, and what each says, row by row, once every cell of it has
been checked.

All are told of the R rows of a sheet and return arrays (R,); times and amounts are in the data's units.

:raises InputError: each names the first cell that is at fault, by file, line and column.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from medcm_cli.checks import as_option
from medcm_cli.data.clock import Times, times
from medcm_cli.data.names import says_kind
from medcm_cli.data.regimen import Regimen
from medcm_cli.data.sheet import BoolArray, FloatArray, IntArray, Sheet, label, opens_of

_FARTHEST_LOG = 80.0  # of a level: exp of it is near what single precision holds
_AT_REST = "dataset.predose_observations=keep, of a model that predicts something without doses"
_ROUNDED = 0.01  # of an amount; how far rate times duration may lie from it


def subjects(sheet: Sheet, group: str | None = None) -> tuple[IntArray, tuple[str, ...]]:
    """Number of the subject, from 0 in order of first appearance, and the name of each of the N subjects.

    :param group: a column of data sets, in each of which ids may begin anew.
    """
    column = sheet.named("id")
    if column not in sheet.frame:
        raise sheet.absent(column)
    raw = sheet.frame[column]
    sheet.first(raw.isna().to_numpy(), column, "is missing")
    codes, cells = pd.factorize(raw, sort=False)
    named = np.array(list(map(label, cells)), dtype=object)
    if group is not None:
        own, sets = pd.factorize(_of_group(sheet, group), sort=False)
        codes, pairs = pd.factorize(own * len(cells) + codes, sort=False)
        of_set = np.array(list(map(label, sets)), dtype=object)
        named = of_set[pairs // len(cells)] + "/" + named[pairs % len(cells)]
    of_cell, labels = pd.factorize(named, sort=False)
    subject = of_cell[codes].astype(np.int64)
    opens = opens_of(subject)
    most = np.maximum.accumulate(subject[opens])  # who comes for the first time has a higher number
    seen_before = np.zeros(len(subject), dtype=bool)
    seen_before[opens[1:]] = subject[opens[1:]] <= most[:-1]
    sheet.first(
        seen_before,
        column,
        "{value!r} appears in more than one block of rows; keep a subject's rows together",
    )
    return subject, tuple(labels)


def with_values(sheet: Sheet, values: Mapping[str, Mapping[str, float]]) -> tuple[Sheet, tuple[str, ...]]:
    """With columns that it does not have, of values that subjects have elsewhere (``Format.values``), and a
    line that says so.

    :raises InputError: a subject has none.
    """
    missing = {name: own for name, own in values.items() if sheet.find(name) is None}
    if not missing or not sheet.has("id"):
        return sheet, ()
    column = sheet.named("id")
    who = sheet.frame[column].map(label)
    added = {name: who.map(own) for name, own in missing.items()}
    for name, cells in added.items():
        what = f"is {{value}}, of whom the fit that fixed.individual names has no {name}"
        sheet.first(cells.isna().to_numpy(), column, f"{what}; expected a column {name}")
    line = f"{sheet.source}: {', '.join(added)} are those of the subject of this {column} in the fit that "
    return replace(sheet, frame=sheet.frame.assign(**added)), (f"{line}fixed.individual names",)


def _of_group(sheet: Sheet, group: str) -> pd.Series:
    column = sheet.find(group) or group
    if column not in sheet.frame:
        raise sheet.absent(column, says="split.column names it")
    sheet.first(sheet.frame[column].isna().to_numpy(), column, "is missing")
    return sheet.frame[column]


def kinds(sheet: Sheet) -> tuple[IntArray, BoolArray]:
    """EVID of every row and whether it is an observation; where the file has only MDV, EVID follows from it,
    and where it has neither, both follow from AMT and DV."""
    has_evid = sheet.has("evid")
    column = sheet.named("evid" if has_evid else "mdv")
    amount, rate = (np.nan_to_num(sheet.number(sheet.named(name), 0.0)) for name in ("amt", "rate"))
    gives = (amount != 0) | (rate != 0)
    if not has_evid and not sheet.has("mdv"):
        return _kinds_by_amount(sheet, gives)
    kind = sheet.number(column)
    if has_evid:
        sheet.first(~np.isin(kind, (0, 1, 2, 3, 4)), column, "is {value}; expected 0, 1, 2, 3 or 4")
    else:
        sheet.first(~np.isin(kind, (0, 1)), column, "is {value}; expected 0 or 1")
    is_observation = kind == 0
    if has_evid and sheet.has("mdv"):
        mdv = sheet.number(sheet.named("mdv"))
        sheet.first(~np.isin(mdv, (0.0, 1.0)), sheet.named("mdv"), "is {value}; expected 0 or 1")
        is_observation &= mdv == 0
    sheet.first((kind == 0) & gives, column, "is 0 (an observation) on a row that has a dose")
    if has_evid:
        words = "is missing or zero on a dose row"
        sheet.first(np.isin(kind, (1, 4)) & ~gives, sheet.named("amt"), words)
        sheet.first(np.isin(kind, (2, 3)) & gives, column, "is {value} (no dose) on a row that has a dose")
        return kind.astype(np.int64), is_observation
    return np.where(is_observation, 0, np.where(gives, 1, 2)), is_observation


def _kinds_by_amount(sheet: Sheet, gives: BoolArray) -> tuple[IntArray, BoolArray]:
    """Where neither EVID nor MDV says it: a row that gives something is a dose, another with a DV is an
    observation."""
    column = sheet.named("dv")
    dv = sheet.number(column, limits=True)
    has_level = ~np.isnan(dv)
    both = (
        gives & has_level & ((dv != 0) | sheet.beyond(column, "<") | sheet.beyond(column, ">"))
    )  # 0 fills the cells of doses
    sheet.first(
        both,
        column,
        "is {value} on a row that has a dose; without a column 'evid' or 'mdv' expected two rows",
    )
    if sheet.has("cens"):
        has_level |= sheet.whole("cens", (-1, 0, 1)) != 0  # the limit is in LLOQ or ULOQ
    is_observation = has_level & ~gives
    return np.where(is_observation, 0, np.where(gives, 1, 2)), is_observation


def time(sheet: Sheet, subject: IntArray, evid: IntArray, unit: str) -> Times:
    """TIME in ``unit``, in order within a subject but for resets."""
    column = sheet.named("time")
    found = times(sheet, subject, unit)
    time = found.passed
    sheet.first(np.isnan(time), column, "is missing; expected the time since the first dose")
    if not found.assumed:
        sheet.first(time < 0, column, "{value} is negative; expected the time since the first dose")
    unsorted = np.r_[False, (np.diff(time) < 0) & (np.diff(subject) == 0)] & (evid < 3)
    sheet.first(
        unsorted,
        column,
        "{value} comes after a later time of the same subject; sort rows by time, "
        "or begin again with EVID 3 or 4",
    )
    sheet.first(time < 0, column, "{value} comes before the subject's first record")
    return found


def assumed(sheet: Sheet, of_times: str) -> tuple[str, ...]:
    """A line that says how a file was read, where it is not written plainly and is not told otherwise.

    :param of_times: how its times came about, in words (``clock.Times``).
    """
    words = [*sheet.assumed, *([of_times] if of_times else [])]
    doses = sheet.columns.get("amt", "amt") is not None
    if doses and not sheet.has("evid") and not sheet.has("mdv"):
        words.append("rows with an amount as doses, others with a level as observations")
    column = sheet.named("dv")
    for sign, where in (("<", "below"), (">", "above")):
        beyond = sheet.beyond(column, sign)
        if beyond.any():
            cell = str(sheet.frame[column][beyond].iloc[0]).strip()
            words.append(f"{int(beyond.sum())} DV {where} a limit of quantification, such as {cell!r}")
    return (f"{sheet.source}: read {'; '.join(words)}",) if words else ()


def doses(sheet: Sheet, is_dose: BoolArray, bolus: float) -> tuple[FloatArray, FloatArray]:
    """Amount and duration of dose rows, NaN elsewhere; a duration that the model has is NaN too.

    :param bolus: how long a dose with an amount alone takes.
    """
    names = {role: sheet.named(role) for role in ("amt", "rate", "duration")}
    amount, rate, duration = (sheet.number(name, np.nan) for name in names.values())
    modelled = is_dose & (rate == -2)
    sheet.first(
        is_dose & (rate == -1),
        names["rate"],
        "is -1 (a rate that the model has); expected a rate, or -2 for a duration",
    )
    for name, values in zip(names.values(), (amount, np.where(modelled, 0, rate), duration), strict=True):
        sheet.first(is_dose & (values < 0), name, "{value} is negative on a dose row")
    rate = np.where((rate > 0) & is_dose, rate, np.nan)
    duration = np.where((duration > 0) & is_dose, duration, np.nan)
    no_amount = ~(amount > 0)
    sheet.first(
        is_dose & np.isnan(rate) & no_amount,
        names["amt"],
        "is missing or zero on a dose row that has no rate",
    )
    endless = is_dose & (sheet.whole("ss", (0, 1, 2)) > 0) & no_amount
    endless &= np.nan_to_num(sheet.number(sheet.named("ii"), 0.0)) == 0
    sheet.first(
        is_dose & ~np.isnan(rate) & np.isnan(duration) & no_amount & ~endless,
        names["duration"],
        "is missing on a dose row that has a rate and no amount",
    )
    by_both = ~np.isnan(rate) & ~np.isnan(duration)
    given = np.where(by_both, rate * duration, amount)
    length = np.where(np.isnan(duration), given / rate, duration)  # NaN without either
    length = np.where(is_dose & np.isnan(length) & ~modelled, bolus, length)
    given = np.where(endless, rate, given)  # that of a unit of time; see regimen
    return np.where(is_dose, given, np.nan), np.where(is_dose, length, np.nan)


def rated(sheet: Sheet, is_dose: BoolArray) -> BoolArray:
    """Whether a dose's rate is given, and neither its duration nor that this is the model's."""
    rate, duration = (sheet.number(sheet.named(role), np.nan) for role in ("rate", "duration"))
    return is_dose & (rate > 0) & ~(duration > 0)


def repeats(sheet: Sheet, is_dose: BoolArray) -> tuple[IntArray, FloatArray, IntArray]:
    """ADDL, II and SS of dose rows, 0 elsewhere."""
    addl, ss = sheet.whole("addl"), sheet.whole("ss", (0, 1, 2))
    ii = np.nan_to_num(sheet.number(sheet.named("ii"), 0.0))
    sheet.first(ii < 0, sheet.named("ii"), "{value} is negative; expected the time between doses")
    for role, values in (("addl", addl), ("ss", ss), ("ii", ii)):
        sheet.first(~is_dose & (values != 0), sheet.named(role), "is {value} on a row that is not a dose")
    column = sheet.named("ii")
    said = [sheet.number(sheet.named(role), np.nan) for role in ("addl", "ss")]
    lonely = is_dose & (ii > 0) & (addl == 0) & (ss == 0) & np.isnan(said).all(0)
    sheet.first(
        lonely, column, "is {value} on a dose row that has neither ADDL nor SS; 0 in ADDL says: one dose"
    )
    sheet.first((addl > 0) & (ii == 0), column, "is missing or zero on a dose row with additional doses")
    no_amount = ~(np.nan_to_num(sheet.number(sheet.named("amt"), 0.0)) > 0)
    sheet.first(
        (ss > 0) & (ii == 0) & ~no_amount,
        column,
        "is missing or zero on a dose row at steady state; without it expected a rate and no amount",
    )
    return addl, ii, ss


class Observed(NamedTuple):
    """Of each row ``dv``, the level or, where ``censored``, the limit beyond which it lies: above it where
    ``above``, else below."""

    dv: FloatArray
    censored: BoolArray
    above: BoolArray


def observations(sheet: Sheet, is_observation: BoolArray, logged: bool) -> Observed:
    """By CENS, by a DV below LLOQ or above ULOQ, or by one such as ``<1`` or ``>1``, whose limit this is.
    Where ``logged``, DV and limits are logarithms."""
    column = sheet.named("dv")
    dv = sheet.number(column, limits=True)
    below, above = _censored(sheet, is_observation, dv, logged)
    both = below & above
    sheet.first(both, column, "lies below LLOQ and above ULOQ; expected LLOQ below ULOQ")
    limit = dv
    for role, beyond in (("lloq", below), ("uloq", above)):
        given = sheet.number(sheet.named(role), np.nan)
        limit = np.where(beyond & ~np.isnan(given), given, limit)
    missing = is_observation & np.isnan(limit)
    for role, beyond in (("LLOQ", below), ("ULOQ", above)):
        what = f"is missing on a censored row; expected the limit, there or in {role}"
        sheet.first(missing & beyond, column, what)
    sheet.first(missing, column, "is missing on an observation row")
    if logged:
        far = is_observation & (np.abs(limit) > _FARTHEST_LOG)
        what = f"is {{value}}; expected the logarithm of a level, within {_FARTHEST_LOG:g} (dataset.logged)"
        sheet.first(far, column, what)
        limit = np.exp(np.where(far, np.nan, limit))
    return Observed(limit, below | above, above)


def _censored(
    sheet: Sheet, is_observation: BoolArray, dv: FloatArray, logged: bool
) -> tuple[BoolArray, BoolArray]:
    """Which observations lie below a limit, and which above one."""
    column, cens = sheet.named("dv"), sheet.named("cens")
    said = sheet.whole("cens", (-1, 0, 1)) if sheet.has("cens") else None
    found = []
    for role, sign, number in (("lloq", "<", 1), ("uloq", ">", -1)):
        limit, marked = sheet.number(sheet.named(role), np.nan), sheet.beyond(column, sign) & is_observation
        if not logged:
            logs = ", or dataset.logged=true where these are logarithms"
            low = is_observation & (limit <= 0)
            sheet.first(low, sheet.named(role), f"is {{value}}; expected a level above 0{logs}")
            sheet.first(marked & ~(dv > 0), column, f"is {{value}}; expected a limit above 0{logs}")
        unlike = marked & ~np.isnan(limit) & (limit != dv)
        what = f"is {{value}}, and {sheet.named(role)!r} is another limit; expected one"
        sheet.first(unlike, column, what)
        if said is None:
            beyond = is_observation & ((dv < limit) if sign == "<" else (dv > limit))
        else:
            where = "below" if sign == "<" else "above"
            sheet.first(marked & (said == 0), cens, f"is 0 where the level is {where} a limit")
            sheet.first(marked & (said == -number), cens, f"is {{value}} where the level is {where} a limit")
            beyond = is_observation & (said == number)
        found.append(beyond | marked)
    below, above = found
    return below, above


def without_below(sheet: Sheet, is_observation: BoolArray, logged: bool) -> tuple[Sheet, tuple[str, ...]]:
    """A sheet without the observations below a limit of quantification (Beal's M1), and a line that says
    so."""
    _, censored, above = observations(sheet, is_observation, logged)
    below = censored & ~above
    if not below.any():
        return sheet, ()
    count = int(below.sum())
    what = f"{count} of {int(is_observation.sum())} observations lie below a limit of quantification"
    return sheet.rows(~below), (f"{sheet.source}: {what}, and are left out (dataset.blq=M1)",)


def one_kind(sheet: Sheet, is_observation: BoolArray, chosen: Collection[str | None]) -> None:
    """All observations are of one kind, where a column tells kinds apart (DVID) that is not ``chosen``."""
    for name in sheet.frame:
        if name in chosen or not says_kind(name):
            continue
        kinds = sheet.frame[name].where(is_observation)
        first = kinds.dropna().iloc[:1].tolist()
        chooses = as_option("dataset.keep", **{str(name): first})
        other = (kinds.notna() & ~kinds.isin(first)).to_numpy()
        what = "is {value}, of another kind than an observation before; "
        sheet.first(other, str(name), f"{what}{chooses} chooses")


def amounts_agree(sheet: Sheet, is_dose: BoolArray) -> tuple[str, ...]:
    """A line where AMT is not RATE times DURATION, which count then."""
    amount, rate, duration = (sheet.number(sheet.named(role), np.nan) for role in ("amt", "rate", "duration"))
    all_three = is_dose & (amount > 0) & (rate > 0) & (duration > 0)
    differ = all_three & (np.abs(amount - rate * duration) > _ROUNDED * amount)
    if not differ.any():
        return ()
    row, name = int(np.argmax(differ)), sheet.named("amt")
    what = f"is {amount[row]:g}, but rate times duration is {rate[row] * duration[row]:g}, which counts"
    return (f"{sheet.source}, {sheet.row_name(row)}, column {name!r}: {what} ({int(differ.sum())} rows)",)


def occasions(sheet: Sheet, subject: IntArray, needed: bool = False) -> IntArray:
    """OCC, 1 where the file has none and none is ``needed``."""
    if needed and sheet.named("occ") not in sheet.frame:
        name = sheet.named("occ") if "occ" in sheet.columns else "OCC"
        raise sheet.absent(name, says="occasions.column, times or gap says what begins an occasion")
    if not sheet.has("occ"):
        return np.broadcast_to(np.int64(1), len(subject))
    column = sheet.named("occ")
    values = sheet.number(column)
    sheet.first(np.isnan(values), column, "is missing; expected the occasion of every row")
    whole = (values >= 1) & (values % 1 == 0)
    sheet.first(~whole, column, "is {value}; expected a whole number from 1")
    falls = np.r_[False, (np.diff(values) < 0) & (np.diff(subject) == 0)]
    sheet.first(falls, column, "{value} comes after a later occasion of the same subject")
    return values.astype(np.int64)


def coverage(
    sheet: Sheet,
    ids: tuple[str, ...],
    subject: IntArray,
    is_dose: BoolArray | None,
    is_observation: BoolArray,
) -> None:
    """Every one of the N subjects ``ids`` has an observation and, where ``is_dose`` is given, a dose."""
    first_row = opens_of(subject)
    for mask, role, what in ((is_observation, "dv", "observation"), (is_dose, "amt", "dose")):
        if mask is None:
            continue
        without = np.bincount(subject[mask], minlength=len(ids)) == 0
        if without.any():
            row = int(first_row[int(np.argmax(without))])
            hint = f" ({_AT_REST})" if role == "amt" else ""
            raise sheet.refuse(row, sheet.named(role), f"subject {ids[subject[row]]!r} has no {what}{hint}")


def no_negative(sheet: Sheet, dv: FloatArray, is_observation: BoolArray) -> None:
    """No observation is below 0."""
    negative = is_observation & (dv < 0)
    sheet.first(negative, sheet.named("dv"), "{value} is negative; expected a level of 0 or more")


def no_predose(
    sheet: Sheet,
    ids: tuple[str, ...],
    subject: IntArray,
    time: FloatArray,
    is_observation: BoolArray,
    regimen: Regimen,
    unit: str,
) -> None:
    """No subject, of ``ids``, has an observation before its first dose; times are in ``unit``."""
    first_dose = np.full(len(ids), np.inf)
    np.minimum.at(first_dose, subject[regimen.doses.record], regimen.doses.clock)
    early = is_observation & (regimen.clock < first_dose[subject])
    if early.any():
        row = int(np.argmax(early))
        what = f"an observation at {time[row]:g} {unit} comes before the subject's first dose ({_AT_REST})"
        raise sheet.refuse(row, sheet.named("time"), what)
