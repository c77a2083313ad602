"""Event tables that tests edit, and the message that refuses a file."""

import io
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from medcm_cli.data import Format, read_events
from medcm_cli.errors import InputError

WEIGHT = {"weight": "wt"}
MINUTE = 1 / 60
FORMATS = [".csv", ".parquet"]
# Line 1 is the header; subjects a and b have one dose row each.
LINES = (
    "id,time,amt,rate,duration,dv,evid,wt",
    "a,0,1000,,,,1,70",
    "a,4,,,,0.5,0,70",
    "a,24,,,,0.2,0,70",
    "b,0,2000,,,,1,80",
    "b,5,,,,0.4,0,80",
)


def edited(edits: Mapping[int, str | None], lines: tuple[str, ...] = LINES) -> str:
    """The lines with some of them (counted from 1) replaced, or left out where None."""
    kept = [edits.get(number, line) for number, line in enumerate(lines, 1)]
    return "".join(f"{line}\n" for line in kept if line is not None)


def write(folder: Path, text: str, suffix: str = ".csv") -> Path:
    """The table as a file of either format."""
    path = folder / f"events{suffix}"
    if suffix == ".csv":
        path.write_text(text)
    else:
        pd.read_csv(io.StringIO(text)).to_parquet(path)
    return path


def refusal(path: Path, covariates: Mapping[str, str] = WEIGHT, how: Format | None = None) -> str:
    """The message that refuses a file: one line that begins with the file."""
    with pytest.raises(InputError) as caught:
        read_events(path, covariates, how)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))
    return message


# A table with every column that the field uses: two subjects, additional doses, a steady state, occasions.
FULL = (
    "ID,TIME,EVID,AMT,RATE,DURATION,ADDL,II,SS,CMT,OCC,DV,CENS,LLOQ,WT",
    "a,0,1,1000,.,.,2,12,.,1,1,.,.,.,70",
    "a,4,0,.,.,.,.,.,.,1,1,0.5,0,0.01,70",
    "a,30,0,.,.,.,.,.,.,1,2,0.01,1,.,70",
    "b,0,1,2000,500,.,.,24,1,1,1,.,.,.,80",
    "b,5,0,.,.,.,.,.,.,1,1,0.4,0,0.01,80",
)


def full_row(line: int, **cells: str) -> dict[int, str | None]:
    """A row of ``FULL`` with some cells replaced."""
    row = dict(zip(FULL[0].split(","), FULL[line - 1].split(","), strict=True))
    assert set(cells) <= set(row)
    return {line: ",".join({**row, **cells}.values())}
