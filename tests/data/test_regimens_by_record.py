"""Every regimen again, with lag times and durations beyond two intervals, parameters that follow each
record, and the rate of an infusion: closed form, stepwise and integrated, against an independent course."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.data import Format, Population, read_events
from medcm_cli.pk import OdeModel, check_schedule, one_compartment, solve
from tests.data.test_regimens import (
    F64,
    MAKE,
    ON_TOP,
    ORAL,
    REGIMENS,
    TRUE,
    Row,
    compare,
    dose,
    expected,
    levels,
    linear_reference,
    of_weight,
    seen,
    table_of,
)

# -- lag times, durations and parameters of any size, record by record ------------------------------

DOSED: dict[str, Any] = {"lag": {1: "LAG"}, "bioavailability": {1: "F"}, "durations": {1: "D"}}
# Further than two intervals of any series: most of what a steady state has under way is still to come.
FAR = {"LAG": 27.37, "D": 31.3}
MODELLED: dict[str, list[Row]] = {
    "modelled duration": [dose(0, rate=-2), *seen(1, 28, 35.5, 46.3, 70)],
    "modelled duration, repeated": [dose(0, rate=-2, addl=2, ii=12), *seen(1, 33, 46, 70)],
    "modelled duration at steady state": [dose(0, rate=-2, ss=1, ii=12), *seen(0, 1, 7, 26, 30, 80)],
    "modelled durations, reset": [*(dose(0, rate=-2), *seen(40), *seen(45, evid=3)), dose(46), *seen(80)],
    "steady state after another": [
        *(dose(0, rate=-2, ss=1, ii=12), *seen(3, 30)),
        *(dose(31, 300, ss=1, ii=9), *seen(31, 40, 70)),
    ],
    "two records of one time": [*(dose(0), *seen(40), dose(40, 700), dose(40, 300, rate=50)), *seen(40, 71)],
}
# And samples after all has come.
ALL = {
    name: [*rows, *seen(rows[-1]["time"] + 29.1, rows[-1]["time"] + 61.3)]
    for name, rows in (REGIMENS | ORAL | MODELLED).items()
}


def ode(compartments: int) -> OdeModel:
    """The same equations, integrated."""
    linear = MAKE[compartments](absorption=True, **DOSED)

    def rate(t: Tensor, amounts: Tensor, z: Mapping[str, Tensor]) -> Tensor:
        del t
        return (linear.rate_matrix(z) @ amounts.movedim(0, -1)[..., None])[..., 0].movedim(-1, 0)

    names = tuple(name for name in linear.parameters if name not in ("LAG", "F", "D"))
    own: dict[str, Any] = {"method": "dopri8", "rtol": 1e-8, "atol": 1e-5}
    return OdeModel(rate, names, compartments + 1, observed=2, **DOSED, **own)


@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_lags_and_durations_beyond_two_intervals(tmp_path: Path, compartments: int) -> None:
    reference = linear_reference(compartments, True, lag={1: "LAG"}, fraction={1: "F"}, length={1: "D"})
    true = TRUE | FAR
    wanted = expected(reference, list(ALL.values()), lambda _: true)
    pk = MAKE[compartments](absorption=True, **DOSED)
    population = Population.from_events(table_of(tmp_path, list(ALL.values())), F64)
    check_schedule(pk, population.schedule)
    for found in levels(pk, population, true):
        compare(found, wanted, list(ALL))


def of_record(wt: float) -> dict[str, float]:
    """Everything follows a covariate: bioavailability, lag and duration of a dose, the volume of an
    observation."""
    return {
        **of_weight(wt),
        "V1": TRUE["V1"] * wt / 70,
        "F": TRUE["F"] * (wt / 70) ** 0.5,
        "LAG": FAR["LAG"] * wt / 70,
        "D": FAR["D"] * 70 / wt,
    }


def varied(regimens: dict[str, list[Row]]) -> list[list[Row]]:
    """Another weight in every record."""
    return [
        [{**row, "wt": 60.0 + 7 * ((2 * number) % 5)} for number, row in enumerate(rows)]
        for rows in regimens.values()
    ]


@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_every_parameter_follows_the_record(tmp_path: Path, compartments: int) -> None:
    reference = linear_reference(compartments, True, lag={1: "LAG"}, fraction={1: "F"}, length={1: "D"})
    pk, rows = MAKE[compartments](absorption=True, **DOSED), varied(ALL)
    population = Population.from_events(table_of(tmp_path, rows, "record"), F64)
    check_schedule(pk, population.schedule)
    found = solve(pk, population.schedule, by_record(pk.parameters, population))
    compare(found, expected(reference, rows, of_record), list(ALL))


def by_record(names: tuple[str, ...], population: Population) -> dict[str, Tensor]:
    weight = population.covariates["wt"]
    one = of_record(70)
    z = {name: torch.tensor([one[name]], dtype=F64).expand(weight.shape) for name in names}
    z |= {"CL": z["CL"] * (weight / 70) ** 2, "KA": z["KA"] * weight / 70, "V1": z["V1"] * weight / 70}
    z |= {"F": z["F"] * (weight / 70) ** 0.5, "LAG": z["LAG"] * weight / 70, "D": z["D"] * 70 / weight}
    return z


@pytest.mark.parametrize("changing", [False, True], ids=["constant", "by record"])
def test_integrated_models_have_every_regimen_too(tmp_path: Path, changing: bool) -> None:
    some = {name: rows for name, rows in ALL.items() if name != ON_TOP}
    rows = varied(some) if changing else list(some.values())
    reference = linear_reference(1, True, lag={1: "LAG"}, fraction={1: "F"}, length={1: "D"})
    pk = ode(1)
    population = Population.from_events(table_of(tmp_path, rows, "record"), F64)
    check_schedule(pk, population.schedule)
    true = TRUE | FAR
    wanted = expected(reference, rows, of_record if changing else lambda _: true)
    constant = {name: torch.tensor([true[name]], dtype=F64) for name in pk.parameters}
    z = by_record(pk.parameters, population) if changing else constant
    compare(solve(pk, population.schedule, z), wanted, list(some), within=1e-5)


def test_of_two_forms_at_one_time_each_has_its_own_bioavailability(tmp_path: Path) -> None:
    """100 mg of the second form at 0 h and of the first at 24 h, where a sample of the second was taken."""
    (tmp_path / "events.csv").write_text(
        "id,time,evid,amt,dv,form\n1,0,1,100,.,2\n1,24,0,.,1,2\n1,24,1,100,.,1\n1,30,0,.,1,1\n"
    )
    how = Format(over_time={"form": "record"})
    table = read_events(tmp_path / "events.csv", {"form": "form"}, how)
    population = Population.from_events(table, F64)
    pk = one_compartment(amount_per_level=1, bioavailability={1: "F"})
    z = {"CL": torch.tensor([2.0], dtype=F64), "V1": torch.tensor([20.0], dtype=F64)}
    z["F"] = torch.where(population.covariates["form"] == 1, 1.0, 0.5).to(F64)
    got = solve(pk, population.schedule, z).flatten()
    wanted = [2.5 * np.exp(-2.4), 2.5 * np.exp(-3.0) + 5 * np.exp(-0.6)]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


# -- the rate of an infusion -----------------------------------------------------------------------


@pytest.mark.parametrize(("keeps", "hours"), [("rate", 6.0), ("duration", 10.0)])
def test_bioavailability_stretches_an_infusion_or_scales_its_rate(
    tmp_path: Path, keeps: str, hours: float
) -> None:
    """F = 0.6 of 1000 at 100 IU/h; a duration that was given stays whatever the rule."""
    rows = [dose(0, rate=100), *seen(3, 5.9, 9, 12, 30)], [dose(0, rate=-2, duration=10), *seen(3, 30)]
    population = Population.from_events(table_of(tmp_path, list(rows)), F64)
    pk = one_compartment(bioavailability={1: "F"}, bioavailability_keeps=keeps)
    k = TRUE["CL"] / TRUE["V1"]

    def wanted(times: tuple[float, ...], length: float) -> np.ndarray:
        t, rate = np.array(times), 600 / length
        end = np.minimum(t, length)
        amount = rate / k * (np.exp(-k * (t - end)) - np.exp(-k * t))
        return np.asarray(amount / TRUE["V1"] / 1000)

    for got in levels(pk, population, TRUE):
        np.testing.assert_allclose(got[:, 0, 0, 0], wanted((3, 5.9, 9, 12, 30), hours), rtol=1e-9)
        np.testing.assert_allclose(got[:2, 0, 1, 0], wanted((3, 30), 10.0), rtol=1e-9)


@pytest.mark.parametrize("keeps", ["rate", "duration"])
def test_a_constant_infusion_keeps_its_rate(tmp_path: Path, keeps: str) -> None:
    population = Population.from_events(table_of(tmp_path, [REGIMENS["constant infusion until now"]]), F64)
    pk = one_compartment(bioavailability={1: "F"}, bioavailability_keeps=keeps)
    scale = {"rate": 1.0, "duration": TRUE["F"]}[keeps]
    decay = np.exp(-TRUE["CL"] / TRUE["V1"] * np.array([0, 2, 20]))
    for got in levels(pk, population, TRUE):
        np.testing.assert_allclose(got.flatten(), scale * 0.06 / TRUE["CL"] * decay, rtol=1e-9)
