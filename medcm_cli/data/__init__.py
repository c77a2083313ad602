"""Event tables, padded populations and folds."""

from medcm_cli.data.describe import describe
from medcm_cli.data.events import EventTable, read_events, read_plain
from medcm_cli.data.folds import (
    Fold,
    all_subjects,
    blocks,
    bootstrap,
    by_column,
    deletion,
    from_files,
    nested,
)
from medcm_cli.data.format import Format
from medcm_cli.data.magnitudes import apparent_volume, units_assumed, with_magnitudes
from medcm_cli.data.occasions import Rule, with_occasions
from medcm_cli.data.population import Population

__all__ = [
    "EventTable",
    "Fold",
    "Format",
    "Population",
    "Rule",
    "all_subjects",
    "apparent_volume",
    "blocks",
    "bootstrap",
    "by_column",
    "deletion",
    "describe",
    "from_files",
    "nested",
    "read_events",
    "read_plain",
    "units_assumed",
    "with_magnitudes",
    "with_occasions",
]
