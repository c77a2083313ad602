"""Figures that processes of their own save are those that this one would save."""

import os
from pathlib import Path

import pandas as pd
import pytest

from medcm_cli.errors import JobError
from medcm_cli.report.figures import style
from medcm_cli.report.figures.saved import result, savers


def drawn() -> style.Drawn:
    """A logarithmic axis, whose numbers are found when it is drawn."""
    with style.styled():
        figure, (axes, *_) = style.panels(1, 1, 2.0)
        style.plain_log(axes)
        axes.plot([1, 2, 3], [0.3, 2.0, 0.7])
        axes.set_ylabel(f"KL of {style.symbol('omega', 'CL')}")
    return style.Drawn("one", "One", figure, "A caption.", "A curve.", pd.DataFrame({"x": [1.0, 2.0]}))


def test_a_process_writes_the_same_bytes(tmp_path: Path) -> None:
    here = style.write(drawn(), tmp_path / "here")
    with savers(2) as submit:
        there = submit(style.write, drawn(), tmp_path / "there")
    assert [path.name for path in result(there)] == [path.name for path in here]
    assert len(here) == 4
    for path in here:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_come_home(tmp_path: Path, processes: int) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), savers(processes) as submit:
        result(submit(style.write, drawn(), tmp_path / "file"))


def test_a_process_that_dies_is_told_in_one_line() -> None:
    with pytest.raises(JobError, match="process that saves figures was killed"), savers(2) as submit:
        result(submit(os._exit, 9))
