"""Observations put into bins of time, or of what else lies along an axis. No torch: figures use it too."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_PLANNED, _EACH = 16, 10  # times at most, and observations of each at least, that are bins of their own
_NEAREST = 0.03  # of the range: bins whose medians are closer are one


def numbers(x: FloatArray, least: int, most: int) -> IntArray:
    """A bin's number for each x, from 0 in ascending order. Equal x are in one bin.

    Few x that each have ten observations or more, as planned times have, are a bin each. Otherwise bins hold
    equally many, then each edge moves to the widest gap within half a bin, so that samples planned for about
    the same time stay together; and bins that are left with few, or whose medians can hardly be told apart,
    are joined.

    :param x: (M,). :param least: observations in a bin, about. :param most: bins, of x that are not planned.
    """
    distinct, place, count = np.unique(x, return_inverse=True, return_counts=True)
    if len(distinct) <= _PLANNED and (count >= _EACH).all():
        return place.astype(np.int64)
    ordered = np.sort(x)
    gaps = np.diff(ordered)
    bins = min(max(1, len(x) // least), most)
    if bins == 1 or not gaps.max(initial=0) > 0:
        return np.zeros(len(x), dtype=np.int64)
    size = len(x) / bins
    nominal = np.round(np.arange(1, bins) * size).astype(np.int64) - 1
    reach = int(size // 2)
    window = np.clip(nominal[:, None] + np.arange(-reach, reach + 1), 0, len(gaps) - 1)
    edge = np.unique(window[np.arange(len(nominal)), gaps[window].argmax(1)])
    edge = _apart(ordered, edge[gaps[edge] > 0], size / 2)
    return np.searchsorted((ordered[edge] + ordered[edge + 1]) / 2, x).astype(np.int64)


def _apart(ordered: FloatArray, edge: IntArray, smallest: float) -> IntArray:
    """The edges (places of the last in a bin) that part bins whose medians lie apart, none too small. A bin
    that is not so is joined with its neighbour over the narrower gap."""
    nearest = _NEAREST * float(ordered[-1] - ordered[0])
    gap = np.diff(ordered)
    while len(edge):
        parts = np.split(ordered, edge + 1)
        medians = np.array([np.median(part) for part in parts])
        small = np.array([len(part) < smallest for part in parts])
        wrong = (np.diff(medians) < nearest) | small[:-1] | small[1:]
        if not wrong.any():
            break
        edge = np.delete(edge, np.where(wrong, gap[edge], np.inf).argmin())
    return edge
