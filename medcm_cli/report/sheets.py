"""Figures on paper: those that fill a page together stand on it, each as wide as there is room
for."""

from collections.abc import Sequence
from dataclasses import replace

from medcm_cli.report.pictures import Picture

# Millimetres. A page is that of letter paper within its margins, which is shorter than A4.
_PAGE, _HEADING = 250.0, 10.0
_TITLE, _LINE = 12.0, 3.9  # a title with all spaces of a figure, and a line of its caption
_LETTERS = {"wide": 105, "narrow": 48}  # of a caption in a line, at least
_PIXEL = 25.4 / 96
_LEAST = 0.86  # of a figure's size, so that its text of 7 points stays above 6


def sheets(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """The figures of a chapter in order, parted into pages, the first below a heading; each with its width
    on paper."""
    found: list[list[Picture]] = []
    sheet: list[Picture] = []
    for row in _rows(pictures):
        if sheet and _scale([*sheet, *row], not found) < _LEAST:
            found.append(_fitted(sheet, not found))
            sheet = []
        sheet += row
    return [*found, _fitted(sheet, not found)] if sheet else found


def _rows(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """What stands side by side: two narrow figures, or one that is wide."""
    rows: list[list[Picture]] = []
    for picture in pictures:
        beside = rows[-1] if rows else []
        if picture.shape == "narrow" and len(beside) == 1 and beside[0].shape == "narrow":
            beside.append(picture)
        else:
            rows.append([picture])
    return rows


def _fitted(sheet: Sequence[Picture], first: bool) -> list[Picture]:
    scale = min(1.0, max(_LEAST, _scale(sheet, first)))
    return [replace(one, paper=one.width * _PIXEL * scale) for one in sheet]


def _scale(sheet: Sequence[Picture], first: bool) -> float:
    """The share of their size at which figures fill a page."""
    rows = _rows(sheet)
    words = sum(max(_words(one) for one in row) for row in rows)
    drawn = sum(max(one.height for one in row) for row in rows) * _PIXEL
    return (_PAGE - (_HEADING if first else 0.0) - words) / drawn


def _words(picture: Picture) -> float:
    """The height of a title and a caption."""
    lines = -(-(len(picture.caption) + len("Figure 10. ")) // _LETTERS[picture.shape])
    return _TITLE + _LINE * lines
