"""Tables without time: what is observed depends on another column, such as a dose."""

from dataclasses import replace

import numpy as np

from medcm_cli.data.columns import subjects
from medcm_cli.data.sheet import Sheet

_OF_DOSES = ("amt", "rate", "duration", "addl", "ii", "ss", "date")


def without_time(sheet: Sheet, column: str, group: str | None) -> Sheet:
    """A sheet with ``column`` in place of its time, in this order within a subject, and without doses.

    :param group: see ``Format.group``.
    :raises InputError: no such column, or a cell that is missing or below 0.
    """
    name = sheet.find(column)
    if name is None:
        raise sheet.absent(column, says="pk.column says what observations depend on")
    x = sheet.number(name)
    sheet.first(np.isnan(x), name, "is missing; expected what the observation depends on (pk.column)")
    sheet.first(x < 0, name, "is {value}; expected 0 or more")
    subject, _ = subjects(sheet, group)
    order = np.lexsort((x, subject))
    row_name = sheet.row_name
    return replace(
        sheet,
        frame=sheet.frame.iloc[order].reset_index(drop=True),
        row_name=lambda row: row_name(int(order[row])),
        columns={**sheet.columns, **dict.fromkeys(_OF_DOSES), "time": name},
    )
