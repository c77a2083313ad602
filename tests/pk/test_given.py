"""Parameters that follow from others: against the model at the values that they have, and finite
differences."""

import math
from typing import Any

import pytest
import torch

from medcm_cli.errors import InputError
from medcm_cli.pk import one_compartment, sensitivities, solve, two_compartment, with_given
from medcm_cli.pk.expression import parsed, units_of
from medcm_cli.pk.given import Given
from tests.helpers import F64, make_population

Z = {"KE": 0.2, "KD": 0.35, "V1": 2.5}
GIVEN = {"CL": "KE * V1", "KA": "KE + KD"}


def values(**changed: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([value, 1.1 * value], dtype=F64) for name, value in {**Z, **changed}.items()}


def test_predictions_are_those_at_the_given_values() -> None:
    population, pk = make_population(4, 2), one_compartment(absorption=True)
    given = with_given(pk, GIVEN)
    assert set(given.parameters) == {"V1", "KE", "KD"}
    z = values()
    full = {"CL": z["KE"] * z["V1"], "V1": z["V1"], "KA": z["KE"] + z["KD"]}
    torch.testing.assert_close(solve(given, population.schedule, z), solve(pk, population.schedule, full))
    assert given.units == {"V1": "L", "KE": "1/{time}", "KD": "1/{time}"}
    half = given.half_life(z)
    assert half is not None
    torch.testing.assert_close(half, torch.log(torch.tensor(2.0, dtype=F64)) / z["KE"])


def test_a_rate_below_zero_is_no_number() -> None:
    pk, schedule = with_given(one_compartment(), {"CL": "KE - KD"}), make_population(4, 2).schedule
    assert solve(pk, schedule, values()).isnan().any()
    assert solve(pk, schedule, values(KE=0.5)).isfinite().all()


@pytest.mark.parametrize("given", [GIVEN, {"CL": "V1 * (1/KE)", "KA": "exp(KD) - KE**2 + sqrt(KE)"}])
def test_sensitivities_are_differences(given: dict[str, str]) -> None:
    population = make_population(4, 2)
    pk = with_given(one_compartment(absorption=True), given)
    h = 1e-6
    _, columns = sensitivities(pk, population.schedule, values(), ["KE", "KD", "V1"])
    for name, column in zip(("KE", "KD", "V1"), columns, strict=True):
        up, down = (
            solve(pk, population.schedule, values(**{name: Z[name] * math.exp(step)})) for step in (h, -h)
        )
        torch.testing.assert_close(column, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)


def test_sensitivities_can_be_differentiated() -> None:
    """As objectives do, whose gradient flows through G."""
    population = make_population(3, 2)
    pk = with_given(one_compartment(absorption=True), GIVEN)

    def first(ke: torch.Tensor) -> torch.Tensor:
        _, (column,) = sensitivities(pk, population.schedule, {**values(), "KE": ke}, ["KE"])
        return column.sum()

    assert torch.autograd.gradcheck(first, (values()["KE"].requires_grad_(),))


def test_units_follow() -> None:
    known = {"V1": "L", "CL": "L/{time}", "D": "{amount}"}
    assert units_of(parsed("x", "KE * V1"), "L/{time}", known)["KE"] == "1/{time}"
    assert units_of(parsed("x", "V1 / T"), "L/{time}", known)["T"] == "{time}"
    assert units_of(parsed("x", "1 / MAT"), "1/{time}", known)["MAT"] == "{time}"
    assert units_of(parsed("x", "(K + CL / V1) * V1"), "L/{time}", known)["K"] == "1/{time}"
    assert "X" not in units_of(parsed("x", "exp(X) * V1"), "L", known)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"KA": "KE + KD"}, "given.KA: pk has no such parameter"),
        ({"CL": "__import__('os')"}, "is not understood"),
        ({"CL": "KE * "}, "expected arithmetic"),
        ({"CL": "V1.real"}, "is not understood"),
        ({"CL": "KE if V1 else 2"}, "is not understood"),
        ({"CL": 3}, "depends on no parameter"),
        ({"CL": "Q * KE", "Q": "V2 * 2"}, "given.CL: Q is given too"),
        ({"CL": "CL * 2"}, "given.CL: CL is given too"),
        (["CL"], "expected parameters and their expressions"),
    ],
)
def test_what_is_refused(given: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        with_given(two_compartment(), given)


@pytest.mark.parametrize("given", [{"CL": "V1 * (K - KD)"}, {"CL": "V1 / (K - K)"}, {"CL": "log(K) * V1"}])
def test_what_is_no_parameter_where_a_fit_begins_is_refused(given: dict[str, str]) -> None:
    pk = with_given(one_compartment(), given)
    assert isinstance(pk, Given)
    begin = {"V1": 20.0, "K": 0.1, "KD": 0.2}
    with pytest.raises(
        InputError, match=r"given\.CL is .* where a fit begins \(.*K 0.1.*\) is no number above"
    ):
        pk.check_beginning(begin)
    pk.check_beginning({"V1": 20.0})  # what comes from a network is not known yet
    sound = with_given(one_compartment(), {"CL": "V1 * (KD - K)"})
    assert isinstance(sound, Given)
    sound.check_beginning(begin)
