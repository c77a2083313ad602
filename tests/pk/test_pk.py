"""Closed forms and the numerical path against scipy's integrator, finite differences and each other."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk import (
    LinearModel,
    OdeModel,
    PkModel,
    Schedule,
    one_compartment,
    sensitivities,
    solve,
    two_compartment,
    two_compartment_rate,
)
from medcm_cli.pk.derivatives import Direction, reverse_over_reverse
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.moments import moment
from tests.helpers import amounts_after

NAMES = ("CL", "V1", "Q", "V2")
ODE = OdeModel(two_compartment_rate, NAMES, 2, rtol=1e-8, atol=1e-8, method="tsit5")


def schedule(time: Tensor, start: Tensor, duration: Tensor, rate: Tensor) -> Schedule:
    """From (T, N) and (E, N) float64."""
    return Schedule.build(*(values[:, None, :, None] for values in (time, start, duration, rate * duration)))


def random_case(seed: int, subjects: int = 12) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Log-uniform parameters over two decades; three infusions of one minute to 20 h; observations before,
    inside and after them, some at the very moment an infusion starts or ends."""
    g = np.random.default_rng(seed)
    centre = {"CL": 0.1, "V1": 2.0, "Q": 0.15, "V2": 0.75}
    z = {name: value * np.exp(g.uniform(-2.3, 2.3, subjects)) for name, value in centre.items()}
    start = np.sort(g.uniform(0, 40, (3, subjects)), axis=0)
    start[0] = 0
    duration = np.exp(g.uniform(math.log(1 / 60), math.log(20), (3, subjects)))
    rate = g.uniform(200, 4000, (3, subjects)) / duration
    time = g.uniform(0, 90, (8, subjects))
    time[0], time[1] = start[1], start[1] + duration[1]
    time[2] = start[2] + duration[2] * 0.4
    time[3] = start[2] + 1e-3
    return {k: torch.from_numpy(v) for k, v in z.items()}, tuple(
        torch.from_numpy(np.ascontiguousarray(v)) for v in (np.sort(time, axis=0), start, duration, rate)
    )


def by_scipy(z: dict[str, Tensor], case: tuple[Tensor, ...], compartments: int) -> np.ndarray:
    """Levels (T, N) by integrating dA/dt from breakpoint to breakpoint."""
    time, start, duration, rate = (values.numpy() for values in case)
    levels = np.zeros_like(time)
    for n in range(time.shape[1]):
        cl, v1 = float(z["CL"][n]), float(z["V1"][n])
        k12, k21 = (float(z["Q"][n]) / v1, float(z["Q"][n] / z["V2"][n])) if compartments == 2 else (0, 0)
        matrix = np.array([[-cl / v1 - k12, k21], [k12, -k21]])
        edges = np.unique(np.concatenate([[0], time[:, n], start[:, n], start[:, n] + duration[:, n]]))
        amounts, at = np.zeros(2), {0.0: 0.0}
        for left, right in itertools.pairwise(edges):
            middle = (left + right) / 2
            on = (start[:, n] <= middle) & (middle < start[:, n] + duration[:, n])
            inflow = np.array([(rate[:, n] * on).sum(), 0])
            span = (float(left), float(right))
            amounts = amounts_after(
                lambda _, a, m: m @ a, span, amounts, inflow, matrix, rtol=1e-10, atol=1e-9
            )
            at[float(right)] = float(amounts[0])
        levels[:, n] = [at[float(t)] / v1 / 1000 for t in time[:, n]]
    return levels


def on_fits(z: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[None, :, None] for name, value in z.items()}


@pytest.mark.parametrize("seed", range(4))
def test_two_compartment_equals_scipy(seed: int) -> None:
    z, case = random_case(seed)
    got = solve(two_compartment(), schedule(*case), on_fits(z))[:, 0, :, 0].numpy()
    want = by_scipy(z, case, 2)
    assert np.abs(got - want).max() <= 1e-8 * want.max()
    seen = want > 1e-4 * want.max()
    assert (np.abs(got - want)[seen] / want[seen]).max() < 1e-8


