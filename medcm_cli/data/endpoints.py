"""Which endpoint each observation of an event table is of."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medcm_cli.data.names import says_kind
from medcm_cli.data.sheet import BoolArray, FloatArray, IntArray, Sheet, label
from medcm_cli.errors import InputError


class Selector(NamedTuple):
    """Observations of the endpoint ``name``: those whose cell in ``column`` is ``value``, a number or a text;
    ``column`` may be the role cmt, or dvid, which has other names in the field. All of them where it is
    None. ``over``: they are of what has come together over so long until then, the same for all or as a
    column has it, in the unit of time; None: of what there is then."""

    name: str
    column: str | None = None
    value: object = None
    over: float | str | None = None


def kind_columns(sheet: Sheet, selectors: Sequence[Selector]) -> set[str]:
    """The columns that tell endpoints apart, and over how long they are collected."""
    first = next(iter(selectors), None)
    own = {name for one in selectors if isinstance(one.over, str) and (name := sheet.find(one.over))}
    return own | (set() if first is None or first.column is None else {_column(sheet, first)})


def told_apart(sheet: Sheet, is_observation: BoolArray) -> tuple[Selector, ...]:
    """One for each kind of observation, in the order of their values, where a column tells several apart
    (DVID) and none is left out; none else. They are named after both, as in dvid_1."""
    for column in map(str, sheet.frame):
        if not says_kind(column):
            continue
        kinds = sheet.frame[column][is_observation].dropna().unique().tolist()
        if len(kinds) < 2:
            continue
        values = sorted(
            (int(kind) if isinstance(kind, float) and kind.is_integer() else kind for kind in kinds),
            key=lambda value: (isinstance(value, str), value),
        )
        word = re.sub(r"\W+", "_", column.strip().lower())
        return tuple(
            Selector(re.sub(r"\W+", "_", f"{word}_{label(value)}"), column, value) for value in values
        )
    return ()


def endpoints(sheet: Sheet, is_observation: BoolArray, selectors: Sequence[Selector]) -> IntArray:
    """The number, from 0, of the endpoint of each row (R,); 0 where there is no observation.

    :raises InputError: no such column, or an observation of none of the endpoints.
    """
    if not selectors or selectors[0].column is None:
        return np.broadcast_to(np.int64(0), len(sheet.frame))
    column = _column(sheet, selectors[0])
    cells = np.array([label(cell) for cell in sheet.frame[column]], dtype=object)
    number = np.full(len(cells), -1, dtype=np.int64)
    for place, selector in enumerate(selectors):
        number[cells == label(selector.value)] = place
    known = ", ".join(f"{selector.value} ({selector.name})" for selector in selectors)
    what = f"is {{value}}, of none of the endpoints: {known}; dataset.keep leaves such rows out"
    sheet.first(is_observation & (number < 0), column, what)

    return np.where(is_observation, number, 0)


def collected(
    sheet: Sheet, is_observation: BoolArray, endpoint: IntArray, selectors: Sequence[Selector]
) -> FloatArray:
    """Over how long each observation was collected (R,), 0 where it is of what there is then.

    :param endpoint: of each row, as of ``endpoints``.
    :raises InputError: no such column, or a cell that is missing or not above 0.
    """
    found = np.zeros(len(sheet.frame))
    for place, selector in enumerate(selectors):
        own = is_observation & (endpoint == place)
        if not isinstance(selector.over, str):
            found[own] = selector.over or 0.0
            continue
        name = sheet.find(selector.over)
        if name is None:
            raise sheet.absent(selector.over, says=f"endpoints.{selector.name}.over is told by it")
        values = sheet.number(name)
        sheet.first(own & np.isnan(values), name, "is missing; expected how long was collected until then")
        sheet.first(
            own & (values <= 0), name, "is {value}; expected how long was collected until then, above 0"
        )
        found[own] = values[own]
    return found


def _column(sheet: Sheet, selector: Selector) -> str:
    """The file's column. :raises InputError: it has none, or several that tell kinds apart."""
    wanted = str(selector.column)
    if wanted == "cmt":
        found = sheet.named("cmt")
    else:
        found = sheet.find(wanted) or wanted
        others = [str(name) for name in sheet.frame if says_kind(name)]
        if wanted == "dvid" and found not in sheet.frame and len(others) == 1:
            found = others[0]
    if found not in sheet.frame:
        raise sheet.absent(found, says=f"endpoints.{selector.name} is told by it")
    if sheet.frame[found].dtype.kind in "mM":
        raise InputError(f"{sheet.source}, column {found!r}: is a time; expected what tells endpoints apart")
    return found
