"""The run folder: what a fit leaves on disk is whole, or says that it is not."""

import functools
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.model import Model
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Mse
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from medcm_cli.training.results import Covariate, Reported, tables
from tests.helpers import make_population

ADDRESS = runs.Address("mine", "simulated", "vi", "additive", 0.1, "default", 1, 1)


def make_record(status: str = "complete", **address: Any) -> runs.Record:
    return runs.Record(
        status=status,
        address=replace(ADDRESS, **address),
        config_hash="0123",
        config={"epochs": 4, "dataset": {"name": "simulated", "covariates": {"wt": [1.5, None]}}},
        data={"source": "a.csv", "subjects": 3},
        truth={"omega": [[0.04, 0.01], [0.01, 0.02]], "sigma": {"additive": 0.03}},
        seed=7,
        versions={"torch": "0"},
        batch={"fits": 2, "seconds": 1.25},
        seconds=0.625,
    )


def a_table(rows: int = 3) -> pa.Table:
    columns = {name: np.linspace(0, 1, rows) for name in ("objective_value", "rmse")}
    return pa.table({"epoch": np.arange(rows), **columns})


def history(folder: Path) -> pa.Table:
    return runs.read_table(folder, runs.read_record(folder) or make_record(), "history")


def written(record: runs.Record, folder: Path) -> runs.Record:
    """A record as it is once its tables are there."""
    return replace(record, hashes=runs.hashes_of(folder, sorted(p.stem for p in folder.glob("*.parquet"))))


# -- addresses -------------------------------------------------------------------------------------


def test_folder_of_an_address(tmp_path: Path) -> None:
    below = "mine/dataset=simulated/objective=vi/error=additive/lr=0.1/variant=default/fold=01/replicate=1"
    assert ADDRESS.folder(tmp_path) == tmp_path / below


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"learning_rate": 0.01}, "lr=0.01"),
        ({"learning_rate": 1.0}, "lr=1"),
        ({"learning_rate": 0.1000000001}, "lr=0.1000000001"),
        ({"fold": 12}, "fold=12"),
        ({"fold": 123}, "fold=123"),
        ({"replicate": 40}, "replicate=40"),
        ({"variant": "epochs-4+seed-2"}, "variant=epochs-4+seed-2"),
        ({"fold": 27, "outer": 3, "inner": 7}, "outer=03"),
        ({"fold": 27, "outer": 3, "inner": 7}, "inner=07"),
    ],
)
def test_each_field_has_its_own_folder(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    folder = replace(ADDRESS, **change).folder(tmp_path)
    assert part in folder.parts
    assert folder != ADDRESS.folder(tmp_path)


def test_folder_of_a_fit_in_a_nested_split(tmp_path: Path) -> None:
    address = replace(ADDRESS, fold=27, outer=3, inner=7, replicate=2)
    folder = address.folder(tmp_path)
    assert folder.parts[-4:] == ("variant=default", "outer=03", "inner=07", "replicate=2")
    runs.write_record(tmp_path, replace(make_record(), address=address))
    found = runs.read_record(folder)
    assert found is not None
    assert found.address == address


def test_the_study_of_a_fit_is_above_it_only_where_fits_put_themselves(tmp_path: Path) -> None:
    """A study may have been renamed, but a fit that lies elsewhere has none."""
    folder = replace(ADDRESS, study="renamed").folder(tmp_path)
    assert runs.study_folder(folder, ADDRESS) == tmp_path.resolve() / "renamed"
    assert runs.study_folder(tmp_path / "downloads", ADDRESS) is None
    assert runs.study_folder(Path("/"), ADDRESS) is None
    assert runs.study_folder(folder, replace(ADDRESS, variant="other")) is None


def test_choices_of_folders_inside_one_another_are_names(tmp_path: Path) -> None:
    address = replace(ADDRESS, objective="mine/vi", error="mine/combined")
    runs.write_record(tmp_path, make_record(objective="mine/vi", error="mine/combined"))
    found = runs.read_record(address.folder(tmp_path))
    assert found is not None
    assert found.address == address


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "a\0b", "a\x1b[2J", "a\u2028b", "a\u202eb"]
)
def test_names_that_cannot_stand_in_a_path(name: str) -> None:
    with pytest.raises(InputError, match="study"):
        runs.check_name("study", name)


def test_hash_is_of_the_contents_and_not_of_their_order() -> None:
    data = {"subjects": 3}
    one = runs.config_hash({"a": 1, "b": {"c": [1, 2], "d": None}}, data)
    assert one == runs.config_hash({"b": {"d": None, "c": [1, 2]}, "a": 1}, data)
    assert one != runs.config_hash({"a": 1, "b": {"c": [2, 1], "d": None}}, data)
    assert one != runs.config_hash({"a": 1, "b": {"c": [1, 2], "d": None}}, {"subjects": 4})


