"""Derivatives in a direction that has part in some regimes alone, as kappas of occasions do: of every kind of
model against central differences of its predictions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medcm_cli.data import Format, Population, read_events
from medcm_cli.pk import (
    Along,
    OdeModel,
    PkModel,
    michaelis_menten_rate,
    one_compartment,
    sensitivities,
    solve,
    three_compartment,
    two_compartment,
    with_given,
)

F64 = torch.float64
NAMES = {"CL": 3.0, "V1": 30.0, "Q": 2.0, "V2": 40.0, "Q3": 1.0, "V3": 90.0, "KA": 0.8, "LAG": 0.4, "F": 0.7}
NAMES |= {"VM": 60.0, "KM": 12.0, "K": 0.1, "KD": 0.5, "D": 1.5}


def rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """One compartment with a baseline that it begins with, and an observed square root."""
    del t
    return {"drug": -p.VM * a.drug / (p.KM * p.V1 + a.drug)}


def begin(p: Any) -> dict[str, Tensor]:
    return {"drug": 0.1 * p.KM * p.V1}


def seen(t: Tensor, a: Any, p: Any) -> Tensor:
    del t
    found: Tensor = torch.sqrt(a.drug / p.V1 + 1e-3) * p.KM
    return found


TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10, "amount_per_level": 1.0}
MODELS: dict[str, PkModel] = {
    "one": one_compartment(1.0),
    "oral": one_compartment(1.0, absorption=True, lag={1: "LAG"}, bioavailability={1: "F"}),
    "two": two_compartment(1.0),
    "three": three_compartment(1.0, absorption=True),
    "given": with_given(one_compartment(1.0, absorption=True), {"CL": "K * V1", "KA": "K + KD"}),
    "saturable": OdeModel(
        michaelis_menten_rate, ("VM", "KM", "V1"), 1, lag={1: "LAG"}, bioavailability={1: "F"}, **TIGHT
    ),
    "absorbed": OdeModel(
        michaelis_menten_rate, ("VM", "KM", "V1", "KA"), observed=2, lag={1: "LAG"}, **TIGHT
    ),
    "output": OdeModel(rate, ("VM", "KM", "V1"), ("drug",), output=seen, start=begin, **TIGHT),
}
# Subject b has a reset, c a steady state and d one occasion alone.
TABLE = """ID,TIME,EVID,AMT,II,SS,ADDL,DV,OCC
a,0,1,500,0,0,0,.,1
a,3,0,.,.,.,.,5,1
a,9,0,.,.,.,.,4,1
a,12,1,500,6,0,2,.,2
a,13,0,.,.,.,.,5,2
a,27,0,.,.,.,.,4,2
a,30,1,300,0,0,0,.,3
a,31,0,.,.,.,.,4,3
b,0,1,700,0,0,0,.,1
b,4,0,.,.,.,.,6,1
b,24,4,700,0,0,0,.,2
b,26,0,.,.,.,.,6,2
c,0,1,400,12,1,0,.,1
c,5,0,.,.,.,.,5,1
c,12,1,400,0,0,0,.,2
c,14,0,.,.,.,.,5,2
d,0,1,500,0,0,0,.,1
d,6,0,.,.,.,.,6,1
"""


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Population:
    path = tmp_path_factory.mktemp("table") / "events.csv"
    path.write_text(TABLE)
    return Population.from_events(read_events(path, {}, Format(by_occasion=True)), F64)


def values(pk: PkModel, population: Population) -> dict[str, Tensor]:
    """Parameters (P, 1, N, 1), another one on each occasion."""
    assert population.occasion is not None
    generator = torch.Generator().manual_seed(2)
    found = {}
    for name in pk.parameters:
        shift = 0.3 * torch.randn(3, 1, 4, 1, generator=generator, dtype=F64)
        found[name] = NAMES[name] * torch.exp(shift.gather(0, population.occasion))
    return found


def differences(pk: PkModel, population: Population, z: Mapping[str, Tensor], one: Along) -> Tensor:
    step = 1e-5
    ends = [
        solve(pk, population.schedule, {**z, one.name: z[one.name] * torch.exp(sign * step * one.share)})
        for sign in (1, -1)
    ]
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "absorbed" else ()) for kind in MODELS]
)
def test_parts_of_a_derivative(population: Population, kind: str) -> None:
    pk = MODELS[kind]
    z = values(pk, population)
    wrt = [
        Along(name, (population.occasion == number).to(F64))  # type: ignore[union-attr]
        for number in range(3)
        for name in pk.parameters
    ]
    with torch.no_grad():
        f, columns = sensitivities(pk, population.schedule, z, wrt)
        plain, whole = sensitivities(pk, population.schedule, z, pk.parameters)
        torch.testing.assert_close(f, plain)
        for one, column in zip(wrt, columns, strict=True):
            want = differences(pk, population, z, one)
            scale = float(want.abs().max().clamp(min=1e-3))
            np.testing.assert_allclose(column / scale, want / scale, atol=2e-6, err_msg=str(one.name))
        for place, column in enumerate(whole):
            parts = sum(columns[place :: len(pk.parameters)])
            torch.testing.assert_close(parts, column, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", ["oral", "saturable", "absorbed", "given"])
def test_their_own_derivatives(population: Population, kind: str) -> None:
    """Which foce follows: of a column by a parameter, against differences."""
    pk = MODELS[kind]
    name = pk.parameters[0]
    z = values(pk, population)
    one = Along(name, (population.occasion == 1).to(F64))  # type: ignore[union-attr]
    shift = torch.zeros((), dtype=F64, requires_grad=True)

    def total(by: Tensor) -> Tensor:
        moved = {**z, name: z[name] * torch.exp(by)}
        return sensitivities(pk, population.schedule, moved, [one])[1][0].square().sum()

    (got,) = torch.autograd.grad(total(shift), shift)
    with torch.no_grad():
        want = (total(shift + 1e-4) - total(shift - 1e-4)) / 2e-4
    assert float(got) == pytest.approx(float(want), rel=1e-5)


def test_of_one_regime_a_share_is_a_factor() -> None:
    """Closed forms need no steps from event to event."""
    rows = pd.DataFrame({"ID": [1, 1], "TIME": [0.0, 5.0], "AMT": [100.0, np.nan], "EVID": [1, 0]})
    rows["DV"] = [np.nan, 2.0]
    schedule = Population.from_events(read_events(rows, {}), F64).schedule
    z = {name: torch.full((1, 1, 1), NAMES[name], dtype=F64) for name in ("CL", "V1")}
    half = torch.full((1, 1, 1), 0.5, dtype=F64)
    _, (whole, part) = sensitivities(one_compartment(1.0), schedule, z, ["V1", Along("V1", half)])
    torch.testing.assert_close(part, whole / 2)
