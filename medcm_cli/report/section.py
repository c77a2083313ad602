"""A table as a person reads it, and as Markdown and LaTeX."""

import math
from typing import NamedTuple

from tabulate import tabulate

from medcm_cli.files import one_line

# Decimals of what is measured, the same wherever it is shown; a name's ending may number it.
_DECIMALS = {
    "objective_value": 1,
    "ofv": 2,  # by some method
    "held_out_ofv": 2,
    "rmse": 2,
    "kl": 4,
    "seconds": 2,
    "omega": 3,
    "cv": 1,
    "rho": 3,
    "sigma_additive": 2,
    "sigma_proportional": 3,
    "omega_mae": 4,
    "sigma_mae": 3,
}


class Section(NamedTuple):
    """A table as a person reads it."""

    title: str
    headers: list[str]
    cells: list[list[str]]


def decimals(name: str, *values: float) -> int:
    """How many a measure is shown with: more where all would be 0, fewer of what is large; of a parameter as
    many as leave three digits of the least.

    :param name: of a column of the summary, as ``rmse`` or ``omega_1``. :param values: in one column.
    """
    base, _, ending = name.rpartition("_")
    usual = _DECIMALS.get(base if ending.isdigit() or base.endswith("ofv") else name)
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if usual is None:
        return max(0, 2 - math.floor(math.log10(min(sizes)))) if sizes else 2
    largest = max(sizes, default=0.0)
    if 0 < largest < 10.0**-usual:  # as a mean squared error in the data's unit
        return 5
    return min(usual, 1) if largest >= 1000 else usual


def in_lines(section: Section) -> Section:
    """A table of which every text is a single line, whatever the names in it are."""
    title, headers, cells = section
    return Section(one_line(title), [*map(one_line, headers)], [[*map(one_line, row)] for row in cells])


def markdown(section: Section) -> str:
    """A heading and a Markdown table."""
    title, headers, cells = in_lines(section)
    first, *rows = ([text.replace("|", "\\|") for text in row] for row in (headers, *cells))
    table = tabulate(rows, first, tablefmt="github", disable_numparse=True)
    return f"### {title}\n\n{table}\n"


def latex(section: Section) -> str:
    """A LaTeX table with the rules of booktabs."""
    title, headers, cells = in_lines(section)
    table = tabulate(cells, headers, tablefmt="latex_booktabs", disable_numparse=True)
    return f"% {title}\n{table}\n"
