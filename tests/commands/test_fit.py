"""Sweeps over folds and replicates become lists before Hydra sees them."""

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from medcm_cli import runs
from medcm_cli.commands.fit import _Left, _told_apart, _variant, coalesce, command
from medcm_cli.errors import InputError
from medcm_cli.files import folder_name
from medcm_cli.numerics.devices import CPU


def swept(arguments: list[str], name: str) -> list[list[int]]:
    """The lists that one axis takes in turn."""
    (value,) = (a.partition("=")[2] for a in arguments if a.startswith(f"{name}="))
    lists: list[list[int]] = json.loads(f"[{value}]")
    return lists


def test_a_multirun_over_folds_and_replicates_is_one_job() -> None:
    given = ["-m", "objective=fo,vi", "fold=range(1,21)", "replicate=range(1,6)"]
    result = coalesce(given)
    assert swept(result, "fold") == [list(range(1, 21))]
    assert swept(result, "replicate") == [[1, 2, 3, 4, 5]]
    assert [a for a in result if not a.startswith(("fold", "replicate"))] == ["-m", "objective=fo,vi"]


@pytest.mark.parametrize("flag", [[], ["-m"], ["--multirun"]])
@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ("3", [3]),
        ("1,2,5", [1, 2, 5]),
        ("range(2,5)", [2, 3, 4]),
        ("range(1,10,4)", [1, 5, 9]),
        ("[4,2]", [4, 2]),
        ("choice(1,2)", [1, 2]),
    ],
)
def test_forms_of_an_axis(flag: list[str], value: str, numbers: list[int]) -> None:
    result = coalesce([*flag, f"fold={value}"])
    assert swept(result, "fold") == [numbers]
    assert result[: len(flag)] == flag


@pytest.mark.parametrize(
    ("folds", "replicates", "most"),
    list(itertools.product([1, 3, 20], [1, 2, 5], [1, 2, 3, 4, 7, 10, 100, 1000])),
)
def test_batches_of_a_multirun_cover_each_fit_once(folds: int, replicates: int, most: int) -> None:
    given = ["-m", f"fold=range(1,{folds + 1})", f"replicate=range(1,{replicates + 1})", f"batch.fits={most}"]
    result = coalesce(given)
    jobs = list(itertools.product(swept(result, "fold"), swept(result, "replicate")))
    pairs = [pair for job in jobs for pair in itertools.product(*job)]
    assert sorted(pairs) == list(itertools.product(range(1, folds + 1), range(1, replicates + 1)))
    assert all(0 < len(fold) * len(replicate) <= most for fold, replicate in jobs)
    if folds * replicates <= most:
        assert len(jobs) == 1
    assert f"batch.fits={most}" in result


@pytest.mark.parametrize("most", [1, 3, 10, 25, 100, 1000])
def test_batches_of_a_nested_split_cover_each_fit_once(most: int) -> None:
    given = ["-m", "split=nested", "outer=range(1,4)", "inner=range(1,11)", "replicate=1,2"]
    result = coalesce([*given, f"batch.fits={most}"])
    jobs = list(itertools.product(*(swept(result, name) for name in ("outer", "inner", "replicate"))))
    fits = [fit for job in jobs for fit in itertools.product(*job)]
    assert sorted(fits) == list(itertools.product(range(1, 4), range(1, 11), range(1, 3)))
    assert all(0 < len(outer) * len(inner) * len(replicate) <= most for outer, inner, replicate in jobs)
    assert len(jobs) >= 60 / most
    if most >= 60:
        assert len(jobs) == 1


@pytest.mark.parametrize("name", ["fold", "outer", "inner", "replicate"])
def test_batches_of_one_axis(name: str) -> None:
    result = coalesce(["--multirun", "batch.fits=3", f"{name}=range(1,8)"])
    assert swept(result, name) == [[1, 2, 3], [4, 5, 6], [7]]
    assert len(result) == 3


