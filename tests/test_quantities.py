"""Units by their names, and what one is in another: against factors written down by hand."""

import pytest

from medcm_cli import quantities
from medcm_cli.errors import InputError
from medcm_cli.runs import Units


@pytest.mark.parametrize(
    ("one", "other", "factor"),
    [
        ("mg/L", "ng/mL", 1000.0),
        ("ug/mL", "mg/L", 1.0),
        ("µg/mL", "mcg/mL", 1.0),
        ("IU/mL", "IU/L", 1000.0),
        ("IU/mL", "iu/dl", 100.0),
        ("kIU/L", "IU/mL", 1.0),
        ("mU/L", "U/mL", 1e-6),
        ("umol/L", "nmol/mL", 1.0),
        ("d", "h", 24.0),
        ("h", "min", 60.0),
        ("mg*h/L", "min*ug/mL", 60.0),
        ("mg h/L", "mg/L*h", 1.0),
        ("%", "%", 1.0),
        ("mg/L", "nmol/L", None),  # takes the molar mass
        ("mg/L", "IU/L", None),
        ("IU/L", "U/L", None),
        ("KIU/mL", "KIU/L", 1000.0),  # of aprotinin
        ("pfu/mL", "pfu/L", 1000.0),
        ("mIU/L", "uIU/mL", 1.0),  # of insulin
        ("miu/l", "IU/L", 1e-3),
        ("MIU", "IU", None),  # millions, and not the thousandth
        ("MU", "U", None),
        ("BU/mL", "IU/mL", None),
        ("year", "h", None),
        ("mg//L", "mg/L", None),
        ("2 mg/L", "mg/L", None),
        ("mg/L; import os", "mg/L", None),
        ("", "h", None),
    ],
)
def test_one_unit_in_another(one: str, other: str, factor: float | None) -> None:
    assert quantities.factor(one, other) == (None if factor is None else pytest.approx(factor, rel=1e-14))


def test_an_amount_of_its_own_kind() -> None:
    quantities.define_amount("copies")
    assert quantities.factor("copies/mL", "copies/L") == pytest.approx(1000)
    assert quantities.factor("copies/mL", "mg/L") is None
    with pytest.raises(InputError, match="in one word"):
        quantities.define_amount("vials per day")


@pytest.mark.parametrize(
    ("amount", "level", "size"),
    [
        ("IU", "IU/mL", 1),
        ("mg", "mg/L", 1),
        ("mg", "ng/mL", 1000),
        ("ug", "ug/mL", 1),
        ("mmol", "nmol/L", 1000),
    ],
)
def test_a_level_of_a_usual_size(amount: str, level: str, size: float) -> None:
    assert Units(level, 1.0, level, amount).usual_level == pytest.approx(size)