def test_fingerprint_is_of_the_contents_and_not_of_the_name(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, text in zip(paths, ("same", "same", "other"), strict=True):
        path.write_text(text)
    a, b, c = (runs.fingerprint([path]) for path in paths)
    assert a == b
    assert a != c
    assert runs.fingerprint([paths[0], paths[2]]) != runs.fingerprint([paths[2], paths[0]])


# -- records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        make_record(),
        replace(make_record("failed"), failure={"epoch": 40, "cause": "objective is not finite"}),
        replace(make_record("running", fold=20), truth=None),
    ],
)
def test_record_round_trip(tmp_path: Path, record: runs.Record) -> None:
    runs.write_record(tmp_path, record)
    folder = record.address.folder(tmp_path)
    assert runs.read_record(folder) == record
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_no_record(tmp_path: Path) -> None:
    assert runs.read_record(tmp_path) is None
    assert runs.read_record(tmp_path / "absent") is None


_NAMES = ("study", "dataset", "objective", "error", "variant")
_CHANGES: list[dict[str, Any]] = [
    *({"study": None}, {"fold": "1"}, {"fold": 1.5}, {"learning_rate": "x"}),
    *({"outer": "1"}, {"inner": 2.5}),
    *({name: bad} for name in _NAMES for bad in ("../../x", "/etc", "a/../b", "..", "", "a\nb")),
    *({"learning_rate": bad} for bad in (float("nan"), float("inf"), 0.0)),
]


