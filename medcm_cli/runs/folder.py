"""The run folder: where a fit's results lie, what they are, and how they are written and read. Nothing else
touches them.

    outputs/<study>/dataset=simulated/objective=vi/error=additive/lr=0.1/variant=default/fold=01/replicate=1/
      run.json                status, failure, seconds, versions, seed, truth, resolved configuration and hash
      history.parquet         a row per checkpoint: epoch, objective_value, rmse, omega_*, rho_*, sigma_*, kl
      parameters.parquet      every trained value at every checkpoint: epoch, name, index, value
      random_effects.parquet  a row per training subject: mean and covariance of eta
      effects.parquet         learned covariate effects at every checkpoint

A fit of a nested split has ``outer=03/inner=07/`` in place of ``fold=01/``. Where covariates were prepared,
``dataset=.../preparation.parquet`` says how each value of each subject came about.

The tables are Hive-partitioned Parquet, which pyarrow, DuckDB and Polars read as one table. A finished fit's
folder appears whole, in place of one that holds ``run.json`` alone: a folder whose status is neither complete
nor failed is unfinished, whatever else lies in it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from medcm_cli.checks import number
from medcm_cli.errors import InputError
from medcm_cli.files import from_json, one_line, remove_partial, replaced, write_text
from medcm_cli.runs.checkpoints import tail_rows
from medcm_cli.runs.units import write_table

RECORD = "run.json"
FINISHED = ("complete", "failed")
SWEEP = ("study", "dataset")
METHOD = ("objective", "error", "learning_rate", "variant")
ALIKE = (*SWEEP, *METHOD)
"""The fields of an address that fits share which differ in their data rows and random numbers only."""
# What a table must have to be the one that its file's name says; others follow from the model.
_COLUMNS = {
    "history": ("epoch", "objective_value", "rmse"),
    "parameters": ("epoch", "name", "index", "value"),
    "random_effects": ("subject", "eta_1", "cov_11"),
    "effects": ("epoch",),
}
_LONGEST_NAME = 200  # bytes; a folder's name, variant=NAME, holds 255


@dataclass(frozen=True)
class Address:
    """What a fit is; its folder follows from it."""

    study: str
    dataset: str
    objective: str
    error: str
    learning_rate: float
    variant: str
    fold: int  # its number; of one in a nested split (outer - 1) x inner folds + inner
    replicate: int
    outer: int | None = None
    inner: int | None = None

    @property
    def sweep(self) -> tuple[str, str]:
        """What fits of one study and data set share, ``SWEEP``."""
        return self.study, self.dataset

    @property
    def method(self) -> tuple[str, str, float, str]:
        """What fits of a sweep share that are alike, ``METHOD``."""
        return self.objective, self.error, self.learning_rate, self.variant

    @property
    def alike(self) -> tuple[str, str, str, str, float, str]:
        """What fits that are alike share, ``ALIKE``."""
        return (*self.sweep, *self.method)

    @property
    def where(self) -> dict[str, str]:
        """The fit's place among those that are alike, as its last folders have it."""
        if self.outer is None or self.inner is None:
            return {"fold": f"{self.fold:02d}", "replicate": str(self.replicate)}
        return {
            "outer": f"{self.outer:02d}",
            "inner": f"{self.inner:02d}",
            "replicate": str(self.replicate),
        }

    @property
    def place(self) -> str:
        """The same in words."""
        return ", ".join(f"{key} {int(number)}" for key, number in self.where.items())

    @property
    def within(self) -> str:
        """The fit's folder below that of its method."""
        return "/".join(f"{key}={value}" for key, value in self.where.items())

    def folder(self, root: Path) -> Path:
        """The fit's folder below ``root``."""
        return self.method_folder(root) / self.within

    def method_folder(self, root: Path) -> Path:
        """That of all fits that are alike."""
        rate = self.learning_rate
        parts = {
            "dataset": self.dataset,
            "objective": self.objective,
            "error": self.error,
            "lr": next(text for text in (f"{rate:g}", repr(rate)) if float(text) == rate),
            "variant": self.variant,
        }
        return root.joinpath(self.study, *(f"{key}={value}" for key, value in parts.items()))


def study_folder(folder: Path, address: Address) -> Path | None:
    """The folder of its study above that of a fit; None where it does not lie as ``Address.folder`` puts it,
    as one that was copied by itself."""
    below, here = address.folder(Path()).parts[1:], folder.resolve()
    return here.parents[len(below) - 1] if here.parts[-len(below) :] == below else None


def check_name(option: str, value: str) -> str:
    """A name that can stand in a path and in a line of text. :raises InputError: otherwise."""
    if not value or value.startswith(".") or any(c in "/\\" for c in value) or value != one_line(value):
        raise InputError(
            f"{option} is {value!r}; expected a name without slashes and control characters that does not "
            "start with a dot"
        )
    if len(value.encode()) > _LONGEST_NAME:
        raise InputError(f"{option} is {value!r}; expected at most {_LONGEST_NAME} bytes")
    return value


