"""Virtual haemophilia A patients with their truth: covariates, doses, true PK, random effects, samples and
noise."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from torch import Tensor

from medcm_cli.checks import whole
from medcm_cli.data.folds import bootstrap
from medcm_cli.data.sheet import FloatArray
from medcm_cli.errors import InputError
from medcm_cli.files import from_json, replaced, write_text
from medcm_cli.haemophilia.covariates import Covariates, draw_covariates, truncated_normal
from medcm_cli.model import Network
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk import Schedule, solve, two_compartment

SAMPLE_TIMES = ((4.0, 1.5), (24.0, 4.0), (48.0, 4.0))  # mean, sd, h; truncated above 0
_TRUE_UNITS = {"weight": "kg", "vwf": "IU/dL"}
MINUTE = 1 / 60  # h, of a dose
DOSE_PER_KG, VIAL = 25.0, 250.0  # IU/kg, IU
MOST = 10_000_000  # patients, or training sets
CHUNK = 100_000  # patients in memory at a time


@dataclass(frozen=True)
class Truth:
    """Population truth: ``omega`` covariance of (eta_CL, eta_V1), ``sigma`` IU/mL, ``q`` L/h, ``v2`` L
    (docs/methods.md, "Truth of the simulation study")."""

    omega: tuple[tuple[float, float], tuple[float, float]] = ((0.037, 0.0113), (0.0113, 0.017))
    sigma: float = 0.03
    q: float = 0.15
    v2: float = 0.75


@dataclass(frozen=True)
class Settings:
    """What determines every byte of a simulated data set."""

    n: int = 500
    seed: int = 0
    folds: int = 20
    fold_size: int = 60

    def __post_init__(self) -> None:
        for name, low, most in (
            ("n", 1, MOST),
            ("seed", 0, None),
            ("folds", 0, MOST),
            ("fold_size", 1, MOST),
        ):
            whole(f"simulate: {name}", getattr(self, name), low, most)


def typical_parameters(weight: FloatArray, vwf: FloatArray, truth: Truth) -> dict[str, FloatArray]:
    """True typical parameters of the simulation study.

    :param weight: kg, any shape. :param vwf: VWF:Ag, IU/dL, the same shape.
    :returns: CL and Q (L/h), V1 and V2 (L), of that shape.
    """
    a, b = 1 / 20, 1 / 10
    x = 100 - vwf
    leaky_softplus = a * x + (1 - a) * np.logaddexp(0, b * x) / b
    return {
        "CL": 0.1 * (weight / 70) ** 0.75 * (leaky_softplus / 55 + 0.9),
        "V1": 2 * (weight / 70),
        "Q": np.full_like(weight, truth.q),
        "V2": np.full_like(weight, truth.v2),
    }


@dataclass(frozen=True)
class TrueParameters(Network):
    """The simulation study's true typical parameters, in place of a network: nothing is trained."""

    covariates: Mapping[str, Mapping[str, object]]
    truth: Truth = field(default_factory=Truth)

    def __post_init__(self) -> None:
        units = {name: entry["unit"] for name, entry in self.covariates.items()}
        for name, unit in _TRUE_UNITS.items():
            if units.get(name) != unit:
                raise InputError(
                    f"network=truth needs the covariate {name} in {unit}; the dataset has "
                    f"{', '.join(f'{name} in {unit}' for name, unit in units.items()) or 'no covariates'}"
                )

    @property
    def parameters(self) -> tuple[str, ...]:
        """See ``Network.parameters``."""
        return "CL", "V1", "Q", "V2"

    @property
    def inputs(self) -> tuple[str, ...]:
        """See ``Network.inputs``."""
        return tuple(_TRUE_UNITS)

    @property
    def effects(self) -> tuple[tuple[str, str], ...]:
        """See ``Network.effects``."""
        return ("weight", "CL"), ("weight", "V1"), ("vwf", "CL")

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Nothing."""
        del streams, dtype
        return {}

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Network.typical``; computed in double precision."""
        del values
        weight, vwf = (covariates[name] for name in _TRUE_UNITS)
        zeta = typical_parameters(weight.double().numpy(), vwf.double().numpy(), self.truth)
        return {name: torch.from_numpy(np.asarray(value)).to(weight.dtype) for name, value in zeta.items()}


