"""Which subjects a fit trains on and which it is tested on. Subjects are counted from 0 in order of first
appearance."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medcm_cli.checks import whole
from medcm_cli.data.sheet import IntArray
from medcm_cli.errors import InputError


@dataclass(frozen=True)
class Fold:
    """Subject numbers, from 0; one drawn twice for training stands twice in ``train`` and counts as two
    subjects."""

    train: IntArray
    test: IntArray


def from_files(
    fold: int, n_subjects: int, folder: Path, train: str, validation: str | None = None, **_: object
) -> Fold:
    """A fold read from files of 1-based subject numbers (one column with a header), as the published study
    has them.

    :param train: file name in ``folder``; ``{fold}`` stands for the fold's number.
    :param validation: file of subjects to leave out of the test set, where it exists.
    :raises InputError: file absent, not a whole number, or outside 1..``n_subjects``.
    """
    if not isinstance(train, str):
        raise InputError(f"split.train is {train!r}; expected a file name such as train_set_{{fold}}.csv")
    if validation is not None and not isinstance(validation, str):
        raise InputError(f"split.validation is {validation!r}; expected a file name, or null for none")
    drawn = _read_numbers(folder / _named(train, fold), n_subjects)
    held_out = drawn
    if validation is not None and (path := folder / _named(validation, fold)).exists():
        held_out = np.r_[drawn, _read_numbers(path, n_subjects)]
    return Fold(drawn, np.setdiff1d(np.arange(n_subjects), held_out))


def _named(form: str, fold: int) -> str:
    """The file of a fold. Python's own formatting would do whatever else stands between braces."""
    return form.replace("{fold}", str(fold))


def bootstrap(fold: int, n_subjects: int, size: int | None, seed: int, **_: object) -> Fold:
    """``size`` subjects, as many as there are if None, drawn with replacement; the test set is everyone not
    drawn (docs/methods.md, "Protocol of the simulation study")."""
    if fold < 1:
        raise InputError(f"fold={fold}: folds are numbered from 1")
    size = n_subjects if size is None else whole("split.size", size, 1)
    generator = np.random.default_rng([seed, fold])
    drawn = generator.integers(n_subjects, size=size)
    return Fold(drawn, np.setdiff1d(np.arange(n_subjects), drawn))


def all_subjects(fold: int, n_subjects: int, **_: object) -> Fold:
    """Train on every subject and test on the same subjects; there is one such fold."""
    if fold != 1:
        raise InputError(f"fold={fold}: a split that trains on all subjects has fold 1 only")
    everyone = np.arange(n_subjects)
    return Fold(everyone, everyone)


def deletion(fold: int, n_subjects: int, **_: object) -> Fold:
    """Train on all subjects but the ``fold``-th, as they stand in the data, and test on that one."""
    if n_subjects < 2:
        raise InputError("split=deletion leaves one subject out: expected two or more")
    if not 1 <= fold <= n_subjects:
        raise InputError(f"fold={fold}: one of {n_subjects} subjects is left out in folds 1 to {n_subjects}")
    return Fold(np.delete(np.arange(n_subjects), fold - 1), np.array([fold - 1]))


def blocks(fold: int, n_subjects: int, size: int, **_: object) -> Fold:
    """Train on the ``fold``-th block of ``size`` subjects, as they stand in the data, and test on the next,
    which of the last is the first: data sets without a common subject. Subjects after the last whole block
    are not used."""
    whole("split.size", size, 1, n_subjects // 2, limit="half of the subjects")
    count = n_subjects // size
    if not 1 <= fold <= count:
        raise InputError(
            f"fold={fold}: {n_subjects} subjects in blocks of split.size={size} are folds 1 to {count}"
        )
    block = np.arange(size)
    return Fold(block + (fold - 1) * size, block + fold % count * size)


def by_column(fold: int, n_subjects: int, column: str, groups: Sequence[str] = (), **_: object) -> Fold:
    """The subjects whose value in a column is ``fold``, to train on and to test: data sets in one file, whose
    subjects may have the same ids.

    :param groups: the value of each subject (N,), as text.
    :raises InputError: a value that is no whole number from 1, or no subject has this one.
    """
    if not column.strip():
        raise InputError(f"split.column is {column!r}; expected the name of a column")
    assert len(groups) == n_subjects
    wrong = next((value for value in groups if not value.isdecimal() or int(value) < 1), None)
    if wrong is not None:
        raise InputError(
            f"split.column={column}: has {wrong!r}; expected whole numbers from 1, which are folds"
        )
    own = np.flatnonzero(np.array([int(value) for value in groups]) == fold)
    if not len(own):
        raise InputError(f"fold={fold}: no subject has {column} {fold}, which split.column says of a fold")
    return Fold(own, own)


def nested(outer: int, inner: int, n_subjects: int, inner_folds: int, seed: int, **_: object) -> Fold:
    """Cross-validation within shuffles of the subjects (docs/methods.md, "Protocol of the real data").

    Shuffle ``outer`` permutes the subjects and cuts them into ``inner_folds`` parts, as even as possible.
    Fold ``inner`` is tested on its part and trained on all the others. Both count from 1.
    """
    whole("split.inner_folds", inner_folds, 2, n_subjects, limit="the number of subjects")
    if not 1 <= inner <= inner_folds or outer < 1:
        raise InputError(
            f"outer={outer}, inner={inner}: expected outer from 1, and inner from 1 to {inner_folds} "
            "(split.inner_folds)"
        )
    shuffled = np.random.default_rng([seed, outer]).permutation(n_subjects)
    test = np.sort(np.array_split(shuffled, inner_folds)[inner - 1])
    return Fold(np.setdiff1d(np.arange(n_subjects), test), test)


def _read_numbers(path: Path, n_subjects: int) -> IntArray:
    if not path.is_file():
        raise InputError(f"{path}: no such fold file; choose a fold that exists, or another split")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as one column of subject numbers: {error}") from error
    if not rows:
        raise InputError(f"{path}: cannot be read as one column of subject numbers: it is empty")
    (_, header), *body = rows
    if not body or len(header) != 1 or header[0].strip().isdecimal():
        raise InputError(f"{path}: expected a header and one column of subject numbers")
    subjects = []
    for line, cells in body:
        if len(cells) != 1:
            raise InputError(f"{path}, line {line}: expected one column of subject numbers, got {len(cells)}")
        cell = cells[0].strip()
        if not cell.isdecimal() or len(cell) > 18 or not 1 <= int(cell) <= n_subjects:
            raise InputError(
                f"{path}, line {line}, column {header[0]!r}: {cell!r} is not a subject number 1..{n_subjects}"
            )
        subjects.append(int(cell) - 1)
    return np.array(subjects, dtype=np.int64)
