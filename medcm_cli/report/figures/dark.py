"""The colours of a figure on a dark page, in place of those on paper."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import Collection
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
    for artist in figure.findobj():
        for kind, names in _COLOURED:
            if isinstance(artist, kind):
                before += [(artist, name, getattr(artist, f"get_{name}")()) for name in names]
    for artist, name, colours in before:
        getattr(artist, f"set_{name}")(on_dark(colours))
    try:
        yield
    finally:
        for artist, name, colours in before:
            getattr(artist, f"set_{name}")(colours)


def on_dark(colours: Any) -> Any:
    """One colour of matplotlib, or an array (N, 4) of them, as it is on a dark page; what is transparent
    stays so."""
    if isinstance(colours, np.ndarray) and colours.ndim == 2:
        return np.array([_one(colour) for colour in to_rgba_array(colours)]).reshape(-1, 4)
    return _one(to_rgba(colours))


def _one(rgba: tuple[float, ...]) -> tuple[float, ...]:
    channels, alpha = rgba[:3], rgba[3]
    if max(channels) - min(channels) <= _GREY:
        grey = _LIGHTEST + (_DARKEST - _LIGHTEST) * float(np.mean(channels))
        return grey, grey, grey, alpha
    red, green, blue = channels
    name = to_hex((red, green, blue))
    return (*to_rgb(_LIGHTER[name]), alpha) if name in _LIGHTER else rgba
