"""Where population parameters begin by the data: typical ones by a grid and a short pooled fit, omegas and
sigmas by what that leaves unexplained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medcm_cli.data import EventTable, Population, apparent_volume
from medcm_cli.data.sheet import BoolArray
from medcm_cli.model import CovariateNetwork, EndpointErrors, ErrorModel, Model, innermost
from medcm_cli.model.distributions import bounds_of
from medcm_cli.numerics.normal import normal_points
from medcm_cli.numerics.streams import Stream
from medcm_cli.quantities import factor
from medcm_cli.runs import Units
from medcm_cli.study.identity import STARTS
from medcm_cli.study.problem import Problem, far_to_go, model_of, of_hours

_SUBJECTS = 30  # looked at, at most, evenly among all
_CANDIDATES, _INTEGRATED = 256, 64  # of the grid; of models that are integrated
_BEST = 6  # of these are improved
_STEPS = 12  # of Levenberg and Marquardt
_ELEMENTS = 4_000_000  # subjects x doses x observations x candidates at once
_WIDTH, _UNKNOWN = 1.2, 2.5  # sd of a candidate's logarithm around its anchor; of one in an unknown unit
_LOST = 1e3  # the deviation of what cannot be predicted


def begun_by_data(problem: Problem) -> Problem:
    """The problem whose model begins where the data say, of everything of which nothing is said; its
    configuration says where that is (``STARTS``)."""
    if STARTS in problem.config:
        return problem
    config = {**problem.config, STARTS: starts_of(problem)}
    far = far_to_go(problem.events, problem.model, problem.config)  # which does not hold any more
    events = replace(problem.events, notes=tuple(note for note in problem.events.notes if note not in far))
    return replace(problem, config=config, model=model_of(config), events=events)


def starts_of(problem: Problem) -> dict[str, float]:
    """Name of a population parameter -> where it begins, to two digits; typical parameters only of networks
    that have global parameters, since equations say theirs."""
    model, events = problem.model, problem.events
    pooled = _Pooled.of(problem)
    x, deviation, difference = pooled.best()
    typical = dict(zip(pooled.free, x.exp().tolist(), strict=True))
    spread = float(deviation.square().mean().sqrt())
    omega = min(max(0.6 * spread, 0.1), 0.7)
    relative = min(max(0.5 * spread, 0.05), 0.5)
    additive = 0.5 * float(difference.square().mean().sqrt())
    error = model.error
    if isinstance(error, EndpointErrors):
        sigmas = _sigmas_of_each(error.errors, events, additive, relative)
    else:
        sigmas = _sigmas(error, _usual(events), additive, relative)
    found = {
        **typical,
        **{
            f"omega_{name}": omega
            for name in model.random_effects.names
            if model.random_effects.free and name not in model.random_effects.distributions
        },
        **{
            f"pi_{name}": omega / 2
            for group in model.groups[1:]
            for name in group.names
            if group.free and name not in group.distributions
        },
        **{f"sigma_{name}": sigmas[name] for name in model.error.free if name in sigmas},
    }
    sound = {name: value for name, value in found.items() if value > 0 and math.isfinite(value)}
    for name, of in bounds_of(model.random_effects.distributions).items():
        if name in sound and not of.lower < float(f"{sound[name]:.2g}") < of.upper:
            del sound[name]  # the search does not know of bounds, between which a fit begins by itself
    # In h, so that fits do not depend on the unit of time; other units differ by powers of ten.
    hours = of_hours(model.pk, Units.of(problem.config["dataset"]).hours)
    return {name: _rounded(value, hours.get(name, 1.0)) for name, value in sound.items()}


def _rounded(value: float, unit: float) -> float:
    """To two digits, counted in a ``unit``."""
    return float(f"{value / unit:.2g}") * unit


def _sigmas(error: ErrorModel, usual: float, additive: float, relative: float) -> dict[str, float]:
    """Component -> where its sigma begins, of observations of a ``usual`` size.

    :param additive: the sd that is left, for an error that has no other component.
    """
    own = 0.1 * usual if len(error.components) > 1 else additive
    return {"additive": own, "proportional": relative, "log": relative, "power": relative}


def _sigmas_of_each(
    errors: Mapping[str, ErrorModel], events: EventTable, additive: float, relative: float
) -> dict[str, float]:
    """The same of several endpoints; ``additive`` is that of one alone."""
    found = dict[str, float]()
    for number, (name, error) in enumerate(errors.items()):
        usual = _usual(events, events.endpoint == number)
        own = additive if len(errors) == 1 else 0.1 * usual
        found |= {f"{part}_{name}": of for part, of in _sigmas(error, usual, own, relative).items()}
    return found


@dataclass(frozen=True)
class _Pooled:
    """Typical predictions of some subjects against their levels: ``known`` parameters, the ``free`` ones, and
    the ``anchors`` (K,) and ``widths`` (K,) of their logarithms. Levels are compared as asinh(level /
    c), c of ``units`` by endpoint, which is a logarithm of high ones and straight of those near 0.
    ``doses``: of a subject, at most."""

    model: Model
    everyone: Population
    known: Mapping[str, Tensor]
    free: tuple[str, ...]
    anchors: Tensor
    widths: Tensor
    units: Tensor
    doses: int

    @classmethod
    def of(cls, problem: Problem) -> "_Pooled":
        """Of a problem: free is what is not said to begin anywhere."""
        model, config = problem.model, problem.config
        network = innermost(model.network)
        free: tuple[str, ...] = ()
        if isinstance(network, CovariateNetwork):
            free = tuple(name for name in network.parameters if name not in network.initial)
            free = tuple(name for name in free if name not in network.given)
        everyone = problem.double([_some(len(problem.events.ids))])
        values = model.init([Stream(int(config["seed"]), 1, 1)], torch.float64)
        references = {
            name: torch.full((1, 1, 1), float(entry["reference"]), dtype=torch.float64)
            for name, entry in config["dataset"]["covariates"].items()
        }
        typical = model.network.typical(values, references)
        known = {name: value.reshape(-1)[:1] for name, value in typical.items() if name not in free}
        known |= model.pk.weights(values)
        units = Units.of(config["dataset"])
        anchors = [_anchor(model.pk.units.get(name), problem.events, units) for name in free]
        return cls(
            model,
            everyone,
            known,
            free,
            torch.tensor([math.log(anchor) for anchor, _ in anchors], dtype=torch.float64),
            torch.tensor([width for _, width in anchors], dtype=torch.float64),
            0.1 * _usual_by_endpoint(problem.events),
            max(1, int(np.bincount(problem.events.subject[problem.events.is_dose], minlength=1).max())),
        )

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms (K,) of the free parameters, the deviations there, (M,), and these as levels."""
        if not self.free:
            nothing = torch.zeros(0, 1, dtype=torch.float64)
            own, levels = self._deviations(nothing)
            return nothing[:, 0], own[:, 0], levels[:, 0]
        number = _INTEGRATED if self.model.pk.needs_double else _CANDIDATES
        points = normal_points(len(self.free), number).to(torch.float64)  # (K, C)
        grid = self.anchors[:, None] + self.widths[:, None] * points
        loss = self._losses(grid)
        chosen = loss.argsort()[:_BEST]
        x, loss = self._improved(grid[:, chosen], loss[chosen])
        best = x[:, loss.argmin()][:, None]
        own, levels = self._deviations(best)
        return best[:, 0], own[:, 0], levels[:, 0]

    def _losses(self, x: Tensor) -> Tensor:
        return self._deviations(x)[0].square().mean(0)

    @torch.no_grad()
    def _deviations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of C candidates (K, C), on the scale of asinh and as levels: (M, C) of M observations."""
        observations, subjects, _ = self.everyone.shape
        size = max(1, _ELEMENTS // (observations * subjects * self.doses))
        parts = [self._some_deviations(part) for part in x.split(size, dim=1)]
        own, levels = (torch.cat(of, 1) for of in zip(*parts, strict=True))
        return own, levels

    def _some_deviations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count = x.shape[1]
        rows = np.arange(self.everyone.shape[1])
        population = self.everyone.select([rows] * count)
        z = {name: value.expand(*value.shape[:-1], count) for name, value in self.known.items()}
        z |= {name: value.exp() for name, value in zip(self.free, x, strict=True)}
        level = self.model.predict(z, population)[:, 0]  # (T, N, C)
        there = self.everyone.observed[:, 0, :, 0] > 0
        seen, level = self.everyone.dv[:, 0][there], level[there]  # (M, 1), (M, C)
        endpoint = self.everyone.endpoint
        unit = self.units[:1] if endpoint is None else self.units[endpoint[:, 0, :, 0][there]][:, None]
        own = torch.asinh(seen / unit) - torch.asinh(level / unit)
        found = torch.isfinite(own)
        return torch.where(found, own, _LOST), torch.where(found, seen - level, _LOST)

    def _improved(self, x: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Some candidates (K, C) after a few steps of Levenberg and Marquardt, by finite differences."""
        k, count = x.shape
        damping = torch.full((count,), 0.1, dtype=x.dtype)
        step = 1e-3
        for _ in range(_STEPS):
            around = torch.cat([x, *(x + step * unit[:, None] for unit in torch.eye(k, dtype=x.dtype))], 1)
            own = self._deviations(around)[0].reshape(-1, k + 1, count)  # (M, K + 1, C)
            slope = (own[:, 1:] - own[:, :1]) / step
            information = torch.einsum("mkc,mlc->ckl", slope, slope)
            pull = torch.einsum("mkc,mc->ck", slope, own[:, 0])
            scale = information.diagonal(dim1=1, dim2=2).clamp(min=1e-9)
            damped = information + torch.diag_embed(scale * damping[:, None] + 1e-9)
            move = torch.linalg.solve(damped, pull[..., None])[..., 0].T.clamp(-1.0, 1.0)
            new = self._losses(x - move)
            lower = new < loss
            x, loss = torch.where(lower, x - move, x), torch.where(lower, new, loss)
            damping = torch.where(lower, damping / 10, damping * 10).clamp(1e-6, 1e6)
        return x, loss


