"""Batches that were in training when their process ended: where they are kept, and which there are."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medcm_cli import runs
from medcm_cli.errors import InputError
from medcm_cli.files import remove
from medcm_cli.study.identity import versions
from medcm_cli.training.kept import Kept, batch_of

_FORM = 1  # of what is kept
_PREFIX = ".training-"


def kept_of(root: Path, records: Sequence[runs.Record]) -> Kept:
    """Where the batch of ``records`` is kept, beside the folders of its fits."""
    about = _about(records)
    name = hashlib.sha256(json.dumps(about["fits"]).encode()).hexdigest()[:16]
    return Kept(records[0].address.method_folder(root) / f"{_PREFIX}{name}.npz", about)


def _about(records: Sequence[runs.Record]) -> dict[str, Any]:
    return {"form": _FORM, "versions": dict(versions()), "fits": [_fit(record) for record in records]}


def _fit(record: runs.Record) -> list[Any]:
    return [record.address.where, record.config_hash]


def interrupted(
    root: Path, left: Sequence[runs.Record], done: Sequence[runs.Record], most: int | None
) -> tuple[list[list[runs.Record]], list[runs.Record]]:
    """Of the fits of a job that are ``left``, those that were in training, in the batches that they were in,
    of at most ``most`` fits; and the rest. A batch stays whole where some of it is ``done``, as where its
    process ended while it wrote: among fewer fits the others would come out otherwise, by rounding. Batches
    that have been finished are forgotten."""
    rest = {json.dumps(_fit(record)): record for record in left}
    known = {json.dumps(_fit(record)): record for record in done} | rest
    found, of_ours = [], _about([])
    for path in sorted(left[0].address.method_folder(root).glob(f"{_PREFIX}*.npz")):
        about = batch_of(path)
        try:
            fits = [json.dumps(fit) for fit in about["fits"]]
            alike = about == {**of_ours, "fits": about["fits"]}
        except (TypeError, KeyError):
            continue
        possible = alike and set(fits) <= set(known) and len(fits) <= (most or len(fits))
        if possible and set(fits) & set(rest):
            found.append([known.pop(fit) for fit in fits])
            rest = {fit: record for fit, record in rest.items() if fit in known}
        elif not set(fits) & set(rest) and _finished(path.parent, about["fits"]):
            remove(path)
    return found, list(rest.values())


def _finished(folder: Path, fits: Sequence[Any]) -> bool:
    """Whether all of some fits are, by whatever process."""
    try:
        for where, digest in fits:
            parts = [f"{name}={number}" for name, number in where.items()]
            record = runs.read_record(folder.joinpath(*parts))
            if record is None or record.status not in runs.FINISHED or record.config_hash != digest:
                return False
    except (InputError, TypeError, ValueError, AttributeError):
        return False
    return True
