"""What several test files build: small populations made by hand, configurations, and what objectives are
checked against."""

import copy
import functools
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from scipy.integrate import solve_ivp
from torch import Tensor

from medcm_cli.data import EventTable, Population
from medcm_cli.haemophilia.virtual import Settings
from medcm_cli.model import (
    CombinedVariancesError,
    ErrorModel,
    LogNormalError,
    Model,
    PowerError,
    ResidualError,
    StudentError,
    Values,
)
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk import Schedule
from medcm_cli.study.options import as_config, conf_dir

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
COVARIATES: dict[str, dict[str, Any]] = {
    "weight": {"column": "wt", "scale": 150, "reference": 70, "unit": "kg"},
    "vwf": {"column": "vwf", "scale": 350, "reference": 100, "unit": "IU/dL"},
}
MULTI_BRANCH = [
    {"inputs": ["weight"], "hidden": [12], "heads": ["CL", "V1"]},
    {"inputs": ["vwf"], "hidden": [12], "heads": ["CL"]},
]


def make_events(subjects: int, seed: int = 0, ragged: bool = False, doses: int = 1) -> EventTable:
    """Subjects with one dose at time 0 and more 12 h apart, about three observations each, plausible
    levels."""
    generator = np.random.default_rng(seed)
    rows = []
    for subject in range(subjects):
        for dose in range(doses):
            rows.append((subject, 12.0 * dose, True, 2000.0 / 0.5, 0.5, np.nan))
        for number in range(1 + subject % 3 if ragged else 3):
            time = 12.0 * doses + (4, 24, 48)[number] + generator.uniform(-1, 1)
            level = (0.5, 0.2, 0.08)[number] * np.exp(0.2 * generator.standard_normal())
            rows.append((subject, time, False, np.nan, np.nan, level))
    covariates = {
        "weight": generator.uniform(40, 110, subjects),
        "vwf": generator.uniform(50, 200, subjects),
    }
    return table_of([str(number) for number in range(subjects)], rows, covariates)


def table_of(
    ids: Sequence[str], rows: Sequence[tuple[float, ...]], covariates: dict[str, np.ndarray]
) -> EventTable:
    """From rows of subject, time, whether a dose, rate, duration, dv."""
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    subject, time, is_dose = columns[0].astype(np.int64), columns[1], columns[2].astype(bool)
    nothing = np.zeros(len(rows), dtype=np.int64)
    return EventTable(
        source="made by hand",
        ids=tuple(ids),
        subject=subject,
        time=time,
        clock=time,
        is_dose=is_dose,
        amount=columns[3] * columns[4],
        duration=columns[4],
        rated=nothing,
        added=nothing.astype(bool),
        interval=np.where(is_dose, np.inf, np.nan),
        dv=columns[5],
        censored=nothing.astype(bool),
        compartment=nothing - 1,
        segment=nothing,
        occasion=nothing + 1,
        regime=nothing - 1,
        endpoint=nothing,
        reset_subject=np.zeros(0, dtype=np.int64),
        reset_clock=np.zeros(0),
        reset_time=np.zeros(0),
        reset_shift=np.zeros(0),
        covariates=covariates,
    )


def make_population(
    subjects: int, fits: int, dtype: torch.dtype = torch.float64, **options: Any
) -> Population:
    """The same subjects in every fit; ``options`` are those of ``make_events``."""
    everyone = Population.from_events(make_events(subjects, **options), dtype)
    return everyone.select([np.arange(subjects)] * fits)


def schedule_of(population: Population) -> Schedule:
    """That of subjects who are all in one group."""
    assert isinstance(population.schedule, Schedule)
    return population.schedule


def dense_omega(values: dict[str, Tensor], fit: int) -> np.ndarray:
    """Omega of one fit with two random effects, from the raw values by numpy."""
    sd = np.log1p(np.exp(values["omega"][:, fit].detach().numpy()))
    rho = np.tanh(float(values["correlation"][0, fit]))
    return np.array([[sd[0] ** 2, rho * sd[0] * sd[1]], [rho * sd[0] * sd[1], sd[1] ** 2]])


SMALL = Settings(n=30, folds=3, fold_size=8)


