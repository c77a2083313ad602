"""Folds: files of subject numbers, bootstrap draws, and everyone."""

from pathlib import Path

import numpy as np
import pytest

from medcm_cli.data import all_subjects, blocks, bootstrap, from_files, nested
from medcm_cli.errors import InputError

PATTERN = "train_set_{fold}.csv"


def numbers(path: Path, values: list[int], header: str = "idxs") -> None:
    path.write_text("".join(f"{value}\n" for value in (header, *values)))


# -- files -----------------------------------------------------------------------------------------


def test_numbers_count_from_1_and_a_subject_drawn_twice_stands_twice(tmp_path: Path) -> None:
    numbers(tmp_path / "train_set_3.csv", [5, 1, 5, 6])
    fold = from_files(3, 6, tmp_path, PATTERN)
    assert fold.train.tolist() == [4, 0, 4, 5]
    assert fold.test.tolist() == [1, 2, 3]
    assert np.issubdtype(fold.train.dtype, np.integer)


def test_validation_subjects_are_left_out_of_the_test_set(tmp_path: Path) -> None:
    numbers(tmp_path / "train_set_1.csv", [1, 2])
    numbers(tmp_path / "validation_set_1.csv", [2, 3, 3])
    fold = from_files(1, 6, tmp_path, PATTERN, "validation_set_{fold}.csv")
    assert fold.train.tolist() == [0, 1]
    assert fold.test.tolist() == [3, 4, 5]


def test_without_its_validation_file_a_fold_tests_on_all_the_rest(tmp_path: Path) -> None:
    numbers(tmp_path / "train_set_1.csv", [1, 2])
    fold = from_files(1, 5, tmp_path, PATTERN, "validation_set_{fold}.csv")
    assert fold.test.tolist() == [2, 3, 4]


def test_a_name_without_fold_gives_every_fold_the_same_subjects(tmp_path: Path) -> None:
    numbers(tmp_path / "train.csv", [2, 4])
    for number in (1, 7):
        assert from_files(number, 4, tmp_path, "train.csv").train.tolist() == [1, 3]


@pytest.mark.parametrize("text", ["n\r\n2\r\n3\r\n", "\ufeffn\n2\n3\n", "n\n 2\n3 \n", '"n"\n"2"\n3'])
def test_files_saved_by_other_programs(tmp_path: Path, text: str) -> None:
    (tmp_path / "train_set_1.csv").write_bytes(text.encode())
    assert from_files(1, 3, tmp_path, PATTERN).train.tolist() == [1, 2]


# content -> what the one line says after the file name
BAD_FILES = {
    "zero": (b"idxs\n1\n0\n", ", line 3, column 'idxs': '0' is not a subject number 1..9"),
    "negative": (b"idxs\n-1\n", ", line 2, column 'idxs': '-1'"),
    "more than there are subjects": (b"idxs\n1\n2\n10\n", ", line 4, column 'idxs': '10'"),
    "fraction": (b"idxs\n1.5\n", ", line 2, column 'idxs': '1.5'"),
    "text": (b"idxs\n1\nvirtual_2\n", ", line 3, column 'idxs': 'virtual_2'"),
    "missing": (b'idxs\n3\n""\n', ", line 3, column 'idxs': ''"),
    "not a number": (b"idxs\nnan\n", ", line 2, column 'idxs': 'nan'"),
    "infinite": (b"idxs\ninf\n", ", line 2, column 'idxs': 'inf'"),
    "after a blank line": (b"idxs\n1\n\n0\n", ", line 4, column 'idxs': '0'"),
    "empty": (b"", ": cannot be read"),
    "blank": (b"\n\n", ": cannot be read"),
    "header only": (b"idxs\n", ": expected a header and one column"),
    "two columns": (b"idxs,fold\n1,1\n", ": expected a header and one column"),
    "two numbers in every line": (b"idxs\n1,2\n3,4\n", ""),
    "two numbers in one line": (b"idxs\n1\n2,3\n", ""),
    "no header": (b"4\n5\n6\n", ""),
    "not utf-8": (b"idxs\n\xff\n", ": cannot be read"),
    "open quote": (b'idxs\n"1\n', ": cannot be read"),
}


