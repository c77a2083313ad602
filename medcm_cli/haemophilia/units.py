"""The units of factor VIII data, which are those of every result of before there were others, and of event
tables of which nothing is said."""

from collections.abc import Mapping

UNITS: Mapping[str, str] = {"time": "h", "amount": "IU", "level": "IU/mL"}
"""Of an event table."""
REPORTED: Mapping[str, str] = {"IU/mL": "IU/dL"}
"""The unit of levels in a table -> the one in which factor levels are reported."""
THRESHOLDS = ("1 IU/dL", "5 IU/dL", "50 IU/dL")
"""Levels of interest: those of severe, moderate and mild haemophilia."""
