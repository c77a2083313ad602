"""Every regimen again, with lag times and durations beyond two intervals, parameters that follow each
record, and the rate of an infusion: closed form, stepwise and integrated, against an independent course."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.data import Format, Population, read_events
from medcm_cli.pk import (
    LinearModel,
    OdeModel,
    check_schedule,
    one_compartment,
    sensitivities,
    solve,
    stepwise,
)
from medcm_cli.pk.derivatives import reverse_over_reverse
from tests.data.test_regimens import (
    CHANGING,
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
    largest,
    levels,
    linear_reference,
    seen,
    table_of,
)
from tests.helpers import schedule_of
from tests.pk.regimens import shape_of

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
    for name, rows in (REGIMENS | ORAL | CHANGING | MODELLED).items()
}
FEW = ("steady state of infusions", "two records of one time", "modelled duration")
EVERY = ("CL", "KA", "V1", "F", "LAG", "D")


class Case(NamedTuple):
    """``true`` parameters, of which some ``follow`` each record's weight, and whether every regimen is
    ``interrupted`` and begins again."""

    true: dict[str, float]
    follow: tuple[str, ...] = ()
    interrupted: bool = False

    def of(self, wt: Any) -> dict[str, Any]:
        """Parameters at a weight: numbers, or tensors of its shape where they follow it."""
        ratio = wt / 70
        factors = {"CL": ratio**2, "KA": ratio, "V1": ratio, "F": ratio**0.5, "LAG": ratio, "D": 1 / ratio}
        return self.true | {name: self.true[name] * factors[name] for name in self.follow}

    def rows(self, rows: list[Row]) -> list[Row]:
        """A regimen, with another weight in every record where anything follows it."""
        if self.interrupted:
            half = rows[: (len(rows) + 1) // 2]
            reset = half[-1]["time"] + 0.7
            rows = [*half, *seen(reset, evid=3), *seen(reset + 1.9), *seen(0, evid=3), *rows]
        if not self.follow:
            return rows
        return [{**row, "wt": 60.0 + 7 * ((2 * number) % 5)} for number, row in enumerate(rows)]


CASES = {
    "constant": Case(TRUE),
    "far": Case(TRUE | FAR),
    "far, resets": Case(TRUE | FAR, interrupted=True),
    "doses by record, far, resets": Case(TRUE | FAR, ("F", "LAG", "D"), interrupted=True),
    "by record": Case(TRUE, EVERY),
    "by record, far": Case(TRUE | FAR, EVERY),
    "by record, far, resets": Case(TRUE | FAR, EVERY, interrupted=True),
}
FOLLOWED = [name for name, case in CASES.items() if "CL" in case.follow]  # no closed form


def of_regimens(
    folder: Path, pk: LinearModel, case: Case, names: Sequence[str] = tuple(ALL)
) -> tuple[Population, dict[str, Tensor], list[np.ndarray], list[str]]:
    """Regimens as the subjects of one table, parameters of the model, what the course of each is, and the
    names of those that there are: without absorption none by mouth."""
    some = {name: case.rows(ALL[name]) for name in names if pk.absorption or name not in ORAL}
    options: dict[str, Any] = {"lag": {1: "LAG"}, "fraction": {1: "F"}, "length": {1: "D"}}
    reference = linear_reference(shape_of(pk), pk.absorption, **options)
    wanted = expected(reference, list(some.values()), case.of)
    population = Population.from_events(table_of(folder, list(some.values()), "record"), F64)
    z = case.of(population.covariates["wt"])
    values = {name: torch.as_tensor(z[name], dtype=F64) for name in pk.parameters}
    return population, values, wanted, list(some)


def integrated(linear: LinearModel) -> OdeModel:
    """The same equations, integrated."""

    def rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
        del t
        matrix = linear.rate_matrix(p._asdict())
        rows = (matrix @ torch.stack(a, -1)[..., None])[..., 0].unbind(-1)
        return dict(zip(a._fields, rows, strict=True))

    names = tuple(name for name in linear.parameters if name not in ("LAG", "F", "D"))
    states = [f"c{number}" for number in range(shape_of(linear) + linear.central)]
    own: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-5}
    return OdeModel(rate, names, states, observed=1 + linear.central, method="tsit5", **DOSED, **own)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_linear_models_have_every_regimen(
    tmp_path: Path, compartments: int, absorption: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In closed form where the rates of amounts stay, whatever a dose's record says of it, and stepwise
    always."""
    pk = MAKE[compartments](absorption=absorption, **DOSED)
    population, z, wanted, names = of_regimens(tmp_path, pk, CASES[name])
    check_schedule(pk, population.schedule)
    compare(stepwise.predict(pk, schedule_of(population), z), wanted, names)
    if name in FOLLOWED:
        return
    monkeypatch.setattr(stepwise, "predict", None)
    compare(solve(pk, population.schedule, z), wanted, names)


@pytest.mark.parametrize("name", FOLLOWED)
def test_rates_that_follow_the_record_are_solved_stepwise(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the parameters that amounts move by, the volume of observations among them."""
    pk = MAKE[2](absorption=True, **DOSED)
    population, z, *_ = of_regimens(tmp_path, pk, CASES[name])
    middle = {key: value.mean() if value.ndim else value for key, value in z.items()}
    asked = list[str]()
    monkeypatch.setattr(stepwise, "predict", lambda *_: asked.append("stepwise"))
    for key in EVERY:
        asked.clear()
        solve(pk, population.schedule, middle | {key: z[key]})
        assert asked == ["stepwise"] * (key in ("CL", "KA", "V1"))


@torch.no_grad()
def test_derivatives_of_doses_that_follow_the_record_are_those_stepwise(tmp_path: Path) -> None:
    pk = MAKE[2](absorption=True, **DOSED)
    population, z, *_ = of_regimens(tmp_path, pk, CASES["doses by record, far, resets"], FEW)
    names, schedule = ("CL", "F", "LAG", "D"), schedule_of(population)
    level, found = sensitivities(pk, schedule, z, names)
    _, wanted = reverse_over_reverse(lambda now: stepwise.predict(pk, schedule, now), schedule, z, names)
    for name, slope, other in zip(names, found, wanted, strict=True):
        assert largest(population, slope - other) < 1e-8 * largest(population, level), name


# Without the one that a model given as dA/dt, which may not be linear, refuses (pk/test_refusals).
INTEGRATED = tuple(name for name in ALL if name != ON_TOP)


def integrated_is_close(
    folder: Path, compartments: int, absorption: bool, case: Case, regimens: Sequence[str]
) -> None:
    linear = MAKE[compartments](absorption=absorption, **DOSED)
    population, z, wanted, names = of_regimens(folder, linear, case, regimens)
    pk = integrated(linear)
    check_schedule(pk, population.schedule)
    compare(solve(pk, population.schedule, z), wanted, names, within=1e-5)


@pytest.mark.parametrize(("compartments", "absorption"), [(3, False), (2, True)], ids=["3-iv", "2-oral"])
def test_integrated_models_have_some_regimens_too(
    tmp_path: Path, compartments: int, absorption: bool
) -> None:
    integrated_is_close(tmp_path, compartments, absorption, CASES["by record, far"], FEW[:2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in CASES if not name.endswith("far")]
)  # resets have these too
@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_integrated_models_have_every_regimen_too(
    tmp_path: Path, compartments: int, absorption: bool, name: str
) -> None:
    integrated_is_close(tmp_path, compartments, absorption, CASES[name], INTEGRATED)


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
