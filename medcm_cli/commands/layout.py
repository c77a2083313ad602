"""A table in the width of a terminal. No number is broken over lines, nor what belongs to it: a unit, the
other end of its interval, what stands in brackets behind it. Headers and texts are, and a table that is too
wide all the same comes in blocks below one another, each with the columns that tell its rows apart."""

import re
from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len

from medcm_cli.report.section import Section

GAP = 2  # characters between columns
_CELL, _NARROW = 24, 12  # a text of at most so many is not broken, and where there is little room
_CHAIN = 40  # characters of a number with all that belongs to it; a longer one is rather a sentence
_MOST_KEYS = 4
_NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:[eE][-+]?\d+)?")
_ALONE = re.compile(rf"[<>=(]*{_NUMBER.pattern}")
_BEFORE = ("to", "±", "+/-", "<", ">", "<=", ">=", "=", "of", "~", "P")
_BRACKET = re.compile(r"\([^()]*\d[^()]*\)")
_PLACE = re.compile(rf"{_NUMBER.pattern}|.", re.DOTALL)
_SIGNS = "/\\_-,;:=+.|"  # a name is rather broken after one of these
_GLUE = "\0"


def blocks(section: Section, width: int) -> list[list[str]]:
    """The lines of a table, without its title: of one block, or of several where it is too wide. The first
    two lines of each are its header and a rule, or more of the former where they are broken.

    A line is longer than ``width`` only where a single number is.
    """
    headers, cells = section.headers, section.cells
    columns = [list(column) for column in zip(*cells, strict=True)] or [[] for _ in headers]
    room = width - GAP * (len(headers) - 1)
    natural = [max(map(cell_len, [header, *column])) for header, column in zip(headers, columns, strict=True)]
    for cap in (None, _CELL):
        least = [_least(header, column, cap) for header, column in zip(headers, columns, strict=True)]
        if sum(least) <= room:
            return [_drawn(headers, columns, _widths(least, natural, room))]
    keys = _keys(cells, columns)
    if sum(least[:keys]) > width // 2:
        least = [_least(header, column, _NARROW) for header, column in zip(headers, columns, strict=True)]
    used = sum(least[:keys]) + GAP * keys
    if used + max(least[keys:], default=0) > width:
        return [_record(headers, row, width) for row in cells]
    result = []
    for part in _parts(least[keys:], width - used):
        chosen = [*range(keys), *(keys + number for number in part)]
        room = width - GAP * (len(chosen) - 1)
        widths = _widths([least[i] for i in chosen], [natural[i] for i in chosen], room)
        result.append(_drawn([headers[i] for i in chosen], [columns[i] for i in chosen], widths))
    return result


def _keys(cells: Sequence[Sequence[str]], columns: Sequence[Sequence[str]]) -> int:
    """How many of the first columns tell the rows apart; where none do, all those of words."""
    if len(cells) == 1:
        return int(not _ALONE.match(cells[0][0]))
    for keys in range(1, min(_MOST_KEYS + 1, len(columns))):
        if len({tuple(row[:keys]) for row in cells}) == len(cells):
            return keys
    words = [not any(map(_ALONE.match, column)) for column in columns[:_MOST_KEYS]]
    return max(1, [*words, False].index(False))


def _parts(least: Sequence[int], room: int) -> list[list[int]]:
    """The columns of each block."""
    parts: list[list[int]] = []
    left = 0
    for number, wide in enumerate(least):
        if not parts or wide + GAP > left:
            parts.append([])
            left = room + GAP
        parts[-1].append(number)
        left -= wide + GAP
    return parts


