"""What has to be said of patients, regimens and fits, as tables: ``patient`` (empty: all of them), ``kind``
and ``message``."""

from collections.abc import Iterable, Sequence

import pandas as pd

Note = tuple[str, str, str]
"""Patient, kind and message."""


def note_table(notes: Sequence[Note]) -> pd.DataFrame:
    """A row for each of the notes."""
    return pd.DataFrame(notes, columns=["patient", "kind", "message"])


def joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The rows of several tables of notes, one after another."""
    some = [table for table in tables if len(table)]
    return pd.concat(some, ignore_index=True) if some else note_table([])