def levels(
    time: FloatArray, start: FloatArray, duration: FloatArray, amount: FloatArray, z: dict[str, FloatArray]
) -> FloatArray:
    """Concentrations of the two-compartment model.

    :param time: of the samples of n patients, (samples, n), h.
    :param start: when each dose begins, (doses, n), h; ``duration`` likewise.
    :param amount: of each dose, (doses, n), IU; 0 for none.
    :param z: CL and Q (L/h), V1 and V2 (L), (n,) each.
    :returns: (samples, n), IU/mL.
    """

    def tensor(values: FloatArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values))[..., None, :, None]

    schedule = Schedule.build(*map(tensor, (time, start, duration, amount)))
    predicted = solve(two_compartment(), schedule, {name: tensor(values) for name, values in z.items()})
    return np.asarray(predicted[:, 0, :, 0].numpy(), dtype=np.float64)


def write_study(folder: Path, settings: Settings, progress: Callable[[int], None] | None = None) -> None:
    """Write a simulated data set, in the layout of the published one, so that either can be read by the same
    code.

    ``simulation.parquet`` and ``simulation.csv``: one dose row and three observations per patient,
    concentrations in IU/mL, with the true PRED (``pred``) and IPRED (``ipred``); ``truth.parquet``: each
    patient's random effects and parameters; ``truth.json``: population truth and settings;
    ``train_set_k.csv``: 1-based patient numbers of fold k. The folder appears whole or not at all.
    """
    truth = Truth()
    with replaced(folder) as partial:
        partial.mkdir()
        events = pa.schema([(name, _TYPES.get(name, pa.float64())) for name in _EVENT_COLUMNS])
        with (
            pyarrow.parquet.ParquetWriter(partial / "simulation.parquet", events) as parquet,
            pyarrow.csv.CSVWriter(partial / "simulation.csv", events, write_options=_UNQUOTED) as csv,
            pyarrow.parquet.ParquetWriter(partial / "truth.parquet", _TRUTH_SCHEMA) as truths,
        ):
            for chunk, start in enumerate(range(0, settings.n, CHUNK)):
                size = min(CHUNK, settings.n - start)
                generator = np.random.default_rng([settings.seed, chunk])
                rows, individual = _patients(start, size, generator, truth)
                table = pa.table(rows, schema=events)
                parquet.write_table(table)
                csv.write_table(table)
                truths.write_table(pa.table(individual, schema=_TRUTH_SCHEMA))
                if progress:
                    progress(start + size)
        for fold in range(1, settings.folds + 1):
            drawn = bootstrap(fold, settings.n, settings.fold_size, settings.seed).train + 1
            (partial / f"train_set_{fold}.csv").write_text("idxs\n" + "\n".join(map(str, drawn)) + "\n")
        write_text(
            partial / "truth.json",
            json.dumps({"settings": asdict(settings), **asdict(truth)}, indent=2) + "\n",
        )


