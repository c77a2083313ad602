"""The colours of a figure on a dark page, in place of those on paper."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import to_hex, to_rgb, to_rgba, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

PAGE = "#15181c"  # the darkest page that the colours are made for
# Black becomes the lightest grey, white the darkest; one of the colours is too dark to be told from the page.
_LIGHTEST, _DARKEST = 0.92, 0.09
_GREY = 0.02  # the widest that the channels of a grey lie apart
_LIGHTER = {"#0072b2": "#3a93d6"}
# The least contrast with the page, as WCAG 2 has it, of text, of lines and points, and of areas.
_TEXT, GRAPHIC, AREA = 4.5, 3.0, 1.55
_STEPS = np.linspace(0, 1, 41)[:, None]
# Of each kind of artist what has a colour, in the names of its getters and setters.
_COLOURED: tuple[tuple[type[Artist], tuple[str, ...]], ...] = (
    (Text, ("color",)),
    (Line2D, ("color", "markerfacecolor", "markeredgecolor")),
    (Patch, ("facecolor", "edgecolor")),
    (Collection, ("facecolor", "edgecolor")),
)


@contextmanager
def recoloured(figure: Figure) -> Iterator[None]:
    """Inside, a figure that has been laid out has the colours of a dark page; its background is none of them,
    and is left out where it is saved (``savefig(transparent=True)``). Afterwards it has its own again."""
    before: list[tuple[Artist, str, Any]] = []
    opacities: list[tuple[Artist, Any]] = []
    for artist in figure.findobj():
        for kind, names in _COLOURED:
            if isinstance(artist, kind):
                before += [(artist, name, getattr(artist, f"get_{name}")()) for name in names]
                opacities.append((artist, artist.get_alpha()))
    opacity = {id(artist): alpha for artist, alpha in opacities}
    for artist, _ in opacities:
        artist.set_alpha(None)  # which would take the place of the colours' own
    for artist, name, colours in before:
        # A line's colours are without its opacity, those of an area with it.
        alpha = opacity[id(artist)] if isinstance(artist, Line2D | Text) else None
        getattr(artist, f"set_{name}")(on_dark(colours, _least(artist, name), alpha))
    try:
        yield
    finally:
        for artist, name, colours in before:
            getattr(artist, f"set_{name}")(colours)
        for artist, alpha in opacities:
            artist.set_alpha(alpha)


def _least(artist: Artist, name: str) -> float:
    """The least contrast of an artist's colour."""
    if isinstance(artist, Text):
        return _TEXT
    area = name == "facecolor" and not isinstance(artist, PathCollection)
    return AREA if area else GRAPHIC


def on_dark(colours: Any, least: float = 1.0, alpha: float | None = None) -> Any:
    """One colour of matplotlib, or an array (N, 4) of them, as it is on a dark page; what is transparent
    or of the paper's white stays so.

    :param least: contrast with the page, which more opaque colours have, or else lighter ones.
    :param alpha: the opacity, in place of the colours' own.
    """
    if isinstance(colours, np.ndarray) and colours.ndim == 2:
        rows = to_rgba_array(colours, alpha).tolist()
        return np.array([_one(tuple(colour), least) for colour in rows]).reshape(-1, 4)
    return _one(to_rgba(colours, alpha), least)


def contrast(rgba: Any) -> Any:
    """With the page, as WCAG 2 has it, of colours (..., 4) that lie on it."""
    rgba = np.asarray(rgba, dtype=np.float64)
    page, alpha = np.array(to_rgb(PAGE)), rgba[..., 3:]
    both = np.stack([alpha * rgba[..., :3] + (1 - alpha) * page, np.broadcast_to(page, rgba[..., :3].shape)])
    linear = np.where(both <= 0.04045, both / 12.92, ((both + 0.055) / 1.055) ** 2.4)
    seen, behind = linear @ [0.2126, 0.7152, 0.0722] + 0.05
    return np.maximum(seen, behind) / np.minimum(seen, behind)


@cache  # a figure has thousands of artists and a few colours
def _one(rgba: tuple[float, ...], least: float) -> tuple[float, ...]:
    red, green, blue, alpha = rgba
    channels = red, green, blue
    chosen = to_rgb(_LIGHTER.get(to_hex(channels), channels))
    if max(channels) - min(channels) <= _GREY:
        chosen = (_LIGHTEST + (_DARKEST - _LIGHTEST) * float(np.mean(channels)),) * 3
    if alpha == 0 or min(channels) == 1:
        return (*chosen, alpha)
    opaque = np.array([*chosen, 1.0])
    steps = np.concatenate(
        [
            [*chosen, alpha] + _STEPS * (opaque - [*chosen, alpha]),
            opaque + _STEPS * (1 - opaque),
        ]
    )
    return tuple(steps[np.argmax(contrast(steps) >= least)].tolist())
