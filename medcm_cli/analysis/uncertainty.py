"""Standard errors and confidence intervals of what a fit estimates: Omega, sigma and typical parameters.

Their covariance is that of an M-estimator. ``hessian``: the inverse of the observed information H (NONMEM's
$COVARIANCE MATRIX=R). ``sandwich``: H^-1 J H^-1 with J the sum over subjects of the outer products of their
scores (NONMEM's default, R^-1 S R^-1), which holds for an approximate likelihood too, and for the ELBO, as
far as its optimum is near the truth (White 1982, Econometrica 50:1-25; Westling and McCormick 2019, J Comput
Graph Stat 28:778-789). Both are of the objective with what each subject has for itself profiled out, at its
optimum (``medcm_cli.analysis.information``).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from medcm_cli.analysis.information import Optimum, Subjects, optimum, separate
from medcm_cli.data import Population
from medcm_cli.errors import InputError
from medcm_cli.model import Model, Values
from medcm_cli.model.distributions import Logit, bounds_of
from medcm_cli.model.priors import POPULATION
from medcm_cli.numerics.square import inverse_of_saddle
from medcm_cli.numerics.triangular import covariance, dense
from medcm_cli.objectives.base import Criterion, PopulationPosterior, State
from medcm_cli.runs import Units
from medcm_cli.study.restore import Restored
from medcm_cli.training.layout import Layout

METHODS = ("sandwich", "hessian")
POSTERIOR = "posterior"  # in place of these where a fit has a q of sigma and Omega
AT_BOUNDARY = "Omega is on its boundary"  # or Pi: why a fit has no standard errors
FLAT = 1e-6  # directions of network weights with less of the largest curvature than this are held
BOUNDARY = 1e-4  # least sd, and least eigenvalue of the correlations, of an Omega that is not on its boundary


class Quantities(NamedTuple):
    """Reported quantities, R of each of B fits, on a scale where their intervals are symmetric: ``value``
    (R, B) is the log of a positive one, Fisher's z of a correlation and the logit of what lies between
    ``bounds``; ``slope`` (R, P, B) its derivative in the shared values. What is in ``plain`` may be of any
    sign, and stands as it is."""

    names: list[str]
    value: Tensor
    slope: Tensor
    plain: frozenset[str] = frozenset()
    bounds: Mapping[str, Logit] = {}

    def back(self, value: Tensor) -> Tensor:
        """From that scale, (R, B), to the reported one."""
        found = torch.where(self._correlations, value.tanh(), value.exp())
        found = torch.where(self._plain, value, found)
        for place, name in enumerate(self.names):
            if name in self.bounds:
                found[place] = self.bounds[name].of_odds(value[place].exp())
        return found

    def back_slope(self) -> Tensor:
        """The derivative of ``back`` at the values, (R, B)."""
        found = torch.where(self._correlations, 1 - self.value.tanh().square(), self.value.exp())
        found = torch.where(self._plain, 1.0, found)
        for place, name in enumerate(self.names):
            if name in self.bounds:
                of, share = self.bounds[name], torch.sigmoid(self.value[place])
                found[place] = (of.upper - of.lower) * share * (1 - share)
        return found

    @property
    def _plain(self) -> Tensor:
        return torch.tensor([name in self.plain for name in self.names])[:, None]

    @property
    def _correlations(self) -> Tensor:
        return torch.tensor([name.startswith("rho_") for name in self.names])[:, None]


class Estimates(NamedTuple):
    """Of a batch of B fits: the ``quantities``, ``covariance`` (B, P, P) of the shared values by method, and
    ``faults``, why a fit has none, empty where it has; ``note``, how they came about; ``theta`` (P, B), the
    shared values, where these are at an optimum."""

    quantities: Quantities
    covariance: dict[str, Tensor]
    faults: list[str]
    note: str
    theta: Tensor | None = None


def intervals(restored: Restored, estimates: Estimates, level: float) -> list[pd.DataFrame | str]:
    """Per fit a frame of ``name``, ``method``, ``estimate``, ``se``, ``rse`` (%) and the bounds ``lower`` and
    ``upper`` of intervals of ``level``, or why there is none."""
    at = estimates.quantities
    unit = units_of(restored, at)
    spread = {
        method: torch.einsum("rpb,bpq,rqb->rb", at.slope, matrix, at.slope).sqrt()
        for method, matrix in estimates.covariance.items()
    }
    return [
        fault or pd.concat([_frame(at, sd, unit, level, method, fit) for method, sd in spread.items()])
        for fit, fault in enumerate(estimates.faults)
    ]


def units_of(restored: Restored, at: Quantities) -> Tensor:
    """What quantities are multiplied by to be in the reported unit, (R,)."""
    scale = Units.of(restored.problem.config["dataset"]).scale
    first = next(iter(restored.problem.config["endpoints"] or {}), "")
    leveled = ("sigma_additive", f"sigma_additive_{first}")
    return torch.tensor([scale if name in leveled else 1.0 for name in at.names]).double()


def estimate(restored: Restored, chosen: Criterion | None = None) -> Estimates:
    """Of fits as they are at the optimum of their objective, by both methods; of fits with a q of sigma and
    Omega its median and covariance.

    :param chosen: what to take the optimum of, in place of the objective of the fits.
    :raises InputError: an objective that is no likelihood, or nothing to estimate.
    """
    objective, model = restored.objective, restored.problem.model
    if chosen is None:
        shared = {name: restored.state.trained[name].double() for name in _layout(restored).names}
        q = objective.population_posterior(model, shared)
        if q is not None:
            return _of_q(restored, shared, q)
        chosen = objective.criterion(model.size(restored.population))
    return _at_optimum(restored, chosen)


class Begun(NamedTuple):
    """Fits as they are: see ``information.separate``; ``layout`` of their shared values, and which of these
    are ``weights`` of a network, (P,)."""

    subjects: Subjects
    start: Tensor
    own: Tensor
    carried: dict[str, Tensor]
    layout: Layout
    weights: Tensor


def begun(restored: Restored, chosen: Criterion) -> Begun:
    """Fits in double precision, with what is to be minimised."""
    problem, layout = restored.problem, _layout(restored)
    everyone = Population.from_events(problem.events, torch.float64, not problem.model.pk.needs_double)
    separated = separate(problem.model, chosen, everyone, restored.population, _searched(restored, chosen))
    return Begun(*separated, layout, layout.rows([name for name in layout.names if _is_weight(name)]))


def _own(restored: Restored, chosen: Criterion) -> bool:
    """Whether what is to be minimised is the objective of the fits, or that of another kind."""
    return isinstance(chosen.objective, type(restored.objective))


def _searched(restored: Restored, chosen: Criterion) -> State:
    """The fits' estimates, with what the criterion carries of each subject there."""
    problem, state = restored.problem, restored.state
    if _own(restored, chosen):
        return restored.objective.searched_widely(problem.model, restored.population, state)
    population = problem.double([problem.folds[record.address.fold].train for record in restored.records])
    begun = chosen.objective.init(problem.model, population, restored.streams, torch.float64)
    trained = {name: state.trained[name].double() for name in begun.trained}
    return chosen.objective.searched_widely(problem.model, population, replace(begun, trained=trained))


