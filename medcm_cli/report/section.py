"""A table as a person reads it, and as Markdown and LaTeX."""

from typing import NamedTuple

from tabulate import tabulate


class Section(NamedTuple):
    """A table as a person reads it."""

    title: str
    headers: list[str]
    cells: list[list[str]]


def markdown(section: Section) -> str:
    """A heading and a Markdown table."""
    table = tabulate(section.cells, section.headers, tablefmt="github", disable_numparse=True)
    return f"### {section.title}\n\n{table}\n"


def latex(section: Section) -> str:
    """A LaTeX table with the rules of booktabs."""
    table = tabulate(section.cells, section.headers, tablefmt="latex_booktabs", disable_numparse=True)
    return f"% {section.title}\n{table}\n"