def _widths(least: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
    """What is left of the room goes to the columns that lack most, those first that lack little."""
    widths, left = list(least), room - sum(least)
    order = sorted(range(len(widths)), key=lambda i: natural[i] - least[i])
    for done, i in enumerate(order):
        more = min(natural[i] - least[i], left // (len(order) - done))
        widths[i] += more
        left -= more
    return widths


def _drawn(headers: Sequence[str], columns: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Lines of a header, a rule and rows."""
    right = [any(cell[:1].isdigit() or cell[:1] in ("-", "(") for cell in c if cell) for c in columns]
    lines = _row(headers, widths, right, below=True)
    lines.append("─" * (sum(widths) + GAP * (len(widths) - 1)))
    for row in zip(*columns, strict=True):
        lines += _row(row, widths, right)
    return lines


def _row(
    cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], below: bool = False
) -> list[str]:
    """:param below: a cell of fewer lines than others stands at their foot."""
    broken = [wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    if below:
        most = max(map(len, broken))
        broken = [[""] * (most - len(lines)) + lines for lines in broken]
    result = []
    for texts in zip_longest(*broken, fillvalue=""):
        padded = []
        for text, width, to_right in zip(texts, widths, right, strict=True):
            blank = " " * (width - cell_len(text))
            padded.append(blank + text if to_right else text + blank)
        result.append((" " * GAP).join(padded).rstrip())
    return result


def _record(headers: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    """A row as lines, where not even one column has room beside those that tell rows apart."""
    result = []
    for header, cell in zip(headers, row, strict=True):
        line = f"{header}: {cell}"
        apart = [f"{header}:", *(f"  {part}" for part in wrapped(cell, width - GAP))]
        result += [line] if cell_len(line) <= width else [*wrapped(apart[0], width), *apart[1:]]
    return result


# -- text in lines ---------------------------------------------------------------------------------


def wrapped(text: str, width: int, folded: bool = True) -> list[str]:
    """A text in lines of at most ``width``; longer only where a single number is.

    :param folded: longer words are broken too.
    """
    lines = [""]
    for atom in _atoms(text):
        for word in [atom] if cell_len(atom) <= width else atom.split(" "):
            line = f"{lines[-1]} {word}" if lines[-1] else word
            if cell_len(line) <= width:
                lines[-1] = line
                continue
            first, *more = _folded(word, width) if folded else [word]
            lines[-1:] = [*([lines[-1]] if lines[-1] else []), first, *more]
    return lines


def _atoms(text: str) -> list[str]:
    """What is not to be broken at its blanks."""
    text = _BRACKET.sub(lambda found: found[0].replace(" ", _GLUE), text)
    first, *words = text.split(" ")
    result = [first]
    for word in words:
        last = result[-1].replace(_GLUE, " ").rpartition(" ")[2]
        whole = _ALONE.fullmatch(last) or (_ALONE.match(word) and (last in _BEFORE or last.isalpha()))
        if whole or (_ALONE.match(last) and not last.endswith(",") and word[:1] == "("):
            result[-1] += _GLUE + word
        else:
            result.append(word)
    return [atom.replace(_GLUE, " ") for atom in result]


def _folded(word: str, width: int) -> list[str]:
    """A word in pieces, rather after a sign than in the midst of letters, and never in a number."""
    result, line = [], ""
    for place in _PLACE.findall(word):
        if line and cell_len(line + place) > width:
            cut = max(line.rfind(sign) for sign in _SIGNS) + 1
            inside = any(m.start() < cut < m.end() for m in _NUMBER.finditer(line + place))
            if cut <= len(line) // 2 or inside:
                cut = len(line)
            result.append(line[:cut])
            line = line[cut:]
        line += place
    return [*result, line]


def _least(header: str, column: Sequence[str], cap: int | None) -> int:
    """The least width of a column whose header is broken, and with ``cap`` its longer texts too."""
    cells = [cell_len(cell) if cap is None else _narrowest(cell, cap) for cell in column]
    return max([_narrowest(header, _NARROW, whole=False), *cells])


def _narrowest(text: str, cap: int, whole: bool = True) -> int:
    """The least width in which a text can be, of at most ``cap`` where nothing else is needed.

    :param whole: a text of at most ``cap`` is not broken at all.
    """
    if whole and cell_len(text) <= cap:
        return cell_len(text)
    return max(_narrowest_atom(atom, cap) for atom in _atoms(text))


def _narrowest_atom(atom: str, cap: int) -> int:
    long = cell_len(atom)
    if long <= cap or (" " in atom and long <= _CHAIN):
        return long
    words = atom.split(" ")
    return max(min(cell_len(word), max(cap, *_numbers(word))) for word in words)


def _numbers(word: str) -> list[int]:
    """How long the numbers in a word are, or it is as a whole where it is one."""
    if _ALONE.match(word) and not re.search(r"[^\W\d_]{2}", word):
        return [cell_len(word)] * 2
    return [0, *map(len, _NUMBER.findall(word)), 0]
