"""What a compartment model cannot do is refused in one line."""

from typing import Any

import pytest

from medcm_cli.errors import InputError
from medcm_cli.pk import (
    OdeModel,
    check_schedule,
    one_compartment,
    two_compartment,
    two_compartment_rate,
)
from medcm_cli.pk.ode import METHODS
from tests.pk.regimens import AFTER, ORAL, STEADY, Dose, Regimen, built


def test_doses_that_a_model_cannot_take() -> None:
    third = built(Regimen([Dose(0.0), Dose(1.0, compartment=2)]))
    with pytest.raises(InputError, match=r"compartment 3 \(CMT\); pk takes doses into 1 to 2$"):
        check_schedule(two_compartment(absorption=True), third)
    with pytest.raises(InputError, match=r"compartment 3 \(CMT\); pk takes doses into 1$"):
        check_schedule(two_compartment(), third)
    check_schedule(ORAL, third)
    modelled = built(Regimen([Dose(0.0), Dose(1.0, modelled=True)]))
    with pytest.raises(InputError, match=r"RATE -2\); name it, as in \+pk.durations=\{1: D1\}$"):
        check_schedule(two_compartment(), modelled)
    check_schedule(two_compartment(durations={1: "D"}), modelled)


def test_a_steady_state_of_its_own_segment_is_no_superposition() -> None:
    for dose in STEADY.values():
        alone = Regimen([Dose(0.0), dose, Dose(120.0)], (10.0, *AFTER), resets=(dose.start,))
        check_schedule(ORAL, built(alone))
        check_schedule(ORAL, built(Regimen([dose, Dose(120.0)], (99.0, *AFTER))))
        for extra in ([dose, Dose(dose.start - 0.1)], [dose, Dose(1.0)], [Dose(dose.start), dose]):
            with pytest.raises(InputError, match="SS 2"):
                check_schedule(ORAL, built(Regimen(extra, AFTER)))
            check_schedule(two_compartment(), built(Regimen(extra, AFTER)))


def test_a_steady_state_of_infusions_without_number_is_refused() -> None:
    many = Regimen([Dose(0.0, duration=500.0, interval=4.0)], AFTER)
    with pytest.raises(
        InputError, match=r"last 125 times the interval between them \(II\); expected at most 100$"
    ):
        check_schedule(two_compartment(), built(many))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lag": {3: "LAG"}}, "pk.lag: compartment 3 takes no doses; expected 1 to 2"),
        ({"lag": {"1": "LAG"}}, "pk.lag: compartment '1' takes no doses; expected 1 to 2"),
        ({"durations": {1: 2.0}}, "pk.durations: 2.0 for compartment 1; expected a parameter"),
        (
            {"bioavailability": "F"},
            "pk.bioavailability is 'F'; expected compartment: parameter, as in {1: NAME}",
        ),
    ],
)
def test_dose_parameters_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        one_compartment(absorption=True, **options)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": 4}, "pk.observed is 4; expected a whole number from 1 to 2 (pk.compartments)"),
        (
            {"dose_compartment": 0},
            "pk.dose_compartment is 0; expected a whole number from 1 to 2 (pk.compartments)",
        ),
        ({"steady_state_doses": 1.5}, "pk.steady_state_doses is 1.5; expected a whole number from 1"),
        ({"adjoint": "yes"}, "pk.adjoint is 'yes'; expected true or false"),
        ({"method": "rk4"}, "pk.method is 'rk4'; expected one of " + ", ".join(METHODS)),
        ({"norm": "all"}, "pk.norm is 'all'; expected rms or largest"),
        (
            {"adjoint": True, "method": "kvaerno5"},
            "pk.adjoint=true is of torchdiffeq, which has no kvaerno5; choose pk.adjoint=false",
        ),
        (
            {"method": "dopri5", "norm": "largest"},
            "pk.norm=largest is of pk.method=tsit5 and kvaerno5 with pk.adjoint=false",
        ),
        ({"volume": "VC"}, "pk.volume is 'VC'; expected one of CL, V1, Q, V2"),
    ],
)
def test_options_of_a_rate_function_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        OdeModel(two_compartment_rate, ("CL", "V1", "Q", "V2"), 2, **options)
    assert str(caught.value) == message
