"""Every fit below folders is found once, and what its estimates are the mean of."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.runs.checkpoints import tail_mean, tail_rows, tail_weights
from medcm_cli.runs.folder import find
from medcm_cli.runs.walk import Fault, Fit, walk
from tests.runs.test_folder import make_record


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for objective in ("fo", "vi"):
        for replicate in (1, 2):
            record = make_record(objective=objective, replicate=replicate)
            runs.finish(tmp_path, record, {"history": pa.table({"epoch": [0]})})
    return tmp_path


def test_each_fit_once_however_folders_overlap(root: Path) -> None:
    (inside,) = root.glob("mine/*/objective=vi")
    counted: list[int] = []
    found = list(walk([inside, root, root / "mine" / "..", inside], counted.append))
    assert [one.folder.resolve() for one in found] == [folder.resolve() for folder in runs.find(root)]
    assert counted == [1, 2, 3, 4]
    assert all(isinstance(one, Fit) for one in found)


def test_a_folder_that_cannot_be_read_stands_among_the_others(root: Path) -> None:
    broken = next(runs.find(root))
    (broken / runs.RECORD).write_text("{")
    faults = [one for one in walk([root]) if isinstance(one, Fault)]
    assert [fault.folder for fault in faults] == [broken]
    assert str(broken) in faults[0].reason
    with pytest.raises(InputError, match="no such folder"):
        list(walk([root, root / "absent"]))


def test_alike_is_all_but_the_place() -> None:
    address = make_record(fold=2, replicate=3).address
    assert address.alike == (*address.sweep, *address.method)
    assert tuple(getattr(address, name) for name in runs.ALIKE) == address.alike
    assert set(runs.ALIKE) | {"fold", "replicate", "outer", "inner"} == set(vars(address))
    assert address.place == "fold 2, replicate 3"


def test_weights_are_those_of_the_mean_over_the_tail() -> None:
    """Of each fit's own checkpoints: the second failed after three, the third before any."""
    epoch, kept = np.array([0, 100, 200, 300, 400]), np.array([5, 3, 0])
    values = np.random.default_rng(0).standard_normal((5, 3))
    for tail in (None, 0, 150, 1000):
        found = (tail_weights(epoch, kept, tail) * values).sum(0)
        for fit, count in enumerate((5, 3, 1)):
            rows = tail_rows(epoch[:count], tail)
            assert found[fit] == pytest.approx(float(tail_mean(values[:count, fit], rows).mean()))


def test_rows_of_the_last_checkpoints_in_any_order() -> None:
    """Two blocks of rows, each with every checkpoint: those of one checkpoint belong together."""
    epoch = np.array([0, 0, 50, 50, 100, 100, 0, 50, 100])
    values = np.array([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 9.0, 5.0, 7.0])
    rows = tail_rows(epoch, 50)
    assert rows.tolist() == [[2, 3, 7], [4, 5, 8]]
    assert tail_mean(values, rows).tolist() == [2.0, 3.0, 6.0]
    assert tail_rows(epoch, None).tolist() == [[4, 5, 8]]
    assert tail_rows(np.arange(0, 4001, 500), None).ravel().tolist() == [7, 8]  # 500 epochs at most
    for bad in (np.array([0.0, np.nan]), np.array([]), np.array([0, 1, 1])):
        with pytest.raises(ValueError, match=r"epoch|reshape|zero-size"):
            tail_rows(bad, 10)


def test_symbolic_links_are_followed_once(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """To another place; not to one above, nor to what is read anyway."""
    own = tmp_path_factory.mktemp("own")
    (own / "elsewhere").symlink_to(root)
    fits = len(list(find(root)))
    assert len(list(find(own))) == fits > 0
    (own / "again").symlink_to(root)
    (own / "circle").symlink_to(own)
    (own / "broken").symlink_to(own / "nowhere")
    assert len(list(find(own))) == fits
    assert len(list(walk([own, root]))) == fits