def test_without_a_multirun_a_batch_stays_one_job() -> None:
    result = coalesce(["fold=1,2,3", "replicate=1,2", "batch.fits=2"])
    assert swept(result, "fold") == [[1, 2, 3]]
    assert swept(result, "replicate") == [[1, 2]]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["--cfg", "job"],
        ["-m", "objective=fo,vi", "epochs=10,20"],
        ["-cd", "experiments/table1", "-cn", "as_published"],
        ["-sc", "query=bash"],
        ["dataset.path=a=b", "variant=fold=1"],
        ["folds=1,2", "fold.x=1,2", "+fold=1", "~fold", "fold", "batch.fits=null"],
        ["-m", "batch.fits=2", "study=x"],
        ["outer=null", "inner=null"],
    ],
)
def test_the_rest_passes_untouched(arguments: list[str]) -> None:
    assert coalesce(arguments) == arguments


@pytest.mark.parametrize("more", [[], ["batch.fits=2"]])
def test_lists_of_lists_are_left_alone(more: list[str]) -> None:
    given = ["-m", "fold=[1,2],[3]", "replicate=choice([1],[2,3])", *more]
    assert coalesce(given) == given


@pytest.mark.parametrize("name", ["fold", "outer", "inner", "replicate"])
@pytest.mark.parametrize(
    "value", ["0", "one", "1.5", "-1", "range(1,", "[1", "1,1", "[2,2]", "range(5,1)", "[]"]
)
def test_axis_that_makes_no_sense_is_refused(name: str, value: str) -> None:
    with pytest.raises(InputError, match=name) as caught:
        coalesce(["-m", f"{name}={value}"])
    assert "\n" not in str(caught.value)


def test_the_arguments_given_are_not_changed() -> None:
    given = ["-m", "fold=1,2", "batch.fits=1"]
    coalesce(given)
    assert given == ["-m", "fold=1,2", "batch.fits=1"]


# -- what a fit of options without a folder of their own is called -------------------------------


def test_fits_that_an_earlier_version_named_are_found(tmp_path: Path) -> None:
    options = "network.branches-[{inputs:[weight]}]"
    config = {"outputs": str(tmp_path), "study": "s"}
    choices = {"objective": "mine/vi[1]", "error": "additive"}
    new = folder_name(options)
    assert _variant(config, choices, options) == new
    below = tmp_path / "s" / "dataset=d" / "objective=mine" / "vi[1]" / "error=additive" / "lr=0.1"
    (below / "variant=default").mkdir(parents=True)
    assert _variant(config, choices, options) == new
    (below / f"variant={options}").mkdir()
    assert _variant(config, choices, options) == options
    assert _variant(config, choices | {"objective": "vi"}, options) == new
    (below / f"variant={new}").mkdir()
    assert _variant(config, choices, options) == new
    assert _variant(config, choices, "") == ""
    long = f"objective.{'x' * 120}-1"
    (below / f"variant={long[:91]}~{hashlib.sha256(long.encode()).hexdigest()[:8]}").mkdir()
    assert _variant(config, choices, long).startswith(long[:91])


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        (
            ["variant=same", "objective=vi", "objective.samples=1,3"],
            "objective.samples is 1 there and 3 here",
        ),
        (["dataset=table", "dataset.path=a.csv,b.csv", "dataset.name=same"], "dataset.path"),
    ],
)
def test_two_jobs_of_a_command_do_not_write_over_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], differs: str
) -> None:
    """They are refused before one is trained; what needs no name of its own is not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medcm_cli.commands.fit._job", lambda _: pytest.fail("a job ran"))
    with pytest.raises(InputError, match=rf"two jobs of this command would write there \({differs}\)"):
        command(["-m", *options, "epochs=20"])
    assert not list(tmp_path.rglob("run.json"))


def test_jobs_of_one_objective_are_told_apart() -> None:
    address = runs.Address("s", "d", "fo", "additive", 0.1, "default", 1, 1)
    others = [replace(address, error="combined"), replace(address, objective="vi")]
    jobs = [
        _Left(
            one.objective,
            {},
            [runs.Record("running", one, "", {}, {}, None, 0, {})],
            [],
            1.0,
            CPU,
            None,
            True,
            Path(),
        )
        for one in (address, *others)
    ]
    assert [job.label for job in _told_apart(jobs)] == ["fo, additive", "fo, combined", "vi"]
