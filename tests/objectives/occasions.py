"""A study with occasions, and what its tests compare with: levels of a one-compartment model in numpy, event
by event, for parameters that change with the occasion."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcm_cli.data import Format, Population, read_events
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError, Values
from medcm_cli.model.random_effects import PI
from medcm_cli.pk import one_compartment
from tests.helpers import F64

TYPICAL = {"CL": 3.0, "V1": 30.0}
# Doses (time, amount) and times of levels on each occasion; the second begins before the first has worn off.
OCCASIONS = [
    ([(0.0, 500.0), (12.0, 500.0)], [1.0, 6.0, 13.0, 20.0]),
    ([(24.0, 800.0)], [25.0, 30.0, 40.0]),
    ([(60.0, 400.0), (66.0, 300.0)], [61.0, 70.0]),
]


def table(numbers: Sequence[int] = (1, 3, 2, 3), seed: int = 0) -> pd.DataFrame:
    """Subjects with so many of the occasions each, and levels about what they should be."""
    generator = np.random.default_rng(seed)
    rows = []
    for subject, number in enumerate(numbers, 1):
        own = {name: value * np.exp(0.2 * generator.standard_normal()) for name, value in TYPICAL.items()}
        given: list[tuple[float, float]] = []
        for occasion, (doses, times) in enumerate(OCCASIONS[:number], 1):
            here = {"ID": subject, "OCC": occasion}
            given += doses
            rows += [{**here, "TIME": time, "AMT": amount, "EVID": 1, "DV": np.nan} for time, amount in doses]
            for time in times[: len(times) - subject % 2]:
                level = sum(a * np.exp(-own["CL"] / own["V1"] * (time - t)) for t, a in given if t <= time)
                level *= np.exp(0.1 * generator.standard_normal()) / own["V1"]
                rows.append({**here, "TIME": time, "AMT": np.nan, "EVID": 0, "DV": level})
    found = pd.DataFrame(rows)
    return found.sort_values(["ID", "TIME", "EVID"], ascending=[True, True, False], ignore_index=True)


def population_of(rows: pd.DataFrame, fits: int = 1, by_occasion: bool = True) -> Population:
    events = read_events(rows, {}, Format(by_occasion=by_occasion))
    everyone = Population.from_events(events, F64)
    return everyone.select([np.arange(len(events.ids))] * fits)


def model_of(
    own: Sequence[str] = ("CL", "V1"), structure: str = "diagonal", error: Sequence[str] = ("additive",)
) -> Model:
    return Model(
        CovariateNetwork.build([], list(TYPICAL), {}, TYPICAL),
        one_compartment(amount_per_level=1.0),
        RandomEffects(("CL", "V1")),
        ResidualError(tuple(error)),
        occasions=RandomEffects(tuple(own), structure, of=PI),
    )


def dense_prior(model: Model, values: Values, population: Population) -> np.ndarray:
    """The covariance (R, R) of one subject's random effects of the first fit, from raw values by numpy."""

    def sd_of(name: str) -> np.ndarray:
        return np.asarray(np.log1p(np.exp(values[name][:, 0].detach().numpy())))

    assert model.occasions is not None
    omega = np.diag(sd_of("omega") ** 2)
    rho = np.tanh(float(values["correlation"][0, 0]))
    omega[0, 1] = omega[1, 0] = rho * np.sqrt(omega[0, 0] * omega[1, 1])
    pi = np.diag(sd_of("pi") ** 2)
    if model.occasions.structure == "full":
        rho = np.tanh(float(values["pi_correlation"][0, 0]))
        pi[0, 1] = pi[1, 0] = rho * np.sqrt(pi[0, 0] * pi[1, 1])
    size = model.size(population)
    whole = np.zeros((size, size))
    whole[:2, :2] = omega
    for start in range(2, size, len(pi)):
        whole[start : start + len(pi), start : start + len(pi)] = pi
    return whole


def levels(
    rows: pd.DataFrame, subject: int, own: Sequence[str], zeta: dict[str, float], eta: np.ndarray
) -> np.ndarray:
    """Levels (T,) of a subject at random effects (R,), from record to record; a record's parameters hold
    since the record before."""
    mine = rows[rows["ID"] == subject]
    amount, last, found = 0.0, 0.0, []
    columns = mine[["TIME", "AMT", "EVID", "OCC"]].to_numpy(dtype=np.float64)
    for time, given, event, occasion in columns.tolist():
        z = {name: zeta[name] * np.exp(eta[k]) for k, name in enumerate(("CL", "V1"))}
        for k, name in enumerate(own):
            z[name] = z[name] * np.exp(eta[2 + (int(occasion) - 1) * len(own) + k])
        amount = amount * np.exp(-z["CL"] / z["V1"] * (time - last))
        last = time
        if event == 1:
            amount = amount + given
        else:
            found.append(amount / z["V1"])
    return np.array(found)


def jacobian(
    rows: pd.DataFrame, subject: int, own: Sequence[str], zeta: dict[str, float], eta: np.ndarray
) -> np.ndarray:
    """df/deta (T, R) by complex steps."""
    step = 1e-30
    columns = [
        levels(rows, subject, own, zeta, eta + 1j * step * unit).imag / step for unit in np.eye(len(eta))
    ]
    return np.stack(columns, 1)


def typical(model: Model, values: Values, population: Population) -> dict[str, float]:
    with torch.no_grad():
        return {name: float(v.flatten()[0]) for name, v in model.typical(values, population).items()}


def sigma_of(model: Model, values: Values, f: np.ndarray) -> np.ndarray:
    parts = np.log1p(np.exp(values["sigma"][:, 0].detach().numpy()))
    of = dict(zip(model.error.components, parts, strict=True))
    return np.asarray(of.get("additive", 0.0) + of.get("proportional", 0.0) * f)


def observed(rows: pd.DataFrame, subject: int) -> np.ndarray:
    return rows[(rows["ID"] == subject) & (rows["EVID"] == 0)]["DV"].to_numpy()


def as_effects(eta: np.ndarray) -> list[Tensor]:
    """(R, N) as R tensors (1, N, 1)."""
    return [torch.as_tensor(part)[None, :, None] for part in eta]
