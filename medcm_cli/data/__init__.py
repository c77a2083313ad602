"""Event tables, padded populations and folds."""

from medcm_cli.data.events import EventTable, read_events
from medcm_cli.data.folds import Fold, all_subjects, bootstrap, from_files
from medcm_cli.data.population import Population

__all__ = ["EventTable", "Fold", "Population", "all_subjects", "bootstrap", "from_files", "read_events"]
