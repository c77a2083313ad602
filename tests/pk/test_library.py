"""The library of conf/pk over 200 random regimens and parameters, against scipy: all subjects are integrated
together, each along its own events, which a change of the time in each interval makes the same for all."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.integrate import solve_ivp
from scipy.special import gammaln
from torch import Tensor

from medcm_cli.pk import PkModel, Schedule, check_schedule, solve
from medcm_cli.pk.schedule import Features
from medcm_cli.study.options import conf_dir, made
from tests.pk.regimens import TYPICAL, linear_rhs
from tests.pk.test_models import CASES, Case, nothing, of, sensitivities_are_differences

SUBJECTS, DOSES, OBSERVATIONS = 200, 3, 6
Array = np.ndarray


@dataclass(frozen=True)
class Piece:
    """Doses, each (N,): ``compartment`` that they go into, evenly over ``duration``, 0 at once."""

    compartment: int
    start: Array
    duration: Array
    amount: Array


@dataclass(frozen=True)
class Regimens:
    """``time`` (T, N); ``start``, ``duration`` and ``amount`` (E, N)."""

    time: Array
    start: Array
    duration: Array
    amount: Array

    @property
    def schedule(self) -> Schedule:
        def tensor(values: Array) -> Tensor:
            return torch.from_numpy(values)[:, None, :, None]

        each = map(tensor, (self.time, self.start, self.duration, self.amount))
        return Schedule.build(*each, features=Features())

    def pieces(self, into: int) -> list[Piece]:
        rows = zip(self.start, self.duration, self.amount, strict=True)
        return [Piece(into, *row) for row in rows]


def random(size: float, seed: int, at_once: bool = False) -> Regimens:
    """Half of the doses are infusions, unless all are given ``at_once``."""
    g = np.random.default_rng(seed)
    start = np.sort(g.uniform(0, 30, (DOSES, SUBJECTS)), 0)
    duration = np.where(g.random(start.shape) < 0.5, g.uniform(0.5, 6, start.shape), 0.0)
    amount = size * g.uniform(0.3, 1.5, start.shape)
    time = np.sort(g.uniform(0, 48, (OBSERVATIONS, SUBJECTS)), 0)
    return Regimens(time, start, 0 * duration if at_once else duration, amount)


def by_scipy(
    right: Callable[[Array, Array], Sequence[Any]], begin: Array, pieces: Sequence[Piece], time: Array
) -> Array:
    """Amounts (T, C, N) at the times (T, N).

    :param right: (t (N,), amounts (C, N)) -> dA/dt without doses, C rows. :param begin: (C, N).
    """
    y, shape = begin.astype(float), begin.shape
    last = time.max() + 1
    starts = np.stack([p.start for p in pieces])
    ends = np.stack([np.where(p.duration > 0, p.start + p.duration, last) for p in pieces])
    events = np.sort(np.concatenate([starts, ends, time]), 0)  # amounts are those at the first of them
    found = np.full((len(time), *shape), np.nan)
    for left, now in itertools.pairwise([np.full_like(events[0], -np.inf), *events]):
        anew = now > left  # several may be at one time
        left = np.where(np.isinf(left), now, left)
        width, inflow = now - left, np.zeros(shape)
        for p in pieces:
            runs = (p.start <= left) & (p.start + p.duration >= now) & (p.duration > 0)
            inflow[p.compartment] += np.where(runs, p.amount / np.where(runs, p.duration, 1), 0)

        def slope(
            s: float, flat: Array, left: Array = left, width: Array = width, inflow: Array = inflow
        ) -> Array:
            at = flat.reshape(shape)
            rows = [np.broadcast_to(row, at[0].shape) for row in right(left + s * width, at)]
            changed: Array = (width * (np.stack(rows) + inflow)).ravel()
            return changed

        if (width > 0).any():
            done = solve_ivp(slope, (0, 1), y.ravel(), method="DOP853", rtol=1e-11, atol=1e-11)
            y = done.y[:, -1].reshape(shape)
        for p in pieces:
            y[p.compartment] += np.where((p.start == now) & (p.duration == 0) & anew, p.amount, 0)
        found = np.where((time == now)[:, None], y, found)
    return found


def model(choice: str, parameters: Sequence[str], **options: Any) -> PkModel:
    """A choice as the configuration has it, in amount/L."""
    names = (
        "_doses",
        *(["_integrated"] if "OdeModel" in (conf_dir() / f"pk/{choice}.yaml").read_text() else []),
    )
    parts = [OmegaConf.load(conf_dir() / f"{name}.yaml") for name in (*names, f"pk/{choice}")]
    given = OmegaConf.to_container(OmegaConf.merge(*parts), resolve=True)
    assert isinstance(given, dict)
    config = {str(key): value for key, value in given.items() if key != "defaults"}
    if "amount_per_level" in config:
        config["amount_per_level"] = 1.0
    if "compartments" in config and "rate" not in config:
        config["compartments"] = 1 + ("Q" in parameters) + ("Q3" in parameters)
    if "rate" in config:
        config |= {"parameters": list(parameters), **options}
    pk: PkModel = made(config, "pk")
    assert set(pk.parameters) == set(parameters)
    return pk


def spread(values: dict[str, float], seed: int) -> dict[str, Array]:
    g = np.random.default_rng(seed)
    return {name: value * np.exp(g.uniform(-0.4, 0.4, SUBJECTS)) for name, value in values.items()}


def tensors(z: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value)[None, :, None] for name, value in z.items()}


def agree(got: Tensor, want: Array, tolerance: float) -> None:
    """Relative to the highest of each subject, or a thousandth of that of all."""
    found = got[:, 0, :, 0].detach().numpy()
    size = np.maximum(np.abs(want).max(0), 1e-3 * np.abs(want).max())
    assert (np.abs(found - want) / size).max() <= tolerance


LINEAR = {
    f"{shape}_compartment{oral}": (n, bool(oral))
    for n, shape in enumerate(("one", "two", "three"), 1)
    for oral in ("", "_oral")
}
MIXED = ("absorption_zero_order", "absorption_parallel", "absorption_sequential", "absorption_transit")
PARTS = {"D": 3.5, "ODDS": 0.7, "NTR": 2.7, "MTT": 1.6}


def linear_case(choice: str, compartments: int = 1) -> Case:
    """Closed forms and those around them, of so many ``compartments``."""
    n, oral = LINEAR.get(choice, (compartments, choice != "absorption_zero_order"))
    names = [*("CL", "V1", "Q", "V2", "Q3", "V3")[: 2 * n], *(["KA"] if oral else [])]
    own = {"absorption_zero_order": "D", "absorption_parallel": "D ODDS", "absorption_sequential": "D ODDS"}
    own |= {"absorption_transit": "NTR MTT"}
    values = {name: {**TYPICAL, **PARTS}[name] for name in (*names, *own.get(choice, "").split())}
    rhs = linear_rhs(n, oral)
    return Case(
        choice,
        values,
        lambda t, y, z: list(rhs(t, y, dict(z))),
        lambda z: nothing(z) * (n + oral),
        of(int(oral), "V1"),
    )


def pieces_of(case: Case, regimens: Regimens, z: dict[str, Array]) -> list[Piece]:
    """Doses as each way of absorption has them."""
    into = regimens.pieces(case.dosed)
    if case.choice == "absorption_transit":
        return []  # see ``entering``
    if case.choice == "absorption_zero_order":
        return [Piece(0, p.start, z["D"], p.amount) for p in into]
    if case.choice in MIXED:
        share, wait = z["ODDS"] / (1 + z["ODDS"]), z["D"] * (case.choice == "absorption_sequential")
        first = [Piece(0, p.start + wait, p.duration, (1 - share) * p.amount) for p in into]
        return first + [Piece(1, p.start, z["D"], share * p.amount) for p in into]
    return into


def entering(case: Case, regimens: Regimens, z: dict[str, Array]) -> Callable[[Array], Array]:
    """What comes from transit compartments into the depot, amount/h at times (N,)."""
    if case.choice != "absorption_transit":
        return lambda t: 0 * t

    def rate(t: Array) -> Array:
        x = np.maximum((z["NTR"] + 1) / z["MTT"] * (t - regimens.start), 1e-300)
        density = np.exp(z["NTR"] * np.log(x) - x - gammaln(z["NTR"] + 1)) * (z["NTR"] + 1) / z["MTT"]
        found: Array = (regimens.amount * np.where(t > regimens.start, density, 0)).sum(0)
        return found

    return rate


ALL = [*CASES, *map(linear_case, (*LINEAR, *MIXED)), *(linear_case(choice, 2) for choice in MIXED)]
EACH = [pytest.param(case, id=f"{case.choice} {'-'.join(case.values)}") for case in ALL]


@pytest.mark.slow
@pytest.mark.parametrize("case", EACH)
def test_200_regimens_are_those_of_scipy(case: Case) -> None:
    regimens = random(case.size, 7, at_once=case.choice in MIXED)
    z = spread(dict(case.values), 8)
    pk = model(case.choice, tuple(case.values), rtol=case.tolerance, atol=case.tolerance)
    schedule = regimens.schedule
    check_schedule(pk, schedule)
    hand = {"KIN": np.ones(SUBJECTS), **z}
    enter = entering(case, regimens, z)

    def right(t: Array, y: Array) -> list[Any]:
        rows = list(case.right(t, y, hand))
        return [rows[0] + enter(t), *rows[1:]]

    begin = np.stack([np.broadcast_to(value, SUBJECTS) for value in case.start(hand)])
    # Doses have begun where something comes in by transit, too.
    pieces = pieces_of(case, regimens, z) or [Piece(0, row, 0 * row, 0 * row) for row in regimens.start]
    amounts = by_scipy(right, begin, pieces, regimens.time)
    seen: list[Any] = [case.seen(each, hand) for each in amounts]
    closed = not hasattr(pk, "by_exponential") or pk.by_exponential
    agree(solve(pk, schedule, tensors(z)), np.stack(seen), 1e-8 if closed else 100 * case.tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("case", EACH)
def test_sensitivities_over_200_regimens_are_differences(case: Case) -> None:
    pk = model(case.choice, tuple(case.values), rtol=1e-7, atol=1e-7)
    schedule = random(case.size, 9, at_once=case.choice in MIXED).schedule
    sensitivities_are_differences(pk, schedule, tensors(spread(dict(case.values), 10)))


def test_every_model_over_time_is_there() -> None:
    """But for those in which nothing is by a formula of its own: without time, with a network, or the same as
    another, integrated."""
    others = {"neural_ode", "two_compartment_ode", "michaelis_menten"}
    files = {path.stem for path in (conf_dir() / "pk").glob("*.yaml")}
    assert {case.choice for case in ALL} == {name for name in files if "dose_response" not in name} - others