@functools.cache
def composed(*choices: str) -> DictConfig:
    """The configuration with some groups chosen; Hydra takes a while for each."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(choices))


def configuration(data: Path | None, outputs: Path, *overrides: str) -> dict[str, Any]:
    """What `medcm fit` would hand to a job: short fits unless ``overrides`` say otherwise."""
    given = [f"outputs={outputs}", "epochs=4", "checkpoint_every=2", *overrides]
    if data is not None:
        given.append(f"dataset.path={data}")
    parsed = OverridesParser.create().parse_overrides(given)
    groups = {o.key_or_group: str(o.value()) for o in parsed if (conf_dir() / o.key_or_group).is_dir()}
    config = copy.deepcopy(composed(*(f"{group}={choice}" for group, choice in sorted(groups.items()))))
    for override in parsed:
        if override.key_or_group not in groups:
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    labels = {"objective": "vi", "error": "additive", "variant": ""}
    return as_config(config) | {"labels": {name: groups.get(name, label) for name, label in labels.items()}}


# Of the choices of conf/pk that do not list them.
PARAMETERS = {
    "one_compartment": "CL,V1",
    "one_compartment_oral": "CL,V1,KA",
    "two_compartment_oral": "CL,V1,Q,V2,KA",
    "three_compartment": "CL,V1,Q,V2,Q3,V3",
    "three_compartment_oral": "CL,V1,Q,V2,Q3,V3,KA",
    "absorption_zero_order": "CL,V1,D",
    "absorption_parallel": "CL,V1,KA,D,ODDS",
    "absorption_sequential": "CL,V1,KA,D,ODDS",
    "absorption_transit": "CL,V1,KA,NTR,MTT",
}


@functools.cache
def needs_of_models() -> dict[str, tuple[str, ...]]:
    """Choice of conf/pk -> the options of a network that has its parameters and reads no covariate."""
    parameters = dict(PARAMETERS)
    for path in sorted((conf_dir() / "pk").glob("*.yaml")):
        listed = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(listed, dict) and "parameters" in listed:
            parameters[path.stem] = ",".join(listed["parameters"])
    return {
        name: (
            "network=none",
            f"network.global_parameters=[{of}]",
            f"random_effects=[{','.join(of.split(',')[:2])}]",
            "dataset.truth=null",
        )
        for name, of in parameters.items()
    }


F64 = torch.float64


STREAMS = [Stream(3, 1, 1), Stream(3, 1, 2)]


ERRORS = {
    "additive": ("additive",),
    "proportional": ("proportional",),
    "combined": ("additive", "proportional"),
}


def with_error(model: Model, name: str) -> Model:
    return replace(model, error=ResidualError(ERRORS[name]))


def sd_of(model: Model, values: Values, f: np.ndarray, fit: int) -> np.ndarray:
    sigma = dict(
        zip(model.error.components, np.log1p(np.exp(values["sigma"][:, fit].detach().numpy())), strict=True)
    )
    return np.asarray(sigma.get("additive", 0.0) + sigma.get("proportional", 0.0) * f)


def at_eta(model: Model, values: Values, population: Population, eta: np.ndarray) -> np.ndarray:
    """Predictions (T, N, B) at eta (K, N, B)."""
    with torch.no_grad():
        zeta = model.typical(values, population)
        parts = [torch.as_tensor(part)[None] for part in eta]
        return model.predict(zeta, population, parts)[:, 0].numpy()


def slopes(model: Model, values: Values, population: Population, eta: np.ndarray) -> np.ndarray:
    """G (K, T, N, B) by central differences."""
    h = 1e-5
    shifts = [np.eye(2)[k][:, None, None] * h for k in range(2)]
    return np.stack(
        [
            (at_eta(model, values, population, eta + s) - at_eta(model, values, population, eta - s))
            / (2 * h)
            for s in shifts
        ]
    )


class LinearGaussian(Model):
    """y = offset + X eta + residual, with X and offset per subject; only the marginal likelihood knows the
    difference."""

    def design(self, population: Population) -> tuple[Tensor, list[Tensor]]:
        t, w = population.time, population.covariates["weight"]
        return 0.3 + 0.002 * w.expand_as(t), [torch.cos(t / 9) * w / 100, torch.sin(t / 7) + 0 * w]

    def predict(self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None) -> Tensor:
        del zeta
        offset, columns = self.design(population)
        return offset if eta is None else offset + columns[0] * eta[0] + columns[1] * eta[1]

    def linearise(
        self, zeta: Values, population: Population, eta: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        return self.predict(zeta, population, eta), self.design(population)[1]


def as_float(cell: object) -> float:
    """A cell of a table, which pandas' types allow to be anything."""
    assert isinstance(cell, int | float | np.number)
    return float(cell)