def _other(**changes: object) -> bytes:
    content: dict[str, Any] = asdict(make_record()) | changes
    return json.dumps({key: value for key, value in content.items() if value != "absent"}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b"{}",
        b'{"address": {}}',
        b"\xff\xfe\x00",
        b'{\n"status":\n "complete"\n oh',
        _other(address=3),
        _other(address={"study": "mine"}),
        _other(status="absent"),
        _other(unknown=1),
        _other(status=["complete"]),
        _other(seed=True),
        _other(unconverged_modes="none"),
        _other(truth=3),
        *(_other(tables=[bad]) for bad in ("../../history", "/etc/passwd", 3, ["history"])),
        *(_other(address={**asdict(ADDRESS), **change}) for change in _CHANGES),
        b"[" * 100_000,
    ],
)
def test_damaged_record_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        runs.read_record(tmp_path)
    assert str(tmp_path / "run.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_record_of_a_time_before_there_were_nested_splits(tmp_path: Path) -> None:
    content = asdict(make_record())
    del content["address"]["outer"], content["address"]["inner"], content["redraws"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert runs.read_record(tmp_path) == make_record()


def test_preparation_lies_beside_the_fits_of_its_dataset(tmp_path: Path) -> None:
    runs.write_record(tmp_path, make_record())
    for rows in (2, 3):  # whatever was there before
        runs.write_preparation(tmp_path, make_record(), a_table(rows))
    path = tmp_path / "mine" / "dataset=simulated" / "preparation.parquet"
    assert pyarrow.parquet.ParquetFile(path).read().equals(a_table(3))
    assert list(runs.find(tmp_path)) == [ADDRESS.folder(tmp_path)]


def test_record_cut_off_anywhere_is_damaged(tmp_path: Path) -> None:
    runs.write_record(tmp_path, make_record())
    path = ADDRESS.folder(tmp_path) / "run.json"
    whole = path.read_bytes()
    for length in range(0, len(whole.rstrip()), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            runs.read_record(path.parent)


def test_record_that_is_a_folder_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(InputError):
        runs.read_record(tmp_path)


# -- writing ---------------------------------------------------------------------------------------


def test_start_removes_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    folder = ADDRESS.folder(tmp_path)
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(a_table(), folder / "history.parquet")
    (folder / "effects.parquet").write_bytes(b"half")
    # No process has so high a number.
    (folder / ".partial-5000017-parameters.parquet").write_bytes(b"half")
    (folder / ".partial-5000018-run.json").write_text("{")
    (folder / "run.json").write_text("{")
    runs.start(tmp_path, make_record("running"))
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    record = runs.read_record(folder)
    assert record is not None
    assert record.status == "running"


def test_finish_writes_tables_and_then_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ADDRESS.folder(tmp_path)
    runs.start(tmp_path, make_record("running"))
    seen = []
    write = pyarrow.parquet.write_table

    def watched(*arguments: object, **options: object) -> None:
        record = runs.read_record(folder)
        seen.append(record.status if record else None)
        write(*arguments, **options)

    monkeypatch.setattr(pyarrow.parquet, "write_table", watched)
    runs.finish(tmp_path, make_record(), {"history": a_table(3), "effects": a_table(5)})
    assert seen == ["running", "running"]
    assert runs.read_record(folder) == written(make_record(), folder)
    assert pyarrow.parquet.ParquetFile(folder / "effects.parquet").read().equals(a_table(5))
    assert history(folder).equals(a_table(3))
    assert sorted(path.name for path in folder.iterdir()) == [
        "effects.parquet",
        "history.parquet",
        "run.json",
    ]


def test_what_is_replaced_stays_until_its_successor_is_written(tmp_path: Path) -> None:
    folder = ADDRESS.folder(tmp_path)
    runs.finish(tmp_path, make_record(), {"history": a_table(3), "effects": a_table(5)})
    runs.start(tmp_path, make_record("running"))
    assert runs.read_record(folder) == written(make_record(), folder)
    assert history(folder).equals(a_table(3))
    runs.finish(tmp_path, make_record("failed"), {"history": a_table(2)})
    assert runs.read_record(folder) == written(make_record("failed"), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["history.parquet", "run.json"]
    assert history(folder).equals(a_table(2))


@pytest.mark.parametrize("before", ["running", "complete"])
def test_failure_while_a_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Nothing of the new fit is there, and all of what was."""
    folder = ADDRESS.folder(tmp_path)
    tables = {"history": a_table(3)} if before == "complete" else {}
    if tables:
        runs.finish(tmp_path, make_record(), tables)
    runs.start(tmp_path, make_record("running"))
    write = pyarrow.parquet.write_table

    def full_disk(table: pa.Table, where: Path, **options: object) -> None:
        if "effects" in str(where):
            Path(where).write_bytes(b"PAR1 half of it")
            raise OSError("No space left on device")
        write(table, where, **options)

    monkeypatch.setattr(pyarrow.parquet, "write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        runs.finish(tmp_path, make_record(), {"history": a_table(), "effects": a_table()})
    record = runs.read_record(folder)
    assert record is not None
    assert record.status == before
    there = [*(f"{name}.parquet" for name in tables), "run.json"]
    assert sorted(path.name for path in folder.iterdir()) == there
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    if tables:
        assert history(folder).equals(a_table(3))


def test_a_fit_that_two_processes_train(tmp_path: Path) -> None:
    """One begins when the other has finished in the meantime, or is about to: neither undoes the other."""
    folder = ADDRESS.folder(tmp_path)
    runs.start(tmp_path, make_record("running"))
    said = (folder / "run.json").stat().st_mtime_ns
    runs.start(tmp_path, make_record("running"))
    assert (folder / "run.json").stat().st_mtime_ns == said
    runs.finish(tmp_path, make_record(), {"history": a_table(3)})
    runs.start(tmp_path, make_record("running"))
    assert runs.read_record(folder) == written(make_record(), folder)
    runs.finish(tmp_path, make_record(), {"history": a_table(3)})
    assert history(folder).equals(a_table(3))


def test_what_is_being_written_is_no_fit(tmp_path: Path) -> None:
    runs.finish(tmp_path, make_record(), {"history": a_table(3)})
    (folder,) = runs.find(tmp_path)
    shutil.copytree(folder, folder.with_name(f".partial-00000000-1-{folder.name}"))
    assert list(runs.find(tmp_path)) == [folder]


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"not parquet at all, though long enough"])
def test_history_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "history.parquet").write_bytes(content)
    with pytest.raises(InputError) as caught:
        history(tmp_path)
    assert str(tmp_path / "history.parquet") in str(caught.value)
    assert "\n" not in str(caught.value)


# -- finding and reading ---------------------------------------------------------------------------


def test_find_in_order_and_no_deeper_than_a_run(tmp_path: Path) -> None:
    addresses = [
        replace(ADDRESS, study=study, objective=objective, fold=fold, replicate=replicate)
        for study in ("b", "a")
        for objective in ("vi", "fo")
        for fold in (10, 2)
        for replicate in (2, 1)
    ]
    for address in addresses:
        runs.write_record(tmp_path, replace(make_record(), address=address))
    inside = addresses[0].folder(tmp_path) / "notes"
    inside.mkdir()
    (inside / "run.json").write_text("{}")
    (tmp_path / "a" / "empty").mkdir()
    (tmp_path / "a" / "summary.csv").write_text("x\n")
    found = list(runs.find(tmp_path))
    assert found == sorted(address.folder(tmp_path) for address in addresses)
    assert len(found) == 16
    assert list(runs.find(tmp_path / "a")) == [
        path for path in found if path.relative_to(tmp_path).parts[0] == "a"
    ]
    assert list(runs.find(found[3])) == [found[3]]
    assert list(runs.find(tmp_path / "absent")) == []


@pytest.mark.parametrize("name", ["history", "parameters", "effects", "random_effects"])
def test_folders_read_as_one_hive_partitioned_table(tmp_path: Path, model: Model, name: str) -> None:
    """Another reader, without any code of ours, finds which fit a row belongs to from its path."""
    objectives = {"fo": Fo(), "mse": Mse()}
    fits = [(1, 1), (1, 2), (2, 1), (2, 2)]
    population = make_population(4, len(fits))
    covariates = {"weight": Covariate(150.0, 70.0, "kg"), "vwf": Covariate(350.0, 100.0, "IU/dL")}
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    rows = {}
    for label, objective in objectives.items():
        streams = [Stream(0, *fit) for fit in fits]
        trained = train(model, objective, population, streams, adam, Course(2, 1), torch.float64)
        made = tables(
            model,
            objective,
            population,
            population,
            trained,
            covariates,
            None,
            Reported(runs.Units("IU/dL", 100.0, "IU/mL", "IU")),
        )
        for (fold, replicate), of_fit in zip(fits, made, strict=True):
            variant = "epochs-2+objective.samples-1"
            record = make_record(objective=label, fold=fold, replicate=replicate, variant=variant)
            runs.finish(tmp_path, record, of_fit)
            if name in of_fit:
                rows[label, fold, replicate, variant] = of_fit[name].num_rows
    files = [str(path) for path in sorted(tmp_path.glob(f"**/{name}.parquet"))]
    assert len(files) == len(rows)
    read = pyarrow.dataset.dataset(files, partitioning="hive").to_table()
    keys = [read[key].to_pylist() for key in ("objective", "fold", "replicate", "variant")]
    found = list(zip(*keys, strict=True))
    assert {key: found.count(key) for key in set(found)} == rows


# -- damage ----------------------------------------------------------------------------------------


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_bit_of_a_table_can_change_unnoticed(tmp_path: Path) -> None:
    """Its end too, where the names of columns are."""
    folder = ADDRESS.folder(tmp_path)
    record = runs.finish(tmp_path, replace(make_record(), tables=["history"]), {"history": a_table(3)})
    path = folder / "history.parquet"
    content = path.read_bytes()
    assert runs.read_finished(folder, record.config_hash) == record
    for bit in range(0, 8 * len(content), 7):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(InputError, match=f"{path}: cannot be read"):
            runs.read_finished(folder, record.config_hash)
        assert runs.read_finished(folder, "another configuration") == record
        with pytest.raises(InputError, match="has changed since it was written"):
            history(folder)


def test_a_fit_that_another_process_replaces_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same one, between the reading of its record and of its table, as copies of one command do."""
    folder, later = ADDRESS.folder(tmp_path), replace(make_record(), tables=["history"], seconds=2.0)
    first = runs.finish(tmp_path, replace(later, seconds=1.0), {"history": a_table(3)})
    read_table, written = runs.read_table, []

    def replacing(folder: Path, record: runs.Record, name: str) -> pa.Table:
        if record == first:
            written.append(runs.finish(tmp_path, later, {"history": a_table(4)}))
        return read_table(folder, record, name)

    monkeypatch.setattr("medcm_cli.runs.folder.read_table", replacing)
    assert [runs.read_finished(folder, later.config_hash)] == written
    assert written[0].hashes != first.hashes


def test_no_bit_of_a_page_can_change_unnoticed_in_a_table_of_no_record(tmp_path: Path) -> None:
    """Such as that of standard errors: a checksum of each page is in the file itself."""
    path = tmp_path / "uncertainty.parquet"
    table = pa.table({"value": np.random.default_rng(0).standard_normal(64)})
    runs.write_table(path, table)
    content = path.read_bytes()
    column = pyarrow.parquet.read_metadata(path).row_group(0).column(0)
    page = content.index(b"\x28\xb5\x2f\xfd")  # a frame of zstd begins so
    assert page < column.dictionary_page_offset + column.total_compressed_size
    for bit in range(8 * page, 8 * (page + 200), 3):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(InputError, match=str(path)):
            runs.read_parquet(path)
    path.write_bytes(content)
    assert runs.read_parquet(path).column("value").equals(table.column("value"))


def test_a_table_of_before_has_neither_and_is_read(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(a_table(), tmp_path / "history.parquet")
    assert history(tmp_path).equals(a_table())


@pytest.mark.parametrize("name", ["history", "parameters", "random_effects", "effects"])
def test_another_table_in_its_place_is_named(tmp_path: Path, name: str) -> None:
    pyarrow.parquet.write_table(pa.table({"x": [1.0]}), tmp_path / f"{name}.parquet")
    with pytest.raises(
        InputError, match=f"{name}.parquet: is no table of {name.replace('_', ' ')}: has no column"
    ):
        runs.read_table(tmp_path, make_record(), name)