@dataclass(frozen=True)
class Record:
    """The contents of ``run.json``."""

    status: str  # running, complete or failed
    address: Address
    config_hash: str
    config: dict[str, Any]
    data: dict[str, Any]  # source, fingerprint, number of subjects and their characteristics
    truth: dict[str, Any] | None
    seed: int
    versions: dict[str, str]
    tables: list[str] = field(default_factory=list)  # names of the fit's Parquet files, once it has finished
    hashes: dict[str, str] = field(default_factory=dict)  # of these, name -> ``fingerprint``; none of before
    failure: dict[str, Any] | None = None  # epoch and cause
    batch: dict[str, Any] = field(default_factory=dict)  # fits trained together and their training seconds
    redraws: int = 0  # initialisations given up because their first gradient was not finite
    unconverged_modes: float = 0.0  # largest share of subjects without a converged mode at a checkpoint
    seconds: float = 0.0  # batch seconds divided by the batch's fits
    convergence: dict[str, Any] | None = None  # converged, epoch, rule, error; none where not asked
    described: dict[str, Any] | None = None  # what the objective says of itself (runs.description)


def config_hash(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """A short hash of everything that determines a result: configuration and data."""
    text = json.dumps([config, data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(paths: list[Path]) -> str:
    """A short hash of the contents of files."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return _joint(digests)


def _joint(digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def read_record(folder: Path) -> Record | None:
    """The record of a fit's folder, None where there is none.

    :raises InputError: the file is there and is not a record.
    """
    path = folder / RECORD
    try:
        content = from_json(path.read_text(encoding="utf-8"), "the file")
        record = Record(**{**content, "address": Address(**content["address"])})
        for part in (record, record.address):
            _check_types(part)
        _check_names(record)
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise InputError(f"{path}: is not a run record ({' '.join(str(error).split())})") from error


def _check_types(part: Record | Address) -> None:
    """:raises TypeError: a value of another type than its field's."""
    for one in fields(part):
        kinds = get_args(one.type) if isinstance(one.type, UnionType) else (one.type,)
        wanted = {get_origin(kind) or kind for kind in kinds}
        wanted |= {int} if float in wanted else set()
        value = getattr(part, one.name)
        if type(value) not in wanted:
            raise TypeError(f"{one.name} is {value!r}")


def _check_names(record: Record) -> None:
    """:raises InputError: names of a record that lead out of the folders which are theirs."""
    address = record.address
    for option in ("study", "dataset", "variant"):
        check_name(f"address.{option}", getattr(address, option))
    for option in ("objective", "error"):  # choices may lie in folders inside one another
        for part in str(getattr(address, option)).split("/"):
            check_name(f"address.{option}", part)
    number("address.learning_rate", address.learning_rate, above=0)
    for name in record.tables:
        check_name("tables", name if isinstance(name, str) else "")


def read_finished(folder: Path, digest: str) -> Record | None:
    """The record of a finished fit, None where there is none; one of the configuration ``digest`` is whole:
    every table is what the fit wrote or, where its record does not say what that is, can be read, and a
    complete fit has estimates.

    Another process may replace the fit by the same one between the reading of its record and of its tables,
    which is then read again.

    :raises InputError: a file is damaged, or a complete fit has no estimates.
    """
    while True:
        record = read_record(folder)
        if record is None or record.status not in FINISHED:
            return None
        try:
            for name in record.tables if record.config_hash == digest else ():
                table = read_table(folder, record, name)
                if name == "history" and record.status == "complete":
                    estimate_rows(folder, record, table["epoch"].to_numpy())
            return record
        except InputError:
            if read_record(folder) == record:
                raise


def estimate_rows(
    folder: Path, record: Record, epoch: npt.NDArray[Any], tail: int | None = None
) -> npt.NDArray[np.int64]:
    """The rows of a fit's table that its estimates are the mean of, ``tail_rows`` of the last ``tail``
    epochs, by default of as many as it was configured with.

    :raises InputError: a fit of before that was trained, and kept only the checkpoint before training.
    """
    stop = (record.config.get("training") or {}).get("stop")
    trained = stop != "start" and record.config.get("epochs", 1) > 1
    if record.status == "complete" and trained and not np.any(epoch > 0):
        raise InputError(
            f"{folder}: has one checkpoint, of epoch 0, and so no estimates: earlier versions did not keep "
            "the last epoch; the same `medcm fit` trains it again"
        )
    return tail_rows(epoch, record.config.get("tail") if tail is None else tail)


def write_record(root: Path, record: Record) -> None:
    """Write ``run.json`` alone."""
    _write(record.address.folder(root), record)


def start(root: Path, record: Record) -> None:
    """Mark a fit as running. A finished one that it is to replace stays as it is until ``finish``, and so
    does the mark of another process that trains the very same."""
    folder = record.address.folder(root)
    remove_partial(folder.parent)
    remove_partial(folder)
    if _marked(folder, record):
        return
    with replaced(folder, keep=True) as partial:
        partial.mkdir()
        _write(partial, record)
    if not _marked(folder, record):  # what lies there is of something else, and no longer valid
        (folder / RECORD).unlink(missing_ok=True)
        for path in folder.glob("*.parquet"):
            path.unlink(missing_ok=True)
        _write(folder, record)


def _marked(folder: Path, record: Record) -> bool:
    """Whether a folder holds a finished fit or says that this one is running."""
    try:
        found = read_record(folder)
    except InputError:
        return False
    return found is not None and (found.status in FINISHED or found.config_hash == record.config_hash)


def _write(folder: Path, record: Record) -> None:
    write_text(folder / RECORD, json.dumps(asdict(record), indent=1) + "\n")


def finish(root: Path, record: Record, tables: Mapping[str, pa.Table]) -> Record:
    """A fit's folder with its tables and its record, which appears whole; returns the record, with the hashes
    of the tables."""
    with replaced(record.address.folder(root)) as partial:
        partial.mkdir()
        for name, table in tables.items():
            write_table(partial / f"{name}.parquet", table)
        written = replace(record, hashes=hashes_of(partial, tables))
        _write(partial, written)
    return written


def hashes_of(folder: Path, tables: Iterable[str]) -> dict[str, str]:
    """Name -> hash of the tables in a folder, as a record has them."""
    return {name: fingerprint([folder / f"{name}.parquet"]) for name in tables}


def write_preparation(root: Path, record: Record, table: pa.Table) -> None:
    """Write how the covariates of a study's dataset came about, once beside all its fits."""
    address = record.address
    write_table(root / address.study / f"dataset={address.dataset}" / "preparation.parquet", table)


def separate(roots: Sequence[Path]) -> list[Path]:
    """Folders of which none is another or in another. :raises InputError: one is not there, or is a file."""
    for root in roots:
        if not root.is_dir():
            what = "is a file" if root.exists() else "no such folder"
            raise InputError(f"{root}: {what}; expected a folder that `medcm fit` wrote, or one above")
    distinct = {root.resolve(): root for root in roots}
    return [root for full, root in distinct.items() if not set(full.parents) & set(distinct)]


def find(*roots: Path) -> Iterator[Path]:
    """Folders of fits below ``roots`` (``separate``), of each in the order of their paths, found without
    holding them all."""
    for folder, subfolders, files in visited(roots):
        if RECORD in files:
            yield folder
            subfolders.clear()


def visited(roots: Sequence[Path]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As ``os.walk``, in the order of paths, of all of ``roots`` and without what is being written, which
    begins with a dot. Symbolic links are followed, but for those to a place that is, holds or lies in one
    that is visited anyway: no fit is met twice, and no circle is run round."""
    places = {root.resolve() for root in roots}
    for root in roots:
        for name, below, files in os.walk(root, followlinks=True):
            folder = Path(name)
            below[:] = sorted(
                part for part in below if not part.startswith(".") and _to_visit(folder / part, places)
            )
            yield folder, below, files


def _to_visit(path: Path, places: set[Path]) -> bool:
    if not path.is_symlink():
        return True
    target = path.resolve()
    if any(place in (target, *target.parents) or target in place.parents for place in places):
        return False
    places.add(target)
    return True


def read_table(folder: Path, record: Record, name: str, columns: list[str] | None = None) -> pa.Table:
    """One of a fit's tables, as its file has it, or some of its ``columns``.

    :raises InputError: absent or damaged, or another table in its place.
    """
    path = folder / f"{name}.parquet"
    table = read_parquet(path, record.hashes.get(name), columns)
    absent = [column for column in _COLUMNS.get(name, ()) if column not in table.column_names]
    if absent and columns is None:
        raise InputError(f"{path}: is no table of {name.replace('_', ' ')}: has no column {absent[0]!r}")
    return table


def read_parquet(path: Path, digest: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file, or some of its ``columns``. Page checksums, which files of older versions have not, are
    verified; they leave out a file's end, where the names of columns are, so that a hash is better.

    :param digest: the hash that it was recorded with (``fingerprint``).
    :raises InputError: absent or damaged.
    """
    try:
        content = path.read_bytes()
        if digest is not None and _joint([hashlib.sha256(content).digest()]) != digest:
            raise InputError(f"{path}: cannot be read (it has changed since it was written: another SHA-256)")
        file = pyarrow.parquet.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        return file.read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
