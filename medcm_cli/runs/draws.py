"""The folder of draws that ``medcm posterior`` writes: what lies in it, and how it is written and read.

    outputs/<study>/posterior/<name>/
      draws.parquet        chain, draw, position, subject, eta_1 .., of occasions kappa_CL_1 .., diverging
      population.parquet   of population=joint: chain, draw, sigma_*, omega_*, rho_*, pi_*, lp, diverging
      diagnostics.parquet  a row per quantity: mean, sd, r_hat, ess_bulk, ess_tail, divergences
      posterior.json       status, configuration and its hash, data, subjects, versions, seconds, warnings

``subject`` is its number in the event table, from 1, as in a fit's random_effects.parquet; one that was drawn
twice for training stands twice, which ``position`` tells apart.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from medcm_cli.errors import InputError
from medcm_cli.files import from_json, replaced, write_text
from medcm_cli.runs.folder import check_name, hashes_of, read_parquet
from medcm_cli.runs.units import Units, columns, write_table

RECORD = "posterior.json"
_POPULATION = ("sigma_", "omega_", "rho_", "pi_")


@dataclass(frozen=True)
class Draws:
    """Draws of NUTS: ``eta`` (S, N, K), chain by chain, of ``subjects`` (N,), the numbers of those sampled,
    from 1; ``population`` its population parameters' draws by name, (S,) each, in the units of the model,
    none where they were known; ``fingerprint`` of the data."""

    eta: npt.NDArray[np.float64]
    subjects: npt.NDArray[np.int64]
    population: dict[str, npt.NDArray[np.float64]]
    fingerprint: str


def folders(study: Path) -> list[Path]:
    """The folders of draws below the folder of a study."""
    return sorted(path.parent for path in study.glob(f"posterior/*/{RECORD}"))


def read(folder: Path) -> Draws:
    """What `medcm posterior` wrote. :raises InputError: not a folder of draws, or a damaged one."""
    try:
        record = from_json((folder / RECORD).read_text(encoding="utf-8"), folder / RECORD)
        hashes = dict(record.get("hashes", {}))
        table = read_parquet(folder / "draws.parquet", hashes.get("draws")).to_pandas()
        joint = folder / "population.parquet"
        population = pd.DataFrame()
        if joint.is_file():
            population = read_parquet(joint, hashes.get("population")).to_pandas()
        fingerprint = str(record["data"]["fingerprint"])
        place = ["chain", "draw"]
        size = len(table) // len(table[place].drop_duplicates())
        ordered = table.sort_values([*place, "position"])
        names = sorted((n for n in map(str, table) if n.startswith("eta_")), key=lambda n: int(n[4:]))
        eta = ordered[names].to_numpy(np.float64).reshape(-1, size, len(names))
        subjects = ordered["subject"].to_numpy()[:size]
    except (OSError, AttributeError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: holds no draws of `medcm posterior` ({reason})") from error
    kept = [name for name in map(str, population) if name.startswith(_POPULATION)]
    return Draws(eta, subjects, {n: population[n].to_numpy(np.float64) for n in kept}, fingerprint)


def write(folder: Path, tables: Mapping[str, pa.Table], record: Mapping[str, Any], units: Units) -> None:
    """All of a posterior or nothing. :param tables: draws, diagnostics and, where sampled, population."""
    with replaced(folder) as partial:
        partial.mkdir()
        for name, table in tables.items():
            write_table(partial / f"{name}.parquet", table, columns(name, units.named))
        about = {"tables": list(tables), "hashes": hashes_of(partial, tables)}
        write_text(partial / RECORD, json.dumps({**record, **about}, indent=1) + "\n")


def is_done(folder: Path, digest: str, described: Mapping[str, Any]) -> bool:
    """Whether a folder holds this very posterior, whole.

    :param digest: the hash of its configuration and data. :param described: its configuration.
    :raises InputError: it holds another one.
    """
    try:
        held = from_json((folder / RECORD).read_text(encoding="utf-8"), folder / RECORD)
        same, config = held["config_hash"] == digest, dict(held["config"])
        for name in held["tables"]:
            read_parquet(folder / f"{check_name('tables', name)}.parquet", held.get("hashes", {}).get(name))
    except FileNotFoundError:
        return False
    except (AttributeError, ValueError, KeyError, TypeError, OSError):
        return False  # damaged: sample it again
    if not same:
        differ = [key for key in described if config.get(key) != described[key]]
        what = differ[0] if differ else "its data"
        raise InputError(
            f"{folder}: holds another posterior ({what} differs); give this one its own name with name=..., "
            "or overwrite=true"
        )
    return True
