"""Which states of a system are a linear part, and which only look like one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from medcm_cli.pk import OdeModel
from medcm_cli.pk.linear_part import linear_parts


def looped(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Three states in a circle, and what they lead to."""
    del t
    return {
        "one": p.K * (a.three - a.one),
        "two": p.K * (a.one - a.two),
        "three": p.K * (a.two - a.three),
        "rest": -p.V * a.rest / (1 + a.one + a.rest),
    }


def transit(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Three states that empty alike, of which the first alone has a rate of its own."""
    del t
    return {
        "one": -p.K * a.one,
        "two": p.K * (a.one - a.two),
        "three": p.K * (a.two - a.three),
        "rest": p.K * a.three - p.V * a.rest / (1 + a.rest),
    }


def collected(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """What has left so far stays for ever."""
    del t
    return {"one": -p.K * a.one, "out": p.K * a.one, "rest": p.K * a.out - p.V * a.rest / (1 + a.rest)}


def fed_back(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    del t
    return {"one": -p.K * a.one + a.rest, "rest": p.K * a.one - p.V * a.rest / (1 + a.rest)}


def by_the_hour(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    return {"one": -p.K * (1 + torch.sin(t) / 2) * a.one, "rest": p.K * a.one - p.V * a.rest / (1 + a.rest)}


def stepwise(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Slopes that are the same on both sides of a step."""
    del t
    return {
        "one": torch.where(a.one > 1, p.K, 0.0) - p.K * a.one,
        "rest": p.K * a.one - p.V * a.rest / (1 + a.rest),
    }


def all_linear(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    del t
    return {"one": -p.K * a.one, "rest": p.K * a.one - p.V * a.rest}


@pytest.mark.parametrize(
    ("rate", "inside"),
    [
        (looped, ()),
        (transit, (0,)),
        (collected, (0,)),
        (fed_back, ()),
        (by_the_hour, ()),
        (stepwise, ()),
        (all_linear, ()),
    ],
)
def test_what_is_no_part(rate: Callable[..., Any], inside: tuple[int, ...]) -> None:
    formula = OdeModel(rate, ("K", "V"), volume="V", method="tsit5").formula
    assert formula is not None
    parts = linear_parts(formula)
    assert (parts[0].inside if parts else ()) == inside
