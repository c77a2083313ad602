"""The end of a fit whose objective is a function of its values: Newton's method, all fits of a batch at once.

A quadrature of few nodes depends on the modes that it is centred at, and steps where one vanishes or another
becomes the best. Where that keeps a search from its end, another holds the nodes where they are, and places
them anew where it seems over (the mean-variance adaptive quadrature of Rabe-Hesketh, Skrondal and Pickles
2005 holds its nodes likewise). It is over where the held objective is at its optimum and new nodes tell
nothing else.

An objective with noise ends at the optimum of its profile, where it has one: random draws hide how slowly it
still falls where it is flat.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from medcm_cli.data.population import Population
from medcm_cli.model import Model
from medcm_cli.model.priors import POPULATION
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives.base import Criterion, Objective, State
from medcm_cli.training.coordinates import Coordinates
from medcm_cli.training.loss import Evaluation
from medcm_cli.training.newton import LEAST, Search, joined
from medcm_cli.training.trained import Ends, Trained

FEW = 40
"""Values of a fit, at most, of which those of networks are polished too."""
_TURNS_HELD = 20  # how often better modes are found, of nodes that are held in between
_ELEMENTS = 250_000  # of a tensor, at most about: what a processor's cache holds
_ERRORS = 3.0  # Monte Carlo errors
RULE = f"Newton's method would lower the OFV by less than {LEAST:g}"
RULE_HELD = f"{RULE} with the nodes of quadrature held, and new nodes would move it by less than that"


@dataclass(frozen=True)
class Polish:
    """``criterion``: what is to be at its optimum, or an objective that is no likelihood. Where ``profiled``,
    it has noise, and subjects values of their own: its profile is searched in its place. ``fixed`` are names
    of the values that stay as they are: those of networks, unless they are few."""

    criterion: Criterion | Objective
    fixed: tuple[str, ...]
    profiled: bool = False


def polish_of(
    model: Model, objective: Objective, population: Population, minibatches: bool = False
) -> Polish | None:
    """How fits by an objective are polished; None where that has noise and no profile, or ``minibatches`` or
    networks of many values beside it, or moves values itself, or subjects have values of their own."""
    profiled = objective.noise_shape(model, population) is not None
    if objective.refresh_shape(model, population) is not None:
        return None
    if profiled and (minibatches or objective.profile(model, population) is None):
        return None
    state = objective.init(model, population, [Stream(0, 1, 1)], torch.float64)
    own = set(state.per_subject) & set(state.trained)
    if state.moved or (own and not profiled):
        return None
    chosen: Criterion | Objective = objective
    if objective.describe().scale is not None and not profiled:
        chosen = objective.criterion(model.size(population))
        if chosen.noise is not None:
            return None
    sizes = {name: value[..., 0].numel() for name, value in state.trained.items() if name not in own}
    weights = [name for name in sizes if not _outside(name)]
    few = sum(sizes.values()) <= FEW
    if not few and (profiled or len(weights) == len(sizes)):
        return None
    return Polish(chosen, () if few else tuple(weights), profiled)


def _outside(name: str) -> bool:
    """Whether a trained value is outside networks."""
    return name in POPULATION or name.startswith("global.")


def polished(
    model: Model,
    polish: Polish,
    population: Population,
    streams: Sequence[Stream],
    trained: Trained,
    log: bool,
    enough: float | None = None,
) -> Trained:
    """Fits that have not failed, with their end at the optimum nearby.

    :param population: their subjects in double precision. :param log: see ``Course``.
    :param enough: OFV that their end may lie above it, of an end that is none; None: it is at the optimum.
    """
    assert trained.ends is not None
    chosen, fixed, dtype = polish.criterion, polish.fixed, torch.float64
    objective = chosen.objective if isinstance(chosen, Criterion) else chosen
    begun = objective.init(model, population, streams, dtype)
    values = trained.layout.unpack(trained.ends.values.to(dtype))
    carried = {
        name: _as(trained.state.carried[name], value) if name in trained.state.carried else value
        for name, value in begun.carried.items()
    }
    whole = replace(begun, trained=values, carried=carried)
    profile = objective.profile(model, population) if polish.profiled else None
    judged = chosen if profile is None else profile
    searched, state, length = objective, whole, None
    if profile is not None:
        shared = {name: value for name, value in values.items() if name not in begun.per_subject}
        own = objective.profiled(model, population, whole)
        searched, state = profile.objective, State(shared, own, tuple(own))
        length = max(1, _ELEMENTS // (profile.places * population.shape[0] * len(streams)))
    parts = population if length is None else population.by_subject()

    def evaluated(objective: Objective, fits: Tensor) -> Evaluation:
        """Some of them, (n,)."""
        trained, carried = (
            {name: value[..., fits] for name, value in of.items()} for of in (state.trained, state.carried)
        )
        some = replace(state, trained=trained, carried=carried)
        own = [streams[fit] for fit in fits.tolist()]
        return Evaluation(model, objective, parts.of_fits(fits), some, own, dtype, length, log)

    evaluation = evaluated(searched, torch.arange(len(streams), device="cpu"))
    alive = torch.tensor([failure is None for failure in trained.failures], device="cpu")
    free = ~evaluation.layout.rows(fixed)
    if isinstance(judged, Criterion):
        unit = torch.full_like(trained.ends.objective.to(dtype), 2 / judged.scale)
    else:  # as if it were that of a normal error
        unit = population.observation_count / trained.ends.objective.to(dtype).abs().clamp(min=1e-300)
    places = evaluation.layout.places
    steps = Coordinates(model, places, evaluation.packed(state), log)
    found = Search(partial(evaluated, searched), steps, state.carried, unit, free, alive).run(enough)
    rules = [RULE] * len(streams)
    held, left = searched.held(), alive & ~(found.gain < LEAST) & torch.isfinite(found.loss)
    if held is not None and enough is None and bool(left.any()):
        fits = left.nonzero()[:, 0]
        search = Search(
            lambda some: evaluated(held, fits[some]),
            Coordinates(model, places, found.x[:, fits], log),
            {name: value[..., fits] for name, value in found.carried.items()},
            unit[fits],
            free,
            alive[fits],
            _TURNS_HELD,
        )
        again = search.run()
        found = joined(found, again, fits)
        for fit in fits[again.gain < LEAST].tolist():
            rules[fit] = RULE_HELD
    there = evaluation.layout.unpack(evaluation.scales.model(found.x))
    last = replace(whole, trained=there, carried={**whole.carried, **found.carried})
    loss, error, arrived = found.loss, torch.zeros_like(found.loss), found.gain < LEAST
    if profile is not None:
        profiled = State(there, found.carried, tuple(found.carried))
        unfound = searched.unconverged(population, profiled)
        arrived &= unfound == 0 if unfound is not None else torch.ones_like(arrived)
        last = replace(whole, trained={**there, **objective.restored(model, population, profiled)})
        loss, error = _at_rest(model, objective, population, last, streams, log)
        # The points' optimum is not that of all draws; where it is worse, nothing is gained.
        worse = loss > trained.ends.objective + _ERRORS * torch.hypot(error, trained.ends.error)
        arrived, alive = arrived & ~worse, alive & ~worse
        rules = [f"{RULE}, whose expectation is that over {profile.places} points"] * len(rules)
    to = trained.layout.pack(last.trained)
    ends = _ends(trained.ends, alive, to, (loss, error), arrived, rules, first=bool(fixed))
    kept = {name: _as(value, trained.state.carried.get(name, value)) for name, value in last.carried.items()}
    state = replace(
        trained.state,
        trained=trained.layout.unpack(ends.values),
        carried={**trained.state.carried, **kept},
    )
    return replace(trained, ends=ends, state=state)


def _ends(
    before: Ends,
    moved: Tensor,
    values: Tensor,
    objective: tuple[Tensor, Tensor],
    arrived: Tensor,
    rules: Sequence[str],
    first: bool,
) -> Ends:
    """Where fits have ended: those that have ``moved`` (B,) at ``values`` (P, B), with the objective and its
    error there; they have converged if they have ``arrived``, and where the ``first`` rule
    is asked for by that too."""
    loss, error = objective
    return Ends(
        torch.where(moved, values.to(before.values.dtype), before.values),
        torch.where(moved, loss.to(before.objective.dtype), before.objective),
        torch.where(moved, error.to(before.error.dtype), before.error),
        before.epoch,
        arrived & moved & (before.converged if first else torch.ones_like(moved)),
        tuple(
            f"{one}; then {rule}" if first else rule for one, rule in zip(before.rules, rules, strict=True)
        ),
    )


def _at_rest(
    model: Model,
    objective: Objective,
    population: Population,
    state: State,
    streams: Sequence[Stream],
    log: bool,
) -> tuple[Tensor, Tensor]:
    """The objective and its Monte Carlo error, (B,) each."""
    evaluation = Evaluation(model, objective, population, state, streams, torch.float64, None, log)
    return evaluation.at_rest(evaluation.packed(state), state.carried, streams)


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype) if value.is_floating_point() else value