def _at_optimum(restored: Restored, chosen: Criterion) -> Estimates:
    problem = restored.problem
    subjects, start, own, carried, layout, weights = begun(restored, chosen)
    best = optimum(subjects, start, own, carried, ~weights)
    matrices, regular, kept = covariances(best.information, best.outer, weights)
    at_start, at_best = (quantities(restored, layout, theta) for theta in (start, best.theta))
    boundary = _on_boundary(problem.model, layout, best.theta)
    faults = [_fault(best, regular, boundary, fit) for fit in range(len(restored.folders))]
    variance = torch.einsum("rpb,bpq,rqb->rb", at_best.slope, matrices["hessian"], at_best.slope)
    shift = ((at_start.value - at_best.value) / variance.sqrt()).abs().amax(0)
    done = [fit for fit, fault in enumerate(faults) if not fault]
    note = ""
    if done:
        of = chosen.objective.describe().likelihood
        what = "objective" if _own(restored, chosen) else f"likelihood ({of})"
        note = (
            f"estimates are those at the optimum of the {what}, from which the fits' own lie "
            f"{float(shift[done].median()):.2g} (at most {float(shift[done].max()):.2g}) standard errors"
        )
    if done and bool(weights.any()):
        least, most = int(kept[done].min()), int(kept[done].max())
        count = f"{most} direction{'s' * (most != 1)}" if least == most else f"{least} to {most} directions"
        alone = most == 1
        note += (
            f"; network weights stay as they are: {count} of them, which the data tell apart, "
            f"count{'s' * alone} as estimated, the others as known"
        )
    return Estimates(at_best, matrices, faults, note, best.theta)