def _some(subjects: int) -> np.ndarray:
    return np.unique(np.linspace(0, subjects - 1, min(subjects, _SUBJECTS)).round().astype(int))


def _usual(events: EventTable, rows: BoolArray | bool = True) -> float:
    """A usual level among some rows (R,), 1 where there is none above 0."""
    seen = events.dv[~events.is_dose & ~events.censored & (events.dv > 0) & rows]
    return float(np.median(seen)) if len(seen) else 1.0


def _usual_by_endpoint(events: EventTable) -> Tensor:
    """Likewise of each endpoint, by its number."""
    seen = ~events.is_dose & ~events.censored & (events.dv > 0)
    numbers = range(int(events.endpoint[~events.is_dose].max(initial=0)) + 1)
    of = [events.dv[seen & (events.endpoint == number)] for number in numbers]
    return torch.tensor([float(np.median(one)) if len(one) else 1.0 for one in of], dtype=torch.float64)


def _anchor(unit: str | None, events: EventTable, units: Units) -> tuple[float, float]:
    """Where the values of a parameter in a unit (``PkModel.units``) are looked for, and the sd of their
    logarithms."""
    volume = apparent_volume(events, units)
    if not (math.isfinite(volume) and volume > 0):
        volume = 1.0
    span = _span(events)
    level = _usual(events) * (factor(units.level, f"{units.amount}/L") or 1.0)
    known: Mapping[str, float] = {
        "L": volume,
        "L/{time}": 2 * volume / span,
        "1/{time}": 4 / span,
        "{time}": span / 50,
        "{amount}/L": level,
        "{amount}/{time}": 2 * level * volume / span,
        "-": 0.7,
    }
    return (known[unit], _WIDTH) if unit is not None and unit in known else (1.0, _UNKNOWN)


def _span(events: EventTable) -> float:
    """The time from a subject's first row to its last observation, of the median subject."""
    spans: Sequence[float] = [
        float(events.time[own & ~events.is_dose].max() - events.time[own].min())
        for own in (events.subject == subject for subject in range(len(events.ids)))
        if bool((own & ~events.is_dose).any())
    ]
    found = [span for span in spans if span > 0]
    return float(np.median(found)) if found else 1.0