def test_one_compartment_equals_scipy() -> None:
    z, case = random_case(7)
    got = solve(one_compartment(), schedule(*case), on_fits(z))[:, 0, :, 0].numpy()
    want = by_scipy(z, case, 1)
    seen = want > 1e-4 * want.max()
    assert (np.abs(got - want)[seen] / want[seen]).max() < 1e-8


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
def test_nearly_equal_eigenvalues(gap: float) -> None:
    """alpha = beta needs Q -> 0 and CL / V1 = Q / V2: both are approached together."""
    _, case = random_case(3)
    n = case[0].shape[1]
    k = 0.1
    one = torch.ones(n, dtype=torch.float64)
    z = {"CL": k * 2 * one, "V1": 2 * one, "Q": gap * one, "V2": gap / (k * (1 + gap)) * one}
    got = solve(two_compartment(), schedule(*case), on_fits(z))[:, 0, :, 0].numpy()
    want = by_scipy(z, case, 2)
    seen = want > 1e-4 * want.max()
    assert (np.abs(got - want)[seen] / want[seen]).max() < 1e-8


def test_gradient_near_equal_eigenvalues() -> None:
    """Against central differences, where the two eigenvalues differ by one part in a thousand."""
    _, case = random_case(3, subjects=1)
    k, gap = 0.1, 1e-6
    values = {"CL": k * 2, "V1": 2.0, "Q": gap, "V2": gap / (k * (1 + 1e-3))}
    z = {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}
    check_slopes(two_compartment(), z, case, ("CL", "V1", "V2"), tolerance=2e-6)


def test_vanishing_exchange_is_one_compartment() -> None:
    z, case = random_case(5)
    closed = {**z, "Q": torch.full_like(z["Q"], 1e-14)}
    two = solve(two_compartment(), schedule(*case), on_fits(closed))
    one = solve(one_compartment(), schedule(*case), on_fits(z))
    torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)


def test_superposition() -> None:
    """All doses at once equal the sum of each alone; the sum of disjoint pieces equals the infusion."""
    z, (time, start, duration, rate) = random_case(11)
    whole = solve(two_compartment(), schedule(time, start, duration, rate), on_fits(z))
    alone = sum(
        solve(
            two_compartment(),
            schedule(time, start[e : e + 1], duration[e : e + 1], rate[e : e + 1]),
            on_fits(z),
        )
        for e in range(3)
    )
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-14)
    half = duration / 2
    pieces = schedule(time, torch.cat([start, start + half]), half.repeat(2, 1), rate.repeat(2, 1))
    torch.testing.assert_close(whole, solve(two_compartment(), pieces, on_fits(z)), rtol=1e-11, atol=1e-14)


def check_slopes(
    pk: LinearModel, z: dict[str, Tensor], case: tuple[Tensor, ...], wrt: tuple[str, ...], tolerance: float
) -> None:
    """sensitivities() against central differences of solve() in log z, relative to the largest slope."""
    geometry = schedule(*case)
    prediction, slopes = sensitivities(pk, geometry, on_fits(z), wrt)
    torch.testing.assert_close(prediction, solve(pk, geometry, on_fits(z)), rtol=1e-12, atol=1e-14)
    for name, slope in zip(wrt, slopes, strict=True):
        h = 1e-5
        up, down = (
            solve(pk, geometry, on_fits({**z, name: z[name] * math.exp(sign * h)})) for sign in (1, -1)
        )
        wanted = (up - down) / (2 * h)
        assert float((slope - wanted).abs().max()) <= tolerance * float(prediction.max()), name


@pytest.mark.parametrize("pk", [one_compartment(), two_compartment()], ids=["one", "two"])
def test_sensitivities_equal_finite_differences(pk: LinearModel) -> None:
    z, case = random_case(2, subjects=4)
    check_slopes(pk, {name: z[name] for name in pk.parameters}, case, pk.parameters, tolerance=2e-8)


PKS = {"one": one_compartment(), "two": two_compartment(), "ode": ODE}