def _of_q(restored: Restored, shared: Values, q: PopulationPosterior) -> Estimates:
    layout = _layout(restored)
    rows = layout.rows([q.name])
    fits, place = len(restored.folders), rows.nonzero()[:, 0]
    matrix = torch.zeros(fits, len(rows), len(rows), dtype=torch.float64)
    matrix[:, place[:, None], place] = q.covariance.permute(2, 0, 1)
    found = quantities(restored, layout, layout.pack(shared), rows)
    note = "median, sd and quantiles of q, where the fit has it; typical parameters have none"
    return Estimates(found, {POSTERIOR: matrix}, [""] * fits, note)


def _layout(restored: Restored) -> Layout:
    """Of what subjects share."""
    state = restored.state
    return Layout.of({name: v for name, v in state.trained.items() if name not in state.per_subject})


def quantities(restored: Restored, layout: Layout, theta: Tensor, rows: Tensor | None = None) -> Quantities:
    """What is reported of the shared values ``theta`` (P, B): omega_*, rho_*, sigma_* and the typical
    parameters at the reference covariates; not what is known, or does not depend on the ``rows`` (P,).

    :raises InputError: there is nothing of the kind.
    """
    model, covariates = restored.problem.model, restored.problem.config["dataset"]["covariates"]
    leaf = theta.detach().requires_grad_()
    values = restored.objective.estimates(model, layout.unpack(leaf))
    found: dict[str, Tensor] = {}
    for group in model.groups:
        reported = group.reported(covariance(group.cholesky(values)))
        found |= {n: v.atanh() if n.startswith("rho_") else v.log() for n, v in reported.items()}
    scale = Units.of(restored.problem.config["dataset"]).scale
    found |= {name: sigma.log() for name, sigma in model.error.reported(values, scale).items()}
    shape = 1, 1, theta.shape[1]
    reference = {name: theta.new_full(shape, float(entry["reference"])) for name, entry in covariates.items()}
    typical = model.network.typical(values, reference)
    bounds = bounds_of(model.random_effects.distributions)
    for name, zeta in typical.items():
        value = zeta.reshape(-1, theta.shape[1])[0]
        found[name] = bounds[name].logit(value) if name in bounds else value.log()
    named = model.coefficients(values)
    found |= {name: value.log() if positive else value for name, (value, _, positive) in named.items()}
    plain = frozenset(name for name, (_, _, positive) in named.items() if not positive)
    slopes = {}
    for name, value in found.items():
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, materialize_grads=True)
            slopes[name] = slope if rows is None else slope * rows[:, None]
    names = [name for name, slope in slopes.items() if bool((slope != 0).any())]
    if not names:
        raise InputError("nothing is estimated that has a standard error")
    values_of, slopes_of = ([of[name] for name in names] for of in (found, slopes))
    return Quantities(names, torch.stack(values_of).detach(), torch.stack(slopes_of), plain, bounds)


