"""Figures as a page holds them: in the page itself, once for a light page and once for a dark one."""

import base64
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from medcm_cli.errors import InputError
from medcm_cli.report.figures import catalogue, style
from medcm_cli.report.figures.saved import result, savers
from medcm_cli.runs.sweeps import Sweep

_CURVE = 400  # characters, from which on a path is a curve and no marker or letter
_LARGEST_SVG = 400_000  # bytes, from which on an image takes its place where that is smaller
_PIXELS = 96  # of CSS, an inch
_NARROW = 4.0 * _PIXELS  # up to which figures stand side by side on paper


@dataclass(frozen=True)
class Picture:
    """A figure as the page holds it; sizes in CSS pixels. ``dark``: the one of a dark page. ``paper``: its
    width on paper, in mm."""

    number: int
    title: str
    caption: str
    alt: str
    source: str
    dark: str
    width: int
    height: int
    paper: float = 180.0

    @property
    def shape(self) -> str:
        """How it stands on paper."""
        return "narrow" if self.width <= _NARROW else "wide"


def pictures(
    sweep: Sweep | None,
    missing: list[str],
    numbers: Iterator[int],
    progress: Callable[[str], None],
    trust: bool,
) -> Iterator[Picture]:
    """The figures of a sweep, numbered on.

    :param missing: gets a line for each that cannot be drawn. :param trust: as ``study.restore.restore`` has
        it.
    """
    if sweep is None:
        return
    with tempfile.TemporaryDirectory() as name, savers() as submit:
        made = []
        for drawn in _drawn(sweep, missing, trust):
            progress(f"{sweep.study}, {sweep.dataset}: {drawn.title}")
            width, height = (round(_PIXELS * inches) for inches in drawn.figure.get_size_inches())
            texts = (drawn.title, drawn.caption, drawn.alt)
            made.append((texts, submit(_both, drawn, Path(name)), (width, height)))
        for texts, sources, size in made:
            (title, caption, alt), (light, dark) = texts, result(sources)
            yield Picture(next(numbers), title, caption, alt, light, dark, *size)


def _drawn(sweep: Sweep, missing: list[str], trust: bool) -> Iterator[style.Drawn]:
    """The figures of a sweep, as far as its files can be read."""
    try:
        yield from catalogue.figures(sweep, missing, trust=trust)
    except InputError as error:
        missing.append(str(error))


def _both(drawn: style.Drawn, folder: Path) -> tuple[str, str]:
    """A figure for a light and for a dark page."""
    return source(drawn, folder), source(drawn, folder, dark_page=True)


def source(drawn: style.Drawn, folder: Path, dark_page: bool = False) -> str:
    """A figure as a data URI: SVG, which stays sharp, unless it is large and an image is smaller.

    :param folder: for files on the way. :param dark_page: in the colours of a dark page.
    """
    (path,) = style.save(drawn, folder, ["svg"], dark_page)
    text = _short(path.read_text(encoding="utf-8"))
    vector = "data:image/svg+xml," + quote(text, safe=" '()*,-./:;=@_~$+?|[]{}^`!")
    if len(vector) < _LARGEST_SVG:
        return vector
    (path,) = style.save(drawn, folder, ["png"], dark_page)
    image = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    return min(vector, image, key=len)


def _short(svg: str) -> str:
    """Without what only a file of its own has, and with no more digits than one sees: a hundredth of a point,
    a tenth along a curve."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)

    def rounded(match: re.Match[str]) -> str:
        digits = 1 if len(match.group()) > _CURVE else 2
        return _dense(re.sub(rf"(\.\d{{{digits}}})\d+", r"\1", match.group()))

    body = re.sub(r'\b(?:d|x|y)="[^"]*"', rounded, body)
    body = re.sub(r"=\"([^\"']*)\"", r"='\1'", body)  # which needs no escape in an address
    return re.sub(r">\s+<", "><", re.sub(r"\s+", " ", body))


def _dense(attribute: str) -> str:
    """A path with the fewest characters: a line to the next point needs no letter after the first."""
    name, path, end = attribute.split('"')
    path = re.sub(r"\s*([A-DF-Za-df-z])\s*", r"\1", re.sub(r"\.0+(?!\d)", "", path).strip())
    path = re.sub(r"\s+", ",", path)

    def joined(match: re.Match[str]) -> str:
        return match.group(1) + match.group(2).replace("L", ",")

    path = re.sub(r"([ML])([-+.,\de]*(?:L[-+.,\de]*)+)", joined, path)
    return f'{name}"{path}"{end}'
