"""From a trained batch to the tables of its run folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.numerics.metrics import kl_zero_mean, rmse
from medcm_cli.numerics.triangular import covariance, dense
from medcm_cli.objectives.base import Objective, State
from medcm_cli.runs import REFERENCE, TYPICAL, Units, by_row, columns, with_units
from medcm_cli.runs.checkpoints import AVERAGED, tail_weights
from medcm_cli.runs.units import NONE, amount
from medcm_cli.training.trained import Trained

GRID_POINTS = 40
Kept = tuple[list[int], list[int]]
"""Epochs of a fit's checkpoints, and their places among those of its batch."""


@dataclass(frozen=True)
class Covariate:
    """How a covariate is reported: effects on [0, ``scale``], relative to ``reference``, both in ``unit``;
    ``values``: the numbers that its texts stand for."""

    scale: float
    reference: float
    unit: str
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def at_reference(self) -> str:
        """The reference in words: a text that stands for it, or the number with its unit."""
        texts = [text for text, number in self.values.items() if number == self.reference]
        return texts[0] if texts else amount(self.reference, self.unit)


class Reported(NamedTuple):
    """How results are given: concentrations in ``units``, RMSE in the reported one and sigma_additive in the
    model's; random effects at the estimates, which are means over the last ``tail`` epochs."""

    units: Units
    tail: int | None = None


@torch.no_grad()
def tables(
    model: Model,
    objective: Objective,
    train: Population,
    test: Population,
    trained: Trained,
    covariates: Mapping[str, Covariate],
    omega_true: Tensor | None,
    reported: Reported,
) -> list[dict[str, pa.Table]]:
    """The tables of each fit of the batch, by name: history, parameters, effects and, with random effects,
    random_effects. Their columns name their units.

    A failed fit has the checkpoints before its failure. :param omega_true: (K, K) or None, for KL.
    """
    if not trained.epochs:  # all failed at once: what the tables look like is still to be seen
        flat = trained.layout.pack(trained.state.trained)
        trained = replace(trained, checkpoints=flat[None], objective=flat.new_zeros(1, flat.shape[-1]))
    rows = [trained.kept(fit) for fit in range(trained.checkpoints.shape[-1])]
    estimates = _at_estimates(trained, rows, reported.tail)
    trained = replace(
        trained, checkpoints=trained.all_checkpoints(), objective=trained.all_objectives(), ends=None
    )
    history = _history(model, objective, test, trained, omega_true, reported.units)
    if (penalty := _penalty(model, objective, trained)) is not None:  # which is no part of the likelihood
        history |= {"penalty": penalty, "objective_value": history["objective_value"] - penalty}
    effects, reference = _effects(model, trained, covariates)
    history |= {f"{TYPICAL}{name}": value for name, value in reference.items()}
    coefficients = _coefficients(model, trained)
    history |= {f"{TYPICAL}{name}": value for name, (value, _) in coefficients.items()}
    at = ", ".join(f"{name} {covariates[name].at_reference}" for name in model.network.inputs)
    posterior = objective.random_effects(model, train, estimates)
    parameters = reported.units.of_parameters(model.pk.units)
    units = parameters | {name: unit for name, (_, unit) in coefficients.items()}
    named = {f"{TYPICAL}{name}": unit for name, unit in units.items()} | reported.units.of_endpoints
    named |= _of_effects(model.random_effects.units(parameters))
    if model.occasions is not None:
        for name, unit in zip(model.occasions.names, model.occasions.units(parameters), strict=True):
            columns_of = (f"pi_{name}", f"kappa_{name}_*", f"sd_kappa_{name}_*")
            named |= dict.fromkeys(columns_of, unit) if unit != NONE else {}
    known = {
        "objective": "-" if reported.units.endpoints else objective.describe().unit_in(reported.units.level),
        "parameters": by_row(parameters),
        "covariate": by_row({name: covariate.unit for name, covariate in covariates.items()}),
    }
    result = []
    for fit, (labels, keep) in enumerate(rows):
        epochs = np.asarray(labels, dtype=np.int32)
        place = torch.tensor(keep, dtype=torch.long, device="cpu")
        of_fit = {
            "history": pa.table(
                {"epoch": epochs} | {name: _array(v[place, fit]) for name, v in history.items()},
                metadata={REFERENCE: at},
            ),
            "parameters": _parameters(trained, fit, (epochs, place), int(train.present[:, fit].sum())),
            "effects": _effects_table(effects, _grids(model, covariates), fit, (epochs, place)),
        }
        if posterior is not None:
            own = _random_effects(model, train, *posterior, fit)
            of_fit["random_effects"] = own.replace_schema_metadata(AVERAGED)
        result.append(
            {
                name: with_units(table, named | columns(name, reported.units.named | known))
                for name, table in of_fit.items()
            }
        )
    return result