def covariances(
    information: Tensor, outer: Tensor, weights: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Covariances (B, P, P) of the shared values by method; whether each fit's information is positive
    definite, (B,); and how many directions of network weights were kept, (B,).

    Weights of a network are not identified: many leave its function as it is, and a fit that ends early may
    lie on a saddle. Of the directions of the ``weights`` (P,), the eigenvectors of their information with the
    other values profiled out, those without positive curvature are held where they are; the others are as
    uncertain as any parameter.
    """
    fits, size, _ = information.shape
    basis = torch.eye(size, dtype=information.dtype).repeat(fits, 1, 1)
    held = torch.zeros(fits, size, dtype=torch.bool)
    place, others = weights.nonzero()[:, 0], (~weights).nonzero()[:, 0]
    if len(place):
        cross = information[:, others[:, None], place]
        profiled = information[:, place[:, None], place] - cross.mT @ (
            inverse_of_saddle(information[:, others[:, None], others]) @ cross
        )
        curvature, basis[:, place[:, None], place] = torch.linalg.eigh(torch.nan_to_num(profiled))
        held[:, place] = curvature <= FLAT * curvature[:, -1:].clamp(min=0)
    kept = basis * ~held[:, None, :]
    # A held direction has an information of its own, of 1, which nothing else sees.
    inside = kept.mT @ information @ kept + torch.diag_embed(held.to(information.dtype))
    scale = inside.diagonal(dim1=1, dim2=2)
    finite = torch.isfinite(inside).all(-1).all(-1) & (scale > 0).all(-1)
    identity = torch.eye(size, dtype=information.dtype)
    root = torch.where(finite[:, None], scale, 1).sqrt()
    even = torch.where(finite[:, None, None], inside / (root[:, :, None] * root[:, None, :]), identity)
    regular = finite & (torch.linalg.eigvalsh(even)[:, 0] > 1e-10)
    even = torch.where(regular[:, None, None], even, identity)
    inverse = torch.linalg.inv(even) / (root[:, :, None] * root[:, None, :])
    hessian = kept @ inverse @ kept.mT
    return (
        {"hessian": hessian, "sandwich": hessian @ outer @ hessian},
        regular,
        (~held[:, place]).sum(1),
    )


def _is_weight(name: str) -> bool:
    return name not in POPULATION and not name.startswith("global.")


def _on_boundary(model: Model, layout: Layout, theta: Tensor) -> Tensor:
    """Whether Omega, or Pi, of each fit is all but singular, (B,)."""
    found = torch.zeros(theta.shape[1], dtype=torch.bool)
    for group in model.groups:
        omega = dense(covariance(group.cholesky(layout.unpack(theta)))).permute(2, 0, 1)
        sd = omega.diagonal(dim1=1, dim2=2).sqrt()
        correlation = torch.nan_to_num(omega / (sd[:, :, None] * sd[:, None, :]))
        found |= (torch.linalg.eigvalsh(correlation)[:, 0] < BOUNDARY) | (sd.amin(1) < BOUNDARY)
    return found


def _fault(best: Optimum, regular: Tensor, boundary: Tensor, fit: int) -> str:
    """Why a fit has no standard errors, nothing if it has."""
    if boundary[fit]:
        return AT_BOUNDARY
    if not best.found[fit]:
        return f"no optimum found nearby (Newton decrement {float(best.decrement[fit]):.2g})"
    return "" if regular[fit] else "the Hessian is not positive definite"


def _frame(at: Quantities, sd: Tensor, unit: Tensor, level: float, method: str, fit: int) -> pd.DataFrame:
    z = float(stats.norm.ppf(0.5 + level / 2))
    estimate, lower, upper = (at.back(at.value + shift * sd)[:, fit] * unit for shift in (0, -z, z))
    se = (at.back_slope() * sd)[:, fit] * unit
    return pd.DataFrame(
        {
            "name": at.names,
            "method": method,
            "estimate": estimate.numpy(),
            "se": se.numpy(),
            "rse": (100 * se / estimate.abs()).numpy(),
            "lower": lower.numpy(),
            "upper": upper.numpy(),
        }
    )


def true_values(truth: dict[str, Any] | None, scale: float) -> dict[str, float]:
    """The true values by name, as far as the data set's are known."""
    if not truth:
        return {}
    known = {f"sigma_{n}": v * (scale if n == "additive" else 1) for n, v in truth["sigma"].items()}
    if truth["omega"] is not None:
        omega = np.asarray(truth["omega"], dtype=np.float64)
        sd = np.sqrt(np.diag(omega))
        known |= {f"omega_{i + 1}": value for i, value in enumerate(sd)}
        known |= {
            f"rho_{i + 1}{j + 1}": omega[i, j] / sd[i] / sd[j] for i in range(len(sd)) for j in range(i)
        }
    return {name: float(value) for name, value in known.items()}
