"""What a study is to consist of: the fits of each job of ``medcm fit``, written before the first is trained.

    outputs/<study>/planned/<hash>.json     a method's address, and the folds and replicates of a job

A job that is given again is the same file. One that is not wanted any more is removed with its file.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medcm_cli.errors import InputError
from medcm_cli.files import from_json, write_text
from medcm_cli.runs.folder import METHOD, Address

FOLDER = "planned"


def plan(root: Path, first: Address, axes: Mapping[str, Sequence[int]]) -> Path | None:
    """Write down a job; returns the file, None where it is there already.

    :param first: of any of its fits.
    :param axes: fold, or outer and inner, and replicate -> numbers, of which it has every combination.
    """
    method = {name: getattr(first, name) for name in ("dataset", *METHOD)}
    text = json.dumps({"method": method, "axes": {name: list(numbers) for name, numbers in axes.items()}})
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = root / first.study / FOLDER / f"{name}.json"
    if path.exists():
        return None
    write_text(path, text + "\n")
    return path


def planned(path: Path) -> Iterator[tuple[str, str]]:
    """The fits of a job by its file: the folder of the method below that of the study, and that of the fit
    below it. A job that is no longer wanted has none.

    :raises InputError: the file is damaged, or none that ``plan`` wrote.
    """
    try:
        content = from_json(path.read_text(encoding="utf-8"), path)
        axes: Mapping[str, Any] = content["axes"]
        for numbers in itertools.product(*axes.values()):
            of: dict[str, Any] = {"fold": 0, **dict(zip(axes, map(int, numbers), strict=True))}
            address = Address(study=".", **content["method"], **of)
            yield str(address.method_folder(Path())), address.within
    except FileNotFoundError:
        return
    except (OSError, InputError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is damaged"
        raise InputError(
            f"{path}: {why}; the fits of this job are not counted, until `medcm fit` has it again"
        ) from error
