"""``medcm benchmark --ode``."""

from dataclasses import replace

import pytest

from medcm_cli.commands import ode_speed
from medcm_cli.pk import OdeModel


def test_every_ratio_is_of_two_times_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ode_speed, "FITS", (2,))
    monkeypatch.setattr(ode_speed, "SUBJECTS", 2)
    monkeypatch.setattr(ode_speed, "DOSES", 3)
    loose = {
        name: replace(pk, rtol=1e-2, atol=1e-2) if isinstance(pk, OdeModel) else pk
        for name, pk in ode_speed.MODELS.items()
    }
    monkeypatch.setattr(ode_speed, "MODELS", loose)
    monkeypatch.setattr(ode_speed, "prepare", lambda **_: None)
    monkeypatch.setattr(ode_speed, "_stiff", lambda: ({}, []))
    seen = list[str]()
    section = ode_speed.measure(1, seen.append)
    assert seen == ["measurement 1 of 1"]
    times = {row[0]: float(row[1].split()[0]) for row in section.cells}
    assert "two compartments, fo by torchdiffeq, 2 fits" in times
    for name, _, ratio, _ in section.cells:
        if ratio:
            value, base = ratio.split(" x ")
            rounding = 0.05 * (1 / times[name] + 1 / times[base])
            assert float(value) == pytest.approx(times[name] / times[base], rel=2 * rounding, abs=0.02)
