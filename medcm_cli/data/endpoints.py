"""Which endpoint each observation of an event table is of."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medcm_cli.data.names import says_kind
from medcm_cli.data.sheet import BoolArray, IntArray, Sheet, label
from medcm_cli.errors import InputError


class Selector(NamedTuple):
    """Observations of the endpoint ``name``: those whose cell in ``column`` is ``value``, a number or a text;
    ``column`` may be the role cmt, or dvid, which has other names in the field. All of them where it is
    None."""

    name: str
    column: str | None = None
    value: object = None


def kind_columns(sheet: Sheet, selectors: Sequence[Selector]) -> set[str]:
    """The column that tells endpoints apart, none where there is one endpoint."""
    first = next(iter(selectors), None)
    return set() if first is None or first.column is None else {_column(sheet, first)}


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
