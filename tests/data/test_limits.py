"""Numbers in a table that no record can mean: refused with row and column, and never written out."""

import pandas as pd
import pytest

from medcm_cli.data import Format, read_events
from medcm_cli.errors import InputError


@pytest.mark.parametrize("addl", [10_000, 1_000_000_000])
def test_doses_are_written_out_as_far_as_they_are_needed(addl: int) -> None:
    """Of patients until the time that is asked for, or their last record; of others until that record."""
    frame = pd.DataFrame({"id": "a", "time": [0.0, 30.0], "evid": [1, 0], "amt": [10.0, 0.0], "dv": 1.0})
    frame = frame.assign(addl=[addl, 0], ii=[12.0, 0.0])
    for how, count in (
        (Format(), 3),
        (Format(patients=True, until=60), 6),
        (Format(patients=True, until=0), 3),
    ):
        table = read_events(frame, {}, how)
        assert table.time[table.is_dose].tolist() == [12.0 * number for number in range(count)]


@pytest.mark.parametrize(
    ("cells", "how", "words"),
    [
        ({"addl": [5000, 0]}, Format(patients=True), "'addl': the row stands for more than 1000 doses"),
        ({"ii": [1e-4, 0]}, Format(), "'addl': the row stands for more than 10000 doses"),
        ({"addl": [1e12, 0]}, Format(), "'addl': is 1000000000000; expected a whole number from 0"),
    ],
)
def test_absurd_numbers_of_doses_are_refused(cells: dict[str, list[float]], how: Format, words: str) -> None:
    frame = pd.DataFrame({"id": "a", "time": [0.0, 30.0], "evid": [1, 0], "amt": [10.0, 0.0], "dv": 1.0})
    frame = frame.assign(addl=[1_000_000, 0], ii=[12.0, 0.0]).assign(**cells)
    with pytest.raises(InputError, match=f"table, row 1, column {words}"):
        read_events(frame, {}, how)