def settings_of(folder: Path) -> Settings | None:
    """The settings that a folder was simulated with, None where it holds no simulated data set."""
    try:
        return Settings(**from_json((folder / "truth.json").read_text(), folder)["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_whole(folder: Path, settings: Settings) -> bool:
    """Whether every file of a simulated data set is still there."""
    folds = (f"train_set_{fold}.csv" for fold in range(1, settings.folds + 1))
    names = ("simulation.parquet", "simulation.csv", "truth.parquet", *folds)
    return all((folder / name).is_file() for name in names)


_EVENT_COLUMNS = (
    *("id", "time", "dv", "mdv", "amt", "rate", "duration"),
    *("age", "ht", "wt", "bgo", "vwf", "pred", "ipred"),
)
_UNQUOTED = pyarrow.csv.WriteOptions(quoting_style="none")
_TYPES = {"id": pa.string(), "mdv": pa.int8(), "bgo": pa.int8()}
_TRUTH_SCHEMA = pa.schema(
    [("id", pa.string()), *((name, pa.float64()) for name in ("eta_CL", "eta_V1", "CL", "V1", "Q", "V2"))]
)


def _patients(
    start: int, n: int, generator: np.random.Generator, truth: Truth
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Event rows and individual truth of patients ``start`` + 1 .. ``start`` + ``n``."""
    covariates = draw_covariates(n, generator)
    eta = np.linalg.cholesky(np.asarray(truth.omega)) @ generator.standard_normal((2, n))
    means = np.array([[mean] for mean, _ in SAMPLE_TIMES])
    sds = np.array([[sd] for _, sd in SAMPLE_TIMES])
    draws = [truncated_normal(n, -mean / sd, np.inf, generator) for mean, sd in SAMPLE_TIMES]
    # Sorted, since the later samples can change places: about one patient in 100 000.
    time = np.sort(means + sds * np.stack(draws), axis=0)
    dose = np.maximum(np.round(DOSE_PER_KG * covariates.weight / VIAL), 1) * VIAL
    zeta = typical_parameters(covariates.weight, covariates.vwf, truth)
    individual = {**zeta, "CL": zeta["CL"] * np.exp(eta[0]), "V1": zeta["V1"] * np.exp(eta[1])}
    at_once = np.zeros((1, n)), np.full((1, n), MINUTE), dose[None]
    pred, ipred = (levels(time, *at_once, z) for z in (zeta, individual))
    dv = np.maximum(ipred + truth.sigma * generator.standard_normal(ipred.shape), 0.0)
    ids = pa.array([f"virtual_{number}" for number in range(start + 1, start + n + 1)])
    truths = {"id": ids, "eta_CL": pa.array(eta[0]), "eta_V1": pa.array(eta[1])}
    truths |= {name: pa.array(values) for name, values in individual.items()}
    return _rows(ids, time, dose, dv, pred, ipred, covariates), truths


def _rows(
    ids: pa.Array,
    time: FloatArray,
    dose: FloatArray,
    dv: FloatArray,
    pred: FloatArray,
    ipred: FloatArray,
    covariates: Covariates,
) -> dict[str, pa.Array]:
    """One dose row at time 0 and one row per sample for each patient; dose-only and sample-only cells are
    null."""
    n = len(dose)
    per = 1 + len(time)
    first = np.zeros((n, per), dtype=bool)
    first[:, 0] = True

    def column(
        at_dose: FloatArray | float, at_sample: FloatArray | float, null: str | None = None
    ) -> pa.Array:
        values = np.empty((n, per))
        values[:, 0] = at_dose
        values[:, 1:] = at_sample
        mask = {None: None, "dose": first, "sample": ~first}[null]
        return pa.array(values.ravel(), mask=None if mask is None else mask.ravel())

    def repeated(values: FloatArray) -> pa.Array:
        return pa.array(np.repeat(values, per))

    return {
        "id": ids.take(pa.array(np.repeat(np.arange(n), per))),
        "time": column(0.0, time.T),
        "dv": column(0.0, dv.T, null="dose"),
        "mdv": pa.array(first.ravel().astype(np.int8)),
        "amt": column(dose, 0.0),
        "rate": column(dose / MINUTE, 0.0, null="sample"),
        "duration": column(MINUTE, 0.0, null="sample"),
        "age": repeated(covariates.age),
        "ht": repeated(covariates.height),
        "wt": repeated(covariates.weight),
        "bgo": repeated(covariates.blood_group_o).cast(pa.int8()),
        "vwf": repeated(covariates.vwf),
        "pred": column(0.0, pred.T, null="dose"),
        "ipred": column(0.0, ipred.T, null="dose"),
    }
