"""Endpoints of linear models other than the central compartment, and what is collected over a time, against
scipy's integration of all compartments and of what leaves them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk import (
    LinearModel,
    MixedAbsorption,
    OdeModel,
    PkModel,
    Schedule,
    TransitAbsorption,
    sensitivities,
    solve,
)
from medcm_cli.pk.models import kinetics
from tests.pk.regimens import MAKERS, Dose, Regimen, built, close, column, integrated, linear_rhs, spread

SHAPES = {"one": 1, "two": 2, "three": 3}
TIMES = (0.5, 2.0, 6.0, 12.0, 18.0, 24.0, 30.0)
REGIMENS = {
    "boluses": Regimen([Dose(0.0), Dose(12.0, 800)], TIMES),
    "infusions": Regimen([Dose(0.0, 900, 1.0), Dose(1.0, 1500, 20.0)], TIMES),
    "reset": Regimen([Dose(0.0), Dose(13.0, 800)], TIMES, resets=(13.0,)),
    "steady state": Regimen([Dose(0.0, 1000, 2.0, interval=12.0), Dose(12.0, 300)], TIMES),
}
OVER = dict(zip(TIMES, (0.5, 1.0, 4.0, 6.0, 4.0, 6.0, 5.0), strict=True))


def amounts(pk: LinearModel, regimen: Regimen, z: dict[str, float], times: tuple[float, ...]) -> np.ndarray:
    """In every compartment, and eliminated: (C + 1, T)."""
    plain = linear_rhs(SHAPES[shape_of(pk)], pk.absorption)
    size = len(pk.states)

    def rhs(t: float, a: np.ndarray, z: dict[str, float]) -> np.ndarray:
        return np.append(plain(t, a[:-1], z), z["CL"] / z["V1"] * a[pk.central])

    at = replace(regimen, times=times)
    rows = [integrated(rhs, size + 1, place, 0, at, lambda _: z, series=60) for place in range(size + 1)]
    found: np.ndarray = np.stack(rows) * z["V1"] * 1000
    return found


def shape_of(pk: LinearModel) -> str:
    return ("one", "two", "three")[("Q" in pk.parameters) + ("Q3" in pk.parameters)]


def of_endpoint(schedule: Schedule, number: int, over: Tensor | None = None) -> Schedule:
    return replace(schedule, endpoint=torch.full_like(schedule.time, number, dtype=torch.long), over=over)


CASES = [
    pytest.param(
        shape,
        absorption,
        regimen,
        marks=pytest.mark.slow if regimen == "steady state" and (shape, absorption) != ("one", False) else (),
    )
    for shape in SHAPES
    for absorption in (False, True)
    for regimen in REGIMENS
]


@pytest.mark.parametrize(("shape", "absorption", "regimen"), CASES)
def test_amounts_and_concentrations_are_those_of_scipy(shape: str, absorption: bool, regimen: str) -> None:
    plain = MAKERS[shape](1.0, absorption)
    pk = plain.observing(plain.outputs)
    z = spread(pk.parameters, 3, 1)
    of = {name: float(value) for name, value in z.items()}
    given = REGIMENS[regimen]
    begins = tuple(max(time - OVER[time], *(r for r in given.resets if r <= time), 0.0) for time in TIMES)
    want = amounts(pk, given, of, TIMES)
    before = amounts(pk, given, of, begins)
    schedule, over = built(given), column([OVER[time] for time in TIMES])
    for number, name in enumerate(pk.outputs):
        if name == "excreted":
            got = solve(pk, of_endpoint(schedule, number, over), z)[:, 0, 0, 0]
            close(got, want[-1] - before[-1], 1e-7)
            if regimen != "steady state":
                close(solve(pk, of_endpoint(schedule, number), z)[:, 0, 0, 0], want[-1], 1e-7)
            continue
        state = name.removesuffix("_amount").removesuffix("_concentration")
        volume = {"peripheral": "V2", "peripheral_2": "V3"}.get(state, "V1")
        level = name == "central" or name.endswith("_concentration")
        row = want[pk.states.index(state)] / (of[volume] if level else 1)
        close(solve(pk, of_endpoint(schedule, number), z)[:, 0, 0, 0], row, 1e-7)
    # The same of the model itself, and of one observation after another of each endpoint.
    close(solve(pk, of_endpoint(schedule, 0), z), solve(plain, schedule, z).numpy(), 1e-10)
    which = column([n % 2 for n in range(len(TIMES))]).long()
    each = [solve(pk, of_endpoint(schedule, place), z) for place in (0, 1)]
    mixed = solve(pk, replace(schedule, endpoint=which), z)
    assert torch.equal(mixed, torch.where(which == 1, each[1], each[0]))


def two_in_urine(absorption: bool) -> LinearModel:
    pk = MAKERS["two"](1.0, absorption, excreted="FE")
    return pk.observing(["central", "excreted", "peripheral"])


def mixed_in_urine() -> PkModel:
    pk = MixedAbsorption("parallel", 1, 1.0, excreted="FE")
    return pk.observing(["central", "excreted", "depot"])


def transit_in_urine() -> PkModel:
    pk = TransitAbsorption(2, 1.0, excreted="FE")
    return pk.observing(["central", "excreted", "peripheral"])


def rate_in_urine() -> PkModel:
    return OdeModel(
        with_urine,
        ("CL", "V1", "Q", "V2", "FE"),
        amount_per_level=1.0,
        rtol=1e-10,
        atol=1e-10,
        method="tsit5",
    ).observing(["central", "urine", "peripheral"])


def with_urine(t: Tensor, a: object, p: object) -> dict[str, Tensor]:
    found = kinetics.kinetics_rate(t, a, p)
    return {**found, "urine": p.FE * p.CL / p.V1 * a.central}  # type: ignore[attr-defined]


MODELS: dict[str, Callable[[], PkModel]] = {
    "two": lambda: two_in_urine(False),
    "two, oral": lambda: two_in_urine(True),
    "parallel absorption": mixed_in_urine,
    "transit absorption": transit_in_urine,
    "by a rate": rate_in_urine,
}


@pytest.mark.parametrize("model", MODELS)
def test_sensitivities_are_differences(model: str) -> None:
    """Of every endpoint, some collected over a time, by every parameter; and of the gradient of these."""
    pk, given = MODELS[model](), REGIMENS["boluses"]
    shares = {"FE": 0.4, "D": 3.0, "ODDS": 0.7, "NTR": 2.7, "MTT": 1.6}
    z = spread([n for n in pk.parameters if n not in shares], 5, 2)
    z |= {name: torch.full_like(z["CL"], value) for name, value in shares.items()}
    z = {name: z[name] for name in pk.parameters}
    over = column([0.0, 1.0, 0.0, 4.0, 6.0, 0.0, 5.0])
    schedule = replace(built(given), endpoint=column([0, 1, 2, 1, 1, 0, 1]).long(), over=over)
    prediction, columns = sensitivities(pk, schedule, z, pk.parameters)
    torch.testing.assert_close(prediction, solve(pk, schedule, z), rtol=1e-9, atol=1e-9)
    step = 1e-5
    for name, got in zip(pk.parameters, columns, strict=True):
        up, down = (solve(pk, schedule, {**z, name: z[name] * np.exp(by)}) for by in (step, -step))
        close(got, ((up - down) / (2 * step)).numpy(), 1e-6)


def test_what_is_excreted_is_the_share_of_what_is_eliminated() -> None:
    """All that was given in the end, times the share."""
    pk = two_in_urine(True)
    z = {**spread(["CL", "V1", "Q", "V2", "KA"], 2, 1), "FE": torch.full((1, 1, 1), 0.3, dtype=torch.float64)}
    schedule = of_endpoint(built(Regimen([Dose(0.0, 700), Dose(5.0, 300, 2.0)], (2000.0,))), 1)
    assert solve(pk, schedule, z).item() == pytest.approx(0.3 * 1000, rel=1e-9)


def test_a_share_that_nothing_is_observed_of_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"pk\.excreted is FE; expected an endpoint whose output is excreted"
    ):
        MAKERS["one"](1.0, excreted="FE").observing(["central"])
    with pytest.raises(InputError, match=r"pk\.excreted is 5; expected the name of a parameter"):
        MAKERS["one"](1.0, excreted=5)  # type: ignore[arg-type]
