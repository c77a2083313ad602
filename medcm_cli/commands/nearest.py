"""What somebody meant who mistyped a name."""

from collections.abc import Iterable
from difflib import SequenceMatcher


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The names, at most two, that ``word`` is most like; none where it is like no name.

    A dotted word that names a group is compared with the names in this group, any other one with all names;
    where none is alike, with the last parts of names in every group.
    """
    names = list(dict.fromkeys(known))
    group, _, last = word.rpartition(".")
    inside = [name for name in names if name.rpartition(".")[0] == group]
    if inside or group in names:
        close = _alike(last, {name.rpartition(".")[2]: [name] for name in inside}, 0.6)
    else:
        close = _alike(word, {name: [name] for name in names}, 0.75)
    if close:
        return close
    ends: dict[str, list[str]] = {}
    for name in names:
        ends.setdefault(name.rpartition(".")[2], []).append(name)
    return _alike(last, ends, 0.8)


def _alike(word: str, candidates: dict[str, list[str]], least: float) -> list[str]:
    """What stands for the candidates that are like a word, the first two of those that are about as like it
    as the best one."""
    matcher = SequenceMatcher(b=word.lstrip("-"))
    ratios = {}
    for candidate in candidates:
        matcher.set_seq1(candidate.lstrip("-"))
        ratios[candidate] = matcher.ratio()
    best = max(ratios.values(), default=0.0)
    ranked = sorted(ratios, key=lambda candidate: -ratios[candidate])
    good = [candidate for candidate in ranked if ratios[candidate] >= max(least, best - 0.1)]
    return [name for candidate in good for name in candidates[candidate]][:2]


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown ``word``: ``; did you mean epochs?``, or nothing."""
    close = nearest(word, known)
    return f"; did you mean {' or '.join(close)}?" if close else ""