def _penalty(model: Model, objective: Objective, trained: Trained) -> Tensor | None:
    """What priors have added to the objective at each checkpoint, (C, B); None where there are none."""
    checkpoints, _, fits = trained.checkpoints.shape
    values = trained.layout.unpack(trained.checkpoints.permute(1, 0, 2).reshape(-1, checkpoints * fits))
    shared = {name: of for name, of in values.items() if name not in trained.state.per_subject}
    found = objective.of_priors(model, shared)
    return None if found is None else found.reshape(checkpoints, fits)


def _of_effects(units: Sequence[str]) -> dict[str, str]:
    """The units of columns of Omega, random effects and their covariances, of those that have one."""
    found: dict[str, str] = {}
    for i, one in enumerate(units):
        found |= dict.fromkeys((f"omega_{i + 1}", f"eta_{i + 1}"), one) if one != NONE else {}
        for j, other in enumerate(units[: i + 1]):
            both = [unit for unit in (other, one) if unit != NONE]
            found |= {f"cov_{i + 1}{j + 1}": " ".join(both)} if both else {}
    return found


def _at_estimates(trained: Trained, rows: Sequence[Kept], tail: int | None) -> State:
    """The state of fits with their estimates, as ``study.restore`` has them.

    :param rows: which checkpoints of each are valid.
    """
    checkpoints = trained.all_checkpoints()
    weight = torch.zeros(len(checkpoints), 1, len(rows), dtype=torch.float64, device="cpu")
    for fit, (epochs, place) in enumerate(rows):
        own = tail_weights(np.asarray(epochs or (0,)), np.asarray([len(epochs)]), tail)[:, 0]
        weight[place or [0], 0, fit] = torch.from_numpy(own)
    # Of a fit that has failed, what comes later may be no number.
    values = torch.where(weight > 0, checkpoints.double(), 0.0)
    mean = (values * weight).sum(0).to(checkpoints.dtype)
    return replace(trained.state, trained=trained.layout.unpack(mean))


def _array(values: Tensor) -> pa.Array:
    return pa.array(values.contiguous().numpy())


def _history(
    model: Model,
    objective: Objective,
    test: Population,
    trained: Trained,
    omega_true: Tensor | None,
    units: Units,
) -> dict[str, Tensor]:
    """Columns of the history, (C, B) each."""
    columns: dict[str, list[Tensor]] = {}
    # What lies below a limit is not known.
    known = test.observed if test.censored is None else test.observed * (1 - test.censored)
    for values in map(trained.layout.unpack, trained.checkpoints):
        prediction = model.predict(model.typical(values, test), test)
        row = _rmse_of_each(prediction, test, known, units)
        if objective.mixed:
            estimates = objective.estimates(model, values)
            omega = dense(covariance(model.omega_cholesky(estimates)))  # (K, K, B)
            sd = omega.diagonal().T.sqrt()
            row |= {f"omega_{i + 1}": sd[i] for i in range(len(sd))}
            row |= {
                f"rho_{i + 1}{j + 1}": omega[i, j] / (sd[i] * sd[j]) for i, j in model.random_effects.pairs
            }
            row |= model.error.reported(estimates, units.scale)
            if model.occasions is not None:
                row |= model.occasions.reported(covariance(model.occasions.cholesky(estimates)))
            if omega_true is not None:
                row["kl"] = kl_zero_mean(omega_true, omega.permute(2, 0, 1))
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {"objective_value": trained.objective} | {
        name: torch.stack(values) for name, values in columns.items()
    }


def _rmse_of_each(prediction: Tensor, test: Population, known: Tensor, units: Units) -> dict[str, Tensor]:
    """That of levels, the first endpoint, and of several that of each, in its reported unit."""
    if not units.endpoints:
        return {"rmse": rmse(prediction, test.dv, known) * units.scale}
    number = torch.zeros_like(test.dv) if test.endpoint is None else test.endpoint
    found = {
        f"rmse_{name}": rmse(prediction, test.dv, known * (number == place)) * units.endpoint(place).scale
        for place, (name, _) in enumerate(units.endpoints)
    }
    return {"rmse": found[f"rmse_{units.endpoints[0][0]}"], **found}


def _parameters(
    trained: Trained, fit: int, checkpoints: tuple[np.ndarray, Tensor], subjects: int
) -> pa.Table:
    """Of the epochs and places of some ``checkpoints``. What a posterior q has for subjects that the fit does
    not have, but another of its batch, is left out."""
    epochs, place = checkpoints
    name, position, kept = [], [], []
    for number, (label, shape) in enumerate(zip(trained.layout.names, trained.layout.shapes, strict=True)):
        index = np.arange(torch.Size(shape).numel())
        per_subject = label in trained.state.per_subject
        own = index % shape[-1] < subjects if per_subject else np.ones(len(index), dtype=bool)
        kept.append(own)
        position.append(np.arange(own.sum(), dtype=np.int32))
        name.append(np.full(own.sum(), number, dtype=np.int32))
    own = np.concatenate(kept)
    names = pa.DictionaryArray.from_arrays(
        np.tile(np.concatenate(name), len(epochs)), list(trained.layout.names)
    )
    return pa.table(
        {
            "epoch": np.repeat(epochs, own.sum()),
            "name": names,
            "index": np.tile(np.concatenate(position), len(epochs)),
            "value": _array(trained.checkpoints[place, :, fit][:, torch.from_numpy(own)].reshape(-1)),
        }
    )


