"""Tables as Markdown and LaTeX, whatever names stand in them."""

import re

import pytest

from medcm_cli.report.section import Section, latex, markdown

NAMES = ["plain", "a\nb", "a\r\nb", "a\u2028b", "a|b", "\\input{secret}", "100 %", "$x$", "a & b", "\x1b[31m"]


def _unescaped_columns(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("name", NAMES)
def test_markdown_has_a_line_for_each_row_and_as_many_cells(name: str) -> None:
    section = Section(f"title {name}", ["method", f"header {name}"], [[name, "1"], ["other", "2"]])
    heading, empty, *table = markdown(section).removesuffix("\n").splitlines()
    assert heading.startswith("### title ")
    assert empty == ""
    assert [len(_unescaped_columns(line)) for line in table] == [2, 2, 2, 2]
    assert _unescaped_columns(table[3]) == ["other", "2"]


@pytest.mark.parametrize("name", NAMES)
def test_latex_has_a_comment_of_one_line_and_text_that_is_no_command(name: str) -> None:
    section = Section(f"title {name}", ["method", f"header {name}"], [[name, "1"], ["other", "2"]])
    comment, begin, *table = latex(section).splitlines()
    assert comment.startswith("% title ")
    assert begin == "\\begin{tabular}{ll}"
    rules = {"\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}"}
    rows = [line.strip() for line in table if line.strip() not in rules]
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)&", row)) == 1 for row in rows)
    assert not any(re.search(r"(?<!\\)[$%]|\\input", row) for row in rows)