def amounts_after(
    slope: Callable[..., np.ndarray],
    span: tuple[float, float],
    amounts: np.ndarray,
    inflow: np.ndarray,
    *given: object,
    rtol: float = 1e-12,
    atol: float = 1e-10,
) -> np.ndarray:
    """A (states,) at the end of a span of time by scipy: dA/dt = slope(t, A, *given) + inflow."""
    course = solve_ivp(
        lambda t, a: slope(t, a, *given) + inflow, span, amounts, method="DOP853", rtol=rtol, atol=atol
    )
    return np.asarray(course.y[:, -1])


SHIFT = np.array([0.3, -0.4])


def write_draws(folder: Path, outputs: Path, count: int = 400) -> dict[str, np.ndarray]:
    """Draws with the very mean and covariance of replicate 1 of VI at its estimates, but for ``SHIFT``."""
    (run,) = outputs.glob("default/*/objective=vi/*/*/*/fold=01/replicate=1")
    q = pd.read_parquet(run / "random_effects.parquet")
    generator = np.random.default_rng(0)
    z = generator.standard_normal((count, len(q), 2))
    z -= z.mean(0)
    for n in range(len(q)):  # exactly white
        z[:, n] = np.linalg.solve(np.linalg.cholesky(np.cov(z[:, n].T)), z[:, n].T).T
    cov = q[["cov_11", "cov_21", "cov_21", "cov_22"]].to_numpy(np.float64).reshape(-1, 2, 2)
    eta = q[["eta_1", "eta_2"]].to_numpy(np.float64) + SHIFT
    eta = eta + np.einsum("nij,snj->sni", np.linalg.cholesky(cov), z)
    chain, draw, position = (a.ravel() for a in np.indices((2, count // 2, len(q))) + 1)
    table = {"chain": chain, "draw": draw, "position": position, "subject": np.tile(q["subject"], count)}
    table |= {"eta_1": eta[..., 0].ravel(), "eta_2": eta[..., 1].ravel()}
    folder.mkdir(parents=True)
    # In another order of rows: a reader is not to depend on it.
    shuffled = pd.DataFrame(table).sample(frac=1, random_state=1)
    shuffled.to_parquet(folder / "draws.parquet")
    population = {
        "sigma_additive": generator.lognormal(-3, 0.1, count),
        "omega_1": generator.lognormal(-2, 0.2, count),
    }
    pd.DataFrame(population).to_parquet(folder / "population.parquet")
    record = json.loads((run / "run.json").read_text())
    (folder / "posterior.json").write_text(json.dumps({"data": record["data"]}))
    return population


def ran(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], limit: float
) -> subprocess.CompletedProcess[str]:
    """A program run to its end in a folder, with nothing to read. :param limit: s, for one that hangs."""
    return subprocess.run(
        words,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )


ERROR_MODELS: dict[str, ErrorModel] = {
    "additive": ResidualError(("additive",)),
    "combined": ResidualError(("additive", "proportional")),
    "variances": CombinedVariancesError(),
    "power": PowerError(),
    "log-normal": LogNormalError(),
    "student": StudentError(("additive", "proportional")),
}


def plausible(model: Model) -> dict[str, Tensor]:
    """CL about 0.14 L/h, V1 2 L, Q 0.15 L/h, V2 0.75 L, omega 0.4, sigma 0.1 to 0.3."""
    trained = model.init(STREAMS, F64)
    raw = {"weight.heads.bias": [-1.5, 1.9], "vwf.heads.bias": [0.0], "global.Q": -1.8, "global.V2": 0.1}
    for name, value in trained.items():
        known = torch.tensor(raw.get(name, 0.0), dtype=F64)[..., None].expand_as(value)
        shift = {"omega": -0.8, "sigma": -2.0}.get(name, 0.0)
        small = 0.2 if name.endswith("weight") else 1.0
        trained[name] = known.clone() if name in raw else small * value + shift
    return trained