@pytest.mark.parametrize("which", ["train", "validation"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused(tmp_path: Path, case: str, which: str) -> None:
    content, what = BAD_FILES[case]
    numbers(tmp_path / "train_set_1.csv", [1, 2])
    path = tmp_path / f"{which}_set_1.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        from_files(1, 9, tmp_path, PATTERN, "validation_set_{fold}.csv")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path}{what}")


def test_a_fold_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    numbers(tmp_path / "train_set_1.csv", [1])
    with pytest.raises(InputError, match=r"train_set_2\.csv: no such fold file"):
        from_files(2, 9, tmp_path, PATTERN)


def test_published_folds(published: Path) -> None:
    for number in range(1, 21):
        fold = from_files(number, 500, published, PATTERN, "validation_set_{fold}.csv")
        left_out = set()
        for kind in ("train", "validation"):
            lines = (published / f"{kind}_set_{number}.csv").read_text().split()[1:]
            assert len(lines) == 60
            left_out |= {int(line) - 1 for line in lines}
        assert len(fold.train) == 60
        assert sorted(fold.test.tolist()) == [n for n in range(500) if n not in left_out]


# -- draws -----------------------------------------------------------------------------------------


def test_bootstrap_draws_with_replacement_and_tests_on_the_rest() -> None:
    fold = bootstrap(1, 50, 60, seed=3)
    assert len(fold.train) == 60
    assert set(fold.train.tolist()) <= set(range(50))
    assert fold.test.tolist() == [n for n in range(50) if n not in set(fold.train.tolist())]


def test_bootstrap_is_the_same_each_time_and_whatever_numpy_drew_before() -> None:
    first = bootstrap(2, 500, 60, seed=1)
    np.random.default_rng(0).random(7)
    again = bootstrap(2, 500, 60, seed=1)
    np.testing.assert_array_equal(first.train, again.train)
    np.testing.assert_array_equal(first.test, again.test)


@pytest.mark.parametrize(("fold", "seed"), [(1, 2), (2, 1), (2, 2), (3, 1)])
def test_bootstrap_differs_between_folds_and_seeds(fold: int, seed: int) -> None:
    reference = bootstrap(1, 500, 60, seed=1).train
    # Two independent draws agree in a place with probability 1 / 500.
    assert (bootstrap(fold, 500, 60, seed=seed).train == reference).sum() < 5


def test_bootstrap_draws_every_subject_alike() -> None:
    drawn = np.concatenate([bootstrap(fold, 20, 100, seed=0).train for fold in range(1, 201)])
    counts = np.bincount(drawn, minlength=20)  # binomial: mean 1000, sd 31
    assert np.abs(counts - 1000).max() < 4.5 * 31


@pytest.mark.parametrize("fold", [0, -1])
def test_bootstrap_has_no_fold_below_1(fold: int) -> None:
    with pytest.raises(InputError, match="folds are numbered from 1"):
        bootstrap(fold, 10, 5, seed=0)


@pytest.mark.parametrize("size", [0, -1])
def test_bootstrap_draws_at_least_one_subject(size: int) -> None:
    with pytest.raises(InputError, match="size"):
        bootstrap(1, 10, size, seed=0)


def test_all_subjects_train_and_test() -> None:
    fold = all_subjects(1, 4)
    assert fold.train.tolist() == fold.test.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("fold", [0, 2])
def test_all_subjects_has_one_fold(fold: int) -> None:
    with pytest.raises(InputError, match=f"fold={fold}"):
        all_subjects(fold, 4)


def test_splits_ignore_what_only_another_split_needs(tmp_path: Path) -> None:
    numbers(tmp_path / "train.csv", [1])
    assert from_files(1, 2, tmp_path, "train.csv", size=3).train.tolist() == [0]
    assert len(bootstrap(1, 5, 3, 0, folder=tmp_path).train) == 3
    assert len(all_subjects(1, 5, folder=tmp_path).train) == 5


# -- blocks ----------------------------------------------------------------------------------------


def test_blocks_train_on_every_subject_once_and_test_on_the_next_block() -> None:
    folds = [blocks(fold, 17, 5) for fold in (1, 2, 3)]  # two subjects are left over
    assert [fold.train.tolist() for fold in folds] == [list(range(k, k + 5)) for k in (0, 5, 10)]
    assert [fold.test.tolist() for fold in folds] == [list(range(k, k + 5)) for k in (5, 10, 0)]


@pytest.mark.parametrize(
    ("fold", "size", "words"),
    [
        (0, 5, "folds 1 to 3"),
        (4, 5, "fold=4: .* folds 1 to 3"),
        (1, 0, "split.size is 0; .* 1 to 8 \\(half of the subjects\\)"),
        (1, 9, "split.size is 9"),
        (1, 2.0, "split.size is 2.0"),
        (1, True, "split.size is True"),
    ],
)
def test_a_block_that_does_not_exist_is_refused(fold: int, size: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        blocks(fold, 17, size)


# -- nested cross-validation -----------------------------------------------------------------------


@pytest.mark.parametrize(("subjects", "parts"), [(69, 10), (66, 10), (10, 10), (7, 2)])
def test_inner_folds_test_every_subject_of_a_shuffle_once(subjects: int, parts: int) -> None:
    folds = [nested(3, inner, subjects, parts, seed=0) for inner in range(1, parts + 1)]
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested.tolist()) == list(range(subjects))
    sizes = [len(fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for fold in folds:
        assert sorted([*fold.train.tolist(), *fold.test.tolist()]) == list(range(subjects))


def test_a_shuffle_is_the_same_each_time_and_another_has_other_parts() -> None:
    def partition(outer: int, seed: int) -> set[frozenset[int]]:
        return {frozenset(nested(outer, inner, 40, 10, seed).test.tolist()) for inner in range(1, 11)}

    first = partition(1, 0)
    assert partition(1, 0) == first
    # A part of 4 of one shuffle is one of another by chance once in 9000.
    for outer, seed in ((2, 0), (1, 1), (3, 0)):
        assert len(partition(outer, seed) & first) <= 1


def test_shuffles_put_any_two_subjects_together_alike() -> None:
    together = 0
    for outer in range(1, 1001):
        tests = [nested(outer, inner, 20, 10, 0).test.tolist() for inner in range(1, 11)]
        together += [0, 1] in tests
    assert abs(together / 1000 - 1 / 19) < 4.5 * (1 / 19 * 18 / 19 / 1000) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((1, 11, 30, 10, 0), "inner=11"),
        ((1, 0, 30, 10, 0), "inner=0"),
        ((0, 1, 30, 10, 0), "outer=0"),
        ((1, 1, 9, 10, 0), "inner_folds"),
        ((1, 1, 9, 1, 0), "inner_folds"),
        ((1, 1, 9, True, 0), "inner_folds"),
        ((1, 1, 9, 2.0, 0), "inner_folds"),
    ],
)
def test_a_nested_fold_that_does_not_exist_is_refused(arguments: tuple[int, ...], word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        nested(*arguments)
    assert "\n" not in str(caught.value)
