"""The library of conf/pk over 200 random regimens and parameters, of subjects whose parameters differ,
against their equations by scipy: integrated models by the tolerances that the configuration has, closed forms
to 1e-8."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.special import gammaln
from torch import Tensor

from medcm_cli.pk import PkModel, Schedule, check_schedule, solve
from medcm_cli.study.options import conf_dir, made
from tests.pk.regimens import TYPICAL, Piece, linear_rhs, pieces_of, random_regimens, together
from tests.pk.test_models import (
    CASES,
    ONE,
    TWO,
    Case,
    nothing,
    of,
    oral_two,
    saturable,
    sensitivities_are_differences,
    values_of,
)

SUBJECTS = 200
TOLERANCE = 1e-6  # rtol and atol of conf/_integrated.yaml
Array = np.ndarray


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


def given(case: Case, schedule: Schedule, z: dict[str, Array]) -> list[Piece]:
    """Doses as each way of absorption has them."""
    into = pieces_of(schedule, case.dosed)
    if case.choice == "absorption_transit":  # see ``entering``
        return [Piece(0, p.start, p.duration, 0 * p.amount) for p in into]
    if case.choice == "absorption_zero_order":
        return [Piece(0, p.start, z["D"], p.amount) for p in into]
    if case.choice in MIXED:
        share, wait = z["ODDS"] / (1 + z["ODDS"]), z["D"] * (case.choice == "absorption_sequential")
        first = [Piece(0, p.start + wait, p.duration, (1 - share) * p.amount) for p in into]
        return first + [Piece(1, p.start, z["D"], share * p.amount) for p in into]
    return into


def entering(case: Case, schedule: Schedule, z: dict[str, Array]) -> Callable[[Array], Array]:
    """What comes from transit compartments into the depot, amount/h at times (N,)."""
    if case.choice != "absorption_transit":
        return lambda t: 0 * t
    doses = pieces_of(schedule, 0)

    def rate(t: Array) -> Array:
        found = 0 * t
        for p in doses:
            x = np.maximum((z["NTR"] + 1) / z["MTT"] * (t - p.start), 1e-300)
            density = np.exp(z["NTR"] * np.log(x) - x - gammaln(z["NTR"] + 1)) * (z["NTR"] + 1) / z["MTT"]
            found = found + p.amount * np.where(t > p.start, density, 0)
        return found

    return rate


def weights() -> dict[str, Tensor]:
    """Of the learned elimination of ``neural_ode``: a hidden layer of 8."""
    g = torch.Generator().manual_seed(3)
    layers = [1.5 * torch.randn(8, 2, 1, generator=g).double(), torch.randn(1, 9, 1, generator=g).double()]
    return {f"pk.elimination.layer_{depth}": layer for depth, layer in enumerate(layers, 1)}


def learned(t: Any, y: Array, z: Any) -> list[Any]:
    """One compartment with CL f(C): softplus of what a network adds to its value at 0."""
    del t
    first, second = (layer[..., 0].numpy() for layer in weights().values())

    def output(c: Array) -> Array:
        hidden = np.tanh(first[:, :1] * c / 1000 + first[:, 1:])
        value: Array = second[0, :-1] @ hidden + second[0, -1]
        return value

    c = y[0] / z["V1"]
    share = np.log1p(np.exp(output(c) - output(0 * c) + np.log(np.e - 1)))
    return [-z["CL"] * share * c]


OTHERS = [
    Case(
        "michaelis_menten",
        {"VM": 8.0, "KM": 3.0, "V1": 5.0},
        lambda _, y, z: [-saturable(y[0] / z["V1"], z)],
        nothing,
        of(0, "V1"),
    ),
    Case(
        "two_compartment_ode",
        TWO,
        lambda _, y, z: oral_two(np.stack([0 * y[0], *y]), {**z, "KA": 0.0}, z["CL"] * y[0] / z["V1"])[1:],
        lambda _: [0.0, 0.0],
        of(0, "V1"),
    ),
    Case("neural_ode", ONE, learned, nothing, of(0, "V1"), size=5000.0),
]
ALL = [
    *CASES,
    *OTHERS,
    *map(linear_case, (*LINEAR, *MIXED)),
    *(linear_case(choice, 2) for choice in MIXED),
]
EACH = [pytest.param(case, id=f"{case.choice} {'-'.join(case.values)}") for case in ALL]


def drawn(case: Case, seed: int) -> dict[str, Tensor]:
    """Parameters (1, N, 1) and what a model has learned."""
    return {**values_of(case, SUBJECTS, seed), **(weights() if case.choice == "neural_ode" else {})}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["rms", "largest"])
@pytest.mark.parametrize("case", EACH)
def test_200_regimens_are_those_of_scipy(case: Case, norm: str) -> None:
    pk = model(case.choice, tuple(case.values), rtol=TOLERANCE, atol=TOLERANCE, norm=norm)
    closed = not hasattr(pk, "by_exponential") or pk.by_exponential
    if closed and norm != "rms":
        pytest.skip("closed forms take no steps")
    schedule = random_regimens(case.size, SUBJECTS, 7, at_once=case.choice in MIXED)
    check_schedule(pk, schedule)
    values = drawn(case, 8)
    z = {"KIN": np.ones(SUBJECTS), **{name: v[0, :, 0].numpy() for name, v in values.items()}}
    enter = entering(case, schedule, z)

    def right(t: Array, y: Array) -> Array:
        first, *others = case.right(t, y, z)
        return np.stack([np.broadcast_to(row, y[0].shape) for row in (first + enter(t), *others)])

    start = np.stack([np.broadcast_to(row, SUBJECTS) for row in case.start(z)]).astype(float)
    amounts = together(right, start, given(case, schedule, z), schedule, case.choice == "binding")
    want = np.stack([case.seen(each, z) for each in amounts])
    got = solve(pk, schedule, values).detach()
    if closed:
        agree(got, want, 1e-8)
    else:
        error = np.abs(got[:, 0, :, 0].numpy() - want) / (TOLERANCE + TOLERANCE * np.abs(want))
        assert float(error.max()) < 10


@pytest.mark.slow
@pytest.mark.parametrize("case", EACH)
def test_sensitivities_over_200_regimens_are_differences(case: Case) -> None:
    pk = model(case.choice, tuple(case.values), rtol=1e-7, atol=1e-7)
    schedule = random_regimens(case.size, SUBJECTS, 9, at_once=case.choice in MIXED)
    sensitivities_are_differences(pk, schedule, drawn(case, 10), tuple(case.values))


def test_every_model_over_time_is_there() -> None:
    files = {path.stem for path in (conf_dir() / "pk").glob("*.yaml")}
    assert {case.choice for case in ALL} == {name for name in files if "dose_response" not in name}