def _random_effects(model: Model, train: Population, mean: Tensor, cov: Tensor, fit: int) -> pa.Table:
    """eta with its covariance, and kappa of each occasion with its sd, null on one that a subject lacks."""
    count = int(train.present[:, fit].sum())
    own = len(model.random_effects.names)
    columns = {"subject": _array(train.subject[:count, fit] + 1)}
    columns |= {f"eta_{i + 1}": _array(values[:count, fit]) for i, values in enumerate(mean[:own])}
    for i in range(own):
        columns |= {f"cov_{i + 1}{j + 1}": _array(cov[i, j, :count, fit]) for j in range(i + 1)}
    there = model.there(train)
    for place, name in enumerate(model.effects(train)[own:], own):
        assert there is not None
        lacks = there[place, 0, :count, min(fit, there.shape[-1] - 1)].numpy() == 0
        for column, values in ((name, mean[place]), (f"sd_{name}", cov[place, place].sqrt())):
            columns[column] = pa.array(values[:count, fit].numpy(), mask=lacks)
    return pa.table(columns)


def _effects(
    model: Model, trained: Trained, covariates: Mapping[str, Covariate]
) -> tuple[dict[tuple[str, str], tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """(covariate, parameter) -> typical value on the grid and relative to the reference covariates, (C,
    points, B); and parameter -> typical value at those, (C, B).

    One covariate moves along its grid, or its categories; the others stay at their references. With separate
    branches the relative value is that branch's effect.
    """
    inputs = model.network.inputs
    checkpoints, _, fits = trained.checkpoints.shape
    flat = trained.checkpoints.permute(1, 0, 2).reshape(-1, checkpoints * fits)
    values = trained.layout.unpack(flat)
    grids = _grids(model, covariates)

    def at(levels: dict[str, Tensor]) -> dict[str, Tensor]:
        points = {
            name: level[None, :, None].expand(1, -1, checkpoints * fits) for name, level in levels.items()
        }
        return model.network.typical(values, points)

    result = {}
    base = {name: flat.new_tensor([covariates[name].reference]) for name in inputs}
    reference = {name: value.reshape(-1, checkpoints * fits)[0] for name, value in at(base).items()}
    for name in inputs:
        grid = torch.as_tensor(grids[name], dtype=flat.dtype)
        moved = at({other: grid if other == name else base[other].expand(len(grid)) for other in inputs})
        for parameter, zeta in moved.items():
            if (name, parameter) not in model.network.effects:
                continue
            shape = (len(grid), checkpoints, fits)
            absolute = zeta[0].reshape(shape).transpose(0, 1)
            relative = (zeta[0] / reference[parameter]).reshape(shape).transpose(0, 1)
            result[name, parameter] = absolute, relative
    return result, {name: value.reshape(checkpoints, fits) for name, value in reference.items()}


def _grids(model: Model, covariates: Mapping[str, Covariate]) -> dict[str, np.ndarray]:
    """Covariate -> the points that its effects are shown at."""
    of_scale = {name: np.linspace(0, covariates[name].scale, GRID_POINTS) for name in model.network.inputs}
    return of_scale | {name: np.array(numbers) for name, numbers in model.network.categories.items()}


def _coefficients(model: Model, trained: Trained) -> dict[str, tuple[Tensor, str]]:
    """Coefficient of the equations of typical parameters -> its values (C, B) and unit."""
    checkpoints, _, fits = trained.checkpoints.shape
    values = trained.layout.unpack(trained.checkpoints.permute(1, 0, 2).reshape(-1, checkpoints * fits))
    found = model.coefficients(values)
    return {name: (value.reshape(checkpoints, fits), unit) for name, (value, unit, _) in found.items()}


def _effects_table(
    effects: dict[tuple[str, str], tuple[Tensor, Tensor]],
    grids: Mapping[str, np.ndarray],
    fit: int,
    checkpoints: tuple[np.ndarray, Tensor],
) -> pa.Table:
    epochs, place = checkpoints
    parts = []
    for (name, parameter), (absolute, relative) in effects.items():
        points = len(grids[name])
        count = len(epochs) * points
        parts.append(
            pa.table(
                {
                    "epoch": np.repeat(epochs, points),
                    "covariate": _repeated(name, count),
                    "parameter": _repeated(parameter, count),
                    "x": np.tile(grids[name], len(epochs)),
                    "value": _array(absolute[place, :, fit].reshape(-1)),
                    "relative": _array(relative[place, :, fit].reshape(-1)),
                }
            )
        )
    return (
        pa.concat_tables(parts).unify_dictionaries()
        if parts
        else pa.table({"epoch": pa.array([], pa.int32())})
    )


def _repeated(label: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(count, dtype=np.int32), [label])