@pytest.mark.parametrize(
    ("solver", "width"),
    [
        *(("one", 1), ("one", 2), ("one", 4), ("two", 1), ("two", 2), ("two", 4), ("ode", 1)),
        *(pytest.param("ode", width, marks=pytest.mark.slow) for width in (2, 4)),
    ],
)
def test_a_value_per_fit_is_that_of_every_subject(solver: str, width: int) -> None:
    """Of any number of parameters, and for any number of random effects, also where all values are global."""
    pk = PKS[solver]
    z, (time, *doses) = random_case(2, subjects=3)
    geometry = schedule(time[:1], *(values[:1] for values in doses))
    full = {name: z[name][:1].expand(3)[None, :, None].clone() for name in pk.parameters}
    wrt = pk.parameters[:width]
    wanted, wanted_slopes = sensitivities(pk, geometry, full, wrt)
    for per_fit in (pk.parameters, pk.parameters[:1], pk.parameters[1:]):
        mixed = {name: full[name][0, 0] if name in per_fit else full[name] for name in pk.parameters}
        prediction, slopes = sensitivities(pk, geometry, mixed, wrt)
        torch.testing.assert_close(solve(pk, geometry, mixed), prediction, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(prediction, wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(list(slopes), list(wanted_slopes), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_sensitivities_of_torchdiffeq_path_equal_closed_form() -> None:
    z, (time, *doses) = random_case(2, subjects=2)
    geometry = schedule(time[1:4:2], *(values[:2] for values in doses))
    closed, wanted = sensitivities(two_compartment(), geometry, on_fits(z), NAMES)
    for differentiable in (True, False):
        with torch.set_grad_enabled(differentiable):
            prediction, slopes = sensitivities(ODE, geometry, on_fits(z), NAMES)
        assert float((prediction - closed).detach().abs().max()) < 1e-6 * float(closed.max())
        for slope, other in zip(slopes, wanted, strict=True):
            assert float((slope - other).detach().abs().max()) < 1e-6 * float(closed.max())


@pytest.mark.parametrize("pk", [one_compartment(), two_compartment()], ids=["one", "two"])
def test_reverse_mode_equals_sensitivities_and_second_derivatives(pk: LinearModel) -> None:
    z, case = random_case(4, subjects=2)
    geometry = schedule(*case)
    logs = {name: on_fits(z)[name].log().requires_grad_() for name in pk.parameters}

    def predict(*values: Tensor) -> Tensor:
        return solve(pk, geometry, {n: v.exp() for n, v in zip(pk.parameters, values, strict=True)}) / 100

    def columns(*values: Tensor) -> tuple[Tensor, ...]:
        at = {n: v.exp() for n, v in zip(pk.parameters, values, strict=True)}
        return tuple(column / 100 for column in sensitivities(pk, geometry, at, pk.parameters)[1])

    assert torch.autograd.gradcheck(predict, tuple(logs.values()), atol=1e-6)
    assert torch.autograd.gradcheck(columns, tuple(logs.values()), atol=1e-6)


def test_torchdiffeq_equals_closed_form_with_gradient() -> None:
    z, case = random_case(6, subjects=5)
    geometry = schedule(*case)
    results = []
    for pk in (two_compartment(), ODE):
        leaves = {name: value.clone().requires_grad_() for name, value in on_fits(z).items()}
        prediction = solve(pk, geometry, leaves)
        gradient = torch.autograd.grad(prediction.square().sum(), list(leaves.values()))
        results.append((prediction.detach(), *gradient))
    for closed, integrated in zip(*results, strict=True):
        torch.testing.assert_close(integrated, closed, rtol=1e-5, atol=1e-5 * float(closed.abs().max()))


def test_equations_without_a_solution_are_told_in_one_line() -> None:
    """dA/dt = A^3 reaches infinity in a finite time."""

    def blow_up(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
        del t
        return {"central": a.central**3 * p.K}

    pk = OdeModel(blow_up, ("K", "V1"), 1, "V1")
    hours, one = torch.tensor([[5.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    z = {name: torch.ones(1, 1, 1, dtype=torch.float64) for name in ("K", "V1")}
    with pytest.raises(InputError, match="cannot be solved") as caught:
        solve(pk, schedule(hours, 0 * one, one, 10 * one), z)
    assert "\n" not in str(caught.value)


def test_sensitivities_where_nothing_is_observed() -> None:
    """A patient without any level: what is predicted before all doses does not depend on the parameters."""
    z, (_, *doses) = random_case(3, subjects=2)
    before = schedule(torch.zeros(1, 2, dtype=torch.float64), doses[0] + 1, *doses[1:])
    for differentiable in (True, False):
        with torch.set_grad_enabled(differentiable):
            prediction, slopes = sensitivities(ODE, before, on_fits(z), NAMES)
        assert len(slopes) == len(NAMES)
        assert not any(bool(values.any()) for values in (prediction, *slopes))


def test_default_tolerances_of_torchdiffeq_path_are_within_1e5() -> None:
    z, case = random_case(8, subjects=5)
    closed = solve(two_compartment(), schedule(*case), on_fits(z))
    integrated = solve(OdeModel(two_compartment_rate, NAMES, 2, method="tsit5"), schedule(*case), on_fits(z))
    assert float((integrated - closed).abs().max()) < 1e-5 * float(closed.max())


def test_float32_bolus_seen_late_keeps_its_digits() -> None:
    """A one-minute infusion seen two days later: the difference of two cumulative amounts would lose three
    digits."""
    z, _ = random_case(9)
    n = len(z["CL"])
    case = [torch.full((1, n), v, dtype=torch.float64) for v in (48.0, 0.0, 1 / 60, 120_000.0)]
    exact = solve(two_compartment(), schedule(*case), on_fits(z))
    single = [values.float() for values in case]
    rounded = solve(two_compartment(), schedule(*single), {k: v.float() for k, v in on_fits(z).items()})
    rates = two_compartment().response(on_fits(z)).rates
    # exp(-rate t) turns the rounding of rate t into a relative error of that size; nothing else may be lost.
    allowed = 2e-6 * (1 + 48 * rates[1].max())
    seen = exact > 1e-6
    assert float(((rounded - exact).abs() / exact)[seen].max()) < float(allowed)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_moments_equal_quadrature(order: int) -> None:
    x = torch.tensor([0.0, 1e-12, 1e-4, 0.1, 0.499, 0.5, 0.501, 1.0, 5.0, 40.0, 300.0], dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u, w = (1 + nodes) / 2, weights / 2
    wanted = torch.tensor([(w * u**order * np.exp(-value * u)).sum() for value in x.tolist()])
    torch.testing.assert_close(moment(x, order), wanted, rtol=2e-12, atol=0)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_moment_is_its_own_whatever_stands_beside_it(order: int, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1e-4, 0.1, 0.499, 0.501, 1.0, 40.0, math.nan], dtype=dtype)
    alone = torch.cat([moment(value.view(1), order) for value in x])
    for together, wanted in ((x, alone), (x[:-1], alone[:-1]), (x.view(2, 4).T, alone.view(2, 4).T)):
        torch.testing.assert_close(moment(together, order), wanted, rtol=0, atol=0, equal_nan=True)


def test_moment_derivatives() -> None:
    x = torch.tensor([0.01, 0.3, 0.6, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: moment(v, 0), (x,))
    assert torch.autograd.gradgradcheck(lambda v: moment(v, 0), (x,))


def test_parameters_of_fits_samples_and_subjects_broadcast() -> None:
    """A value per fit gives what the same value spread over subjects gives."""
    z, case = random_case(10, subjects=3)
    geometry = schedule(*case)
    shared = {
        **on_fits(z),
        "Q": torch.tensor([0.2], dtype=torch.float64),
        "V2": torch.tensor([0.9], dtype=torch.float64),
    }
    spread = {name: value.expand(2, 3, 1) for name, value in shared.items()}
    for pk in (two_compartment(), ODE):
        torch.testing.assert_close(
            solve(pk, geometry, shared).expand(-1, 2, -1, -1), solve(pk, geometry, spread)
        )


@dataclass(frozen=True)
class Boluses(PkModel):
    """A compartment model as somebody else may write it: C = sum of amount / V1 / 1000 exp(-CL / V1 t)."""

    parameters: tuple[str, ...] = ("CL", "V1")
    lag: Mapping[int, str] = field(default_factory=dict)
    bioavailability: Mapping[int, str] = field(default_factory=dict)
    durations: Mapping[int, str] = field(default_factory=dict)

    @property
    def dosed(self) -> int:
        return 0

    @property
    def takes_doses(self) -> int:
        return 1

    def predict(self, schedule: Schedule, z: Values) -> Tensor:
        hours = schedule.since_end + schedule.infused
        left = schedule.given * torch.exp(-z["CL"] / z["V1"] * hours)
        return left.sum(0) / z["V1"] / 1000

    def sensitivities(
        self, schedule: Schedule, z: Values, wrt: Sequence[Direction]
    ) -> tuple[Tensor, list[Tensor]]:
        return reverse_over_reverse(lambda values: self.predict(schedule, values), schedule, z, wrt)


def test_a_compartment_model_is_one_class() -> None:
    """What it has not said of itself is what is safe to assume."""
    drawn, (time, start, _, _) = random_case(3)
    time, start = time[:, None, :, None], start[:, None, :, None]
    bolus = Schedule.build(time, start, torch.zeros_like(start), torch.full_like(start, 1000.0))
    z = on_fits({name: drawn[name] for name in ("CL", "V1")})
    own, known = Boluses(), one_compartment()
    torch.testing.assert_close(solve(own, bolus, z), solve(known, bolus, z), rtol=1e-12, atol=1e-14)
    for got, want in zip(
        sensitivities(own, bolus, z, ("CL", "V1"))[1],
        sensitivities(known, bolus, z, ("CL", "V1"))[1],
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
    assert (own.needs_double, own.scales_with_dose, own.half_life(z)) == (True, False, None)
    assert own.units == {"CL": "L/{time}", "V1": "L"}
