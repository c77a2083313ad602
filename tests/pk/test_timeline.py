"""A schedule is asked again and again for the same time line: what is kept of it must fit who asks."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk import OdeModel, Schedule, solve
from medcm_cli.pk.schedule import Features

F64 = torch.float64
NAMES = ("KA", "CL", "V1")


def absorbed(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """First-order absorption and elimination."""
    del t
    return {"depot": -p.KA * a.depot, "central": p.KA * a.depot - p.CL / p.V1 * a.central}


def model(**options: Any) -> OdeModel:
    """Two compartments, seen in the second."""
    parameters = (*NAMES, *options.pop("more", ()))
    return OdeModel(absorbed, parameters, ("depot", "central"), observed="central", method="tsit5", **options)


def schedule(amount: Tensor | None = None) -> Schedule:
    """Two doses of two subjects, the first repeated for ever before it, and three observations."""
    hours = torch.tensor([0.0, 3.0, 14.0], dtype=F64).view(3, 1, 1, 1).repeat(1, 1, 2, 1)
    start = torch.tensor([0.0, 12.0], dtype=F64).view(2, 1, 1, 1).repeat(1, 1, 2, 1)
    given = torch.tensor([100.0, 150.0], dtype=F64).view(2, 1, 1, 1).repeat(1, 1, 2, 1)
    interval = torch.where(start > 0, torch.inf, torch.tensor(12.0, dtype=F64))
    return Schedule.build(
        hours, start, 0 * start, given if amount is None else amount, features=Features(interval=interval)
    )


def values(samples: int = 1, **more: float) -> dict[str, Tensor]:
    """(S, 2, 1) each."""
    shift = 1 + 0.1 * torch.arange(2 * samples, dtype=F64).view(samples, 2, 1)
    return {name: value * shift for name, value in {"KA": 0.6, "CL": 1.0, "V1": 5.0, **more}.items()}


LATE = model(more=("LAG",), lag={1: "LAG"})
ASKED: list[tuple[str, OdeModel, dict[str, Tensor]]] = [
    ("the same", model(), values()),
    ("into the other compartment", model(dose_compartment="central"), values()),
    ("the other one seen", replace(model(), observed="depot"), values()),
    ("more samples", model(), values(3)),
    ("with a lag", LATE, values(LAG=1.0)),
    ("with another lag", LATE, values(LAG=2.0)),
    ("the same once more", model(), values()),
]


def test_whoever_asks_has_its_own() -> None:
    one = schedule()
    for what, pk, z in ASKED:
        torch.testing.assert_close(solve(pk, one, z), solve(pk, schedule(), z), rtol=0, atol=0, msg=what)


def test_it_is_made_once() -> None:
    pk, z, one = model(), values(), schedule()
    solve(pk, one, z)
    first = one.known["timeline"]
    solve(pk, one, {name: 2 * value for name, value in z.items()})
    assert one.known["timeline"] is first
    assert not one.each(lambda value: value).known


def test_a_dose_that_has_a_gradient() -> None:
    amount = schedule().amount.clone().requires_grad_()
    pk, z, one = model(), values(), schedule(amount)
    with torch.no_grad():
        wanted = solve(pk, one, z)
    found = solve(pk, one, z)
    (slope,) = torch.autograd.grad(found.sum(), amount)
    # What is there is proportional to the doses.
    torch.testing.assert_close((slope * amount).sum(), wanted.sum())
