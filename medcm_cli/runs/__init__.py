"""Run folders: written, read, walked and summed up. Loads no torch."""

from medcm_cli.runs.folder import (
    FINISHED,
    RECORD,
    Address,
    Record,
    check_name,
    config_hash,
    find,
    fingerprint,
    finish,
    is_whole,
    read_history,
    read_record,
    start,
    tail_start,
    write_preparation,
    write_record,
)

__all__ = [
    "FINISHED",
    "RECORD",
    "Address",
    "Record",
    "check_name",
    "config_hash",
    "find",
    "fingerprint",
    "finish",
    "is_whole",
    "read_history",
    "read_record",
    "start",
    "tail_start",
    "write_preparation",
    "write_record",
]
