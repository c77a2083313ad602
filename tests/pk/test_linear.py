"""Every regimen feature of every linear model, in closed form and stepwise, against scipy's integrator."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medcm_cli.errors import InputError
from medcm_cli.pk import (
    OdeModel,
    Schedule,
    check_schedule,
    sensitivities,
    solve,
    stepwise,
    three_compartment,
    two_compartment,
    two_compartment_rate,
)
from tests.pk.regimens import (
    AFTER,
    BOLUSES,
    FULL,
    INFUSIONS,
    MAKERS,
    NAMED,
    REPEATS,
    RESETS,
    STEADY,
    TYPICAL,
    Dose,
    Regimen,
    built,
    close,
    compare,
    full_model,
    integrated,
    linear_rhs,
    shape_of,
    spread,
)


@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "regimen", [BOLUSES, INFUSIONS, REPEATS, RESETS], ids=["bolus", "infusion", "addl", "reset"]
)
def test_regimen(name: str, absorption: bool, regimen: Regimen) -> None:
    compare(MAKERS[name](absorption=absorption), regimen)


@pytest.mark.parametrize("name", MAKERS)
def test_doses_into_depot_and_central(name: str) -> None:
    doses = [Dose(0.0), Dose(2.0, 400, 0.0, 1), Dose(6.0, 900, 9.0, 0), Dose(12.0, 700, 4.0, 1)]
    compare(MAKERS[name](absorption=True), Regimen(doses))


@pytest.mark.parametrize("name", MAKERS)
def test_lag_bioavailability_and_modelled_duration(name: str) -> None:
    doses = [
        *(Dose(0.0), Dose(2.0, 400, 0.0, 1), Dose(6.0, 900, 9.0, 0), Dose(12.0, 700, 4.0, 1)),
        *(Dose(13.0, 1200, 0.0, 0, modelled=True), Dose(24.0, 600, 0.0, 1, modelled=True)),
    ]
    pk = MAKERS[name](
        absorption=True,
        lag={1: "LAG", 2: "LAG2"},
        bioavailability={1: "F", 2: "F2"},
        durations={1: "D", 2: "D2"},
    )
    assert pk.parameters[-6:] == ("LAG", "LAG2", "F", "F2", "D", "D2")
    compare(pk, Regimen(doses, resets=(29.0,)))
    iv = MAKERS[name](lag={1: "LAG"}, bioavailability={1: "F"}, durations={1: "D"})
    compare(iv, Regimen([Dose(0.0), Dose(5.0, 700, 2.0), Dose(12.0, 900, modelled=True)]))


@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", STEADY)
def test_steady_state_is_a_long_simulation(name: str, absorption: bool, kind: str) -> None:
    regimen = Regimen([STEADY[kind]], AFTER, resets=(100.0,))
    compare(MAKERS[name](absorption=absorption), regimen, subjects=1)


def test_steady_state_with_lag_and_bioavailability() -> None:
    pk = two_compartment(absorption=True, lag={1: "LAG"}, bioavailability={1: "F"})
    compare(pk, Regimen([STEADY["bolus"], Dose(108.0)], AFTER, resets=(100.0,)))


def test_steady_state_on_top_of_what_is_there() -> None:
    """SS 2: superposition; the series cannot be seen before its record."""
    pk = two_compartment(absorption=True)
    z = spread(pk.parameters, 0, 1)
    dose, first = STEADY["infusion"], Dose(90.0, 1000, 20.0)
    times = (95.0, *AFTER)
    both, alone, series = (built(Regimen(doses, times)) for doses in ([first, dose], [first], [dose]))
    for solved in (solve, stepwise.predict):
        got = solved(pk, both, z)
        torch.testing.assert_close(got, solved(pk, alone, z) + solved(pk, series, z))
        assert float(solved(pk, series, z)[0]) == 0
    check_schedule(pk, both)
    with pytest.raises(InputError, match="SS 2"):
        check_schedule(OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), method="tsit5"), both)


@pytest.mark.parametrize("name", MAKERS)
def test_constant_infusion_at_steady_state(name: str) -> None:
    """Of 100 IU/h for 1e5 h: the level is rate / CL, and decays as scipy has it."""
    pk = MAKERS[name]()
    long = 1e5
    z = spread(pk.parameters, 1, 2)
    schedule = built(Regimen([Dose(0.0, 100 * long, long)], (long, long + 5)))
    got = solve(pk, schedule, z)
    close(got[0, 0, :, 0], (100 / z["CL"][0, :, 0] / 1000).numpy())
    close(stepwise.predict(pk, schedule, z)[:, 0, :, 0], got[:, 0, :, 0].numpy())
    same = solve(pk, built(Regimen([Dose(0.0, 100 * 2e3, 2e3)], (2e3, 2e3 + 5))), z)
    close(got[:, 0, :, 0], same[:, 0, :, 0].numpy())


@pytest.mark.parametrize("absorption", [False, True], ids=["iv", "oral"])
@pytest.mark.parametrize("name", MAKERS)
def test_parameters_that_change_in_time(name: str, absorption: bool) -> None:
    pk = MAKERS[name](absorption=absorption, **NAMED)
    change = (5.0, 12.0, math.inf)
    kept = ("F", "V2")
    regimes = [spread(pk.parameters, seed, 2) for seed in range(3)]
    z = {
        n: regimes[0][n] if n in kept else torch.stack([regime[n] for regime in regimes])
        for n in pk.parameters
    }
    doses = [Dose(0.0), Dose(4.0, 900, 9.0), Dose(11.0, 700, modelled=True), Dose(28.0, 600, 6)]
    doses += [Dose(13.0, 500, 1.0, 1)] if absorption else []
    regimen = Regimen(doses, resets=(26.0,))

    def in_force(n: int, time: float) -> dict[str, float]:
        p = sum(end < time for end in change)
        return {name: float(regimes[0 if name in kept else p][name][0, n, 0]) for name in pk.parameters}

    compartments = shape_of(pk)
    got = solve(pk, built(regimen, change), z)
    for n in range(2):
        want = integrated(
            linear_rhs(compartments, absorption),
            compartments + absorption,
            pk.central,
            0,
            regimen,
            functools.partial(in_force, n),
            change,
        )
        close(got[:, 0, n, 0], want)


@pytest.mark.parametrize("name", MAKERS)
def test_what_follows_the_last_observation_does_not_matter(name: str) -> None:
    pk = full_model(name)
    z = spread(pk.parameters, 5, 2)
    seen_first = replace(FULL, times=FULL.times[:3])
    early = replace(seen_first, doses=FULL.doses[:3], resets=())
    for way in (solve, stepwise.predict):
        torch.testing.assert_close(way(pk, built(seen_first), z), way(pk, built(early), z))


# -- coincidences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1], ids=["above", "below"])
@pytest.mark.parametrize("gap", [0.0, 1e-13, 1e-8, 1e-4, 1e-2])
@pytest.mark.parametrize("name", MAKERS)
def test_absorption_as_fast_as_a_phase(name: str, gap: float, sign: int) -> None:
    """KA equal or close to each eigenvalue in turn, from either side (flip-flop), also at steady state, which
    is written out here."""
    pk = MAKERS[name](absorption=True)
    z = spread(pk.parameters, 3, 1)
    doses = [Dose(0.0), Dose(4.0, 900, 9.0)]
    series = replace(STEADY["infusion"], start=-8.0)
    long = [Dose(-8.0 * (k + 1), 800, 2.5) for k in range(80)]
    for rate in pk.response(z).rates[:, 0, 0, 0]:
        at = {**z, "KA": (rate * (1 + sign * gap)).view(1, 1, 1)}
        want = stepwise.predict(pk, built(Regimen([*doses, *long])), at)
        close(solve(pk, built(Regimen([*doses, series])), at), want.numpy())


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 1e-2])
def test_equal_return_from_both_peripheral_compartments(gap: float) -> None:
    """k21 = k31: one phase has no weight."""
    for absorption in (False, True):
        pk = three_compartment(absorption=absorption)
        z = spread(pk.parameters, 4, 2)
        z["V3"] = z["Q3"] * z["V2"] / z["Q"] * (1 + gap)
        schedule = built(INFUSIONS)
        close(solve(pk, schedule, z)[:, 0, :, 0], stepwise.predict(pk, schedule, z)[:, 0, :, 0].numpy())


def test_eigenvalues_of_three_compartments() -> None:
    """Over two decades of every parameter, against numpy, and weights that are shares."""
    pk = three_compartment()
    g = np.random.default_rng(0)
    z = {
        n: torch.from_numpy(TYPICAL[n] * np.exp(g.uniform(-2.3, 2.3, 200)))[None, :, None]
        for n in pk.parameters
    }
    at = pk.response(z)
    assert float(at.weights.min()) > -1e-12
    torch.testing.assert_close(at.weights.sum(0), torch.ones(1, 200, 1, dtype=torch.float64))
    matrices = pk.rate_matrix(z)[0, :, 0].numpy()
    wanted = -np.sort(np.linalg.eigvals(matrices).real, axis=-1)
    np.testing.assert_allclose(at.rates[:, 0, :, 0].T.numpy(), wanted, rtol=1e-9)


# -- other dtypes, shapes, paths -------------------------------------------------------------------


def single(schedule: Schedule) -> Schedule:
    return schedule.each(lambda values: values.float() if values.is_floating_point() else values)


@pytest.mark.parametrize("name", MAKERS)
def test_float32(name: str) -> None:
    pk, schedule = full_model(name), built(FULL)
    z = spread(pk.parameters, 8, 2)
    exact = solve(pk, schedule, z)
    rounded = {n: v.float() for n, v in z.items()}
    for way in (solve, stepwise.predict):
        got = way(pk, single(schedule), rounded)
        assert got.dtype == torch.float32
        close(got.double(), exact.numpy(), 1e-5)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "changing"])
def test_a_value_per_fit_is_that_of_every_subject_and_sample(name: str, changing: bool) -> None:
    pk, schedule = full_model(name), built(FULL, (10.0, math.inf))
    alone = {n: v[0, 0] for n, v in spread(pk.parameters, 9, 1).items()}  # (B,)
    alone = {n: torch.cat([v, 1.1 * v]) for n, v in alone.items()}
    if changing:
        alone["CL"] = torch.stack([alone["CL"], 2 * alone["CL"]])[:, None, None, :]
    everyone = {n: v.expand(*v.shape[:-3], 3, 4, 2) for n, v in alone.items()}
    everyone |= {n: v for n, v in alone.items() if n in ("V1", "KA")}
    wide = schedule.each(lambda values: values.expand(*values.shape[:-2], 4, 2).contiguous())
    one, all_ = solve(pk, schedule, alone), solve(pk, wide, everyone)
    assert all_.shape == (5, 3, 4, 2)
    torch.testing.assert_close(one.expand(-1, 3, 4, -1), all_)
    grown = sensitivities(pk, wide, everyone, ("CL", "LAG"))[1][1]
    torch.testing.assert_close(
        sensitivities(pk, schedule, alone, ("CL", "LAG"))[1][1].expand(-1, 3, 4, -1), grown
    )


@pytest.mark.parametrize("name", MAKERS)
def test_many_events_are_the_sum_of_single_doses(name: str) -> None:
    """Where there are many doses and observations the exponentials go from event to event."""
    pk = MAKERS[name]()
    g = np.random.default_rng(2)
    start = np.sort(g.integers(0, 200, 20)).astype(float)  # some at the same time
    lengths = np.where(g.uniform(size=20) < 0.4, 0, g.uniform(0.01, 30, 20))
    doses = [Dose(s, 500 + 10 * k, d) for k, (s, d) in enumerate(zip(start, lengths, strict=True))]
    times = np.sort(np.r_[start[3:9], start[:8] + lengths[:8], g.uniform(0, 260, 16)])
    whole = built(Regimen(doses, times.tolist()))
    assert whole.width is not None
    z = spread(pk.parameters, 1, 3)
    parts = [built(Regimen([dose], times.tolist())) for dose in doses]
    assert all(part.width is None for part in parts)
    torch.testing.assert_close(
        solve(pk, whole, z), sum(solve(pk, part, z) for part in parts), rtol=1e-10, atol=1e-13
    )
    rounded = {n: v.float() for n, v in z.items()}
    close(solve(pk, single(whole), rounded).double(), solve(pk, whole, z).numpy(), 1e-5)
