"""A table as a person reads it, and as Markdown and LaTeX."""

from typing import NamedTuple

from tabulate import tabulate

from medcm_cli.files import one_line


class Section(NamedTuple):
    """A table as a person reads it."""

    title: str
    headers: list[str]
    cells: list[list[str]]


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
